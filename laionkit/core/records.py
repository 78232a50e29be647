"""Commit records: done means recorded.

``.laionkit/STAGE/_stage.json`` holds what a stage's output was made with; beside it lies one
``SHARD.json`` a finished shard, written after the shard's files. Files without a record are
garbage. A record may name files outside the dataset (adopted data) by absolute path.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from laionkit.core.config import StageConfig, fingerprint
from laionkit.core.errors import InputError, StaleOutput
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts
from laionkit.core.schemas import RECORDS

C = TypeVar("C", bound=StageConfig)

STAGE_FILE = "_stage.json"
STATS = "stats"  # the role of a file about a run, beside those that hold what it made


class FileEntry(BaseModel):
    """One file of a shard: path (relative to the dataset, or absolute), bytes, sha256."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str

    @classmethod
    def of(cls, written: Written) -> "FileEntry":
        """The entry of a file just written."""
        return cls(path=written.path, size=written.size, sha256=written.sha256)


class ShardRecord(BaseModel):
    """That one shard of one stage is finished, what it holds and what it was made of.

    `inputs` names each upstream shard and its content; a shard whose inputs changed is redone.
    """

    model_config = ConfigDict(frozen=True)

    shard: str
    fingerprint: str
    inputs: dict[str, str] = {}
    counts: Counts = Counts()
    files: dict[str, FileEntry] = {}
    extra: dict[str, Any] = {}
    effort: dict[str, Any] = {}
    seconds: float = 0.0
    finished_at: str = ""

    def content(self) -> str:
        """One hash over the files' hashes: what a downstream record stores as its input.

        Statistics are left out: they tell how long it took, and nothing is made of them.
        """
        made = {role: entry.sha256 for role, entry in self.files.items() if role != STATS}
        return fingerprint(made)


@dataclass
class Clock:
    """How long a stage was at work: shards done side by side count once, pauses not at all."""

    spans: list[tuple[float, float]] = field(default_factory=list)

    def add(self, record: ShardRecord) -> None:
        """Count the time in which a shard was done."""
        end = datetime.fromisoformat(record.finished_at or "1970-01-01T00:00:00Z").timestamp()
        self.spans.append((end - record.seconds, end))

    def seconds(self) -> float:
        """The time in which any of the shards was being done."""
        total, until = 0.0, float("-inf")
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total


class StageMade(BaseModel):
    """What a stage's output was made with."""

    model_config = ConfigDict(frozen=True)

    stage: str
    format_version: int
    config: dict[str, Any]
    facts: dict[str, Any] = {}

    def fingerprint(self) -> str:
        """Hash of everything that changes results."""
        return fingerprint(self.model_dump(mode="json"))


