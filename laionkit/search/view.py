"""The view of an index that faiss and clip-retrieval open: image.index, image.json, metadata/.

It shows the first segment, which holds every row at build and compaction; what was added since
is counted in ``image.json`` as pending.
"""

import os
from pathlib import Path

from laionkit.core.files import Folder
from laionkit.search.layout import LISTS, VECTORS, Pointer, segment_file

IMAGE_INDEX = "image.index"
IMAGE_JSON = "image.json"
METADATA = "metadata"


def publish_view(dataset: Folder, place: str, pointer: Pointer, parts: int) -> None:
    """Let ``image.index`` be the first segment's file, and say in ``image.json`` what it is.

    `parts` is how many parquet files ``metadata/`` has; those of a longer view are removed.
    """
    first = pointer.segments[0]
    source = f"{place}/{segment_file(first.name, LISTS if first.lists else VECTORS)}"
    _link(dataset, source, f"{place}/{IMAGE_INDEX}")
    for name in dataset.names(f"{place}/{METADATA}", ".parquet")[parts:]:
        dataset.remove(f"{place}/{METADATA}/{name}")
    describe_view(dataset, place, pointer)


def describe_view(dataset: Folder, place: str, pointer: Pointer) -> None:
    """Write ``image.json`` in clip-retrieval's words, and the rows that are pending."""
    first = pointer.segments[0]
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
            "pending rows": pointer.rows - first.rows,
        },
    )


def _link(dataset: Folder, source: str, target: str) -> None:
    """Make `target` the same file as `source`: a hard link where there are such, else a copy."""
    if not dataset.is_local:
        dataset.fs.copy(dataset.at(source), dataset.at(target))
        return
    path = Path(dataset.at(target))
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
