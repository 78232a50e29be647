"""`--retry`: which rows of finished shards are tried again, and into which new shards they go."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.config import fingerprint
from laionkit.core.files import Folder
from laionkit.core.keys import KeyScheme
from laionkit.core.progress import Counts
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.runner import Task
from laionkit.core.schemas import EXTRA_FETCHED_COLUMNS, FETCHED_COLUMNS, SHARDS, Reason

HEALED = "healed"
_HEALING = [str(reason) for reason in Reason if reason.may_heal]


@dataclass(frozen=True)
class Slice:
    """Rows of one finished shard: the table that holds them, and which."""

    table: str
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class RetryPlan:
    """New shard → the rows it tries again."""

    shards: dict[str, list[Slice]] = field(default_factory=dict)

    def tasks(self) -> list[Task]:
        """One task a new shard."""
        return [
            Task(
                name,
                {"retry": fingerprint({s.table: s.rows.tolist() for s in slices})},
                sum(len(s.rows) for s in slices),
            )
            for name, slices in self.shards.items()
        ]

    def read(self, dataset: Folder, name: str) -> tuple[pa.Table, list[str]]:
        """The rows of a new shard as metadata wrote them, in key order, and their old reasons."""
        found = {*FETCHED_COLUMNS, *EXTRA_FETCHED_COLUMNS} - {"key", "reason"}
        tables = []
        for part in self.shards[name]:
            table = dataset.read_table(part.table)
            carried = [column for column in table.column_names if column not in found]
            tables.append(table.select(carried).take(pa.array(part.rows)))
        rows = pa.concat_tables(tables, promote_options="default").sort_by("key")
        return rows.drop_columns(["reason"]), rows.column("reason").to_pylist()


def plan_retry(
    dataset: Folder, scheme: KeyScheme, taken: Iterable[str], is_mine: Callable[[str], bool]
) -> RetryPlan:
    """Plan to try again what may heal and has not healed yet, of this machine's part.

    New shards are numbered after the highest one in use, `taken` among them.
    """
    records = list(StageRecords(dataset, "fetch").all())
    healed = pa.chunked_array(
        [_keys(dataset, record) for record in records if HEALED in record.extra], pa.string()
    )
    parts = [
        Slice(record.files["table"].path, rows)
        for record in records
        if HEALED not in record.extra and "metadata" in record.inputs and is_mine(record.shard)
        if len(rows := _failed_rows(dataset, record, healed))
    ]
    numbers = _free_numbers(dataset, {*taken, *(r.shard for r in records)}, scheme, is_mine)
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


def _keys(dataset: Folder, record: ShardRecord) -> pa.Array:
    return dataset.read_table(record.files["table"].path, ["key"]).column("key").combine_chunks()


def _failed_rows(
    dataset: Folder, record: ShardRecord, healed: pa.ChunkedArray
) -> NDArray[np.int64]:
    if not any(record.counts.reasons.get(reason) for reason in _HEALING):
        return np.empty(0, np.int64)
    import pyarrow.compute as pc  # each worker process would take 50 ms to load it for nothing

    table = dataset.read_table(record.files["table"].path, ["key", "reason"])
    failed = pc.is_in(table.column("reason"), value_set=pa.array(_HEALING))
    again = pc.is_in(table.column("key"), value_set=healed.combine_chunks())
    wanted = pc.and_(failed, pc.invert(again))
    return np.flatnonzero(wanted.to_numpy()).astype(np.int64)


def _packed(parts: list[Slice], size: int) -> Iterator[list[Slice]]:
    """Pack rows of many shards into shards of at most `size` rows, in order."""
    pack: list[Slice] = []
    room = size
    for part in parts:
        rows = part.rows
        while len(rows):
            pack.append(Slice(part.table, rows[:room]))
            rows, room = rows[room:], room - min(room, len(rows))
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
