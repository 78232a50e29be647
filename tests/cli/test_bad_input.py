"""A user's mistake is one clear line and exit 2, before any work; never a traceback."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture
def links(tmp_path):
    table = pa.table({"URL": ["http://127.0.0.1:9/a.jpg"], "TEXT": ["a"]})
    pq.write_table(table, tmp_path / "links.parquet")
    return tmp_path / "links.parquet"


@pytest.fixture
def dataset(laionkit, links, tmp_path):
    assert laionkit("metadata", links, tmp_path / "set", "--quiet").code == 0
    return tmp_path / "set"


def assert_refused(ran, *words):
    assert ran.code == 2, ran
    assert ran.err.startswith("laionkit: ")
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    assert all(word in ran.err for word in words), ran.err


def test_a_mistyped_flag_gets_a_suggestion(laionkit, dataset):
    assert_refused(laionkit("fetch", dataset, "--imge-size", 3), "--image-size")


def test_a_value_of_the_wrong_type_is_named(laionkit, dataset):
    assert_refused(laionkit("fetch", dataset, "--image-size", "big"), "image_size='big'")


def test_an_argument_too_many_is_named(laionkit, dataset):
    assert_refused(laionkit("status", dataset, "a b"), "'a b': more than this command takes")


def test_a_missing_source_is_named(laionkit, tmp_path):
    assert_refused(laionkit("metadata", tmp_path / "no.parquet", tmp_path / "set"), "no.parquet")


def test_a_source_that_is_not_what_it_says_is_named(laionkit, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    assert_refused(laionkit("metadata", tmp_path / "x.parquet", tmp_path / "set"), "x.parquet")


def test_a_column_that_cannot_be_found_lists_those_there_are(laionkit, tmp_path):
    pq.write_table(pa.table({"foo": ["a"], "bar": [1]}), tmp_path / "x.parquet")
    ran = laionkit("metadata", tmp_path / "x.parquet", tmp_path / "set")
    assert_refused(ran, "foo", "bar", "--url-column")
    assert not (tmp_path / "set").exists()


def test_a_dataset_that_is_none_says_how_to_begin_one(laionkit, tmp_path):
    assert_refused(laionkit("status", tmp_path), "laionkit metadata")
    assert_refused(laionkit("fetch", tmp_path / "nothing"), "laionkit metadata")


def test_bad_sql_is_refused(laionkit, dataset):
    for where in ("width >", "SELECT 1", "widht > 3", "read_csv('x') > 1"):
        ran = laionkit("subset", dataset, "--name", "x", "--where", where)
        assert_refused(ran)


def test_another_config_is_stale_output(laionkit, dataset, links):
    ran = laionkit("metadata", links, dataset, "--shard-size", 100)
    assert_refused(ran, "shard_size=10000", "--shard-size 10000", "--fresh")


def test_an_unknown_model_gets_a_suggestion(laionkit, dataset):
    ran = laionkit("fetch", dataset, "--allow-private", "--retries", 0, "--quiet")
    assert ran.code == 0, ran.err
    assert_refused(laionkit("embed", dataset, "--model", "ViT-B-33/openai"), "ViT-B-32")
    assert_refused(laionkit("embed", dataset), "--model", "ViT-L-14-quickgelu/openai")


def test_an_index_or_query_without_embeddings_says_what_to_run(laionkit, dataset):
    assert_refused(laionkit("index", dataset), "laionkit embed")
    assert_refused(laionkit("query", dataset, "a cat"), "laionkit index")


def test_a_bad_part_is_refused(laionkit, dataset):
    for part in ("5/4", "x", "0/2"):
        assert_refused(laionkit("fetch", dataset, "--part", part), part)


def test_a_recipe_that_is_none_names_those_there_are(laionkit, dataset):
    assert_refused(laionkit("run", "demmo", dataset), "did you mean demo?")


def test_a_shell_without_unicode_loses_no_letter_of_json(tmp_path):
    table = pa.table({"URL": ["http://a.example/a.jpg"], "TEXT": ["ein Käfer"]})
    pq.write_table(table, tmp_path / "links.parquet")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "laionkit", *arguments]
        env = {**os.environ, "PYTHONIOENCODING": "ascii"}
        return subprocess.run(command, cwd=tmp_path, env=env, check=True, stdout=-1).stdout.decode()

    assert "? metadata/part-00000.parquet" in run("metadata", "links.parquet", "set", "-q")
    (caption,) = (c for c in json.loads(run("columns", "set", "--json")) if c["name"] == "caption")
    assert caption["max"] == "ein Käfer"


def test_json_is_one_document(laionkit, dataset):
    assert laionkit("status", dataset, "--json").json()[0]["stage"] == "metadata"
    names = {column["name"] for column in laionkit("columns", dataset, "--json").json()}
    assert {"key", "url", "caption"} <= names


@pytest.mark.parametrize(
    ("flags", "left_out"),
    [
        (("a fox",), "TEXT"),
        (("--vector", "one.npy", "--explain"), "--vector and --explain"),
        (("--sheet", "hits.png"), "one query"),
    ],
)
def test_many_queries_go_with_nothing_for_one(laionkit, dataset, flags, left_out):
    ran = laionkit("query", dataset, *flags, "--queries", "texts.txt", "-o", dataset / "x.parquet")
    assert_refused(ran, left_out)
