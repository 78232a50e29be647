"""Writing a subset: tars with the pictures' own bytes, or the list of where they lie."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.files import Folder, Written
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.copies import Part, file_name, write_copies
from laionkit.stages.subset.layout import (
    KEPT_FILE,
    SAMPLE_HASH,
    SUBSET_FILE,
    SUBSET_SHARD,
    VIEW_FILE,
    sample_hash,
)
from laionkit.stages.subset.ordered import ordered_rows
from laionkit.stages.subset.pictures import PLACE_COLUMNS, VIEW_COLUMNS, Pictures
from laionkit.stages.subset.selection import Selection

# Hashing and file access run outside Python's lock; more threads than this mostly wait for it.
WRITERS = 2
# Chunks read ahead of those that are written.
CHUNKS_AHEAD = 4
ROWS_PER_GROUP = 10_000


@dataclass
class Export:
    """What was written: each file under its role, samples per tar, rows in all."""

    files: dict[str, Written] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    extensions: set[str] = field(default_factory=set)
    lost: list[tuple[str, str]] = field(default_factory=list)


def write_kept(
    selection: Selection,
    dataset: Folder,
    folder: Folder,
    config: SubsetConfig,
    meanwhile: Callable[[], None],
) -> Export:
    """Write kept.parquet, and the tars or the view, in one pass over what stays.

    Rows stand in the order of the export; one row group is one shard. Each row has the hash of
    its sample: its JSON, its caption, its picture. `meanwhile` is called once the last rows are
    read: it has the engine to itself while the last tars are written.
    """
    done = Export()
    size = ROWS_PER_GROUP if config.as_ == "parquet" else config.samples_per_shard
    total = selection.counts().ok
    selection.progress.at("writing", 0, total, "samples")
    rows = ordered_rows(selection, config, size)
    with contextlib.ExitStack() as stack:
        readers: SimpleQueue[Pictures] = SimpleQueue()
        for _ in range(WRITERS):
            readers.put(stack.enter_context(contextlib.closing(Pictures(dataset))))
        kept = stack.enter_context(_Rows(folder, KEPT_FILE))
        view = stack.enter_context(_Rows(folder, VIEW_FILE)) if config.as_ == "view" else None
        made = _in_order(
            stack.enter_context(ThreadPoolExecutor(WRITERS)),
            lambda name, chunk: _write_part(readers, folder, name, chunk, config),
            _chunks(rows, size),
            meanwhile,
        )
        for name, part in made:
            if part.tar is not None:
                done.files[f"tar-{name}"] = part.tar
                done.sizes[part.tar.path] = part.rows.num_rows
                done.bytes += part.tar.size
            kept.write(_kept_rows(part, name, config.as_))
            if view:
                view.write(part.rows.select(list(VIEW_COLUMNS)))
            if config.as_ != "parquet":
                done.extensions.update(part.rows.column("image_ext").unique().to_pylist())
            done.rows += part.rows.num_rows
            done.lost += part.lost
            selection.progress.at("writing", done.rows, total, "samples")
    done.files["kept"] = kept.written()
    if view:
        done.files["view"] = view.written()
    return done


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[str, pa.Table], Part],
    chunks: Iterator[pa.Table],
    meanwhile: Callable[[], None],
) -> Iterator[tuple[str, Part]]:
    """Do the chunks a few at a time; yield each one's name and outcome, in order."""
    waiting: deque[tuple[str, Future[Part]]] = deque()
    for number, chunk in enumerate(chunks):
        name = f"{number:05d}"
        waiting.append((name, pool.submit(work, name, chunk)))
        if len(waiting) > WRITERS + CHUNKS_AHEAD:
            name, done = waiting.popleft()
            yield name, done.result()
    meanwhile()
    for name, done in waiting:
        yield name, done.result()


def _write_part(
    readers: "SimpleQueue[Pictures]",
    folder: Folder,
    name: str,
    chunk: pa.Table,
    config: SubsetConfig,
) -> Part:
    """Write one chunk in the form asked for; hash its samples."""
    pictures = readers.get()
    try:
        if config.as_ in ("shards", "files"):
            return write_copies(folder, name, chunk, pictures, config)
        return Part(chunk, list(_hashes(chunk, pictures, pictured=config.as_ == "view")))
    finally:
        readers.put(pictures)


class _Rows:
    """A parquet file that appears whole; each table written becomes one row group."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._name = name
        self._target = folder.create(name)
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "_Rows":
        self._file = self._target.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None and error[0] is None:
            self._writer.close()
        self._target.__exit__(*error)

    def write(self, table: pa.Table) -> None:
        """Write one row group."""
        self._writer = self._writer or pq.ParquetWriter(
            self._file, table.schema, compression="zstd"
        )
        self._writer.write_table(table.combine_chunks(), row_group_size=max(1, len(table)))

    def written(self) -> Written:
        """What was written, once it is closed."""
        return Written(self._name, self._file.size, self._file.digest.hexdigest())


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


def _kept_rows(part: Part, shard: str, form: str) -> pa.Table:
    """The rows of kept.parquet of one chunk: the dataset's columns, and where the sample went."""
    drop = ("laionkit_txt", "laionkit_json", *PLACE_COLUMNS)
    kept = part.rows.drop_columns([name for name in drop if name in part.rows.column_names])
    if form == "files":
        files = [file_name(*row) for row in _pairs(part.rows, "key", "image_ext")]
        kept = kept.append_column(SUBSET_FILE, pa.array(files, pa.string()))
    elif form != "parquet":
        kept = kept.append_column(SUBSET_SHARD, pa.array([shard] * len(kept), pa.string()))
    return kept.append_column(SAMPLE_HASH, pa.array(part.hashes, pa.string()))


def _pairs(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows.column(name).to_pylist() for name in names), strict=True)


def _hashes(chunk: pa.Table, pictures: "Pictures", *, pictured: bool) -> Iterator[str]:
    if pictured:
        for _, _, image, text, line in pictures.samples(chunk):
            yield sample_hash(line, text, image)
    else:
        for line in chunk.column("laionkit_json").to_pylist():
            yield sample_hash(line.encode(), b"", b"")
