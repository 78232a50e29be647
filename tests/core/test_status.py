"""A dataset's state, told from records: each sample once, time at work, narrow screens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.errors import InputError
from laionkit.core.files import Folder
from laionkit.core.progress import Counts
from laionkit.core.records import Clock, ShardRecord, StageMade, StageRecords
from laionkit.core.status import status


def record(shard: str, seconds: float, finished_at: str, **extra: object) -> ShardRecord:
    return ShardRecord(
        shard=shard,
        fingerprint="",
        counts=Counts.of(8, {"timeout": 2}),
        seconds=seconds,
        finished_at=f"2026-01-01T{finished_at}Z",
        extra=extra,
    )


@pytest.fixture
def dataset(tmp_path):
    for stage, records in {
        "fetch": [
            record("00000", 60, "00:01:00", worst_hosts={"a": 2}),
            record("00001", 60, "00:01:30", worst_hosts={"a": 1, "b": 1}),
            record("00002", 60, "09:00:00", tried=4, healed_from={"timeout": 1}),
        ],
        "score/taste": [record("00000", 0.5, "00:00:30")],
    }.items():
        kept = StageRecords(Folder(tmp_path), stage)
        made = StageMade(stage=stage, format_version=1, config={})
        kept.folder.write_json("_stage.json", made.model_dump(mode="json"))
        for each in records:
            kept.commit(each)
    return tmp_path


def test_stages_come_as_they_were_first_finished_and_samples_count_once(dataset):
    score, fetch = status(str(dataset))
    assert (score.stage, fetch.stage) == ("score/taste", "fetch")
    assert fetch.counts == Counts.of(24, {"timeout": 5})
    assert (fetch.shards, fetch.tried_again, fetch.healed) == (3, 4, 1)
    assert fetch.worst_hosts == {"a": 3, "b": 1}
    assert fetch.last == "2026-01-01T09:00:00Z"


def test_shards_done_side_by_side_count_once_and_pauses_not_at_all(dataset):
    _, fetch = status(str(dataset))
    assert fetch.seconds == 90 + 60


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 59))))
def test_time_at_work_is_that_of_the_seconds_covered(spans):
    clock = Clock()
    for seconds, end in spans:
        clock.add(record("00000", seconds, f"00:01:{end:02d}"))
    covered = {s for seconds, end in spans for s in range(60 + end - seconds, 60 + end)}
    assert clock.seconds() == len(covered)


def test_what_holds_no_dataset_says_how_to_begin_one(tmp_path):
    with pytest.raises(InputError, match="laionkit metadata begins one"):
        status(str(tmp_path))


@pytest.mark.parametrize(("columns", "left_out"), [(65, ""), (64, "shards"), (50, "last (UTC)")])
def test_a_narrow_screen_leaves_columns_out_and_says_so(
    dataset, laionkit, monkeypatch, columns, left_out
):
    monkeypatch.setattr("laionkit.cli.show.console.width", columns)
    shown = laionkit("status", dataset).out
    rows = [line for line in shown.splitlines() if line.startswith((" stage", " score/taste"))]
    assert all("time" in row or "0.5 s" in row for row in rows[:2])
    assert max(map(len, rows)) <= columns
    assert (f"{left_out} (--json has all)" in shown) == bool(left_out)
