"""Pictures decoded ahead of the model, in processes of their own, through shared memory.

The memory is a ring of slots, one batch each. A slot is filled by several jobs at once and freed
when the model has taken its pixels, so that memory is bounded whatever the shards hold.

Legend: B pictures a batch, H W pixels.
"""

import contextlib
import json
import mmap
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.clip import Preprocess
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason
from laionkit.stages.embed.decoder import READY, Frame, job_line

PICTURES_A_JOB = 16
# A picture within the pixel limit decodes in under two seconds on a slow core.
JOB_TIMEOUT_S = 120.0

Member = tuple[int, int]
Lost = tuple[Reason, str]


@dataclass
class Batch:
    """A batch on its way: its slot, how many pictures, the jobs that fill it."""

    slot: int
    size: int
    jobs: list[Future[list[Lost | None]]]

    def wait(self) -> list[Lost | None]:
        """Wait for all jobs; for each picture None, or why it is lost."""
        return [lost for job in self.jobs for lost in job.result()]


class DecodePool:
    """Decoding processes and the memory they share with this one."""

    def __init__(
        self, preprocesses: Sequence[Preprocess], batch: int, workers: int, slots: int
    ) -> None:
        """Hold `slots` batches of `batch` pictures for each of `preprocesses`."""
        self._frames = [Frame(p, 0) for p in preprocesses]
        self._batch = batch
        self._slot_bytes = sum(batch * frame.picture_bytes for frame in self._frames)
        self._memory_file = _memory_file(self._slot_bytes * slots)
        self._memory = mmap.mmap(self._memory_file, self._slot_bytes * slots)
        self._free: queue.Queue[int] = queue.Queue()
        for slot in range(slots):
            self._free.put(slot)
        self._lane = threading.local()
        self._lanes: list[_Decoder] = []
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> "DecodePool":
        """Use as a context: leaving it ends the processes."""
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes; jobs not begun are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self._lanes:
            decoder.stop()
        self._threads.shutdown(wait=True)
        os.close(self._memory_file)

    @property
    def has_room(self) -> bool:
        """Whether `submit` would find a free slot."""
        return not self._free.empty()

    def submit(self, path: str, members: Sequence[Member]) -> Batch:
        """Begin to decode members of a local file into a free slot."""
        slot = self._free.get_nowait()
        jobs = [
            self._threads.submit(self._decode, path, list(members[i : i + PICTURES_A_JOB]), slot, i)
            for i in range(0, len(members), PICTURES_A_JOB)
        ]
        return Batch(slot, len(members), jobs)

    def pixels(self, batch: Batch, frame: int = 0) -> NDArray[np.uint8]:
        """A batch's pictures for one preprocess, uint8 [B, H, W, 3]: a view of the slot."""
        preprocess = self._frames[frame].preprocess
        count = batch.size * self._frames[frame].picture_bytes
        flat: NDArray[np.uint8] = np.frombuffer(
            self._memory, np.uint8, count, self._start(batch.slot, frame)
        )
        return flat.reshape(batch.size, preprocess.height_px, preprocess.width_px, 3)

    def release(self, batch: Batch) -> None:
        """Free a batch's slot: its pixels were taken."""
        self._free.put(batch.slot)

    def _start(self, slot: int, frame: int) -> int:
        before = sum(self._batch * f.picture_bytes for f in self._frames[:frame])
        return slot * self._slot_bytes + before

    def _decode(self, path: str, members: list[Member], slot: int, row: int) -> list[Lost | None]:
        """Run one job; after a crash or a timeout, its pictures one by one."""
        try:
            return self._run(path, members, slot, row)
        except _DecoderLost as error:
            if len(members) == 1:
                return [(error.reason, str(error))]
        one_by_one = []
        for i, member in enumerate(members):
            try:
                one_by_one += self._run(path, [member], slot, row + i)
            except _DecoderLost as error:
                one_by_one.append((error.reason, str(error)))
        return one_by_one

    def _run(self, path: str, members: list[Member], slot: int, row: int) -> list[Lost | None]:
        frames = [
            (frame.preprocess.facts(), self._start(slot, i) + row * frame.picture_bytes)
            for i, frame in enumerate(self._frames)
        ]
        answer = self._decoder().ask(job_line(path, members, frames))
        return [(Reason(lost[0]), lost[1]) if lost else None for lost in answer]

    def _decoder(self) -> "_Decoder":
        """This thread's process, a new one where the last was lost."""
        decoder: _Decoder | None = getattr(self._lane, "decoder", None)
        if decoder is None or not decoder.alive:
            decoder = _Decoder(self._memory_file, len(self._memory))
            self._lane.decoder = decoder
            self._lanes.append(decoder)
        return decoder


class _DecoderLost(Exception):
    """The process crashed or hung on a job."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class _Decoder:
    """One decoding process."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.alive = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "laionkit.stages.embed.decoder", str(descriptor), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(descriptor,),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != READY:
            self.stop()
            raise StageFailed(
                f"a decoding process did not start (exit code {self._process.returncode}): run "
                f"{sys.executable} -m laionkit.stages.embed.decoder to see why"
            )

    def ask(self, line: bytes) -> list[list[str] | None]:
        """Send a job and wait for its answer. Raises _DecoderLost."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone: the answer below is empty
        if not select.select([self._process.stdout], [], [], JOB_TIMEOUT_S)[0]:
            self.stop()
            raise _DecoderLost(Reason.DECODE_TIMEOUT, f"no answer within {JOB_TIMEOUT_S:.0f} s")
        answer = self._process.stdout.readline()
        if not answer:
            self.stop()
            code = self._process.returncode
            raise _DecoderLost(Reason.WORKER_CRASHED, f"the decoder died (exit code {code})")
        lost: list[list[str] | None] = json.loads(answer)
        return lost

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _memory_file(size: int) -> int:
    """A descriptor of `size` bytes of memory that vanish with the processes that hold it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("laionkit-pictures", 0)
    else:
        descriptor, name = tempfile.mkstemp(prefix="laionkit-pictures-")
        Path(name).unlink()
    os.truncate(descriptor, size)
    return descriptor
