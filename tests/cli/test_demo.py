"""The demo, in small: from the source tree, a second time, and from an installed wheel."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 150


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """A demo that has run: its folder, and what it printed."""
    dataset = tmp_path_factory.mktemp("demo") / "demo"
    return dataset, run_demo(dataset, "-m", "laionkit").stdout


def run_demo(dataset: Path, *entry: str, env: dict[str, str] | None = None):
    command = [sys.executable, *entry, "demo", str(dataset), "--pictures", str(PICTURES)]
    result = subprocess.run(
        command, cwd=dataset.parent, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_every_stage_prints_counts_that_sum_and_the_faults_have_their_reasons(demo):
    _, printed = demo
    for stage in ("metadata", "fetch", "embed/tiny", "head fit", "index/tiny", "subset"):
        assert any(line.startswith(stage) for line in printed.splitlines()), stage
    for reason in ("http_not_found", "http_server_error", "timeout", "not_an_image"):
        assert reason in printed


def test_the_queries_find_what_they_name_and_draw_contact_sheets(demo, laionkit):
    dataset, _ = demo
    found = laionkit("query", dataset, "a red star on grass", "-k", 3, "--json").json()["hits"]
    assert "star" in found[0]["caption"]
    filtered = laionkit("query", dataset, "a heart", "--where", "demo_taste >= 6", "--json").json()
    assert filtered["hits"]
    assert all(hit["demo_taste"] >= 6 for hit in filtered["hits"])
    for number in (1, 2):
        with Image.open(dataset / f"hits-{number}.png") as sheet:
            assert sheet.width > 400


def test_a_second_call_finds_everything_done(demo):
    dataset, _ = demo
    again = run_demo(dataset, "-m", "laionkit").stdout
    fetch = next(line for line in again.splitlines() if line.startswith("fetch"))
    assert "2 shards, 2 found done" in fetch


def test_it_works_from_an_installed_wheel(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import laionkit; print(laionkit.__file__)"],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    run_demo(tmp_path / "demo", "-m", "laionkit", env=env)
    made = json.loads((tmp_path / "demo/subsets/best/sizes.json").read_text())
    assert sum(made.values()) > 0


def test_a_query_without_text_opens_a_prompt_on_a_terminal(demo):
    dataset, _ = demo
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "laionkit", "query", str(dataset), "-k", "2", "--quiet"]
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        terminal.write(b"a blue ring\n\x04")  # Ctrl-D ends it, as an empty line does
        result = subprocess.run(
            command, stdin=theirs, capture_output=True, text=True, check=False, timeout=120
        )
        os.close(theirs)
    assert result.returncode == 0, result.stderr
    assert "taste" in result.stdout


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(demo, tmp_path):
    dataset, _ = demo
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        pictures = dataset / "world/pictures"
        assert laionkit_in(tmp_path, "metadata", pictures, small / "set").returncode == 0
        result = laionkit_in(tmp_path, "fetch", small / "set", "--quiet")
        assert result.returncode == 1
        assert f"no space left on the disk of {small / 'set'}. Finished" in result.stderr
        assert "Traceback" not in result.stderr
        shards = small / "set/shards"
        assert not shards.exists() or list(shards.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def laionkit_in(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "laionkit", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_dry_run_an_inspection_and_a_check_say_what_they_found(demo, laionkit):
    dataset, _ = demo
    terms = ("--where", "demo_taste > 6 AND width > 200", "--dry-run")
    dry = laionkit("subset", dataset, "--name", "dry", *terms)
    assert dry.code == 0, dry.err
    assert "threshold" in dry.out
    assert not (dataset / "subsets/dry").exists()
    looked = laionkit("metadata", "--inspect", dataset / "world/links.parquet")
    assert looked.code == 0, looked.err
    assert "punsafe" in looked.out
    checked = laionkit("verify", dataset, "best", "--json")
    assert checked.json()["problems"] == []
    next((dataset / "subsets/best").glob("*.tar")).write_bytes(b"spoilt")
    spoilt = laionkit("verify", dataset, "best")
    assert spoilt.code == 1
    assert "bytes, recorded were" in spoilt.out
