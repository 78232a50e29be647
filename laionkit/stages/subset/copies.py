"""The copies of a subset: tars with the pictures' own bytes, or files of their own."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from laionkit.core.ahead import Behind
from laionkit.core.errors import InputError
from laionkit.core.files import Folder, Written
from laionkit.core.shards import ShardWriter, sample_frames
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.layout import sample_hash
from laionkit.stages.subset.pictures import Pictures, view_cells
from laionkit.stages.subset.reshape import PictureError, Reshape, Reshaped, restate_rows

FILES = "files"


@dataclass
class Part:
    """What became of one chunk: its rows as they were written, the hash of each, the tar if any.

    `lost` are pictures that could not be resized or re-encoded, as (key, reason).
    """

    rows: pa.Table
    hashes: list[str]
    tar: Written | None = None
    lost: list[tuple[str, str]] = field(default_factory=list)


def file_name(key: str, extension: str) -> str:
    """Where a subset of single files has a picture."""
    return f"{FILES}/{key}.{extension}"


def write_copies(
    folder: Folder, name: str, chunk: pa.Table, pictures: Pictures, config: SubsetConfig
) -> Part:
    """Write the samples of one chunk into a tar or as files of their own.

    A tar is hashed and written while its next samples are read.
    """
    reshape, part = Reshape.of(config), Part(chunk, [])
    if config.as_ == "files":
        _write_samples(_Files(folder), part, pictures, reshape)
        return part
    with (
        folder.create(f"{name}.tar") as file,
        contextlib.closing(Behind()) as behind,
        ShardWriter(file, ordered=config.shuffle_seed is None, behind=behind) as tar,
    ):
        if reshape is None and pictures.is_local:
            _copy_samples(tar, part, pictures)
        else:
            _write_samples(tar, part, pictures, reshape)
    part.tar = Written(f"{name}.tar", file.size, file.digest.hexdigest())
    return part


def _copy_samples(tar: ShardWriter, part: Part, pictures: Pictures) -> None:
    """Write samples as they are, their pictures read straight to where they are written from."""
    keys, shards, extensions, offsets, sizes, texts, lines = view_cells(part.rows)
    frames = sample_frames(keys, extensions, sizes, {"txt": texts, "json": lines})
    rows = zip(frames, shards, offsets, sizes, texts, lines, strict=True)
    for (head, behind), shard, offset, size, text, line in rows:
        start, end = len(head), len(head) + size
        room = tar.room(end + len(behind))
        room[:start], room[end:] = head, behind
        image = room[start:end]
        pictures.read_into(image, shard, offset)
        part.hashes.append(sample_hash(line, text, image))


def _write_samples(
    sink: "ShardWriter | _Files", part: Part, pictures: Pictures, reshape: Reshape | None
) -> None:
    """Write samples in the form asked for; what cannot be brought into it is lost."""
    placed: list[tuple[int, Reshaped | None]] = []
    for row, (key, extension, image, text, line) in enumerate(pictures.samples(part.rows)):
        shaped = None
        if reshape is not None:
            try:
                shaped = reshape.apply(image, extension)
            except PictureError as error:
                part.lost.append((key, str(error.reason)))
                continue
            extension, image, line = shaped.extension, shaped.image, shaped.restate(line)
        sink.add(key, {extension: image, "txt": text, "json": line})
        part.hashes.append(sample_hash(line, text, image))
        placed.append((row, shaped))
    if reshape is not None:
        part.rows = restate_rows(part.rows, placed)


class _Files:
    """Samples as files of their own: files/KEY.jpg, KEY.txt, KEY.json."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write one sample. Raises InputError where its key is no file name."""
        if not key or key.startswith(".") or "/" in key or "\\" in key:
            raise InputError(f"key {key!r} is no file name: use --as shards")
        for extension, data in members.items():
            self._folder.write_bytes(file_name(key, extension), data)
