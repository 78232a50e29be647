"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real material (heads, photographs, vectors); skips where it is absent."""
    here = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LAIONKIT_TEST_DATA", here.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real test data at {folder}; set LAIONKIT_TEST_DATA to the folder")
    return folder
