"""Score columns: what turns a shard's unit rows into one value a row.

Shapes: N rows, D dimensions. A row without a value (no caption to compare with) is NaN here and
null on disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from laionkit.backends.heads.files import load_head
from laionkit.backends.heads.head import Head, Rows
from laionkit.backends.heads.prompts import Encoder, is_prompt, open_labels, open_prompt
from laionkit.backends.heads.published import PUBLISHED, heads_that_fit
from laionkit.core.errors import ConfigError
from laionkit.core.schemas import RESERVED_COLUMNS, column_for
from laionkit.core.scores import CLIP_SIMILARITY


class Scorer(Protocol):
    """One score column."""

    @property
    def column(self) -> str:
        """The column's name."""

    @property
    def needs_text(self) -> bool:
        """Whether the captions' rows are needed."""

    def facts(self) -> dict[str, Any]:
        """What the values depend on besides the embeddings, as JSON values."""

    def score(self, rows: Rows) -> NDArray[Any]:
        """One value a row: float32, NaN where there is none; labels are strings."""


@dataclass(frozen=True)
class SimilarityScorer:
    """Cosine of a picture with its own caption."""

    column: str = CLIP_SIMILARITY
    needs_text: bool = True

    def facts(self) -> dict[str, Any]:
        """Nothing but its name: the embeddings say the rest."""
        return {"head": CLIP_SIMILARITY}

    def score(self, rows: Rows) -> NDArray[np.float32]:
        """Cosines; NaN where there is no caption."""
        assert rows.text_ND is not None, "clip_similarity was asked for without captions' rows"
        cosines = np.einsum("nd,nd->n", rows.image_ND, rows.text_ND)
        return np.where(rows.captioned_N, cosines, np.nan).astype(np.float32)


@dataclass(frozen=True)
class HeadScorer:
    """A head on the pictures' rows."""

    head: Head
    needs_text: bool = False

    @property
    def column(self) -> str:
        """The head's name, spelt as a column."""
        return column_for(self.head.name)

    def facts(self) -> dict[str, Any]:
        """The head's name and sha256."""
        return {"head": self.head.name, "head_sha256": self.head.sha256}

    def score(self, rows: Rows) -> NDArray[np.float32]:
        """The head's values."""
        return self.head.score(rows.image_ND)


def open_scorers(
    names: Sequence[str],
    backbone: str,
    *,
    has_text: bool,
    encoder: Encoder,
    labels: tuple[str, str] | None = None,
    similarity: str = CLIP_SIMILARITY,
) -> list[Scorer]:
    """The scorers of these names for a backbone's embeddings.

    `encoder` loads the model that made them, where words must be embedded; `labels` is a file of
    labels, (path, text); `similarity` names the column of ``clip_similarity``. Raises ConfigError
    for an unknown name, one of another backbone, or one that needs captions where none were
    embedded.
    """
    scorers: list[Scorer] = [
        SimilarityScorer(similarity)
        if column_for(name) == CLIP_SIMILARITY
        else _open(name, backbone, encoder)
        for name in dict.fromkeys(names)
    ]
    if labels is not None:
        scorers += open_labels(*labels, encoder)
    columns = [scorer.column for scorer in scorers]
    for column in columns:
        if columns.count(column) > 1 or column in RESERVED_COLUMNS:
            raise ConfigError(f"two columns would be called {column!r}: rename the head's file")
    for scorer in scorers:
        if scorer.needs_text and not has_text:
            raise ConfigError(
                f"{scorer.column} compares pictures with captions, and these embeddings were made "
                "without captions: embed again with --text"
            )
    return scorers


def _open(name: str, backbone: str, encoder: Encoder) -> Scorer:
    if name.partition("=")[0] == "watermark":
        raise ConfigError(
            "head watermark looks at pictures, not at embeddings: it runs in embed's pass, "
            "laionkit embed … --heads watermark"
        )
    if is_prompt(name):
        return HeadScorer(open_prompt(name, backbone, encoder))
    if name in PUBLISHED:  # Known to be another's before anything is downloaded.
        _check_backbone(name, PUBLISHED[name].backbone, backbone)
    head = load_head(name)
    _check_backbone(head.name, head.backbone, backbone)
    return HeadScorer(head)


def _check_backbone(name: str, wanted: str, backbone: str) -> None:
    if wanted != backbone:
        fitting = heads_that_fit(backbone)
        raise ConfigError(
            f"head {name} scores embeddings of {wanted}, and these are of {backbone}: "
            + (f"heads that fit: {', '.join(fitting)}" if fitting else "no published head fits")
        )
