"""Drop what is near an evaluation set: its vectors, its pictures, or another dataset's."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.embeddings import choose_model, embedded_models, list_embeddings, model_made
from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.ops.vectors import unit_rows
from laionkit.stages.subset.config import SubsetConfig
from laionkit.stages.subset.selection import Selection
from laionkit.stages.subset.steps import KEY_VALUE, order_keys
from laionkit.stages.subset.vectors import gather, read_vectors

_BLOCK = 65_536
_PICTURES_AT_ONCE = 64


def decontaminate(selection: Selection, config: SubsetConfig) -> None:
    """Drop what is as near as `decontaminate_cosine` to something of the evaluation set."""
    from laionkit.backends.near import nearest_of

    keys = order_keys(selection, config)
    model = config.model or None
    names, eval_MD = _evaluation_set(selection.table.folder, config.decontaminate, model)
    dropped: list[pa.Table] = []
    with gather(selection.table, model) as vectors:
        dim = vectors.emb_ND.shape[1]
        if eval_MD.shape[1] != dim:
            raise InputError(
                f"{config.decontaminate} holds vectors of {eval_MD.shape[1]} dimensions, and this "
                f"dataset's have {dim}: they must come from the same model"
            )
        there = np.flatnonzero(vectors.there)
        for start in range(0, len(there), _BLOCK):
            rows = there[start : start + _BLOCK]
            best_N, which_N = nearest_of(vectors.read(rows), eval_MD)
            near = np.flatnonzero(best_N >= config.decontaminate_cosine)
            said = [f"{names[which_N[i]]}, cosine {best_N[i]:.4f}" for i in near]
            dropped.append(pa.table({"key": keys.take(rows[near]), "value": said}, KEY_VALUE))
    if dropped:
        selection.drop("decontaminate", "near-evaluation", pa.concat_tables(dropped))


def _evaluation_set(
    dataset: Folder, path: str, model: str | None
) -> tuple[list[str], NDArray[np.float32]]:
    """What each vector of an evaluation set is called, and the unit vectors [M, D]."""
    if path.endswith(".npy"):
        eval_MD = _read_npy(path)
        return [f"row {row}" for row in range(len(eval_MD))], eval_MD
    other = Folder(path)
    if not embedded_models(other):
        return _embed_pictures(dataset, other, model)
    refs = list_embeddings(other, choose_model(other, model))
    parts = [read_vectors(other, ref) for ref in refs]
    names = [
        key
        for ref in refs
        for key in other.read_table(ref.metadata, columns=["image_path"]).column(0).to_pylist()
    ]
    return names, unit_rows(np.concatenate(parts).astype(np.float32))


def _read_npy(path: str) -> NDArray[np.float32]:
    folder, _, name = path.rpartition("/")
    with Folder(folder or ".").open(name) as file:
        try:
            found: Any = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path} is no npy file of vectors: {error}") from error
    if found.ndim != 2 or not len(found):
        raise InputError(f"{path} has shape {found.shape}: give one vector a row")
    return unit_rows(found.astype(np.float32))


def _embed_pictures(
    dataset: Folder, pictures: Folder, model: str | None
) -> tuple[list[str], NDArray[np.float32]]:
    """Embed the pictures of a folder with the model that embedded the dataset.

    A file that is no picture stops the run: it could not be kept out of the training set.
    """
    from laionkit.backends.sources import PICTURES
    from laionkit.search.queries import Encoder

    names = [n for n in pictures.walk() if n.rpartition(".")[2].lower() in PICTURES]
    if not names:
        raise InputError(
            f"{pictures} holds neither pictures nor embeddings: give a folder of pictures, an .npy "
            "file of vectors, or an embedded dataset"
        )
    encoder = Encoder(model_made(dataset, choose_model(dataset, model)).facts, "auto")
    parts = []
    for start in range(0, len(names), _PICTURES_AT_ONCE):
        shown = [_pixels(pictures, name) for name in names[start : start + _PICTURES_AT_ONCE]]
        parts.append(encoder.images(shown))
    return names, np.concatenate(parts)


def _pixels(folder: Folder, name: str) -> NDArray[np.uint8]:
    from laionkit.ops.images import PictureError, decode

    try:
        return np.asarray(decode(folder.read_bytes(name)).rgb)
    except PictureError as error:
        raise InputError(
            f"{folder.at(name)} is no usable picture ({error}), so nothing near it could be "
            "found: mend it or take it out of the evaluation set"
        ) from error
