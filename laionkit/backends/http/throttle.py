"""A bound on the bandwidth that one process takes in."""

import asyncio


class Throttle:
    """Keeps the average below a rate: who starts a request first waits off what was taken."""

    def __init__(self, bytes_per_s: float) -> None:
        """Allow `bytes_per_s` on average."""
        self._rate = bytes_per_s
        self._paid_until = 0.0

    def took(self, size: int) -> None:
        """Count bytes that came in."""
        now = asyncio.get_running_loop().time()
        self._paid_until = max(self._paid_until, now) + size / self._rate

    async def turn(self) -> None:
        """Wait until what was taken is paid for. The wait is no part of a request's deadline."""
        loop = asyncio.get_running_loop()
        while (wait := self._paid_until - loop.time()) > 0:
            await asyncio.sleep(min(wait, 1.0))
