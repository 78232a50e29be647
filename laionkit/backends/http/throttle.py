"""A bound on the bandwidth that one process takes in."""

import asyncio


class Throttle:
    """Keeps the average below a rate, by spacing the starts of requests.

    What an answer will bring is not known at its start: so much is paid for in advance as answers
    brought on average, and the rest when it came. Where starts paid for nothing, all hands would
    start at once, fill the line, and wait at once.
    """

    def __init__(self, bytes_per_s: float) -> None:
        """Allow `bytes_per_s` on average."""
        self._rate = bytes_per_s
        self._paid_until = 0.0
        self._bytes = self._answers = 0

    async def turn(self) -> float:
        """Wait for a start; return the bytes paid for. The wait is no part of a deadline."""
        loop = asyncio.get_running_loop()
        start = max(self._paid_until, loop.time())
        advance = self._bytes / self._answers if self._answers else 0.0
        self._paid_until = start + advance / self._rate
        while (wait := start - loop.time()) > 0:
            await asyncio.sleep(min(wait, 1.0))
        return advance

    def took(self, size: int) -> None:
        """Count bytes that came in."""
        now = asyncio.get_running_loop().time()
        self._paid_until = max(self._paid_until, now) + size / self._rate
        self._bytes += size

    def ended(self, advance: float) -> None:
        """Give back what an answer's `turn` paid for, now that what came is counted."""
        self._answers += 1
        self._paid_until -= advance / self._rate
