"""The dataset as one relation: which rows, which columns, which attempt, and its limits."""

import json

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.columns import ColumnInfo
from laionkit.core.errors import ConfigError, InputError
from laionkit.core.progress import Counts
from laionkit.core.table import DatasetTable, columns, table
from tests.small_dataset import SmallDataset, laion_rows

ROWS = 25
LOST = {3: "http_not_found", 12: "timeout", 24: "timeout"}


@pytest.fixture
def links(tmp_path) -> SmallDataset:
    return SmallDataset(tmp_path / "links", laion_rows(ROWS)).write_metadata()


@pytest.fixture
def fetched(links) -> SmallDataset:
    return links.write_shards(LOST)


def rows_of(dataset: SmallDataset, sql: str) -> list[tuple]:
    relation = table(dataset.url)
    return relation.query("d", sql).fetchall()


def test_links_alone_are_a_relation(links):
    assert rows_of(links, "SELECT count(*), min(key), max(key) FROM d") == [
        (ROWS, links.key(0), links.key(24))
    ]
    with DatasetTable(links.url) as opened:
        assert list(opened.columns)[:3] == ["key", "url", "caption"]
        assert opened.origins["punsafe"] == "published"


def test_half_fetched_links_keep_their_rows(links):
    links.write_shards(LOST, only=["00000"])
    found = rows_of(links, "SELECT status, count(*) FROM d GROUP BY 1 ORDER BY 1")
    assert found == [("failed_to_download", 1), ("success", 9), (None, 15)]
    assert rows_of(links, "SELECT DISTINCT shard FROM d ORDER BY 1") == [("00000",), (None,)]


def test_a_fetched_dataset_has_metadata_fetched_and_score_columns(fetched):
    fetched.write_score("aesthetic_v2", {i: i / 4 for i in range(20)}, head="aesthetic-v2")
    with DatasetTable(fetched.url) as opened:
        assert opened.rows == ROWS
        assert {"url", "punsafe", "status", "reason", "original_width", "shard"} <= set(
            opened.columns
        )
        assert opened.columns["aesthetic_v2"] == "FLOAT"
        assert opened.origins["aesthetic_v2"] == "computed: aesthetic-v2"
        assert opened.origins["status"] == "fetched"
    found = rows_of(fetched, "SELECT key, aesthetic_v2 FROM d WHERE aesthetic_v2 >= 4.5")
    assert sorted(found) == [(fetched.key(18), 4.5), (fetched.key(19), 4.75)]


def test_the_latest_attempt_of_a_key_counts(fetched):
    fetched.write_shard("00003", [3, 24], {24: "http_gone"})
    found = rows_of(fetched, "SELECT key, status, reason, shard FROM d WHERE key IN ('000003',"
                    " '000012', '000024') ORDER BY key")  # fmt: skip
    assert [row[1:] for row in found] == [
        ("success", None, "00003"),
        ("failed_to_download", "timeout", "00001"),
        ("failed_to_download", "http_gone", "00003"),
    ]
    assert rows_of(fetched, "SELECT count(*), count(DISTINCT key) FROM d") == [(ROWS, ROWS)]
    fetched.write_shard("00004", [24], {})
    found = rows_of(fetched, "SELECT status, shard FROM d WHERE key = '000024'")
    assert found == [("success", "00004")]


def test_only_the_sources_a_query_needs_are_joined(fetched):
    fetched.write_score("aesthetic_v2", {0: 1.0}).write_score("nsfw_l14", {0: 0.5})
    with DatasetTable(fetched.url) as opened:
        assert "JOIN" not in opened.select(["key", "punsafe", "status"])
        assert opened.select(["key", "aesthetic_v2"]).count("JOIN") == 1
        assert opened.select().count("JOIN") == 2


def test_embeddings_alone_are_a_relation_keyed_by_image_path(tmp_path):
    dataset = SmallDataset(tmp_path / "adopted", laion_rows(ROWS))
    dataset.write_embeddings("clip", np.eye(ROWS, 32, dtype=np.float32), LOST)
    dataset.write_score("aesthetic_v2", {i: 5.0 for i in range(ROWS)}, provenance="declared")
    assert rows_of(dataset, "SELECT count(*), min(key), sum(aesthetic_v2) FROM d") == [
        (22, dataset.key(0), 110.0)
    ]
    with DatasetTable(dataset.url) as opened:
        assert opened.origins["aesthetic_v2"] == "declared"


