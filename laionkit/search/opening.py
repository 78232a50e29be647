"""Find and open an index: one of a dataset's, or a folder that clip-retrieval wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laionkit.core.embeddings import model_made
from laionkit.core.errors import InputError, did_you_mean
from laionkit.core.files import Folder
from laionkit.core.schemas import INDEX
from laionkit.search.cache import local_foreign, open_segment
from laionkit.search.foreign import AnySegment, ForeignSegment
from laionkit.search.layout import Pointer, index_folder, read_pointer
from laionkit.search.segment import Segment
from laionkit.search.view import IMAGE_INDEX

_ATTEMPTS = 20


@dataclass(frozen=True)
class Opened:
    """An open index: its segments, their dimension, what is known of the model, its folder.

    A foreign folder has none of our files beside its segment: `folder` is None.
    """

    segments: Sequence[AnySegment]
    dim: int
    facts: Mapping[str, Any]
    folder: Folder | None = None


def indexed_models(dataset: Folder) -> list[str]:
    """Short names of the models that this dataset has an index of."""
    return [m for m in dataset.folders(INDEX) if read_pointer(index_folder(dataset, m))]


def choose_index(dataset: Folder, model: str | None) -> str:
    """The index meant: the one named, or the only one. Raises InputError otherwise."""
    models = indexed_models(dataset)
    if not models and not dataset.exists():
        raise InputError(f"there is no folder {dataset}")
    if not models:
        raise InputError(f"{dataset} has no index: run laionkit index {dataset} first")
    if model is None and len(models) == 1:
        return models[0]
    if model is None:
        raise InputError(f"{dataset} has indexes of {', '.join(models)}: choose with --as NAME")
    if model not in models:
        raise InputError(
            f"{dataset} has no index of {model}{did_you_mean(model, models)}; "
            f"it has {', '.join(models)}"
        )
    return model


def open_index(dataset: Folder, model: str | None) -> Opened:
    """Open a dataset's index, or a folder that is an index. Raises InputError for neither."""
    if dataset.exists(IMAGE_INDEX):
        return _open_foreign(dataset, model)
    name = choose_index(dataset, model)
    folder = index_folder(dataset, name)
    for _ in range(_ATTEMPTS):
        pointer = read_pointer(folder)
        assert pointer is not None
        try:
            segments = _open_segments(folder, pointer)
        except InputError:
            # A writer may have compacted between the pointer's reading and the files' opening.
            now = read_pointer(folder)
            if now is None or now.generation == pointer.generation:
                raise
            continue
        return Opened(segments, pointer.dim, model_made(dataset, name).facts, folder)
    raise InputError(f"{folder} changes faster than it can be opened: try again")


def _open_segments(folder: Folder, pointer: Pointer) -> list[Segment]:
    segments: list[Segment] = []
    start = 0
    for info in pointer.segments:
        segment = open_segment(folder, info, start)
        if segment.vectors.dim != pointer.dim:
            raise InputError(
                f"{folder}: segment {info.name} holds vectors of {segment.vectors.dim} dimensions, "
                f"and the index says {pointer.dim}: run laionkit index --fresh"
            )
        segments.append(segment)
        start += info.rows
    return segments


def _open_foreign(folder: Folder, model: str | None) -> Opened:
    segment = ForeignSegment(local_foreign(folder))
    return Opened([segment], segment.vectors.dim, {"model": model} if model else {})
