"""Datasets with image shards as fetch leaves them, made of given bytes."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.schemas import SHARD_RECORDS, SHARDS
from laionkit.core.shards import ShardWriter

Sample = tuple[str, bytes, str | bytes | None]


def picture(seed: int, height: int = 70, width: int = 90, kind: str = "JPEG") -> bytes:
    """A smooth coloured picture."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_shards(dataset: Path, shards: Mapping[str, Sequence[Sample]]) -> Folder:
    """Write shards with their tables and records."""
    folder = Folder(dataset)
    for name, samples in shards.items():
        write_shard(folder, name, samples)
    return folder


def write_shard(folder: Folder, name: str, samples: Sequence[Sample]) -> None:
    """Write one shard: samples as (key, picture, caption)."""
    with folder.create(f"{SHARDS}/{name}.tar") as file, ShardWriter(file) as writer:
        for key, data, caption in samples:
            members = {"jpg": data}
            if caption is not None:
                members["txt"] = caption if isinstance(caption, bytes) else caption.encode()
            writer.add(key, members)
    captions = [c if isinstance(c, str) else None for _, _, c in samples]
    table = pa.table(
        {
            "url": pa.array([f"http://x/{key}" for key, _, _ in samples], pa.string()),
            "caption": pa.array(captions, pa.string()),
            "key": pa.array([key for key, _, _ in samples], pa.string()),
            "status": pa.array(["success"] * len(samples), pa.string()),
        }
    )
    tar = Written(f"{SHARDS}/{name}.tar", file.size, file.digest.hexdigest())
    parquet = folder.write_table(f"{SHARDS}/{name}.parquet", table)
    record = ShardRecord(
        shard=name,
        fingerprint="test",
        counts=Counts.of(len(samples), {}),
        files={"tar": FileEntry.of(tar), "table": FileEntry.of(parquet)},
    )
    StageRecords(folder, SHARD_RECORDS).commit(record)


def shard_of(number: int, count: int, start: int = 0) -> list[Sample]:
    """`count` good samples of shard `number`."""
    return [
        (f"{number:05d}{i:04d}", picture(number * 1000 + i + start), f"picture {i} of {number}")
        for i in range(count)
    ]
