"""Bring an index up to date with a model's embeddings, behind one pointer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.files import Folder
from laionkit.core.forgotten import forgotten_content, read_forgotten
from laionkit.core.schemas import INDEX
from laionkit.search import bits
from laionkit.search.build import Built, Shape, build_segment
from laionkit.search.cache import open_segment
from laionkit.search.layout import (
    Pointer,
    SegmentInfo,
    index_folder,
    read_pointer,
    segment_file,
    write_pointer,
)
from laionkit.search.segment import Segment
from laionkit.search.view import METADATA, describe_view, publish_view

# Every segment is searched, and only the first is in the view that other tools open.
_MAX_SEGMENTS = 8
_MAX_WORN = 0.25

ShapeFor = Callable[[int, int], Shape]


class IndexWriter:
    """Writes the segments of one model's index. One writer at a time; readers need no lock."""

    def __init__(
        self, dataset: Folder, model: str, facts: Mapping[str, Any], shape_for: ShapeFor
    ) -> None:
        """Prepare to write.

        `facts` are those of the embeddings' stage; `shape_for` says how a segment of so many
        rows and dimensions is laid out.
        """
        self.dataset, self.model, self.shape_for = dataset, model, shape_for
        self.dim = int(facts["dim"])
        self.key = str(facts.get("key_column", "image_path"))
        self.place = f"{INDEX}/{model}"
        self.folder = index_folder(dataset, model)

    def pointer(self) -> Pointer | None:
        """What readers see."""
        return read_pointer(self.folder)

    def segments(self) -> tuple[SegmentInfo, ...]:
        """The segments that readers see."""
        pointer = self.pointer()
        return pointer.segments if pointer else ()

    def rows(self) -> int:
        """The rows that readers see."""
        pointer = self.pointer()
        return pointer.rows if pointer else 0

    def bring_up(self, refs: Sequence[EmbeddingRef], *, compact: bool = False) -> list[Built]:
        """Make the index hold exactly these shards; return the segments written.

        New shards become a new segment, and rows of shards that are gone are marked dead, until
        what was added, or what is dead, outweighs a share of the first segment: then, and with
        `compact`, everything is built anew as one segment.
        """
        self.forget()
        pointer = self.pointer()
        if pointer is None:
            return [self.rebuild(refs)]
        wanted = {ref.name: ref.content for ref in refs}
        held = {k: v for segment in pointer.segments for k, v in segment.shards.items()}
        gone = {name for name, content in held.items() if wanted.get(name) != content}
        fresh = [ref for ref in refs if held.get(ref.name) != ref.content]
        if compact or self._is_worn(pointer, fresh, gone):
            dirty = gone or fresh or len(pointer.segments) > 1 or pointer.segments[0].dead
            return [self.rebuild(refs)] if dirty or compact else []
        return self._append(pointer, fresh, gone) if fresh or gone else []

    def _is_worn(
        self, pointer: Pointer, fresh: Sequence[EmbeddingRef], gone: Collection[str]
    ) -> bool:
        first = pointer.segments[0]
        pending = pointer.rows - (first.rows - first.dead) + sum(ref.rows for ref in fresh)
        dead = sum(segment.dead for segment in pointer.segments)
        many = len(pointer.segments) + bool(fresh) > _MAX_SEGMENTS
        lost = bool(gone) and all(name in gone for name in first.shards)
        return many or lost or max(pending, dead) > _MAX_WORN * first.rows

    def _append(
        self, pointer: Pointer, fresh: Sequence[EmbeddingRef], gone: Collection[str]
    ) -> list[Built]:
        """Add a segment of fresh shards, mark those gone as dead."""
        generation = pointer.generation + 1
        segments = [self._without(info, gone, generation) for info in pointer.segments]
        built = []
        if fresh:
            shape = self.shape_for(sum(ref.rows for ref in fresh), self.dim)
            built.append(self._build(f"{generation:05d}", fresh, shape, None))
            segments.append(built[0].info)
        self._publish(pointer, generation, segments)
        return built

    def _without(self, info: SegmentInfo, gone: Collection[str], generation: int) -> SegmentInfo:
        """A segment whose rows of some shards are dead."""
        shards = {name: content for name, content in info.shards.items() if name not in gone}
        if len(shards) == len(info.shards):
            return info
        segment = open_segment(self.folder, info, 0)
        dead = segment.rows_of_shards(set(info.shards) - set(shards))
        return self._mark(segment, dead, generation).model_copy(update={"shards": shards})

    def _mark(self, segment: Segment, dead_N: NDArray[np.bool_], generation: int) -> SegmentInfo:
        dead = bits.from_mask(dead_N)
        if segment.dead is not None:
            dead |= segment.dead
        name = segment_file(segment.info.name, f"dead-{generation:05d}.bits")
        self.folder.write_bytes(name, dead.tobytes())
        return segment.info.model_copy(update={"dead": bits.count(dead), "dead_file": name})

    def forget(self) -> int:
        """Mark what the dataset's list of takedowns names; return how many rows that takes down.

        No search that begins after this shows them, and no later build takes them in.
        """
        pointer = self.pointer()
        content = forgotten_content(self.dataset)
        if pointer is None or pointer.forgotten == content:
            return 0
        generation = pointer.generation + 1
        keys = read_forgotten(self.dataset)
        segments = []
        for info in pointer.segments:
            segment = open_segment(self.folder, info, 0)
            found = pc.is_in(segment.rows.keys(), value_set=keys).to_numpy()
            segments.append(self._mark(segment, found, generation) if found.any() else info)
        self._publish(pointer, generation, segments, content)
        return sum(s.dead for s in segments) - sum(s.dead for s in pointer.segments)

    def _publish(
        self,
        pointer: Pointer,
        generation: int,
        segments: Sequence[SegmentInfo],
        forgotten: str | None = None,
    ) -> None:
        """Point to other segments; the view of other tools says what is pending."""
        known = pointer.forgotten if forgotten is None else forgotten
        fresh = pointer.model_copy(
            update={"generation": generation, "segments": tuple(segments), "forgotten": known}
        )
        write_pointer(self.folder, fresh)
        describe_view(self.dataset, self.place, fresh)

    def rebuild(self, refs: Sequence[EmbeddingRef]) -> Built:
        """Make one new segment of all shards, point to it, and renew the view of other tools."""
        old = self.pointer()
        generation = old.generation + 1 if old else 1
        shape = self.shape_for(sum(ref.rows for ref in refs), self.dim)
        built = self._build(f"{generation:05d}", refs, shape, f"{self.place}/{METADATA}")
        pointer = Pointer(
            generation=generation,
            model=self.model,
            dim=self.dim,
            segments=(built.info,),
            forgotten=forgotten_content(self.dataset),
        )
        write_pointer(self.folder, pointer)
        publish_view(self.dataset, self.place, pointer, built.parts())
        return built

    def _build(
        self, name: str, refs: Sequence[EmbeddingRef], shape: Shape, metadata: str | None
    ) -> Built:
        forgotten = read_forgotten(self.dataset)
        return build_segment(
            self.dataset, self.place, name, refs, shape, self.dim,
            key=self.key, metadata=metadata, forgotten=forgotten,
        )  # fmt: skip
