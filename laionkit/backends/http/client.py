"""One link to its bytes, or to the reason why not.

Every redirect is followed by ourselves and judged like the first URL; the body is counted while
it streams; one deadline covers the whole. What the server announces is never trusted. `fetch`
follows a link wherever it leads, `step` until it leads to another host, whose turn it is then.
"""

import asyncio
import json
import re
import resource
import ssl
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from laionkit.backends.http.answers import Answer, Refused, failure, reason_of
from laionkit.backends.http.inflate import inflate
from laionkit.backends.http.policy import Denied, Policy
from laionkit.backends.http.resolver import CheckedResolver, Lookup, LookupFailed
from laionkit.backends.http.robots import RobotsCache
from laionkit.backends.http.throttle import Throttle
from laionkit.core.schemas import Reason

T = TypeVar("T")

# What RFC 3986 lets a link hold, but for steps such as ``/../``, which browsers take themselves.
_WELL_FORMED = re.compile(r"(?!.*/\.\.?/)[!#$&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~%]+")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Long enough for the next picture of a busy host. A list of millions of hosts leaves a connection
# open at each, which aiohttp closes after once to twice as long: at 200 links a second they are up
# to 1,600, over TLS 0.2 MB each.
KEEP_ALIVE_S = 4.0
# Open files that a process asks for where the system sets no limit.
MOST_FILES = 65_536
# As long as http.client takes; policies in headers do exceed aiohttp's 8 kB.
MAX_HEADER_BYTES = 65_536
# RFC 9309: at least five redirects of a robots.txt are followed, at least 500 KiB of it read.
MAX_ROBOTS_REDIRECTS = 5
MAX_ROBOTS_BYTES = 512 * 1024


@dataclass(frozen=True)
class ClientLimits:
    """Bounds of one request. `timeout_s` covers it whole: lookup, redirects, body."""

    timeout_s: float = 10.0
    max_bytes: int = 32 * 2**20
    max_redirects: int = 5
    verify_tls: bool = True
    user_agent: str = "laionkit"


