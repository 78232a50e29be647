"""Writing a subset: tars with the pictures' own bytes, or the list of where they lie."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.errors import InputError
from laionkit.core.files import Folder, Written
from laionkit.core.shards import ShardWriter, image_member, list_shards, read_contents
from laionkit.ops.predicates import quote_name, quote_text
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.selection import Selection

PLACE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
    ]
)
PLACE_COLUMNS = ("image_ext", "image_offset", "image_size")
SUBSET_SHARD = "subset_shard"
MAX_OPEN_TARS = 64
ROWS_PER_GROUP = 10_000


def locate(selection: Selection, dataset: Folder) -> None:
    """Find where each picture that stays lies in its tar; drop what its tar does not hold.

    Raises InputError where a tar is not the one that was recorded.
    """
    refs = {ref.name: ref for ref in list_shards(dataset)}
    for shard in selection.shards():
        ref = refs[shard]
        with dataset.open(ref.tar) as file:
            contents = read_contents(file)
        found = [(key, image_member(members)) for key, members in contents.samples.items()]
        there = [(key, *image) for key, image in found if image]
        places = pa.table(
            [
                pa.array([key for key, _, _ in there], pa.string()),
                pa.array([extension for _, extension, _ in there], pa.string()),
                pa.array([member.offset for _, _, member in there], pa.int64()),
                pa.array([member.size for _, _, member in there], pa.int64()),
            ],
            schema=PLACE_SCHEMA,
        )
        selection.table.insert("places_of_shard", places)
        _take_places(selection, shard, contents.damage)


def _take_places(selection: Selection, shard: str, damage: str) -> None:
    table, named = selection.table, quote_text(shard)
    table.execute("CREATE TEMP TABLE IF NOT EXISTS places AS SELECT * FROM places_of_shard LIMIT 0")
    table.execute(
        "INSERT INTO places SELECT p.* FROM places_of_shard p SEMI JOIN (SELECT key FROM judged "
        f"WHERE code = 0 AND shard = {named}) j ON p.key = j.key"
    )
    lost = table.arrow(
        f"SELECT key, {quote_text(damage)} AS value FROM judged WHERE code = 0 AND shard = {named} "
        "AND key NOT IN (SELECT key FROM places_of_shard)"
    )
    table.execute("DELETE FROM places_of_shard")
    if lost.num_rows:
        reason = "corrupt_tar" if damage else "member_missing"
        selection.drop("picture in its tar", reason, lost)


@dataclass
class Export:
    """What was written: each file under its role, samples per tar, rows in all."""

    files: dict[str, Written] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    rows: int = 0


def write_kept(
    selection: Selection, dataset: Folder, folder: Folder, config: SubsetConfig
) -> Export:
    """Write kept.parquet, and the tars where the form is shards, in one pass over what stays.

    Rows of kept.parquet stand in the order of the export; one row group is one shard.
    """
    done = Export()
    pictures = config.as_ != "parquet"
    copied = config.as_ == "shards"
    size = config.samples_per_shard if pictures else ROWS_PER_GROUP
    rows = selection.table.batches(_export_sql(selection, config, pictures, copied), size)
    reader = _Pictures(dataset)
    with folder.create("kept.parquet") as file, contextlib.closing(reader):
        writer: pq.ParquetWriter | None = None
        for number, chunk in enumerate(_chunks(rows, size)):
            name = f"{number:05d}"
            if copied:
                done.files[f"tar-{name}"] = _write_tar(folder, name, chunk, reader, config)
                done.sizes[f"{name}.tar"] = chunk.num_rows
            kept = _kept_rows(chunk, name if pictures else None, places=config.as_ == "view")
            writer = writer or pq.ParquetWriter(file, kept.schema, compression="zstd")
            writer.write_table(kept, row_group_size=size)
            done.rows += chunk.num_rows
        if writer is not None:
            writer.close()
    done.files["kept"] = Written("kept.parquet", file.size, file.digest.hexdigest())
    return done


def write_dropped(selection: Selection, folder: Folder) -> Written:
    """Write dropped.parquet: key, reason, value of every sample that does not stay."""
    schema = pa.schema([("key", pa.string()), ("reason", pa.string()), ("value", pa.string())])
    with (
        folder.create("dropped.parquet") as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for batch in selection.dropped():
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
    return Written("dropped.parquet", file.size, file.digest.hexdigest())


def _export_sql(selection: Selection, config: SubsetConfig, pictures: bool, copied: bool) -> str:
    """All columns of what stays, in the order of the export, with what a tar needs beside them."""
    table = selection.table
    extra, joins = "", ""
    if pictures:
        extra += "".join(f", p.{name}" for name in PLACE_COLUMNS)
        joins += " JOIN places p ON p.key = j.key"
    if copied:
        caption = f"s.{quote_name(config.caption)}"
        extra += f", coalesce({caption}::VARCHAR, '') AS laionkit_txt"
        extra += f", {_json_sql(table.columns)} AS laionkit_json"
    order = "j.key"
    if config.shuffle_seed is not None:
        order = f"md5('{config.shuffle_seed}:' || j.key), j.key"
    return (
        f"SELECT s.*{extra} FROM judged j JOIN ({table.select()}) s ON s.key = j.key{joins} "
        f"WHERE j.code = 0 ORDER BY {order}"
    )


def _json_sql(columns: Mapping[str, str]) -> str:
    """SQL of KEY.json: every column under its name; what JSON has no number for is null."""
    parts = []
    for name, kind in columns.items():
        cell = f"s.{quote_name(name)}"
        if kind in ("FLOAT", "DOUBLE"):
            cell = f"CASE WHEN isfinite({cell}) THEN {cell} END"
        elif kind == '"NULL"':
            cell = "NULL::VARCHAR"
        parts.append(f"{quote_name(name)} := {cell}")
    return f"to_json(struct_pack({', '.join(parts)}))::VARCHAR"


def _chunks(batches: Iterator[Any], size: int) -> Iterator[pa.Table]:
    """Cut a stream of batches into tables of `size` rows, the last one shorter."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= size:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, size)
            rest = table.slice(size)
            waiting, rows = rest.to_batches(), rest.num_rows
    if rows:
        yield pa.Table.from_batches(waiting)