def test_an_empty_folder_is_no_dataset(tmp_path):
    with pytest.raises(InputError, match="holds no dataset"):
        DatasetTable(str(tmp_path))


def test_columns_list_type_origin_nulls_and_range(fetched):
    fetched.write_score("aesthetic_v2", {i: i / 4 for i in range(20)}, head="aesthetic-v2")
    found = {info.name: info for info in columns(fetched.url)}
    assert found["key"] == ColumnInfo(
        "key", "VARCHAR", "fetched", 0, fetched.key(0), fetched.key(24)
    )
    assert found["aesthetic_v2"] == ColumnInfo(
        "aesthetic_v2", "FLOAT", "computed: aesthetic-v2", 5, 0.0, 4.75
    )
    assert found["punsafe"].nulls == 5
    assert found["reason"].max == "timeout"


def test_columns_that_differ_in_case_alone_stay_apart(tmp_path):
    dataset = SmallDataset(tmp_path / "case", [{"WIDTH": 7.5, "caption": "a"}] * 3)
    dataset.write_shards()
    with DatasetTable(dataset.url) as opened:
        assert {"src_WIDTH", "width"} <= set(opened.columns)
        found = opened.execute(f"SELECT src_WIDTH, width FROM ({opened.select()})").fetchall()
        assert found == [(7.5, 32)] * 3


def test_a_column_that_is_empty_in_one_shard_and_typed_in_the_next_is_one_column(tmp_path):
    rows = [{"caption": "a", "license": None if i < 10 else "cc"} for i in range(12)]
    dataset = SmallDataset(tmp_path / "nulls", rows).write_shards()
    assert rows_of(dataset, "SELECT count(license) FROM d") == [(2,)]


def test_a_guarded_table_opens_no_other_file(fetched, tmp_path):
    other = tmp_path / "other.parquet"
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{other}'")
    with DatasetTable(fetched.url) as opened:
        assert opened.rows == ROWS
        for sql in (
            f"SELECT * FROM '{other}'",
            "SELECT * FROM read_text('/etc/passwd')",
            f"COPY (SELECT 1) TO '{tmp_path / 'written.csv'}'",
            "SET enable_external_access = true",
            "INSTALL httpfs",
        ):
            with pytest.raises((ConfigError, InputError)):
                opened.execute(sql)
    assert not (tmp_path / "written.csv").exists()


def test_a_query_is_stopped_after_its_time(fetched):
    with (
        DatasetTable(fetched.url, timeout_s=0.2) as opened,
        pytest.raises(InputError, match=r"took longer than 0\.2 s"),
    ):
        opened.execute("SELECT count(*) FROM range(100000000000) a(x), range(1000) b(y)")


def test_a_filter_that_is_no_condition_is_refused(fetched):
    with DatasetTable(fetched.url) as opened:
        opened.check("punsafe < 0.5")
        with pytest.raises(ConfigError, match="is no condition: it gives DOUBLE"):
            opened.check("punsafe + 1")
        with pytest.raises(ConfigError, match="filter 'LOWER\\(width\\) = 3'"):
            opened.check("LOWER(width) = 3")


def test_a_file_that_is_gone_is_named(fetched):
    (fetched.path / "shards/00001.parquet").unlink()
    with pytest.raises(InputError, match=r"00001\.parquet"):
        DatasetTable(fetched.url)


def test_a_spilling_query_works_within_its_memory(fetched):
    with DatasetTable(fetched.url, memory_mb=64, threads=1) as opened:
        sql = "SELECT count(*) FROM (SELECT DISTINCT md5(x::VARCHAR) FROM range(500000) r(x))"
        assert opened.execute(sql).fetchone() == (500000,)


def test_batches_come_in_order_and_whole(fetched):
    with DatasetTable(fetched.url) as opened:
        batches = list(opened.batches(f"{opened.select(['key'])} ORDER BY t0.key", 10))
    assert pa.Table.from_batches(batches)["key"].to_pylist() == [
        fetched.key(i) for i in range(ROWS)
    ]


def test_a_row_that_was_asked_for_is_in_no_ones_way(fetched):
    with DatasetTable(fetched.url) as opened:
        assert opened.rows == ROWS
        assert opened.row("SELECT 1, 2") == (1, 2)
        assert sum(batch.num_rows for batch in opened.batches(opened.select(["key"]))) == ROWS
        assert opened.rows == ROWS
        assert opened.arrow(opened.select(["key"])).num_rows == ROWS


