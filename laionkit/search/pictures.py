"""The pictures of hits, read from the shards that hold them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from laionkit.core.files import Folder
from laionkit.core.shards import list_shards
from laionkit.core.tars import image_member, read_contents, read_member
from laionkit.ops.images import PictureError, decode


def load_pictures(
    dataset: Folder, shards: Sequence[str], keys: Sequence[str]
) -> list[NDArray[np.uint8] | None]:
    """RGB of each key, [H, W, 3]; None where its shard is not at hand or its bytes are no picture.

    Each shard is opened once.
    """
    tars = {ref.name: ref.tar for ref in list_shards(dataset)}
    found: dict[tuple[str, str], NDArray[np.uint8] | None] = {}
    for shard in sorted(set(shards) & set(tars)):
        wanted = [key for name, key in zip(shards, keys, strict=True) if name == shard]
        for key, picture in _read(dataset, tars[shard], wanted).items():
            found[shard, key] = picture
    return [found.get(place) for place in zip(shards, keys, strict=True)]


def _read(dataset: Folder, tar: str, keys: Sequence[str]) -> dict[str, NDArray[np.uint8] | None]:
    pictures: dict[str, NDArray[np.uint8] | None] = {}
    with dataset.open(tar) as file:
        samples = read_contents(file).samples
        for key in keys:
            member = image_member(samples.get(key, {}))
            pictures[key] = _decoded(read_member(file, member[1])) if member else None
    return pictures


def _decoded(data: bytes) -> NDArray[np.uint8] | None:
    try:
        return np.asarray(decode(data).rgb)
    except PictureError:
        return None
