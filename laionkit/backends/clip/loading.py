"""Building an open_clip model and filling it, without ever running code from a weights file."""

import contextlib
import functools
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.factory import load_checkpoint
from open_clip.transform import PreprocessCfg
from safetensors import SafetensorError

from laionkit.backends.clip import specs
from laionkit.backends.clip.preprocess import Preprocess
from laionkit.backends.clip.specs import Spec
from laionkit.core.errors import ConfigError, InputError

Tokenizer = Callable[[Sequence[str]], torch.Tensor]

_PREPROCESS_FIELDS = PreprocessCfg.__dataclass_fields__.keys() - {"size", "mode"}


@dataclass(frozen=True)
class Loaded:
    """A model on the CPU in fp32, its tokenizer, its preprocessing and its identity."""

    name: str
    module: torch.nn.Module
    tokenizer: Tokenizer
    preprocess: Preprocess
    backbone: str
    provenance: str
    weights_sha256: str

    @functools.cached_property
    def dim(self) -> int:
        """The embedding's dimension, found by embedding an empty caption."""
        with torch.inference_mode():
            return int(self.module.encode_text(self.tokenizer([""])).shape[1])  # type: ignore[operator]

    def facts(self) -> dict[str, Any]:
        """What a record says of this model, as JSON values."""
        return {
            "model": self.name,
            "backbone": self.backbone,
            "dim": self.dim,
            "weights_sha256": self.weights_sha256,
            "preprocess": self.preprocess.facts(),
            "provenance": self.provenance,
        }


def load(text: str, backbone_id: str | None) -> Loaded:
    """Load the model that `text` names. Raises ConfigError or InputError in one line."""
    spec = specs.parse(text)
    if spec.text == specs.TINY:
        return _load_tiny(spec, backbone_id)
    weights = specs.find_weights(spec)
    sha256 = specs.file_sha256(weights)
    backbone, provenance = specs.identify(spec, sha256, backbone_id)
    with _quiet():
        module = _build(spec)
        _fill(module, weights, sha256)
        tokenizer = _tokenizer(spec)
    preprocess = Preprocess.of(module.visual.preprocess_cfg)  # type: ignore[union-attr,arg-type]
    return Loaded(text, module.eval(), tokenizer, preprocess, backbone, provenance, sha256)


def _load_tiny(spec: Spec, backbone_id: str | None) -> Loaded:
    from laionkit.backends import tiny

    module, preprocess_cfg, tokenizer = tiny.load_tiny()
    sha256 = specs.file_sha256(tiny.FOLDER / "model.safetensors")
    backbone, provenance = specs.identify(spec, sha256, backbone_id)
    preprocess = Preprocess.of(preprocess_cfg)
    return Loaded(spec.text, module, tokenizer, preprocess, backbone, provenance, sha256)


def _build(spec: Spec) -> torch.nn.Module:
    """The architecture with random weights and the right preprocessing."""
    overlay = {k: v for k, v in spec.pretrained.items() if k in _PREPROCESS_FIELDS}
    try:
        module: torch.nn.Module = open_clip.create_model(
            spec.architecture,
            load_weights=False,
            pretrained_text=False,  # no Hugging Face text tower: the weights file holds it
            force_preprocess_cfg=overlay,
        )
    except ImportError as error:
        raise ConfigError(f"model {spec.text!r}: {_one_line(error)}") from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"model {spec.text!r} cannot be built: {_one_line(error)}") from error
    return module


def _fill(module: torch.nn.Module, weights: Path, sha256: str) -> None:
    """Load weights strictly. TorchScript archives only where their sha256 is one we know."""
    try:
        with warnings.catch_warnings():
            # torch warns of a pickle's protocol before it refuses the pickle
            warnings.simplefilter("ignore", UserWarning)
            if sha256 in specs.known_weights() and _is_torchscript(weights):
                _fill_from_torchscript(module, weights)
            else:
                load_checkpoint(module, str(weights), strict=True, weights_only=True)
    except (
        pickle.UnpicklingError,
        SafetensorError,
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        EOFError,
        StopIteration,
        AttributeError,
    ) as error:
        raise InputError(
            f"{weights} is no weights file for this architecture: {_one_line(error)}"
        ) from error


def _is_torchscript(weights: Path) -> bool:
    with weights.open("rb") as file:
        return file.read(2) == b"PK" and weights.suffix == ".pt"


def _fill_from_torchscript(module: torch.nn.Module, weights: Path) -> None:
    state = torch.jit.load(str(weights), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    for name in ("input_resolution", "context_length", "vocab_size"):
        state.pop(name, None)
    module.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)


def _tokenizer(spec: Spec) -> Tokenizer:
    try:
        tokenizer: Tokenizer = open_clip.get_tokenizer(spec.architecture)
    except ImportError as error:
        raise ConfigError(
            f"model {spec.text!r} has a Hugging Face tokenizer: pip install transformers"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"the tokenizer of {spec.text} could not be had ({_one_line(error)}): "
            "check the network, or give the model as local-dir:FOLDER"
        ) from error
    return tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from warning on the root logger that weights are not loaded yet.

    Its ``logging.warning`` would also hang a handler on a root logger that has none.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    was = root.manager.disable
    logging.disable(logging.WARNING)
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)
        logging.disable(was)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
