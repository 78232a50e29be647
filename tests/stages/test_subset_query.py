"""A subset from a query: real vectors, a real index, the tiny model's text side."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import InputError
from laionkit.core.runner import Runner
from laionkit.search.searcher import Searcher
from laionkit.stages.embed import EmbedConfig, embed
from laionkit.stages.index import IndexConfig, index
from laionkit.stages.subset import SubsetConfig, subset
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 25


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    made = SmallDataset(tmp_path_factory.mktemp("query") / "laion", laion_rows(ROWS))
    made.write_metadata().write_shards({3: "timeout"})
    embed(made.url, EmbedConfig(model="tiny"), runner=Runner(workers=1, device="cpu"))
    index(made.url, IndexConfig())
    return made


def kept(dataset: SmallDataset, name: str) -> set[str]:
    return set(pq.read_table(dataset.path / f"subsets/{name}/kept.parquet")["key"].to_pylist())


def test_the_nearest_under_the_filter_are_kept_and_no_others(dataset):
    settings = {"query": "a red circle", "nearest": 6, "where": "punsafe < 0.5"}
    report = subset(dataset.url, SubsetConfig(name="red", **settings))
    hits = Searcher(dataset.url).search("a red circle", k=6, where="punsafe < 0.5")
    assert kept(dataset, "red") == set(hits["key"])
    assert report.counts.ok == 6
    assert report.counts.adds_up()


def test_a_file_of_queries_keeps_what_is_near_any(dataset, tmp_path):
    (tmp_path / "texts").write_text("a red circle\n\na blue square\n")
    subset(dataset.url, SubsetConfig(name="any", queries=str(tmp_path / "texts"), nearest=3))
    searcher = Searcher(dataset.url)
    wanted = [set(searcher.search(t, k=3)["key"]) for t in ("a red circle", "a blue square")]
    assert kept(dataset, "any") == wanted[0] | wanted[1]


def test_a_threshold_on_the_match_cuts(dataset):
    hits = Searcher(dataset.url).search("a red circle", k=ROWS)
    least = float(np.sort(hits["match"])[-4])
    settings = {"query": "a red circle", "match_above": least - 1e-6}
    subset(dataset.url, SubsetConfig(name="near", **settings))
    assert len(kept(dataset, "near")) == 4
    with pytest.raises(InputError, match="nothing is left"):
        subset(dataset.url, SubsetConfig(name="none", query="a red circle", match_above=1))


def test_an_index_older_than_the_embeddings_is_refused(tmp_path):
    made = SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata()
    settings = {"query": "a red circle", "nearest": 100}
    for shards in (["00000", "00001"], ["00002"]):
        made.write_shards(only=shards)
        embed(made.url, EmbedConfig(model="tiny"), runner=Runner(workers=1, device="cpu"))
        if shards == ["00002"]:
            with pytest.raises(InputError, match="tiny does not hold 1 of 3 shards as they are"):
                subset(made.url, SubsetConfig(name="red", **settings))
        index(made.url, IndexConfig())
    assert subset(made.url, SubsetConfig(name="red", **settings)).counts.ok == ROWS
