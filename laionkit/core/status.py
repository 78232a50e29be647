"""What a dataset holds, told from its records alone: stages, shards, counts, seconds."""

from collections import Counter
from typing import Any

from pydantic import BaseModel, ConfigDict

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import STAGE_FILE, StageRecords
from laionkit.core.schemas import MEASURED, RECORDS, Reason

WORST_HOSTS = 10


class StageStatus(BaseModel):
    """One stage's finished work. `config` is what it was made with.

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
    rows = [(_first_finish(folder, stage), stage_status(folder, stage)) for stage in stages]
    return [row for _, row in sorted(rows, key=lambda pair: (pair[0], pair[1].stage))]


def stage_status(dataset: Folder, stage: str) -> StageStatus:
    """Sum up one stage's records."""
    records, place = StageRecords(dataset, stage), f"{stage}/{MEASURED}"
    made = records.made()
    counts, shards, size, seconds, last = Counts(), 0, 0, 0.0, ""
    tried, superseded, was_lost, hosts = 0, 0, Counter[str](), Counter[str]()
    for record in records.all():
        counts, shards = counts + record.counts, shards + 1
        tried += record.extra.get("tried", 0)
        superseded += record.extra.get("superseded", 0)
        was_lost.update(record.extra.get("healed_from", {}))
        if "tried" not in record.extra:  # what is tried again was counted where it was lost first
            hosts.update(record.extra.get("worst_hosts", {}))
        size += sum(entry.size for entry in record.files.values())
        seconds += record.seconds
        last = max(last, record.finished_at)
    return StageStatus(
        stage=stage,
        shards=shards,
        counts=without_superseded(_without(counts, was_lost), superseded),
        bytes=size,
        seconds=round(seconds, 3),
        last=last,
        config=made.config if made else {},
        tried_again=tried,
        healed=was_lost.total(),
        worst_hosts=dict(hosts.most_common(WORST_HOSTS)),
        measured=dataset.read_json(place) if dataset.exists(place) else {},
    )


def _without(counts: Counts, was_lost: Counter[str]) -> Counts:
    """Counts without the earlier, lost attempts of samples that healed."""
    return Counts.of(counts.ok, {r: n - was_lost[r] for r, n in counts.reasons.items()})


def without_superseded(counts: Counts, superseded: int) -> Counts:
    """Counts in which so many rows are no longer ok, since later ones stand for them."""
    reasons = {**counts.reasons, Reason.SUPERSEDED.value: superseded}
    return Counts.of(counts.ok - superseded, reasons)


def _first_finish(dataset: Folder, stage: str) -> str:
    finished = [record.finished_at for record in StageRecords(dataset, stage).all()]
    return min(finished, default="~")
