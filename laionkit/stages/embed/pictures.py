"""One picture's bytes to RGB pixels, or the reason there are none."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from laionkit.core.schemas import Reason


class PictureLost(Exception):
    """No picture was had of these bytes."""

    def __init__(self, reason: Reason, detail: str) -> None:
        """Say why, from the closed list, and in the decoder's words."""
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def decode(data: bytes) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], upright. Raises PictureLost."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image) or image
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise PictureLost(Reason.NOT_AN_IMAGE, "no decoder knows it") from error
    except Image.DecompressionBombError as error:
        raise PictureLost(Reason.TOO_MANY_PIXELS, str(error)) from error
    except (OSError, ValueError, TypeError, SyntaxError, KeyError, EOFError) as error:
        raise PictureLost(Reason.DECODE_FAILED, f"{type(error).__name__}: {error}"[:200]) from error
