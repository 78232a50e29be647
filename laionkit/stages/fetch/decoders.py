"""Decoding in processes of its own: a crash or a hang costs the picture that caused it, no more."""

from typing import Any

from laionkit.backends.isolation import CallDied, Isolated
from laionkit.core.schemas import Reason
from laionkit.ops.stored_image import Found, ImageMaker

# A process can die of what an earlier picture did to it, or of another program's hunger for memory:
# a picture is blamed when a fresh one dies of it too.
TRIES = 2


class Decoders:
    """Makes images in processes that may die. Any thread may call it."""

    def __init__(self, maker: ImageMaker, timeout_s: float) -> None:
        """`timeout_s` bounds one picture."""
        self._isolated, self._timeout_s = Isolated(maker, timeout_s), timeout_s

    def make(self, body: bytes, expected: Any, boxes: Any) -> Found:
        """Turn a body into an image, or into the reason why there is none."""
        said = ""
        for _ in range(TRIES):
            try:
                columns, image = self._isolated(body, (expected, boxes))
            except CallDied as died:
                if died.timed_out:
                    said = f"not decoded in {self._timeout_s:g} s"
                    return Found(Reason.DECODE_TIMEOUT, said, bytes_in=len(body))
                said = f"the decoder crashed: {died.detail}"
                continue
            if "reason" in columns:
                columns["reason"] = Reason(columns["reason"])
            return Found(**columns, image=image)
        return Found(Reason.WORKER_CRASHED, said, bytes_in=len(body))

    def close(self) -> None:
        """End every process."""
        self._isolated.close()
