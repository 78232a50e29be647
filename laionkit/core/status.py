"""What a dataset holds, told from its records alone: stages, shards, counts, seconds."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import STAGE_FILE, Clock, ShardRecord, StageRecords
from laionkit.core.schemas import MEASURED, RECORDS, Reason

WORST_HOSTS = 10


class StageStatus(BaseModel):
    """One stage's finished work. `config` is what it was made with.

    `bytes` is the size of its files, `seconds` how long it was at work (shards done side by side
    count once), `last` when its latest shard was finished (UTC).

    Samples tried again are counted once, as what became of them last: `tried_again` and `healed`
    say how many there were. Earlier rows of pictures that changed count as superseded.
    `worst_hosts` maps servers to the samples lost there, worst first; a host with few losses in
    every shard may be missing. `measured` is what the stage found of its
    own output: of an index its recall, by kind of query and filter.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    shards: int
    counts: Counts
    bytes: int
    seconds: float
    last: str
    config: dict[str, object]
    tried_again: int = 0
    healed: int = 0
    worst_hosts: dict[str, int] = {}
    measured: dict[str, Any] = {}


def recorded_stages(dataset: Folder) -> list[str]:
    """Names of the stages that have records, ``embed/tiny`` among them."""
    tops = [top for top in dataset.folders(RECORDS) if top != "aside"]
    below = [f"{top}/{name}" for top in tops for name in dataset.folders(f"{RECORDS}/{top}")]
    return [s for s in sorted(tops + below) if dataset.exists(f"{RECORDS}/{s}/{STAGE_FILE}")]


def status(dataset: str) -> list[StageStatus]:
    """Sum up every stage of a dataset, in the order their first shards were finished.

    Raises InputError where the folder holds no dataset.
    """
    folder = Folder(dataset)
    stages = recorded_stages(folder)
    if not stages:
        raise InputError(f"{dataset} holds no laionkit dataset: laionkit metadata begins one")
    found = [_Sum.of(StageRecords(folder, stage)) for stage in stages]
    found.sort(key=lambda each: (each.first, each.records.stage))
    return [each.status() for each in found]


@dataclass
class _Sum:
    """What a stage's records come to, taken in one pass over them: there may be thousands."""

    records: StageRecords
    ok: int = 0
    shards: int = 0
    bytes: int = 0
    tried: int = 0
    superseded: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    was_lost: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    clock: Clock = field(default_factory=Clock)
    first: str = "~"
    last: str = ""

    @classmethod
    def of(cls, records: StageRecords) -> "_Sum":
        summed = cls(records)
        for record in records.all():
            summed._add(record)
        return summed

    def _add(self, record: ShardRecord) -> None:
        extra = record.extra
        self.ok += record.counts.ok
        self.reasons.update(record.counts.reasons)
        self.shards += extra.get("shards", 1)  # a part of the work list holds many
        self.bytes += sum(entry.size for entry in record.files.values())
        self.tried += extra.get("tried", 0)
        self.superseded += extra.get("superseded", 0)
        self.was_lost.update(extra.get("healed_from", {}))
        if "tried" not in extra:  # what is tried again was counted where it was lost first
            self.hosts.update(extra.get("worst_hosts", {}))
        self.clock.add(record)
        self.first = min(self.first, record.finished_at)
        self.last = max(self.last, record.finished_at)

    def status(self) -> StageStatus:
        made, place = self.records.made(), f"{self.records.stage}/{MEASURED}"
        dataset = self.records.dataset
        # The earlier, lost attempts of samples that healed are no losses any more.
        lost = {reason: n - self.was_lost[reason] for reason, n in self.reasons.items()}
        return StageStatus(
            stage=self.records.stage,
            shards=self.shards,
            counts=without_superseded(Counts.of(self.ok, lost), self.superseded),
            bytes=self.bytes,
            seconds=round(self.clock.seconds(), 3),
            last=self.last,
            config=made.config if made else {},
            tried_again=self.tried,
            healed=self.was_lost.total(),
            worst_hosts=dict(self.hosts.most_common(WORST_HOSTS)),
            measured=dataset.read_json(place) if dataset.exists(place) else {},
        )


def without_superseded(counts: Counts, superseded: int) -> Counts:
    """Counts in which so many rows are no longer ok, since later ones stand for them."""
    reasons = {**counts.reasons, Reason.SUPERSEDED.value: superseded}
    return Counts.of(counts.ok - superseded, reasons)
