"""Search one segment: scan it, or probe its lists, and re-rank by exact cosines."""

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, FlatStore, Neighbours, merge
from laionkit.search import bits
from laionkit.search.planner import FREE, Step, choose_lists, probe_cost, scan_cost
from laionkit.search.segment import AnySegment, Segment

RERANK = 4  # rows re-ranked per hit: 8-bit codes move a row by a few places


def search_segment(
    segment: AnySegment, query_D: NDArray[np.float32], k: int, keep: Bitmap | None, exact: bool
) -> tuple[Neighbours, Step]:
    """The k nearest rows of one segment, under a filter's bitmap, and how they were found."""
    matches = segment.count if keep is None else bits.count(keep)
    name = segment.info.name
    if not matches:
        return merge([], k), Step(name, "empty", 0, 0)
    k = min(k, matches)
    if not isinstance(segment, Segment):
        found = segment.vectors.search(query_D, k, keep)
        return found, Step(name, "scan", matches, matches, exact=segment.vectors.exact)
    wanted = None if exact or segment.lists is None else plan_probe(segment, k, matches)
    if segment.lists is None or wanted is None:
        found = _scan(segment.vectors, query_D, k, keep, matches, segment.info.drift)
        return found, Step(name, "scan", matches, matches)
    lists, held = choose_lists(segment.lists, query_D, keep, wanted)
    rough = segment.lists.search(query_D, min(_reranked(k), held), lists, keep)
    found = Neighbours(segment.vectors.cosines(query_D, rough.rows), rough.rows).top(k)
    probed, there = len(lists), len(segment.lists.starts) - 1
    return found, Step(name, "probe", matches, held, probed, there, exact=False)


def plan_probe(segment: Segment, k: int, matches: int) -> int | None:
    """How many matching rows to score by probing lists; None where a scan is as good.

    A scan is taken where it costs next to nothing or no more than the probe that reaches the
    recall aimed at.
    """
    rows = segment.count
    wanted = max(_reranked(k), round(segment.info.shares.share(matches / rows, k) * matches))
    scan = scan_cost(rows, matches)
    if scan <= FREE or wanted >= matches:
        return None
    probe = probe_cost(rows, matches, wanted, segment.info.lists, _reranked(k))
    return None if scan <= probe else wanted


def _reranked(k: int) -> int:
    return RERANK * k + 24


def _scan(
    vectors: FlatStore,
    query_D: NDArray[np.float32],
    k: int,
    keep: Bitmap | None,
    matches: int,
    drift: float,
) -> Neighbours:
    """The k rows of the greatest cosines, proven.

    The scan ranks by inner product and a row's length strays from 1 by up to `drift`, so a few
    rows more are re-ranked, until no row beyond them can reach the k-th cosine.
    """
    fetch = k + 16 + k // 16
    while True:
        fetch = min(fetch, matches)
        rough = vectors.search(query_D, fetch, keep)
        found = Neighbours(vectors.cosines(query_D, rough.rows), rough.rows).top(k)
        last = float(rough.scores[-1])
        reach = last / (1 - drift) if last > 0 else last / (1 + drift)
        if fetch == matches or reach < found.scores[-1]:
            return found
        fetch *= 2
