"""Which model a user means, where its weights lie, and whose embedding it therefore makes.

    NAME/TAG             an open_clip architecture and one of its pretrained tags
    NAME/PATH            the same architecture with a weights file
    hf-hub:OWNER/REPO    a model on the Hugging Face hub with an open_clip_config.json
    local-dir:FOLDER     such a model in a folder
    tiny                 the model that ships with laionkit

A model's identity is its pretrained tag, or the sha256 of weights we know, or what the user
declares. OpenAI's weights were trained with QuickGELU; the plain architecture takes them with a
warning only and scores a picture 4.44 instead of 5.05, so that a mismatch is an error here.
"""

import functools
import hashlib
import json
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
from huggingface_hub import constants
from open_clip import pretrained as tables

from laionkit.core.errors import ConfigError, InputError, did_you_mean

TINY = "tiny"
HUB = "hf-hub:"
LOCAL = "local-dir:"
CONNECT_TIMEOUT_S = 10.0
WEIGHTS_IN_ORDER = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class Spec:
    """A parsed model name. `tag` or `path` holds what stood behind NAME's slash."""

    text: str
    architecture: str
    tag: str = ""
    path: str = ""

    @property
    def pretrained(self) -> Mapping[str, Any]:
        """open_clip's entry for the tag: addresses and preprocessing; empty without a tag."""
        entry: Mapping[str, Any] = tables.get_pretrained_cfg(self.architecture, self.tag)
        return entry


