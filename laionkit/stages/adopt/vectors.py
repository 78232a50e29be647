"""Checks of adopted embeddings, a block of rows at a time: shape, type, finite, unit length."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.stages.adopt.found import FoundVectors

BLOCK_ROWS = 65_536
# float16 keeps 11 bits: a unit vector stored so is off by up to 1e-3; more means not normalised.
UNIT_TOLERANCE = 0.01
KEY_COLUMNS = ("image_path", "key")


def check_vectors(folder: Folder, found: FoundVectors) -> tuple[int, int, str]:
    """Rows, dimension and key column of aligned files. Raises InputError naming what is wrong."""
    rows, key = _metadata_rows(folder, found.metadata)
    shapes = {}
    for path in (found.image, found.text):
        if path is not None:
            with _local(folder, path) as local:
                shapes[path] = _check_array(local, path)
    for path, (count, _) in shapes.items():
        if count != rows:
            raise InputError(f"{path} has {count} rows and {found.metadata} has {rows}")
    dims = {dim for _, dim in shapes.values()}
    if len(dims) > 1:
        raise InputError(f"{found.image} and {found.text} differ in dimension: {sorted(dims)}")
    return rows, dims.pop(), key


def _metadata_rows(folder: Folder, path: str) -> tuple[int, str]:
    try:
        with folder.open(path) as file:
            parquet = pq.ParquetFile(file)
            names, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
            key = next((name for name in KEY_COLUMNS if name in names), None)
            if key is None:
                raise InputError(
                    f"{path} has no column {' or '.join(KEY_COLUMNS)} that names its rows; "
                    f"it has {', '.join(names)}"
                )
            nulls = sum(batch[key].null_count for batch in parquet.iter_batches(columns=[key]))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not readable parquet: {error}") from error
    if nulls:
        raise InputError(f"{path}: {nulls} of {rows} rows have no {key}")
    return rows, key


def _check_array(local: Path, path: str) -> tuple[int, int]:
    try:
        array: NDArray[Any] = np.load(local, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no readable npy file: {error}") from error
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
        raise InputError(
            f"{path} holds {array.dtype} of shape {array.shape}: "
            "embeddings are float16 or float32, one row a picture"
        )
    for start in range(0, len(array), BLOCK_ROWS):
        _check_block(np.asarray(array[start : start + BLOCK_ROWS], np.float32), start, path)
    return int(array.shape[0]), int(array.shape[1])


def _check_block(emb_ND: NDArray[np.float32], start: int, path: str) -> None:
    lengths_N = np.sqrt(np.einsum("nd,nd->n", emb_ND, emb_ND))
    odd = np.flatnonzero(~np.isfinite(lengths_N))
    if len(odd):
        raise InputError(f"{path}: row {start + odd[0]} holds values that are no numbers")
    off = np.flatnonzero(np.abs(lengths_N - 1) > UNIT_TOLERANCE)
    if len(off):
        raise InputError(
            f"{path}: row {start + off[0]} has length {lengths_N[off[0]]:.3f}, not 1: "
            "adopted embeddings must be L2-normalised"
        )


@contextlib.contextmanager
def _local(folder: Folder, path: str) -> Iterator[Path]:
    """A local path of a file, copied here for a while where it lies elsewhere."""
    if folder.is_local:
        yield Path(path)
        return
    handle, name = tempfile.mkstemp(prefix="laionkit-adopt-", suffix=".npy")
    try:
        with os.fdopen(handle, "wb") as copy, folder.open(path) as file:
            shutil.copyfileobj(file, copy, 1 << 20)
        yield Path(name)
    finally:
        Path(name).unlink()
