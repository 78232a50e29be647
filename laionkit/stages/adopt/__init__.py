"""adopt: register existing image shards or embeddings in place, read-only.

Takes img2dataset's folders, any webdataset tars, and clip-retrieval's embeddings. Nothing is
written into the adopted folder: commit records name its files by absolute path. A tar without a
parquet gets a table under ``.laionkit/adopt``, and so does one whose columns (URL, AESTHETIC_SCORE)
have not our names, that presets and filters find them. Pictures that lie in no tar, in files or in
parquet, are copied into tars under ``shards/``, byte for byte. What is registered counts only
after every file was checked and no key was found twice.
"""

import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from laionkit.core.config import StageConfig
from laionkit.core.embeddings import (
    embed_stage,
    embedded_models,
    list_embeddings,
    model_folder_name,
)
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder, Written
from laionkit.core.places import note_places
from laionkit.core.progress import Counts, Note
from laionkit.core.records import STATS, ShardRecord, StageMade, StageRecords
from laionkit.core.runner import Outcome, Runner, Site, StageReport, Task
from laionkit.core.schemas import RECORDS, SHARD_RECORDS, SHARDS
from laionkit.core.shards import list_shards
from laionkit.core.tars import plain_images
from laionkit.stages.adopt import pictures, shards, vectors
from laionkit.stages.adopt.found import FoundShard, FoundVectors, find_shards, find_vectors, stamp
from laionkit.stages.adopt.pictures import FoundFiles, FoundRows

STAGE = "adopt"
Found = FoundShard | FoundVectors | FoundFiles | FoundRows


class AdoptConfig(StageConfig):
    """What is adopted."""

    model: str | None = None
    """NAME/TAG of the model that made the embeddings; recorded as declared, never checked."""
    backbone_id: str | None = None
    """Whose embeddings they are, such as openai/ViT-L-14; by default read off the model's name.
    Heads go by it."""
    as_name: str | None = None
    """Short name of the model in this dataset, by default spelt from the model's name."""
    label: str | None = None
    """What the adopted shards' names begin with, by default the folder's name."""


