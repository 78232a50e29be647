"""Every command, loaded only when it is called, is there and explains itself."""

import re
import shlex
from typing import Annotated

import pytest
from cyclopts import App, Parameter

from laionkit.cli.app import _EXAMPLES, app
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


def test_every_command_has_examples_and_each_can_be_typed():
    for command, lines in _EXAMPLES.items():
        for line in lines:
            words = shlex.split(line.partition(" | ")[0], comments=True)
            assert words[:2] == ["laionkit", command]
            app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert set(_EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "head fit"])
def test_every_flag_and_argument_is_explained(laionkit, command):
    shown = laionkit(*command.split(), "--help").out.replace("[required]", "")
    rows = re.findall(r"^│ (?:\*  |   )?((?:--|[A-Z])\S+)(.*)│$", shown, re.MULTILINE)
    assert rows
    for name, text in rows:
        assert re.search("[a-z]{2}", text), f"{command} {name}"


def test_a_flag_that_would_be_ignored_is_refused(laionkit, tmp_path):
    for command in (("index",), ("query",), ("subset", "--name", "x"), ("forget",)):
        ran = laionkit(command[0], tmp_path, *command[1:], "--part", "1/2")
        assert ran.code == 2
        assert ran.err.startswith("laionkit: Unknown option: --part.")


def test_what_a_command_takes_is_said_in_order(laionkit):
    assert "laionkit metadata [OPTIONS] SOURCE… DATASET" in laionkit("metadata", "--help").out
    assert "[default: noai,noimageai,noindex,noimageindex,noml]" in " ".join(
        laionkit("fetch", "--help").out.replace("│", "").split()
    )


def test_no_command_is_left_out():
    assert {"metadata", "fetch", "embed", "index", "query", "subset", "forget"} <= set(COMMANDS)
