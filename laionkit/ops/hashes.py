"""Perceptual hash: 64 bits that stay when a picture is scaled or encoded again.

The DCT hash of Zauner (2010), with the parameters of the packages imagehash and phash: grey,
32 by 32, the 8 by 8 lowest frequencies against their median.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 32
_KEPT = 8


def phash(image_HWC: NDArray[np.uint8]) -> str:
    """The perceptual hash of an RGB picture as 16 hex digits."""
    grey = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:_KEPT, :_KEPT]
    bits = (low > np.median(low)).astype(np.uint8).ravel()
    return np.packbits(bits).tobytes().hex()


def hamming(one: str, other: str) -> int:
    """Bits in which two hashes of 16 hex digits differ; 64 where one is no hash."""
    try:
        return (int(one, 16) ^ int(other, 16)).bit_count()
    except ValueError:
        return 64
