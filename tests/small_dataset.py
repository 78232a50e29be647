"""A dataset of a few shards, written the way the stages write it: real tars, parquet, records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.embeddings import embed_stage, score_stage
from laionkit.core.files import Folder, Written
from laionkit.core.keys import KeyScheme
from laionkit.core.places import note_places
from laionkit.core.progress import Counts
from laionkit.core.records import FileEntry, ShardRecord, StageMade, StageRecords
from laionkit.core.schemas import FETCHED_COLUMNS, SCORE_SCHEMA
from laionkit.core.shards import ShardWriter
from laionkit.core.tars import IMAGES_SCHEMA

SCHEME = KeyScheme(10)


@dataclass
class SmallDataset:
    """Writes one stage after the other. `rows` are metadata rows; keys follow from their order."""

    path: Path
    rows: list[dict[str, Any]]
    scheme: KeyScheme = SCHEME
    folder: Folder = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Folder(self.path)

    @property
    def url(self) -> str:
        return str(self.path)

    def key(self, row: int) -> str:
        return self.scheme.key(*divmod(row, self.scheme.shard_size))

    def shards(self) -> list[tuple[str, range]]:
        size = self.scheme.shard_size
        count = -(-len(self.rows) // size)
        return [
            (self.scheme.shard_name(i), range(i * size, min(len(self.rows), (i + 1) * size)))
            for i in range(count)
        ]

    def write_metadata(self, types: Mapping[str, pa.DataType] | None = None) -> "SmallDataset":
        table = self.table(range(len(self.rows)), types or {})
        table = table.replace_schema_metadata(
            {
                "laionkit.shard_size": str(self.scheme.shard_size),
                "laionkit.shard_digits": str(self.scheme.shard_digits),
                "laionkit.first_shard": "0",
            }
        )
        name = "metadata/part-00000.parquet"
        with self.folder.create(name) as file:
            pq.write_table(table, file, row_group_size=self.scheme.shard_size)
        written = Written(name, file.size, file.digest.hexdigest())
        self.record("metadata", "part-00000", {"part": written}, Counts.of(len(self.rows), {}))
        return self

    def table(self, rows: Sequence[int], types: Mapping[str, pa.DataType]) -> pa.Table:
        keys = pa.array([self.key(i) for i in rows])
        columns = {
            name: pa.array([self.rows[i][name] for i in rows], type=types.get(name))
            for name in self.rows[0]
        }
        return pa.table({"key": keys, **columns})

    def write_shards(
        self, lost: Mapping[int, str] | None = None, only: Sequence[str] | None = None
    ) -> "SmallDataset":
        """Write image shards; `lost` maps rows to the reason they could not be had."""
        for name, rows in self.shards():
            if only is None or name in only:
                self.write_shard(name, rows, lost or {})
        return self

    def write_shard(self, name: str, rows: Sequence[int], lost: Mapping[int, str]) -> None:
        found, noted = [], []
        with self.folder.create(f"shards/{name}.tar") as file, ShardWriter(file) as tar:
            for i in rows:
                line = self.fetched_row(i, lost.get(i))
                found.append(line)
                if i not in lost:
                    text = str(self.rows[i].get("caption") or "").encode()
                    members = {"jpg": picture(i), "json": b"{}", "txt": text}
                    offset = tar.add(self.key(i), members)
                    noted.append([self.key(i), "jpg", offset, len(members["jpg"])])
        tar_file = Written(f"shards/{name}.tar", file.size, file.digest.hexdigest())
        table = self.table(rows, {})
        for column, kind in FETCHED_COLUMNS.items():
            if column != "key":
                table = table.append_column(column, pa.array([f[column] for f in found], kind))
        table_file = self.folder.write_table(f"shards/{name}.parquet", table)
        stats = self.folder.write_json(f"shards/{name}_stats.json", {"count": len(rows)})
        reasons: dict[str, int] = {}
        for i in rows:
            if i in lost:
                reasons[lost[i]] = reasons.get(lost[i], 0) + 1
        columns = [[row[column] for row in noted] for column in range(len(IMAGES_SCHEMA))]
        places = note_places(self.folder, name, pa.table(columns, schema=IMAGES_SCHEMA))
        files = {"tar": tar_file, "places": places, "table": table_file, "stats": stats}
        counts = Counts.of(len(rows) - sum(reasons.values()), reasons)
        self.record("fetch", name, files, counts)

    def fetched_row(self, row: int, reason: str | None) -> dict[str, Any]:
        if reason:
            return {
                **dict.fromkeys(FETCHED_COLUMNS),
                "status": "failed_to_download",
                "reason": reason,
            }
        size = original_size(row)
        return {
            **dict.fromkeys(FETCHED_COLUMNS),
            "status": "success",
            "width": 32,
            "height": 32,
            "original_width": size[0],
            "original_height": size[1],
            "sha256": f"{row % 7:064x}",
        }

    def write_score(
        self, column: str, values: Mapping[int, float | None], **facts: Any
    ) -> "SmallDataset":
        """Write a score column over some rows, one file a shard."""
        for name, rows in self.shards():
            there = [i for i in rows if i in values]
            arrays = [[self.key(i) for i in there], [values[i] for i in there]]
            scores = pa.table(
                [pa.array(a, f.type) for a, f in zip(arrays, SCORE_SCHEMA, strict=True)],
                SCORE_SCHEMA,
            )
            written = self.folder.write_table(f"scores/{column}/{name}.parquet", scores)
            counts = Counts.of(len(there), {})
            self.record(score_stage(column), name, {"scores": written}, counts, facts)
        return self

    def write_embeddings(
        self, model: str, vectors: np.ndarray, lost: Mapping[int, str] | None = None
    ) -> "SmallDataset":
        """Write image vectors of the rows that are not lost."""
        for name, rows in self.shards():
            there = [i for i in rows if i not in (lost or {})]
            base = f"embeddings/{model}"
            with self.folder.create(f"{base}/img_emb/img_emb_{name}.npy") as file:
                np.save(file, vectors[there].astype(np.float16))
            path = f"{base}/img_emb/img_emb_{name}.npy"
            images = Written(path, file.size, file.digest.hexdigest())
            captions = [str(self.rows[i].get("caption")) for i in there]
            table = pa.table({"image_path": [self.key(i) for i in there], "caption": captions})
            metadata = self.folder.write_table(f"{base}/metadata/metadata_{name}.parquet", table)
            self.record(
                embed_stage(model),
                name,
                {"img_emb": images, "metadata": metadata},
                Counts.of(len(there), {}),
                {"model": model, "dim": int(vectors.shape[1]), "provenance": "computed"},
            )
        return self

    def record(
        self,
        stage: str,
        shard: str,
        files: Mapping[str, Written],
        counts: Counts,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        records = StageRecords(self.folder, stage)
        made = StageMade(stage=stage, format_version=1, config={}, facts=dict(facts or {}))
        records.folder.write_json("_stage.json", made.model_dump(mode="json"))
        entries = {role: FileEntry.of(written) for role, written in files.items()}
        records.commit(
            ShardRecord(shard=shard, fingerprint=made.fingerprint(), counts=counts, files=entries)
        )


def original_size(row: int) -> tuple[int, int]:
    """The size a row's picture had where it was found: half of them have both sides >= 512."""
    return (640, 512 + row) if row % 2 else (300 + row, 900)


def picture(row: int) -> bytes:
    """A small JPEG whose colour tells the row."""
    image_HWC = np.full((32, 32, 3), (row * 37 % 256, row * 91 % 256, 128), np.uint8)
    done, data = cv2.imencode(".jpg", image_HWC)
    assert done
    return data.tobytes()


def laion_rows(count: int) -> list[dict[str, Any]]:
    """Rows as LAION publishes them; `punsafe` is null on every fifth."""
    return [
        {
            "url": f"http://pictures.example/{i % 4}/{i}.jpg",
            "caption": f"picture number {i} of a series",
            "punsafe": None if i % 5 == 4 else i / count,
            "pwatermark": 0.25,
            "similarity": 0.2 + i / (4 * count),
            "width_published": 640,
            "height_published": 480,
        }
        for i in range(count)
    ]
