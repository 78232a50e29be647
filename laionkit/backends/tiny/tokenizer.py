"""The tokenizer of the `tiny` CLIP: a short list of words, and bytes for every other word.

CLIP's own byte-pair table is 12 MB and 49,408 rows of embedding; captions of drawn pictures use
about a hundred words. The interface is that of open_clip's tokenizers.

Ids: 0 padding, 1 to 256 the bytes, from 257 the words, then start and end. The end has the
highest id of all because open_clip's text tower reads its feature at the largest id (`argmax`).
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch

_FIRST_BYTE = 1
_FIRST_WORD = 257
_WORD = re.compile(r"[a-z]+|\S")


class TinyTokenizer:
    """Turn texts into int64 rows of fixed length: start, words or bytes, end, padding."""

    def __init__(
        self,
        words: Sequence[str],
        spellings: dict[str, str],
        context_length: int = 32,
        vocab_size: int = 512,
    ) -> None:
        """Number the words in their order; `spellings` maps other spellings to words.

        Raises ValueError where the words do not fit into `vocab_size` ids.
        """
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.sot_token_id = vocab_size - 2
        self.eot_token_id = vocab_size - 1
        if _FIRST_WORD + len(words) > self.sot_token_id:
            raise ValueError(f"{len(words)} words do not fit into vocab_size={vocab_size}")
        self._ids = {word: _FIRST_WORD + i for i, word in enumerate(words)}
        self._ids |= {other: self._ids[word] for other, word in spellings.items()}

    @classmethod
    def load(cls, path: Path) -> "TinyTokenizer":
        """Read `tokenizer.json`."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def encode(self, text: str) -> list[int]:
        """Ids of one text of any length, without start and end; empty for an empty text."""
        ids: list[int] = []
        for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower()):
            known = self._ids.get(word)
            # A lone surrogate cannot be written as UTF-8; it becomes a question mark.
            raw = word.encode("utf-8", errors="replace")
            ids += [known] if known is not None else [_FIRST_BYTE + byte for byte in raw]
        return ids

    def __call__(
        self, texts: str | Sequence[str], context_length: int | None = None
    ) -> torch.Tensor:
        """Encode texts: int64 [N, context_length]; a long text loses its tail, never its end."""
        length = context_length or self.context_length
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.sot_token_id, *self.encode(text)[: length - 2], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows
