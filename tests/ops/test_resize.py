"""Resizing: img2dataset's modes give img2dataset's sizes and pixels; encoding."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from laionkit.core.schemas import Reason
from laionkit.ops.images import PictureError, decode
from laionkit.ops.resize import Resize, encode, resize

SIZES = [(500, 375), (375, 500), (100, 60), (256, 256), (33, 1000), (640, 257), (255, 256)]
MODES = ["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]


def picture(width: int, height: int) -> np.ndarray:
    noise = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2)


@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("ignore")
def test_every_mode_gives_what_img2dataset_gives(mode, only_if_bigger):
    resizer = pytest.importorskip("img2dataset.resizer")
    theirs = resizer.Resizer(256, mode, only_if_bigger, encode_format="png", encode_quality=1)
    for width, height in SIZES:
        rgb = picture(width, height)
        png = cv2.imencode(".png", rgb[..., ::-1])[1].tobytes()
        out, w, h, *_, error = theirs(io.BytesIO(png))
        assert error is None
        ours = resize(rgb, Resize(mode, 256, only_if_bigger))
        assert ours.shape == (h, w, 3), (width, height)
        expected = cv2.imdecode(np.frombuffer(out, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(ours.astype(int) - expected).max() <= 1, (width, height)


@pytest.mark.parametrize("mode", MODES)
def test_the_size_is_known_before_the_pixels(mode):
    for size in SIZES:
        how = Resize(mode, 128)
        assert resize(picture(*size), how).shape[1::-1] == how.final(size)
        assert how.applies(size) == (how.final(size) != size)


def detailed(width: int, height: int) -> np.ndarray:
    """Grain of every size, as a photograph has it."""
    random, image = np.random.default_rng(7), np.zeros((height, width, 3), np.float32)
    for power in range(2, 9):
        grain = random.normal(0, 1, (2**power, 2**power, 3)).astype(np.float32)
        image += cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / 1.6**power
    return np.clip(image + 128, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [(1601, 1067), (1067, 1601), (2500, 1876), (4099, 777)])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_jpeg_decoded_coarsely_ends_where_the_whole_would(size, orientation):
    how = Resize("keep_ratio", 128)
    stored = Image.fromarray(detailed(*size))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    whole, coarse = decode(file.getvalue()), decode(file.getvalue(), shrink_to=how.scaled)
    original = coarse.original_width, coarse.original_height
    assert (coarse.rgb.size < whole.rgb.size) == (orientation == 1 or size == (2500, 1876))
    ours, exact = resize(coarse.rgb, how, original), resize(whole.rgb, how)
    assert ours.shape[1::-1] == how.final(original)
    error = np.sqrt(np.mean((ours.astype(float) - exact) ** 2))
    assert error < 0.7  # 1601 px taken as 1.5 pixels too many were 0.87


@pytest.mark.parametrize(("kind", "quality"), [("jpg", 95), ("png", 6), ("webp", 95)])
def test_what_is_encoded_decodes_to_nearly_the_same(kind, quality):
    rgb = picture(120, 80)
    again = decode(encode(rgb, kind, quality))
    assert again.format == {"jpg": "jpeg"}.get(kind, kind)
    assert np.abs(again.rgb.astype(int) - rgb).mean() < 4


def test_a_jpeg_is_as_true_as_pillow_writes_it():
    """Both take the accurate DCT; the fast one loses half a decibel at quality 95."""
    rgb, file = detailed(341, 256), io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=95, subsampling="4:2:0")
    ours, theirs = (decode(data).rgb for data in (encode(rgb, "jpg", 95), file.getvalue()))
    errors = [float(np.mean((made.astype(float) - rgb) ** 2)) for made in (ours, theirs)]
    assert errors[0] < errors[1] * 1.02


def test_a_picture_too_large_for_its_format_has_a_reason():
    with pytest.raises(PictureError) as caught:
        encode(np.zeros((1, 70_000, 3), np.uint8), "jpg", 95)
    assert caught.value.reason == Reason.ENCODE_FAILED
