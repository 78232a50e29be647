"""head fit: ratings in, a head that scores, an honest error."""

import csv
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.backends.heads import load_head
from laionkit.core.errors import InputError
from laionkit.stages.head_fit import HeadFitConfig, fit_head
from laionkit.stages.score import ScoreConfig, score
from tests.stages.test_score import values_of, write_embeddings


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """Random unit vectors whose rating is affine in them, with a little noise."""
    rng = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("rated")
    emb_ND = rng.normal(size=(600, 16))
    emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    folder = write_embeddings(path / "data", emb_ND.astype(np.float16), shards=3)
    ratings = 5 + emb_ND @ rng.normal(size=16) * 4 + rng.normal(size=600) * 0.1
    return folder, ratings


def write_csv(path, rows, header=("key", "rating")):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


def test_a_fitted_head_predicts_what_it_never_saw_and_scores_the_dataset(rated, tmp_path):
    folder, ratings = rated
    file = write_csv(tmp_path / "r.csv", [(f"{i:05d}", r) for i, r in enumerate(ratings)])
    output = tmp_path / "taste.safetensors"
    report = fit_head(file, folder.url, HeadFitConfig(output=str(output)))
    assert report.counts.ok == 600
    held_out = report.extra["held_out"]
    assert 80 < held_out["rows"] < 160
    assert held_out["rmse"] < 0.15 < held_out["rmse_of_the_mean"]
    assert held_out["correlation"] > 0.98
    card = json.loads((tmp_path / "taste.json").read_text())
    assert card["backbone"] == "openai/ViT-B-32"
    assert card["held_out"] == held_out
    score(folder.url, ScoreConfig(heads=(str(output),)))
    assert np.corrcoef(values_of(folder, "taste"), ratings)[0, 1] > 0.98


def test_the_command_fits_and_the_next_one_scores(rated, tmp_path, laionkit):
    folder, ratings = rated
    file = write_csv(tmp_path / "r.csv", [(f"{i:05d}", r) for i, r in enumerate(ratings)])
    output = tmp_path / "mine.safetensors"
    ran = laionkit("head", "fit", file, folder.url, "-o", output)
    assert (ran.code, output.is_file()) == (0, True), ran.err
    assert re.search(r"on \d+ ratings held out: rmse 0\.\d+, rmse of the mean", ran.err)
    ran = laionkit("score", folder.url, "--heads", output)
    assert (ran.code, len(values_of(folder, "mine"))) == (0, 600), ran.err


def test_the_same_ratings_give_the_same_file(rated, tmp_path):
    folder, ratings = rated
    table = pa.table({"key": [f"{i:05d}" for i in range(600)], "score": ratings})
    pq.write_table(table, tmp_path / "r.parquet")
    for name in ("a", "b"):
        config = HeadFitConfig(output=str(tmp_path / name / "h.safetensors"), rating="score")
        fit_head(str(tmp_path / "r.parquet"), folder.url, config)
    first, second = ((tmp_path / n / "h.safetensors").read_bytes() for n in "ab")
    assert first == second


def test_yes_and_no_become_a_probability(rated, tmp_path):
    folder, ratings = rated
    rows = [(f"{i:05d}", int(r > 5)) for i, r in enumerate(ratings)]
    output = tmp_path / "yes.safetensors"
    config = HeadFitConfig(output=str(output), method="logistic")
    report = fit_head(write_csv(tmp_path / "r.csv", rows), folder.url, config)
    assert report.extra["held_out"]["area_under_curve"] > 0.97
    assert load_head(str(output)).output == "probability"


def test_ratings_of_unknown_samples_and_rows_without_one_are_counted(rated, tmp_path):
    folder, ratings = rated
    rows = [(f"{i:05d}", r) for i, r in enumerate(ratings[:100])]
    rows += [("99999", 3.0), ("00001x", 2.0), ("00002", ""), ("00003", "nan")]
    config = HeadFitConfig(output=str(tmp_path / "h.safetensors"))
    report = fit_head(write_csv(tmp_path / "r.csv", rows), folder.url, config)
    assert report.counts.ok == 100
    assert report.counts.reasons == {"malformed_row": 2, "not_embedded": 2}
    assert report.counts.adds_up()


@pytest.mark.parametrize(
    ("rows", "header", "settings", "words"),
    [
        ([("00001", 1)], ("key", "ratin"), {}, r"no column 'rating' \(did you mean ratin\?\)"),
        ([("00001", 1)], ("name", "rating"), {}, "no column key or url or hash"),
        ([("x", 1)], ("key", "rating"), {}, r"0 of 1 ratings .* a head needs 20"),
        ([("u", 1)], ("url", "rating"), {}, "has no column url to join ratings on"),
        (
            [(f"{i:05d}", i) for i in range(50)],
            ("key", "rating"),
            {"method": "logistic"},
            "takes ratings 0 and 1, seen 49",
        ),
    ],
)
def test_a_wrong_file_is_one_line(rows, header, settings, words, rated, tmp_path):
    file = write_csv(tmp_path / "r.csv", rows, header)
    config = HeadFitConfig(output=str(tmp_path / "h.safetensors"), **settings)
    with pytest.raises(InputError, match=words) as caught:
        fit_head(file, rated[0].url, config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "h.safetensors").exists()


def test_a_missing_file_is_named(rated, tmp_path):
    with pytest.raises(InputError, match=r"nothing\.csv"):
        fit_head(str(tmp_path / "nothing.csv"), rated[0].url)
