"""A picture server for the fetch benchmark: a process of its own, pictures from memory.

`python -m benchmarks.fetch_server --side 500 [--tls CERT KEY]` draws or reads its pictures, prints
its port and serves until killed. Any path gives a picture chosen by the path's last number.
"""

import argparse
import asyncio
import re
import ssl
from pathlib import Path

import cv2
import numpy as np

PICTURES = 64
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder, or, where none lies in it, those one level deeper."""
    for pattern in ("*", "*/*"):
        found = sorted(f for f in folder.glob(pattern) if f.suffix.lower() in ENDINGS)
        if found:
            return found
    return []


def photo_folder(text: str) -> Path:
    """A folder with pictures, as an argument of a command."""
    if not picture_files(Path(text)):
        endings = " ".join(sorted(ENDINGS))
        raise argparse.ArgumentTypeError(
            f"{text} holds no pictures ({endings}), nor does a folder in it"
        )
    return Path(text)


def photographs(side: int, folder: Path | None) -> list[bytes]:
    """JPEGs (quality 90) whose longer side is `side`: real ones of `folder`, else drawn ones.

    With `side` 0 the folder's JPEGs as they are.
    """
    files = picture_files(folder)[:PICTURES] if folder else []
    if not side:
        return [body for file in files if (body := file.read_bytes()).startswith(b"\xff\xd8")]
    read = (cv2.imread(str(file)) for file in files)
    images = [image for image in read if image is not None]
    images = images or [_drawn(i) for i in range(PICTURES)]
    made = []
    for image in images:
        scale = side / max(image.shape[:2])
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        sized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else 2)
        made.append(cv2.imencode(".jpg", sized, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return made


def _drawn(seed: int) -> np.ndarray:
    """Noise of every scale, about as hard to compress as a photograph."""
    generator, image = np.random.default_rng(seed), np.zeros((750, 1000, 3), np.float32)
    for power in range(1, 9):
        grain = generator.normal(0, 1, (3 * 2**power, 4 * 2**power, 3)).astype(np.float32)
        image += cv2.resize(grain, (1000, 750), interpolation=cv2.INTER_CUBIC) * 60 / 1.6**power
    return np.clip(image + 128, 0, 255).astype(np.uint8)


class Pictures(asyncio.Protocol):
    """Answers every request on a connection with a picture."""

    def __init__(self, answers: list[bytes], closes: bool) -> None:
        self.answers, self.closes = answers, closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request line in turn; a path without a number is not there."""
        for path in re.findall(rb"GET ([^ ]*) HTTP", data):
            number = re.search(rb"(\d+)$", path)
            answer = self.answers[int(number[1]) % len(self.answers)] if number else MISSING
            self.transport.write(answer)
        if self.closes or b"onnection: close" in data:
            self.transport.close()


async def serve(answers: list[bytes], context: ssl.SSLContext | None) -> None:
    """Say the port, then serve for ever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Pictures(answers, context is not None), "127.0.0.1", 0, backlog=1024, ssl=context
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Draw the pictures and serve them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=500)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    asked = parser.parse_args()
    context = None
    if asked.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*asked.tls)
    head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n{}\r\n"
    close = "Connection: close\r\n" if asked.tls else ""
    bodies = photographs(asked.side, asked.folder)
    answers = [head.format(len(body), close).encode() + body for body in bodies]
    asyncio.run(serve(answers, context))


if __name__ == "__main__":
    main()
