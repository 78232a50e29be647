"""Local copies of remote indexes: what is mapped must lie on this machine.

A segment never changes once it is named, so its copy is found again by what it was made of. A
folder of another's making may change under its name: its copy is found by the size and the tag
(ETag, or time of change) that the server tells of each file.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from laionkit.core.config import fingerprint
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.search.layout import LISTS, METADATA, ROWS, VECTORS, SegmentInfo, segment_file
from laionkit.search.segment import Segment
from laionkit.search.view import IMAGE_INDEX

_MUTABLE = {"dead", "dead_file", "shards"}  # what a pointer may say anew of the same files
_TAGS = ("ETag", "etag", "sha256", "Last-Modified", "LastModified", "mtime", "created")


def open_segment(folder: Folder, info: SegmentInfo, start: int) -> Segment:
    """Open a segment of an index folder, through a local copy where the folder is remote."""
    if folder.is_local:
        return Segment(folder, info, start)
    place = _place(folder, info)
    files = [VECTORS, ROWS, *([LISTS] if info.lists else [])]
    for name in [*(segment_file(info.name, file) for file in files), info.dead_file]:
        if name:
            sha256 = info.vectors_sha256 if name.endswith(VECTORS) else ""
            _copy(folder, place, name, sha256)
    return Segment(place, info, start)


def local_file(folder: Folder, info: SegmentInfo, name: str) -> Path | None:
    """The local path of one more file of a segment, copied where remote; None where it is not."""
    if folder.is_local:
        path = Path(folder.at(name))
        return path if path.exists() else None
    place = _place(folder, info)
    if not place.exists(name) and not folder.exists(name):
        return None
    with contextlib.suppress(FileNotFoundError):
        _copy(folder, place, name)
    return place.local_path(name) if place.exists(name) else None


def local_foreign(folder: Folder) -> Folder:
    """A folder with image.index and metadata/ that can be mapped: itself, or a local copy.

    Raises InputError where a copy is not whole.
    """
    if folder.is_local:
        return folder
    names = [
        IMAGE_INDEX,
        *(f"{METADATA}/{name}" for name in folder.names(METADATA, ".parquet")),
    ]
    made = fingerprint({"url": folder.url, "files": [_identity(folder, name) for name in names]})
    place = Folder(cache_folder() / made)
    for name in names:
        _copy(folder, place, name)
    return place


def _place(folder: Folder, info: SegmentInfo) -> Folder:
    """The folder of a segment's copy."""
    made = fingerprint({"url": folder.url, **info.model_dump(mode="json", exclude=_MUTABLE)})
    return Folder(cache_folder() / made)


def _identity(folder: Folder, name: str) -> list[Any]:
    """What tells a remote file from another of its name."""
    told = folder.fs.info(folder.at(name))
    tag = next((str(told[tag]) for tag in _TAGS if told.get(tag)), "")
    return [name, told.get("size"), tag]


def _copy(folder: Folder, place: Folder, name: str, sha256: str = "") -> None:
    """Copy a file that is not there yet. Raises InputError where it did not come whole."""
    if place.exists(name):
        return
    size = folder.size(name)
    with folder.open(name) as theirs, place.create(name) as ours:
        while block := theirs.read(1 << 24):
            ours.write(block)
        if ours.size != size or (sha256 and ours.digest.hexdigest() != sha256):
            raise InputError(
                f"{folder}/{name}: {ours.size:,} bytes came, and they are not the {size:,} that it "
                "has there: try again"
            )


def cache_folder() -> Path:
    """Where copies of remote indexes are kept: LAIONKIT_INDEXES, or the user's cache."""
    default = Path.home() / ".cache/laionkit/indexes"
    return Path(os.environ.get("LAIONKIT_INDEXES", default))
