"""Bring an index up to date with a model's embeddings, behind one pointer."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.forgotten import forgotten_content, read_forgotten
from laionkit.core.schemas import INDEX
from laionkit.search import bits
from laionkit.search.build import Built, Shape, build_segment
from laionkit.search.cache import open_segment
from laionkit.search.layout import (
    SEGMENTS,
    Pointer,
    SegmentInfo,
    index_folder,
    read_pointer,
    segment_file,
    write_pointer,
)
from laionkit.search.segment import Segment
from laionkit.search.view import describe_view, publish_view, shows_first

# Every segment is searched, and only the first is in the view that other tools open.
_MAX_SEGMENTS = 8
_MAX_WORN = 0.25

ShapeFor = Callable[[int, int], Shape]


class IndexWriter:
    """Writes the segments of one model's index. One build at a time; readers need no lock.

    Takedowns may come while a build goes on: it marks them in what it made before that is seen.
    """

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
        `compact`, everything is built anew as one segment. Raises InputError where another
        process is building.
        """
        with self._lock("build", wait=False):
            return self._bring_up(refs, compact)

    def _bring_up(self, refs: Sequence[EmbeddingRef], compact: bool) -> list[Built]:
        self.forget()
        pointer = self.pointer()
        if pointer is None:
            return [self._rebuild(refs)]
        if not shows_first(self.dataset, self.place, pointer):  # a writer was killed in between
            publish_view(self.dataset, self.place, pointer)
        wanted = {ref.name: ref.content for ref in refs}
        held = {k: v for segment in pointer.segments for k, v in segment.shards.items()}
        gone = {name for name, content in held.items() if wanted.get(name) != content}
        fresh = [ref for ref in refs if held.get(ref.name) != ref.content]
        if compact or self._is_worn(pointer, fresh, gone):
            dirty = gone or fresh or len(pointer.segments) > 1 or pointer.segments[0].dead
            return [self._rebuild(refs)] if dirty or compact else []
        return self._append(fresh, gone) if fresh or gone else []

    def _is_worn(
        self, pointer: Pointer, fresh: Sequence[EmbeddingRef], gone: Collection[str]
    ) -> bool:
        first = pointer.segments[0]
        pending = pointer.rows - (first.rows - first.dead) + sum(ref.rows for ref in fresh)
        dead = sum(segment.dead for segment in pointer.segments)
        many = len(pointer.segments) + bool(fresh) > _MAX_SEGMENTS
        lost = bool(gone) and all(name in gone for name in first.shards)
        return many or lost or max(pending, dead) > _MAX_WORN * first.rows

    def _append(self, fresh: Sequence[EmbeddingRef], gone: Collection[str]) -> list[Built]:
        """Add a segment of fresh shards, mark those gone as dead."""
        built = []
        if fresh:
            shape = self.shape_for(sum(ref.rows for ref in fresh), self.dim)
            built.append(self._build(fresh, shape))
        with self._lock("pointer"):
            pointer = self.pointer()
            assert pointer is not None
            generation = pointer.generation + 1
            segments = [self._without(info, gone, generation) for info in pointer.segments]
            segments += [one.info for one in built]
            self._publish(pointer.model_copy(update={"segments": tuple(segments)}))
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
        """A segment of which more rows are dead; the same where all of them were."""
        dead = bits.from_mask(dead_N)
        if segment.dead is not None:
            dead |= segment.dead
        if bits.count(dead) == segment.info.dead:
            return segment.info
        name = segment_file(segment.info.name, f"dead-{generation:05d}.bits")
        self.folder.write_bytes(name, dead.tobytes())
        return segment.info.model_copy(update={"dead": bits.count(dead), "dead_file": name})

    def forget(self) -> int:
        """Mark what the dataset's list of takedowns names; return how many rows that takes down.

        No search that begins after this shows them, and no later build takes them in.
        """
        with self._lock("pointer"):
            pointer = self.pointer()
            if pointer is None or pointer.forgotten == forgotten_content(self.dataset):
                return 0
            return pointer.rows - self._publish(pointer).rows

    def _publish(self, pointer: Pointer) -> Pointer:
        """Point to these segments, less what was taken down; tell other tools what is pending."""
        generation, known = pointer.generation + 1, forgotten_content(self.dataset)
        segments = pointer.segments
        if len(keys := read_forgotten(self.dataset)):
            opened = [open_segment(self.folder, info, 0) for info in segments]
            down = [pc.is_in(one.rows.keys(), value_set=keys).to_numpy() for one in opened]
            segments = tuple(
                self._mark(one, dead, generation) for one, dead in zip(opened, down, strict=True)
            )
        update = {"generation": generation, "segments": segments, "forgotten": known}
        fresh = pointer.model_copy(update=update)
        write_pointer(self.folder, fresh)
        if shows_first(self.dataset, self.place, fresh):
            describe_view(self.dataset, self.place, fresh)
        return fresh

    def rebuild(self, refs: Sequence[EmbeddingRef]) -> Built:
        """Make one new segment of all shards, point to it, and renew the view of other tools."""
        with self._lock("build", wait=False):
            return self._rebuild(refs)

    def _rebuild(self, refs: Sequence[EmbeddingRef]) -> Built:
        shape = self.shape_for(sum(ref.rows for ref in refs), self.dim)
        built = self._build(refs, shape, published=True)
        with self._lock("pointer"):
            old = self.pointer()
            generation = old.generation if old else 0
            pointer = Pointer(
                generation=generation, model=self.model, dim=self.dim, segments=(built.info,)
            )
            publish_view(self.dataset, self.place, self._publish(pointer))
        self._sweep()
        return built

    @contextlib.contextmanager
    def _lock(self, what: str, wait: bool = True) -> Iterator[None]:
        """Be the only one to build, or to change the pointer, on a local file system."""
        if not self.folder.is_local:
            yield
            return
        path = self.folder.local_path(f".{what}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise InputError(
                    f"{self.folder} is being built by another process: wait until that has ended"
                ) from error
            except OSError:  # a file system that knows no locks
                pass
            yield

    def _build(self, refs: Sequence[EmbeddingRef], shape: Shape, published: bool = False) -> Built:
        self._sweep()
        pointer = self.pointer()
        name = f"{pointer.generation + 1 if pointer else 1:05d}"
        forgotten = read_forgotten(self.dataset)
        return build_segment(
            self.dataset, self.place, name, refs, shape, self.dim,
            key=self.key, published=published, forgotten=forgotten,
        )  # fmt: skip

    def _sweep(self) -> None:
        """Remove half files and segments that nobody is pointed to, such as killed builds leave.

        Whoever has one open keeps it: a mapped file outlives its name.
        """
        if not self.folder.is_local:  # there files appear whole, and the next build replaces them
            return
        alive = {info.name for info in self.segments()}
        for name in set(self.folder.folders(SEGMENTS)) - alive:
            shutil.rmtree(self.folder.local_path(f"{SEGMENTS}/{name}"), ignore_errors=True)
        for half in self.folder.local_path().rglob(".*.*.tmp"):
            if not _is_running(half.suffixes[-2][1:]):
                half.unlink(missing_ok=True)


def _is_running(pid: str) -> bool:
    """Whether the process that writes a half file is alive: a takedown may come at any time."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        pass
    return True
