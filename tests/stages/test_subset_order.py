"""subset: many rows are dealt into buckets on disk, and come out as if sorted by the engine."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laionkit.core.runner import Runner
from laionkit.stages.forget import ForgetConfig, forget
from laionkit.stages.subset import SubsetConfig, ordered, subset
from laionkit.stages.subset.manifest import verify
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 150


@pytest.fixture
def dataset(tmp_path) -> SmallDataset:
    made = SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata()
    made.write_shards({3: "timeout", 77: "timeout"})
    scores = {i: None if i == 5 else float("nan") if i == 6 else i / 4 for i in range(ROWS)}
    return made.write_score("aesthetic_v2", scores)


def files_of(dataset: SmallDataset, name: str) -> dict[str, bytes]:
    """What of a subset goes with the order of its rows."""
    folder = dataset.path / f"subsets/{name}"
    found = [*folder.glob("*.tar"), *folder.glob("kept.parquet"), *folder.glob("view.parquet")]
    return {path.name: path.read_bytes() for path in found}


def check_both_ways(dataset: SmallDataset, monkeypatch, **settings: object) -> None:
    """Sorted by the engine and by way of buckets, a subset is the same."""
    common = {"memory_mb": 64, "samples_per_shard": 40, "where": "punsafe < 0.9", **settings}
    subset(dataset.url, SubsetConfig.build({"name": "sorted", **common}, "subset"))
    dealt: list[int] = []
    tables = ordered._Buckets.tables

    def watched(buckets: ordered._Buckets):
        for rows in tables(buckets):
            dealt.append(len(rows))
            yield rows

    with monkeypatch.context() as patch:
        patch.setattr(ordered, "ROWS_PER_MB", 1)
        patch.setattr(ordered, "_DEALT_ROWS", 25)
        patch.setattr(ordered._Buckets, "tables", watched)
        subset(dataset.url, SubsetConfig.build({"name": "dealt", **common}, "subset"))
    kept = pq.read_table(dataset.path / "subsets/dealt/kept.parquet")
    assert len(dealt) > 1
    assert sum(dealt) == len(kept) > 64
    assert files_of(dataset, "dealt") == files_of(dataset, "sorted")
    assert verify(dataset.url, "dealt").ok


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("form", ["shards", "view", "parquet"])
def test_buckets_give_what_one_sort_gives(dataset, monkeypatch, form, seed):
    check_both_ways(dataset, monkeypatch, as_=form, shuffle_seed=seed)


def test_rows_that_must_be_joined_are_dealt_too(dataset, monkeypatch, tmp_path):
    # keys of another shard than the file's name says: files cannot be laid side by side
    one, other = (dataset.path / f"scores/aesthetic_v2/0000{i}.parquet" for i in (1, 2))
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    check_both_ways(dataset, monkeypatch, shuffle_seed=1)


def test_samples_taken_down_are_dealt_into_no_bucket(dataset, monkeypatch):
    (dataset.path / "list.txt").write_text(dataset.key(9))
    forget(dataset.url, ForgetConfig(keys=str(dataset.path / "list.txt")), runner=Runner(yes=True))
    check_both_ways(dataset, monkeypatch)
    kept = pq.read_table(dataset.path / "subsets/dealt/kept.parquet")["key"].to_pylist()
    assert dataset.key(9) not in kept
    assert dataset.key(10) in kept


def test_of_a_sample_tried_again_the_later_row_counts(dataset, monkeypatch):
    dataset.write_shard("00015", [3, 77], {})
    check_both_ways(dataset, monkeypatch, shuffle_seed=2)
    kept = pq.read_table(dataset.path / "subsets/dealt/kept.parquet").select(["key", "shard"])
    assert {"key": dataset.key(3), "shard": "00015"} in kept.to_pylist()


def test_nothing_is_left_on_the_disk(dataset, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spill"))
    Path(tmp_path / "spill").mkdir()
    check_both_ways(dataset, monkeypatch)
    assert not list((tmp_path / "spill").iterdir())
