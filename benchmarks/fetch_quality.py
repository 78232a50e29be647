"""How true the stored pictures are: PSNR to an exact float area resize, ours and img2dataset's.

    python -m benchmarks.fetch_quality --photos FOLDER [--as-is FOLDER] [--pictures 32]
        [--peer PYTHON]

What each side makes of the same bytes with fetch's benchmark settings (256 px keep_ratio, JPEG
q95): laionkit's image maker and img2dataset's Resizer, each as its workers call it. The pictures
are those of --photos resized to 500 and to 1,500 px, and those of --as-is as they are. Each stored
JPEG is decoded and held against the whole picture, decoded and averaged over exact fractions of
pixels in double precision. Aim: laionkit no lower than img2dataset minus 0.5 dB on average.
Writes results/fetch_quality.json.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.fetch import RESULTS, circumstances, commit, store
from benchmarks.fetch_server import photo_folder, photographs
from laionkit.ops.resize import Resize
from laionkit.ops.stored_image import ImageMaker

EDGE_PX = 256
# img2dataset's import alone takes 10 CPU seconds; these many pictures of each size as long again.
PICTURES = 32
# Runs in img2dataset's interpreter: every NAME in a folder becomes NAME.out.
PEER = """
import pathlib, sys
from img2dataset.resizer import Resizer
make = Resizer(256, "keep_ratio", False, encode_quality=95)
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    with path.open("rb") as file:
        image, *_, error = make(file)
    if error:
        sys.exit(f"{path.name}: {error}")
    path.with_name(path.name + ".out").write_bytes(image)
"""
Pixels = NDArray[np.float64]


def area_weights(source: int, target: int) -> Pixels:
    """(target, source) shares that each source pixel has in each target pixel; rows sum to 1."""
    weights, step = np.zeros((target, source)), source / target
    for row in range(target):
        start, end = row * step, min(source, (row + 1) * step)
        for column in range(int(start), math.ceil(end - 1e-9)):
            covered = min(end, column + 1) - max(start, column)
            weights[row, column] = covered / step
    return weights


def exact(picture: bytes) -> Pixels | None:
    """The exact area resize to a shorter side of 256; None for what is not larger."""
    image = decode(picture)
    height, width = image.shape[:2]
    if min(height, width) <= EDGE_PX:
        return None
    scale = EDGE_PX / min(height, width)
    rows = area_weights(height, round(height * scale))
    columns = area_weights(width, round(width * scale))
    low = (rows @ image.reshape(height, -1)).reshape(len(rows), width, 3)
    return np.tensordot(columns, low, (1, 1)).swapaxes(0, 1)


def decode(data: bytes) -> Pixels:
    """A JPEG's pixels as they are stored."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags).astype(np.float64)


def made_by_peer(pictures: list[bytes], python: str) -> list[bytes]:
    """What img2dataset stores of pictures."""
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{number:05d}" for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(picture)
        environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
        subprocess.run([python, "-c", PEER, name], check=True, env=environment)
        return [path.with_name(f"{path.name}.out").read_bytes() for path in paths]


def psnr(image: bytes, target: Pixels) -> float:
    """Decibels of a stored JPEG beside the exact pixels."""
    return 10 * math.log10(255**2 / float(np.mean((decode(image) - target) ** 2)))


def compare(pictures: list[bytes], peers: list[bytes]) -> dict[str, float]:
    """Make every picture and hold it and img2dataset's against the exact one."""
    maker, each = ImageMaker(Resize("keep_ratio")), []
    for picture, theirs in zip(pictures, peers, strict=True):
        ours, target = maker.make(picture).image, exact(picture)
        # A picture that EXIF turns is stored upright by us and lying by img2dataset.
        if ours is not None and target is not None and decode(ours).shape == target.shape:
            each.append((psnr(ours, target), psnr(theirs, target)))
    found = np.array(each)
    lost = found[:, 0] - found[:, 1]
    return {
        "pictures": len(each),
        "laionkit_db": float(found[:, 0].mean()),
        "img2dataset_db": float(found[:, 1].mean()),
        "difference_db": float(lost.mean()),
        "lowest_difference_db": float(lost.min()),
    }


def main() -> None:
    """Measure, keep and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=photo_folder, help="folder of photographs, resized")
    parser.add_argument("--as-is", type=photo_folder, help="folder of JPEGs as they are")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="most of each size")
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has img2dataset")
    asked = parser.parse_args()
    sets = {f"{side} px": (side, asked.photos) for side in (500, 1500)}
    sets |= {"as they are": (0, asked.as_is)} if asked.as_is else {}
    pictures = {name: photographs(*which)[: asked.pictures] for name, which in sets.items()}
    peers = iter(made_by_peer(list(itertools.chain(*pictures.values())), asked.peer))
    found = {}
    for name, ours in pictures.items():
        found[name] = compare(ours, list(itertools.islice(peers, len(ours))))
        print(name, json.dumps(found[name], indent=1), flush=True)
    result = {
        **circumstances("python -m benchmarks.fetch_quality --photos FOLDER"),
        "commit": commit(),
    }
    store({**result, "psnr": found}, RESULTS.with_name("fetch_quality.json"))


if __name__ == "__main__":
    main()
