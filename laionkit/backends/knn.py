"""Nearest neighbours by inner product, by faiss.

Two kinds of file, both plain faiss, both written as a stream (knn_build.py) so that no more than a
block of vectors is in memory, both memory-mapped when read:

- flat: float16 vectors (``IxSQ``), scanned exactly, under a bitmap where there is a filter;
- lists: an inverted file (``IwSq``) whose ids are 0, 1, 2, … in list order, so that a list is a
  range of rows and a filter's bitmap counts its matches.

Shapes: N rows, D dimensions, Q queries, L lists, K answers. Rows are unit vectors.
"""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from laionkit.core.errors import InputError

Float16 = NDArray[np.float16]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bitmap = NDArray[np.uint8]

_SLICE_ROWS = 8_192  # rows below which a second thread costs more than it gives
_SLICE_GATHERED = 2_048
_GATHER_ROWS = 512  # half a MiB at 512 dimensions, which stays in a core's cache
CORES = os.cpu_count() or 1  # asking costs 30 µs
_threads = ThreadPoolExecutor(max_workers=CORES, thread_name_prefix="knn")
_own = threading.local()
T = TypeVar("T")


@dataclass(frozen=True)
class Neighbours:
    """What one query found: scores in falling order and the rows that have them."""

    scores: Float32
    rows: Int64

    def top(self, k: int) -> "Neighbours":
        """The best k; equal scores in row order, so that top-k is a prefix of top-(k+1)."""
        order = np.lexsort((self.rows, -self.scores))[:k]
        return Neighbours(self.scores[order], self.rows[order])


def merge(found: Iterable[Neighbours], k: int) -> Neighbours:
    """The best k of several answers to one query."""
    parts = list(found)
    if not parts:
        return Neighbours(np.empty(0, np.float32), np.empty(0, np.int64))
    scores = np.concatenate([part.scores for part in parts])
    return Neighbours(scores, np.concatenate([part.rows for part in parts])).top(k)


def _open(path: Path) -> Any:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        why = str(error).rpartition(": ")[2] or str(error)
        if why.rstrip().endswith("(Success)"):  # faiss's words for having read less than it should
            why = "it is cut short"
        raise InputError(
            f"{path} is no readable faiss index ({' '.join(why.split())}): "
            "run laionkit index --fresh"
        ) from error


