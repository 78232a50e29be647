"""The codec alone: hash, decode, resize and encode of the served pictures, in one thread.

`python -m benchmarks.fetch_codec SIDE [FOLDER]` prints the milliseconds of CPU a picture that
laionkit's and img2dataset's (OpenCV's) take: what is left to spend once all else costs nothing.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 3


def codec_floor_ms(side: int, photos: Path | None) -> dict[str, float]:
    """Each side's floor in milliseconds of CPU a picture, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fetch_codec", str(side)]
    command += [str(photos)] if photos else []
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    floor: dict[str, float] = json.loads(printed)
    return floor


def best_ms(work: Callable[[bytes], object], pictures: list[bytes]) -> float:
    """CPU milliseconds a picture, the best of a few rounds."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for picture in pictures:
            work(picture)
        rounds.append(time.process_time() - started)
    return 1000 * min(rounds) / len(pictures)


def main() -> None:
    """Print both floors as JSON."""
    import cv2
    import numpy as np

    from benchmarks.fetch_server import photographs
    from laionkit.ops.resize import Resize
    from laionkit.ops.stored_image import ImageMaker

    maker = ImageMaker(Resize("keep_ratio"))

    def ours(data: bytes) -> object:
        return maker.make(data)

    def peer(data: bytes) -> object:
        hashlib.sha256(data).hexdigest()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        scale = 256 / min(image.shape[:2])
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])

    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    pictures = photographs(int(sys.argv[1]), folder)
    floors = {"laionkit": best_ms(ours, pictures), "img2dataset": best_ms(peer, pictures)}
    print(json.dumps(floors))


if __name__ == "__main__":
    main()
