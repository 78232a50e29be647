"""Answers: a table of hits that also says how they were found."""

from typing import Any

import pandas as pd

from laionkit.search.planner import Found, Plan


class Hits(pd.DataFrame):
    """Hits, best first: key, match, caption, url, every score, shard, row. `plan` says how."""

    _metadata = ["plan"]
    plan: Plan | None = None

    @property
    def _constructor(self) -> Any:
        return Hits

    def as_json(self) -> dict[str, Any]:
        """Hits and plan as JSON values; what is missing is null."""
        hits = self.astype(object).where(self.notna(), None).to_dict("records")
        return {"hits": hits, "plan": self.plan.as_json() if self.plan else None}


def make_hits(found: Found) -> Hits:
    """An answer as a table of pandas."""
    hits = Hits(found.table.to_pandas())
    object.__setattr__(hits, "plan", found.plan)
    return hits
