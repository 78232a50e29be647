"""``python -m laionkit`` is ``laionkit``."""

from laionkit.cli import main

main()
