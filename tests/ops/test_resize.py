"""Resizing: img2dataset's modes give img2dataset's sizes and pixels; encoding."""

import io

import cv2
import numpy as np
import pytest

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


def test_a_picture_decoded_coarsely_ends_at_the_size_of_its_original():
    how = Resize("keep_ratio", 200)
    assert resize(picture(801, 534), how, (1601, 1067)).shape[1::-1] == how.final((1601, 1067))


@pytest.mark.parametrize(("kind", "quality"), [("jpg", 95), ("png", 6), ("webp", 95)])
def test_what_is_encoded_decodes_to_nearly_the_same(kind, quality):
    rgb = picture(120, 80)
    again = decode(encode(rgb, kind, quality))
    assert again.format == {"jpg": "jpeg"}.get(kind, kind)
    assert np.abs(again.rgb.astype(int) - rgb).mean() < 4


def test_a_picture_too_large_for_its_format_has_a_reason():
    with pytest.raises(PictureError) as caught:
        encode(np.zeros((1, 70_000, 3), np.uint8), "jpg", 95)
    assert caught.value.reason == Reason.ENCODE_FAILED
