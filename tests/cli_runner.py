"""Run the command line as a user does, in this process, and see what they see."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from laionkit.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def laionkit(capsys):
    """A function that runs ``laionkit ARGUMENTS`` and returns a Ran."""

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run
