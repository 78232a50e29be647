"""What fetch's benchmarks share: the two sides as commands, what a run costs, the local server."""

import contextlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OURS = """
import sys
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
if __name__ == "__main__":
    fetch(sys.argv[1], FetchConfig(allow_private=True, resize_mode="keep_ratio", per_host=4096,
          concurrency=64, timeout_s=60), runner=Runner(workers=2))
"""
# The same, and the work list out of the table of links, as img2dataset's command does both.
OURS_WHOLE = (
    """
import sys
from laionkit.stages.metadata import MetadataConfig, metadata
if __name__ == "__main__":
    metadata([sys.argv[2]], sys.argv[1], MetadataConfig(shard_size=int(sys.argv[3])))
"""
    + OURS
)
PEER = """
import sys, img2dataset
if __name__ == "__main__":
    img2dataset.download(url_list=sys.argv[1], output_folder=sys.argv[2], image_size=256,
        resize_mode="keep_ratio", processes_count=2, thread_count=64, input_format="parquet",
        url_col="url", caption_col="caption", output_format="webdataset", compute_hash="sha256",
        extract_exif=False, number_sample_per_shard=int(sys.argv[3]), timeout=60)
"""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass
class Run:
    """One command: CPU seconds of its process tree and of the server, wall, peak PSS, images."""

    cpu_s: float
    wall_s: float
    peak_mb: float
    images: int
    server_cpu_s: float = 0.0
    commit: str = ""


@dataclass
class Server:
    """A running server: where its pictures are, its process, what its clients trust."""

    base: str
    pid: int
    environment: dict[str, str]

    def cpu_s(self) -> float:
        """CPU seconds that the server has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def pss_mb(root: int) -> float:
    """Proportional memory of a process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    total, todo = 0.0, [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        with contextlib.suppress(OSError, IndexError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(rollup.split("\nPss:")[1].split()[0]) / 1024
    return total


def measure(command: list[str], folder: Path, shards: Path, server: Server) -> Run:
    """Run a command to its end and see what it cost and how many images it left in `shards`."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", **server.environment}
    started, peak, over = time.monotonic(), [0.0], threading.Event()
    served = server.cpu_s()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

        def watch() -> None:
            while not over.wait(0.5):
                peak[0] = max(peak[0], pss_mb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        over.set()
        watcher.join()
    if process.returncode:
        raise SystemExit(f"{command[:3]} failed: {(folder / 'log').read_text()[-2000:]}")
    stats = [json.loads(path.read_text()) for path in shards.glob("*_stats.json")]
    images = sum(stat["successes"] for stat in stats)
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(cpu_s, wall, peak[0], images, server.cpu_s() - served)


def links(folder: Path, base: str, count: int) -> Path:
    """A list of `count` links to the server."""
    path = folder / f"links-{count}.parquet"
    urls = [f"{base}/{i}" for i in range(count)]
    pq.write_table(pa.table({"url": urls, "caption": [f"picture {i}" for i in range(count)]}), path)
    return path


def run_ours(source: Path, folder: Path, shard: int, server: Server, *, whole: bool = False) -> Run:
    """Laionkit on a list of links: fetch alone, or the `whole` way from the table of links."""
    from laionkit.stages.metadata import MetadataConfig, metadata

    dataset, script = str(folder / "data"), folder / "ours.py"
    script.write_text(OURS_WHOLE if whole else OURS)
    if not whole:
        metadata([str(source)], dataset, MetadataConfig(shard_size=shard))
    command = [sys.executable, str(script), dataset, str(source), str(shard)]
    return measure(command, folder, Path(dataset) / "shards", server)


def run_peer(source: Path, folder: Path, shard: int, server: Server, python: str) -> Run:
    """img2dataset on the same list, in the interpreter `python`."""
    script = folder / "peer.py"
    script.write_text(PEER)
    output = folder / "out"
    return measure(
        [python, str(script), str(source), str(output), str(shard)], folder, output, server
    )


@contextlib.contextmanager
def serve(side: int, photos: Path | None, *, tls: bool = False) -> Iterator[Server]:
    """A picture server of its own process; over TLS it closes the connection after each picture."""
    command = [sys.executable, "-m", "benchmarks.fetch_server", "--side", str(side)]
    command += ["--folder", str(photos)] if photos else []
    with tempfile.TemporaryDirectory() as folder:
        environment: dict[str, str] = {}
        if tls:
            certificate, key, trusted = make_certificate(Path(folder))
            command += ["--tls", str(certificate), str(key)]
            environment["SSL_CERT_FILE"] = str(trusted)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                scheme = "https" if tls else "http"
                base = f"{scheme}://127.0.0.1:{int(process.stdout.readline())}"
                yield Server(base, process.pid, environment)
            finally:
                process.kill()


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate for 127.0.0.1, its key, and the system's trusted ones with it in a file.

    A client that reads the trusted ones anew for each request pays for all of them, as it does
    out in the world.
    """
    certificate, key, trusted = folder / "cert.pem", folder / "key.pem", folder / "trusted.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
    system = ssl.get_default_verify_paths().cafile
    everyone = Path(system).read_text() if system else ""
    trusted.write_text(everyone + "\n" + certificate.read_text())
    return certificate, key, trusted
