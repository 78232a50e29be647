"""One model on one device: batches decoded ahead across shards' borders, then vectors, scores.

Shapes: N pictures of a shard, B of a batch, D dimensions. Batches never mix shards, so that a
shard's bytes do not depend on which shards ran before it.
"""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from laionkit.backends.clip.device import Utilization
from laionkit.backends.clip.model import ClipModel
from laionkit.backends.heads.head import Rows
from laionkit.backends.heads.scorers import Scorer
from laionkit.backends.heads.watermark import WatermarkHead
from laionkit.core.embeddings import score_stage
from laionkit.core.errors import InputError
from laionkit.core.files import Folder, Written
from laionkit.core.progress import Counts, Note, SamplesDone
from laionkit.core.runner import Outcome, Site
from laionkit.core.schemas import Reason
from laionkit.core.scores import has_words, write_scores
from laionkit.core.shards import ShardRef
from laionkit.ops.vectors import unit_rows
from laionkit.stages.embed import output
from laionkit.stages.embed.pool import Batch, DecodePool
from laionkit.stages.embed.source import (
    Dropped,
    LocalCopies,
    ShardSource,
    batches,
    open_shard,
)

# Batches decoded or being decoded ahead of the model.
SLOTS = 4
# A run long enough, and a share of it spent waiting large enough, to be worth a line.
LONG_RUN_S, WORTH_SAYING = 30.0, 0.2
# A unit vector in float16 is off by up to 1e-3.
UNIT_TOLERANCE = 0.01


# Rows on their way from the device.
Coming = Callable[[], NDArray[np.float32]]


