"""The package img2dataset as a fetch engine, run in a process of its own and not believed.

img2dataset prints a failed shard and goes on, and can exit 0 with files missing; what it leaves
is therefore counted against what it was given. Its words for failures become our reasons.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from laionkit.core.errors import ConfigError, StageFailed
from laionkit.core.schemas import Reason, Status

_RUN = "import json, sys, img2dataset; img2dataset.download(**json.load(sys.stdin))"
_WORDS = (
    (r"HTTP Error 404", Reason.HTTP_NOT_FOUND),
    (r"HTTP Error 410", Reason.HTTP_GONE),
    (r"HTTP Error (401|402|403|407|451)", Reason.HTTP_FORBIDDEN),
    (r"HTTP Error 429", Reason.HTTP_RATE_LIMITED),
    (r"HTTP Error 4", Reason.HTTP_CLIENT_ERROR),
    (r"HTTP Error 5", Reason.HTTP_SERVER_ERROR),
    (r"HTTP Error 3", Reason.TOO_MANY_REDIRECTS),
    (r"X-Robots-Tag", Reason.OPTED_OUT),
    (r"hash mismatch", Reason.HASH_MISMATCH),
    (r"timed out", Reason.TIMEOUT),
    (r"Name or service not known|No address|nodename", Reason.DNS_NOT_FOUND),
    (r"Temporary failure in name", Reason.DNS_TEMPORARY),
    (r"SSL|CERTIFICATE|certificate", Reason.TLS_FAILED),
    (r"refused|unreachable|No route", Reason.CONNECT_FAILED),
    (r"IncompleteRead", Reason.TRUNCATED_BODY),
    (r"unknown url type", Reason.SCHEME_REFUSED),
    (r"image too small", Reason.TOO_SMALL),
    (r"image area too large", Reason.TOO_MANY_PIXELS),
    (r"aspect ratio", Reason.ASPECT_REFUSED),
)


@dataclass(frozen=True)
class PeerRow:
    """What img2dataset made of one link: its row, and the image where it succeeded."""

    row: Mapping[str, Any]
    image: bytes | None


def run_img2dataset(links: pa.Table, folder: Path, settings: Mapping[str, Any]) -> list[PeerRow]:
    """Run img2dataset on `links` (a column ``url``) in an empty folder; one PeerRow a link.

    Links it lost without a word come back with the reason engine_failed. Raises StageFailed where
    it failed as a whole, ConfigError where it is not installed.
    """
    source, output = folder / "links.parquet", folder / "out"
    pq.write_table(links, source)
    arguments = {
        "url_list": str(source),
        "input_format": "parquet",
        "url_col": "url",
        "output_folder": str(output),
        "output_format": "webdataset",
        "processes_count": 1,
        "number_sample_per_shard": max(10, links.num_rows),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(arguments),
        text=True,
        capture_output=True,
        check=False,
        env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
    )
    if "No module named 'img2dataset'" in done.stderr:
        raise ConfigError("engine=img2dataset: the package is not installed: use --engine laionkit")
    table = output / "00000.parquet"
    if done.returncode or not table.exists() or not (output / "00000_stats.json").exists():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise StageFailed(f"img2dataset failed (exit code {done.returncode}), it said: {said}")
    return collect(table, output / "00000.tar", links.num_rows, settings["encode_format"])


def collect(table: Path, tar: Path, count: int, extension: str) -> list[PeerRow]:
    """What a shard of img2dataset holds of `count` links; those it lost are named so."""
    images: dict[int, bytes] = {}
    try:
        with tarfile.open(tar) as file:
            for member in file:
                key, _, ending = member.name.partition(".")
                if ending == extension and (data := file.extractfile(member)) is not None:
                    images[int(key)] = data.read()
    except (tarfile.TarError, OSError) as error:
        raise StageFailed(f"img2dataset failed: its tar cannot be read: {error}") from error
    rows = {int(row["key"]): row for row in pq.read_table(table).to_pylist()}
    lost = {"status": Status.FAILED_TO_DOWNLOAD, "error_message": "img2dataset lost this link"}
    found = []
    for index in range(count):
        row = rows.get(index, lost)
        if row["status"] == Status.SUCCESS and index not in images:
            row = {**lost, "error_message": "img2dataset said success and wrote no image"}
        found.append(PeerRow(row, images.get(index)))
    return found


def reason_for(row: Mapping[str, Any]) -> Reason | None:
    """Our reason for a row of img2dataset; None where it succeeded."""
    if row["status"] == Status.SUCCESS:
        return None
    said = str(row["error_message"])
    if said.startswith("img2dataset "):
        return Reason.ENGINE_FAILED
    for words, reason in _WORDS:
        if re.search(words, said):
            return reason
    failed_later = row["status"] == Status.FAILED_TO_RESIZE
    return Reason.DECODE_FAILED if failed_later else Reason.CONNECTION_LOST
