"""The vectors of the samples that are left, gathered from the embeddings by key."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from laionkit.core.embeddings import EmbeddingRef, choose_model, list_embeddings
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.table import DatasetTable
from laionkit.ops.vectors import unit_rows


@dataclass(frozen=True)
class Gathered:
    """Vectors [N, D] in the order of the table `ordered`, on disk; `there` where one was found."""

    emb_ND: NDArray[np.float16]
    there: NDArray[np.bool_]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit rows, fp32."""
        return unit_rows(np.asarray(self.emb_ND[rows], np.float32))


@contextmanager
def gather(table: DatasetTable, model: str | None) -> Iterator[Gathered]:
    """Gather the vectors of the temporary table `ordered` (key, place) into a file of their own."""
    name = choose_model(table.folder, model)
    refs = list_embeddings(table.folder, name)
    rows: int = table.execute("SELECT count(*) FROM ordered").fetchone()[0]
    with tempfile.TemporaryDirectory(prefix="laionkit-") as folder:
        emb_ND = None
        there = np.zeros(rows, bool)
        for ref in refs:
            shard_ND = read_vectors(table.folder, ref)
            if emb_ND is None:
                shape = (rows, shard_ND.shape[1])
                emb_ND = np.memmap(Path(folder) / "emb", np.float16, "w+", shape=shape)
            place, row = _places(table, ref)
            emb_ND[place], there[place] = shard_ND[row], True
        if emb_ND is None:
            raise InputError(f"{table.folder} has no embeddings of {name}")
        yield Gathered(emb_ND, there)


def read_vectors(dataset: Folder, ref: EmbeddingRef) -> NDArray[np.float16]:
    """The image vectors [N, D] of one shard, as float16."""
    with dataset.open(ref.image) as file:
        try:
            found: NDArray[np.float16] = npy.read_array(file, allow_pickle=False).astype(np.float16)
        except ValueError as error:
            raise InputError(f"{dataset.at(ref.image)} is no npy file: {error}") from error
    return found


def _places(table: DatasetTable, ref: EmbeddingRef) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the rows of one shard stand in `ordered`: (places, rows of the shard)."""
    keys = table.folder.read_table(ref.metadata, columns=["image_path"]).column(0)
    table.execute("DROP TABLE IF EXISTS shard_keys")
    table.insert("shard_keys", pa.table({"key": keys, "row": np.arange(len(keys))}))
    found = table.arrow("SELECT place, row FROM ordered JOIN shard_keys USING (key)")
    return found.column("place").to_numpy(), found.column("row").to_numpy()
