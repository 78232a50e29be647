"""Decoders that really die: by a signal, by the kernel's hand, or never coming back."""

import os
import socket
import struct
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from laionkit.backends import isolation
from laionkit.backends.isolation import MEMORY_BYTES, CallDied, Isolated
from laionkit.core.errors import StageFailed
from laionkit.core.runner import Runner
from laionkit.ops.stored_image import ImageMaker
from laionkit.stages.fetch import FetchConfig, fetch
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import data_bytes, make_dataset, rows_of

# Loaded by the decoders' own interpreters: Pillow then dies of bitmaps of these widths, each in
# its own way. What happens to the process is real.
_DEADLY = """
import ctypes, os, signal, time
from PIL import BmpImagePlugin

read = BmpImagePlugin.BmpImageFile._open

def deadly(self):
    read(self)
    width = self.size[0]
    if width == 101:
        ctypes.string_at(0)
    if width == 102:
        os.abort()
    if width == 103:
        os.kill(os.getpid(), signal.SIGKILL)
    if width == 104:
        time.sleep(3600)
    if width == 105:
        os._exit(3)

BmpImagePlugin.BmpImageFile._open = deadly
"""
DEATHS = {101: "SIGSEGV", 102: "SIGABRT", 103: "SIGKILL", 105: "exit code 3"}


@pytest.fixture(scope="module")
def server():
    pictures = {f"{i}.jpg": picture(i, 60, 80) for i in range(20)}
    pictures |= {f"{width}.bmp": picture(width, 10, width, "BMP") for width in range(100, 106)}
    with FaultServer(pictures) as running:
        yield running


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    folder = tmp_path / "deadly"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_DEADLY)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decoder_that_dies_or_hangs_costs_its_own_picture_alone(
    tmp_path, server, deadly, workers
):
    names = [f"{i}.jpg" for i in range(20)]
    for place, width in enumerate((*range(100, 106), *range(101, 104))):
        names.insert(3 * place, f"{width}.bmp")
    dataset = make_dataset(tmp_path, [f"{server.url}/img/{name}" for name in names])
    config = FetchConfig(allow_private=True, decode_timeout_s=1.5)
    report = fetch(dataset, config, runner=Runner(workers=workers))
    assert report.counts.reasons == {"decode_timeout": 1, "worker_crashed": 7}
    assert report.counts.ok == len(names) - 8
    for name, row in zip(names, rows_of(dataset).to_pylist(), strict=True):
        width = int(name.partition(".")[0])
        if width in DEATHS:
            assert (row["reason"], row["status"]) == ("worker_crashed", "failed_to_resize")
            assert DEATHS[width] in row["error_message"]
        elif width == 104:
            assert row["error_message"] == "not decoded in 1.5 s"
        else:
            assert row["reason"] is None


def test_a_crash_changes_no_other_byte(tmp_path, server, deadly):
    names = [f"{i}.jpg" for i in range(20)]
    files = {}
    for kind in ("missing.jpg", "101.bmp"):
        urls = [f"{server.url}/img/{name}" for name in [*names, kind]]
        dataset = make_dataset(tmp_path / kind, urls)
        fetch(dataset, FetchConfig(allow_private=True), runner=Runner(workers=1))
        files[kind] = data_bytes(dataset)
    one, other = files.values()
    assert {n: b for n, b in one.items() if b != other[n]}.keys() == {"00002.parquet"}


def test_a_blocked_picture_never_meets_a_decoder(tmp_path, server, deadly):
    (tmp_path / "blocked").write_text(sha256(server.pictures["101.bmp"]).hexdigest() + "\n")
    dataset = make_dataset(tmp_path, [f"{server.url}/img/{n}" for n in ("101.bmp", "1.jpg")])
    config = FetchConfig(allow_private=True, blocklist=str(tmp_path / "blocked"))
    report = fetch(dataset, config, runner=Runner(workers=1))
    assert report.counts.reasons == {"content_blocked": 1}
    assert report.counts.ok == 1


def double(body: bytes, asked: int) -> tuple[int, bytes | None]:
    if asked < 0:
        os.kill(os.getpid(), -asked)
    if asked == 99:
        time.sleep(60)
    return 2 * asked, body * 2 if body else None


def test_a_call_returns_what_the_function_returns_also_where_it_is_large():
    isolated = Isolated(double, 60)
    for body in (b"", b"x", os.urandom(50_000), os.urandom(5_000_000)):
        assert isolated(body, 4) == (8, body * 2 if body else None)
    isolated.close()


def hungry(body: bytes, asked: int) -> tuple[str, bytes | None]:
    try:
        return str(len(bytearray(asked))), None
    except MemoryError:
        return "no memory", None


def test_a_call_can_take_no_more_memory_than_its_bound():
    isolated = Isolated(hungry, 60)
    assert isolated(b"", 1 << 20) == (str(1 << 20), None)
    assert isolated(b"", MEMORY_BYTES + 1) == ("no memory", None)
    isolated.close()


def test_the_next_call_after_a_death_is_answered_and_the_death_is_explained():
    isolated = Isolated(double, 0.5)
    for signal, word in ((9, "SIGKILL"), (11, "SIGSEGV")):
        with pytest.raises(CallDied, match=word) as caught:
            isolated(b"", -signal)
        assert not caught.value.timed_out
        assert isolated(b"", 1) == (2, None)
    with pytest.raises(CallDied) as caught:
        isolated(b"", 99)
    assert caught.value.timed_out
    os.kill(isolated._nursery._process.pid, 9)
    isolated._nursery._process.wait()
    with pytest.raises(CallDied):
        isolated(b"", -9)
    assert isolated(b"", 1) == (2, None)
    isolated.close()


class Unloadable:
    """Ends the interpreter that unpickles it."""

    def __reduce__(self):
        return os._exit, (3,)


def test_where_no_process_starts_the_stage_fails_and_no_picture_is_blamed():
    isolated = Isolated(Unloadable(), 60)
    with pytest.raises(StageFailed, match=r"no decoder can be started: .* exit code 3"):
        isolated(b"", 1)
    isolated.close()


def test_no_process_is_left_behind():
    isolated = Isolated(double, 60)
    isolated(b"", 1)
    group = [isolated._nursery._process.pid, isolated._idle[0]._pid]
    isolated.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in group)


def test_a_nursery_whose_parent_was_stopped_at_once_ends_without_a_word():
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        command = [sys.executable, "-m", isolation.__name__, str(theirs.fileno())]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_hostile_bytes_only_ever_give_a_row():
    maker = ImageMaker()
    info = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, -5, 0, 1, 24, 0, 0, 0, 0, 0, 0)
    for data in (b"BM" + info, b"II*\0" + b"\xff" * 40, b"GIF89a" + b"\xff" * 30):
        found = maker.make(data)
        assert found.reason is not None
        assert found.image is None
