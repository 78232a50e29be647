"""A fetch loads what it needs and nothing else: of a thousand images half the wall was start-up."""

import signal
import subprocess
import sys
import time

import pytest

from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import make_dataset

HEAVY = ("torch", "pandas", "duckdb", "sqlglot", "faiss", "pyarrow.compute", "pyarrow.dataset")


def test_a_fetch_loads_no_tables_engine_and_only_its_workers_load_a_client(tmp_path):
    with FaultServer({"a.jpg": picture(1)}) as server:
        dataset = make_dataset(tmp_path, [f"{server.url}/ok?{i}" for i in range(20)])
        command = ["fetch", dataset, "--allow-private", "--workers", "2", "-q"]
        code = (
            "import sys\n"
            "from laionkit.cli.app import app\n"
            "if __name__ == '__main__':\n"
            f"    app({command!r})\n"
            f"    print('LOADED', sorted({{'aiohttp', *{HEAVY!r}}} & set(sys.modules)))"
        )
        (tmp_path / "run.py").write_text(code)
        done = subprocess.run(
            [sys.executable, str(tmp_path / "run.py")], capture_output=True, text=True, check=True
        )
    assert "LOADED []" in done.stdout, done.stdout
    assert "in 20 = ok 20" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_fetch_says_how_to_go_on_and_leaves_no_process(tmp_path, number):
    with FaultServer({"a.jpg": picture(1)}) as server:
        dataset = make_dataset(tmp_path, [f"{server.url}/slow/30/{i}" for i in range(20)])
        command = [*("fetch", dataset, "--allow-private", "--no-robots-txt"), "--workers", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "laionkit", *command], stderr=subprocess.PIPE, text=True
        )
        while not server.requests:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)  # ends once nobody holds its stderr
    assert process.returncode == 130
    said_last = "laionkit: interrupted; finished shards are kept. Resume: python -m laionkit "
    assert said.splitlines()[-1] == said_last + " ".join(command)


def test_a_second_interrupt_leaves_at_once(tmp_path):
    code = (
        "import os, signal, time\n"
        "from laionkit.cli import app\n"
        "def stuck(*_, **__):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(60)\n"
        "app.app = stuck\n"
        "app.main(['fetch', 'my set'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr.endswith(" fetch 'my set'\n")


def test_a_fetching_process_loads_no_tables_engine():
    code = (
        "import sys, laionkit.stages.fetch.worker\n"
        f"print('LOADED', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
