"""Every command, loaded only when it is called, is there and explains itself."""

import pytest

from laionkit.cli.app import app

COMMANDS = [name for name in app if not name.startswith("-") and name != "head"]


@pytest.mark.parametrize("command", [*COMMANDS, "head fit"])
def test_every_command_explains_itself_within_80_columns(laionkit, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ran = laionkit(*command.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: laionkit {command}" in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


def test_no_command_is_left_out():
    assert {"metadata", "fetch", "embed", "index", "query", "subset", "forget"} <= set(COMMANDS)
