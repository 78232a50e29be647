"""Heads made of words: a prompt against another, and the best of a list of labels.

The words' vectors are those of the model that made the embeddings, computed on the CPU in fp32,
so that a column does not depend on where it was computed. Probabilities are the softmax of
cosines times the model's own logit scale, as in CLIP's zero-shot classification.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.heads.head import Head, Layer, Rows
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.schemas import column_for

PROMPT = re.compile(r'(?:(?P<name>[\w-]+)=)?prompt:"(?P<yes>[^"]+)"\s+vs\s+"(?P<no>[^"]+)"')
MAX_NAME = 40
MAX_LABELS = 100_000


class TextEncoder(Protocol):
    """What is asked of a CLIP model here."""

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by."""

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows of texts, [N, D]."""


Encoder = Callable[[], TextEncoder]


def is_prompt(name: str) -> bool:
    """Tell whether a head's name is meant as a prompt.

    >>> is_prompt('prompt:"a drawing" vs "a photo"')
    True
    """
    return "prompt:" in name


def open_prompt(text: str, backbone: str, encoder: Encoder) -> Head:
    """The head that gives a picture's probability of the first prompt against the second.

    ``prompt:"a watermarked photo" vs "a clean photo"``; ``NAME=prompt:…`` names the column.
    """
    found = PROMPT.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            f'head {text!r}: write prompt:"a watermarked photo" vs "a clean photo", or '
            'NAME=prompt:"…" vs "…"'
        )
    yes, no = found["yes"], found["no"]
    name = found["name"] or column_for(f"prompt {yes}")[:MAX_NAME].strip("_")
    model = encoder()
    yes_D, no_D = model.encode_texts([yes, no])
    weight_OI = ((yes_D - no_D) * np.float32(model.logit_scale))[None]
    sha256 = hashlib.sha256(json.dumps([yes, no]).encode()).hexdigest()
    layers = (Layer(weight_OI, np.zeros(1, np.float32)),)
    card = {"yes": yes, "no": no}
    return Head(name, backbone, sha256, layers, output="probability", card=card)


@dataclass(frozen=True)
class LabelScorer:
    """The best of a list of labels for each picture, or its probability among them."""

    column: str
    what: Literal["label", "probability"]
    labels: tuple[str, ...]
    label_LD: NDArray[np.float32]
    logit_scale: float
    needs_text: bool = False

    def facts(self) -> dict[str, Any]:
        """The list's sha256 and length."""
        sha256 = hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()
        return {"head": f"labels:{self.what}", "head_sha256": sha256, "labels": len(self.labels)}

    def score(self, rows: Rows) -> NDArray[Any]:
        """One label or one probability a row."""
        logits_NL = rows.image_ND @ self.label_LD.T * np.float32(self.logit_scale)
        best_N = logits_NL.argmax(axis=1)
        if self.what == "label":
            return np.array([self.labels[best] for best in best_N], dtype=object)
        top_N1 = logits_NL.max(axis=1, keepdims=True)
        return np.asarray(1 / np.exp(logits_NL - top_N1).sum(axis=1), dtype=np.float32)


def open_labels(path: str, text: str, encoder: Encoder) -> list[LabelScorer]:
    """The two columns of a file of labels, one a line: NAME and NAME_probability.

    A line is a whole prompt (``a photo of a cat``). Raises InputError for fewer than two labels.
    """
    labels = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 2 <= len(labels) <= MAX_LABELS:
        raise InputError(f"{path} has {len(labels)} labels: 2 to {MAX_LABELS}, one a line")
    model = encoder()
    label_LD = model.encode_texts(labels)
    name = column_for(path.rsplit("/", 1)[-1].rpartition(".")[0] or path)
    scale = model.logit_scale
    return [
        LabelScorer(name, "label", labels, label_LD, scale),
        LabelScorer(f"{name}_probability", "probability", labels, label_LD, scale),
    ]
