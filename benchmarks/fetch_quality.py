"""How true the stored pictures are: PSNR to an exact float area resize, ours and img2dataset's.

    python -m benchmarks.fetch_quality --photos FOLDER [--as-is FOLDER] [--peer PYTHON]

Both sides fetch the same pictures (those of --photos resized to 500 and to 1,500 px, those of
--as-is as they are) with fetch's benchmark settings. Each stored JPEG is decoded and held against
the whole picture, decoded and averaged over exact fractions of pixels in double precision. Aim:
laionkit no lower than img2dataset minus 0.5 dB on average. Writes into results/fetch.json.
"""

import argparse
import json
import math
import sys
import tarfile
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.fetch import commit, load, store
from benchmarks.fetch_runs import links, run_ours, run_peer, serve
from benchmarks.fetch_server import photographs

EDGE_PX = 256
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
    shrunk: Pixels = np.einsum("jy,yxc,kx->jkc", rows, image, columns, optimize=True)
    return shrunk


def decode(data: bytes) -> Pixels:
    """A JPEG's pixels."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(np.float64)


def stored(folder: Path) -> dict[int, bytes]:
    """The JPEGs in a folder's shards, by the number in their link."""
    found: dict[int, bytes] = {}
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            data = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
        for name in data:
            if name.endswith(".json"):
                number = int(json.loads(data[name])["url"].rpartition("/")[2])
                found[number] = data[name.removesuffix("json") + "jpg"]
    return found


def compare(side: int, folder: Path | None, peer: str) -> dict[str, float]:
    """Fetch every picture with both and hold the results against the exact ones."""
    pictures = photographs(side, folder)
    with serve(side, folder) as server, tempfile.TemporaryDirectory() as name:
        here = Path(name)
        source = links(here, server.base, len(pictures))
        for sub in ("ours", "peer"):
            (here / sub).mkdir()
        run_ours(source, here / "ours", 100, server)
        run_peer(source, here / "peer", 100, server, peer)
        ours, theirs = stored(here / "ours/data/shards"), stored(here / "peer/out")
    psnr: list[tuple[float, float]] = []
    for number, picture in enumerate(pictures):
        target = exact(picture)
        if target is not None:
            errors = [np.mean((decode(o[number]) - target) ** 2) for o in (ours, theirs)]
            psnr.append((10 * math.log10(255**2 / errors[0]), 10 * math.log10(255**2 / errors[1])))
    each = np.array(psnr)
    lost = each[:, 0] - each[:, 1]
    return {
        "pictures": len(each),
        "laionkit_db": float(each[:, 0].mean()),
        "img2dataset_db": float(each[:, 1].mean()),
        "difference_db": float(lost.mean()),
        "lowest_difference_db": float(lost.min()),
    }


def main() -> None:
    """Measure, keep and show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of photographs, resized")
    parser.add_argument("--as-is", type=Path, help="folder of JPEGs to serve as they are")
    parser.add_argument("--peer", default=sys.executable, help="interpreter that has img2dataset")
    asked = parser.parse_args()
    sets: list[tuple[str, int, Path | None]] = [
        ("500 px", 500, asked.photos),
        ("1500 px", 1500, asked.photos),
    ]
    sets += [("as they are", 0, asked.as_is)] if asked.as_is else []
    found = {name: compare(side, folder, asked.peer) for name, side, folder in sets}
    store({**load(), "quality": {**found, "commit": commit()}})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
