"""Which samples stay: each step in turn, and for each sample dropped the first step it failed.

The verdicts are one temporary table of the dataset's engine, (key, shard, code, value): code 0
stays, any other is an index into `reasons`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from laionkit.core.errors import ConfigError
from laionkit.core.progress import Counts, Steps
from laionkit.core.schemas import Status
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, quote_name, quote_text, value_sql

# The step before all others, and its reason for links that were not tried.
PICTURE = "picture fetched"
NOT_FETCHED = "not_fetched"


@dataclass(frozen=True)
class FunnelStep:
    """One step: its name, how many samples came to it and how many it dropped."""

    name: str
    seen: int
    dropped: int


@dataclass
class Selection:
    """The verdict on every sample of a dataset."""

    table: DatasetTable
    keep_nulls: bool = False
    reasons: list[str] = field(default_factory=lambda: [""])
    # Name of a step → the codes it gives.
    steps: dict[str, list[int]] = field(default_factory=dict)
    # Samples by code where they were counted without a table of verdicts.
    counted: dict[int, int] | None = None
    progress: Steps = field(default_factory=lambda: Steps("subset"))

    def judge(self, terms: Sequence[Term], *, needs_picture: bool) -> None:
        """Judge every sample by its status and then by `terms`, in one pass over the dataset."""
        if needs_picture:
            self.require_pictures()
        code, values = self.verdict_sql(terms)
        columns = self.columns(terms, ("key", "shard"))
        shard = "shard" if "shard" in columns else "NULL"
        self.table.one_pass(
            columns,
            lambda source: self.table.execute(
                f"CREATE TEMP TABLE judged AS SELECT code::USMALLINT AS code, key, "
                f"{shard}::VARCHAR AS shard, {values}::VARCHAR AS value "
                f"FROM (SELECT *, {code} AS code FROM ({source}))"
            ),
        )

    def columns(self, terms: Sequence[Term], more: Sequence[str] = ()) -> list[str]:
        """What judging reads, in the table's order."""
        wanted = {name for term in terms for name in term.columns}
        wanted |= {"status", "reason", *more}
        return [name for name in self.table.columns if name in wanted] or ["key"]

    def require_pictures(self) -> None:
        """Raise ConfigError where nothing was fetched."""
        if "status" not in self.table.columns:
            raise ConfigError(
                f"{self.table.folder} has no pictures: run laionkit fetch, or add --as parquet"
            )

    def verdict_sql(self, terms: Sequence[Term]) -> tuple[str, str]:
        """SQL of the code of a sample, and of the value that a condition saw, given the code."""
        cases, values = [], []
        if "status" in self.table.columns:
            cases.append(self._status_case())
        for term in terms:
            case, codes = self._term_case(term)
            cases.append(case)
            values.append(f"WHEN code IN ({', '.join(map(str, codes))}) THEN {value_sql(term)}")
        code = f"CASE {' '.join(cases)} ELSE 0 END" if cases else "0"
        return code, f"CASE {' '.join(values)} END" if values else "NULL"

    def keep_top(
        self, column: str, *, share: float | None = None, count: int | None = None
    ) -> None:
        """Keep the `share` (0–1, rounded up), or the `count`, of those left with the most `column`.

        Equal values are told apart by key, so that the best n are always the same n.
        """
        name = quote_name(column)
        least = f"top {count}" if count is not None else f"top {100 * (share or 0):g} %"
        step = f"{least} by {column}"
        null, below = self.code(step, f"null:{column}"), self.code(step, step)
        self.table.execute(
            "CREATE OR REPLACE TEMP TABLE ranked AS "
            f"SELECT key, {name} AS v, row_number() OVER (ORDER BY {name} DESC, key) AS place "
            f"FROM ({self.left(['key', column])}) WHERE {name} IS NOT NULL"
        )
        keep = str(count) if count is not None else f"ceil({share} * (SELECT count(*) FROM ranked))"
        self.table.execute(
            f"UPDATE judged SET code = {below}, value = v::VARCHAR FROM ranked "
            f"WHERE judged.key = ranked.key AND place > {keep}"
        )
        if not self.keep_nulls:
            self.table.execute(
                f"UPDATE judged SET code = {null} WHERE code = 0 "
                "AND key NOT IN (SELECT key FROM ranked)"
            )

    def left(self, columns: Iterable[str]) -> str:
        """SQL of `columns`, key among them, of what is left."""
        return (
            f"SELECT s.* FROM ({self.table.select(columns)}) s "
            "SEMI JOIN (SELECT key FROM judged WHERE code = 0) j ON j.key = s.key"
        )

    def keep_only(self, step: str, reason: str, keys: Any) -> None:
        """Drop what is not among `keys` (arrow table: key)."""
        code = self.code(step, reason)
        self.table.execute("DROP TABLE IF EXISTS given")
        self.table.insert("given", keys)
        self.table.execute(
            f"UPDATE judged SET code = {code} WHERE code = 0 AND key NOT IN "
            "(SELECT key FROM given WHERE key IS NOT NULL)"
        )

    def drop(self, step: str, reason: str, keys: Any) -> None:
        """Drop those of `keys` (arrow table: key, value) that are still there."""
        code = self.code(step, reason)
        self.table.execute("DROP TABLE IF EXISTS given")
        self.table.insert("given", keys)
        self.table.execute(
            f"UPDATE judged SET code = {code}, value = given.value::VARCHAR FROM given "
            "WHERE judged.key = given.key AND judged.code = 0"
        )

    def counts(self) -> Counts:
        """How many stay, and how many were dropped for each reason."""
        by_code = self._by_code()
        reasons: dict[str, int] = {}
        for code, count in by_code.items():
            if code:
                reason = self.reasons[code]
                reasons[reason] = reasons.get(reason, 0) + count
        return Counts.of(by_code.get(0, 0), reasons)

    def funnel(self) -> list[FunnelStep]:
        """Each step in order: how many came to it, how many it dropped."""
        by_code = self._by_code()
        left, found = sum(by_code.values()), []
        for name, codes in self.steps.items():
            dropped = sum(by_code.get(code, 0) for code in codes)
            found.append(FunnelStep(name, left, dropped))
            left -= dropped
        return found

    def shards(self) -> list[str]:
        """The shards in which samples that stay lie."""
        found = self.table.execute("SELECT DISTINCT shard FROM judged WHERE code = 0 ORDER BY 1")
        return [name for (name,) in found.fetchall()]

    def dropped(self) -> Iterator[Any]:
        """Arrow batches of key, reason, value of what was dropped, in key order."""
        listed = ", ".join(quote_text(reason) for reason in self.reasons)
        return self.table.batches(
            f"SELECT key, [{listed}][code::BIGINT + 1] AS reason, value FROM judged "
            "WHERE code > 0 ORDER BY key"
        )

    def _by_code(self) -> dict[int, int]:
        if self.counted is not None:
            return self.counted
        return dict(self.table.execute("SELECT code, count(*) FROM judged GROUP BY 1").fetchall())

    def code(self, step: str, reason: str) -> int:
        """The code of a reason of a step, both new or known."""
        codes = self.steps.setdefault(step, [])
        for code in codes:
            if self.reasons[code] == reason:
                return code
        self.reasons.append(reason)
        codes.append(len(self.reasons) - 1)
        return codes[-1]

    def _status_case(self) -> str:
        """The step before all others: links without a picture, by what fetch says of them."""
        said = "coalesce(reason, status)" if "reason" in self.table.columns else "status"
        wanted = [name for name in ("status", "reason") if name in self.table.columns]
        found = self.table.execute(
            f"SELECT DISTINCT {said} FROM ({self.table.select(wanted)}) "
            f"WHERE status <> {quote_text(Status.SUCCESS)} ORDER BY 1"
        ).fetchall()
        whens = [
            f"WHEN {quote_text(reason)} THEN {self.code(PICTURE, reason)}" for (reason,) in found
        ]
        lost = f"CASE {said} {' '.join(whens)} END" if whens else "NULL"
        return (
            f"WHEN status IS NULL THEN {self.code(PICTURE, NOT_FETCHED)} "
            f"WHEN status <> {quote_text(Status.SUCCESS)} THEN {lost}"
        )

    def _term_case(self, term: Term) -> tuple[str, list[int]]:
        """The CASE branches of one condition, and its codes."""
        failed = self.code(term.sql, term.sql)
        if self.keep_nulls:
            return f"WHEN ({term.sql}) IS FALSE THEN {failed}", [failed]
        nulls = [
            f"WHEN {quote_name(name)} IS NULL THEN {self.code(term.sql, f'null:{name}')}"
            for name in term.columns
        ]
        unknown = self.code(term.sql, f"null:{term.sql}")
        null = f"CASE {' '.join(nulls)} ELSE {unknown} END" if nulls else str(unknown)
        case = f"WHEN ({term.sql}) IS NULL THEN {null} WHEN NOT ({term.sql}) THEN {failed}"
        return case, [failed]
