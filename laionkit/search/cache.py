"""Local copies of remote segments: what is mapped must lie on this machine."""

import os
from pathlib import Path

from laionkit.core.config import fingerprint
from laionkit.core.files import Folder
from laionkit.search.layout import LISTS, ROWS, VECTORS, SegmentInfo, segment_file
from laionkit.search.segment import Segment

_MUTABLE = {"dead", "dead_file", "shards"}  # what a pointer may say anew of the same files


def open_segment(folder: Folder, info: SegmentInfo, start: int) -> Segment:
    """Open a segment of an index folder, through a local copy where the folder is remote."""
    return Segment(folder if folder.is_local else _cached(folder, info), info, start)


def _cached(folder: Folder, info: SegmentInfo) -> Folder:
    """The folder of a segment's local copy, made on first use.

    Segments never change, so a copy is good for ever; it is found again by what it was made of.
    """
    made = fingerprint({"url": folder.url, **info.model_dump(mode="json", exclude=_MUTABLE)})
    place = Folder(cache_folder() / made)
    files = [VECTORS, ROWS, *([LISTS] if info.lists else [])]
    for name in [*(segment_file(info.name, file) for file in files), info.dead_file]:
        if name and not place.exists(name):
            with folder.open(name) as theirs, place.create(name) as ours:
                while block := theirs.read(1 << 24):
                    ours.write(block)
    return place


def cache_folder() -> Path:
    """Where copies of remote indexes are kept: LAIONKIT_INDEXES, or the user's cache."""
    default = Path.home() / ".cache/laionkit/indexes"
    return Path(os.environ.get("LAIONKIT_INDEXES", default))
