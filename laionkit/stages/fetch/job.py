"""One row on its way: a link or a file, or what became of it before it was asked for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laionkit.backends.http.answers import Answer
from laionkit.core.schemas import Reason
from laionkit.ops.stored_image import Found
from laionkit.ops.urls import UrlError, checked_url, host_of
from laionkit.stages.fetch.shard import ShardUnderWay

# Stands for the host of rows that are files on the user's own disk.
FILES = "file:"


@dataclass(slots=True, eq=False)
class Job:
    """A row that must be read: `attempts` so far, and the seconds they took.

    `link` is the row's own, `home` its host; `url` and `host` are where redirects led it by now,
    and `led_to` is the first other host.
    """

    shard: ShardUnderWay
    index: int
    link: str
    home: str
    expected: str | None = None
    boxes: Any = None
    attempts: int = 0
    asked_s: float = 0.0
    url: str = field(init=False)
    host: str = field(init=False)
    led_to: str = field(init=False)
    hops: int = field(init=False)
    spent_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Stand at the beginning."""
        self.go_home()

    def go_home(self) -> None:
        """Begin anew, at the row's own link."""
        self.url, self.host, self.led_to = self.link, self.home, ""
        self.hops, self.spent_s = 0, 0.0

    def move(self, answer: Answer) -> None:
        """Go on where a redirect led."""
        self.url, self.host, self.hops = answer.moved_to, host_of(answer.moved_to), answer.hops
        self.led_to = self.led_to or self.host


def make_job(
    shard: ShardUnderWay, index: int, link: str | None, path: str | None, allow_private: bool
) -> Job | Found:
    """The job of a row, or what became of it where it cannot even be asked for."""
    if path:
        return Job(shard, index, path, FILES)
    if not link or not link.strip():
        return Found(Reason.MISSING_URL, "the row has no link")
    try:
        _, host = checked_url(link, allow_private=allow_private)
    except UrlError as error:
        return Found(error.reason, error.detail)
    return Job(shard, index, link, host)


def read_file(path: str, max_bytes: int) -> Answer:
    """A picture from the user's own disk."""
    try:
        with Path(path).open("rb") as file:
            body = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        return Answer(None, Reason.FILE_MISSING, f"{path}: {error}")
    if len(body) > max_bytes:
        return Answer(None, Reason.TOO_MANY_BYTES, f"over {max_bytes} bytes")
    return Answer(body, bytes_in=len(body))
