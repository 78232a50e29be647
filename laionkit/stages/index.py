"""index: make a model's embeddings searchable.

Reads embeddings/MODEL/ (own and adopted), writes index/MODEL/: segments of our own, and beside
them image.index, image.json and metadata/ as clip-retrieval lays them out.
"""

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from laionkit.core.config import Effort, StageConfig
from laionkit.core.embeddings import EmbeddingRef, choose_model, list_embeddings, model_made
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts, ShardDone, StageEnded, StageStarted
from laionkit.core.records import FileEntry, ShardRecord, StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import INDEX, MEASURED

if TYPE_CHECKING:
    from laionkit.search.build import Built, Shape
    from laionkit.search.explain import Explanation
    from laionkit.search.writer import IndexWriter


class IndexConfig(StageConfig):
    """How a model's embeddings are made searchable."""

    format_version: ClassVar[int] = 2

    as_name: str | None = None
    """Short name of the model whose embeddings are indexed; none: the only one there is."""
    kind: Literal["auto", "exact", "ivf"] = "auto"
    """exact: every search scans all vectors. ivf: lists, of which a search probes the nearest.
    auto: exact up to exact_mib, ivf above."""
    exact_mib: int = Field(256, ge=0)
    """Size of the float16 vectors, in MiB, up to which auto scans them all: 256 MiB take about
    12 ms on one core of a server and 30 ms of a laptop, within the 50 ms a search may take."""
    lists: int | None = Field(None, ge=1)
    """Count of lists of an ivf index; none: the square root of the rows."""
    codes_mib: int = Field(16_384, ge=0)
    """Memory that searches may keep the lists' codes in, in MiB: where codes of 8 bits a dimension
    take more they have 4, and a row takes twice as long to score. Half of a 32 GB machine."""
    seed: int = 0
    """Seed of the sample that the lists are trained on."""
    memory_mib: int = Field(2048, ge=64)
    """Memory that a build works in, in MiB, beside the libraries: bounds the rows that lists are
    trained on, the rows worked on at a time and the metadata put in order at a time."""
    recall: float = Field(0.95, ge=0.5, le=0.999)
    """Recall that searches by lists aim at, under any filter; a higher one probes more of them."""
    compact: Effort[bool] = False
    """Build one segment of everything. New shards otherwise go into a segment of their own, and
    are seen by other tools (image.index) only after a compaction, which comes by itself when a
    quarter is new."""
    evaluate: Effort[int] = Field(0, ge=0, le=10_000)
    """Count of text and of image queries to measure recall with, by selectivity and correlation
    of a filter; 0: none. What is found is kept in index/MODEL/evaluation.json and told by status,
    until the index is built anew."""


def index(
    dataset: str, config: IndexConfig = IndexConfig(), *, runner: Runner = Runner()
) -> StageReport:
    """Index every finished shard of a model's embeddings."""
    from laionkit.search.layout import index_folder, read_pointer
    from laionkit.search.scores import lay_out_scores
    from laionkit.search.writer import IndexWriter

    runner.require_whole("index")
    started = time.monotonic()
    folder = Folder(dataset)
    model = choose_model(folder, config.as_name)
    facts = model_made(folder, model).facts
    refs = [ref for ref in list_embeddings(folder, model) if ref.rows]
    if not refs:
        raise InputError(f"{folder}: the embeddings of {model} have no rows: nothing to index")
    records = StageRecords(folder, f"{INDEX}/{model}")
    named = config.model_copy(update={"as_name": model})
    if read_pointer(index_folder(folder, model)) is None:
        records.withdraw()  # by a build that failed, so that a corrected one may differ
    settled = runner.begin(records, named, facts=_identity(facts))
    writer = IndexWriter(folder, model, facts, functools.partial(_shape, settled))
    if writer.pointer() is not None and not records.names():
        built = [writer.rebuild(refs)]  # --fresh set the segments aside
    else:
        built = writer.bring_up(refs, compact=settled.compact)
    runner.progress.emit(StageStarted(records.stage, 1, int(not built), writer.rows()))
    seconds = time.monotonic() - started
    for segment in built:
        _commit(records, settled, segment, seconds, runner)
    if built and built[0].info.name == writer.segments()[0].name:
        writer.folder.remove(MEASURED)
    _tidy(records, writer.folder, {info.name for info in writer.segments()})
    lay_out_scores(folder, writer.folder, writer.segments())
    report = _report(records, writer, not built, time.monotonic() - started, runner)
    if not settled.evaluate:
        return report
    cells = _evaluate(folder, model, refs, settled)
    return report.model_copy(update={"extra": {**report.extra, "evaluation": cells}})


def explain_index(dataset: str, config: IndexConfig = IndexConfig()) -> "Explanation":
    """Tell how a model's embeddings would be indexed, why, and what else there is; build nothing.

    Where the index is there, its segments and its measured recall are told too.
    """
    from laionkit.search.explain import (
        Explanation,
        describe_index,
        explain_options,
        is_laid_out_so,
        read_measured,
        row_bytes,
    )
    from laionkit.search.layout import index_folder, read_pointer
    from laionkit.search.reach import Reach
    from laionkit.search.searcher import Searcher

    folder = Folder(dataset)
    model = choose_model(folder, config.as_name)
    dim = int(model_made(folder, model).facts["dim"])
    rows = sum(ref.rows for ref in list_embeddings(folder, model))
    place = index_folder(folder, model)
    pointer = read_pointer(place)
    shape, measured = _shape(config, rows, dim), read_measured(place)
    reach = pointer.segments[0].reach if pointer else Reach()
    built: Any = describe_index(Searcher(dataset, model))["segments"] if pointer else ()
    like_this = pointer is not None and is_laid_out_so(pointer.segments[0], shape)
    return Explanation(
        model=model,
        rows=rows,
        dim=dim,
        why=_why(config, rows, dim),
        options=explain_options(rows, dim, shape, reach, measured if like_this else ()),
        row_bytes=row_bytes(place, pointer, rows),
        segments=tuple(built),
        measured=measured,
    )


