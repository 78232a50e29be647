"""The house rules hold: lint, format, types, import directions, spelling, light help."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKED = ["laionkit", "tests", "examples", "benchmarks"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", *CHECKED],
        ["ruff", "format", "--check", *CHECKED],
        ["mypy"],
        ["lint-imports"],
        ["codespell", *CHECKED, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pipelines"],
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_the_tool_finds_nothing(command):
    tool = Path(sys.executable).with_name(command[0])
    result = run(str(tool), *command[1:])
    assert result.returncode == 0, result.stdout + result.stderr


def test_help_loads_neither_torch_nor_faiss_and_every_command_is_listed():
    code = (
        "import sys\n"
        "from laionkit.cli.app import app\n"
        "app(['--help'])\n"
        "heavy = {'torch', 'faiss', 'open_clip', 'pandas', 'pyarrow', 'duckdb', 'cv2'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))"
    )
    result = run(sys.executable, "-c", code)
    assert "LOADED []" in result.stdout, result.stdout + result.stderr
    for command in ("metadata", "fetch", "embed", "score", "index", "query", "subset", "demo"):
        assert command in result.stdout


def test_importing_the_package_loads_neither_torch_nor_faiss():
    code = "import sys, laionkit; print({'torch', 'faiss'} & set(sys.modules))"
    assert run(sys.executable, "-c", code).stdout.strip() == "set()"


def test_no_module_is_longer_than_400_lines():
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sorted((ROOT / "laionkit").rglob("*.py"))
        if (lines := len(path.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_engine_draws_a_progress_bar_into_what_a_command_prints():
    """DuckDB draws one on stdout once a query takes two seconds, in the midst of --json."""
    opened = [
        (path, ast.get_source_segment(text, node) or "")
        for path in sorted((ROOT / "laionkit").rglob("*.py"))
        if "duckdb.connect(" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef)
    ]
    opened = [(path, body) for path, body in opened if "duckdb.connect(" in body]
    assert len(opened) >= 4
    for path, body in opened:
        assert "SET enable_progress_bar = false" in body, path


def test_help_is_ready_within_a_second():
    """A generous bound for a busy machine: half a second is usual."""
    best = min(_seconds(sys.executable, "-m", "laionkit", "--help") for _ in range(3))
    assert best < 1.0


def _seconds(*command: str) -> float:
    started = time.monotonic()
    assert run(*command).returncode == 0
    return time.monotonic() - started
