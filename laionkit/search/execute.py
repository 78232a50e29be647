"""Search one segment: scan it, or probe its lists, and re-rank by exact cosines."""

import math

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import FlatStore, ListCopy, ListStore, Neighbours, merge
from laionkit.search import planner
from laionkit.search.copies import Copies
from laionkit.search.foreign import AnySegment
from laionkit.search.keep import Keep
from laionkit.search.planner import Step
from laionkit.search.reach import K, first_lists, first_rows, promising_lists, reranked
from laionkit.search.segment import Segment

_FEW = 128  # rows whose cosines cost less than choosing among them first


def search_segment(
    segment: AnySegment,
    query_D: NDArray[np.float32],
    k: int,
    keep: Keep | None,
    exact: bool,
    latency_ms: float = math.inf,
    copies: Copies | None = None,
) -> tuple[Neighbours, Step]:
    """The k nearest rows of one segment, under a filter, and how they were found.

    A probe scores no more than it should be able to in `latency_ms`; a scan is never cut. A
    filter whose vectors are among the `copies` is scanned, one whose codes are is probed.
    """
    matches = segment.count if keep is None else keep.count
    name = segment.info.name
    if not matches:
        return merge([], k), Step(name, "empty", 0, 0)
    k = min(k, matches)
    if not isinstance(segment, Segment):
        found = segment.vectors.search(query_D, k, None if keep is None else keep.bitmap)
        return found, Step(name, "scan", matches, matches, exact=segment.vectors.exact)
    copy = None
    if keep is not None and copies is not None:
        copy = copies.of(keep, segment.vectors, lambda: _probed_copy(segment, matches))
    vectors = copy if isinstance(copy, np.ndarray) else None
    if exact or vectors is not None or not worth_probing(segment, k, matches):
        found = _scan(segment, query_D, k, keep, matches, vectors)
        return found, Step(name, "scan", matches, matches)
    codes = copy if isinstance(copy, ListCopy) else None
    return _probe(segment, query_D, k, keep, matches, latency_ms, codes)


def worth_probing(segment: Segment, k: int, matches: int) -> bool:
    """Whether a probe that reaches the recall aimed at should take less time than a scan."""
    info, dim = segment.info, segment.vectors.dim
    if segment.lists is None or not info.reach.learnt_from:  # lists of before there was a reach
        return False
    scored = info.reach.rows_scored(matches, info.rows, k)
    if scored >= matches:
        return False
    probe = planner.probe_ms(info.rows, matches, scored, info.lists, dim, info.code_bits)
    return probe < planner.scan_ms(info.rows, matches, dim)


def _probed_copy(segment: Segment, matches: int) -> ListStore | None:
    """The lists whose codes are copied of so many matching rows; None where vectors are."""
    info = segment.info
    if not worth_probing(segment, K, matches):
        return None
    scored = info.reach.rows_scored(matches, info.rows, K)
    dim = segment.vectors.dim
    worth = planner.probes_copy(matches, scored, info.lists, dim, info.code_bits)
    return segment.lists if worth else None


def _probe(
    segment: Segment,
    query_D: NDArray[np.float32],
    k: int,
    keep: Keep | None,
    matches: int,
    latency_ms: float,
    copy: ListCopy | None,
) -> tuple[Neighbours, Step]:
    """The k nearest rows of the lists that should hold them."""
    store = segment.lists
    assert store is not None
    near, spread, reach = store.near(query_D), store.spread_L, segment.info.reach
    counts = store.sizes_L if keep is None else np.diff(keep.offsets(store.starts))
    lists = first_lists(near, spread, counts, first_rows(matches, k), reach)
    found = _score(segment, query_D, near, lists, k, keep, counts, copy)
    least = float(np.partition(found.scores, -k)[-k])
    share = matches / segment.count
    more = promising_lists(least, near, spread, counts, share, reach)
    fresh = np.ones(len(near), bool)
    fresh[lists] = False
    more = more[fresh[more]]
    held = int(counts[lists].sum()) + np.cumsum(counts[more])
    afford = planner.affordable(
        segment.count, matches, len(near), segment.vectors.dim, latency_ms, segment.info.code_bits
    )
    cut = len(more) > 0 and int(held[-1]) > afford
    more = more[: int(np.searchsorted(held, afford, side="right"))] if cut else more
    if len(more):
        further = _score(segment, query_D, near, more, k, keep, counts, copy)
        found = merge([found, further], reranked(k))
    rows = found.rows
    if len(rows) > _FEW:  # more are first ranked by inner product, which reads them faster
        rows = segment.vectors.search_rows(query_D, min(k + 8 + k // 16, len(rows)), rows).rows
    cosines = segment.vectors.cosines(query_D, rows)
    probed = len(lists) + len(more)
    scored = int(counts[lists].sum() + counts[more].sum())
    step = Step(
        segment.info.name, "probe", matches, scored, probed, len(near), exact=False, cut=cut
    )
    return Neighbours(cosines, rows).top(k), step


def _score(
    segment: Segment,
    query_D: NDArray[np.float32],
    near_L: NDArray[np.float32],
    lists: NDArray[np.int64],
    k: int,
    keep: Keep | None,
    counts_L: NDArray[np.int64],
    copy: ListCopy | None,
) -> Neighbours:
    """The best rows of some lists: by their codes, or by their vectors where few are kept."""
    store = segment.lists
    assert store is not None
    held = int(counts_L[lists].sum())
    depth, lists = min(reranked(k), held), np.sort(lists)
    if copy is not None:
        return copy.search(query_D, depth, lists, near_L)
    if keep is not None:
        passed = int((store.starts[lists + 1] - store.starts[lists]).sum())
        if held < planner.SPARSE * passed:
            rows = keep.rows_of_lists(store.starts, lists)
            return segment.vectors.search_rows(query_D, depth, rows)
    return store.search(query_D, depth, lists, near_L, None if keep is None else keep.bitmap)


def _scan(
    segment: Segment,
    query_D: NDArray[np.float32],
    k: int,
    keep: Keep | None,
    matches: int,
    copy: NDArray[np.uint8] | None = None,
) -> Neighbours:
    """The k rows of the greatest cosines, proven.

    The scan ranks by inner product and a row's length strays from 1 by up to `drift`, so a few
    rows more are re-ranked, until no row beyond them can reach the k-th cosine, whatever the order
    in which float32 summed either.
    """
    vectors, drift, fetch = segment.vectors, segment.info.drift, k + 16 + k // 16
    rounding = vectors.dim * 2.0**-23
    while True:
        fetch = min(fetch, matches)
        if keep is not None and copy is not None:
            rough = vectors.search_copy(query_D, fetch, copy, keep.rows)
        else:
            rough = _rough(vectors, query_D, fetch, keep, matches)
        found = Neighbours(vectors.cosines(query_D, rough.rows), rough.rows).top(k)
        last = float(rough.scores[-1])
        reach = last / (1 - drift) if last > 0 else last / (1 + drift)
        if fetch == matches or reach + rounding < found.scores[-1]:
            return found
        fetch *= 2


def _rough(
    vectors: FlatStore, query_D: NDArray[np.float32], fetch: int, keep: Keep | None, matches: int
) -> Neighbours:
    """The best rows by inner product, none missed."""
    if keep is not None and matches < planner.SPARSE * vectors.rows:
        return vectors.search_rows(query_D, fetch, keep.rows)
    return vectors.search(query_D, fetch, None if keep is None else keep.bitmap)
