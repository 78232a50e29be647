"""What a dry run counts: the same by numpy and by SQL, and the same as another threshold would."""

import pytest

from laionkit.stages.subset import SubsetConfig, subset, what_if
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 40
LOST = {3: "http_not_found", 12: "timeout", 24: "timeout"}
SCORES = {
    i: None if i == 5 else float("nan") if i == 6 else 5.1 if i == 7 else i / 8
    for i in range(ROWS)
    if i % 9
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SmallDataset:
    made = SmallDataset(tmp_path_factory.mktemp("guess") / "laion", laion_rows(ROWS))
    return made.write_metadata().write_shards(LOST).write_score("aesthetic_v2", SCORES)


def guess(dataset: SmallDataset, where: str, **settings: object):
    config = SubsetConfig.build({"name": "x", "where": where, "dry_run": True, **settings}, "x")
    return subset(dataset.url, config)


@pytest.mark.parametrize("keep_nulls", [False, True])
@pytest.mark.parametrize(
    "where",
    [
        "aesthetic_v2 >= 2",
        "aesthetic_v2 > 5.1",
        "aesthetic_v2 <= 5.1 AND punsafe < 0.5",
        "punsafe < 0.5 AND aesthetic_v2 >= 1.5 AND original_width >= 300 AND width > 31.5",
        "aesthetic_v2 >= 99",
    ],
)
def test_numpy_counts_what_sql_counts(dataset, monkeypatch, where, keep_nulls):
    fast = guess(dataset, where, keep_nulls=keep_nulls)
    by_sql = guess(dataset, f"{where} AND length(caption) > 0", keep_nulls=keep_nulls)
    assert fast.counts == by_sql.counts
    assert fast.extra["thresholds"] == by_sql.extra["thresholds"]
    assert fast.extra["funnel"] == by_sql.extra["funnel"][:-1]
    assert fast.counts.seen == ROWS
    monkeypatch.setattr(what_if, "_count_by_sql", None)
    assert guess(dataset, where, keep_nulls=keep_nulls).counts == fast.counts


@pytest.mark.parametrize("keep_nulls", [False, True])
@pytest.mark.parametrize("sign", [">=", ">", "<", "<="])
def test_a_threshold_keeps_what_the_guess_says(dataset, sign, keep_nulls):
    other = "punsafe < 0.7"
    found = guess(dataset, f"aesthetic_v2 {sign} 2 AND {other}", keep_nulls=keep_nulls)
    points = found.extra["thresholds"][f"aesthetic_v2 {sign} 2"]
    assert len(points) == 20
    for number, count in (*points[::6], points[-1]):
        again = guess(dataset, f"aesthetic_v2 {sign} {number} AND {other}", keep_nulls=keep_nulls)
        assert again.counts.ok == count


def test_links_not_tried_are_counted_too(tmp_path):
    half = SmallDataset(tmp_path / "half", laion_rows(ROWS)).write_metadata()
    half.write_shards(LOST, only=["00000", "00001"])
    found = guess(half, "punsafe < 0.5")
    assert found.counts.reasons["not_fetched"] == 20
    assert found.counts.seen == ROWS