class FlatStore:
    """float16 vectors in a memory-mapped faiss file: scanned by faiss, viewed by numpy."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises InputError where it is truncated or no flat float16 index."""
        self._index = _open(path)
        if not isinstance(self._index, faiss.IndexScalarQuantizer):
            raise InputError(f"{path} is a {type(self._index).__name__}, not flat float16 vectors")
        self.rows, self.dim = int(self._index.ntotal), int(self._index.d)
        self.row_bytes = 2 * self.dim
        self._bytes: NDArray[np.uint8] = np.empty((0, 2 * self.dim), np.uint8)
        if self.rows:
            flat = faiss.rev_swig_ptr(self._index.codes.data(), self.rows * self.dim * 2)
            self._bytes = flat.reshape(self.rows, 2 * self.dim)
        self._slices = list(self._sliced())
        self.exact = True

    def _sliced(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Cut the rows into parts, one a thread; each starts at a byte of a bitmap."""
        parts = max(1, min(CORES, self.rows // _SLICE_ROWS))
        step = max(8, -(-self.rows // parts // 8) * 8)
        for start in range(0, self.rows, step):
            yield start, self._bytes[start : start + step]

    def take(self, rows: Int64) -> Float32:
        """The vectors of some rows, as float32."""
        return widen(self._bytes[rows].view(np.float16))

    def cosines(self, query_D: Float32, rows: Int64) -> Float32:
        """Exact cosines of a unit query with some rows, whatever their length."""
        found = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 16_384):
            block = self.take(rows[start : start + 16_384])
            lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
            found[start : start + len(block)] = dot_rows(block, query_D) / lengths
        return found

    def _scanner(self, selector: Any, *, numbered: bool = True) -> Any:
        """What scores vectors: `numbered` by their place, or by numbers it is given with them."""
        product = faiss.METRIC_INNER_PRODUCT
        return self._index.sq.select_InvertedListScanner(product, None, numbered, selector, False)

    def search_rows(self, query_D: Float32, k: int, rows: Int64) -> Neighbours:
        """The best k of some rows by inner product; none missed. Rows in order are read faster."""

        def scan(some: Int64) -> Neighbours:
            found = _Found(self._scanner(None, numbered=False), query_D, k)
            buffer = _buffer(2 * self.dim)
            for start in range(0, len(some), _GATHER_ROWS):
                part = some[start : start + _GATHER_ROWS]
                np.take(self._bytes, part, axis=0, out=buffer[: len(part)], mode="clip")
                found.add(buffer[: len(part)], part)
            return found.neighbours()

        rows = np.ascontiguousarray(rows)
        parts = max(1, min(CORES, len(rows) // _SLICE_GATHERED))
        return merge(at_once(scan, np.array_split(rows, parts)), k)

    def copy_of(self, rows: Int64) -> NDArray[np.uint8]:
        """The bytes of some rows, one after the other, for `search_copy`."""
        return np.take(self._bytes, rows, axis=0, mode="clip")

    def search_copy(
        self, query_D: Float32, k: int, codes_NB: NDArray[np.uint8], rows_N: Int64
    ) -> Neighbours:
        """The best k of the rows that were copied, by inner product; none missed."""

        def scan(part: slice) -> Neighbours:
            found = _Found(self._scanner(None, numbered=False), query_D, k)
            found.add(codes_NB[part], rows_N[part])
            return found.neighbours()

        parts = max(1, min(CORES, len(rows_N) // _SLICE_ROWS))
        cuts = [len(rows_N) * i // parts for i in range(parts + 1)]
        return merge(at_once(scan, [slice(*pair) for pair in itertools.pairwise(cuts)]), k)

    def search(self, query_D: Float32, k: int, keep: Bitmap | None = None) -> Neighbours:
        """The best k rows by inner product, of those whose bit is set in `keep`; none missed."""

        def scan(part: tuple[int, NDArray[np.uint8]]) -> Neighbours:
            start, codes = part
            bits = None if keep is None else keep[start // 8 : (start + len(codes) + 7) // 8]
            if bits is not None and not bits.any():
                return merge([], k)
            selector = None if bits is None else _selector(bits)
            found = _Found(self._scanner(selector), query_D, min(k, len(codes)))
            found.add(codes, None)
            return found.neighbours(start)

        return merge(at_once(scan, self._slices), k)


class _Found:
    """The best k of rows that come in blocks, scored by one of faiss's scanners."""

    def __init__(self, scanner: Any, query_D: Float32, k: int) -> None:
        self._scanner, self._k, self._query = scanner, k, np.ascontiguousarray(query_D)
        self._scores = np.full(k, -np.inf, np.float32)
        self._rows = np.full(k, -1, np.int64)
        scanner.set_query(faiss.swig_ptr(self._query))
        scanner.set_list(0, 0.0)

    def add(self, codes_NB: NDArray[np.uint8], rows_N: Int64 | None) -> None:
        rows = None if rows_N is None else faiss.swig_ptr(rows_N)
        self._scanner.scan_codes(
            len(codes_NB), faiss.swig_ptr(codes_NB), rows,
            faiss.swig_ptr(self._scores), faiss.swig_ptr(self._rows), self._k,
        )  # fmt: skip

    def neighbours(self, start: int = 0) -> Neighbours:
        return _neighbours(self._scores[None], self._rows[None], start)


def _buffer(width: int) -> NDArray[np.uint8]:
    """A block of rows of this thread's own: fresh memory costs more to map than to fill."""
    buffer = getattr(_own, "buffer", None)
    if buffer is None or buffer.shape[1] != width:
        buffer = _own.buffer = np.empty((_GATHER_ROWS, width), np.uint8)
    return cast(NDArray[np.uint8], buffer)


class ListStore:
    """An inverted file in a memory-mapped faiss file, whose ids are rows in list order."""

    def __init__(self, path: Path) -> None:
        """Map the file. Raises InputError where it is truncated or no inverted file."""
        self._index = _open(path)
        if not isinstance(self._index, faiss.IndexIVFScalarQuantizer):
            raise InputError(f"{path} is a {type(self._index).__name__}, not an inverted file")
        lists = int(self._index.nlist)
        self.row_bytes = int(self._index.code_size) + 8  # of a row's code and number
        sizes = [self._index.invlists.list_size(i) for i in range(lists)]
        self.sizes_L: Int64 = np.array(sizes, np.int64)
        self.starts: Int64 = np.concatenate([[0], np.cumsum(self.sizes_L)])
        quantizer = faiss.downcast_index(self._index.quantizer)
        self.means_LD: Float32 = np.ascontiguousarray(quantizer.reconstruct_n(0, lists))
        self.spread_L: Float32 = spreads(self.means_LD)
        if self.starts[-1] != self._index.ntotal or self._last_row() != self.starts[-1] - 1:
            raise InputError(
                f"{path} does not hold the {self._index.ntotal} rows that it says: "
                "run laionkit index --fresh"
            )

    def _last_row(self) -> int:
        """The number of the last row, which lies at the file's end; -1 where there is none."""
        held = np.flatnonzero(self.sizes_L)
        if not len(held):
            return -1
        size = int(self.sizes_L[held[-1]])
        return int(faiss.rev_swig_ptr(self._index.invlists.get_ids(int(held[-1])), size)[-1])

    def near(self, query_D: Float32) -> Float32:
        """The mean score of each list's rows."""
        near, query = np.empty(len(self.means_LD), np.float32), np.ascontiguousarray(query_D)
        faiss.fvec_inner_products_ny(
            faiss.swig_ptr(near), faiss.swig_ptr(query), faiss.swig_ptr(self.means_LD),
            len(query), len(near),
        )  # fmt: skip
        return near

    def search(
        self, query_D: Float32, k: int, lists: Int64, near_L: Float32, keep: Bitmap | None = None
    ) -> Neighbours:
        """The best k rows of some lists by their codes, under `keep` where it is given.

        `near_L` is what `near` says of every list.
        """
        total = int((self.starts[lists + 1] - self.starts[lists]).sum())
        return _search_lists(self._index, total, query_D, k, lists, near_L, keep)

    def copy_of(self, rows: Int64) -> "ListCopy":
        """The codes of some rows, in order, by list."""
        return ListCopy(self._index, rows, np.searchsorted(rows, self.starts), self.starts)


class ListCopy:
    """The codes of some rows of an inverted file, in memory, by list."""

    def __init__(self, index: Any, rows_M: Int64, offsets: Int64, starts: Int64) -> None:
        """Copy codes; at `offsets` of the rows, and at `starts` of all rows, lists begin."""
        self._offsets, self._of = offsets, index  # which lends its quantizer
        self._index = faiss.IndexIVFScalarQuantizer(
            index.quantizer, index.d, index.nlist, index.sq.qtype, index.metric_type
        )
        self._index.sq, self._index.is_trained = index.sq, True
        for number in np.flatnonzero(np.diff(offsets)).tolist():
            rows = rows_M[offsets[number] : offsets[number + 1]]
            size = int(starts[number + 1] - starts[number])
            codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
            some = codes.reshape(size, index.code_size)[rows - starts[number]]
            self._index.invlists.add_entries(
                number, len(rows), faiss.swig_ptr(rows), faiss.swig_ptr(some)
            )
        self._index.ntotal = len(rows_M)

    def search(self, query_D: Float32, k: int, lists: Int64, near_L: Float32) -> Neighbours:
        """The best k of the rows that were copied of some lists, see `ListStore.search`."""
        total = int((self._offsets[lists + 1] - self._offsets[lists]).sum())
        return _search_lists(self._index, total, query_D, k, lists, near_L, None)


def _search_lists(
    index: Any, total: int, query_D: Float32, k: int, lists: Int64, near_L: Float32,
    keep: Bitmap | None,
) -> Neighbours:  # fmt: skip
    """The best k rows of some lists, that hold so many in `total`, by their codes."""
    query = np.ascontiguousarray(query_D)

    def scan(some: Int64) -> Neighbours:
        selector = None if keep is None else _selector(keep)
        params = faiss.SearchParametersIVF(sel=selector, nprobe=len(some))
        near = near_L[some]
        scores, rows = np.empty((1, k), np.float32), np.empty((1, k), np.int64)
        index.search_preassigned_c(
            1, faiss.swig_ptr(query), k, faiss.swig_ptr(some), faiss.swig_ptr(near),
            faiss.swig_ptr(scores), faiss.swig_ptr(rows), False, params,
        )  # fmt: skip
        return _neighbours(scores, rows)

    parts = max(1, min(CORES, total // _SLICE_ROWS))
    shares = [np.ascontiguousarray(lists[i::parts]) for i in range(parts)]
    return merge(at_once(scan, shares), k)


def widen(half_ND: Float16) -> Float32:
    """float16 rows as float32, in a third of the time that numpy takes."""
    half = np.ascontiguousarray(half_ND)
    wide = np.empty(half.shape, np.float32)
    if len(half):
        codec = faiss.ScalarQuantizer(half.shape[1], faiss.ScalarQuantizer.QT_fp16)
        codes = half.view(np.uint8)
        codec.decode_c(faiss.swig_ptr(codes), faiss.swig_ptr(wide), len(half))
    return wide


def spreads(means_LD: Float32) -> Float32:
    """The root mean square distance of a list's unit vectors from their mean."""
    lengths = np.einsum("ld,ld->l", means_LD, means_LD)
    return np.asarray(np.sqrt(np.maximum(1 - lengths, 1e-4)), np.float32)


def dot_rows(rows_ND: Float32, query_D: Float32) -> Float32:
    """The inner product of each row with a query, on this thread alone.

    BLAS wakes its threads for so little, and a query then waits for the slowest of them.
    """
    return cast(Float32, np.einsum("nd,d->n", rows_ND, query_D))


def _selector(bits: Bitmap) -> Any:
    return faiss.IDSelectorBitmap(np.ascontiguousarray(bits))


def _neighbours(scores_1K: Float32, rows_1K: Int64, start: int = 0) -> Neighbours:
    found = rows_1K[0] >= 0
    return Neighbours(scores_1K[0][found], rows_1K[0][found] + start)


def at_once(work: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
    """Do the parts, at the same time where there are several."""
    if len(parts) == 1:
        return [work(parts[0])]
    return list(_threads.map(work, parts))
