"""The Searcher: an open index that answers queries."""

import os
import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from laionkit.backends.knn import Bitmap, Neighbours, merge
from laionkit.core.errors import ConfigError
from laionkit.core.files import Folder
from laionkit.search import bits
from laionkit.search.execute import search_segment
from laionkit.search.filters import Filters
from laionkit.search.hits import Hits, make_hits
from laionkit.search.opening import open_index
from laionkit.search.planner import Plan
from laionkit.search.queries import Encoder, Image, check_vector
from laionkit.search.scores import Scores
from laionkit.search.segment import ForeignSegment

MAX_K = 100_000


class Searcher:
    """An open index. Its answers are of the moment it was opened; it can be used by threads."""

    def __init__(
        self, dataset: str | os.PathLike[str], model: str | None = None, *, device: str = "auto"
    ) -> None:
        """Open the index of `model`, or the only one.

        A folder that clip-retrieval or autofaiss wrote is opened as it is; `model` is then the
        model that queries are embedded with. Raises InputError where there is no index.
        """
        self.dataset = Folder(dataset)
        opened = open_index(self.dataset, model)
        self.segments, self.dim = opened.segments, opened.dim
        self.count = sum(segment.count - segment.info.dead for segment in self.segments)
        self._alive = [
            None if segment.dead is None else bits.alive(segment.dead, segment.count)
            for segment in self.segments
        ]
        self._encoder = Encoder(opened.facts, device)
        self._filters = Filters(self.dataset)
        self._scores = Scores(self.dataset)

    def search(
        self,
        text: str | None = None,
        *,
        image: Image | None = None,
        vector: ArrayLike | None = None,
        k: int = 10,
        where: str | None = None,
        threshold: float | None = None,
        exact: bool = False,
    ) -> Hits:
        """The k rows nearest to a text, an image or a vector: always min(k, matches) of them.

        `where` filters by SQL inside the search. `threshold`: the least cosine of a hit. `exact`
        scans every matching row. Raises ConfigError for a wrong setting, InputError for a query
        that cannot be used.
        """
        if not 1 <= k <= MAX_K:
            raise ConfigError(f"k={k}: ask for 1 to {MAX_K} hits")
        clock = _Clock()
        query = self._query(text, image, vector)
        clock.lap("encode")
        keeps = self._keeps(where)
        clock.lap("filter")
        found, plan = self.nearest(query, k, keeps, exact=exact)
        clock.lap("search")
        if threshold is not None:
            good = found.scores >= threshold
            found = Neighbours(found.scores[good], found.rows[good])
        table = self.describe(found)
        clock.lap("describe")
        return make_hits(
            table, Plan(plan.rows, plan.matches, plan.exact, plan.steps, where, clock.laps)
        )

    def nearest(
        self,
        query_D: NDArray[np.float32],
        k: int,
        keeps: list[Bitmap | None] | None = None,
        *,
        exact: bool = False,
    ) -> tuple[Neighbours, Plan]:
        """The k nearest rows to a unit vector, under one bitmap a segment, and how they came."""
        parts, steps = [], []
        for segment, keep in zip(self.segments, keeps or [None] * len(self.segments), strict=True):
            found, step = search_segment(segment, query_D, k, keep, exact)
            parts.append(Neighbours(found.scores, found.rows + segment.start))
            steps.append(step)
        plan = Plan(
            rows=self.count,
            matches=sum(step.matches for step in steps),
            exact=all(step.exact for step in steps),
            steps=tuple(steps),
        )
        return merge(parts, k), plan

    def describe(self, found: Neighbours) -> pd.DataFrame:
        """A table of hits: key, match, caption, url, every score, shard, row."""
        table = self._rows(found.rows)
        scores = self._scores.of(table["shard"].to_pylist(), table["key"].to_pylist())
        columns: dict[str, Any] = {
            "key": table["key"].to_pylist(),
            "match": found.scores,
            "caption": table["caption"].to_pylist(),
            "url": table["url"].to_pylist(),
            **scores,
            "shard": table["shard"].to_pylist(),
            "row": table["row"].to_numpy(),
        }
        return pd.DataFrame(columns)

    def _rows(self, rows: NDArray[np.int64]) -> pa.Table:
        """What is known of some rows, in the order given."""
        parts, places = [], []
        for segment in self.segments:
            here = np.flatnonzero((rows >= segment.start) & (rows < segment.start + segment.count))
            taken = segment.rows.take(rows[here] - segment.start)
            parts.append(taken.set_column(3, "shard", taken["shard"].cast(pa.string())))
            places.append(here)
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(places)] = np.arange(len(rows))
        return pa.concat_tables(parts).take(back)

    def _query(
        self, text: str | None, image: Image | None, vector: ArrayLike | None
    ) -> NDArray[np.float32]:
        asked = {"text": text, "image": image, "vector": vector}
        given = [name for name, value in asked.items() if value is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "nothing"
            raise ConfigError(f"a query is one of text, image and vector; given: {what}")
        if text is not None:
            return check_vector(self._encoder.text(text), self.dim)
        if image is not None:
            return check_vector(self._encoder.image(image), self.dim)
        assert vector is not None
        return check_vector(vector, self.dim)

    def _keeps(self, where: str | None) -> list[Bitmap | None]:
        if where is None:
            return list(self._alive)
        if isinstance(self.segments[0], ForeignSegment):
            raise ConfigError(
                f"{self.dataset} is an index folder of another's making, without columns to "
                "filter by: bring its embeddings into a dataset with laionkit adopt"
            )
        found = self._filters.bitmaps(where, self.segments)
        return [
            keep if living is None else keep & living
            for keep, living in zip(found, self._alive, strict=True)
        ]


class _Clock:
    """Milliseconds of each step of a query."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1e3, 3)
        self._last = now
