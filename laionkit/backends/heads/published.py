"""The heads that LAION and others published: address, sha256, backbone and how to read the file.

The weights are not ours to ship. Sources: LAION-AI/aesthetic-predictor (v1),
christophschuhmann/improved-aesthetic-predictor (v2 and siblings),
crowsonkb/simulacra-aesthetic-models, LAION-AI/CLIP-based-NSFW-Detector.
"""

import urllib.parse
from dataclasses import dataclass

from laionkit.backends.heads.head import Activation, Output
from laionkit.core.errors import ConfigError, did_you_mean

L14, B32, B16 = "openai/ViT-L-14", "openai/ViT-B-32", "openai/ViT-B-16"
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class PublishedHead:
    """One published file. `by_sqrt_dim`: the unit row is multiplied by √dimension first."""

    name: str
    backbone: str
    repository: str
    path: str
    sha256: str
    branch: str = "main"
    activation: Activation = "none"
    output: Output = "score"
    by_sqrt_dim: bool = False

    @property
    def file(self) -> str:
        """The file's base name."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def url(self) -> str:
        """Where the file is downloaded from."""
        path = urllib.parse.quote(self.path, safe="/")
        return f"{RAW}/{self.repository}/{self.branch}/{path}"


def _v1(name: str, backbone: str, size: str, sha256: str) -> PublishedHead:
    repository = "LAION-AI/aesthetic-predictor"
    return PublishedHead(name, backbone, repository, f"sa_0_4_vit_{size}_linear.pth", sha256)


def _v2(name: str, file: str, sha256: str, activation: Activation = "none") -> PublishedHead:
    repository = "christophschuhmann/improved-aesthetic-predictor"
    return PublishedHead(name, L14, repository, file, sha256, activation=activation)


def _simulacra(name: str, backbone: str, size: str, sha256: str) -> PublishedHead:
    return PublishedHead(
        name,
        backbone,
        "crowsonkb/simulacra-aesthetic-models",
        f"models/sac_public_2022_06_29_vit_{size}_linear.pth",
        sha256,
        branch="master",
        by_sqrt_dim=True,
    )


def _nsfw(name: str, backbone: str, size: str, sha256: str) -> PublishedHead:
    return PublishedHead(
        name,
        backbone,
        "LAION-AI/CLIP-based-NSFW-Detector",
        f"models/clip_ViT-{size}_openai_binary_nsfw_head.pth",
        sha256,
        activation="relu",
        output="probability",
    )


PUBLISHED = {
    head.name: head
    for head in (
        _v2(
            "aesthetic-v2",
            "sac+logos+ava1-l14-linearMSE.pth",
            "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
        ),
        _v2(
            "aesthetic-v2-ava-logos",
            "ava+logos-l14-linearMSE.pth",
            "390a3aafaf3b37d57148f9b22f30556de38343064b7d915acfa80d3812b4c9ff",
        ),
        _v2(
            "aesthetic-v2-ava-logos-relu",
            "ava+logos-l14-reluMSE.pth",
            "0af3254c651d55b7ea851429c20f26ec880bb0169805a4df85b814bd7966f3e4",
            activation="relu",
        ),
        _v1(
            "aesthetic-v1",
            L14,
            "l_14",
            "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
        ),
        _v1(
            "aesthetic-v1-b32",
            B32,
            "b_32",
            "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
        ),
        _v1(
            "aesthetic-v1-b16",
            B16,
            "b_16",
            "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0",
        ),
        _simulacra(
            "simulacra-l14",
            L14,
            "l_14",
            "f77d1d0f4bb04b0ff8e60c5747fd0bfff0cc4a85263a6106627522c06eae85c6",
        ),
        _simulacra(
            "simulacra-b32",
            B32,
            "b_32",
            "64315370e2293a08cc2f4816ae9db715f935791569c1a57d84b943e482ea5e12",
        ),
        _simulacra(
            "simulacra-b16",
            B16,
            "b_16",
            "cdc27b2196565bcb69f2692731084b0189612b98aae74adec033782469ab583c",
        ),
        _nsfw(
            "nsfw-l14",
            L14,
            "L-14",
            "fc4d70d2eea4e948d13bc27bf7114f5e8d3bd317eb01a4b49b35dcf1a3d672c6",
        ),
        _nsfw(
            "nsfw-b32",
            B32,
            "B-32",
            "615f35e1364b40b14c30e770544345b82d8e558240692ad72eb8eafa466ef25c",
        ),
    )
}


def heads_that_fit(backbone: str) -> list[str]:
    """Names of the published heads made for a backbone's embeddings."""
    return [head.name for head in PUBLISHED.values() if head.backbone == backbone]


def find_published(name: str) -> PublishedHead:
    """The published head of this name; raises ConfigError with the nearest one."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    raise ConfigError(
        f"head {name!r} is not known{did_you_mean(name, PUBLISHED)}; published heads: "
        f"{', '.join(PUBLISHED)}; or give a file (.safetensors, .pth)"
    )
