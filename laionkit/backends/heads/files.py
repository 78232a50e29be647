"""Head files: downloaded once into a cache and checked, or local; read without running code.

The cache is ``$LAIONKIT_HEADS``, else ``~/.cache/laionkit/heads``; a published file put there by
hand is found under its own name.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pickle
import tempfile
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from laionkit.backends.heads.head import Activation, Head, Layer, Output
from laionkit.backends.heads.published import PUBLISHED, PublishedHead, find_published
from laionkit.core.errors import ConfigError, InputError

MAX_HEAD_BYTES = 64 * 2**20
TIMEOUT_S = 30.0
CARD_KEY = "laionkit"
# Keras adds this to a deviation before it divides; the torch port of the NSFW heads keeps it.
NSFW_EPSILON = 1e-10

Tensors = Mapping[str, NDArray[np.float32]]


def load_head(name: str) -> Head:
    """Load a head by published name or from a file, ready to score.

    Raises ConfigError for an unknown name, InputError for a file that is missing, of another
    sha256, or no head.
    """
    path = Path(name)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        return _load_local(path).collapsed()
    published = find_published(name)
    data = _published_bytes(published)
    tensors = _read_pickle(data, published.file)
    return _head_of(published, tensors, published.file).collapsed()


def heads_folder() -> Path:
    """Where published heads are kept."""
    folder = os.environ.get("LAIONKIT_HEADS")
    return Path(folder) if folder else Path.home() / ".cache" / "laionkit" / "heads"


def _published_bytes(head: PublishedHead) -> bytes:
    """The file's bytes, whose sha256 is the published one."""
    target = heads_folder() / head.file
    if not target.is_file():
        _download(head, target)
    data = target.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != head.sha256:
        raise InputError(
            f"{target} has sha256 {found}, head {head.name} is {head.sha256}: it is another "
            "file, delete it and run again"
        )
    return data


