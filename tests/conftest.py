"""Fixtures shared by all tests."""

import os
import shutil
from pathlib import Path

import pytest

from tests.small_clip import write_small_clip


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
