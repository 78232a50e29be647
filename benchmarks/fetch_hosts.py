"""A world of 1,000 hosts, a tenth of them bad: what the bad ones take from the healthy.

    python -m benchmarks.fetch_hosts [--repeats 3] [--photos FOLDER]

Every host has a name, an address of its own in 127.0.0.0/8 and ten pictures of 500 px; a resolver
of ours answers for them over real sockets. Of the bad tenth, a quarter each answers after five
seconds, never answers, always answers 429, or drips a byte now and then. Healthy throughput is
what the server counts: the healthy hosts' pictures over the time from the first to the last of
them. Aim: with the bad hosts at least 90 % of that without them. Writes results/fetch_hosts.json.
"""

import argparse
import asyncio
import json
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.fetch import RESULTS, circumstances, commit, store
from benchmarks.fetch_server import photo_folder, photographs

HOSTS, BAD, LINKS_EACH = 1000, 100, 10
KINDS = ("slow", "dead", "429", "drip")
SLOW_S, DRIP_S = 5.0, 0.5
ROBOTS = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n"
OURS = """
import sys
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
if __name__ == "__main__":
    fetch(sys.argv[1], FetchConfig(allow_private=True, resize_mode="keep_ratio",
          resolver=sys.argv[2]), runner=Runner(workers=2))
"""


def kind_of(host: int) -> str:
    """How a host behaves; the first BAD ones are bad."""
    return KINDS[host % len(KINDS)] if host < BAD else "healthy"


class World:
    """All hosts behind one port, and when the healthy ones were asked for pictures."""

    def __init__(self, pictures: list[bytes]) -> None:
        head = "HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
        self.answers = [head.format(len(body)).encode() + body for body in pictures]
        self.served: list[float] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, each as its host does."""
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                path = request.split(b" ", 2)[1]
                if path == b"/report":
                    await self.report(writer)
                    continue
                host = int(request.lower().partition(b"host: h")[2].split(b".")[0])
                if not await self.answer(kind_of(host), path, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, kind: str, path: bytes, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection ends."""
        if kind == "dead":
            await asyncio.sleep(3600)
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
        if path == b"/robots.txt":
            writer.write(ROBOTS)
            await writer.drain()
            return True
        answer = self.answers[int(path.rpartition(b"/")[2]) % len(self.answers)]
        if kind == "drip":
            for place in range(len(answer)):
                writer.write(answer[place : place + 1])
                await writer.drain()
                await asyncio.sleep(DRIP_S)
            return False
        if kind == "healthy":
            self.served.append(time.monotonic())
        writer.write(BUSY if kind == "429" else answer)
        await writer.drain()
        return True

    async def report(self, writer: asyncio.StreamWriter) -> None:
        """Say how many healthy pictures went out in what time, and begin anew."""
        seconds = self.served[-1] - self.served[0] if self.served else 0.0
        body = json.dumps({"pictures": len(self.served), "seconds": seconds}).encode()
        self.served = []
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


class Names(asyncio.DatagramProtocol):
    """Answers for hN.world.test: an A record of its own address, no AAAA."""

    def connection_made(self, transport: Any) -> None:
        """Keep the socket."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer one question."""
        end = data.index(b"\0", 12) + 5
        host = int(data[14 : 13 + data[12]])
        is_a = data[end - 4 : end - 2] == b"\0\1"
        answer = (
            b"\xc0\x0c"
            + struct.pack(">2HIH", 1, 1, 300, 4)
            + bytes([127, 1, host >> 8, host & 255])
        )
        head = data[:2] + struct.pack(">5H", 0x8180, 1, int(is_a), 0, 0)
        self.transport.sendto(head + data[12:end] + (answer if is_a else b""), addr)


async def serve_world(pictures: list[bytes]) -> None:
    """Say both ports, then serve for ever."""
    world, loop = World(pictures), asyncio.get_running_loop()
    server = await asyncio.start_server(world.serve, "0.0.0.0", 0, backlog=4096)
    transport, _ = await loop.create_datagram_endpoint(
        Names, local_addr=("127.0.0.1", 0), family=socket.AF_INET
    )
    print(server.sockets[0].getsockname()[1], transport.get_extra_info("sockname")[1], flush=True)
    await server.serve_forever()


def run(port: int, resolver: int, with_bad: bool) -> dict[str, float]:
    """Fetch all links, or the healthy ones alone; what the server and the command saw."""
    from laionkit.stages.metadata import MetadataConfig, metadata

    hosts = range(0 if with_bad else BAD, HOSTS)
    urls = [f"http://h{h}.world.test:{port}/{i}" for h in hosts for i in range(LINKS_EACH)]
    random.Random(7).shuffle(urls)
    with tempfile.TemporaryDirectory() as folder:
        source, script, dataset = f"{folder}/links.parquet", f"{folder}/ours.py", f"{folder}/data"
        pq.write_table(pa.table({"url": urls}), source)
        Path(script).write_text(OURS)
        metadata([source], dataset, MetadataConfig(shard_size=1000))
        started = time.monotonic()
        command = [sys.executable, script, dataset, f"127.0.0.1:{resolver}"]
        subprocess.run(command, check=True, capture_output=True)
        wall = time.monotonic() - started
        stats = [json.loads(p.read_text()) for p in Path(dataset, "shards").glob("*_stats.json")]
    healthy = (HOSTS - BAD) * LINKS_EACH
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/report") as answer:
        seen = json.load(answer)
    if seen["pictures"] < healthy or sum(s["count"] for s in stats) != len(urls):
        raise SystemExit(f"healthy pictures were lost: {seen}, {stats}")
    succeeded = sum(s["successes"] for s in stats)
    rate = seen["pictures"] / seen["seconds"]
    return {"healthy_per_s": rate, "wall_s": wall, "links": len(urls), "successes": succeeded}


def main() -> None:
    """Serve the world, or measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="alternations")
    parser.add_argument(
        "--photos", type=photo_folder, help="folder of photographs to serve, resized"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve_world(photographs(500, asked.photos)))
        return
    command = [sys.executable, "-m", "benchmarks.fetch_hosts", "--serve"]
    command += ["--photos", str(asked.photos)] if asked.photos else []
    runs: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port, resolver = map(int, server.stdout.readline().split())
        try:
            for repeat in range(asked.repeats):
                for name in ("without", "with") if repeat % 2 else ("with", "without"):
                    runs[name].append(run(port, resolver, name == "with"))
                    print(name, runs[name][-1], flush=True)
        finally:
            server.kill()
    rates = {name: statistics.median(r["healthy_per_s"] for r in runs[name]) for name in runs}
    share = rates["with"] / rates["without"]
    result = {
        **circumstances("python -m benchmarks.fetch_hosts --photos FOLDER"),
        "commit": commit(),
    }
    result |= {"share": share, **rates, "runs": runs}
    store(result, RESULTS.with_name("fetch_hosts.json"))
    print(f"healthy links at {share:.0%} of their throughput without the bad hosts")


if __name__ == "__main__":
    main()
