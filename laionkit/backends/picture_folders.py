"""A folder of pictures as a source table: path, caption and the file's state, sorted by path.

The caption is that of the sidecar beside the picture (``cat.txt``, else ``caption`` in
``cat.json``), else null. The pictures stay where they are.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from laionkit.backends.source_tables import HEAD_ROWS, Batch, Sift
from laionkit.backends.sources import PICTURES, PictureFolder
from laionkit.core.errors import InputError

PICTURES_PER_BATCH = 5_000
MAX_SIDECAR_BYTES = 1 << 20
_CAPTION_KEYS = ("caption", "text", "txt", "alt", "description", "title", "prompt")


class PictureTable:
    """The pictures below a folder, with their captions."""

    def __init__(self, folder: PictureFolder) -> None:
        """List the folder."""
        self.folder, self.name = folder, folder.name
        listed = folder.fs.find(folder.path, detail=True)
        self._sidecars = {p for p in listed if p.endswith((".txt", ".json"))}
        self._pictures = {
            path: info
            for path, info in sorted(listed.items())
            if path.rpartition(".")[2].lower() in PICTURES and not _is_hidden(path)
        }
        self.schema = pa.schema(
            [("path", pa.string()), ("caption", pa.string()), ("path_stamp", pa.string())]
        )
        self.total: int | None = len(self._pictures)

    def listing(self) -> dict[str, str]:
        """Each picture's name → size and time of change, which tell whether it changed."""
        return {_name(self.folder.fs, path): self._stamp(path) for path in self._pictures}

    def head(self) -> pa.Table:
        """The first rows."""
        return self._table(list(self._pictures)[:HEAD_ROWS])

    def batches(self, columns: Sequence[str], sift: Sift | None = None) -> Iterator[Batch]:
        """Every picture, in the order of paths."""
        paths = list(self._pictures)
        for start in range(0, len(paths), PICTURES_PER_BATCH):
            table = self._table(paths[start : start + PICTURES_PER_BATCH])
            rows = np.arange(start, start + table.num_rows)
            yield Batch(table.select(list(columns)), rows)

    def statistics(self) -> dict[str, tuple[int, Any, Any]]:
        """Nothing is known before all is read."""
        return {}

    def _table(self, paths: list[str]) -> pa.Table:
        names = [_name(self.folder.fs, path) for path in paths]
        captions = [self._caption(path) for path in paths]
        stamps = [self._stamp(path) for path in paths]
        columns = [pa.array(column, pa.string()) for column in (names, captions, stamps)]
        return pa.table(columns, self.schema)

    def _stamp(self, path: str) -> str:
        info = self._pictures[path]
        return f"{info.get('size')}:{info.get('mtime') or info.get('ETag') or ''}"

    def _caption(self, path: str) -> str | None:
        stem = path.rpartition(".")[0]
        if f"{stem}.txt" in self._sidecars:
            return self._read(f"{stem}.txt").decode("utf-8", "replace").strip() or None
        if f"{stem}.json" in self._sidecars:
            return _json_caption(self._read(f"{stem}.json"), f"{stem}.json")
        return None

    def _read(self, path: str) -> bytes:
        data: bytes = self.folder.fs.cat_file(path, start=0, end=MAX_SIDECAR_BYTES)
        return data


def _json_caption(data: bytes, path: str) -> str | None:
    try:
        value: Any = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        return None
    return next((value[k] for k in _CAPTION_KEYS if isinstance(value.get(k), str)), None)


def _is_hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def _name(fs: Any, path: str) -> str:
    local = "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))
    return path if local else str(fs.unstrip_protocol(path))
