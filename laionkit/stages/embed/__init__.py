"""embed: CLIP vectors of pictures and captions, and scores in the same pass.

Reads image shards (ours and adopted ones), writes ``embeddings/MODEL/`` in clip-retrieval's
layout and one score column a head.
"""

import functools
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from laionkit.core.config import Effort, Names, StageConfig
from laionkit.core.embeddings import embed_stage, model_folder_name, score_stage
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.files import Folder
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner, Site, StageReport, Task, Worker
from laionkit.core.schemas import EMBEDDINGS, SCORES
from laionkit.core.scores import (
    CLIP_SIMILARITY,
    begin_column,
    read_labels,
    similarity_column,
)
from laionkit.core.shards import ShardRef, list_shards

if TYPE_CHECKING:
    from laionkit.backends.clip.loading import Loaded
    from laionkit.backends.heads.scorers import Scorer
    from laionkit.backends.heads.watermark import WatermarkHead

# Model, download in GB and memory in GB at the automatic batch on a GPU, what it is good for.
GOOD_CHOICES = (
    ("ViT-L-14-quickgelu/openai", 1.7, 3, "LAION-Aesthetics and Stable Diffusion were filtered so"),
    ("ViT-B-32-quickgelu/openai", 0.6, 1, "fastest; LAION-5B's own similarity"),
    ("ViT-B-16-quickgelu/openai", 0.6, 1, "between the two"),
    ("ViT-L-14/datacomp_xl_s13b_b90k", 1.7, 3, "better search at the same cost"),
    ("ViT-H-14-quickgelu/dfn5b", 3.9, 6, "best search"),
)


class EmbedConfig(StageConfig):
    """Which model embeds what."""

    model: str | None = None
    """NAME/TAG of open_clip, NAME/WEIGHTS_FILE, hf-hub:OWNER/REPO, local-dir:FOLDER, or tiny (for
    demos and tests). Without it the stage stops and lists five good choices."""
    backbone_id: str | None = None
    """Whose embeddings these weights make, such as openai/ViT-L-14, where laionkit cannot know;
    recorded as declared. Heads go by it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number type of the model: auto is bf16 where the device is fast at it (GPUs since 2020, CPUs
    with AVX512-BF16 or AMX), else fp32. Vectors are normalised in fp32 always."""
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Pictures a batch; auto finds what fits the device's memory and is stored."""
    compile: bool = False
    """Let torch.compile fuse the image tower: minutes at the start, faster for millions of
    pictures on a GPU. Vectors differ in their last bits, so that it cannot change midway."""
    text: bool = True
    """Also embed captions, and score each picture's similarity with its own."""
    as_name: Effort[str | None] = None
    """Short name of the folder under embeddings/, by default spelt from the model's name."""
    heads: Effort[Names] = ()
    """Heads to score in the same pass, by name, file or prompt as in `laionkit score`, which adds
    others later without the images."""
    labels: Effort[str | None] = None
    """A file of labels, one a line: each picture's best one becomes a column called as the file
    is, and its probability among them another."""
    decoders: Effort[Literal["auto"] | Annotated[int, Field(ge=1)]] = "auto"
    """Decoding processes; auto leaves one core to the model where there are several."""


