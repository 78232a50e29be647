"""Scores of hits: read from scores/COLUMN/ for the shards that hold them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.embeddings import score_columns, score_stage
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords

_KEPT_FILES = 256


class Scores:
    """Values of every score column, a shard's file at a time; a few hundred stay in memory."""

    def __init__(self, dataset: Folder) -> None:
        """Look at a dataset's score columns."""
        self.dataset = dataset
        self._paths = {column: self._files(column) for column in score_columns(dataset)}
        self._kept: dict[str, dict[str, float | None]] = {}

    def _files(self, column: str) -> dict[str, str]:
        records = StageRecords(self.dataset, score_stage(column))
        return {record.shard: record.files["scores"].path for record in records.all()}

    def of(self, shards: Sequence[str], keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Each column's values of some keys; NaN where a row was not scored."""
        found = {}
        for column, paths in self._paths.items():
            values = [
                self._shard(paths[shard]).get(key) if shard in paths else None
                for shard, key in zip(shards, keys, strict=True)
            ]
            found[column] = np.array(values, np.float32)
        return found

    def _shard(self, path: str) -> dict[str, float | None]:
        if path not in self._kept:
            while len(self._kept) >= _KEPT_FILES:
                self._kept.pop(next(iter(self._kept)))
            table: pa.Table = self.dataset.read_table(path)
            self._kept[path] = dict(
                zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)
            )
        return self._kept[path]
