"""Folders of pictures read again: what is new or has changed is taken, the rest stays as it is.

Each run writes down what it took, in ``.laionkit/metadata/pictures-RUN.parquet``: path, and the
size and time of change of the file and its sidecar. A picture that changed gets a row with a key
of its own in a new shard; its earlier key goes to ``superseded-RUN.parquet`` there, and no later
stage shows it any more. What was taken down stays so, however often its file changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.compute as pc

from laionkit.core.files import Folder
from laionkit.core.forgotten import SUPERSEDED, read_superseded, read_takedowns
from laionkit.core.schemas import METADATA, RECORDS
from laionkit.core.worklist import WorkList
from laionkit.stages.metadata.plan import Plan

if TYPE_CHECKING:
    from laionkit.backends.picture_folders import PictureTable

_PLACE = f"{RECORDS}/{METADATA}"
_PICTURES = "pictures"
_STATES = pa.schema([("path", pa.string()), ("path_stamp", pa.string())])


@dataclass(frozen=True)
class Changes:
    """How the pictures of some folders differ from what earlier runs took.

    `states` are path and state of what is taken now, `superseded` the keys it stands for.
    """

    states: pa.Table
    superseded: pa.Table
    unchanged: int = 0
    new: int = 0
    changed: int = 0
    taken_down: int = 0
    gone: int = 0

    @property
    def any(self) -> bool:
        """Whether there is a picture to take."""
        return self.new + self.changed > 0

    def note(self) -> str:
        """What a rerun found, in one line; nothing of a first run."""
        if not self.unchanged + self.changed + self.taken_down + self.gone:
            return ""
        said = [
            f"pictures: {self.unchanged:,} unchanged, {self.new:,} new, {self.changed:,} changed"
        ]
        if len(self.superseded):
            said.append("the rows they had before are superseded")
        if self.taken_down:
            said.append(f"{self.taken_down:,} changed ones were taken down before and stay so")
        if self.gone:
            said.append(
                f"{self.gone:,} are no longer in the folder; their rows stay (laionkit forget "
                "takes samples down)"
            )
        return "; ".join(said)

    def write(self, folder: Folder, run: int) -> None:
        """Write down what run number `run` took. Counts once its records are there."""
        for name, table in ((_PICTURES, self.states), (SUPERSEDED, self.superseded)):
            if len(table):
                folder.write_table(f"{_PLACE}/{name}-{run:05d}.parquet", table)


def look_again(folder: Folder, plan: Plan) -> Changes:
    """Compare the plan's pictures with what was taken before; leave what is new in its tables."""
    tables = cast("list[PictureTable]", [t for t in plan.tables if t.name in plan.pictures])
    seen = _seen(folder) if tables else _STATES.empty_table()
    states, unchanged = [_STATES.empty_table()], 0
    superseded, changed, down, gone = [], 0, 0, 0
    for table in tables:
        found = table.states()
        before = pc.index_in(found["path"], value_set=seen["path"])
        same = pc.equal(seen["path_stamp"].take(before), found["path_stamp"])
        fresh = pc.invert(pc.fill_null(same, False))
        known = found["path"].filter(pc.and_(fresh, pc.is_valid(before)))
        stays_down, keys = _earlier_keys(folder, known)
        superseded.append(keys)
        take = pc.and_(fresh, pc.invert(pc.is_in(found["path"], value_set=stays_down)))
        table.take(take.to_numpy())
        states.append(found.filter(fresh))
        unchanged += len(found) - len(states[-1])
        changed += len(known) - len(stays_down)
        down += len(stays_down)
        gone += _gone(seen["path"], found["path"], table.name)
    taken = pa.concat_tables(states)
    return Changes(
        states=taken,
        superseded=pa.table({"key": pa.chunked_array(superseded, pa.string())}),
        unchanged=unchanged,
        new=len(taken) - changed - down,
        changed=changed,
        taken_down=down,
        gone=gone,
    )


def forget_unfinished(folder: Folder, runs: set[int]) -> None:
    """Remove what was written down by runs other than these."""
    for name in folder.names(_PLACE, ".parquet"):
        if int(name.removesuffix(".parquet").rpartition("-")[2]) not in runs:
            folder.remove(f"{_PLACE}/{name}")


def _seen(folder: Folder) -> pa.Table:
    """Path and state of every picture taken before, the latest first."""
    names = [n for n in folder.names(_PLACE, ".parquet") if n.startswith(f"{_PICTURES}-")]
    tables = [folder.read_table(f"{_PLACE}/{name}") for name in reversed(names)]
    return pa.concat_tables([*tables, _STATES.empty_table()]).combine_chunks()


def _earlier_keys(folder: Folder, paths: pa.ChunkedArray) -> tuple[pa.Array, pa.ChunkedArray]:
    """Which of the paths were taken down, and the keys of the others that are not superseded."""
    none = pa.chunked_array([], pa.string())
    rows = pa.concat_tables(_rows_of(folder, paths)) if len(paths) else None
    if rows is None or not len(rows):
        return none.combine_chunks(), none
    is_down = pc.is_in(rows["key"], value_set=read_takedowns(folder).combine_chunks())
    down = pc.unique(rows["path"].filter(is_down))
    is_over = pc.is_in(rows["key"], value_set=read_superseded(folder).combine_chunks())
    is_live = pc.invert(pc.or_(is_over, pc.is_in(rows["path"], value_set=down)))
    return down, rows["key"].filter(is_live)


def _rows_of(folder: Folder, paths: pa.ChunkedArray) -> Iterator[pa.Table]:
    """Key and path of the work list's rows of some paths."""
    wanted = paths.combine_chunks()
    with WorkList.open(folder) as work:
        for shard in work.shards():
            rows = work.read(shard, ["key", "path"])
            if "path" in rows.column_names:
                yield rows.filter(pc.is_in(rows["path"], value_set=wanted))


def _gone(seen: pa.ChunkedArray, found: pa.ChunkedArray, name: str) -> int:
    """How many pictures below the folder `name` were taken before and are not there any more."""
    below = seen.filter(pc.starts_with(seen, f"{name.rstrip('/')}/"))
    return len(pc.unique(below.filter(pc.invert(pc.is_in(below, value_set=found)))))
