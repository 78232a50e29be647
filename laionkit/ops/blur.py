"""Blurring boxes, faces above all, as img2dataset does after ImageNet's face obfuscation.

Source: img2dataset 1.47, blurrer.py; github.com/princetonvisualai/imagenet-face-obfuscation.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

# Share of a box's longer side that is added around it, and that is the blur's sigma.
_MARGIN = 0.1


def blur_boxes(image_HWC: NDArray[np.uint8], boxes: Sequence[Sequence[float]]) -> NDArray[np.uint8]:
    """Blur [left, top, right, bottom] boxes, each number a share (0 to 1) of the picture's side.

    The blur fades out over its own width. Boxes without four finite numbers are left out.
    """
    height, width = image_HWC.shape[:2]
    mask = np.zeros((height, width, 3), np.float32)
    longest = 0
    for box in boxes:
        if len(box) != 4 or not np.isfinite(np.asarray(box, np.float64)).all():
            continue
        left, top, right, bottom = (
            int(share * side)
            for share, side in zip(box, (width, height, width, height), strict=True)
        )
        longer = max(right - left, bottom - top)
        longest = max(longest, longer)
        margin = _MARGIN * longer
        left, right = (int(np.clip(x, 0, width - 1)) for x in (left - margin, right + margin))
        top, bottom = (int(np.clip(y, 0, height - 1)) for y in (top - margin, bottom + margin))
        mask[top:bottom, left:right] = 1
    if not mask.any():
        return image_HWC
    side = max(3, int(2 * np.ceil(_MARGIN * longest) + 1)) | 1
    image = image_HWC.astype(np.float32) / 255
    blurred = cv2.GaussianBlur(image, (side, side), 0)
    mask = np.asarray(cv2.GaussianBlur(mask, (side, side), 0))
    result = image * (1 - mask) + blurred * mask
    return (result * 255).astype(np.uint8)
