"""How right an index is: recall against exact truth, by kind of query and by filter.

Queries are captions' vectors, drawn with another seed than tuning's (on a small index the two
draws can overlap), and rows of the index. A row is its own nearest, which flatters the recall of
image queries a little. Filters are simulated: they keep a share of the rows, by a column that is
independent of the query's scores, correlated with them or anti-correlated.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from laionkit.backends.knn import Bitmap
from laionkit.search import bits
from laionkit.search.searcher import Searcher
from laionkit.search.segment import Segment
from laionkit.search.tuning import CORRELATIONS, SELECTIVITIES, simulated_filter

_BLOCK_ROWS = 32_768


class Cell(BaseModel):
    """Recall of one kind of query under one kind of filter.

    `low` and `high` bound the mean's 95 % confidence interval, `p5` is the 5th percentile over
    queries, `exact` the share of answers that were proven exact, `milliseconds` the median.
    """

    model_config = ConfigDict(frozen=True)

    queries: str
    selectivity: float
    correlation: float
    count: int
    recall: float
    low: float
    high: float
    p5: float
    exact: float
    milliseconds: float


def evaluate(
    searcher: Searcher,
    queries: dict[str, NDArray[np.float32]],
    *,
    k: int = 10,
    selectivities: Sequence[float] = SELECTIVITIES,
    correlations: Sequence[float] = CORRELATIONS,
    seed: int = 0,
) -> list[Cell]:
    """Measure recall@k for queries by kind (``texts``, ``images``), one unit vector a row."""
    cells = []
    for kind, vectors_QD in queries.items():
        if not len(vectors_QD):
            continue
        scores_QN = exact_scores(searcher, vectors_QD)
        for selectivity in selectivities:
            for correlation in correlations if selectivity < 1 else (0.0,):
                rng = np.random.default_rng(seed)
                found = [
                    _one(searcher, vector, scores, k, selectivity, correlation, rng)
                    for vector, scores in zip(vectors_QD, scores_QN, strict=True)
                ]
                cells.append(_cell(kind, selectivity, correlation, found))
    return cells


def exact_scores(searcher: Searcher, vectors_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    """The cosine of every query with every row of the index, [Q, N]."""
    total = sum(segment.count for segment in searcher.segments)
    scores = np.empty((len(vectors_QD), total), np.float32)
    for start in range(0, total, _BLOCK_ROWS):
        rows = np.arange(start, min(start + _BLOCK_ROWS, total))
        block = searcher.vectors_of(rows)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        scores[:, start : start + len(rows)] = vectors_QD @ block.T
    return scores


def _one(
    searcher: Searcher,
    vector_D: NDArray[np.float32],
    scores_N: NDArray[np.float32],
    k: int,
    selectivity: float,
    correlation: float,
    rng: np.random.Generator,
) -> tuple[float, bool, float]:
    """Recall of one query, whether it was called exact, its milliseconds."""
    keep = np.ones(len(scores_N), bool)
    if selectivity < 1:
        keep = simulated_filter(scores_N, selectivity, correlation, rng)
    for segment in searcher.segments:
        if segment.dead is not None:
            dead = bits.rows_of(segment.dead, segment.count) + segment.start
            keep[dead] = False
    rows = np.flatnonzero(keep)
    k = min(k, len(rows))
    best = rows[np.argpartition(-scores_N[rows], k - 1)[:k]] if k else rows
    keeps = list(_split(searcher, keep)) if selectivity < 1 else None
    started = time.perf_counter()
    found, plan = searcher.nearest(vector_D, k, keeps)
    seconds = time.perf_counter() - started
    # Rows as near as float32 tells are as good as each other.
    least = float(scores_N[best].min()) - 2e-6
    right = int((scores_N[found.rows] >= least).sum()) if k else 0
    return right / max(k, 1), plan.exact, 1e3 * seconds


def _split(searcher: Searcher, keep: NDArray[np.bool_]) -> Iterator[Bitmap]:
    for segment in searcher.segments:
        yield bits.from_mask(keep[segment.start : segment.start + segment.count])


def _cell(
    kind: str, selectivity: float, correlation: float, found: list[tuple[float, bool, float]]
) -> Cell:
    recalls = np.array([recall for recall, _, _ in found])
    margin = 1.96 * recalls.std() / np.sqrt(len(recalls))
    return Cell(
        queries=kind,
        selectivity=selectivity,
        correlation=correlation,
        count=len(found),
        recall=round(float(recalls.mean()), 4),
        low=round(float(recalls.mean() - margin), 4),
        high=round(min(1.0, float(recalls.mean() + margin)), 4),
        p5=round(float(np.quantile(recalls, 0.05)), 4),
        exact=round(float(np.mean([exact for _, exact, _ in found])), 4),
        milliseconds=round(float(np.median([ms for _, _, ms in found])), 3),
    )


def explain(searcher: Searcher) -> dict[str, object]:
    """What an index is and why: its segments, bytes, what a probe goes by."""
    segments = []
    for segment in searcher.segments:
        info = segment.info
        vectors = 2 * searcher.dim * info.rows
        choice = {
            "segment": info.name,
            "rows": info.rows,
            "dead": info.dead,
            "kind": "lists, 8-bit codes, re-ranked as float16" if info.lists else "exact scan",
            "lists": info.lists,
            "vector_bytes": vectors,
            "code_bytes": info.lists and (searcher.dim + 8) * info.rows,
        }
        if isinstance(segment, Segment) and info.lists:
            choice["learnt_from"] = info.shares.learnt_from
            at = (f"{100 * s:g} %" for s in info.shares.selectivities)
            choice["share_of_matches_scored"] = dict(zip(at, info.shares.ten, strict=True))
        segments.append(choice)
    return {"rows": searcher.count, "dimension": searcher.dim, "segments": segments}
