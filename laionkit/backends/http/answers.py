"""What comes of asking a server: bytes, or one reason of the closed list with its detail."""

import errno
import functools
import os
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp

from laionkit.backends.http.resolver import LookupFailed
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason

_STATUS_REASONS = {
    401: Reason.HTTP_FORBIDDEN,
    402: Reason.HTTP_FORBIDDEN,
    403: Reason.HTTP_FORBIDDEN,
    404: Reason.HTTP_NOT_FOUND,
    407: Reason.HTTP_FORBIDDEN,
    408: Reason.TIMEOUT,
    410: Reason.HTTP_GONE,
    425: Reason.HTTP_RATE_LIMITED,
    429: Reason.HTTP_RATE_LIMITED,
    451: Reason.HTTP_FORBIDDEN,
    511: Reason.CONNECT_FAILED,  # the network's own answer: it asks for a login
}
# An honest server asks for minutes; one that asks for a week is taken as "not today".
MAX_RETRY_AFTER_S = 3600.0


@dataclass(slots=True)
class Answer:
    """What came of one attempt: bytes, or a reason with its detail.

    `retry_after_s` is what the server asked for; `bytes_in` counts the body even where it is cut.
    `moved_to` is the address at another host to go on at, after `hops` redirects. Requests to the
    host should start `gap_s` apart.
    """

    body: bytes | None = None
    reason: Reason | None = None
    detail: str = ""
    evidence: str | None = None
    retry_after_s: float = 0.0
    bytes_in: int = 0
    moved_to: str = ""
    hops: int = 0
    gap_s: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether the server asks to be left alone for a while."""
        return self.reason == Reason.HTTP_RATE_LIMITED or self.retry_after_s > 0


class Refused(Exception):
    """Ends an attempt with a reason."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.detail)
        self.answer = answer


def failure(response: aiohttp.ClientResponse, what: str = "") -> Refused:
    """A status that brings nothing, as a reason; `what` says whose it is."""
    status = response.status
    reason = _STATUS_REASONS.get(status)
    if reason is None:
        kinds = {4: Reason.HTTP_CLIENT_ERROR, 5: Reason.HTTP_SERVER_ERROR}
        reason = kinds.get(status // 100, Reason.HTTP_PROTOCOL)
    wait = retry_after(response.headers.get("Retry-After", ""))
    return Refused(Answer(None, reason, f"{what}HTTP {status}", retry_after_s=wait))


def retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 where it is none."""
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(float(value), MAX_RETRY_AFTER_S)
    try:
        wait = parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wait, 0.0), MAX_RETRY_AFTER_S)


def reason_of(error: BaseException) -> tuple[Reason, str]:
    """The reason for what aiohttp raised, and one line of detail.

    Raises StageFailed for what is no server's fault: this process may open no more files, or the
    machine knows no certificate authorities.
    """
    detail = " ".join((str(error) or type(error).__name__).split())[:300]
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, LookupFailed):
            return inner.reason, inner.detail
        if isinstance(inner, OSError) and inner.errno in (errno.EMFILE, errno.ENFILE):
            raise StageFailed(
                f"no more connections can be opened ({inner.strerror}): raise the limit of open "
                "files (ulimit -n) or lower --concurrency"
            )
        inner = getattr(inner, "os_error", None) or inner.__cause__
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        if "local issuer" in detail and not knows_authorities():
            raise StageFailed(
                "this machine knows no certificate authorities, so every https link would fail: "
                "install them (ca-certificates), or add --no-verify-tls"
            )
        return Reason.TLS_FAILED, detail
    if isinstance(error, aiohttp.ClientConnectorError):
        return Reason.CONNECT_FAILED, detail
    if isinstance(error, aiohttp.ClientPayloadError):
        return Reason.TRUNCATED_BODY, detail
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | OSError):
        return Reason.CONNECTION_LOST, detail
    return Reason.HTTP_PROTOCOL, detail


@functools.cache
def knows_authorities() -> bool:
    """Whether OpenSSL finds any authority's certificate where it looks for them."""
    paths = ssl.get_default_verify_paths()
    folder = Path(paths.capath or os.devnull)
    return bool(
        ssl.create_default_context().cert_store_stats()["x509_ca"]
        or (folder.is_dir() and any(folder.iterdir()))
    )