def parse(text: str) -> Spec:
    """Read a model name. Raises ConfigError, with the nearest name, where there is no such model.

    >>> parse("ViT-B-32-quickgelu/openai").tag
    'openai'
    """
    if text == TINY or text.startswith((HUB, LOCAL)):
        return Spec(text, text)
    name, slash, rest = text.partition("/")
    models = open_clip.list_models()
    if name not in models:
        raise ConfigError(
            f"model {text!r}: open_clip has no architecture {name!r}"
            f"{did_you_mean(name, models)}; give NAME/TAG, hf-hub:OWNER/REPO, local-dir:FOLDER "
            f"or {TINY}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not slash or not rest:
        raise ConfigError(f"model {text!r} names no weights: give NAME/TAG with {_tags(name)}")
    if tables.is_pretrained_cfg(name, rest):
        spec = Spec(text, name, tag=rest)
        _check_activation(spec, name, rest)
        return spec
    if Path(rest).is_file():
        return Spec(text, name, path=rest)
    raise ConfigError(
        f"model {text!r}: {name} has no weights {rest!r}{did_you_mean(rest, tags)}, and no such "
        f"file is there; {_tags(name)}, or the path of a weights file"
    )


def _tags(architecture: str) -> str:
    """The published tags of an architecture, those that belong to its twin named as the twin's."""
    tags = [
        tag if right == architecture else f"{tag} (of {right})"
        for tag in open_clip.list_pretrained_tags_by_model(architecture)
        for right in [_right_architecture(architecture, tag)]
    ]
    return f"TAG one of {', '.join(tags)}" if tags else "a weights file (it has no published tags)"


def _right_architecture(architecture: str, tag: str) -> str:
    """The name under which an architecture is built with the activation that a tag's weights want.

    open_clip lists the tag openai with ViT-B-32 and with ViT-B-32-quickgelu, which is the right
    one; a few have no such twin, and are right as they are.
    """
    plain = architecture.removesuffix("-quickgelu")
    is_quick = tables.get_pretrained_cfg(architecture, tag).get("quick_gelu")
    right = f"{plain}-quickgelu" if is_quick else plain
    return right if right in open_clip.list_models() else architecture


def _check_activation(spec: Spec, architecture: str, tag: str) -> None:
    """Refuse the weights of a tag on a model with the other activation, naming the right one.

    A name, or a folder with a config of its own; a repository of the hub is taken at its word.
    """
    right = _right_architecture(architecture, tag)
    wanted = _is_quick(open_clip.get_model_config(right))
    if spec.text.startswith(HUB) or _is_quick(_model_config(spec)) == wanted:
        return
    activation = "QuickGELU" if wanted else "plain GELU"
    which, fix = spec.architecture, f"use {right}/{spec.path or tag}"
    if spec.text.startswith(LOCAL):
        which = "it"
        fix = f"say quick_gelu: {str(wanted).lower()} in model_cfg of its open_clip_config.json"
    raise ConfigError(
        f"model {spec.text!r}: these weights were trained with {activation}, which {which} is not "
        f"built with (its embeddings would be wrong): {fix}"
    )


def _is_quick(config: Mapping[str, Any] | None) -> bool:
    return bool((config or {}).get("quick_gelu"))


def _model_config(spec: Spec) -> Mapping[str, Any] | None:
    if not spec.text.startswith(LOCAL):
        config: Mapping[str, Any] | None = open_clip.get_model_config(spec.architecture)
        return config
    file = Path(spec.text.removeprefix(LOCAL)) / "open_clip_config.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["model_cfg"])
    except (ValueError, KeyError, TypeError):
        return None  # what is wrong with it is said where the model is built


@functools.cache
def known_weights() -> dict[str, tuple[str, str]]:
    """Sha256 of weights files that we know → (architecture, tag): OpenAI's, from their address."""
    known = {}
    for architecture, tag in open_clip.list_pretrained():
        url = tables.get_pretrained_url(architecture, tag)
        if "openaipublic" in url and not architecture.endswith("-quickgelu"):
            known[urllib.parse.urlsplit(url).path.split("/")[-2]] = (architecture, tag)
    return known


def identity(architecture: str, tag: str) -> str:
    """Spell whose embedding a tag makes; the activation is part of the tag, not of the name.

    >>> identity("ViT-L-14-quickgelu", "openai")
    'openai/ViT-L-14'
    """
    return f"{tag}/{architecture.removesuffix('-quickgelu')}"


def identify(spec: Spec, sha256: str, declared: str | None) -> tuple[str, str]:
    """Whose embedding a model makes, and whether that was found out or declared by the user.

    Raises ConfigError where the declaration contradicts what is known, and where weights that are
    known or declared meet an architecture with another activation.
    """
    found = _found_identity(spec, sha256)
    if found and declared and declared != found:
        raise ConfigError(f"backbone_id={declared!r}: {spec.text} is known to be {found}")
    if found:
        return found, "computed"
    if declared:
        architecture, tag = _declared_weights(declared)
        if tag:
            _check_activation(spec, architecture, tag)
        return declared, "declared"
    return f"sha256:{sha256}", "computed"


def _declared_weights(declared: str) -> tuple[str, str]:
    """The architecture and tag that an identity such as openai/ViT-L-14 names; empty for others."""
    tag, _, name = declared.partition("/")
    for architecture in (name, f"{name}-quickgelu"):
        if tables.is_pretrained_cfg(architecture, tag):
            return architecture, tag
    return "", ""


def _found_identity(spec: Spec, sha256: str) -> str | None:
    if spec.text == TINY:
        return f"laionkit/{TINY}"
    if spec.tag:
        return identity(spec.architecture, tables._clean_tag(spec.tag))
    if sha256 in known_weights():
        architecture, tag = known_weights()[sha256]
        _check_activation(spec, architecture, tag)
        return identity(architecture, tag)
    if spec.text.startswith(HUB):
        repository = spec.text.removeprefix(HUB)
        for architecture, tag in open_clip.list_pretrained():
            entry = tables.get_pretrained_cfg(architecture, tag)
            if str(entry.get("hf_hub", "")).rstrip("/") == repository:
                return identity(architecture, tag)
        return spec.text
    return None


def find_weights(spec: Spec) -> Path:
    """The weights file of a model, downloaded into open_clip's cache where it must be.

    Raises InputError in one line where it is missing or cannot be had.
    """
    if spec.path:
        return Path(spec.path)
    if spec.text.startswith(LOCAL):
        return _weights_in(Path(spec.text.removeprefix(LOCAL)))
    cached = _cached_weights(spec)
    if cached:
        return cached
    try:
        _reach_hub()
        if spec.tag:
            return Path(open_clip.download_pretrained(dict(spec.pretrained)))
        return Path(tables.download_pretrained_from_hf(spec.text.removeprefix(HUB)))
    # whatever open_clip's downloaders, urllib or huggingface_hub raise without a network
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(_cannot_be_had(spec, error)) from error


def _cached_weights(spec: Spec) -> Path | None:
    """The weights file in the hub's cache, found without asking the network."""
    entry = (
        str(spec.pretrained.get("hf_hub", "")) if spec.tag else spec.text.removeprefix(HUB) + "/"
    )
    repository, _, filename = entry.rpartition("/")
    if not repository:
        return None
    for name in [filename] if filename else WEIGHTS_IN_ORDER:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _reach_hub() -> None:
    """Raise OSError at once where the hub cannot be reached: its client retries for a minute."""
    if urllib.request.getproxies():
        return
    hub = urllib.parse.urlsplit(constants.ENDPOINT)
    port = hub.port or (80 if hub.scheme == "http" else 443)
    socket.create_connection((hub.hostname or "", port), timeout=CONNECT_TIMEOUT_S).close()


def _cannot_be_had(spec: Spec, error: Exception) -> str:
    why = " ".join(str(error).split())[:200]
    other = f"{spec.architecture}/FILE" if spec.tag else "local-dir:FOLDER"
    return (
        f"the weights of {spec.text} are not in the cache and could not be downloaded ({why}): "
        f"check the network, or give a local copy as {other} with --backbone-id"
    )


def _weights_in(folder: Path) -> Path:
    if not (folder / "open_clip_config.json").is_file():
        raise InputError(f"{folder} holds no open_clip_config.json: it is no open_clip model")
    names = {path.name: path for path in sorted(folder.iterdir())}
    for name in WEIGHTS_IN_ORDER:
        if name in names:
            return names[name]
    others = [p for p in names.values() if p.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    if len(others) == 1:
        return others[0]
    raise InputError(f"{folder} holds {len(others) or 'no'} weights files: expected one")


def file_sha256(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