def _download(head: PublishedHead, target: Path) -> None:
    """Download into the cache; what has another sha256 is never kept."""
    try:
        with urllib.request.urlopen(head.url, timeout=TIMEOUT_S) as answer:
            data = answer.read(MAX_HEAD_BYTES + 1)
    except (OSError, HTTPException) as error:
        raise InputError(
            f"head {head.name} could not be downloaded from {head.url} ({error}): check the "
            f"network, or put the file into {target.parent}"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != head.sha256:
        raise InputError(
            f"{head.url} gave a file of sha256 {found}, head {head.name} is {head.sha256}: refused"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".head-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(temporary).replace(target)


def _load_local(path: Path) -> Head:
    if not path.is_file():
        raise InputError(f"head file {path} is not there")
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    if path.suffix == ".safetensors":
        return _load_ours(path, sha256)
    tensors = _read_pickle(data, str(path))
    for published in PUBLISHED.values():
        if published.sha256 == sha256:
            return _head_of(published, tensors, str(path))
    card = _checked(_card_beside(path), path)
    described = PublishedHead(
        path.stem,
        card["backbone"],
        "",
        path.name,
        sha256,
        activation=card["activation"],
        output=card["output"],
        by_sqrt_dim=bool(card.get("by_sqrt_dim", False)),
    )
    return replace(_head_of(described, tensors, str(path)), card=card)


def _checked(card: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A head's card with what it leaves out. Raises ConfigError where it says what cannot be."""
    card = {"activation": "none", "output": "score", **card}
    for name, known in (("activation", get_args(Activation)), ("output", get_args(Output))):
        if card[name] not in known:
            raise ConfigError(
                f"the card of {path} says {name}={card[name]!r}: one of {', '.join(known)}"
            )
    if not isinstance(card.get("backbone"), str):
        raise ConfigError(f"the card of {path} does not say whose embeddings it scores (backbone)")
    return card


def _card_beside(path: Path) -> dict[str, Any]:
    """The JSON card of a head file that does not say itself what it was made for."""
    beside = path.with_suffix(".json")
    try:
        card = json.loads(beside.read_text(encoding="utf-8"))
        assert isinstance(card["backbone"], str)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"head file {path} does not say whose embeddings it scores: write {beside.name} "
            'beside it, such as {"backbone": "openai/ViT-L-14", "activation": "none"}'
        ) from error
    return dict(card)


def _read_pickle(data: bytes, where: str) -> Tensors:
    """A state dict's tensors, read with torch's restricted unpickler, on the CPU."""
    if len(data) < 1000 and data.startswith(b"version https://git-lfs"):
        raise InputError(f"{where} is a git-LFS pointer, not the weights: run git lfs pull there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the pickle's protocol
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping):
            raise ValueError(f"it holds a {type(state).__name__}")
        return {str(name): value.float().numpy() for name, value in state.items()}
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        AttributeError,
        KeyError,
        OSError,
    ) as error:
        why = " ".join(str(error).split())[:120]
        raise InputError(f"{where} is no state dict of a head: {why}") from error


def _head_of(published: PublishedHead, tensors: Tensors, where: str) -> Head:
    """Read the layers of the published forms: Linear, numbered stack, standardised stack."""
    weights = sorted(
        (name for name in tensors if name.endswith("weight")),
        key=lambda name: [
            int(part) for part in name.replace("_", ".").split(".") if part.isdigit()
        ],
    )
    layers = tuple(
        Layer(tensors[name], tensors[name.removesuffix("weight") + "bias"])
        for name in weights
        if name.removesuffix("weight") + "bias" in tensors
    )
    _check_layers(layers, where)
    mean, variance = tensors.get("norm.mean"), tensors.get("norm.variance")
    return Head(
        name=published.name,
        backbone=published.backbone,
        sha256=published.sha256,
        layers=layers,
        activation=published.activation,
        output=published.output,
        input_scale=float(np.sqrt(layers[0].weight_OI.shape[1])) if published.by_sqrt_dim else 1.0,
        shift_D=mean,
        divide_D=None if variance is None else np.sqrt(variance) + np.float32(NSFW_EPSILON),
    )


def _check_layers(layers: tuple[Layer, ...], where: str) -> None:
    """Raise InputError where layers do not lead from an embedding to one score, or hold no numbers.

    A head that gives NaN would leave a column of nulls behind.
    """
    shapes = [(layer.weight_OI.shape, layer.bias_O.shape) for layer in layers]
    fit = bool(layers) and all(len(weight) == 2 and bias == weight[:1] for weight, bias in shapes)
    fit = fit and all(a[0][0] == b[0][1] for a, b in itertools.pairwise(shapes))
    if not fit or shapes[-1][1] != (1,):
        raise InputError(
            f"{where} is no head: its layers {[weight for weight, _ in shapes]} do not lead from "
            "an embedding to one score"
        )
    if not all(
        np.isfinite(part).all() for layer in layers for part in (layer.weight_OI, layer.bias_O)
    ):
        raise InputError(f"{where} is no head: its weights hold values that are no numbers")


def save_head(path: Path, head: Head) -> None:
    """Write an affine head as safetensors and, beside it, its JSON card."""
    layer = head.layers[0]
    card = {"backbone": head.backbone, "dim": head.dim, "output": head.output, **head.card}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"weight": np.ascontiguousarray(layer.weight_OI), "bias": layer.bias_O}
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.ExitStack() as clean:
        clean.callback(partial.unlink, missing_ok=True)
        save_file(tensors, partial, metadata={CARD_KEY: json.dumps(card, sort_keys=True)})
        partial.replace(path)
    text = json.dumps(card, indent=1, ensure_ascii=False, sort_keys=True)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def _load_ours(path: Path, sha256: str) -> Head:
    """A head that `save_head` wrote; the card travels inside the file."""
    try:
        with safe_open(path, framework="numpy") as file:
            card = json.loads((file.metadata() or {}).get(CARD_KEY, "null"))
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        card = _checked(card if isinstance(card, dict) else _card_beside(path), path)
        layer = Layer(np.atleast_2d(tensors["weight"]), np.atleast_1d(tensors["bias"]))
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} is no head of laionkit: {error}") from error
    _check_layers((layer,), str(path))
    return Head(path.stem, card["backbone"], sha256, (layer,), output=card["output"], card=card)
