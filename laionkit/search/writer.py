"""Bring an index up to date with a model's embeddings, behind one pointer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.files import Folder
from laionkit.core.schemas import INDEX
from laionkit.search.build import Built, Shape, build_segment
from laionkit.search.layout import Pointer, index_folder, read_pointer, write_pointer
from laionkit.search.view import METADATA, publish_view

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

    def is_current(self, refs: Sequence[EmbeddingRef]) -> bool:
        """Tell whether the index holds exactly these shards."""
        pointer = self.pointer()
        if pointer is None:
            return False
        held = {k: v for segment in pointer.segments for k, v in segment.shards.items()}
        return held == {ref.name: ref.content for ref in refs}

    def rebuild(self, refs: Sequence[EmbeddingRef]) -> Built:
        """Make one new segment of all shards, point to it, and renew the view of other tools."""
        old = self.pointer()
        generation = old.generation + 1 if old else 1
        shape = self.shape_for(sum(ref.rows for ref in refs), self.dim)
        built = build_segment(
            self.dataset, self.place, f"{generation:05d}", refs, shape, self.dim,
            key=self.key, metadata=f"{self.place}/{METADATA}",
        )  # fmt: skip
        pointer = Pointer(
            generation=generation, model=self.model, dim=self.dim, segments=(built.info,)
        )
        write_pointer(self.folder, pointer)
        publish_view(self.dataset, self.place, pointer, built.parts())
        return built
