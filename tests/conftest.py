"""Fixtures shared by all tests."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from laionkit.cli import main
from tests.small_clip import write_small_clip

settings.register_profile("laionkit", deadline=None)  # a busy machine is no failure
settings.load_profile("laionkit")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real material (heads, photographs, vectors); skips where it is absent."""
    here = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LAIONKIT_TEST_DATA", here.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}; set LAIONKIT_TEST_DATA to the folder")
    return folder


@pytest.fixture
def heads_cache(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds every published head, as first uses would leave it."""
    folder = tmp_path / "heads"
    folder.mkdir()
    for file in real_data.glob("heads/*/*.pth"):
        shutil.copyfile(file, folder / file.name)
    monkeypatch.setenv("LAIONKIT_HEADS", str(folder))
    return folder


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small CLIP with seeded weights; ``local-dir:FOLDER`` loads it."""
    return write_small_clip(tmp_path_factory.mktemp("small-clip"))


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def laionkit(capsys) -> Callable[..., Ran]:
    """A function that runs ``laionkit ARGUMENTS`` and returns a Ran."""

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run
