"""What there is to embed in a shard: its members, its captions, its table.

The tar says which samples there are, the table which there should be: what the table calls a
success and the tar lacks is lost with a reason.
"""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from laionkit.core.files import Folder
from laionkit.core.schemas import Reason, Status
from laionkit.core.shards import ShardRef
from laionkit.core.tars import Member, ShardContents, image_member, read_contents, read_text


@dataclass(frozen=True)
class Dropped:
    """A sample without a vector: its key, its reason, the detail."""

    key: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True)
class ShardSource:
    """A shard ready to be embedded; `path` is local. Lists align: one entry a picture."""

    name: str
    path: str
    keys: list[str]
    members: list[Member]
    captions: list[str | None]
    dropped: list[Dropped]
    table: pa.Table


def open_shard(dataset: Folder, ref: ShardRef, local: "LocalCopies") -> ShardSource:
    """Read a shard's table of contents, its captions and its table."""
    path = local.path(dataset, ref.tar)
    table = dataset.read_table(ref.table)
    known = _captions(table)
    keys, members, captions, dropped = [], [], [], []
    with path.open("rb") as file:
        contents = read_contents(file)
        for key, parts in contents.samples.items():
            picture = image_member(parts)
            if picture is None:
                dropped.append(Dropped(key, Reason.MEMBER_MISSING, "no jpg, png or webp"))
                continue
            text = parts.get("txt")
            caption = read_text(file, text) if text else known.get(key)
            keys.append(key)
            members.append(picture[1])
            captions.append(caption)
    dropped += _missing(table, contents)
    return ShardSource(ref.name, str(path), keys, members, captions, dropped, table)


def _captions(table: pa.Table) -> dict[str, str | None]:
    """Key → caption, as the table has it."""
    if not {"key", "caption"} <= set(table.column_names):
        return {}
    return dict(zip(table["key"].to_pylist(), table["caption"].to_pylist(), strict=True))


def _missing(table: pa.Table, contents: ShardContents) -> list[Dropped]:
    """Samples that the table has and the tar lacks."""
    if "key" not in table.column_names:
        return []
    keys = table["key"].to_pylist()
    if "status" in table.column_names:
        statuses = table["status"].to_pylist()
        keys = [k for k, s in zip(keys, statuses, strict=True) if s == Status.SUCCESS]
    reason = Reason.CORRUPT_TAR if contents.damage else Reason.MEMBER_MISSING
    detail = contents.damage or "the tar does not hold it"
    return [Dropped(key, reason, detail) for key in keys if key not in contents.samples]


class LocalCopies:
    """Local paths of shards; those that lie elsewhere are copied here while they are needed."""

    def __init__(self) -> None:
        """Make nothing yet."""
        self._folder: Path | None = None
        self._numbers = itertools.count()

    def path(self, dataset: Folder, tar: str) -> Path:
        """A local path of the tar."""
        if dataset.is_local and "://" not in tar:
            return Path(dataset.at(tar))
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="laionkit-embed-"))
        copy = self._folder / f"{next(self._numbers)}.tar"
        with dataset.open(tar) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        return copy

    def done(self, path: str) -> None:
        """Delete a copy that is no longer needed; originals stay."""
        if self._folder is not None and Path(path).parent == self._folder:
            Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete all copies."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(self._folder)


def batches(rows: int, size: int) -> Iterator[range]:
    """Row ranges of at most `size`, covering `rows`; one empty range where there are none."""
    return (range(i, min(i + size, rows)) for i in range(0, max(rows, 1), size))
