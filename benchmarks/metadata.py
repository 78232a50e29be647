"""How fast links are filtered, beside DuckDB's own COPY of the same rows and columns.

    python benchmarks/metadata.py --scratch FOLDER --out benchmarks/results/metadata.json

A laion2B-en-aesthetic-like table with `hash` is drawn once (5 and 20 million rows) and deleted at
the end; with `--links FOLDER` it stays there and is used again. Each round runs COPY, with our
compression (zstd 1) and with DuckDB's own (snappy), and every mode of ours after the other, each
in a process of its own, whose peak memory is reported; a ratio is of medians, to COPY with our
compression. `--inspect` is measured over a local range server. `--out` is written after every
round, and what it holds of other parts stays, so that `--rows`, `--modes` and `--no-inspect` can
take it piece by piece. The host has to be quiet: both sides use every core.
"""

import argparse
import http.server
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

WHERE = (
    "aesthetic_v1_published >= 7.5 AND punsafe < 0.5 AND width_published >= 512 "
    "AND height_published >= 512 AND pwatermark < 0.8"
)
PEER_WHERE = (
    "aesthetic >= 7.5 AND punsafe < 0.5 AND WIDTH >= 512 AND HEIGHT >= 512 AND pwatermark < 0.8"
)
MODES: dict[str, dict[str, Any]] = {
    "counts": {"ledger": "counts"},
    "full_ledger": {"ledger": "full"},
    "dedup_url": {"ledger": "counts", "dedup": "url"},
    "shuffle": {"ledger": "counts", "shuffle": True},
}
WORDS = "a red photo of the mountain lake with old house vintage poster art print oil painting"
DRAW = """
SELECT 'https://cdn' || (hash(i) % 50000) || '.example.com/images/'
    || substr(md5(i::VARCHAR), 1, 12) || '/'
    || substr(md5((i + 7)::VARCHAR), 1, 20) || '.jpg' AS URL,
  array_to_string(list_transform(range(0, (4 + hash(i + 3) % 12)::BIGINT),
    lambda k: string_split('{words}', ' ')[1 + (hash(i * 31 + k) % 16)::BIGINT]), ' ') AS TEXT,
  (200 + hash(i + 11) % 1800)::INTEGER AS WIDTH, (200 + hash(i + 12) % 1800)::INTEGER AS HEIGHT,
  0.28 + (hash(i + 13) % 1000) / 8000.0 AS similarity,
  (hash(i + 17) >> 1)::BIGINT AS hash,
  CASE WHEN hash(i + 14) % 20 = 0 THEN NULL ELSE (hash(i + 14) % 1000) / 1000.0 END AS pwatermark,
  (hash(i + 15) % 1000) / 1000.0 AS punsafe, 7 + (hash(i + 16) % 1000) / 600.0 AS aesthetic
FROM range({rows}) t(i)
"""


PEERS = {
    "duckdb_copy": "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1",
    "duckdb_copy_snappy": "FORMAT parquet",
}


def draw(rows: int, path: Path) -> None:
    """Draw the table with DuckDB, in its own order and row groups."""
    with duckdb.connect() as con:
        con.execute("SET memory_limit = '2GB'")
        con.execute("SET temp_directory = $1", [str(path.parent / "spill")])
        sql = DRAW.format(words=WORDS, rows=rows)
        con.execute(f"COPY ({sql}) TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE 500000)")


def run_one(mode: str, source: Path, scratch: Path) -> None:
    """One run in this process; prints seconds, rows kept and peak memory as JSON."""
    import resource

    with tempfile.TemporaryDirectory(dir=scratch) as target:
        if mode in PEERS:
            con = duckdb.connect()
            con.execute("SET enable_progress_bar = false")
            started = time.perf_counter()
            out = f"{target}/out.parquet"
            con.execute(
                f"COPY (SELECT * FROM read_parquet('{source}') WHERE {PEER_WHERE}) "
                f"TO '{out}' ({PEERS[mode]})"
            )
            seconds = time.perf_counter() - started
            kept = con.execute(f"SELECT count(*) FROM read_parquet('{out}')").fetchall()[0][0]
        else:
            import pandas  # noqa: F401 (imports are not what is measured)
            import pyarrow.csv  # noqa: F401
            import sqlglot  # noqa: F401

            from laionkit.backends import parquet_tables  # noqa: F401
            from laionkit.stages.metadata import MetadataConfig, metadata

            started = time.perf_counter()
            report = metadata(
                [str(source)], f"{target}/d", MetadataConfig(where=WHERE, **MODES[mode])
            )
            seconds, kept = time.perf_counter() - started, report.counts.ok
    used = resource.getrusage(resource.RUSAGE_SELF)
    said = {"cpu_s": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024}
    print(json.dumps({"seconds": seconds, "kept": kept, **said}))


