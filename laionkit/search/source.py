"""The vectors of several shards of embeddings as one tall matrix, read out of core and checked."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import widen
from laionkit.core.embeddings import EmbeddingRef
from laionkit.core.errors import InputError
from laionkit.core.files import Folder

BLOCK_ROWS = 65_536
# Rows that were divided in float16 stray by up to 5e-4: they keep their bits, and search divides
# by their true length. Rounding a row anew would move its cosines by as much as 5e-5.
_NEARLY_UNIT = 1e-3
_TEXT_SHARDS = 16
# Queries that tune an index come from even rows of a shard, those that judge it from odd ones.
HALVES, TUNE, JUDGE = 2, 0, 1


class Rows(NamedTuple):
    """Vectors as they are kept, and the same ones to compute with, [N, D]."""

    half: NDArray[np.float16]
    wide: NDArray[np.float32]


class VectorSource:
    """Rows of shards of embeddings, shard after shard, in the order given.

    Local files are memory-mapped; others are read one at a time. Any float type, byte and memory
    order is taken. Rows that are not of unit length are scaled.
    """

    def __init__(self, dataset: Folder, refs: Sequence[EmbeddingRef], dim: int | None) -> None:
        """Open every file's header. Raises InputError where one does not fit the others."""
        self.dataset, self.refs, self.block_rows = dataset, tuple(refs), BLOCK_ROWS
        self.drift = 0.0  # by how much the length of a row that was read strays from 1 at most
        self._last: tuple[int, NDArray[Any]] | None = None
        self.dim = dim or 0
        sizes = []
        for number, ref in enumerate(self.refs):
            shape = self._open(number).shape
            self.dim = self.dim or shape[1]
            self._check_shape(ref, shape)
            sizes.append(shape[0])
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return int(self.starts[-1])

    def _check_shape(self, ref: EmbeddingRef, shape: tuple[int, ...]) -> None:
        if not shape[1]:
            raise InputError(f"{ref.image} holds vectors of 0 dimensions: embed that shard again")
        if shape[1] != self.dim:
            raise InputError(
                f"{ref.image} holds vectors of {shape[1]} dimensions, the others {self.dim}: "
                "they are of two models"
            )
        if shape[0] != ref.rows:
            raise InputError(
                f"{ref.image} holds {shape[0]} vectors and its record says {ref.rows}: "
                f"embed shard {ref.name} again"
            )

    def _open(self, number: int) -> NDArray[Any]:
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        array = self._read(self.refs[number].image)
        self._last = (number, array)
        return array

    def _read(self, path: str) -> NDArray[Any]:
        try:
            if self.dataset.is_local:
                array: NDArray[Any] = np.load(
                    self.dataset.at(path), mmap_mode="r", allow_pickle=False
                )
            else:
                array = np.load(io.BytesIO(self.dataset.read_bytes(path)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{self.dataset.at(path)} is no readable npy file: {error}") from error
        if array.dtype.kind != "f" or array.ndim != 2:
            raise InputError(
                f"{path} holds {array.dtype} of shape {array.shape}: "
                "embeddings are float16 or float32 of shape (rows, dimensions)"
            )
        return array

    def read(self, rows: NDArray[np.int64]) -> Rows:
        """Vectors of global rows, in the order given, of unit length."""
        half = np.empty((len(rows), self.dim), np.float16)
        order = np.argsort(rows, kind="stable")
        cuts = np.searchsorted(rows[order], self.starts)
        for number in np.flatnonzero(np.diff(cuts)):
            places = order[cuts[number] : cuts[number + 1]]
            array = self._open(int(number))
            stored = array[rows[places] - self.starts[number]]
            if array.dtype == np.float16:
                half[places] = stored
            else:
                wide = stored.astype(np.float32)
                half[places] = wide / self._scales(wide, rows[places])[0][:, None]
        wide = widen(half)
        scales, lengths = self._scales(wide, rows)
        far = scales != 1
        if far.any():
            half[far] = wide[far] / scales[far][:, None]
            wide[far] = widen(half[far])
            lengths[far] = _lengths(wide[far])
        self.drift = max(self.drift, float(np.abs(lengths - 1).max(initial=0)))
        return Rows(half, wide)

    def _scales(
        self, wide_ND: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What rows are divided by, and how long they are. Raises InputError where one is none."""
        lengths = _lengths(wide_ND)
        bad = ~np.isfinite(lengths) | (lengths == 0)
        if bad.any():
            first = int(np.argmax(bad))
            number = int(np.searchsorted(self.starts, rows[first], side="right")) - 1
            what = "only zeros" if lengths[first] == 0 else "NaN or infinity"
            raise InputError(
                f"{self.refs[number].image} row {rows[first] - self.starts[number]} holds {what}: "
                "embed that shard again"
            )
        return np.where(np.abs(lengths - 1) < _NEARLY_UNIT, np.float32(1), lengths), lengths

    def blocks(self, order: NDArray[np.int64]) -> Iterator[Rows]:
        """The rows of `order`, in that order, a block at a time; the next is read meanwhile."""
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self.read, order[: self.block_rows])
            for start in range(self.block_rows, len(order), self.block_rows):
                block = coming.result()
                coming = thread.submit(self.read, order[start : start + self.block_rows])
                yield block
            yield coming.result()

    def sample(self, count: int, seed: int) -> NDArray[np.float32]:
        """Some rows, drawn at random without repeats."""
        count = min(count, self.rows)
        drawn = np.random.default_rng(seed).choice(self.rows, size=count, replace=False)
        return self.read(np.sort(drawn)).wide

    def sample_rows(self, count: int, seed: int, half: int) -> NDArray[np.int64]:
        """Numbers of some rows of one half, drawn at random without repeats, in order."""
        drawn = np.random.default_rng(seed).permutation(self.rows)[: 4 * count + 64]
        shard = np.searchsorted(self.starts, drawn, side="right") - 1
        return np.sort(drawn[(drawn - self.starts[shard]) % HALVES == half][:count])

    def sample_texts(self, count: int, seed: int, half: int) -> NDArray[np.float32]:
        """Unit vectors of some captions of one half, from a few shards.

        None where none were embedded.
        """
        rng = np.random.default_rng(seed)
        told = [ref for ref in self.refs if ref.text is not None]
        found = [np.empty((0, self.dim), np.float32)]
        picked = rng.permutation(len(told))[:_TEXT_SHARDS]
        for number in picked:
            array = self._read(str(told[number].text))
            there = np.arange(half, len(array), HALVES)
            rows = np.sort(rng.permutation(there)[: -(-count // len(picked))])
            wide = array[rows].astype(np.float32)
            norms = np.linalg.norm(wide, axis=1, keepdims=True)
            good = (np.isfinite(norms) & (norms > 0))[:, 0]
            found.append(wide[good] / norms[good])
        return np.concatenate(found)[:count]


def _lengths(wide_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", wide_ND, wide_ND)))