class StageRecords:
    """The records of one stage of one dataset. `stage` may hold a slash: ``embed/tiny``."""

    def __init__(self, dataset: Folder, stage: str) -> None:
        """Look at `stage` of `dataset`; nothing is created yet."""
        self.dataset, self.stage = dataset, stage
        self.folder = dataset.folder(f"{RECORDS}/{stage}")

    def made(self) -> StageMade | None:
        """What the output on disk was made with; None where there is none."""
        if not self.folder.exists(STAGE_FILE):
            return None
        return StageMade.model_validate(self.folder.read_json(STAGE_FILE))

    def begin(
        self,
        config: C,
        *,
        auto: Mapping[str, Callable[[], Any]] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> C:
        """Settle a config against what is on disk, and store it where nothing is.

        `auto` maps each field that may hold ``"auto"`` to what resolves it: the stored value
        wins, so that a value is resolved once. `facts` are results-changing values outside the
        config (a weights file's sha256). Raises StaleOutput where what is there differs.
        """
        made = self.made()
        if made is not None and made.format_version != config.format_version:
            raise StaleOutput(
                f"{self.folder} was made in format {made.format_version}, this laionkit writes "
                f"{config.format_version}. Start over: --fresh (what is there is moved aside)."
            )
        settled = self._settle(config, made, auto or {})
        wanted = StageMade(
            stage=self.stage,
            format_version=config.format_version,
            config=settled.what(),
            facts=json.loads(json.dumps(dict(facts or {}))),
        )
        if made is None:
            self.folder.write_json(STAGE_FILE, wanted.model_dump(mode="json"))
        elif differs := _differences(made, wanted, config):
            known = {name: old for name, (old, _) in differs.items() if name in wanted.config}
            raise StaleOutput(self._stale_message(differs, known), known)
        return settled

    def _settle(
        self, config: C, made: StageMade | None, auto: Mapping[str, Callable[[], Any]]
    ) -> C:
        stored = made.config if made else {}
        changes = {
            name: stored[name] if name in stored else resolve()
            for name, resolve in auto.items()
            if getattr(config, name) == "auto"
        }
        return type(config).build({**config.model_dump(), **changes}, self.stage)

    def _stale_message(
        self, differs: Mapping[str, tuple[Any, Any]], known: Mapping[str, Any]
    ) -> str:
        was = ", ".join(f"{name}={old!r}" for name, (old, _) in differs.items())
        now = ", ".join(f"{name}={new!r}" for name, (_, new) in differs.items())
        flags = " ".join(_flag(name, old) for name, old in known.items() if old is not None)
        left_out = " ".join(_flag(name, "") for name, old in known.items() if old is None)
        steps = [flags and f"add {flags}", left_out and f"leave out {left_out}"]
        keep = ", ".join(filter(None, steps)) or "give it what it was made with"
        return (
            f"{self.stage} in {self.dataset} was made with {was}; this run has {now}. "
            f"Keep it: {keep}. Start over: --fresh (what is there is moved aside)."
        )

    def names(self) -> list[str]:
        """Sorted names of the shards that have a record, whatever they were made with."""
        return [n.removesuffix(".json") for n in self.folder.names(suffix=".json") if n[0] != "_"]

    def read(self, shard: str) -> ShardRecord:
        """A shard's record. Raises InputError where it is missing or malformed."""
        try:
            return ShardRecord.model_validate(self.folder.read_json(f"{shard}.json"))
        except ValueError as error:
            raise InputError(f"{self.folder}/{shard}.json is no commit record: {error}") from error

    def all(self) -> Iterator[ShardRecord]:
        """Every record, in shard order, one at a time."""
        return (self.read(name) for name in self.names())

    def counts(self) -> Counts:
        """The sum of all records' counts."""
        total = Counts()
        for record in self.all():
            total = total + record.counts
        return total

    def withdraw(self) -> None:
        """Forget what output was to be made with, where no shard was ever finished with it.

        For stages that one process alone works on: another may have begun with it otherwise.
        """
        if self.made() is not None and not self.names():
            self.folder.remove(STAGE_FILE)

    def finished(self, shard: str, inputs: Mapping[str, str]) -> ShardRecord | None:
        """The record of `shard` where it was made from exactly these inputs, else None."""
        if not self.folder.exists(f"{shard}.json"):
            return None
        record = self.read(shard)
        return record if record.inputs == dict(inputs) else None

    def commit(self, record: ShardRecord) -> None:
        """Declare a shard finished. Its files must be in place. Counts must add up."""
        if not record.counts.adds_up():
            raise AssertionError(f"{self.stage} {record.shard}: counts do not sum: {record.counts}")
        self.folder.write_json(
            f"{record.shard}.json", record.model_dump(mode="json", by_alias=True)
        )

    def discard_plan(self) -> tuple[list[str], float]:
        """The files that starting over would move aside, and the seconds it took to make them."""
        files: list[str] = []
        clock = Clock()
        for record in self.all():
            files += [e.path for e in record.files.values() if not _is_outside(e.path)]
            clock.add(record)
        return files, clock.seconds()

    def set_aside(self) -> str:
        """Move this stage's files and records to ``.laionkit/aside/STAGE-TIME``; return that.

        Adopted files, which lie outside the dataset, stay where they are.
        """
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        first = f"{RECORDS}/aside/{self.stage.replace('/', '-')}-{stamp}"
        # Two within one second take names of their own: nothing set aside is ever written over.
        names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
        aside = next(name for name in names if not self.dataset.exists(name))
        for path in self.discard_plan()[0]:
            if self.dataset.exists(path):
                self.dataset.move(path, f"{aside}/{path}")
        self.dataset.move(f"{RECORDS}/{self.stage}", f"{aside}/{RECORDS}/{self.stage}")
        return aside


def _is_outside(path: str) -> bool:
    return path.startswith("/") or "://" in path


def _differences(
    made: StageMade, wanted: StageMade, config: StageConfig
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, as name → (on disk, now).

    A field younger than the record is compared with its default, which is what old records imply.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in type(config).model_fields.items()
    }
    differs = {}
    for name, now in wanted.config.items():
        old = made.config[name] if name in made.config else _json(defaults.get(name))
        if old != now:
            differs[name] = (old, now)
    for name in sorted({*made.facts, *wanted.facts}):
        if made.facts.get(name) != wanted.facts.get(name):
            differs[name] = (made.facts.get(name), wanted.facts.get(name))
    return differs


def _json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _flag(name: str, value: Any) -> str:
    flag = "--" + name.strip("_").replace("_", "-")
    if isinstance(value, bool):
        return flag if value else f"--no-{flag[2:]}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{flag} {text!r}" if " " in text else f"{flag} {text}".rstrip()