def measure(
    source: Path, scratch: Path, rounds: int, modes: list[str], save: Callable[[Any], None]
) -> None:
    """Medians over rounds in which the peers and our modes alternate; saved after each."""
    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in (*PEERS, *modes)}
    for _ in range(rounds):
        for mode, found in runs.items():
            command = [sys.executable, __file__, "--one", mode, str(source), str(scratch)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(said))
        save(summary(runs))
    if len({run["kept"] for found in runs.values() for run in found}) > 1:
        raise SystemExit(f"the sides kept different rows: {runs}")


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians of seconds and CPU seconds (the process's, imports among them), ratios, peaks."""

    def median(mode: str, what: str) -> float:
        return statistics.median(run[what] for run in runs[mode])

    return {
        mode: {
            "seconds": round(median(mode, "seconds"), 2),
            "ratio_to_copy": round(median(mode, "seconds") / median("duckdb_copy", "seconds"), 2),
            "cpu_s": round(median(mode, "cpu_s"), 2),
            "peak_mb": round(max(run["peak_mb"] for run in found)),
            "kept": found[0]["kept"],
            "rounds": len(found),
        }
        for mode, found in runs.items()
    }


def measure_inspect(source: Path) -> dict[str, Any]:
    """The share of a remote file's bytes that looking at it reads."""
    from laionkit.stages.metadata import inspect

    class Handler(http.server.BaseHTTPRequestHandler):
        sent = 0

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(source.stat().st_size))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def do_GET(self) -> None:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            with source.open("rb") as file:
                file.seek(int(first))
                data = file.read(int(last) + 1 - int(first))
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            Handler.sent += len(data)
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started = time.perf_counter()
    inspect([f"http://127.0.0.1:{server.server_address[1]}/{source.name}"])
    seconds = time.perf_counter() - started
    server.shutdown()
    size = source.stat().st_size
    share = round(Handler.sent / size, 4)
    return {"file_bytes": size, "share_read": share, "seconds": round(seconds, 2)}


def main() -> None:
    """Draw, measure, delete, report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[5_000_000, 20_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--modes", nargs="*", choices=list(MODES), default=list(MODES))
    parser.add_argument("--no-inspect", action="store_true")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--links", type=Path, help="keep the drawn tables here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one[0], Path(args.one[1]), Path(args.one[2]))
        return
    result = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    result |= about()

    def save(part: str, found: dict[str, Any]) -> None:
        result[part] = result.get(part, {}) | found
        text = json.dumps(result, indent=1)
        print(text)
        if args.out:
            args.out.write_text(text + "\n")

    scratch = Path(tempfile.mkdtemp(prefix="laionkit-metadata-", dir=args.scratch))
    try:
        for rows in args.rows:
            source = (args.links or scratch) / f"links-{rows}.parquet"
            if not source.exists():
                draw(rows, source)
            part = partial(save, f"{rows} rows")
            measure(source, scratch, args.rounds, args.modes, part)
            if not args.no_inspect:
                save("inspect", measure_inspect(source))
            if not args.links:
                source.unlink()
    finally:
        shutil.rmtree(scratch)


def about() -> dict[str, Any]:
    """What was measured, of what, where and when."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    return {
        "command": "python benchmarks/metadata.py",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.strip(),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "duckdb": duckdb.__version__,
        "load_before": [round(x, 1) for x in os.getloadavg()],
        "where": WHERE,
    }


if __name__ == "__main__":
    main()
