"""Answers as they come: an Arrow table of hits, and how they were found."""

from typing import Any, NamedTuple

import pyarrow as pa

from laionkit.search.planner import Plan


class Found(NamedTuple):
    """Hits, best first: key, match, caption, url, every score, shard, row. `plan` says how."""

    table: pa.Table
    plan: Plan

    def as_json(self) -> dict[str, Any]:
        """Hits and plan as JSON values; what was not scored is NaN."""
        return {"hits": self.table.to_pylist(), "plan": self.plan.as_json()}
