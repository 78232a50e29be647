"""The command line: one thin command per stage, and what looks at a dataset."""

from laionkit.cli.app import main

__all__ = ["main"]