class HttpClient:
    """Fetches links over shared connections. Open it inside the event loop that will use it."""

    def __init__(
        self,
        limits: ClientLimits,
        policy: Policy,
        *,
        lookup: Lookup | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        """Keep the limits; `lookup` replaces the system's resolver."""
        self.limits, self.policy = limits, policy
        self._lookup = lookup
        self._throttle = throttle
        self._session: aiohttp.ClientSession | None = None
        # Of bodies that are still coming.
        self.bytes_held = 0

    async def __aenter__(self) -> "HttpClient":
        """Open the connections' pool: one TLS context and one resolver for all."""
        _raise_file_limit()
        context = ssl.create_default_context()
        if not self.limits.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        self.resolver = CheckedResolver(self.policy.is_public, self._lookup)
        read = self.policy.robots
        self._robots = RobotsCache(self._ask_robots, read) if read is not None else None
        connector = aiohttp.TCPConnector(
            limit=0,
            ssl=context,
            resolver=self.resolver,
            use_dns_cache=False,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"User-Agent": self.limits.user_agent, "Accept-Encoding": "identity"},
            skip_auto_headers=("Accept",),
            auto_decompress=False,
            trust_env=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
        await self.resolver.close()

    async def fetch(self, url: str) -> Answer:
        """Try one link once, within the deadline. Never raises for what the other side does."""
        return await self._attempt(self._follow(url), self.limits.timeout_s)

    async def step(self, url: str, hops: int, within_s: float) -> Answer:
        """Try a link, `hops` redirects away from its beginning, until it leads to another host.

        The answer's `moved_to` says where it goes on then.
        """
        advance = await self._throttle.turn() if self._throttle is not None else 0.0
        answer = await self._attempt(self._follow(url, hops, stay=True), within_s)
        if self._throttle is not None:
            self._throttle.ended(advance)
        if self._robots is not None:
            answer.gap_s = self._robots.delay_s(url)
        return answer

    async def _attempt(self, work: Awaitable[T], within_s: float) -> T | Answer:
        """What `work` returns within the deadline, else the reason why it did not."""
        try:
            async with asyncio.timeout(within_s):
                return await work
        except Refused as refused:
            return refused.answer
        except TimeoutError:
            return Answer(None, Reason.TIMEOUT, f"no whole answer in {self.limits.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(None, *reason_of(error))

    async def probe(self, url: str) -> Answer:
        """Step to a link after a fresh lookup of its name: a connection kept proves no DNS."""
        host = _host(url)
        if not host.replace(".", "").isdigit() and ":" not in host:
            self.resolver.forget(host)
            try:
                async with asyncio.timeout(self.limits.timeout_s):
                    await self.resolver.addresses(host)
            except LookupFailed as failed:
                return Answer(None, failed.reason, failed.detail)
            except TimeoutError:
                return Answer(None, Reason.TIMEOUT, "no answer of the resolver")
        return await self.step(url, 0, self.limits.timeout_s)

    def _get(self, target: str) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Begin a request, once the host that aiohttp will connect to has been judged.

        yarl maps ideographic dots and full-width digits, so that ``127。0。0。1`` is an address
        for aiohttp, which then asks no resolver. It also spells escapes anew (``%3A`` becomes
        ``:``), which breaks signed links: what is well-formed goes out as it was written.
        """
        assert self._session is not None, "open the client first"
        url = URL(target, encoded=bool(_WELL_FORMED.fullmatch(target)))
        host = url.raw_host or ""
        if _is_address(host) and not self.policy.is_public(host):
            detail = f"{host} is not a public address"
            raise Refused(Answer(None, Reason.ADDRESS_REFUSED, detail))
        return self._session.get(url, allow_redirects=False)

    async def _follow(self, url: str, hops: int = 0, *, stay: bool = False) -> Answer:
        host = ""
        for hop in range(hops, self.limits.max_redirects + 1):
            target = self.policy.admit(url)
            if isinstance(target, Denied):
                raise Refused(Answer(None, target.reason, target.detail))
            if stay and hop > hops and _host(target) != host:
                return Answer(moved_to=target, hops=hop)
            host = _host(target)
            if self._robots is not None and (rule := await self._robots.forbids(target)):
                evidence = {"header": "robots.txt", "value": rule[0], "time": rule[1]}
                detail = f"robots.txt: {rule[0]}"
                raise Refused(Answer(None, Reason.ROBOTS_DISALLOWED, detail, json.dumps(evidence)))
            async with self._get(target) as response:
                if response.status not in _REDIRECTS:
                    return await self._take(response)
                location = response.headers.get("Location")
                if not location:
                    detail = f"{response.status} without a Location"
                    raise Refused(Answer(None, Reason.HTTP_PROTOCOL, detail))
                url = urljoin(target, location)
        detail = f"more than {self.limits.max_redirects} redirects"
        raise Refused(Answer(None, Reason.TOO_MANY_REDIRECTS, detail))

    async def _ask_robots(self, url: str) -> tuple[int, str, str] | Answer:
        """Status, text and Date of a robots.txt, or why it cannot be had."""
        return await self._attempt(self._follow_robots(url), self.limits.timeout_s)

    async def _follow_robots(self, url: str) -> tuple[int, str, str]:
        """Raises also where the server is in trouble.

        Nothing may be asked for then (RFC 9309, 2.3.1.4), and the trouble may pass.
        """
        for _ in range(MAX_ROBOTS_REDIRECTS + 1):
            target = self.policy.admit(url)
            if isinstance(target, Denied):
                break
            async with self._get(target) as response:
                location = response.headers.get("Location")
                if response.status == 429 or response.status >= 500:
                    raise failure(response, "its robots.txt: ")
                if response.status not in _REDIRECTS or not location:
                    date = response.headers.get("Date", "")
                    return response.status, await _read_text(response), date
                url = urljoin(target, location)
        return 404, "", ""

    async def _take(self, response: aiohttp.ClientResponse) -> Answer:
        if not 200 <= response.status < 300:
            raise failure(response)
        denied = self.policy.judge(response.headers.items())
        if denied is not None:
            raise Refused(Answer(None, denied.reason, denied.detail, evidence=denied.evidence))
        body = await self._read(response)
        encoding = response.headers.get("Content-Encoding", "")
        return Answer(inflate(body, encoding, self.limits.max_bytes), bytes_in=len(body))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        most = self.limits.max_bytes
        if (response.content_length or 0) > most:
            detail = f"{response.content_length} bytes announced"
            raise Refused(Answer(None, Reason.TOO_MANY_BYTES, detail))
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := await response.content.readany():
                size += len(chunk)
                self.bytes_held += len(chunk)
                if size > most:
                    detail = f"over {most} bytes"
                    raise Refused(Answer(None, Reason.TOO_MANY_BYTES, detail, bytes_in=size))
                chunks.append(chunk)
                if self._throttle is not None:
                    self._throttle.took(len(chunk))
        finally:
            self.bytes_held -= size
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _is_address(host: str) -> bool:
    """Whether aiohttp takes a host for an address, which no resolver is asked for."""
    return ":" in host or host.replace(".", "").isdigit()


def _raise_file_limit() -> None:
    """Let this process hold as many connections as it may: many shells begin with 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, MOST_FILES) if hard == resource.RLIM_INFINITY else hard
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _read_text(response: aiohttp.ClientResponse) -> str:
    """The beginning of a body as text."""
    body = bytearray()
    while len(body) < MAX_ROBOTS_BYTES and (chunk := await response.content.readany()):
        body += chunk
    encoding = response.headers.get("Content-Encoding", "")
    text = inflate(bytes(body), encoding, MAX_ROBOTS_BYTES, is_cut=True)
    return text[:MAX_ROBOTS_BYTES].decode("utf-8", "replace")
