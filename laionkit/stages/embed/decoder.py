"""A process that only decodes: ``python -m laionkit.stages.embed.decoder FD BYTES``.

Jobs come as JSON lines on stdin, pictures go into the shared memory behind FD, one answer a job
as a JSON line on stdout: for each picture null, or why there is none. A process of its own
because hostile pictures crash decoders; one that never imports torch starts fast and stays small.
"""

import json
import mmap
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.clip import Preprocess
from laionkit.core.schemas import Reason
from laionkit.ops.images import PictureError, decode

READY = b"ready\n"
# More than a picture within the pixel limit takes; what is larger is not even read.
MAX_PICTURE_BYTES = 1 << 29


@dataclass(frozen=True)
class Frame:
    """Where one model's pictures of a job go: uint8 [N, H, W, 3] from byte `start` on."""

    preprocess: Preprocess
    start: int

    @property
    def picture_bytes(self) -> int:
        """Bytes of one picture."""
        return self.preprocess.height_px * self.preprocess.width_px * 3


def serve(memory: mmap.mmap, lines: BinaryIO, answers: BinaryIO) -> None:
    """Say that we are here, then do jobs until stdin ends."""
    answers.write(READY)
    answers.flush()
    for line in lines:
        job = json.loads(line)
        frames = [Frame(Preprocess.from_facts(f), start) for f, start in job["frames"]]
        with Path(job["path"]).open("rb") as file:
            lost = [
                _place(memory, file, offset, size, frames, row)
                for row, (offset, size) in enumerate(job["members"])
            ]
        answers.write(json.dumps(lost).encode() + b"\n")
        answers.flush()


def _place(
    memory: mmap.mmap, file: BinaryIO, offset: int, size: int, frames: list[Frame], row: int
) -> list[str] | None:
    """Decode one picture into every frame; None, or the reason and detail of its loss."""
    if size > MAX_PICTURE_BYTES:
        return [Reason.TOO_MANY_BYTES, f"{size} bytes is over {MAX_PICTURE_BYTES}"]
    file.seek(offset)
    try:
        image_HWC = decode(file.read(size)).rgb
        for frame in frames:
            _view(memory, frame, row)[...] = frame.preprocess(image_HWC)
    except PictureError as error:
        return [error.reason, error.detail]
    except MemoryError as error:
        return [Reason.TOO_MANY_PIXELS, f"MemoryError: {error}"]
    return None


def _view(memory: mmap.mmap, frame: Frame, row: int) -> NDArray[np.uint8]:
    shape = (frame.preprocess.height_px, frame.preprocess.width_px, 3)
    start = frame.start + row * frame.picture_bytes
    flat: NDArray[np.uint8] = np.frombuffer(memory, np.uint8, frame.picture_bytes, start)
    return flat.reshape(shape)


def main(arguments: list[str]) -> None:
    """Map the shared memory and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    warnings.simplefilter("ignore")  # decoders warn of what becomes a reason here
    descriptor, size = map(int, arguments)
    serve(mmap.mmap(descriptor, size), sys.stdin.buffer, sys.stdout.buffer)


def job_line(
    path: str, members: list[tuple[int, int]], frames: list[tuple[dict[str, Any], int]]
) -> bytes:
    """Spell a job: members as (offset, bytes) of the file, frames as (preprocess, start)."""
    return json.dumps({"path": path, "members": members, "frames": frames}).encode() + b"\n"


if __name__ == "__main__":
    main(sys.argv[1:])
