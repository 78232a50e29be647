"""Remote files by byte ranges: what was cut is asked for again, what changed is refused."""

import contextlib
import functools
import io
import re
import time
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from laionkit.core.errors import InputError

READ_TRIES = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 8.0
SILENCE_S = 60.0
_WHOLE, _PRECONDITION_FAILED, _NO_SUCH_RANGE = 200, 412, 416
_TRY_AGAIN_LATER = frozenset({408, 425, 429})


@functools.cache
def remote_errors() -> tuple[type[Exception], ...]:
    """What file systems raise where a file cannot be read.

    Named in an ``except``, it loads the clients only once something was raised.
    """
    import aiohttp

    found: tuple[type[Exception], ...] = (OSError, aiohttp.ClientError, TimeoutError)
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError, ClientError

        found += (BotoCoreError, ClientError)
    return found


def is_http(fs: Any) -> bool:
    """Whether a file system speaks plain HTTP, so that it takes headers."""
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return "https" in protocols


class RangeFile(io.RawIOBase):
    """A remote file read by byte ranges, each tried again where the connection was cut.

    `bytes_read` counts what came over the network. With an `etag`, the server is asked for bytes
    of that content only.
    """

    def __init__(self, fs: Any, path: str, size: int, name: str, etag: str = "") -> None:
        """Read `path` of `fs`, which has `size` bytes."""
        super().__init__()
        self.fs, self.path, self.length, self.name = fs, path, size, name
        self.position = 0
        self.bytes_read = 0
        self._options = {"headers": _headers(etag)} if is_http(fs) else {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = base + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes."""
        end = min(self.length, self.position + len(buffer))
        if end <= self.position:
            return 0
        data = self._range(self.position, end)
        buffer[: len(data)] = data
        self.position = end
        return len(data)

    def _range(self, start: int, end: int) -> bytes:
        wanted, why = end - start, ""
        for _ in tries():
            try:
                data: bytes = self.fs.cat_file(self.path, start=start, end=end, **self._options)
            except remote_errors() as error:
                why = give_up_or_say(error, self.name)
            else:
                self.bytes_read += len(data)
                if len(data) == wanted:
                    return data
                why = f"{len(data)} of {wanted} bytes came"
        raise InputError(f"{self.name}: bytes {start}-{end} cannot be read: {why}")


def tries() -> Iterator[int]:
    """Count attempts, with a longer pause before each."""
    yield 0
    for attempt in range(1, READ_TRIES):
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)))
        yield attempt


def give_up_or_say(error: Exception, name: str) -> str:
    """What went wrong, where another try may help. Raises InputError where none will."""
    import aiohttp

    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    why = " ".join(str(cause).split()) or type(cause).__name__
    status = getattr(cause, "status", None) or 0
    if status == _PRECONDITION_FAILED:
        raise InputError(f"{name} changed on the server while it was read: run again") from error
    refused = 400 <= status < 500 and status not in _TRY_AGAIN_LATER
    gone = not status and isinstance(error, FileNotFoundError | PermissionError)
    if refused or gone:
        raise InputError(f"{name} cannot be read: {why}") from error
    return why


def probe(fs: Any, path: str) -> tuple[int | None, bool]:
    """The size that a range of one byte tells, and whether the server sends ranges at all.

    Asked before more is: a server that knows no ranges answers with the whole file.
    """
    headers = _headers("") | {"Range": "bytes=0-0"}
    with fs.open(path, "rb", block_size=0, size=1, headers=headers) as file:
        if file.r.status != _NO_SUCH_RANGE:  # an empty file has not even one byte
            file.r.raise_for_status()
        told = re.fullmatch(r"bytes 0-0/(\d+)", file.r.headers.get("Content-Range", ""))
        return (int(told[1]) if told else None), file.r.status != _WHOLE


def open_stream(fs: Any, path: str) -> BinaryIO:
    """Open a file for one reading from its beginning to its end."""
    import aiohttp

    silence = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE_S, sock_read=SILENCE_S)
    file = fs.open(path, "rb", block_size=0, size=1, headers=_headers(""), timeout=silence)
    try:
        file.r.raise_for_status()
    except aiohttp.ClientError:
        file.close()
        raise
    return cast(BinaryIO, file)


def _headers(etag: str) -> dict[str, str]:
    """Bytes as they lie there; of the content with this strong ETag, where it has one."""
    plain = {"Accept-Encoding": "identity"}
    return plain | {"If-Match": etag} if etag.startswith('"') else plain
