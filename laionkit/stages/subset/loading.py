"""``laionkit.load``: a subset as a stream of training samples, the same for shards and views."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

import pyarrow.parquet as pq

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.schemas import SUBSETS
from laionkit.core.tars import Member, read_contents, read_member
from laionkit.stages.subset.layout import KEPT_FILE, SUBSET_FILE, VIEW_FILE, find_record
from laionkit.stages.subset.pictures import VIEW_COLUMNS, Pictures

if TYPE_CHECKING:
    from laionkit.backends.sample_stream import Sample, SamplePipeline

DEFAULT_SHUFFLE = 10_000
_COPY_BYTES = 16 << 20


def load(
    dataset: str, subset: str, *, shuffle: int = DEFAULT_SHUFFLE, seed: int = 0
) -> "SamplePipeline":
    """Stream a subset's samples: ``load(d, s).decode("pil").to_tuple("jpg", "txt")``.

    Samples are webdataset's: ``__key__``, and the bytes of ``jpg`` (or png, webp), ``txt`` and
    ``json``. An epoch is over when the iteration ends; over all nodes (RANK, WORLD_SIZE) and
    loader workers it holds each sample once. `shuffle` is the buffer's size, 0 for none. Raises
    InputError where there is no such subset, or one without pictures.
    """
    from laionkit.backends.sample_stream import SamplePipeline, SampleStream

    record = find_record(Folder(dataset), subset)
    base = f"{SUBSETS}/{subset}"
    dataset_folder = Folder(dataset)
    if "view" in record.files:
        rows, _ = _row_groups(dataset_folder, f"{base}/{VIEW_FILE}")
        views = [ViewShard(dataset, subset, group, count) for group, count in enumerate(rows)]
        return SamplePipeline(SampleStream(views, shuffle=shuffle, seed=seed))
    rows, columns = _row_groups(dataset_folder, f"{base}/{KEPT_FILE}")
    if SUBSET_FILE in columns:
        parts = [FilesShard(dataset, base, group, count) for group, count in enumerate(rows)]
        return SamplePipeline(SampleStream(parts, shuffle=shuffle, seed=seed))
    if "sizes" not in record.files:
        raise InputError(f"subset {subset} of {dataset} is a list of links: it has no pictures")
    sizes = dataset_folder.read_json(f"{base}/sizes.json")
    tars = [TarShard(dataset, f"{base}/{name}", count) for name, count in sizes.items()]
    return SamplePipeline(SampleStream(tars, shuffle=shuffle, seed=seed))


def _row_groups(dataset: Folder, name: str) -> tuple[list[int], list[str]]:
    """Rows of each row group of a parquet file, and its columns."""
    with dataset.open(name) as file:
        found = pq.ParquetFile(file)
        groups = range(found.num_row_groups)
        return [found.metadata.row_group(i).num_rows for i in groups], found.schema_arrow.names


@dataclass(frozen=True)
class TarShard:
    """A tar of samples below a dataset."""

    dataset: str
    path: str
    rows: int

    def open(self) -> "_OpenTar":
        """Open it and read its table of contents."""
        return _OpenTar(Folder(self.dataset), self.path)


class _OpenTar:
    def __init__(self, dataset: Folder, path: str) -> None:
        self._url = dataset.at(path)
        # Elsewhere a tar is fetched by one request, since each of its samples is read once.
        self._file: BinaryIO = dataset.open(path) if dataset.is_local else _fetched(dataset, path)
        samples = read_contents(self._file).samples
        # In the order of the export, which a shuffled subset's keys do not tell.
        self._samples: list[tuple[str, dict[str, Member]]] = sorted(
            samples.items(),
            key=lambda sample: min((m.offset for m in sample[1].values()), default=0),
        )

    def read(self, rows: Sequence[int]) -> list["Sample"]:
        return [self._sample(*self._samples[row]) for row in rows]

    def _sample(self, key: str, members: Mapping[str, Member]) -> "Sample":
        parts = {name: read_member(self._file, member) for name, member in members.items()}
        return {"__key__": key, "__url__": self._url, **parts}

    def close(self) -> None:
        self._file.close()


def _fetched(dataset: Folder, path: str) -> BinaryIO:
    """A file of an object store as a temporary local one."""
    file = tempfile.TemporaryFile(prefix="laionkit-")  # noqa: SIM115 (its reader closes it)
    with dataset.open(path) as source:
        shutil.copyfileobj(source, file, _COPY_BYTES)
    file.seek(0)
    return cast(BinaryIO, file)


@dataclass(frozen=True)
class ViewShard:
    """A row group of a view: samples whose pictures lie in the dataset's own tars."""

    dataset: str
    subset: str
    group: int
    rows: int

    def open(self) -> "_OpenView":
        """Open it."""
        return _OpenView(Folder(self.dataset), f"{SUBSETS}/{self.subset}/{VIEW_FILE}", self.group)


class _OpenView:
    def __init__(self, dataset: Folder, path: str, group: int) -> None:
        self._url = f"{dataset.at(path)}#{group}"
        self._pictures = Pictures(dataset)
        with dataset.open(path) as file:
            rows = pq.ParquetFile(file).read_row_group(group)
        self._cells = [rows.column(name).to_pylist() for name in VIEW_COLUMNS]

    def read(self, rows: Sequence[int]) -> list["Sample"]:
        keys, shards, extensions, offsets, sizes, texts, lines = (
            [cells[row] for row in rows] for cells in self._cells
        )
        images = self._pictures.read_all(list(zip(shards, offsets, sizes, strict=True)))
        return [
            {
                "__key__": key,
                "__url__": self._url,
                extension: image,
                "txt": text.encode(),
                "json": line.encode(),
            }
            for key, extension, image, text, line in zip(
                keys, extensions, images, texts, lines, strict=True
            )
        ]

    def close(self) -> None:
        self._pictures.close()


@dataclass(frozen=True)
class FilesShard:
    """A row group of a subset of single files."""

    dataset: str
    base: str
    group: int
    rows: int

    def open(self) -> "_OpenFiles":
        """Open it."""
        return _OpenFiles(Folder(self.dataset).folder(self.base), self.group)


class _OpenFiles:
    def __init__(self, folder: Folder, group: int) -> None:
        self._folder = folder
        with folder.open(KEPT_FILE) as file:
            rows = pq.ParquetFile(file).read_row_group(group, columns=["key", SUBSET_FILE])
        self._keys, self._names = (column.to_pylist() for column in rows.columns)

    def read(self, rows: Sequence[int]) -> list["Sample"]:
        return [self._sample(row) for row in rows]

    def _sample(self, row: int) -> "Sample":
        name = self._names[row]
        base, _, extension = name.rpartition(".")
        members = {extension: name, "txt": f"{base}.txt", "json": f"{base}.json"}
        parts = {member: self._folder.read_bytes(path) for member, path in members.items()}
        return {"__key__": self._keys[row], "__url__": self._folder.at(name), **parts}

    def close(self) -> None:
        """Nothing stays open."""
