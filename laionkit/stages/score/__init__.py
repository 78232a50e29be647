"""score: heads on stored vectors alone, without images and without CLIP.

One pass a column; each column has its own records, so that a new head is only its own work.
Vectors are brought back to unit length in fp32 before they are scored.
"""

import functools
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from laionkit.core.config import Names, StageConfig
from laionkit.core.embeddings import (
    EmbeddingRef,
    choose_model,
    embed_stage,
    list_embeddings,
    model_made,
    score_stage,
)
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import StageRecords
from laionkit.core.runner import Outcome, Runner, Site, StageReport, Task
from laionkit.core.scores import (
    begin_column,
    has_words,
    read_labels,
    similarity_column,
    write_scores,
)
from laionkit.ops.vectors import unit_rows

if TYPE_CHECKING:
    from laionkit.backends.clip.model import ClipModel
    from laionkit.backends.heads.head import Rows
    from laionkit.backends.heads.scorers import Scorer


DEFAULT_HEADS = ("aesthetic-v2",)


class ScoreConfig(StageConfig):
    """Which heads score which embeddings."""

    heads: Names = ()
    """Published heads by name, `clip_similarity`, head files, or prompts such as
    'marked=prompt:"a watermarked photo" vs "a clean photo"' (the first one's probability, as
    column `marked`); each becomes a column. Without heads, labels and an import it is
    aesthetic-v2, the head of LAION-Aesthetics V2, which wants ViT-L-14-quickgelu/openai."""
    labels: str | None = None
    """A file of labels, one a line: each picture's best one becomes a column called as the file
    is, and its probability among them another."""
    import_file: str | None = None
    """A csv or parquet file of scores made elsewhere, instead of heads: its column becomes a
    score column, recorded as declared."""
    on: Literal["key", "hash", "sha256"] = "key"
    """Column that joins the imported file with the dataset."""
    value: str | None = None
    """Column of the imported file that holds the scores, where it has several numbers."""
    as_name: str | None = None
    """Short name of the model whose embeddings to score, where the dataset has several."""


def score(
    dataset: str,
    config: ScoreConfig = ScoreConfig(),
    *,
    runner: Runner = Runner(),
) -> StageReport:
    """Score a dataset's embeddings with every head asked for, one column each."""
    folder = Folder(dataset)
    if config.import_file is not None:
        from laionkit.stages.score.importing import import_scores

        path, on, value = config.import_file, config.on, config.value
        column, report = import_scores(folder, path, on, value, config.as_name, runner)
        return _join(folder, {column: report})
    from laionkit.backends.heads.scorers import open_scorers

    model = choose_model(folder, config.as_name)
    facts = model_made(folder, model).facts
    refs = {ref.name: ref for ref in list_embeddings(folder, model)}
    has_text = bool(refs) and all(ref.text for ref in refs.values())
    scorers = open_scorers(
        config.heads or (DEFAULT_HEADS if config.labels is None else ()),
        str(facts.get("backbone")),
        has_text=has_text,
        encoder=functools.partial(load_encoder, model, facts),
        labels=read_labels(config.labels),
        similarity=similarity_column(folder, model),
    )
    tasks = [Task(ref.name, {embed_stage(model): ref.content}, ref.rows) for ref in refs.values()]
    settled = [
        begin_column(runner, folder, scorer.column, model, scorer.facts(), facts)
        for scorer in scorers
    ]
    reports = {}
    for scorer, column_config in zip(scorers, settled, strict=True):
        records = StageRecords(folder, score_stage(scorer.column))
        opener = functools.partial(ScoreWorker, folder.url, scorer, refs)
        reports[scorer.column] = runner.run(records, column_config, tasks, opener)
    return _join(folder, reports)


def load_encoder(model: str, facts: Mapping[str, Any]) -> "ClipModel":
    """The model that made the embeddings, to embed words with. Raises InputError for another.

    Adopted embeddings name their model and not its weights: the name is taken at its word.
    """
    from laionkit.backends.clip.loading import load
    from laionkit.backends.clip.model import text_encoder

    name, wanted = facts.get("model"), facts.get("weights_sha256")
    if not name:
        raise InputError(f"the embeddings in {model} do not say which model made them")
    loaded = load(str(name), None)
    if wanted and loaded.weights_sha256 != wanted:
        raise InputError(
            f"{name} now has weights of sha256 {loaded.weights_sha256}, the embeddings in {model} "
            f"were made with {wanted}: words embedded with these would not belong to them"
        )
    return text_encoder(loaded)


class ScoreWorker:
    """Scores shards of one column."""

    def __init__(
        self, url: str, scorer: "Scorer", refs: dict[str, EmbeddingRef], site: Site
    ) -> None:
        """Work on the dataset at `url`."""
        self.dataset, self.scorer, self.refs = Folder(url), scorer, refs

    def __enter__(self) -> "ScoreWorker":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Score one shard after the other."""
        for shard in shards:
            started = time.monotonic()
            ref = self.refs[shard]
            keys, captioned_N = read_keys(self.dataset, ref)
            values = self.scorer.score(self._rows(ref, captioned_N))
            if len(values) != len(keys):
                raise InputError(
                    f"{ref.image} has {len(values)} rows and {ref.metadata} has {len(keys)}: "
                    "they do not belong together"
                )
            written = write_scores(self.dataset, self.scorer.column, shard, keys, values)
            seconds = time.monotonic() - started
            yield Outcome(shard, Counts.of(len(keys), {}), {"scores": written}, seconds)

    def _rows(self, ref: EmbeddingRef, captioned_N: NDArray[np.bool_]) -> "Rows":
        from laionkit.backends.heads.head import Rows

        text_ND = None
        if self.scorer.needs_text and ref.text:
            text_ND = read_vectors(self.dataset, ref.text)
        return Rows(read_vectors(self.dataset, ref.image), text_ND, captioned_N)


def read_vectors(dataset: Folder, path: str) -> NDArray[np.float32]:
    """The vectors of an .npy file as unit rows. Raises InputError where it is none."""
    try:
        with dataset.open(path) as file:
            emb_ND = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no array of vectors: {error}") from error
    if emb_ND.ndim != 2 or emb_ND.dtype.kind != "f":
        raise InputError(f"{path} holds {emb_ND.dtype} {emb_ND.shape}, not rows of vectors")
    try:
        return unit_rows(emb_ND)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_keys(dataset: Folder, ref: EmbeddingRef) -> tuple[list[str], NDArray[np.bool_]]:
    """The keys of a shard's rows, and which rows have a caption."""
    table = dataset.read_table(ref.metadata)
    names = {"key", "image_path"} & set(table.column_names)
    if not names:
        raise InputError(f"{ref.metadata} has neither image_path nor key: rows cannot be named")
    keys = [str(key) for key in table["image_path" if "image_path" in names else "key"].to_pylist()]
    if "caption" not in table.column_names:
        return keys, np.ones(len(keys), dtype=bool)
    captions = table["caption"].to_pylist()
    return keys, np.array([has_words(caption) for caption in captions], dtype=bool)


def _join(folder: Folder, reports: dict[str, StageReport]) -> StageReport:
    """One report over all columns."""
    total = sum((report.counts for report in reports.values()), Counts())
    return StageReport(
        stage="score",
        dataset=folder.url,
        counts=total,
        shards=sum(report.shards for report in reports.values()),
        skipped=sum(report.skipped for report in reports.values()),
        seconds=round(sum(report.seconds for report in reports.values()), 3),
        outputs=tuple(f"scores/{column}" for column in reports),
        extra={
            "columns": {name: r.counts.model_dump(by_alias=True) for name, r in reports.items()}
        },
    )
