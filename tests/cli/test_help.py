"""Every command, loaded only when it is called, is there and explains itself."""

from typing import Annotated

import pytest
from cyclopts import App, Parameter

from laionkit.cli.app import app
from laionkit.core.config import Names, StageConfig

COMMANDS = [name for name in app if not name.startswith("-") and name != "head"]


@pytest.mark.parametrize("command", [*COMMANDS, "head fit"])
def test_every_command_explains_itself_within_80_columns(laionkit, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = laionkit(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: laionkit {command}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80
    assert "``" not in ran.out


def test_a_docstring_is_shown_whole_and_wrapped_for_the_screen(laionkit, monkeypatch):
    class Config(StageConfig):
        cut: Names = ("a", "b")
        """Pieces as START-END[,START-END] of
        ``[width]``, in [pixels]."""
        loud: bool = False
        """Say it."""
        calm: bool = True
        """Do not."""

    def show(config: Annotated[Config, Parameter(name="*")] = Config()) -> None:
        """Show [this]."""

    extended = App(
        name="laionkit",
        default_parameter=app.default_parameter,
        help_format=app.help_format,
        help_formatter=app.help_formatter,
    )
    extended.command(show)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("laionkit.cli.app.app", extended)
    shown = laionkit("show", "--help").out
    assert "Show [this]." in shown
    assert "Pieces as START-END[,START-END] of `[width]`, in [pixels]. [default: a,b]" in shown
    assert "--no-calm" in shown
    assert "--no-loud" not in shown
    assert "False" not in shown


def test_what_a_command_takes_is_said_in_order(laionkit):
    assert "laionkit metadata [OPTIONS] SOURCE… DATASET" in laionkit("metadata", "--help").out
    assert "[default: noai,noimageai,noindex,noimageindex,noml]" in " ".join(
        laionkit("fetch", "--help").out.replace("│", "").split()
    )


def test_no_command_is_left_out():
    assert {"metadata", "fetch", "embed", "index", "query", "subset", "forget"} <= set(COMMANDS)