def test_the_records_say_what_is_there_not_the_folder(fetched):
    stray = fetched.path / "shards/00009.parquet"
    stray.write_bytes((fetched.path / "shards/00000.parquet").read_bytes())
    assert rows_of(fetched, "SELECT count(*) FROM d") == [(ROWS,)]
    record = json.loads((fetched.path / ".laionkit/fetch/00000.json").read_text())
    assert Counts.model_validate(record["counts"]).ok == 9


def test_nan_is_null_though_a_files_statistics_leave_it_out(tmp_path):
    rows = [
        {**row, "punsafe": float("nan") if i == 1 else 0.1} for i, row in enumerate(laion_rows(3))
    ]
    SmallDataset(tmp_path, rows).write_metadata()
    with DatasetTable(str(tmp_path)) as table:
        for condition in ("punsafe IS NULL", "coalesce(punsafe, 9) > 5"):
            found = table.execute(f"SELECT count(*) FROM dataset WHERE {condition}").fetchall()
            assert found == [(1,)]
        assert table.execute("SELECT count(*) FROM dataset WHERE punsafe > 0.5").fetchall() == [
            (0,)
        ]


def one_pass(dataset: SmallDataset, columns: list[str]) -> list[tuple]:
    with DatasetTable(dataset.url) as table:
        return sorted(table.one_pass(columns, lambda s: table.execute(s).fetchall()))


def joined(dataset: SmallDataset, columns: list[str]) -> list[tuple]:
    with DatasetTable(dataset.url) as table:
        return sorted(table.execute(table.select(columns)).fetchall())


def rewrite_score(dataset: SmallDataset, shard: str, change, **stored) -> None:
    path = dataset.path / f"scores/beside/{shard}.parquet"
    pq.write_table(change(pq.read_table(path)), path, **stored)


@pytest.mark.parametrize(
    "case",
    [
        "all",
        "all, two of them exchanged",
        "all, stored otherwise",
        "some",
        "reversed",
        "of another shard",
        "none of a shard",
    ],
)
def test_one_pass_gives_the_rows_of_the_join_however_scores_lie(tmp_path, case):
    dataset = SmallDataset(tmp_path / "laion", laion_rows(ROWS)).write_metadata()
    dataset.write_shards({3: "timeout"})
    there = range(ROWS) if case.startswith("all") else [i for i in range(ROWS) if i % 4]
    dataset.write_score("beside", {i: float("nan") if i == 7 else i / 8 for i in there})
    if case == "all, two of them exchanged":
        rewrite_score(dataset, "00001", lambda t: t.take([0, 2, 1, *range(3, len(t))]))
    if case == "all, stored otherwise":
        plain = {"use_dictionary": False, "compression": "gzip", "row_group_size": 2}
        rewrite_score(dataset, "00001", lambda t: t, **plain)
    if case == "reversed":
        rewrite_score(dataset, "00001", lambda t: t.take(list(range(len(t)))[::-1]))
    if case == "of another shard":
        other = pq.read_table(dataset.path / "scores/beside/00000.parquet")
        rewrite_score(dataset, "00001", lambda t: pa.concat_tables([t, other.slice(0, 2)]))
        rewrite_score(dataset, "00000", lambda t: t.slice(2))
    if case == "none of a shard":
        (dataset.path / ".laionkit/score/beside/00001.json").unlink()
    columns = ["key", "status", "reason", "punsafe", "shard", "beside"]
    found = one_pass(dataset, columns)
    assert found == joined(dataset, columns)
    assert len(found) == ROWS
    assert sum(row[-1] is not None for row in found) > 5


def test_one_pass_names_the_file_that_is_gone(fetched):
    fetched.write_score("beside", {i: 1.0 for i in range(ROWS)})
    with DatasetTable(fetched.url) as table:
        (fetched.path / "scores/beside/00001.parquet").unlink()
        with pytest.raises(InputError, match=r"beside/00001\.parquet cannot be read"):
            table.one_pass(["key", "beside"], lambda s: table.execute(s).fetchall())


def test_the_ends_of_a_column_are_its_least_and_greatest_value(fetched):
    fetched.write_score("beside", {i: float("nan") if i == 2 else i / 8 for i in range(ROWS)})
    with DatasetTable(fetched.url) as table:
        found = table.ends(["punsafe", "beside", "width"])
        for name, (low, high) in found.items():
            sql = f"SELECT min({name}), max({name}) FROM ({table.select([name])})"
            assert table.execute(sql).fetchone() == (low, high)
        assert set(found) == {"punsafe", "beside", "width"}
