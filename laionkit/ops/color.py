"""Colour: any Pillow mode, and any embedded ICC profile, to sRGB; alpha onto white."""

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_WIDE = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_BAND_ROWS = 256
_SRGB_WORDS = ("srgb", "iec61966-2.1", "iec 61966-2-1")


@functools.lru_cache(maxsize=64)
def transform_to_srgb(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB for a Pillow mode.

    None where the profile already is sRGB, fits another mode, or is broken: colours are then
    taken as sRGB, which is what browsers do.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        description = ImageCms.getProfileDescription(profile).lower()
        space = profile.profile.xcolor_space.strip()
        if mode == "RGB" and any(word in description for word in _SRGB_WORDS):
            return None
        if {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}.get(mode) != space:
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError, AttributeError):
        return None


def array_to_srgb(rgb_HWC: NDArray[np.uint8], icc: bytes) -> NDArray[np.uint8]:
    """Apply an RGB profile to RGB pixels; the same array where there is nothing to do."""
    transform = transform_to_srgb(icc, "RGB") if icc else None
    if transform is None:
        return rgb_HWC
    return np.asarray(ImageCms.applyTransform(Image.fromarray(rgb_HWC), transform))


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn a loaded picture of any mode into sRGB without alpha, which is laid on white."""
    icc = image.info.get("icc_profile") or b""
    if image.mode in _WIDE:
        image = _wide_to_grey(image)
    elif image.mode == "LAB" and not icc:
        lab = ImageCms.createProfile("LAB")
        build = ImageCms.buildTransform(lab, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return ImageCms.applyTransform(image, build) or image
    if image.mode == "P" or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    if image.mode == "1":
        image = image.convert("L")
    transform = transform_to_srgb(icc, image.mode) if icc else None
    if transform is not None:
        image = ImageCms.applyTransform(image, transform) or image
    elif image.mode != "RGB":
        image = image.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        white = Image.new("RGB", image.size, (255, 255, 255))
        image = Image.composite(image, white, alpha)
    return image


def _wide_to_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits.

    Pillow's own convert clips at 255, which turns a 16-bit scan white. Sixteen-bit values are
    divided by 257; wider ones are scaled by what is there. Band by band: a file of 200 kB can
    announce 90 million grey pixels, which in double precision are many times their size.
    """
    values = np.asarray(image)
    bands = range(0, max(1, len(values)), _BAND_ROWS)
    extremes = [_extremes(_finite(values[top : top + _BAND_ROWS])) for top in bands]
    low, high = min(e[0] for e in extremes), max(e[1] for e in extremes)
    if image.mode != "F" and low >= 0 and high <= 65535:
        low, times = 0.0, 1 / 257
    elif low >= 0 and high <= 1:
        low, times = 0.0, 255.0
    else:
        times = 255.0 / (high - low) if high > low else 0.0
    grey = np.empty(values.shape, np.uint8)
    for top in bands:
        scaled = (_finite(values[top : top + _BAND_ROWS]) - low) * times
        grey[top : top + _BAND_ROWS] = np.rint(scaled).clip(0, 255)
    return Image.fromarray(grey)


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


def _extremes(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.min(initial=0.0)), float(values.max(initial=0.0))
