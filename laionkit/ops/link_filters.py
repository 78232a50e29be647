"""The verdict on a link as one SQL expression: 0 for kept, else the code of the first step failed.

Steps: conditions of a filter, then what makes a row no link at all, then what the rows say of
lists they stand on, then the sample.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from laionkit.core.schemas import Reason
from laionkit.ops.laion_schemas import INNER_PREFIX
from laionkit.ops.predicates import (
    Term,
    compares_one_column,
    quote_name,
    quote_text,
    value_sql,
)

# A scheme, "://" and the beginning of a host; a longer pattern takes three times as long.
_LINK = r"^\s*[A-Za-z][A-Za-z0-9+.\-]*://[^\s/?#]"
# Nearly every link, told without the pattern: a host that begins with a letter in lower case.
_USUAL = "url >= 'http://a' AND url < 'http://{' OR url >= 'https://a' AND url < 'https://{'"
_SPACES = "chr(32) || chr(9) || chr(10) || chr(13)"
# Columns that ride beside those of the sources, none of which can have such a name.
CODE, VALUE, ROW, SOURCE, BLOCKED, OPTED_OUT = (
    INNER_PREFIX + name for name in ("code", "value", "row", "source", "blocked", "opted_out")
)
PAST_NULL = -1  # in place of 0 where a null let a row meet the conditions
_SAFETY_COLUMNS = ("punsafe", "pwatermark")
_SAFETY_MARKS = ("nsfw", "unsafe")


@dataclass
class Reasons:
    """Names of reasons, numbered as they come; 0 is no reason."""

    names: list[str] = field(default_factory=lambda: [""])

    def code(self, name: str) -> int:
        """The number of a reason."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


@dataclass(frozen=True)
class Verdict:
    """SQL over a table of rows: `code`, the `value` a dropped row's reason saw, `kept_null`.

    `conditions` is the code of the filter's conditions alone, which seldom needs a wide column;
    `rest` is that of the steps after. `code_told` and `conditions_told` have PAST_NULL where a
    null let a row meet the conditions.
    `sieve` holds for every row that meets the conditions, so does `sieve_without_nulls` where no
    null let one. They compare columns with literals, by which a scan skips what it need not read;
    NaN they may let pass.
    `kept_null` maps columns to SQL that holds where a kept row's null let it pass a condition.
    """

    code: str
    code_told: str
    conditions: str
    conditions_told: str
    rest: str
    value: str
    kept_null: dict[str, str]
    sieve: str = "true"
    sieve_without_nulls: str = "true"


def build_verdict(
    terms: Sequence[Term],
    reasons: Reasons,
    *,
    null: str,
    has_url: bool,
    similarity_limit: float | None,
    numbers: Collection[str] = (),
    lists: Sequence[str] = (),
    sample: tuple[float, int] | None = None,
) -> Verdict:
    """Put the steps of a source together. `lists` names those of BLOCKED, OPTED_OUT.

    `numbers` names the columns of numbers.
    """
    cases: list[str] = []
    values: list[str] = []
    kept_null: dict[str, str] = {}
    sieve: list[str] = []
    sieve_without_nulls: list[str] = []
    for term in terms:
        failed = reasons.code(term.sql)
        plain = set(term.columns) <= set(numbers) and compares_one_column(term)
        for name in term.columns:
            is_null = f"{quote_name(name)} IS NULL"
            if not plain:
                is_null += f" AND ({term.sql}) IS NULL"
            if drops_null(name, null):
                cases.append(f"WHEN {is_null} THEN {reasons.code(f'null:{name}')}")
            else:
                kept_null[name] = is_null
        if null == "drop" and not plain:
            cases.append(f"WHEN ({term.sql}) IS NULL THEN {reasons.code(f'null:{term.sql}')}")
        cases.append(f"WHEN NOT ({term.sql}) THEN {failed}")
        values.append(f"WHEN {failed} THEN {value_sql(term, numbers)}")
        if plain:
            sieve_without_nulls.append(term.sql)
            if drops_null(term.columns[0], null):
                sieve.append(term.sql)
    conditions = len(cases)
    if has_url:
        missing, wrong = reasons.code(Reason.MISSING_URL), reasons.code(Reason.MALFORMED_URL)
        blank = f"CASE WHEN trim(url, {_SPACES}) = '' THEN {missing} ELSE {wrong} END"
        cases.append(f"WHEN url IS NULL THEN {missing}")
        odd = f"NOT regexp_matches(url, {quote_text(_LINK)})"
        cases.append(f"WHEN CASE WHEN {_USUAL} THEN false ELSE {odd} END THEN {blank}")
    if similarity_limit is not None:
        shifted = reasons.code(Reason.MALFORMED_ROW)
        cases.append(f"WHEN abs(similarity) > {similarity_limit} THEN {shifted}")
        values.append(f"WHEN {shifted} THEN 'similarity=' || similarity::VARCHAR")
    for column, reason in ((BLOCKED, Reason.BLOCKLISTED), (OPTED_OUT, Reason.OPT_OUT_LIST)):
        if column in lists:
            code = reasons.code(reason)
            cases.append(f"WHEN {column} IS NOT NULL THEN {code}")
            values.append(f"WHEN {code} THEN {column}")
    if sample is not None:
        share, seed = sample
        link = "url" if has_url else "path"
        drawn = (
            f"md5_number_lower({quote_text(f'{seed}:')} || {link})::DOUBLE / 18446744073709551616"
        )
        cases.append(f"WHEN {drawn} >= {share!r} THEN {reasons.code(Reason.NOT_SAMPLED)}")
    past_null = " OR ".join(f"({sql})" for sql in kept_null.values())
    met = f"CASE WHEN {past_null} THEN {PAST_NULL} ELSE 0 END" if past_null else "0"
    return Verdict(
        _case(cases),
        _case(cases, met),
        _case(cases[:conditions]),
        _case(cases[:conditions], met),
        _case(cases[conditions:]),
        f"CASE {CODE} {' '.join(values)} END" if values else "NULL",
        kept_null,
        " AND ".join(sieve) or "true",
        " AND ".join(sieve_without_nulls) or "true",
    )


def _case(whens: Sequence[str], otherwise: str = "0") -> str:
    return f"CASE {' '.join(whens)} ELSE {otherwise} END" if whens else "0"


def drops_null(column: str, null: str) -> bool:
    """Whether a null in this column drops a row that a filter asks about it."""
    if null != "auto":
        return null == "drop"
    lower = column.lower()
    return lower in _SAFETY_COLUMNS or any(mark in lower for mark in _SAFETY_MARKS)
