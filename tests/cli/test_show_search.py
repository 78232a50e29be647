"""What a query prints. The table of hits stays readable however many scores there are."""

import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from laionkit.cli import show, show_search
from laionkit.cli.search_commands import query
from laionkit.stages.index import index
from laionkit.stages.query import QueryConfig
from tests.search.datasets import add_embeddings, add_scores, clustered

SCORES = [f"score_number_{n}" for n in range(12)]


def shown(monkeypatch: pytest.MonkeyPatch, width: int, scores: list[str], asked: str = "") -> str:
    console = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(show_search, "console", console)
    table = pa.table(
        {"key": ["000000012", "000000345"], "match": [0.3141, 0.2718]}
        | {"caption": ["a red fox in the snow", "two boats"], "url": ["https://example.org/1"] * 2}
        | {name: [1234.5, None] for name in scores}
        | {"shard": ["00000"] * 2, "row": [12, 345]}
    )
    show_search.hits(table, asked)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_few_scores_are_all_shown(monkeypatch):
    text = shown(monkeypatch, 80, SCORES[:3])
    assert text.count("1234") == 3
    assert "too wide" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_scores_that_do_not_fit_are_named_and_the_caption_stays(monkeypatch, width):
    text = shown(monkeypatch, width, SCORES)
    assert max(map(len, text.splitlines())) <= width
    assert "a red fox in the sn" in text
    left_out = " ".join(text.split("too wide to show beside:")[1].split())
    assert text.count("1234") + left_out.count("score_number_") == 12
    assert "(--json has all)" in left_out


def test_the_score_asked_for_is_shown(monkeypatch):
    text = shown(monkeypatch, 80, SCORES, "score_number_11 > 5")
    assert "score_number_11" not in text.split("too wide")[1]


def test_an_empty_answer_says_what_was_asked(tmp_path, capsys, monkeypatch):
    vectors = clustered(40, 16)
    keys = add_embeddings(tmp_path, "00000", vectors)
    add_scores(tmp_path, "taste", "00000", keys, np.zeros(40, np.float32))
    index(str(tmp_path))
    np.save(tmp_path / "one.npy", vectors[0])
    monkeypatch.setattr(show, "console", Console(width=200))
    query(str(tmp_path), vector=str(tmp_path / "one.npy"), config=QueryConfig(where="taste > 3"))
    assert capsys.readouterr().out == "no hits among 40 rows: none meets taste > 3\n"
