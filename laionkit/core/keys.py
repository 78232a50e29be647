"""Keys: a sample's name, shard number then index in the shard, as img2dataset writes them.

``000010005`` is row 5 of shard 1 at 10,000 a shard. Keys are assigned once, in ``metadata``; a
retried sample keeps its key though it lies in a later shard.
"""

import functools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from laionkit.core.errors import ConfigError

DEFAULT_SHARD_SIZE = 10_000
MIN_SHARD_DIGITS = 5


@dataclass(frozen=True)
class KeyScheme:
    """How the keys of one dataset are spelt.

    ``shard_size``: rows a shard at most, a power of ten. ``shard_digits``: width of the shard
    number, at least 5 as in img2dataset, fixed for the dataset's life.
    """

    shard_size: int = DEFAULT_SHARD_SIZE
    shard_digits: int = MIN_SHARD_DIGITS

    def __post_init__(self) -> None:
        """Refuse a shard size that is no power of ten and too few digits."""
        if str(self.shard_size).rstrip("0") != "1":
            raise ConfigError(
                f"shard_size={self.shard_size} is not a power of ten: use 1000 or 10000"
            )
        if self.shard_digits < MIN_SHARD_DIGITS:
            raise ConfigError(f"shard_digits={self.shard_digits} is below {MIN_SHARD_DIGITS}")

    @classmethod
    def for_rows(cls, rows: int, shard_size: int = DEFAULT_SHARD_SIZE) -> "KeyScheme":
        """Choose the digits that hold `rows` rows, never fewer than five."""
        last_shard = max(0, (rows - 1) // shard_size)
        return cls(shard_size, max(MIN_SHARD_DIGITS, len(str(last_shard))))

    @property
    def index_digits(self) -> int:
        """Width of the index in the shard: 4 at 10,000 a shard."""
        return len(str(self.shard_size)) - 1

    def shard_name(self, shard: int) -> str:
        """Spell a shard's number. Raises ConfigError where it outgrows the digits."""
        name = f"{shard:0{self.shard_digits}d}"
        if len(name) > self.shard_digits:
            raise ConfigError(
                f"shard {shard} needs more than {self.shard_digits} digits, which this dataset's "
                "keys were given: start a new dataset with --shard-digits"
            )
        return name

    def key(self, shard: int, index: int) -> str:
        """Spell the key of row `index` of shard `shard`."""
        if not 0 <= index < self.shard_size:
            raise ConfigError(f"index {index} is outside a shard of {self.shard_size}")
        return f"{self.shard_name(shard)}{index:0{self.index_digits}d}"

    def keys(self, shard: int, rows: int) -> pa.StringArray:
        """Spell the keys of a shard's first `rows` rows."""
        prefix = np.frombuffer(self.shard_name(shard).encode(), np.uint8)
        width = len(prefix) + self.index_digits
        letters = np.empty((rows, width), np.uint8)
        letters[:, : len(prefix)] = prefix
        letters[:, len(prefix) :] = _indices(self.shard_size, self.index_digits)[:rows]
        offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
        return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(letters))

    def split(self, key: str) -> tuple[int, int]:
        """Return (shard number, index) of a key of this scheme."""
        return int(key[: -self.index_digits or None]), int(key[-self.index_digits :] or 0)


@functools.lru_cache(maxsize=4)
def _indices(shard_size: int, digits: int) -> NDArray[np.uint8]:
    """The digits of each index of a shard as ASCII, (shard_size, digits)."""
    powers = 10 ** np.arange(digits - 1, -1, -1)
    return (np.arange(shard_size)[:, None] // powers % 10 + ord("0")).astype(np.uint8)
