"""`--retry`: which rows of finished shards are tried again, and into which new shards they go."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import pyarrow as pa

from laionkit.core.config import fingerprint
from laionkit.core.files import Folder
from laionkit.core.keys import KeyScheme
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Task
from laionkit.core.schemas import EXTRA_FETCHED_COLUMNS, FETCHED_COLUMNS, SHARDS, Reason

# What the record of a new shard says: how many rows healed, and of which shards' they are.
HEALED, HEALED_OF = "healed", "healed_of"
_SHARD = "__laionkit_shard"
_HEALING = [str(reason) for reason in Reason if reason.may_heal]


@dataclass(frozen=True)
class Slice:
    """Some of a finished shard's rows that may heal: `count` of them from the `first`-th on.

    They are those of `table` lost for a reason that may heal, less those whose key is in one of
    the tables `healed`, in order.
    """

    shard: str
    table: str
    healed: tuple[str, ...]
    first: int
    count: int


@dataclass(frozen=True)
class Earlier:
    """Of rows tried again: what each was lost for, and the shard that says so."""

    reasons: list[str]
    shards: list[str]


@dataclass(frozen=True)
class RetryPlan:
    """New shard → the rows it tries again."""

    shards: dict[str, list[Slice]] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """One task a new shard."""
        return [
            Task(
                name,
                {"retry": fingerprint({s.table: [s.healed, s.first, s.count] for s in slices})},
                sum(s.count for s in slices),
            )
            for name, slices in self.shards.items()
        ]

    def read(self, dataset: Folder, name: str) -> tuple[pa.Table, Earlier]:
        """The rows of a new shard as metadata wrote them, in key order, and what they were."""
        found = {*FETCHED_COLUMNS, *EXTRA_FETCHED_COLUMNS} - {"key", "reason"}
        tables = []
        for part in self.shards[name]:
            rows = _failed_rows(dataset, part)
            carried = [column for column in rows.column_names if column not in found]
            shard = pa.array([part.shard] * len(rows), pa.string())
            tables.append(rows.select(carried).append_column(_SHARD, shard))
        rows = pa.concat_tables(tables, promote_options="default").sort_by("key")
        earlier = Earlier(rows.column("reason").to_pylist(), rows.column(_SHARD).to_pylist())
        return rows.drop_columns(["reason", _SHARD]), earlier


def plan_retry(
    dataset: Folder, scheme: KeyScheme, taken: Iterable[str], is_mine: Callable[[str], bool]
) -> RetryPlan:
    """Plan to try again what may heal and has not healed yet, of this machine's part.

    Only records are read: a few numbers a shard are held, whatever it lost. New shards are numbered
    after the highest one in use, `taken` among them.
    """
    used = set(taken)
    failed: dict[str, tuple[str, int]] = {}
    healed: dict[str, list[tuple[str, int]]] = {}
    for record in StageRecords(dataset, "fetch").all():
        used.add(record.shard)
        table = record.files["table"].path
        if HEALED in record.extra:
            for shard, count in record.extra.get(HEALED_OF, {}).items():
                healed.setdefault(shard, []).append((table, count))
        elif "metadata" in record.inputs and is_mine(record.shard):
            lost = sum(record.counts.reasons.get(reason, 0) for reason in _HEALING)
            failed[record.shard] = table, lost
    parts = []
    for shard, (table, lost) in failed.items():
        later = healed.get(shard, [])
        left = lost - sum(count for _, count in later)
        if left > 0:
            parts.append(Slice(shard, table, tuple(path for path, _ in later), 0, left))
    numbers = _free_numbers(dataset, used, scheme, is_mine)
    return RetryPlan({next(numbers): slices for slices in _packed(parts, scheme.shard_size)})


def drop_empty(dataset: Folder, plan: RetryPlan) -> Counts:
    """Take back new shards into which nothing healed; return what became of all tried rows."""
    records, tried = StageRecords(dataset, "fetch"), Counts()
    there = set(records.names())
    for name in there & set(plan.shards):
        record = records.read(name)
        tried = tried + Counts.of(record.counts.ok, record.extra["still_lost"])
        if not record.counts.ok:
            records.folder.remove(f"{name}.json")
            for entry in record.files.values():
                dataset.remove(entry.path)
    return tried


def _failed_rows(dataset: Folder, part: Slice) -> pa.Table:
    """The rows that a slice names."""
    import pyarrow.compute as pc  # each worker process would take 50 ms to load it for nothing

    rows = dataset.read_table(part.table)
    rows = rows.filter(pc.is_in(rows.column("reason"), value_set=pa.array(_HEALING)))
    for path in part.healed:
        keys = dataset.read_table(path, ["key"]).column("key").combine_chunks()
        rows = rows.filter(pc.invert(pc.is_in(rows.column("key"), value_set=keys)))
    return rows.slice(part.first, part.count)


def _packed(parts: list[Slice], size: int) -> Iterator[list[Slice]]:
    """Pack rows of many shards into shards of at most `size` rows, in order."""
    pack: list[Slice] = []
    room = size
    for part in parts:
        first = 0
        while first < part.count:
            count = min(room, part.count - first)
            pack.append(replace(part, first=first, count=count))
            first, room = first + count, room - count
            if not room:
                yield pack
                pack, room = [], size
    if pack:
        yield pack


def _free_numbers(
    dataset: Folder, taken: set[str], scheme: KeyScheme, is_mine: Callable[[str], bool]
) -> Iterator[str]:
    files = {name.removesuffix(".tar") for name in dataset.names(SHARDS, ".tar")}
    number = max((int(name) for name in taken | files if name.isdigit()), default=-1)
    while True:
        number += 1
        if is_mine(name := scheme.shard_name(number)):
            yield name