def _why(config: IndexConfig, rows: int, dim: int) -> str:
    """Why `_shape` chooses as it does."""
    codes = ""
    if _shape(config, rows, dim).code_bits == 4:
        codes = f"; 8-bit codes take more than --codes-mib {config.codes_mib}"
    if config.kind != "auto":
        return f"--kind {config.kind} was asked for{codes}"
    mib, most = rows * dim * 2 / 2**20, config.exact_mib
    if mib <= most:
        return f"{mib:,.1f} MiB of vectors are within --exact-mib {most}: every search scans all"
    return f"{mib:,.1f} MiB of vectors are above --exact-mib {most}: a search probes lists{codes}"


def _evaluate(
    dataset: Folder, model: str, refs: Sequence[EmbeddingRef], config: IndexConfig
) -> list[dict[str, Any]]:
    """Measure the recall of what searches now find, and keep it beside the index."""
    from laionkit.search.evaluation import Evaluation, Queries, draw_rows, evaluate
    from laionkit.search.reach import K
    from laionkit.search.searcher import Searcher
    from laionkit.search.source import JUDGE, VectorSource

    source = VectorSource(dataset, refs, None)
    searcher = Searcher(dataset.url, model)
    texts = source.sample_texts(config.evaluate, config.seed, JUDGE)
    images = draw_rows(searcher, config.evaluate, config.seed)
    asked = {"texts": Queries.of_texts(texts), "images": images}
    cells = evaluate(searcher, asked, memory_mib=config.memory_mib)
    first = searcher.segments[0].info.name
    found = Evaluation(segment=first, rows=searcher.count, k=K, cells=tuple(cells))
    value = found.model_dump(mode="json")
    dataset.write_json(f"{INDEX}/{model}/{MEASURED}", value)
    return list(value["cells"])


def _identity(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What an index must not mix: which model's vectors, of how many dimensions."""
    return {name: facts[name] for name in ("backbone", "dim") if name in facts}


def _shape(config: IndexConfig, rows: int, dim: int) -> "Shape":
    """How a segment of `rows` rows is laid out."""
    from laionkit.search.build import Shape, code_bytes, default_lists

    small = rows * dim * 2 <= config.exact_mib * 2**20
    if config.kind == "exact" or (config.kind == "auto" and small):
        return Shape(0, config.seed, config.memory_mib, config.recall)
    lists = min(rows, config.lists or default_lists(rows))
    bits = 8 if code_bytes(rows, dim, 8) <= config.codes_mib * 2**20 else 4
    return Shape(lists, config.seed, config.memory_mib, config.recall, bits)


def _commit(
    records: StageRecords, config: IndexConfig, built: "Built", seconds: float, runner: Runner
) -> None:
    """Record a segment."""
    made = records.made()
    counts = Counts.of(built.info.rows, {})
    records.commit(
        ShardRecord(
            shard=built.info.name,
            fingerprint=made.fingerprint() if made else "",
            inputs=built.info.shards,
            counts=counts,
            files={role: FileEntry.of(written) for role, written in built.files.items()},
            extra={"lists": built.info.lists, "reach": built.info.reach.model_dump(mode="json")},
            effort=config.effort(),
            seconds=round(seconds, 3),
            finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
    )
    runner.progress.emit(ShardDone(records.stage, built.info.name, counts, seconds))


def _tidy(records: StageRecords, place: Folder, alive: Collection[str]) -> None:
    """Remove the records and files of segments that no reader is pointed to any more.

    Whoever has them open keeps them: a mapped file outlives its name.
    """
    from laionkit.search.layout import SEGMENTS
    from laionkit.search.scores import remove_scores

    for name in set(records.names()) - set(alive):
        record = records.read(name)
        records.folder.remove(f"{name}.json")
        for entry in record.files.values():
            if f"/{SEGMENTS}/{name}/" in entry.path:
                records.dataset.remove(entry.path)
        remove_scores(place, name)


def _report(
    records: StageRecords, writer: "IndexWriter", done: bool, seconds: float, runner: Runner
) -> StageReport:
    counts = Counts.of(writer.rows(), {})
    runner.progress.emit(StageEnded(records.stage, Counts() if done else counts, seconds))
    segments = writer.segments()
    pending = sum(info.rows - info.dead for info in segments[1:])
    notes = [f"{pending:,} rows are new since image.index was written"] if pending else []
    from laionkit.search.explain import describe_index
    from laionkit.search.searcher import Searcher

    model = records.stage.partition("/")[2]
    explained = describe_index(Searcher(records.dataset.url, model))
    return StageReport(
        stage=records.stage,
        dataset=records.dataset.url,
        counts=counts,
        shards=len(segments),
        skipped=len(segments) if done else 0,
        seconds=round(seconds, 3),
        outputs=(f"{writer.place}/image.index",),
        notes=tuple(notes),
        extra={"index": explained},
    )
