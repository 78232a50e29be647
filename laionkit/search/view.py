"""The view of an index that faiss and clip-retrieval open: image.index, image.json, metadata/.

It shows the first segment, which holds every row at build and compaction; what was added since
is counted in ``image.json`` as pending, what was taken down as dead.
"""

import os
from pathlib import Path

from laionkit.core.files import Folder
from laionkit.search.layout import LISTS, METADATA, VECTORS, Pointer, segment_file

IMAGE_INDEX = "image.index"
IMAGE_JSON = "image.json"


def publish_view(dataset: Folder, place: str, pointer: Pointer) -> None:
    """Let ``image.index`` and ``metadata/`` be the first segment's files, and say what they are.

    All is there before the first of them changes, so that others never see one without the other
    for longer than that takes; ``image.json`` comes last.
    """
    first = pointer.segments[0]
    below = segment_file(first.name, METADATA)
    parts = dataset.names(f"{place}/{below}", ".parquet")
    for name in parts:
        _link(dataset, f"{place}/{below}/{name}", f"{place}/{METADATA}/{name}")
    for name in dataset.names(f"{place}/{METADATA}", ".parquet"):
        if name not in parts:
            dataset.remove(f"{place}/{METADATA}/{name}")
    source = segment_file(first.name, LISTS if first.lists else VECTORS)
    _link(dataset, f"{place}/{source}", f"{place}/{IMAGE_INDEX}")
    describe_view(dataset, place, pointer)


def shows_first(dataset: Folder, place: str, pointer: Pointer) -> bool:
    """Whether the view was finished for the index's first segment."""
    path = f"{place}/{IMAGE_JSON}"
    if not dataset.exists(path):
        return False
    first = pointer.segments[0].name
    return bool(dataset.read_json(path).get("segment", first) == first)


def describe_view(dataset: Folder, place: str, pointer: Pointer) -> None:
    """Write ``image.json`` in clip-retrieval's words, and how many rows are pending or dead."""
    first, *others = pointer.segments
    size = dataset.size(f"{place}/{IMAGE_INDEX}")
    dataset.write_json(
        f"{place}/{IMAGE_JSON}",
        {
            "index_key": f"IVF{first.lists},SQ{first.code_bits}" if first.lists else "SQfp16",
            "index_param": f"nprobe={max(1, first.lists // 16)}" if first.lists else "",
            "index_path": IMAGE_INDEX,
            "size in bytes": size,
            "nb vectors": first.rows,
            "vectors dimension": pointer.dim,
            "compression ratio": round(4 * pointer.dim * first.rows / size, 4),
            "segment": first.name,
            "pending rows": sum(info.rows - info.dead for info in others),
            "dead rows": first.dead,
        },
    )


def _link(dataset: Folder, source: str, target: str) -> None:
    """Make `target` the same file as `source`: a hard link where there are such, else a copy."""
    if not dataset.is_local:
        dataset.fs.copy(dataset.at(source), dataset.at(target))
        return
    path = Path(dataset.at(target))
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.hardlink_to(dataset.at(source))
        partial.replace(path)
    except OSError:  # a file system without links
        with dataset.open(source) as old, dataset.create(target) as new:
            while block := old.read(1 << 24):
                new.write(block)
    finally:
        partial.unlink(missing_ok=True)
