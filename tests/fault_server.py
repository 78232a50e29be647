"""A real server on loopback that misbehaves in every way a link list meets.

Paths: ``/img/NAME`` a picture that was given; ``/ok`` a small JPEG; the rest by what goes wrong
(see `FaultServer.answers`). Every request is counted per path, and by host header.
"""

import asyncio
import gzip
import threading
import time
import zlib
from collections import Counter
from types import TracebackType
from urllib.parse import unquote

BOMB = gzip.compress(b"\0" * 30_000_000, 1)
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


class FaultServer:
    """Serves until closed; `url` is its address. Raw sockets: the faults are below HTTP."""

    def __init__(
        self, pictures: dict[str, bytes], robots: str | None = None, address: str = "127.0.0.1"
    ) -> None:
        self.pictures, self.robots, self.address = pictures, robots, address
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.as_written: set[str] = set()
        self.at_once = 0
        self.most_at_once = 0
        self.leaves_at = 0
        self.connections = 0
        self.times: list[float] = []
        # A network's login: every answer is a page, or a redirect to it where this is an address.
        self.portal = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _main(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self._listen(0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        self._server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._connection, self.address, port, backlog=512)

    def _leave(self) -> None:
        """Stop listening once what was accepted is connected: asyncio would leave it unclosed."""
        for listening in self._server.sockets:
            self._loop.remove_reader(listening.fileno())
        self._loop.call_soon(self._loop.call_soon, self._server.close)

    def come_back(self) -> None:
        """Listen again at the same port, after `leaves_at` requests made it go."""
        self.leaves_at = 0
        asyncio.run_coroutine_threadsafe(self._listen(self.port), self._loop).result()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (request := await self._request(reader)) is not None:
                path, headers = request
                self.requests[path] += 1
                self.times.append(time.monotonic())
                if self.leaves_at and self.requests.total() >= self.leaves_at:
                    self._leave()
                    break
                self.agents.add(headers.get("user-agent", ""))
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                try:
                    keep = await self._answer(path, writer)
                    await writer.drain()
                finally:
                    self.at_once -= 1
                if not keep:
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        path = lines[0].split(" ")[1]
        self.as_written.add(path)
        return unquote(path), headers

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> bool:
        if self.portal.startswith("http") and not path.startswith("/login"):
            self.send(writer, 302, b"", f"Location: {self.portal}?from={path}")
            return True
        if self.portal:
            self.send(writer, 200, b"<html>log in first</html>")
            return True
        name, _, rest = path.lstrip("/").partition("/")
        handler = getattr(self, f"on_{name.partition('?')[0].replace('.', '_')}", None)
        if handler is None:
            self.send(writer, 404, b"nothing here")
            return True
        result: bool | None = await handler(writer, rest)
        return result is not False

    @property
    def small(self) -> bytes:
        return next(iter(self.pictures.values()))

    def send(
        self, writer: asyncio.StreamWriter, status: int, body: bytes = b"", *headers: str
    ) -> None:
        head = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", f"Date: {DATE}", *headers]
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)

    async def on_img(self, writer: asyncio.StreamWriter, rest: str) -> None:
        body = self.pictures.get(rest.partition("?")[0])
        self.send(writer, 200 if body else 404, body or b"gone")

    async def on_ok(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, self.small, "Content-Type: text/html")

    async def on_status(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, int(rest), b"")

    async def on_first(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/first/STATUS/N/ID: STATUS for the first N requests, then the picture."""
        status, times, _ = rest.split("/")
        if self.requests[f"/first/{rest}"] <= int(times):
            self.send(writer, int(status), b"", *(["Retry-After: 1"] if status == "503" else []))
        else:
            await self.on_ok(writer, "")

    async def on_busy(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 429, b"", "Retry-After: 0")

    async def on_redirect(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/redirect/N goes N times, then to the picture."""
        left = int(rest)
        target = f"/redirect/{left - 1}" if left > 1 else "/ok"
        self.send(writer, 302, b"", f"Location: {target}")

    async def on_loop(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 301, b"", "Location: /loop")

    async def on_to(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 307, b"", f"Location: {rest}")

    async def on_nowhere(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 302, b"")

    async def on_hang(self, writer: asyncio.StreamWriter, rest: str) -> None:
        await asyncio.sleep(60)

    async def on_slow(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/slow/SECONDS/ID: the picture after a while."""
        await asyncio.sleep(float(rest.partition("/")[0]))
        await self.on_ok(writer, "")

    async def on_after(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/after/N/ID: the picture, once /ok was asked for N times."""
        while self.requests["/ok"] < int(rest.partition("/")[0]):
            await asyncio.sleep(0.01)
        await self.on_ok(writer, "")

    async def on_drip(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(600):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)
        return False

    async def on_stall(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/stall/BYTES/SECONDS/ID: so much at once, and the rest after a while."""
        size, seconds, _ = rest.split("/")
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {int(size) + 1}\r\n\r\n".encode())
        writer.write(bytes(int(size)))
        await asyncio.sleep(float(seconds))
        writer.write(b"x")

    async def on_endless(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(100_000):
            writer.write(chunk)
            await writer.drain()
        return False

    async def on_announced(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\nxx")
        return False

    async def on_truncated(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.small)}\r\n\r\n"
        writer.write(head.encode() + self.small[: len(self.small) // 2])
        return False

    async def on_halfpicture(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, self.small[: len(self.small) * 2 // 3])

    async def on_gzip(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, gzip.compress(self.small), "Content-Encoding: gzip")

    async def on_coded(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/coded/CODING/HOW: the picture under that Content-Encoding, HOW it really is."""
        coding, how = rest.split("/")
        packed = gzip.compress(self.small)
        bodies = {"plain": self.small, "gzip": packed, "cut": packed[:-20]}
        bodies |= {"zlib": zlib.compress(self.small), "bare": zlib.compress(self.small)[2:-4]}
        self.send(writer, 200, bodies[how], f"Content-Encoding: {coding}")

    async def on_bomb(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, BOMB, "Content-Encoding: gzip")

    async def on_badgzip(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, b"not gzip at all", "Content-Encoding: gzip")

    async def on_html(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, b"<!DOCTYPE html><p>hello", "Content-Type: image/jpeg")

    async def on_empty(self, writer: asyncio.StreamWriter, rest: str) -> None:
        self.send(writer, 200, b"")

    async def on_header(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """/header/NAME: VALUE|NAME: VALUE sends those headers with the picture."""
        self.send(writer, 200, self.small, *rest.split("|"))

    async def on_notext(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        """A refusal whose words are no text in any encoding."""
        writer.write(
            b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai, \xff\xfe\r\nContent-Length: 0\r\n\r\n"
        )
        return True

    async def on_manyheaders(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        """Headers without end."""
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            writer.write(b"X-%d: " % number + b"x" * 4000 + b"\r\n")
            await writer.drain()
        return False

    async def on_longheader(self, writer: asyncio.StreamWriter, rest: str) -> None:
        """The picture, with a header of N bytes."""
        self.send(writer, 200, self.small, "Content-Security-Policy: " + "x" * int(rest))

    async def on_http10(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + self.small)
        return False

    async def on_cut(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        """Answers well and then closes, though it announced to keep the connection."""
        await self.on_ok(writer, "")
        return False

    async def on_reset(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        return False

    async def on_garbage(self, writer: asyncio.StreamWriter, rest: str) -> bool:
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        return False

    async def on_robots_txt(self, writer: asyncio.StreamWriter, rest: str) -> None:
        if self.robots is None:
            self.send(writer, 404, b"")
        elif self.robots.isdigit():
            self.send(writer, int(self.robots), b"")
        elif self.robots == "endless":
            await self.on_endless(writer, "")
        elif self.robots.startswith("http"):
            self.send(writer, 302, b"", f"Location: {self.robots}")
        else:
            self.send(writer, 200, self.robots.encode())
