"""Names to addresses: checked, cached, and the very addresses that are connected to.

aiohttp asks this resolver and connects to nothing else, so a name cannot point to a public
address when it is checked and to a private one when it is used (DNS rebinding).
"""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp.abc import AbstractResolver, ResolveResult

from laionkit.core.schemas import Reason

# getaddrinfo blocks, for up to half a minute where a domain's own servers are dead: at 200 links a
# second, two such in a hundred hold 80 threads. A thread starts when it is needed.
LOOKUP_THREADS = 128
KEEP_S = 300.0
KEEP_FAILED_S = 30.0
MAX_CACHED = 100_000

# Kept in place of an exception, whose traceback would keep each request that it ended.
Failure = tuple[Reason, str]
# (name, port) -> addresses. Replaceable by a resolver of one's own.
Lookup = Callable[[str, int], Awaitable[list[str]]]

_NOT_FOUND = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}


class LookupFailed(OSError):
    """A name that gave no address to connect to; carries the reason. aiohttp wraps OSError."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class CheckedResolver(AbstractResolver):
    """Resolves for aiohttp, refusing names that lead to private addresses."""

    def __init__(self, is_public: Callable[[str], bool], lookup: Lookup | None = None) -> None:
        """Check every address with `is_public`; `lookup` replaces the system's resolver."""
        self._is_public = is_public
        self._at_once = asyncio.Semaphore(LOOKUP_THREADS)
        self._lookup = lookup or self._system_lookup
        self._cache: dict[str, tuple[float, list[str] | Failure]] = {}
        self.lookups = 0
        self._under_way: dict[str, asyncio.Task[list[str]]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a host, all public. Raises LookupFailed with the reason."""
        addresses = await self.addresses(host, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def addresses(self, host: str, port: int = 0) -> list[str]:
        """The cached or looked-up addresses; callers at the same time share one lookup."""
        cached = self._cache.get(host)
        if cached is not None and cached[0] > time.monotonic():
            if isinstance(cached[1], tuple):
                raise LookupFailed(*cached[1])
            return cached[1]
        task = self._under_way.get(host)
        if task is None:
            task = asyncio.create_task(self._look_up(host, port))
            self._under_way[host] = task
            task.add_done_callback(lambda _: self._under_way.pop(host, None))
        # One waiter's deadline must not cut the lookup that others share.
        return await asyncio.shield(task)

    def forget(self, host: str) -> None:
        """Look a name up afresh when it is asked for next."""
        self._cache.pop(host, None)

    async def _look_up(self, host: str, port: int) -> list[str]:
        result = await self._result(host, port)
        if len(self._cache) >= MAX_CACHED:
            self._cache.clear()
        if isinstance(result, tuple):
            if result[0] != Reason.DNS_TEMPORARY:
                self._cache[host] = (time.monotonic() + KEEP_FAILED_S, result)
            raise LookupFailed(*result)
        self._cache[host] = (time.monotonic() + KEEP_S, result)
        self.lookups += 1
        return result

    async def _result(self, host: str, port: int) -> list[str] | Failure:
        try:
            found = list(dict.fromkeys(await self._lookup(host, port)))
        except socket.gaierror as error:
            missing = error.errno in _NOT_FOUND
            reason = Reason.DNS_NOT_FOUND if missing else Reason.DNS_TEMPORARY
            return reason, f"{host}: {error.strerror or error}"
        except (UnicodeError, ValueError) as error:
            return Reason.DNS_NOT_FOUND, f"{host}: {error}"
        except OSError as error:
            return Reason.DNS_TEMPORARY, f"{host}: {error}"
        if not found:
            return Reason.DNS_NOT_FOUND, f"{host} has no address"
        public = [address for address in found if self._is_public(address)]
        if not public:
            return Reason.ADDRESS_REFUSED, f"{host} is {found[0]}, not a public address"
        return public

    async def _system_lookup(self, host: str, port: int) -> list[str]:
        """Ask the system in a daemon's thread: no exit of ours waits for a lookup that hangs."""
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def look_up() -> None:
            answer: list[str] | OSError | UnicodeError
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                answer = [str(entry[4][0]) for entry in entries]
            except (OSError, UnicodeError) as error:
                answer = error
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, answer)

        def tell(answer: list[str] | OSError | UnicodeError) -> None:
            if found.done():
                return
            if isinstance(answer, list):
                found.set_result(answer)
            else:
                found.set_exception(answer)

        async with self._at_once:
            threading.Thread(target=look_up, name="dns", daemon=True).start()
            return await found

    async def close(self) -> None:
        """Leave lookups that hang to themselves."""
