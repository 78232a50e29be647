"""Check what a user asks; turn text, image or vector into one unit vector of the index's model."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from laionkit.core.errors import ConfigError, InputError

Image = str | Path | bytes | NDArray[np.uint8]

LATENCY_MS = 50.0  # what feels immediate, with a page to draw after it
MAX_K = 100_000
MAX_DEDUP = 20_000  # two seconds of one core: each hit is compared with all before it
_PAGES = 10  # pages that one search serves


@dataclass(frozen=True)
class Limits:
    """How many hits, which of them, and how hard to look; see `Searcher.search`.

    Raises ConfigError for what is out of bounds.
    """

    k: int = 10
    page: int | None = None
    where: str | None = None
    threshold: float | None = None
    dedup: float | None = None
    exact: bool = False
    latency_ms: float = LATENCY_MS

    def __post_init__(self) -> None:
        """Check them."""
        k, page = _whole("k", self.k), 1 if self.page is None else _whole("page", self.page)
        object.__setattr__(self, "k", k)
        if not 1 <= k <= MAX_K:
            raise ConfigError(f"k={k}: ask for 1 to {MAX_K} hits")
        if not 1 <= page <= MAX_K // k:
            raise ConfigError(f"page={page}: pages of {k} hits go from 1 to {MAX_K // k}")
        for name, cosine in (("dedup", self.dedup), ("threshold", self.threshold)):
            if cosine is not None and not -1 <= cosine <= 1:
                raise ConfigError(f"{name}={cosine}: a cosine, from -1 to 1, such as 0.95")
        if not self.latency_ms > 0:
            raise ConfigError(f"latency_ms={self.latency_ms}: a time above 0, such as 50")
        if self.dedup is not None and k * page > MAX_DEDUP:
            raise ConfigError(f"dedup goes {MAX_DEDUP} hits deep; asked for {k * page}")

    @property
    def first(self) -> int:
        """The place of the first hit, 0 the best."""
        return 0 if self.page is None else self.k * (operator.index(self.page) - 1)

    @property
    def depth(self) -> int:
        """How many hits are ranked at once: pages come of one ranking, or they might repeat."""
        return self.k if self.page is None else min(_PAGES * self.k, MAX_K)


def _whole(name: str, value: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ConfigError(f"{name}={value!r}: a whole number") from error


def check_vector(vector: ArrayLike, dim: int) -> NDArray[np.float32]:
    """One query vector, scaled to length 1. Raises InputError where it is unusable."""
    try:
        query = np.asarray(vector)
        if query.dtype.kind not in "fiu":
            query = query.astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise InputError(f"the query vector is no list of numbers: {error}") from error
    query = query.astype(np.float64)
    query = query[0] if query.ndim == 2 and len(query) == 1 else query
    if query.ndim != 1 or len(query) != dim:
        raise InputError(
            f"the query vector has shape {query.shape}; this index holds vectors of {dim}: "
            "embed the query with the index's model"
        )
    largest = float(np.abs(query).max(initial=0))
    if not np.isfinite(largest) or largest == 0:
        what = "only zeros" if largest == 0 else "NaN or infinity"
        raise InputError(f"the query vector holds {what}")
    query = query / largest  # whose squares neither overflow nor vanish
    return np.asarray(query / np.linalg.norm(query), np.float32)


def read_vector(path: str | Path) -> NDArray[Any]:
    """The one vector of a .npy file. Raises InputError where it holds none, or several."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} is no readable .npy file: {why}") from error
    if found.dtype.kind != "f":
        raise InputError(f"{path} holds {found.dtype}: a query vector is float16 or float32")
    if found.ndim not in (1, 2) or (found.ndim == 2 and len(found) != 1):
        raise InputError(
            f"{path} has shape {found.shape}: give one vector; --queries takes a file of many"
        )
    return np.asarray(found.reshape(-1))


class Encoder:
    """The index's model, loaded when the first text or image asks for it."""

    def __init__(self, facts: Mapping[str, Any], device: str, allow_private: bool = False) -> None:
        """Remember which model made the embeddings (`facts` of their stage).

        `allow_private`: whether a picture's URL may lead to a private address.
        """
        self.facts, self.device, self.allow_private = facts, device, allow_private
        self._model: Any = None

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The unit vectors [N, D] of texts."""
        if not all(text.strip() for text in texts):
            raise ConfigError("the query text is empty: say what to look for")
        return np.asarray(self._loaded().encode_texts(texts), np.float32)

    def image(self, image: Image) -> NDArray[np.float32]:
        """The unit vector of a picture: a path, a URL, a file's bytes, or RGB pixels."""
        rgb = image if isinstance(image, np.ndarray) else _pixels(image, self.allow_private)
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise InputError(
                f"the query image holds {rgb.dtype} of shape {rgb.shape}: pixels are uint8 of "
                "shape (height, width, 3), red first"
            )
        return np.asarray(self._loaded().encode_images([rgb])[0], np.float32)

    def images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """The unit vectors [N, D] of pictures of RGB pixels."""
        return np.asarray(self._loaded().encode_images(images), np.float32)

    def _loaded(self) -> Any:
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> Any:
        from laionkit.backends.clip import load_model

        spec = self.facts.get("model")
        if not isinstance(spec, str):
            raise InputError(
                "these embeddings do not say which model made them, so a text or image cannot be "
                "compared with them: search with a vector, or adopt them again with --model"
            )
        recorded = self.facts.get("backbone")
        declared = recorded if self.facts.get("provenance") == "declared" else None
        model = load_model(spec, device=self.device, backbone_id=declared)
        if recorded is not None and model.backbone != recorded:
            raise InputError(
                f"the embeddings were made by {recorded}; {spec} is {model.backbone}: their "
                "vectors cannot be compared"
            )
        return model


def _pixels(image: str | Path | bytes, allow_private: bool) -> NDArray[np.uint8]:
    from laionkit.ops.images import PictureError, decode

    name = "the query image" if isinstance(image, bytes) else f"the query image {image}"
    try:
        return np.asarray(decode(_read(image, name, allow_private)).rgb)
    except PictureError as error:
        raise InputError(f"{name} is no usable picture: {error}") from error


def _read(image: str | Path | bytes, name: str, allow_private: bool) -> bytes:
    from laionkit.search.downloads import download_picture, is_url

    if isinstance(image, bytes):
        return image
    if is_url(image):
        return download_picture(str(image), allow_private=allow_private)
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from error
