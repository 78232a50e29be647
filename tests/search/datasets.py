"""Datasets of embeddings made for tests: real files, real records, any vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import embed_stage, score_stage
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.schemas import SCORE_SCHEMA


def unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    wide = np.asarray(vectors, np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def clustered(rows: int, dim: int, seed: int = 0, clusters: int = 40) -> NDArray[np.float16]:
    """Unit vectors in clusters, as pictures' are."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, dim))
    picked = centres[rng.integers(clusters, size=rows)]
    return unit(picked + 0.7 * rng.standard_normal((rows, dim))).astype(np.float16)


def add_embeddings(
    dataset: Path | str,
    shard: str,
    vectors: NDArray[Any],
    captions: list[str] | None = None,
    model: str = "toy",
    facts: dict[str, Any] | None = None,
) -> list[str]:
    """Write one shard of embeddings with its record; return its keys."""
    folder = Folder(dataset)
    keys = [f"{shard}{row:04d}" for row in range(len(vectors))]
    image, metadata = _paths(model, shard)
    with folder.create(image) as file:
        np.save(file, vectors)
    images = Written(image, file.size, file.digest.hexdigest())
    columns = {
        "image_path": keys,
        "caption": captions or [f"picture {key}" for key in keys],
        "url": [f"https://example.org/{key}.jpg" for key in keys],
        "original_width": pa.array([int(key) % 1000 for key in keys], pa.int32()),
    }
    rows = folder.write_table(metadata, pa.table(columns))
    records = StageRecords(folder, embed_stage(model))
    dim = int(np.asarray(vectors).shape[-1])
    records.begin(StageConfig(), facts={"dim": dim, "backbone": "toy/toy", **(facts or {})})
    commit(records, shard, len(vectors), {"img_emb": images, "metadata": rows})
    return keys


def add_scores(dataset: Path, column: str, shard: str, keys: list[str], values: Any) -> None:
    """Write one shard of a score column with its record."""
    folder = Folder(dataset)
    table = pa.table({"key": keys, "value": pa.array(values, pa.float32())}, SCORE_SCHEMA)
    written = folder.write_table(f"scores/{column}/{shard}.parquet", table)
    records = StageRecords(folder, score_stage(column))
    records.begin(StageConfig(), facts={"head": column})
    commit(records, shard, len(keys), {"scores": written})


def commit(records: StageRecords, shard: str, rows: int, files: dict[str, Written]) -> None:
    entries = {role: FileEntry.of(written) for role, written in files.items()}
    counts = Counts.of(rows, {})
    records.commit(ShardRecord(shard=shard, fingerprint="", counts=counts, files=entries))


def _paths(model: str, shard: str) -> tuple[str, str]:
    place = f"embeddings/{model}"
    return f"{place}/img_emb/img_emb_{shard}.npy", f"{place}/metadata/metadata_{shard}.parquet"


def cosines(vectors: NDArray[Any], query: NDArray[Any]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(query)
    return wide @ query.astype(np.float64) / lengths


def assert_nearest(
    hits: Any, keys: list[str], vectors: NDArray[Any], query: NDArray[Any], k: int, keep: Any = None
) -> None:
    """Hits are the k nearest rows by numpy alone; rows as near as float32 tells may swap."""
    scores = cosines(vectors, query)
    rows = np.arange(len(vectors)) if keep is None else np.flatnonzero(keep)
    best = np.sort(scores[rows])[::-1][:k]
    assert np.allclose(hits.match, best, atol=1e-6)
    row_of = {keys[row]: row for row in rows}
    assert len(set(hits.key)) == len(hits) == len(best)
    assert np.allclose(scores[[row_of[key] for key in hits.key]], hits.match, atol=1e-6)
