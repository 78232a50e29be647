"""The Searcher: an open index that answers queries."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from laionkit.backends.knn import Neighbours, merge
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.search import bits
from laionkit.search.arrow import as_arrow
from laionkit.search.blend import (
    Kind,
    Weighted,
    blend,
    boosts_of,
    head_direction,
    keys_of,
    listed,
    parse_wish,
)
from laionkit.search.copies import Copies
from laionkit.search.duplicates import first_of_groups
from laionkit.search.execute import search_segment
from laionkit.search.filters import Filters, FilterTable
from laionkit.search.foreign import ForeignSegment
from laionkit.search.keep import Keep
from laionkit.search.opening import open_index
from laionkit.search.planner import Found, Plan
from laionkit.search.queries import (
    LATENCY_MS,
    MAX_K,
    Encoder,
    Image,
    Limits,
    check_vector,
    read_vector,
)
from laionkit.search.scores import Scores

if TYPE_CHECKING:
    from laionkit.search.hits import Hits

_DEEPER = 4  # by which a search deepens where too few hits were left of it


class Searcher:
    """An open index. Its answers are of the moment it was opened; it can be used by threads."""

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        model: str | None = None,
        *,
        device: str = "auto",
        allow_private: bool = False,
    ) -> None:
        """Open the index of `model`, or the only one.

        A folder that clip-retrieval or autofaiss wrote is opened as it is; `model` is then the
        model that queries are embedded with. With `allow_private`, the URL of a query image may
        lead to a private address. Raises InputError where there is no index.
        """
        self.dataset = Folder(dataset)
        opened = open_index(self.dataset, model)
        self.segments, self.dim, self.facts = opened.segments, opened.dim, opened.facts
        self.count = sum(segment.count - segment.info.dead for segment in self.segments)
        self._alive = [
            None if segment.dead is None else Keep(bits.alive(segment.dead, segment.count))
            for segment in self.segments
        ]
        self._copies = Copies()
        self._encoder = Encoder(opened.facts, device, allow_private)
        self._scores = Scores(self.dataset, opened.folder)
        self._filters = Filters(self._open_columns, self.segments)

    def search(
        self,
        text: str | None = None,
        *,
        image: Image | None = None,
        vector: ArrayLike | None = None,
        like: str | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        boost: Mapping[str, float] | Sequence[str] = (),
        k: int = 10,
        page: int | None = None,
        where: str | None = None,
        threshold: float | None = None,
        dedup: float | None = None,
        exact: bool = False,
        latency_ms: float = LATENCY_MS,
    ) -> "Hits":
        """The k rows nearest to a query: always min(k, matches) of them.

        The query is a `text`, an `image` (path, URL, bytes or pixels), a `vector`, a key
        (`like`), or several of these, each of weight 1; then what hits should also be like
        (`plus`) and unlike (`minus`), ``WEIGHT:TEXT`` each (see `parse_wish` for pictures and
        keys), and scores of affine heads (`boost`). Rows of keys it is asked with are no hits.
        `where` filters by SQL inside the search; `threshold` is the least cosine of a hit; with
        `dedup`, a hit as near as that cosine to a better one makes room for the next. `page`
        counts from 1, and pages do not repeat. `exact` scores every matching row. A probe
        of lists scores no more rows than take `latency_ms` by the planner's costs, and the plan
        says where that cut it. Raises ConfigError for a wrong setting, InputError for a query
        that cannot be used.
        """
        from laionkit.search.hits import make_hits

        return make_hits(
            self.find(
                text, image=image, vector=vector, like=like, plus=plus, minus=minus, boost=boost,
                k=k, page=page, where=where, threshold=threshold, dedup=dedup, exact=exact,
                latency_ms=latency_ms,
            )
        )  # fmt: skip

    def find(
        self,
        text: str | None = None,
        *,
        image: Image | None = None,
        vector: ArrayLike | None = None,
        like: str | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        boost: Mapping[str, float] | Sequence[str] = (),
        **limits: Any,
    ) -> Found:
        """The same as `search`, as an Arrow table: for what should start without pandas."""
        wanted, clock = Limits(**limits), _Clock()
        query = self.query_vector(
            text, image=image, vector=vector, like=like, plus=plus, minus=minus, boost=boost
        )
        clock.lap("encode")
        return self.find_near(query, wanted, keys_of(like, plus, minus), clock)

    def find_near(
        self,
        query_D: NDArray[np.float32],
        wanted: Limits,
        leave_out: Sequence[str] = (),
        clock: "_Clock | None" = None,
    ) -> Found:
        """What `find` finds near a unit vector; rows of the keys to `leave_out` are no hits."""
        clock = clock or _Clock()
        keeps = self._keeps(wanted.where, leave_out)
        clock.lap("filter")
        found, plan = self._ranked(query_D, wanted, keeps)
        first, k = wanted.first, wanted.k
        found = Neighbours(found.scores[first : first + k], found.rows[first : first + k])
        clock.lap("search")
        if wanted.threshold is not None:
            good = found.scores >= wanted.threshold
            found = Neighbours(found.scores[good], found.rows[good])
        table = self.describe(found)
        clock.lap("describe")
        return Found(table, replace(plan, where=wanted.where, milliseconds=clock.laps))

    def nearest(
        self,
        query_D: NDArray[np.float32],
        k: int,
        keeps: Sequence[Keep | None] | None = None,
        *,
        exact: bool = False,
        latency_ms: float = LATENCY_MS,
    ) -> tuple[Neighbours, Plan]:
        """The k nearest rows to a unit vector, under one filter a segment, and how they came."""
        parts, steps = [], []
        row_ms = latency_ms / max(1, sum(segment.count for segment in self.segments))
        for segment, keep in zip(self.segments, keeps or self._alive, strict=True):
            found, step = search_segment(
                segment, query_D, k, keep, exact, row_ms * segment.count, self._copies
            )
            parts.append(Neighbours(found.scores, found.rows + segment.start))
            steps.append(step)
        plan = Plan(
            rows=self.count,
            matches=sum(step.matches for step in steps),
            exact=all(step.exact for step in steps),
            steps=tuple(steps),
        )
        return merge(parts, k), plan

    def describe(self, found: Neighbours) -> pa.Table:
        """A table of hits: key, match, caption, url, every score, shard, row."""
        table = self._rows(found.rows)
        table = table.add_column(1, "match", as_arrow(found.scores))
        last = ("shard", "row")
        return table.select([*(name for name in table.column_names if name not in last), *last])

    def query_vector(
        self,
        text: str | None = None,
        *,
        image: Image | None = None,
        vector: ArrayLike | None = None,
        like: str | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        boost: Mapping[str, float] | Sequence[str] = (),
    ) -> NDArray[np.float32]:
        """The unit vector that a query is searched with, see `search`."""
        asked: list[tuple[Kind, Any]] = [("text", text), ("image", image), ("vector", vector)]
        parts = [(1.0, self._vector(kind, value)) for kind, value in asked if value is not None]
        return blend([*parts, *self.wished(like, plus, minus, boost)])

    def wished(
        self,
        like: str | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        boost: Mapping[str, float] | Sequence[str] = (),
    ) -> list[Weighted]:
        """What is wished for beside a text, an image or a vector, with its weight, see `search`."""
        parts = [] if like is None else [(1.0, self.vector_of(like))]
        for sign, wishes in ((1, listed(plus)), (-1, listed(minus))):
            parts += [
                (sign * wish.weight, self._vector(wish.kind, wish.value))
                for wish in map(parse_wish, wishes)
            ]
        for column, weight in boosts_of(listed(boost)).items():
            direction = head_direction(self.dataset, column, self.facts.get("backbone"))
            parts.append((weight, check_vector(direction, self.dim)))
        return parts

    def vectors_of_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The unit vectors of several texts, embedded at once."""
        vectors = self._encoder.texts(texts)
        return np.array([check_vector(vector, self.dim) for vector in vectors])

    def _vector(self, kind: Kind, value: Any) -> NDArray[np.float32]:
        """The unit vector of one part of a query."""
        if kind == "key":
            return self.vector_of(value)
        if kind == "text":
            return check_vector(self._encoder.texts([value])[0], self.dim)
        if kind == "image":
            return check_vector(self._encoder.image(value), self.dim)
        return check_vector(
            read_vector(value) if isinstance(value, str | Path) else value, self.dim
        )

    def vector_of(self, key: str) -> NDArray[np.float32]:
        """The unit vector of a key's row. Raises InputError where there is none."""
        for segment, living in zip(self.segments, self._alive, strict=True):
            row = pc.index(segment.rows.keys(), str(key)).as_py()
            if row >= 0 and (living is None or living.bitmap[row // 8] >> row % 8 & 1):
                return check_vector(segment.vectors.take(np.array([row]))[0], self.dim)
        raise InputError(f"the index of {self.dataset} has no key {key!r}")

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors of some rows of the index, in the order given."""
        out = np.empty((len(rows), self.dim), np.float32)
        for segment in self.segments:
            here = np.flatnonzero((rows >= segment.start) & (rows < segment.start + segment.count))
            if len(here):
                out[here] = segment.vectors.take(rows[here] - segment.start)
        return out

    def _ranked(
        self, query_D: NDArray[np.float32], wanted: Limits, keeps: Sequence[Keep | None]
    ) -> tuple[Neighbours, Plan]:
        """The nearest rows up to the last one wanted, of which no two are too near each other.

        It is searched deeper until there are as many. What was ranked keeps its place, so that
        whoever begins with the same depth reads on in the same ranking.
        """
        last, depth = wanted.first + wanted.k, wanted.depth
        ranking = merge([], 0)
        while True:
            found, plan = self.nearest(
                query_D, depth, keeps, exact=wanted.exact, latency_ms=wanted.latency_ms
            )
            fresh = ~np.isin(found.rows, ranking.rows)
            ranking = Neighbours(
                np.concatenate([ranking.scores, found.scores[fresh]]),
                np.concatenate([ranking.rows, found.rows[fresh]]),
            )
            kept = ranking
            if wanted.dedup is not None:
                first = first_of_groups(self.vectors_of(ranking.rows), wanted.dedup, last)
                kept = Neighbours(ranking.scores[first], ranking.rows[first])
            if len(kept.rows) >= last or depth >= min(MAX_K, plan.matches):
                return kept, plan
            depth = min(MAX_K, _DEEPER * depth)

    def _rows(self, rows: NDArray[np.int64]) -> pa.Table:
        """What is known of some rows, in the order given: their columns, then every score."""
        parts, places = [], []
        for segment in self.segments:
            here = np.flatnonzero((rows >= segment.start) & (rows < segment.start + segment.count))
            known = segment.rows.take(rows[here] - segment.start)
            known = known.set_column(3, "shard", known["shard"].cast(pa.string()))
            for name, values in self._scores.of(segment, rows[here] - segment.start, known).items():
                known = known.append_column(name, values)
            parts.append(known)
            places.append(here)
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(places)] = np.arange(len(rows))
        return pa.concat_tables(parts, promote_options="permissive").take(as_arrow(back))

    def _open_columns(self) -> FilterTable:
        """What a filter is over: the dataset's columns, or a foreign folder's metadata."""
        from laionkit.search.filter_tables import DatasetFilters, ForeignTable

        first = self.segments[0]
        if isinstance(first, ForeignSegment):
            return ForeignTable(first)
        return DatasetFilters(self.dataset, self._scores)

    def _keeps(self, where: str | None, asked: Sequence[str]) -> list[Keep | None]:
        """One filter a segment: rows alive that a filter keeps, less the keys asked with."""
        keeps = list(self._alive)
        if where is not None:
            keeps = list(self._filters.keeps(where))
        if asked:
            some = pa.array(asked, pa.string())
            others = [
                Keep(bits.from_mask(~pc.is_in(segment.rows.keys(), value_set=some).to_numpy()))
                for segment in self.segments
            ]
            keeps = [_both(a, b) for a, b in zip(others, keeps, strict=True)]
        return keeps


def _both(left: Keep, right: Keep | None) -> Keep:
    return left if right is None else left & right


class _Clock:
    """Milliseconds of each step of a query."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1e3, 3)
        self._last = now
