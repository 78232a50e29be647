"""A folder of pictures as a source table: path, caption and the files' state, sorted by path.

The caption is that of the sidecar beside the picture (``cat.txt``, else ``caption`` in
``cat.json``), else what the picture itself carries (IPTC, XMP, EXIF), else null. The pictures stay
where they are.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from laionkit.backends.line_tables import load_json
from laionkit.backends.picture_captions import decode_text, embedded_caption
from laionkit.backends.source_tables import HEAD_ROWS, Batch, Sift
from laionkit.backends.sources import PICTURES, PictureFolder, SourceFile
from laionkit.core.errors import InputError

PICTURES_PER_BATCH = 5_000
MAX_SIDECAR_BYTES = 1 << 20
REMOTE_READERS = 16
HEADER_BYTES = 64 << 10
_SIDECARS = (".txt", ".json")
_CAPTION_KEYS = ("caption", "text", "txt", "alt", "description", "title", "prompt")
_SCHEMA = pa.schema([("path", pa.string()), ("caption", pa.string()), ("path_stamp", pa.string())])


@dataclass(frozen=True, slots=True)
class _Picture:
    """One picture: its path, its size, its sidecar's ending, the state of both."""

    path: str
    size: int
    sidecar: str
    stamp: str


class PictureTable:
    """The pictures below a folder, with their captions."""

    def __init__(self, folder: PictureFolder) -> None:
        """List the folder."""
        self.folder, self.name = folder, folder.name
        self.schema = _SCHEMA
        self._pictures = sorted(self._list(), key=lambda picture: picture.path)
        self.total: int | None = len(self._pictures)

    def states(self) -> pa.Table:
        """Each picture's path, and size and time of change (its sidecar's too).

        A path that is no text stands as Python's ``ascii`` writes it.
        """
        paths = pa.array((_as_text(self._name(p)) for p in self._pictures), pa.string())
        stamps = pa.array((p.stamp for p in self._pictures), pa.string())
        return pa.table({"path": paths, "path_stamp": stamps})

    def take(self, wanted_N: np.ndarray) -> None:
        """Keep only these pictures, a bool each."""
        self._pictures = [self._pictures[i] for i in np.flatnonzero(wanted_N)]
        self.total = len(self._pictures)

    def head(self) -> pa.Table:
        """The first rows."""
        return self._batch(0, HEAD_ROWS).table

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every picture, in the order of paths."""
        for start in range(0, len(self._pictures), PICTURES_PER_BATCH):
            batch = self._batch(start, PICTURES_PER_BATCH)
            yield Batch(batch.table.select(list(columns)), batch.rows, batch.bad)

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Nothing is known before all is read."""
        return {}

    def _list(self) -> Iterator[_Picture]:
        """Folder by folder, so that no more than one folder's listing is held beside them."""
        for path, folders, files in self.folder.fs.walk(self.folder.path, detail=True):
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            stamps = {name: _stamp(info) for name, info in files.items()}
            for name, info in files.items():
                stem, _, suffix = name.rpartition(".")
                if suffix.lower() not in PICTURES or name.startswith("."):
                    continue
                sidecar = next((end for end in _SIDECARS if stem + end in stamps), "")
                stamp = stamps[name] + (f"+{stamps[stem + sidecar]}" if sidecar else "")
                yield _Picture(f"{path}/{name}", int(info.get("size") or 0), sidecar, stamp)

    def _batch(self, start: int, count: int) -> Batch:
        pictures = self._pictures[start : start + count]
        if _is_local(self.folder.fs):
            found = [self._caption(picture) for picture in pictures]
        else:
            with ThreadPoolExecutor(REMOTE_READERS) as pool:
                found = list(pool.map(self._caption, pictures))
        good = [i for i, (_, wrong) in enumerate(found) if not wrong]
        bad = [(start + i, wrong) for i, (_, wrong) in enumerate(found) if wrong]
        columns = [
            [self._name(pictures[i]) for i in good],
            [found[i][0] for i in good],
            [pictures[i].stamp for i in good],
        ]
        arrays = [pa.array(column, pa.string()) for column in columns]
        rows = np.array(good, np.int64) + start
        return Batch(pa.table(arrays, schema=_SCHEMA), rows, tuple(bad))

    def _caption(self, picture: _Picture) -> tuple[str | None, str]:
        """A picture's caption; or why there can be no row for it."""
        try:
            picture.path.encode()
        except UnicodeEncodeError:
            return None, f"{picture.path!a}: its name is not UTF-8: rename it"
        stem = picture.path.rpartition(".")[0]
        if picture.sidecar == ".txt":
            return decode_text(self._read(f"{stem}.txt")).replace("\0", "").strip() or None, ""
        if picture.sidecar == ".json":
            try:
                caption = _json_caption(self._read(f"{stem}.json"))
            except (ValueError, RecursionError) as error:
                return None, f"{stem}.json is not valid JSON: {error}"[:200]
            if caption is not None:
                return caption, ""
        return self._embedded(picture), ""

    def _embedded(self, picture: _Picture) -> str | None:
        file = SourceFile(
            picture.path, self.folder.fs, picture.path, "picture", None, picture.size, picture.stamp
        )
        try:
            with file.open_raw(HEADER_BYTES) as raw:
                return embedded_caption(raw)
        except InputError:  # whoever decodes the picture will say that it cannot be read
            return None

    def _read(self, path: str) -> bytes:
        try:
            data: bytes = self.folder.fs.cat_file(path, start=0, end=MAX_SIDECAR_BYTES)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
        return data

    def _name(self, picture: _Picture) -> str:
        fs = self.folder.fs
        return picture.path if _is_local(fs) else str(fs.unstrip_protocol(picture.path))


def _as_text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return ascii(path)
    return path


def _json_caption(data: bytes) -> str | None:
    value = load_json(data)
    if not isinstance(value, dict):
        return None
    return next((value[k] for k in _CAPTION_KEYS if isinstance(value.get(k), str)), None)


def _stamp(info: dict[str, Any]) -> str:
    return f"{info.get('size')}:{info.get('mtime') or info.get('ETag') or ''}"


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
