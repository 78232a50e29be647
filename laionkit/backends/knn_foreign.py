"""A faiss index of another's making (autofaiss, clip-retrieval), whatever its kind.

It is searched by its own codes: what it returns is as near as those are. Under a filter it gives
min(k, matches) rows all the same: the fewer match, the more lists are probed, and where a search
comes back short every match is decoded and scored.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, Neighbours, dot_rows, merge
from laionkit.core.errors import InputError

_FEW = 20_000  # matches that a graph is not walked for: they are decoded and scored
_BLOCK = 8_192


class ForeignStore:
    """An open index that ranks by inner product; mapped, not read, where its kind allows that."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises InputError where it is none or ranks by another measure."""
        try:
            self._index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            why = " ".join((str(error).rpartition(": ")[2] or str(error)).split())
            raise InputError(f"{path} is no readable faiss index ({why}): copy it again") from error
        if self._index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise InputError(f"{path} ranks by distance, not by inner product: build it again")
        self.rows, self.dim = int(self._index.ntotal), int(self._index.d)
        self.exact = isinstance(self._index, faiss.IndexFlat)
        ivf = faiss.try_extract_index_ivf(self._index)
        self._ivf = None if ivf is None else faiss.downcast_index(ivf)
        self._is_graph = isinstance(self._index, faiss.IndexHNSW)
        self._is_mapped = False

    def search(
        self, query_D: NDArray[np.float32], k: int, keep: Bitmap | None = None
    ) -> Neighbours:
        """The k rows that the index finds nearest, of those whose bit is set in `keep`."""
        matches = self.rows
        if keep is not None:
            matches = int(np.bitwise_count(keep).sum())
        k = min(k, matches)
        if k and not (keep is not None and matches <= _FEW and self._is_graph):
            for effort in self._efforts(matches):
                found = self._find(query_D, k, keep, effort)
                if len(found.rows) == k:
                    return found
        return self._score(query_D, k, keep)

    def _find(
        self, query_D: NDArray[np.float32], k: int, keep: Bitmap | None, effort: int
    ) -> Neighbours:
        """What the index itself finds, fewer than k rows at times."""
        params = _parameters(self._index, keep, effort)
        try:
            scores, rows = self._index.search(query_D[None], k, params=params)
        except RuntimeError:  # a kind that knows no filters
            return merge([], k)
        found = rows[0] >= 0
        return Neighbours(scores[0][found], rows[0][found]).top(k)

    def _efforts(self, matches: int) -> Iterator[int]:
        """How many lists to probe, or how wide to walk: what the index says, by what matches."""
        if self._ivf is not None:
            effort, most = int(self._ivf.nprobe), int(self._ivf.nlist)
            yield min(most, -(-effort * self.rows // matches))
            yield most
        else:
            yield int(self._index.hnsw.efSearch) if self._is_graph else 1

    def _score(self, query_D: NDArray[np.float32], k: int, keep: Bitmap | None) -> Neighbours:
        """The k best of every matching row, decoded."""
        best = merge([], k)
        every = np.arange(self.rows, dtype=np.int64)
        if keep is not None:
            every = np.flatnonzero(np.unpackbits(keep, count=self.rows, bitorder="little"))
        for start in range(0, len(every), _BLOCK):
            rows = every[start : start + _BLOCK]
            best = merge([best, Neighbours(dot_rows(self.take(rows), query_D), rows)], k)
        return best

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some rows, as near to the original ones as the index keeps them.

        Raises InputError where its kind keeps none.
        """
        try:
            if isinstance(self._ivf, faiss.IndexIVFFastScan):  # it would crash
                raise RuntimeError("packed codes")
            if self._ivf is not None and not self._is_mapped:
                self._ivf.make_direct_map()
                self._is_mapped = True
            found: NDArray[np.float32] = self._index.reconstruct_batch(rows)
        except RuntimeError as error:
            kind = type(self._index).__name__
            raise InputError(
                f"this {kind} keeps no vectors to compare rows by: adopt its embeddings instead"
            ) from error
        return found


def _parameters(index: Any, keep: Bitmap | None, effort: int) -> Any:
    """What faiss wants to be told, by the kind of index: a filter, how far to look."""
    selector = None if keep is None else faiss.IDSelectorBitmap(np.ascontiguousarray(keep))
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(faiss.downcast_index(index.index), keep, effort)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        kind = faiss.SearchParametersIVF
        if isinstance(index, faiss.IndexIVFPQ):
            kind = faiss.IVFPQSearchParameters
        return kind(sel=selector, nprobe=effort)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=effort)
    return None if selector is None else faiss.SearchParameters(sel=selector)
