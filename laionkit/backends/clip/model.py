"""A loaded CLIP model: captions and pictures in, unit vectors out.

Shapes: N samples, D dimensions, H W pixels, C = 3 channels, T tokens. The towers run in the
model's precision; normalisation is always in fp32.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, text_global_pool

from laionkit.backends.clip.device import Precision, Transfers, has_fast_bf16
from laionkit.backends.clip.lanes import Lanes
from laionkit.backends.clip.loading import Loaded
from laionkit.backends.clip.one_token import (
    at_one_token,
    ends_in_plain_block,
    read_class_token_alone,
)
from laionkit.backends.clip.packed import pack
from laionkit.core.errors import ConfigError, StageFailed

# Captions and pictures a batch where nobody asked for another size.
DEFAULT_BATCH = 64
# Pictures or captions at most that a core computes at once: with more, activations leave its cache,
# and captions are padded to longer ones.
PIECE = 16
P = TypeVar("P")
R = TypeVar("R", NDArray[np.uint8], torch.Tensor)


class ClipModel:
    """An open_clip model on one device, in one precision."""

    def __init__(
        self, loaded: Loaded, device: torch.device, precision: Precision, *, compiled: bool = False
    ) -> None:
        """Move `loaded` to `device` in `precision`.

        `compiled`: torch.compile fuses the image tower when `busy` begins.
        """
        self.name, self.device, self.precision = loaded.name, device, precision
        self.backbone, self.preprocess, self.dim = loaded.backbone, loaded.preprocess, loaded.dim
        self.tokenizer = loaded.tokenizer
        self._facts = loaded.facts()
        self._lanes: Lanes | None = None
        self._transfers = Transfers(device)
        self.fits = sys.maxsize
        self.module = loaded.module.to(device=device, dtype=precision.dtype)
        read_class_token_alone(self.module.visual)
        self._compiled = compiled
        self._encode_image: Callable[[torch.Tensor], torch.Tensor] = self.module.encode_image  # type: ignore[assignment]
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(1, 3, 1, 1)
            for values in (self.preprocess.mean, self.preprocess.std)
        )

    def facts(self) -> dict[str, Any]:
        """What a record says of this model, as JSON values."""
        return dict(self._facts)

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax (100 for OpenAI's models)."""
        return float(self.module.logit_scale.detach().exp())  # type: ignore[operator]

    @contextlib.contextmanager
    def busy(self, batch: int = DEFAULT_BATCH) -> Iterator["ClipModel"]:
        """For a long run, in batches of `batch` pictures at most.

        On a CPU, weights are packed and the cores work apart until the end.
        """
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # else pinned memory opens the first GPU, too
        if self.device.type == "cpu":
            packs = self.precision is Precision.FP32 or has_fast_bf16(self.device)
            if packs and not self._compiled:
                pack(self.module)
            self._lanes = Lanes()
        try:
            if self._compiled:
                self._compile(batch)
            yield self
        finally:
            if self._lanes is not None:
                self._lanes.close()
                self._lanes = None

    def _compile(self, batch: int) -> None:
        """Compile the image tower by running it. Raises ConfigError where torch cannot.

        The second size makes torch compile for any size, which it would else do midway, where a
        shard ends.
        """
        self._encode_image = torch.compile(self._encode_image)
        edges = self.preprocess.height_px, self.preprocess.width_px
        try:
            for size in (batch, batch // 2 + 1):
                self.embed_images(np.zeros((size, *edges, 3), np.uint8))
        except (RuntimeError, OSError, ImportError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--compile: torch cannot compile {self.name} for {self.device} here ({why}): "
                "install a C++ compiler, or go on without --compile"
            ) from error

    def encode_images(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]], batch: int = DEFAULT_BATCH
    ) -> NDArray[np.float32]:
        """Embed RGB pictures: uint8 [N, S, S, 3] as `preprocess` gives, or a list of any size.

        Returns float32 [N, D], unit rows.
        """
        if not isinstance(images, np.ndarray):
            images = np.array([self.preprocess(image) for image in images])
        parts = [self.embed_images(images[i : i + batch]) for i in range(0, len(images), batch)]
        return self.bring_home(parts)()

    def encode_texts(self, texts: Sequence[str], batch: int = DEFAULT_BATCH) -> NDArray[np.float32]:
        """Embed captions, of like length together. Returns float32 [N, D], unit rows."""
        if not texts:
            return self.bring_home([])()
        return self.embed_captions(self.tokenizer(list(texts)), batch)()

    def embed_captions(
        self, tokens_NT: torch.Tensor, batch: int = DEFAULT_BATCH
    ) -> Callable[[], NDArray[np.float32]]:
        """Begin to embed token rows, of like length together.

        The result waits for the float32 unit rows, in their order; a GPU works until then.
        """
        order = np.argsort(used_lengths(tokens_NT).numpy(), kind="stable")
        pieces = list(_split(order, min(batch, PIECE) if self._lanes else batch))
        parts = self._map(self._embed_piece, [tokens_NT[rows] for rows in pieces])

        home = self.bring_home(parts)

        def in_order() -> NDArray[np.float32]:
            out = np.empty((len(order), self.dim), np.float32)
            out[order] = home()
            return out

        return in_order

    def _embed_piece(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        return self._within_memory(tokens_NT, lambda chunk: [self.embed_tokens(chunk)])

    def embed_images(self, image_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        """One batch of preprocessed pictures → fp32 unit rows on the device.

        What does not fit the device's memory is halved, then and from then on (`fits`). Raises
        StageFailed where a single picture does not fit.
        """
        return self._within_memory(
            image_NHWC, lambda chunk: self._map(self._forward_images, self._pieces(chunk))
        )

    def _within_memory(self, rows: R, work: Callable[[R], Sequence[torch.Tensor]]) -> torch.Tensor:
        """Do `work` on as many rows at once as fit the memory."""
        parts: list[torch.Tensor] = []
        at = 0
        while at < len(rows):
            chunk = rows[at : at + self.fits]
            try:
                parts += work(chunk)
                at += len(chunk)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise StageFailed(
                        f"one sample of {self.name} in {self.precision} does not fit the memory of "
                        f"{self.device}: use a smaller model or --device cpu"
                    ) from error
            # Only here is the error gone, which kept what the failed attempt had computed.
            self.fits = len(chunk) // 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _pieces(self, image_NHWC: NDArray[np.uint8]) -> Sequence[NDArray[np.uint8]]:
        """A batch as pieces for the lanes, as many for each."""
        lanes = self._lanes.count if self._lanes else 0
        rounds = -(-len(image_NHWC) // (lanes * PIECE)) if lanes else 0
        return np.array_split(image_NHWC, min(lanes * rounds, len(image_NHWC)) or 1)

    def _map(
        self, work: Callable[[P], torch.Tensor], pieces: Sequence[P]
    ) -> Sequence[torch.Tensor]:
        return self._lanes.map(work, pieces) if self._lanes else [work(piece) for piece in pieces]

    @torch.inference_mode()
    def _forward_images(self, image_NHWC: NDArray[np.uint8]) -> torch.Tensor:
        pixels = self._transfers.upload(torch.from_numpy(np.ascontiguousarray(image_NHWC)))
        pixels = pixels.permute(0, 3, 1, 2).float()
        pixels = ((pixels - self._mean) / self._std).to(self.precision.dtype)
        if self._compiled and len(pixels) == 1:  # torch would compile anew for this size
            return _unit(self._encode_image(torch.cat([pixels, pixels])))[:1]
        return _unit(self._encode_image(pixels))

    @torch.inference_mode()
    def embed_tokens(self, tokens_NT: torch.Tensor) -> torch.Tensor:
        """One batch of token ids → fp32 unit rows on the device.

        Where the tower is causal and reads its feature at the end token, what lies behind the
        batch's longest caption cannot matter and is not computed.
        """
        if not reads_left_to_right(self.module):
            return _unit(self.module.encode_text(self._transfers.upload(tokens_NT)))  # type: ignore[operator]
        tokens_NT = tokens_NT[:, : max(1, int(used_lengths(tokens_NT).max()))]
        return _unit(_encode_causal(self.module, self._transfers.upload(tokens_NT)))

    def bring_home(self, parts: Sequence[torch.Tensor]) -> Callable[[], NDArray[np.float32]]:
        """Begin to bring the rows of several batches home: float32 [N, D]."""
        if not parts:
            return lambda: np.empty((0, self.dim), np.float32)
        return self._transfers.bring_home(parts)


def text_encoder(loaded: Loaded) -> ClipModel:
    """The model on the CPU in fp32: where columns made of words are computed, always."""
    return ClipModel(loaded, torch.device("cpu"), Precision.FP32)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether torch ran out of the device's memory, or of the machine's."""
    words = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")
    return any(sign in words for sign in signs)


def used_lengths(tokens_NT: torch.Tensor) -> torch.Tensor:
    """Tokens of each row up to its last that is not padding (0); a row of padding counts 0."""
    positions = torch.arange(1, tokens_NT.shape[1] + 1)
    return ((tokens_NT.cpu() != 0) * positions).amax(dim=1)


def reads_left_to_right(module: torch.nn.Module) -> bool:
    """Tell whether a text tower's feature cannot depend on the padding behind a caption.

    True for a causal mask with the feature taken at the end token, in open_clip's own towers.
    """
    if isinstance(module, CLIP):
        return module.attn_mask is not None and module.text_pool_type in ("argmax", "eos")
    if not isinstance(module, CustomTextCLIP):
        return False
    tower = module.text
    return type(tower) is TextTransformer and bool(
        tower.attn_mask is not None
        and tower.cls_emb is None
        and not tower.use_pad_mask
        and tower.pool_type in ("argmax", "eos")
    )


def _encode_causal(module: Any, tokens_NT: torch.Tensor) -> torch.Tensor:
    """``encode_text`` for token rows shorter than the context, of which open_clip cuts no mask."""
    if isinstance(module, CLIP):
        tower, pool, end_id = module, module.text_pool_type, module.text_eos_id
    else:
        tower = module.text
        pool, end_id = tower.pool_type, getattr(tower, "eos_id", None)
    length = tokens_NT.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(tokens_NT).to(dtype)
    x = x + tower.positional_embedding[:length].to(dtype)
    mask = tower.attn_mask[:length, :length]
    if ends_in_plain_block(tower.transformer):
        places = torch.arange(length, device=x.device).expand(len(x), length)
        end_N = text_global_pool(places, tokens_NT, pool, eos_token_id=end_id)
        *blocks, last = tower.transformer.resblocks
        for block in blocks:
            x = block(x, attn_mask=mask)
        x = tower.ln_final(at_one_token(last, x, end_N, mask))
    else:
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        x = text_global_pool(x, tokens_NT, pool, eos_token_id=end_id)
    projection = tower.text_projection
    if projection is not None:
        x = projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection
    return cast(torch.Tensor, x)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def _split(order: NDArray[np.intp], batch: int) -> Iterator[NDArray[np.intp]]:
    return (order[i : i + batch] for i in range(0, len(order), batch))
