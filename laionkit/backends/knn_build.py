"""Make the files that knn.py maps: train lists, assign rows to them, write as a stream.

Shapes: N rows, D dimensions, L lists. Rows are unit vectors.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Float16, Float32, Int64, widen

_NTOTAL_AT = 8  # in a faiss header: fourcc, int32 d, then int64 ntotal
_REFINED_DIM = 256  # dimensions below which a product costs less than choosing four


class ListFinder:
    """Makes lists of a sample and finds the list of each vector: the centroid it lies nearest to.

    A quarter of the dimensions, those along which the sample says most, choose four centroids, of
    which all dimensions choose one, for a third of the products. Of a thousand vectors, of 512
    dimensions, one is in another list than the nearest, by a cosine of 0.005. Clusters in those
    dimensions alone had a text query score a fifth more rows.
    """

    def __init__(self, sample_ND: Float32, lists: int, seed: int) -> None:
        """Make lists by spherical k-means of unit rows.

        It begins on a quarter of the sample: as good lists in two thirds of the time.
        """
        few = np.ascontiguousarray(sample_ND[::4])
        self._exact = faiss.IndexFlatIP(sample_ND.shape[1])
        self._index = self._refined(few) if sample_ND.shape[1] >= _REFINED_DIM else self._exact
        if len(few) < 4 * lists:
            self._train(sample_ND, lists, seed, 8, None)
        else:
            self._train(few, lists, seed, 6, None)
            self._train(sample_ND, lists, seed, 4, self.centroids_LD)

    @property
    def centroids_LD(self) -> Float32:
        """The lists' centroids, unit rows."""
        return np.asarray(self._exact.reconstruct_n(0, self._exact.ntotal), np.float32)

    def _refined(self, few_ND: Float32) -> Any:
        """What finds centroids by some dimensions, and again by all."""
        dim = few_ND.shape[1]
        axes = np.linalg.eigh(few_ND.T @ few_ND)[1][:, : -dim // 4 - 1 : -1]
        self._turned = faiss.LinearTransform(dim, axes.shape[1], False)
        faiss.copy_array_to_vector(np.ascontiguousarray(axes.T).ravel(), self._turned.A)
        self._turned.is_trained = True
        self._flat = faiss.IndexFlatIP(axes.shape[1])
        self._rough = faiss.IndexPreTransform(self._turned, self._flat)
        index = faiss.IndexRefine(self._rough, self._exact)
        index.k_factor = 4
        return index

    def _train(
        self, sample_ND: Float32, lists: int, seed: int, rounds: int, begin_LD: Float32 | None
    ) -> None:
        trainer = faiss.Clustering(sample_ND.shape[1], lists)
        trainer.niter, trainer.spherical, trainer.seed = rounds, True, seed + 1
        trainer.min_points_per_centroid = 1
        trainer.max_points_per_centroid = len(sample_ND)
        if begin_LD is not None:
            faiss.copy_array_to_vector(begin_LD.ravel(), trainer.centroids)
        trainer.train(sample_ND, self._index)

    def lists_of(self, block_ND: Float32) -> NDArray[np.int32]:
        """The list of each vector."""
        return cast(NDArray[np.int32], self._index.search(block_ND, 1)[1][:, 0].astype(np.int32))


class ListMeans:
    """The mean vector of each list, of rows that come in list order."""

    def __init__(self, sizes_L: Int64, dim: int) -> None:
        """Begin with lists of these sizes."""
        self.sizes_L = sizes_L
        self._stops = np.cumsum(sizes_L)
        self._sums_LD = np.zeros((len(sizes_L), dim), np.float64)
        self._at = 0

    def add(self, block_ND: Float32) -> None:
        """See the next rows."""
        stop = self._at + len(block_ND)
        for number, rows in pieces(self._stops, self._at, stop):
            self._sums_LD[number] += block_ND[rows].sum(axis=0)
        self._at = stop

    def means_LD(self, empty_LD: Float32) -> Float32:
        """What was found; a list without rows has the vector that `empty_LD` has for it."""
        sizes = self.sizes_L[:, None]
        means = np.where(sizes > 0, self._sums_LD / np.maximum(sizes, 1), empty_LD)
        return means.astype(np.float32)


def pieces(stops_L: Int64, start: int, stop: int) -> Iterator[tuple[int, slice]]:
    """The lists that rows `start` to `stop` lie in, and where in that block the rows of each are.

    `stops_L` says where each list ends.
    """
    first, last = np.searchsorted(stops_L, [start, stop - 1], side="right")
    for number in range(first, last + 1):
        begin = int(stops_L[number - 1]) if number else 0
        yield number, slice(max(begin - start, 0), min(int(stops_L[number]), stop) - start)


def write_flat(file: IO[bytes], dim: int, rows: int, blocks: Iterable[Float16]) -> None:
    """Write a flat float16 faiss file of `rows` vectors that come in blocks."""
    half = faiss.IndexScalarQuantizer(
        dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    half.is_trained = True  # half precision has nothing to learn
    header = faiss.serialize_index(half).tobytes()[:-8]  # less the size of its codes
    file.write(_with_rows(header, rows) + np.uint64(rows * dim * 2).tobytes())
    for block in blocks:
        file.write(np.ascontiguousarray(block, np.float16).data)


def flat_blocks(path: Path, dim: int, rows: int, most: int) -> Iterator[Float16]:
    """The vectors of a flat file that is written, though it may not have its name yet.

    They are read, not mapped: what is mapped counts as memory taken.
    """
    before = path.stat().st_size - 2 * dim * rows
    for start in range(0, rows, most):
        count = min(most, rows - start)
        block = np.fromfile(path, np.float16, count * dim, offset=before + 2 * dim * start)
        yield block.reshape(count, dim)


def write_lists(
    file: IO[bytes],
    means_LD: Float32,
    sizes_L: Int64,
    residuals_ND: Float32,
    blocks: Iterable[Float16],
    bits: int = 8,
) -> None:
    """Write an inverted file of codes, of 8 or 4 bits a dimension, of vectors in list order.

    Their ids are 0, 1, 2, …. Coded is how a vector differs from its list's mean; some such
    `residuals_ND` tell the range.
    """
    stops = np.cumsum(sizes_L)
    index = _coder(means_LD, residuals_ND, bits)
    header = faiss.serialize_index(index).tobytes()[:-4]  # less the mark of no lists
    file.write(_with_rows(header, int(sizes_L.sum())))
    file.write(b"ilar" + np.array([len(sizes_L), index.code_size], np.uint64).tobytes())
    file.write(b"full" + np.uint64(len(sizes_L)).tobytes() + sizes_L.astype(np.uint64).tobytes())
    start = 0
    for block in blocks:
        stop = start + len(block)
        lists = np.searchsorted(stops, np.arange(start, stop), side="right")
        codes = _encode(index, widen(block), lists)
        for number, rows in pieces(stops, start, stop):
            file.write(codes[rows].data)
            if stops[number] <= stop:  # a list's ids follow all its codes
                ids = np.arange(stops[number] - sizes_L[number], stops[number], dtype=np.int64)
                file.write(ids.data)
        start = stop


def _coder(means_LD: Float32, residuals_ND: Float32, bits: int) -> Any:
    """An inverted file without lists that knows how to code a vector."""
    count, dim = means_LD.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(means_LD)
    # One range for all dimensions is scored in two thirds of the time that one each takes, but
    # costs codes of 4 bits 15 % of the ten nearest to a text among 44 re-ranked; one each costs
    # them none. RaBitQ's single bit loses half, its 4 bits take 60 times as long (faiss 1.15).
    codec = faiss.ScalarQuantizer
    kind = codec.QT_8bit_uniform if bits == 8 else codec.QT_4bit
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, count, kind, faiss.METRIC_INNER_PRODUCT)
    index.sq.train(residuals_ND)
    index.is_trained = True
    index.nprobe = max(1, count // 16)
    index.replace_invlists(None)
    return index


def _encode(index: Any, vectors_ND: Float32, lists_N: Int64) -> NDArray[np.uint8]:
    codes = np.empty((len(vectors_ND), index.code_size), np.uint8)
    index.encode_vectors(
        len(codes), faiss.swig_ptr(vectors_ND), faiss.swig_ptr(lists_N), faiss.swig_ptr(codes)
    )
    return codes


def _with_rows(header: bytes, rows: int) -> bytes:
    return header[:_NTOTAL_AT] + np.int64(rows).tobytes() + header[_NTOTAL_AT + 8 :]