def adopt(
    folder: str,
    dataset: str,
    config: AdoptConfig = AdoptConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Register a folder's shards and embeddings in `dataset`; a second call finds it done.

    Raises InputError where there is nothing to adopt, a file is broken, or two files hold one key.
    """
    runner.require_whole("adopt")
    place, home = Folder(folder), Folder(dataset)
    tars: Sequence[Found] = find_shards(place)
    embeddings = find_vectors(place)
    if (tars or embeddings) and place.fs.protocol != home.fs.protocol:
        raise ConfigError(
            f"{folder} and {dataset} lie on different stores, and adopted files stay where they "
            "are: name a DATASET on the same store, or copy the folder first"
        )
    if not tars and not embeddings:
        tars = pictures.find_rows(place) or pictures.find_files(place)
    if not tars and not embeddings:
        raise InputError(
            f"{folder} holds no tars, no img_emb/*.npy, no parquet with pictures' bytes and no "
            "picture files: name a folder of one of these"
        )
    if embeddings and not (config.model or config.backbone_id):
        raise ConfigError(
            f"{folder} holds embeddings: say which model made them with --model NAME/TAG "
            "(or --backbone-id ID, where no model of that name can be loaded)"
        )
    reports = []
    if tars:
        reports.append(_Adoption(place, home, config, runner, "").run(tars))
    if embeddings:
        model = model_folder_name(config.model or str(config.backbone_id), config.as_name)
        reports.append(_Adoption(place, home, config, runner, model).run(embeddings))
    return _sum(reports)


@dataclass(frozen=True)
class _Adoption:
    """The adoption of one folder's shards, or of its embeddings where `model` is named."""

    place: Folder
    home: Folder
    config: AdoptConfig
    runner: Runner
    model: str

    def run(self, found: Sequence[Found]) -> StageReport:
        """Check every file, then the keys, then commit."""
        seen = StageRecords(self.home, STAGE)
        if seen.made() is None:
            made = StageMade(stage=STAGE, format_version=1, config={})
            seen.folder.write_json("_stage.json", made.model_dump(mode="json"))
        label = self._label(seen)
        named = {f"{label}-{one.name}": one for one in found}
        tasks = [Task(name, self._inputs(one)) for name, one in named.items()]
        opener = functools.partial(_Checker, self.home.url, self.place.url, named)
        report = self.runner.run(seen, self.config, tasks, opener)
        checked = [seen.read(name) for name in named]
        final = StageRecords(self.home, embed_stage(self.model) if self.model else SHARD_RECORDS)
        try:
            self._check_together(checked)
        except InputError:
            self._forget(seen, checked, final)
            raise
        if self.model:
            self._begin_model(final, checked)
        for record in checked:
            final.commit(record)
        return report

    def _inputs(self, one: Found) -> dict[str, str]:
        return {"adopted": stamp(self.place, one.paths())}

    def _label(self, seen: StageRecords) -> str:
        """What the names of these shards begin with; no other adopted folder's do."""
        base = self.config.label or os.path.basename(self.place.root)  # noqa: PTH119 (a URL, too)
        clean = "".join(c if c.isalnum() or c in "_." else "_" for c in base).strip("_.")
        kind = f"{clean or STAGE}{'-emb' if self.model else ''}"
        for label in (kind, *(f"{kind}-{n}" for n in range(2, 10_000))):
            others = (r for r in seen.names() if r.rpartition("-")[0] == label)
            first = next(others, None)
            if first is None or self._is_ours(seen.read(first)):
                return label
        raise ConfigError(f"ten thousand folders called {kind} are adopted already: use --label")

    def _is_ours(self, record: ShardRecord) -> bool:
        return record.extra.get("folder") == self.place.url

    def _check_together(self, checked: Sequence[ShardRecord]) -> None:
        from laionkit.backends.unique_keys import find_repeated_key

        if self.model:
            self._check_dims(checked)
            column = str(checked[0].extra["key_column"])
            role, there = "metadata", [
                (ref.name, ref.metadata) for ref in self._embeddings_there()
            ]  # fmt: skip
        else:
            column, role = "key", "table"
            there = [(ref.name, ref.table) for ref in list_shards(self.home)]
        ours = {record.shard for record in checked}
        old = [path for name, path in there if name not in ours]
        new = {record.files[role].path: _shown(record, role) for record in checked}
        twice = find_repeated_key(self.home, list(new), old, column)
        if twice is not None:
            key, first, second = twice
            raise InputError(
                f"{new.get(first, first)} and {new.get(second, second)} both hold key {key!r}: "
                "keys are unique in a dataset; adopt one of them into a dataset of its own"
            )

    def _embeddings_there(self) -> Iterator[Any]:
        if self.model in embedded_models(self.home):
            yield from list_embeddings(self.home, self.model)

    def _check_dims(self, checked: Sequence[ShardRecord]) -> None:
        first = checked[0]
        for record in checked:
            for what in ("dim", "key_column"):
                if record.extra[what] != first.extra[what]:
                    raise InputError(
                        f"{_shown(record, 'img_emb')} has {what} {record.extra[what]} and "
                        f"{_shown(first, 'img_emb')} has {first.extra[what]}"
                    )

    def _begin_model(self, final: StageRecords, checked: Sequence[ShardRecord]) -> None:
        extra = checked[0].extra
        facts = {
            "model": self.config.model,
            "backbone": self.config.backbone_id or _backbone_of(str(self.config.model)),
            "dim": extra["dim"],
            "weights_sha256": None,
            "preprocess": None,
            "provenance": "declared",
            "key_column": extra["key_column"],
        }
        self.runner.begin(final, StageConfig(), facts=facts)

    def _forget(
        self, seen: StageRecords, checked: Sequence[ShardRecord], final: StageRecords
    ) -> None:
        """Leave nothing of an adoption that was refused; what counted before stays."""
        counted = set(final.names())
        for record in checked:
            if record.shard not in counted:
                seen.folder.remove(f"{record.shard}.json")
                for entry in record.files.values():
                    if entry.path.startswith((f"{RECORDS}/", f"{SHARDS}/")):
                        self.home.remove(entry.path)


class _Checker:
    """Checks adopted files, one shard after the other."""

    def __init__(self, home: str, place: str, named: Mapping[str, Found], site: Site) -> None:
        self.home, self.place, self.named, self.site = Folder(home), Folder(place), named, site

    def __enter__(self) -> "_Checker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def process(self, names: Iterator[str]) -> Iterator[Outcome]:
        """Check and hash each shard's files."""
        for name in names:
            started = time.monotonic()
            one = self.named[name]
            if isinstance(one, FoundShard):
                counts, files, extra = self._shard(name, one)
            elif isinstance(one, FoundVectors):
                counts, files, extra = self._vectors(name, one)
            else:
                counts, files, extra = self._pictures(name, one)
            extra = {"folder": self.place.url, **extra}
            yield Outcome(name, counts, files, time.monotonic() - started, extra)

    def _shard(
        self, name: str, one: FoundShard
    ) -> tuple[Counts, dict[str, Written], dict[str, Any]]:
        files = {"tar": self._written(one.tar), **self._places(name, one.tar)}
        if one.stats:
            files[STATS] = self._written(one.stats)
        if one.table:
            counts = shards.table_counts(self.place, one.table)
            named = shards.named_table(self.place, one.table)
            if named is None:
                files["table"] = self._written(one.table)
            else:
                files["table"] = self._own_table(name, named)
            return counts, files, {}
        with self.place.open(one.tar) as file:
            table, damage = shards.table_of_tar(file, one.tar)
        if damage and not table.num_rows:
            raise InputError(f"{one.tar} is no readable tar: {damage}")
        if damage:
            whole = shards.tar_counts(table).ok
            text = f"{one.tar} is damaged ({damage}): its {whole} whole samples are taken"
            self.site.report(Note(STAGE, text, logging.WARNING))
        files["table"] = self._own_table(name, table)
        return shards.tar_counts(table), files, {"damage": damage} if damage else {}

    def _pictures(
        self, name: str, one: FoundFiles | FoundRows
    ) -> tuple[Counts, dict[str, Written], dict[str, Any]]:
        if isinstance(one, FoundFiles):
            samples = pictures.samples_of_files(self.place, one)
        else:
            samples = pictures.samples_of_rows(self.place, one)
        table, files = pictures.copy_shard(self.home, name, samples)
        files["table"] = self.home.write_table(f"{SHARDS}/{name}.parquet", table)
        return shards.tar_counts(table), files, {}

    def _vectors(
        self, name: str, one: FoundVectors
    ) -> tuple[Counts, dict[str, Written], dict[str, Any]]:
        rows, dim, key = vectors.check_vectors(self.place, one)
        files = {"img_emb": self._written(one.image), "metadata": self._written(one.metadata)}
        if one.text:
            files["text_emb"] = self._written(one.text)
        return Counts.of(rows, {}), files, {"dim": dim, "key_column": key}

    def _places(self, name: str, tar: str) -> dict[str, Written]:
        """The note of where a tar's pictures lie; none of one elsewhere, which was just read."""
        if not self.place.is_local:
            return {}
        with self.place.open(tar) as file:
            images = plain_images(file)
        return {} if images is None else {"places": note_places(self.home, name, images)}

    def _own_table(self, name: str, table: Any) -> Written:
        return self.home.write_table(f"{RECORDS}/{STAGE}/tables/{name}.parquet", table)

    def _written(self, path: str) -> Written:
        """What a record says of a file that stays where it is."""
        digest, size = hashlib.sha256(), 0
        with self.place.open(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
        return Written(path, size, digest.hexdigest())


def _shown(record: ShardRecord, role: str) -> str:
    """The adopted file to name in a message: the tar where the table is our own."""
    path = record.files[role].path
    return record.files["tar"].path if path.startswith(RECORDS) else path


def _backbone_of(model: str) -> str:
    """Whose embeddings a model of this name makes. Raises ConfigError for an unknown one."""
    from laionkit.backends.clip import specs

    spec = specs.parse(model)
    return specs.identity(spec.architecture, spec.tag) if spec.tag else spec.text


def _sum(reports: Sequence[StageReport]) -> StageReport:
    first = reports[0]
    counts = Counts()
    for report in reports:
        counts = counts + report.counts
    return first.model_copy(
        update={
            "counts": counts,
            "shards": sum(report.shards for report in reports),
            "skipped": sum(report.skipped for report in reports),
            "seconds": round(sum(report.seconds for report in reports), 3),
        }
    )
