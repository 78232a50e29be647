"""The demo's little web: drawn pictures, links to them, ratings, and a server with faults.

About one link in ten is broken, each in a way the real web breaks: 404, 500, a server that never
answers, a body cut short, HTML where a picture should be.
"""

import contextlib
import csv
import io
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from laionkit.core.errors import ConfigError
from laionkit.ops.pictures import Scene, caption, draw, full_caption, random_scene

FAULTS = ("not-found", "server-error", "no-answer", "cut-short", "html")
FAULTY_SHARE = 0.10
NO_ANSWER_S = 6.0
_WARM = frozenset({"red", "orange", "yellow", "pink"})
# Without a quality OpenCV writes WebP lossless, ten times slower.
_ENCODING: dict[str, list[int]] = {
    "jpg": [],
    "png": [cv2.IMWRITE_PNG_COMPRESSION, 1],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, 90],
}
_MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@dataclass(frozen=True)
class World:
    """Where the demo's material lies: links (LAION-style parquet), ratings (CSV), pictures."""

    folder: Path

    @property
    def links(self) -> Path:
        """The list of links."""
        return self.folder / "links.parquet"

    @property
    def ratings(self) -> Path:
        """Made-up ratings of a third of the links, 1 to 10."""
        return self.folder / "ratings.csv"

    @property
    def port(self) -> int:
        """The port that the links name."""
        url: str = pq.read_table(self.links, columns=["URL"])["URL"][0].as_py()
        return int(url.split(":")[2].split("/")[0])


def draw_world(folder: Path, pictures: int, seed: int = 7) -> World:
    """Draw captioned pictures and list links to them; a world already there is kept as it is.

    A link is listed only once every picture is on disk, so that a killed run starts over cleanly.
    """
    world = World(folder)
    if world.links.exists():
        return world
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    base = f"http://127.0.0.1:{_free_port()}"
    rows, ratings = [], []
    for number in range(pictures):
        scene = random_scene(rng, unseen=None)
        name, width, height = _draw_file(folder / "pictures", number, scene, rng)
        fault = str(rng.choice(FAULTS)) if rng.random() < FAULTY_SHARE else ""
        url = f"{base}/{fault or 'pictures'}/{name}"
        text = full_caption(scene) if rng.random() < 0.5 else caption(scene, rng)
        rows.append(_link(url, text, width, height, rng))
        if number % 3 == 0:
            ratings.append((url, round(_taste(scene) + rng.normal(0, 0.5), 2)))
    with world.ratings.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("url", "rating"), *ratings])
    pq.write_table(pa.Table.from_pylist(rows), world.links)
    return world


def _link(
    url: str, text: str, width: int, height: int, rng: np.random.Generator
) -> dict[str, object]:
    """One row as LAION-2B-en-joined has it; similarity, pwatermark and punsafe are made up."""
    return {
        "URL": url,
        "TEXT": text,
        "WIDTH": width,
        "HEIGHT": height,
        "similarity": round(float(rng.uniform(0.28, 0.42)), 4),
        "pwatermark": round(float(rng.beta(1, 4)), 4),
        "punsafe": round(float(rng.beta(1, 12)), 4) if rng.random() > 0.02 else None,
        "LANGUAGE": "en",
    }


def _taste(scene: Scene) -> float:
    """A made-up taste, 1 to 10: warm colours, large single things, patterns."""
    thing = scene.things[0]
    score = 3.5 + 3.0 * (thing.colour in _WARM) + 1.5 * (thing.size == "large")
    score += 1.0 * (thing.texture != "solid") - 0.5 * (scene.kind == "group")
    return float(np.clip(score, 1, 10))


def _draw_file(
    folder: Path, number: int, scene: Scene, rng: np.random.Generator
) -> tuple[str, int, int]:
    """Write one picture; the format goes round JPEG, PNG, WebP, EXIF-rotated JPEG, alpha PNG."""
    height, width = (int(n) for n in rng.integers(200, 500, size=2))
    pixels = draw(scene, (height, width))
    kind = ("jpg", "jpg", "png", "webp", "rotated", "alpha")[number % 6]
    name = f"{number:05d}.{ {'rotated': 'jpg', 'alpha': 'png'}.get(kind, kind) }"
    path = folder / name
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # the viewer turns it 90° clockwise, so it is stored turned back
        Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, quality=90)
    else:
        if kind == "alpha":
            bgr = cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
            bgr[: height // 12, :, 3] = 0
        cv2.imwrite(str(path), bgr, _ENCODING[path.suffix[1:]])
    return name, width, height


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(world: World) -> Iterator[None]:
    """Serve the world on loopback, on the port its links name, until the context ends."""

    class Handler(_FaultyHandler):
        pictures = world.folder / "pictures"

    try:
        server = _Server(("127.0.0.1", world.port), Handler)
    except OSError as error:
        raise ConfigError(
            f"port {world.port}, which the demo's links name, is taken ({error}): "
            f"remove {world.folder.parent} and run the demo again"
        ) from error
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent where a client hung up: time-outs are part of the show."""


class _FaultyHandler(BaseHTTPRequestHandler):
    """Answers /pictures/NAME with the file, and /FAULT/NAME as that fault."""

    protocol_version = "HTTP/1.1"
    pictures: Path

    def do_GET(self) -> None:
        """Answer one request."""
        kind, _, name = self.path.removeprefix("/").partition("/")
        path = self.pictures / Path(name).name
        if kind == "server-error":
            self._answer(500, b"out of order", "text/plain")
        elif kind == "html":
            self._answer(200, b"<html><body>This domain is for sale.</body></html>", "image/jpeg")
        elif kind in ("pictures", "cut-short", "no-answer") and path.is_file():
            if kind == "no-answer":
                time.sleep(NO_ANSWER_S)
            mime = _MIME[path.suffix[1:]]
            self._answer(200, path.read_bytes(), mime, cut=kind == "cut-short")
        else:
            self._answer(404, b"no such picture", "text/plain")

    def _answer(self, status: int, body: bytes, mime: str, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", mime)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        source = io.BytesIO(body[: len(body) // 2] if cut else body)
        self.wfile.write(source.read())
        self.close_connection = cut

    def log_message(self, format: str, *args: object) -> None:
        """Keep the access log to ourselves."""
