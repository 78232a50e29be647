"""What there is to adopt in a folder: image shards, and folders of embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

from laionkit.core.errors import InputError
from laionkit.core.files import Folder


@dataclass(frozen=True)
class FoundShard:
    """A tar, and the parquet and stats beside it where there are any; absolute paths."""

    name: str
    tar: str
    table: str | None
    stats: str | None

    def paths(self) -> list[str]:
        """Every file of it."""
        return [path for path in (self.tar, self.table, self.stats) if path]


@dataclass(frozen=True)
class FoundVectors:
    """One set of clip-retrieval's files that align by row; absolute paths."""

    name: str
    image: str
    text: str | None
    metadata: str

    def paths(self) -> list[str]:
        """Every file of it."""
        return [path for path in (self.image, self.text, self.metadata) if path]


def find_shards(folder: Folder) -> list[FoundShard]:
    """The tars directly in `folder`, in name order."""
    names = folder.names()
    there = set(names)
    found = []
    for tar in (name for name in names if name.endswith(".tar")):
        stem = tar.removesuffix(".tar")
        table, stats = f"{stem}.parquet", f"{stem}_stats.json"
        found.append(
            FoundShard(
                stem,
                absolute(folder, tar),
                absolute(folder, table) if table in there else None,
                absolute(folder, stats) if stats in there else None,
            )
        )
    return found


def find_vectors(folder: Folder) -> list[FoundVectors]:
    """The embeddings in `folder` or its ``embeddings/``, in name order.

    Raises InputError where an npy file has no metadata beside it.
    """
    for below in ("", "embeddings/"):
        images = folder.names(f"{below}img_emb", ".npy")
        if images:
            return [_align(folder, below, name) for name in images]
    return []


def _align(folder: Folder, below: str, image: str) -> FoundVectors:
    number = image.removesuffix(".npy").removeprefix("img_emb_")
    metadata = f"{below}metadata/metadata_{number}.parquet"
    if not folder.exists(metadata):
        raise InputError(f"{folder}/{below}img_emb/{image} has no {metadata} that names its rows")
    text = f"{below}text_emb/text_emb_{number}.npy"
    return FoundVectors(
        number,
        absolute(folder, f"{below}img_emb/{image}"),
        absolute(folder, text) if folder.exists(text) else None,
        absolute(folder, metadata),
    )


def absolute(folder: Folder, name: str) -> str:
    """A path that means the same file from any dataset."""
    return folder.at(name) if folder.is_local else f"{folder.url}/{name}"


def stamp(folder: Folder, paths: Sequence[str]) -> str:
    """Sizes and times of files, which tell whether they changed since they were adopted."""
    infos = [folder.fs.info(folder.at(path)) for path in paths]
    times = [i.get("mtime") or i.get("ETag") or i.get("LastModified") or "" for i in infos]
    return ",".join(f"{i['size']}@{t}" for i, t in zip(infos, times, strict=True))
