"""Every command of the README runs: against a hub on loopback, with declared stand-in weights."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.ops.pictures import caption, draw, random_scene
from tests.hub_server import serve_hub
from tests.small_clip import write_small_clip

README = Path(__file__).resolve().parents[1] / "README.md"
PICTURES = 24
# Model named in the README → whose embeddings the stand-in's are declared to be, and their size.
STAND_INS = {
    "ViT-L-14-quickgelu/openai": ("openai/ViT-L-14", 768),
    "ViT-B-32-quickgelu/openai": ("openai/ViT-B-32", 512),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def pictures(tmp_path) -> list[tuple[str, str]]:
    """Drawn pictures with sidecar captions in ~/Pictures, as (file, caption)."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "home/Pictures"
    folder.mkdir(parents=True)
    made = []
    for number in range(PICTURES):
        scene = random_scene(rng)
        made.append((f"{number}.jpg", caption(scene, rng)))
        cv2.imwrite(str(folder / made[-1][0]), draw(scene, (300, 360))[:, :, ::-1])
        (folder / f"{number}.txt").write_text(made[-1][1])
    return made


@pytest.fixture
def world(tmp_path, pictures, monkeypatch, heads_cache) -> Iterator[Path]:
    """An empty working folder, a home with pictures, a hub that lists links to them."""
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    with serve_folder(home / "Pictures") as base:
        listed = home / "hub/laion/laion2B-en-aesthetic"
        listed.mkdir(parents=True)
        columns = {
            "URL": [f"{base}/{name}" for name, _ in pictures],
            "TEXT": [text for _, text in pictures],
            "WIDTH": pa.array([360.0] * PICTURES),
            "HEIGHT": pa.array([300.0] * PICTURES),
            "similarity": [0.31] * PICTURES,
            "pwatermark": [0.1] * PICTURES,
            "punsafe": [0.01] * PICTURES,
            "hash": list(range(PICTURES)),
            "aesthetic": [7.5] * PICTURES,
        }
        pq.write_table(pa.table(columns), listed / "part-00000.parquet")
        with serve_hub(home / "hub") as endpoint:
            monkeypatch.setenv("HOME", str(home))
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            monkeypatch.chdir(work)
            yield work


def stand_in(model: str, folder: Path) -> tuple[str, str]:
    backbone, dim = STAND_INS[model]
    path = folder.parent / f"stand-in-{dim}"
    if not path.exists():
        path.mkdir()
        # With these seeded weights aesthetic-v2 rates some of the pictures above 6, some below.
        write_small_clip(path, seed=4, embed_dim=dim, quick_gelu=True)
    return f"local-dir:{path}", backbone


def arguments(command: str, world: Path) -> list[str]:
    """A README command as it runs here: stand-in weights, and loopback allowed."""
    words = [word.replace("~", str(world.parent / "home")) for word in shlex.split(command)[1:]]
    if "--model" in words:
        place = words.index("--model") + 1
        words[place], backbone = stand_in(words[place], world)
        words += ["--backbone-id", backbone]
    if words[0] == "fetch":
        words.append("--allow-private")
    return words


@pytest.mark.parametrize("block", [b for b in blocks("sh") if "laionkit metadata" in b])
def test_the_commands_run_as_written(laionkit, world, block):
    commands = [line for line in block.splitlines() if line.startswith("laionkit ")]
    assert len(commands) >= 5
    for command in commands:
        ran = laionkit(*arguments(command, world), "--quiet")
        assert ran.code == 0, f"{command}: {ran.err}"
        assert ran.out.strip()


def test_the_python_runs_as_written(laionkit, world):
    (shell,) = (b for b in blocks("sh") if "~/Pictures" in b)
    for command in shell.splitlines():
        assert laionkit(*arguments(command, world), "--quiet").code == 0
    model = "ViT-B-32-quickgelu/openai"
    path, backbone = stand_in(model, world)
    (source,) = blocks("python")
    exec(source.replace(f'model="{model}"', f'model="{path}", backbone_id="{backbone}"'), {})


def test_make_has_the_two_commands_that_set_everything_up():
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert f"\n{target}: .venv/ready" in makefile
