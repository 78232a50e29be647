"""Remote sources kept as local files: resumed after a cut, checked by size and checksum.

Bytes come by ranges into ``NAME.part``; ``NAME.part.json`` says of which content, so that what was
begun of another content is thrown away. A finished file appears under its name only once it is
whole and, where the server tells its sha256 or md5, equal to that.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laionkit.backends.range_files import (
    RangeFile,
    give_up_or_say,
    open_stream,
    remote_errors,
    tries,
)
from laionkit.backends.sources import Source, SourceFile, find_sources
from laionkit.core.errors import InputError

CHUNK_BYTES = 8 << 20
TELL_EVERY_S = 10.0
logger = logging.getLogger("laionkit")


def keep_files(
    sources: Sequence[Source], folder: str, tell: Callable[[str], None] = logger.info
) -> list[Source]:
    """Sources with every remote file replaced by a local copy in `folder`.

    `tell` takes a line on how far each has come, every few seconds.
    """
    return [
        keep_file(source, Path(folder), tell)
        if isinstance(source, SourceFile) and not source.is_local
        else source
        for source in sources
    ]


def keep_file(
    source: SourceFile, folder: Path, tell: Callable[[str], None] = logger.info
) -> SourceFile:
    """Download one file, or find it there. Raises InputError where it cannot be had whole."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / _name(source)
    done = target.with_name(target.name + ".source.json")
    said = {"name": source.name, "identity": source.identity}
    whole = target.exists() and source.size in (-1, target.stat().st_size)
    if not (whole and _read_json(done) == said):
        _download(source, target, said, _Progress(source, tell))
        done.write_text(json.dumps(said))
    (local,) = find_sources([str(target)])
    assert isinstance(local, SourceFile)
    return local


class _Progress:
    """Tells how far a download has come, at most every few seconds."""

    def __init__(self, source: SourceFile, tell: Callable[[str], None]) -> None:
        self._name, self._tell, self._due = source.name, tell, 0.0
        self._whole = f" of {source.size / 1e6:,.1f}" if source.size >= 0 else ""

    def at(self, done: int) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + TELL_EVERY_S
            self._tell(f"{self._name}: {done / 1e6:,.1f}{self._whole} MB")


def _download(source: SourceFile, target: Path, said: dict[str, str], progress: _Progress) -> None:
    part = target.with_name(target.name + ".part")
    state = target.with_name(target.name + ".part.json")
    if _read_json(state) != said:
        part.unlink(missing_ok=True)
        state.write_text(json.dumps(said))
    if source.has_ranges and source.size >= 0:
        _resume(source, part, progress)
    else:
        _stream(source, part, progress)
    _verify(source, part)
    part.replace(target)
    state.unlink()


def _resume(source: SourceFile, part: Path, progress: _Progress) -> None:
    """Add to a part what it lacks, range by range."""
    start = part.stat().st_size if part.exists() else 0
    remote = RangeFile(source.fs, source.path, source.size, source.name, source.etag)
    remote.seek(start)
    with part.open("ab") as file:
        while block := remote.read(CHUNK_BYTES):
            file.write(block)
            progress.at(file.tell())


def _stream(source: SourceFile, part: Path, progress: _Progress) -> None:
    """Take a file whole from a server that sends no ranges; a cut begins it anew."""
    why = ""
    for _ in tries():
        try:
            with open_stream(source.fs, source.path) as remote, part.open("wb") as file:
                while block := remote.read(CHUNK_BYTES):
                    file.write(block)
                    progress.at(file.tell())
                return
        except remote_errors() as error:
            why = give_up_or_say(error, source.name)
    raise InputError(f"{source.name} cannot be read: {why}")


def _verify(source: SourceFile, part: Path) -> None:
    size = part.stat().st_size
    if source.size not in (-1, size):
        part.unlink()
        raise InputError(f"{source.name}: {size} bytes came, not {source.size}; run again")
    wanted = source.checksum
    if wanted is None:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5" if len(wanted) == 32 else "sha256").hexdigest()
    if found != wanted:
        part.unlink()
        raise InputError(
            f"{source.name}: its bytes have checksum {found}, the server says {wanted}; run again"
        )


def _name(source: SourceFile) -> str:
    """A file name that keeps the format's suffix and differs for every source."""
    base = re.sub(r"[^A-Za-z0-9._-]", "_", source.path.partition("?")[0].rpartition("/")[2])
    return f"{hashlib.sha256(source.name.encode()).hexdigest()[:8]}-{base}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
