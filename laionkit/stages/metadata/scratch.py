"""The folder in which a run spills; it counts for nothing and goes away with the run."""

import contextlib
import tempfile
from collections.abc import Iterator

from laionkit.core.files import Folder
from laionkit.core.schemas import METADATA, RECORDS

SCRATCH = f"{RECORDS}/{METADATA}/scratch"


@contextlib.contextmanager
def scratch_folder(dataset: Folder) -> Iterator[str]:
    """A folder for spills, beside the dataset where that is local; it goes away afterwards."""
    parent = None
    if dataset.is_local:
        parent = dataset.local_path(SCRATCH)
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=parent) as folder:
        yield folder
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.rmdir()
