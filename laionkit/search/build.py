"""Build one segment of an index out of core: order its rows, write vectors, lists and rows.

Rows of a segment with lists are renumbered in list order, so that a list is a range of rows and
vectors, codes, filter bitmaps and metadata share one order.
"""

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.backends import knn, knn_build
from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder, HashingFile, Written
from laionkit.search.layout import LISTS, METADATA, ROWS, VECTORS, SegmentInfo, segment_file
from laionkit.search.rows import forgotten_rows, ordered_metadata, published_rows, segment_rows
from laionkit.search.source import BLOCK_ROWS, TUNE, Rows, VectorSource
from laionkit.search.tuning import (
    CELLS,
    FILTERED_QUERIES,
    LEARNT_ROWS,
    QUERIES,
    Asked,
    Learner,
)

# k-means gains little from more: on a million vectors 256 a list instead of 64 cut the rows to
# score for a recall of 0.95 from 10 % to 9.9 %. Twice the lists cut them to 8 %.
SAMPLE_PER_LIST = 40
_RANGE_ROWS = 16_384  # rows that the codes' range is learnt from: millions of numbers
_BYTES_A_ROW = 36  # list, order, its inverse, and what sorting takes


@dataclass(frozen=True)
class Shape:
    """How a segment is laid out: in how many lists (0: scanned whole), drawn with which seed.

    Codes have `code_bits` a dimension, 8 or 4. Probes of lists aim at `recall`. `memory_mib`
    bounds what the build works in, beside the libraries and what the system caches.
    """

    lists: int = 0
    seed: int = 0
    memory_mib: int = 2048
    recall: float = 0.95
    code_bits: int = 8

    def block_rows(self, dim: int) -> int:
        """How many rows are worked on at a time: in an eighth of the memory, beside the next."""
        return int(np.clip(self.memory_mib * 2**17 // (12 * dim), 256, BLOCK_ROWS))

    def sample_rows(self, dim: int) -> int:
        """How many rows the lists are trained on: at most a quarter of the memory, twice each."""
        most = self.memory_mib * 2**18 // (8 * dim)
        return max(self.lists, min(SAMPLE_PER_LIST * self.lists, most))

    def filtered_queries(self) -> int:
        """How many queries are asked under filters: their counts of lists take a quarter of it."""
        most = self.memory_mib * 2**18 // (4 * len(CELLS) * self.lists)
        return int(np.clip(most, 30, FILTERED_QUERIES))

    def check(self, rows: int) -> None:
        """Raise ConfigError where the order of so many rows alone does not fit."""
        needed = -(-rows * _BYTES_A_ROW // 2**19)
        if needed > self.memory_mib:
            raise ConfigError(
                f"memory_mib={self.memory_mib}: the order of {rows:,} rows takes half of "
                f"{needed}: give --memory-mib {needed}"
            )


@dataclass
class Built:
    """A segment whose files are in place, and those files by role."""

    info: SegmentInfo
    files: dict[str, Written] = field(default_factory=dict)

    def add(self, role: str, path: str, file: HashingFile) -> None:
        """Note a file that is finished."""
        self.files[role] = Written(path, file.size, file.digest.hexdigest())


def code_bytes(rows: int, dim: int, bits: int) -> int:
    """What the codes of so many rows take, with the rows' numbers."""
    return rows * (-(-dim * bits // 8) + 8)


def default_lists(rows: int) -> int:
    """The count of lists for so many rows: 2√rows, of which a text query probes a tenth."""
    return max(16, round(2 * math.sqrt(rows) / 16) * 16)


def build_segment(
    dataset: Folder, place: str, name: str, refs: Sequence[EmbeddingRef], shape: Shape,
    dim: int | None = None, *, key: str = "image_path", published: bool = False,
    forgotten: pa.ChunkedArray | None = None,
) -> Built:  # fmt: skip
    """Write a segment of `refs` under the folder `place`; nothing names it yet.

    `key` is the metadata's column of keys. A segment that is to be `published` also gets the rows'
    whole metadata as parquet, for other tools. Rows whose key is `forgotten` are left out.
    Raises InputError where vectors are unusable or files do not agree.
    """
    shape.check(sum(ref.rows for ref in refs))
    source = VectorSource(dataset, refs, dim)
    source.block_rows = shape.block_rows(source.dim)
    kept = np.arange(source.rows, dtype=np.int64)
    if forgotten is not None and len(forgotten):
        kept = kept[~forgotten_rows(dataset, refs, key, forgotten)]
        if not len(kept):
            raise InputError(f"{dataset}: every row was taken down: nothing to index")
    shards = {ref.name: ref.content for ref in refs}
    built = Built(
        SegmentInfo(
            name=name, rows=len(kept), lists=shape.lists, code_bits=shape.code_bits, shards=shards
        )
    )
    base = f"{place}/{segment_file(name, '')}"
    order = kept
    if shape.lists:
        order = _write_lists(dataset, base, source, kept, shape, built)
        _give_back_heap()
    else:
        with dataset.create(base + VECTORS) as file:
            halves = (block.half for block in source.blocks(kept))
            knn_build.write_flat(_io(file), source.dim, len(kept), halves)
        built.add("vectors", base + VECTORS, file)
    said = {"drift": source.drift, "vectors_sha256": built.files["vectors"].sha256}
    built.info = built.info.model_copy(update=said)
    position_of = np.full(source.rows, -1, np.int64)
    position_of[order] = np.arange(len(order))
    tables = ordered_metadata(dataset, refs, key, position_of, shape.memory_mib)
    _write_rows(dataset, base, refs, key, tables, built, published)
    return built


def _write_lists(
    dataset: Folder, base: str, source: VectorSource, kept: NDArray[np.int64], shape: Shape,
    built: Built,
) -> NDArray[np.int64]:  # fmt: skip
    """Cluster the rows kept; write their vectors and codes in list order; return that order."""
    centroids, list_of = _cluster(source, kept, shape)
    order = kept[np.argsort(list_of, kind="stable")]
    sizes = np.bincount(list_of, minlength=shape.lists).astype(np.int64)
    found = knn_build.ListMeans(sizes, source.dim)
    with dataset.create(base + VECTORS) as flat:
        halves = (_seen(block, found) for block in source.blocks(order))
        knn_build.write_flat(_io(flat), source.dim, len(order), halves)
        flat.flush()
        means, stops = found.means_LD(centroids), np.cumsum(sizes)
        few = min(_RANGE_ROWS, source.block_rows)
        some = np.unique(np.linspace(0, len(order) - 1, few).astype(np.int64))
        seen = source.read(order[some]).wide
        seen -= means[np.searchsorted(stops, some, side="right")]
        learner = _learner(source, order, sizes, means, shape)
        written = learner.watch(
            knn_build.flat_blocks(Path(flat.file.name), source.dim, len(order), source.block_rows)
        )
        with dataset.create(base + LISTS) as file:
            knn_build.write_lists(_io(file), means, sizes, seen, written, shape.code_bits)
    reach = learner.reach(shape.recall)
    built.add("vectors", base + VECTORS, flat)
    built.add("lists", base + LISTS, file)
    built.info = built.info.model_copy(update={"reach": reach})
    return order


def _cluster(
    source: VectorSource, kept: NDArray[np.int64], shape: Shape
) -> tuple[knn.Float32, NDArray[np.int32]]:
    """Centroids of a sample, and of each row kept the nearest one."""
    sample = source.sample(shape.sample_rows(source.dim), shape.seed)
    finder = knn_build.ListFinder(sample, shape.lists, shape.seed)
    del sample
    lists = [finder.lists_of(block.wide) for block in source.blocks(kept)]
    return finder.centroids_LD, np.concatenate(lists)


def _seen(block: Rows, means: knn_build.ListMeans) -> knn.Float16:
    """What is written of a block, whose rows the lists' means have seen."""
    means.add(block.wide)
    return block.half


def _ask(source: VectorSource, order: NDArray[np.int64], seed: int) -> Asked:
    """The queries that probes are tuned on: captions' vectors, else pictures', by their places."""
    texts = source.sample_texts(QUERIES, seed, TUNE)
    if len(texts):
        return Asked(texts, np.full(len(texts), -1), "texts")
    rows = source.sample_rows(QUERIES, seed + 2, TUNE)
    own, places = np.full(len(rows), -1), np.flatnonzero(np.isin(order, rows))
    own[np.searchsorted(rows, order[places])] = places
    return Asked(source.read(rows).wide, own, "images")


def _learner(
    source: VectorSource, order: NDArray[np.int64], sizes_L: NDArray[np.int64],
    means_LD: knn.Float32, shape: Shape,
) -> Learner:  # fmt: skip
    """What learns how far to probe from the rows that pass it."""
    rng = np.random.default_rng(shape.seed + 1)
    some = np.sort(rng.permutation(len(order))[: min(source.block_rows, LEARNT_ROWS)])
    lists = np.searchsorted(np.cumsum(sizes_L), some, side="right")
    asked, sample = _ask(source, order, shape.seed), source.read(order[some]).wide
    return Learner(asked, shape.filtered_queries(), sizes_L, means_LD, sample, lists, shape.seed)


def _write_rows(
    dataset: Folder, base: str, refs: Sequence[EmbeddingRef], key: str,
    tables: Iterator[pa.Table], built: Built, published: bool,
) -> None:  # fmt: skip
    names = [ref.name for ref in refs]
    with dataset.create(base + ROWS) as file:
        writer: Any = None
        for number, bucket in enumerate(tables):
            rows = segment_rows(bucket, key, names)
            writer = writer or pa.ipc.new_file(_io(file), rows.schema)
            writer.write_table(rows)
            if published:
                part = f"metadata_{number:04d}"
                path = f"{base}{METADATA}/{part}.parquet"
                built.files[part] = dataset.write_table(path, published_rows(bucket))
        writer.close()
    built.add("rows", base + ROWS, file)


def _give_back_heap() -> None:
    """Return freed memory to the system.

    glibc keeps blocks of up to 32 MB that numpy freed: a hundred MiB after the lists of a million
    vectors are written, which the next step of a build would come on top of. Other C libraries
    are left as they are.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _io(file: HashingFile) -> Any:
    """A HashingFile is all that writers ask of a binary file."""
    return file
