"""Which entries of a list stand in a caption, and how often each entry may: MetaCLIP's balancing.

Source: Xu et al., "Demystifying CLIP Data" (2023), algorithm 1, and their released code, which
puts spaces around punctuation and then looks for each entry with a space on either side. The same
is found here by looking up the caption's runs of words in a dictionary of the entries, so that the
cost does not grow with the list (theirs has 500,000 entries).
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PUNCTUATION = re.compile(r"([,.;:?!`])")
_SPACES = str.maketrans("\t\n\r", "   ")


class Entries:
    """A list of entries to look for. An entry is matched as it is spelt, case and all."""

    def __init__(self, entries: Sequence[str]) -> None:
        """Take the list; the numbers that `matched` gives are places in it."""
        self.names = tuple(entries)
        self._number = {entry: number for number, entry in enumerate(entries)}
        self._lengths = sorted({entry.count(" ") + 1 for entry in entries})

    def matched(self, caption: str) -> list[int]:
        """The entries that stand in `caption`, each once, in the order of the list."""
        words = _PUNCTUATION.sub(r" \1 ", f" {caption} ").translate(_SPACES).split(" ")
        found = set()
        for length in self._lengths:
            for start in range(len(words) - length + 1):
                number = self._number.get(" ".join(words[start : start + length]))
                if number is not None:
                    found.add(number)
        return sorted(found)


def keep_chance(count_E: NDArray[np.int64], cap: int) -> NDArray[np.float64]:
    """Chance that one match of each entry keeps a sample: all of a rare entry, `cap` of a common.

    `count_E`: samples in which each entry stands. A sample stays if any of its entries keeps it.
    """
    return cap / np.maximum(count_E, cap)
