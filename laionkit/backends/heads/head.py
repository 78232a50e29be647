"""A head: a small model from unit embeddings to one score a row. Pure numpy.

Shapes: N rows, D embedding dimensions, I and O a layer's inputs and outputs. A stack without
activations is one affine map and is collapsed to it in float64; LAION-Aesthetics V2 is such a
stack (‖w‖ = 17.9956, b = 5.23665).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from laionkit.core.errors import InputError

Activation = Literal["none", "relu"]
Output = Literal["score", "probability"]


@dataclass(frozen=True)
class Rows:
    """Unit rows of one shard: pictures, captions where embedded, which rows have a caption."""

    image_ND: NDArray[np.float32]
    text_ND: NDArray[np.float32] | None
    captioned_N: NDArray[np.bool_]


@dataclass(frozen=True)
class Layer:
    """One linear map, ``x @ weight.T + bias``."""

    weight_OI: NDArray[np.float32]
    bias_O: NDArray[np.float32]


@dataclass(frozen=True)
class Head:
    """Scores unit rows. `backbone` is whose embeddings it was made for.

    `input_scale` multiplies the unit row (Simulacra heads want √D), `shift_D` and `divide_D`
    standardise it, `activation` stands between layers, `output` is the last layer's value or its
    sigmoid.
    """

    name: str
    backbone: str
    sha256: str
    layers: tuple[Layer, ...]
    activation: Activation = "none"
    output: Output = "score"
    input_scale: float = 1.0
    shift_D: NDArray[np.float32] | None = None
    divide_D: NDArray[np.float32] | None = None
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def dim(self) -> int:
        """The embedding dimension it takes."""
        return int(self.layers[0].weight_OI.shape[1])

    def score(self, emb_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """Score unit rows, in fp32. Raises InputError where the dimension is another."""
        if emb_ND.shape[1] != self.dim:
            raise InputError(
                f"head {self.name} takes {self.dim} dimensions, the embeddings have "
                f"{emb_ND.shape[1]}: they are of another backbone than {self.backbone}"
            )
        x = emb_ND.astype(np.float32) * np.float32(self.input_scale)
        if self.shift_D is not None and self.divide_D is not None:
            x = (x - self.shift_D) / self.divide_D
        for i, layer in enumerate(self.layers):
            if i and self.activation == "relu":
                x = np.maximum(x, 0)
            x = x @ layer.weight_OI.T + layer.bias_O
        values = x[:, 0]
        return sigmoid(values) if self.output == "probability" else values

    def affine(self) -> tuple[NDArray[np.float64], float] | None:
        """The one affine map (w [D], b) that this head is, None where it is not one."""
        if self.output != "score" or (self.activation != "none" and len(self.layers) > 1):
            return None
        if self.shift_D is not None:
            return None
        weight_OI, bias_O = collapse(self.layers)
        return weight_OI[0] * self.input_scale, float(bias_O[0])

    def collapsed(self) -> "Head":
        """The same head with as few layers as give the same scores."""
        if self.activation != "none" or len(self.layers) == 1:
            return self
        weight_OI, bias_O = collapse(self.layers)
        layer = Layer(weight_OI.astype(np.float32), bias_O.astype(np.float32))
        return Head(
            self.name,
            self.backbone,
            self.sha256,
            (layer,),
            self.activation,
            self.output,
            self.input_scale,
            self.shift_D,
            self.divide_D,
            self.card,
        )


def collapse(layers: Sequence[Layer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Multiply layers that no activation parts into one weight [O, I] and bias [O]."""
    weight_OI = np.eye(layers[0].weight_OI.shape[1])
    bias_O = np.zeros(layers[0].weight_OI.shape[1])
    for layer in layers:
        weight = layer.weight_OI.astype(np.float64)
        weight_OI, bias_O = weight @ weight_OI, weight @ bias_O + layer.bias_O.astype(np.float64)
    return weight_OI, bias_O


def sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logistic function, without overflow at either end."""
    positive = 1 / (1 + np.exp(-np.abs(values)))
    return np.asarray(np.where(values >= 0, positive, 1 - positive), dtype=np.float32)
