"""The vectors of the samples that are left, gathered from the embeddings by key."""

import tempfile
from collections.abc import Iterator, Sequence
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
    if not refs:
        raise InputError(f"{table.folder} has no embeddings of {name}")
    rows: int = table.row("SELECT count(*) FROM ordered")[0]
    with tempfile.TemporaryDirectory(prefix="laionkit-") as folder:
        there = np.zeros(rows, bool)
        emb_ND, open_shard, shard_ND = None, 0, read_vectors(table.folder, refs[0])
        for shard, row_R, place_R in _places(table, refs):
            if shard != open_shard:
                open_shard, shard_ND = shard, read_vectors(table.folder, refs[shard])
            if emb_ND is None:
                shape = (rows, shard_ND.shape[1])
                emb_ND = np.memmap(Path(folder) / "emb", np.float16, "w+", shape=shape)
            emb_ND[place_R], there[place_R] = shard_ND[row_R], True
        yield Gathered(shard_ND[:0] if emb_ND is None else emb_ND, there)


def read_vectors(dataset: Folder, ref: EmbeddingRef) -> NDArray[np.float16]:
    """The image vectors [N, D] of one shard, as float16."""
    with dataset.open(ref.image) as file:
        try:
            found: NDArray[np.float16] = npy.read_array(file, allow_pickle=False).astype(np.float16)
        except ValueError as error:
            raise InputError(f"{dataset.at(ref.image)} is no npy file: {error}") from error
    return found


def _places(
    table: DatasetTable, refs: Sequence[EmbeddingRef]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Where the rows of each shard stand in `ordered`: (shard, its rows, their places), in order.

    One join for all shards: what it costs grows with the rows, not with rows times shards.
    """
    table.execute("DROP TABLE IF EXISTS embedded_keys")
    for shard, ref in enumerate(refs):
        keys = table.folder.read_table(ref.metadata, columns=["image_path"]).column(0)
        told = {"key": keys, "shard": np.full(len(keys), shard), "row": np.arange(len(keys))}
        table.insert("embedded_keys", pa.table(told))
    joined = "SELECT shard, row, place FROM embedded_keys JOIN ordered USING (key) ORDER BY ALL"
    for batch in table.batches(joined):
        shard_R, row_R, place_R = (column.to_numpy() for column in batch.columns)
        shards, edges = np.unique(shard_R, return_index=True)
        for shard, start, stop in zip(shards, edges, [*edges[1:], len(shard_R)], strict=True):
            yield int(shard), row_R[start:stop], place_R[start:stop]
    table.execute("DROP TABLE embedded_keys")
