"""A file server on loopback with byte ranges and ETags that cuts connections, and a small hub."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves a folder. `cut_every`: every n-th range answer ends half-way.

    `fail` answers so many requests for bytes with 503 first; `tells_size` gives a Content-Length.
    `sent` counts the bytes of bodies, `asked` lists the ranges (first, past the last) of each;
    `before` is called before each is answered.
    """

    daemon_threads = True

    def __init__(
        self,
        folder: Path,
        cut_every: int = 0,
        ranges: bool = True,
        fail: int = 0,
        tells_size: bool = True,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.cut_every, self.ranges = folder, cut_every, ranges
        self.fail, self.tells_size = fail, tells_size
        self.before: Callable[[int], None] = lambda _: None
        self.requests = self.sent = 0
        self.asked: list[tuple[int, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: RangeServer

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self.send_json(self.listing(self.files()))
        elif self.path.startswith("/api/datasets/"):
            names = sorted(str(p.relative_to(self.server.folder)) for p in self.files())
            siblings = [{"rfilename": name} for name in names]
            self.send_json({"id": "owner/name", "sha": COMMIT, "siblings": siblings})
        else:
            self.answer(body=True)

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        found = [p for p in self.files() if str(p.relative_to(self.server.folder)) in asked]
        self.send_json(self.listing(found))

    def listing(self, files: list[Path]) -> list[dict[str, Any]]:
        return [
            {
                "type": "file",
                "path": str(path.relative_to(self.server.folder)),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def files(self) -> list[Path]:
        return [path for path in self.server.folder.rglob("*") if path.is_file()]

    def answer(self, body: bool) -> None:
        path = self.server.folder / self.path.partition("?")[0].split(f"/{COMMIT}/")[-1].lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        probes = self.headers.get("Range") == "bytes=0-0"
        if body and not probes:
            self.server.before(self.server.requests)
        if self.server.fail:
            self.server.fail -= 1
            self.send_error(503)
            return
        data = path.read_bytes()
        start, end = 0, len(data)
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if self.headers.get("If-Match") not in (None, etag):
            self.send_error(412)
            return
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(data), int(last) + 1 if last else len(data))
        self.send_response(206 if asked else 200)
        if self.server.tells_size:
            self.send_header("Content-Length", str(end - start))
        else:
            self.close_connection = True
            self.send_header("Connection", "close")
        self.send_header("ETag", etag)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if not body:
            return
        if probes:
            self.wfile.write(data[:1])
            return
        self.server.requests += 1
        self.server.asked.append((start, end))
        cut = self.server.cut_every and self.server.requests % self.server.cut_every == 0
        sent = data[start : start + (end - start) // 2] if cut else data[start:end]
        self.server.sent += len(sent)
        self.wfile.write(sent)
        if cut:
            self.close_connection = True

    def send_json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path, **settings: Any) -> Iterator[RangeServer]:
    """A running server over `folder`."""
    server = RangeServer(folder, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