def _kept_rows(chunk: pa.Table, shard: str | None, *, places: bool) -> pa.Table:
    """The rows of kept.parquet of one chunk: the dataset's columns, and where the sample went."""
    drop = ["laionkit_txt", "laionkit_json", *(() if places else PLACE_COLUMNS)]
    kept = chunk.drop_columns([name for name in drop if name in chunk.column_names])
    if shard is not None:
        kept = kept.append_column(SUBSET_SHARD, pa.array([shard] * len(kept), pa.string()))
    return kept.combine_chunks()


def _write_tar(folder: Folder, name: str, chunk: pa.Table, pictures: "_Pictures",
               config: SubsetConfig) -> Written:  # fmt: skip
    names = ("key", "shard", *PLACE_COLUMNS, "laionkit_txt", "laionkit_json")
    cells = [chunk.column(column).to_pylist() for column in names]
    ordered = config.shuffle_seed is None
    with folder.create(f"{name}.tar") as file, ShardWriter(file, ordered=ordered) as tar:
        for key, shard, extension, offset, size, text, line in zip(*cells, strict=True):
            image = pictures.read(shard, offset, size)
            tar.add(key, {extension: image, "txt": text.encode(), "json": line.encode()})
    return Written(f"{name}.tar", file.size, file.digest.hexdigest())


class _Pictures:
    """Reads pictures out of the dataset's tars, of which it holds the last few open."""

    def __init__(self, dataset: Folder) -> None:
        self._dataset = dataset
        self._refs = {ref.name: ref for ref in list_shards(dataset)}
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """The bytes of one picture. Raises InputError where the tar is shorter than it was."""
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = self._dataset.open(self._refs[shard].tar)
            if len(self._open) > MAX_OPEN_TARS:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise InputError(f"{self._refs[shard].tar} ended early: it changed while it was read")
        return data

    def close(self) -> None:
        """Close every tar."""
        for file in self._open.values():
            file.close()
