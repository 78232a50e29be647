"""What is to be done for a subset, checked against the columns there are before any work."""

from dataclasses import dataclass

from laionkit.core.errors import ConfigError
from laionkit.core.table import DatasetTable
from laionkit.ops.predicates import Term, parse_where
from laionkit.ops.presets import Preset, choose_preset
from laionkit.stages.subset import steps
from laionkit.stages.subset.balance import check_groups
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.layout import find_record


@dataclass(frozen=True)
class Plan:
    """The conditions in order, the shares to keep as (column, share), the preset they come from."""

    terms: tuple[Term, ...]
    tops: tuple[tuple[str, float], ...]
    preset: Preset | None

    def notes(self, table: DatasetTable) -> tuple[str, ...]:
        """What a user should know of how it was understood."""
        if self.preset is None:
            return ()
        used = ", ".join(f"{name} ({table.origins[name]})" for name in self.preset.used)
        return (f"preset {self.preset.name} read {used}",)

    def needs_rows(self, config: SubsetConfig) -> bool:
        """Whether a step looks at more than one row, so that counting is not enough."""
        return bool(
            self.tops
            or config.any_of
            or config.all_of
            or config.none_of
            or config.keys
            or config.query
            or config.queries
            or config.decontaminate
            or config.dedup
            or config.top
            or config.top_share
            or config.cap
            or config.balance
        )


def make_plan(table: DatasetTable, config: SubsetConfig) -> Plan:
    """Check every step. Raises ConfigError, InputError where one cannot be done."""
    terms: list[Term] = []
    tops: list[tuple[str, float]] = []
    preset = None
    if config.preset:
        preset = choose_preset(config.preset, table.columns, config.language)
        for step in preset.steps:
            if step.top is None:
                terms += parse_where(step.condition, table.columns).terms
            else:
                tops.append((step.column, step.top))
    if config.where.strip():
        terms += parse_where(config.where, table.columns).terms
    for term in terms:
        table.check(term.sql)
    if config.reshapes and config.as_ in ("view", "parquet"):
        raise ConfigError(
            f"as={config.as_} copies no pictures, so none can be resized or re-encoded: use --as "
            "shards or --as files"
        )
    if config.caption not in table.columns and config.as_ in ("shards", "files"):
        raise ConfigError(
            f"caption={config.caption!r} is no column; there are {', '.join(table.columns)}"
        )
    _check_columns(table, config)
    return Plan(tuple(terms), tuple(tops), preset)


def _check_columns(table: DatasetTable, config: SubsetConfig) -> None:
    """Refuse names that are no columns or subsets before any work."""
    if config.by:
        steps.check_score(table, config.by, "by")
    if config.dedup:
        steps.keep_rule(table, config.dedup_keep)
    check_groups(table, config)
    for name in (*config.any_of, *config.all_of, *config.none_of):
        find_record(table.folder, name)
    if config.name in (*config.any_of, *config.all_of, *config.none_of):
        raise ConfigError(f"name={config.name!r}: a subset cannot be made of itself")