def embed(
    dataset: str,
    config: EmbedConfig = EmbedConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Embed every image shard of a dataset with one model."""
    folder = Folder(dataset)
    if config.model is None:
        raise ConfigError(_choices(dataset))
    refs = {ref.name: ref for ref in list_shards(folder)}
    if not refs:
        raise InputError(f"{dataset} has no image shards: run laionkit fetch or adopt first")
    box = ModelBox(config.model, config.backbone_id)
    facts = box.loaded().facts()
    model = model_folder_name(config.model, config.as_name)
    scorers, lookers = _open_heads(config, box, similarity_column(folder, model))
    records = StageRecords(folder, embed_stage(model))
    config = runner.begin(records, config, auto=_auto(config, box, runner), facts=facts)
    heads = {scorer.column: scorer.facts() for scorer in scorers}
    heads |= {head.column: head.facts() for head in lookers}
    for column, head_facts in heads.items():
        begin_column(runner, folder, column, model, head_facts, facts)
    tasks = [Task(ref.name, {"shards": ref.content}, ref.samples) for ref in refs.values()]
    opener = functools.partial(_open_worker, folder.url, refs, model, config, scorers, lookers, box)
    workers = _workers(runner)
    if workers > 1:
        box.empty()
    report = runner.run(records, config, tasks, opener, workers=workers)
    _note_unscored(runner, folder, records, heads)
    outputs = (f"{EMBEDDINGS}/{model}", *(f"{SCORES}/{column}" for column in heads))
    return report.model_copy(update={"outputs": outputs})


def _open_heads(
    config: EmbedConfig, box: "ModelBox", similarity: str
) -> tuple[list["Scorer"], list["WatermarkHead"]]:
    """What scores vectors, and what looks at the pictures themselves. Raises ConfigError."""
    from laionkit.backends.clip.model import text_encoder
    from laionkit.backends.heads.scorers import open_scorers
    from laionkit.backends.heads.watermark import WatermarkHead, is_watermark

    looking = [name for name in config.heads if is_watermark(name)]
    names = [name for name in config.heads if name not in looking]
    scorers = open_scorers(
        [*([CLIP_SIMILARITY] if config.text else []), *names],
        box.loaded().backbone,
        has_text=config.text,
        encoder=lambda: text_encoder(box.loaded()),
        labels=read_labels(config.labels),
        similarity=similarity,
    )
    return scorers, [WatermarkHead(name) for name in looking[:1]]


def _open_worker(
    url: str,
    refs: Mapping[str, ShardRef],
    folder: str,
    config: EmbedConfig,
    scorers: "list[Scorer]",
    lookers: "list[WatermarkHead]",
    box: "ModelBox",
    site: Site,
) -> AbstractContextManager[Worker]:
    from laionkit.backends.clip.device import Precision, choose_device, device_count
    from laionkit.backends.clip.model import ClipModel
    from laionkit.stages.embed.worker import EmbedWorker

    device = choose_device(site.device)
    if device_count(device) > 1:
        device = choose_device(f"{device.type}:{site.worker % device_count(device)}")
    precision = Precision(config.precision)
    model = ClipModel(box.loaded(), device, precision, compiled=config.compile)
    assert isinstance(config.batch_size, int)
    decoders = config.decoders if isinstance(config.decoders, int) else auto_decoders(site.workers)
    return EmbedWorker(
        Folder(url),
        dict(refs),
        folder,
        model,
        scorers,
        [head.to(device) for head in lookers],
        config.batch_size,
        config.text,
        decoders,
        site,
    )


def _auto(config: EmbedConfig, box: "ModelBox", runner: Runner) -> Mapping[str, Any]:
    """What resolves the settings that may be ``auto``, where no record holds them."""
    from laionkit.backends.clip.batch import choose_batch
    from laionkit.backends.clip.device import choose_device, choose_precision
    from laionkit.backends.clip.model import ClipModel

    device = choose_device(runner.device)
    precision = choose_precision(config.precision, device)
    return {
        "precision": lambda: str(precision),
        "batch_size": lambda: choose_batch(ClipModel(box.loaded(), device, precision)),
    }


def _workers(runner: Runner) -> int:
    """One process a device."""
    from laionkit.backends.clip.device import choose_device, device_count

    return device_count(choose_device(runner.device))


class ModelBox:
    """A model that is loaded once in each process, and never sent between processes."""

    def __init__(self, model: str, backbone_id: str | None) -> None:
        """Name the model; nothing is loaded yet."""
        self._model, self._backbone_id = model, backbone_id
        self._loaded: Loaded | None = None

    def loaded(self) -> "Loaded":
        """The model, loaded on the first call."""
        if self._loaded is None:
            from laionkit.backends.clip.loading import load

            self._loaded = load(self._model, self._backbone_id)
        return self._loaded

    def empty(self) -> None:
        """Let go of the model: where every GPU has a process of its own, it is only in the way."""
        import torch

        self._loaded = None
        torch.cuda.empty_cache()

    def __getstate__(self) -> dict[str, object]:
        """Leave the weights behind."""
        return {**self.__dict__, "_loaded": None}


def auto_decoders(processes: int = 1) -> int:
    """Decoders of each of `processes`: its cores but one, and at most 32, where disks set the pace.

    Cores are those that this process may use.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 2
    return max(1, min(32, cores // processes - 1))


def _note_unscored(
    runner: Runner, folder: Folder, records: StageRecords, heads: Mapping[str, Mapping[str, Any]]
) -> None:
    """Say which columns lack shards: those embedded before the head was asked for."""
    done = set(records.names())
    for column, facts in heads.items():
        left = done - set(StageRecords(folder, score_stage(column)).names())
        if left:
            runner.note(
                records.stage,
                f"{len(left)} shards were embedded before {column} was asked for: run "
                f"laionkit score {folder} --heads {facts['head']}",
                logging.WARNING,
            )


def _choices(dataset: str) -> str:
    """The error of a missing model: five good ones, one line."""
    from laionkit.backends.heads.published import heads_that_fit

    lines = []
    for name, download, memory, why in GOOD_CHOICES:
        architecture, _, tag = name.partition("/")
        heads = heads_that_fit(f"{tag}/{architecture.removesuffix('-quickgelu')}")
        fit = f"heads {', '.join(heads)}" if heads else "no published heads"
        lines.append(f"{name} ({download} GB to download, {memory} GB of memory; {why}; {fit})")
    return (
        f"laionkit embed {dataset} needs --model. Five good choices: {'; '.join(lines)}. "
        "For a try without a download: --model tiny"
    )
