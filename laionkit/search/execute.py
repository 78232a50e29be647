"""Search one segment: scan it, or probe its lists, and re-rank by exact cosines."""

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.knn import Bitmap, FlatStore, Neighbours, merge
from laionkit.search import bits
from laionkit.search.planner import Step, choose_lists
from laionkit.search.segment import AnySegment, Segment

# Until an index is tuned: the share of rows a probe scores. On text queries, which lie far from
# image vectors, 5 % of the rows in the nearest lists hold about 95 % of the ten best.
PROBE_SHARE = 0.05
PROBE_ROWS = 20_000
RERANK = 8


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
    wanted = max(PROBE_ROWS, round(PROBE_SHARE * segment.count), RERANK * k)
    if segment.lists is None or exact or matches <= wanted:
        found = _scan(segment.vectors, query_D, k, keep, matches, segment.info.drift)
        return found, Step(name, "scan", matches, matches)
    lists, held = choose_lists(segment.lists, query_D, keep, wanted)
    rough = segment.lists.search(query_D, min(RERANK * k, held), lists, keep)
    found = Neighbours(segment.vectors.cosines(query_D, rough.rows), rough.rows).top(k)
    probed, there = len(lists), len(segment.lists.starts) - 1
    return found, Step(name, "probe", matches, held, probed, there, exact=False)


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