@dataclass
class _Shard:
    """A shard in flight: what of it is embedded so far."""

    source: ShardSource
    tokens_NT: torch.Tensor | None
    started: float
    images: Coming | None = None
    texts: Coming | None = None
    looks: dict[str, Coming] = field(default_factory=dict)
    waited_s: float = 0.0
    kept: list[int] = field(default_factory=list)
    parts: list[torch.Tensor] = field(default_factory=list)
    lost: list[Dropped] = field(default_factory=list)
    looked: dict[str, list[torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """A batch on its way to the model."""

    shard: _Shard
    rows: range
    batch: Batch
    is_last: bool


class EmbedWorker:
    """Embeds shards; see the module."""

    def __init__(
        self,
        dataset: Folder,
        refs: dict[str, ShardRef],
        folder: str,
        model: ClipModel,
        scorers: Sequence[Scorer],
        lookers: Sequence[WatermarkHead],
        batch: int,
        text: bool,
        decoders: int,
        site: Site,
    ) -> None:
        """Write under ``embeddings/FOLDER``; `decoders` is the number of decoding processes."""
        self.dataset, self.refs, self.folder = dataset, refs, folder
        self.model, self.scorers, self.batch, self.text = model, scorers, batch, text
        self.lookers = lookers
        self.report = site.report
        self.waited_s = 0.0
        self.gpu = Utilization(model.device)
        self.local = LocalCopies()
        frames = [model.preprocess, *(head.preprocess for head in lookers)]
        self.pool = DecodePool(frames, batch, decoders, SLOTS)

        # A GPU goes on with the next shard while this machine's processor finishes the last one; a
        # CPU has no time to spare, and Apple's GPUs are to be used from one thread.
        self.finishes_beside = model.device.type == "cuda"
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> "EmbedWorker":
        self._exit.callback(self.local.close)
        self._exit.enter_context(self.pool)
        self._exit.enter_context(self.model.busy(self.batch))
        self._opener = self._exit.enter_context(ThreadPoolExecutor(1, "open"))
        self._finisher = self._exit.enter_context(ThreadPoolExecutor(1, "finish"))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def process(self, shards: Iterator[str]) -> Iterator[Outcome]:
        """Embed shards in the order given; the next ones are decoded meanwhile."""
        coming = self._plan(shards)
        ahead: deque[_Work] = deque()
        finishing: deque[Future[Outcome]] = deque()
        started = time.monotonic()
        while True:
            while self.pool.has_room and (work := next(coming, None)):
                ahead.append(work)
            if not ahead:
                break
            work = ahead.popleft()
            self._embed(work)
            if work.is_last:
                yield from self._end(work.shard, finishing)

        for future in finishing:
            yield future.result()
        self._say_what_bounds(time.monotonic() - started)

    def _end(self, shard: _Shard, finishing: deque[Future[Outcome]]) -> Iterator[Outcome]:
        """Embed the captions of a shard whose pictures are done; yield what is finished."""
        shard.images = self.model.bring_home(shard.parts)
        shard.looks = {name: self.model.bring_home(parts) for name, parts in shard.looked.items()}
        if shard.tokens_NT is not None:
            shard.texts = self.model.embed_captions(shard.tokens_NT[shard.kept], self.batch)
        if not self.finishes_beside:
            yield self._finish(shard)
            return
        finishing.append(self._finisher.submit(self._finish, shard))
        while len(finishing) > 1 or (finishing and finishing[0].done()):
            yield finishing.popleft().result()

    def _open(self, name: str) -> _Shard:
        """Read what a shard holds, and tokenise its captions."""
        started = time.monotonic()
        source = open_shard(self.dataset, self.refs[name], self.local)
        captions = [caption or "" for caption in source.captions]
        tokens = self.model.tokenizer(captions) if self.text and captions else None
        return _Shard(source, tokens, started)

    def _opened(self, shards: Iterator[str]) -> Iterator[_Shard]:
        """Shards in their order, the next one opened while one is embedded."""
        opening: deque[Future[_Shard]] = deque()
        for name in shards:
            opening.append(self._opener.submit(self._open, name))
            if len(opening) > 1:
                yield opening.popleft().result()
        while opening:
            yield opening.popleft().result()

    def _plan(self, shards: Iterator[str]) -> Iterator[_Work]:
        """Open shard after shard and hand its batches to the decoders."""
        for shard in self._opened(shards):
            members = [(m.offset, m.size) for m in shard.source.members]
            for rows in batches(len(members), self.batch):
                batch = self.pool.submit(shard.source.path, [members[i] for i in rows])
                yield _Work(shard, rows, batch, rows.stop == len(members))

    def _embed(self, work: _Work) -> None:
        started = time.monotonic()
        lost = work.batch.wait()
        waited = time.monotonic() - started
        work.shard.waited_s += waited
        self.waited_s += waited
        good = [i for i, why in enumerate(lost) if why is None]
        keys = work.shard.source.keys
        for i, why in enumerate(lost):
            if why is not None:
                work.shard.lost.append(Dropped(keys[work.rows[i]], *why))
        if good:
            pixels = self.pool.pixels(work.batch)
            fits = self.model.fits
            chosen = pixels if len(good) == len(pixels) else pixels[good]
            work.shard.parts.append(self.model.embed_images(chosen))
            if self.model.fits < fits:
                self._say_halved()
            for frame, head in enumerate(self.lookers, start=1):
                values = head.score(self.pool.pixels(work.batch, frame)[good])
                work.shard.looked.setdefault(head.column, []).append(values)
        work.shard.kept += [work.rows[i] for i in good]
        self.pool.release(work.batch)
        reasons = output.reasons_of([Dropped("", *why) for why in lost if why is not None])
        counts = Counts.of(len(good), reasons)
        self.report(SamplesDone(f"embed/{self.folder}", counts, gpu=self.gpu.share()))

    def _say_what_bounds(self, seconds: float) -> None:
        """Tell the user of a long run whether pictures or the model set its pace."""
        share = self.waited_s / seconds if seconds > LONG_RUN_S else 0.0
        if share > WORTH_SAYING:
            text = (
                f"the model waited {share:.0%} of the time for pictures: more --decoders may help"
            )
            self.report(Note(f"embed/{self.folder}", text))

    def _say_halved(self) -> None:
        text = (
            f"out of memory on {self.model.device}: going on with {self.model.fits} pictures at "
            f"once; --batch-size {self.model.fits} starts so"
        )
        self.report(Note(f"embed/{self.folder}", text, logging.WARNING))

    def _finish(self, shard: _Shard) -> Outcome:
        """Take a shard's vectors as they come home, score, write."""
        source, name = shard.source, shard.source.name
        assert shard.images is not None
        nothing = np.empty((0, self.model.dim), np.float32)
        image_ND, text_ND = _halves(shard.images()), None
        if self.text:
            text_ND = _halves(shard.texts() if shard.texts else nothing)
        good_N = self._have_vectors(shard, image_ND, text_ND)
        image_ND, text_ND = image_ND[good_N], None if text_ND is None else text_ND[good_N]
        dropped = [*source.dropped, *shard.lost]
        files = {
            "img_emb": output.write_vectors(self.dataset, self.folder, "img_emb", name, image_ND)
        }
        if text_ND is not None:
            files["text_emb"] = output.write_vectors(
                self.dataset, self.folder, "text_emb", name, text_ND
            )
        files["metadata"] = output.write_metadata(self.dataset, self.folder, source, shard.kept)
        files["dropped"] = output.write_dropped(self.dataset, self.folder, name, dropped)
        self.local.done(source.path)
        counts = Counts.of(len(shard.kept), output.reasons_of(dropped))
        also = self._score(shard, good_N, image_ND, text_ND)
        seconds = time.monotonic() - shard.started
        extra: dict[str, Any] = {"waited_for_pictures_s": round(shard.waited_s, 3)}
        if self.model.fits < self.batch:
            extra["pictures_at_once"] = self.model.fits
        return Outcome(name, counts, files, seconds, extra, also)

    def _have_vectors(
        self, shard: _Shard, image_ND: NDArray[np.float16], text_ND: NDArray[np.float16] | None
    ) -> NDArray[np.bool_]:
        """Which samples the model gave unit vectors; the others are lost, with a reason.

        Raises InputError where that is none of them.
        """
        good_N = np.ones(len(image_ND), dtype=bool)
        for emb_ND in (image_ND, text_ND):
            if emb_ND is not None:
                length_N = np.linalg.norm(emb_ND.astype(np.float32), axis=1)
                good_N &= np.abs(length_N - 1) < UNIT_TOLERANCE  # false for NaN, too
        if len(good_N) and not good_N.any():
            raise InputError(
                f"{self.model.name} in {self.model.precision} gives vectors that are no numbers or "
                "nothing: its weights are broken, or want --precision fp32"
            )
        detail = f"the model gave no vector in {self.model.precision}"
        for row in np.flatnonzero(~good_N):
            key = shard.source.keys[shard.kept[row]]
            shard.lost.append(Dropped(key, Reason.ENGINE_FAILED, detail))
        shard.kept = [i for i, good in zip(shard.kept, good_N, strict=True) if good]
        return good_N

    def _score(
        self,
        shard: _Shard,
        good_N: NDArray[np.bool_],
        image_ND: NDArray[np.float16],
        text_ND: NDArray[np.float16] | None,
    ) -> dict[str, tuple[dict[str, Written], Counts]]:
        """Score what was stored, so that scoring later gives the same values."""
        captioned = [has_words(shard.source.captions[i]) for i in shard.kept]
        text = None if text_ND is None else unit_rows(text_ND)
        rows = Rows(unit_rows(image_ND), text, np.array(captioned, dtype=bool))
        keys = [shard.source.keys[i] for i in shard.kept]
        columns = {scorer.column: scorer.score(rows) for scorer in self.scorers}
        for head in self.lookers:
            look = shard.looks.get(head.column)
            columns[head.column] = look()[good_N] if look else np.empty(0, np.float32)
        also = {}
        for column, values in columns.items():
            written = write_scores(self.dataset, column, shard.source.name, keys, values)
            also[score_stage(column)] = ({"scores": written}, Counts.of(len(keys), {}))
        return also


def _halves(emb_ND: NDArray[np.float32]) -> NDArray[np.float16]:
    return emb_ND.astype(np.float16)
