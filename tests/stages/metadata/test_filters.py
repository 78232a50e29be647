"""metadata's filters: order, nulls, lists, duplicates, limits, shuffles, joins, appends."""

import collections
import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.records import ShardRecord, StageRecords
from laionkit.core.runner import StageReport
from laionkit.core.schemas import SHARD_RECORDS
from laionkit.core.worklist import WorkList
from laionkit.stages.metadata import MetadataConfig, metadata


def source(folder: Path, rows: list[dict[str, Any]], name: str = "links.parquet") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({n: pa.array([row.get(n) for row in rows]) for n in names})
    pq.write_table(table, folder / name)
    return folder / name


def make(path: Path, dataset: Path, **chosen: Any) -> StageReport:
    config = MetadataConfig.build({"shard_size": 10, **chosen}, "metadata")
    return metadata([str(path)], str(dataset), config)


def urls(dataset: Path) -> list[str]:
    return column(dataset, "url")


def column(dataset: Path, name: str) -> list[Any]:
    with WorkList.open(Folder(dataset)) as work:
        return [v for s in work.shards() for v in work.read(s, [name])[name].to_pylist()]


def ledger(dataset: Path, name: str = "dropped") -> list[tuple[int, str, str | None]]:
    rows = pq.read_table(dataset / f"metadata/{name}.parquet").to_pylist()
    return [(row["row"], row["reason"], row["value"]) for row in rows]


def link(i: int, **more: Any) -> dict[str, Any]:
    return {"url": f"http://h{i % 3}.example/{i}.jpg", "text": f"picture {i}", **more}


def test_each_and_term_is_a_reason_with_the_value_seen(tmp_path):
    rows = [
        link(0, similarity=0.2, punsafe=0.9),
        link(1, similarity=0.4, punsafe=0.9),
        link(2, similarity=0.4, punsafe=0.1),
        link(3, similarity=0.4, punsafe=None),
        link(4, similarity=None, punsafe=0.1),
        link(5, similarity=0.4, punsafe=float("nan")),
        {"url": "no link", "text": "", "similarity": 0.4, "punsafe": 0.1},
    ]
    where = "similarity >= 0.3 AND punsafe < 0.5"
    report = make(source(tmp_path, rows), tmp_path / "d", where=where)
    assert urls(tmp_path / "d") == [rows[2]["url"], rows[4]["url"]]
    assert ledger(tmp_path / "d") == [
        (0, "similarity >= 0.3", "0.2"),
        (1, "punsafe < 0.5", "0.9"),
        (3, "null:punsafe", None),
        (5, "null:punsafe", None),
        (6, "malformed_url", None),
    ]
    assert report.counts.adds_up()
    assert any("similarity is null in 1 rows" in note for note in report.notes)


@pytest.mark.parametrize(("null", "kept"), [("auto", 1), ("keep", 3), ("drop", 0)])
def test_the_null_policy_is_explicit(tmp_path, null, kept):
    rows = [link(0, punsafe=None, score=1.0), link(1, punsafe=0.1, score=None), link(2)]
    report = make(
        source(tmp_path, rows), tmp_path / "d", where="punsafe < 0.5 AND score > 0", null=null
    )
    assert report.counts.ok == kept
    assert report.counts.adds_up()


@pytest.mark.parametrize("ledger", ["full", "counts"])
@pytest.mark.parametrize("odd", [float("nan"), None, 0.0])
def test_a_row_kept_with_a_null_stands_where_statistics_rule_the_filter_out(tmp_path, odd, ledger):
    """Statistics leave NaN and null out: by them, no row of the second group is above 3."""
    scores = [4.0, 1.0, 1.0, odd, 5.0, -3.0]
    rows = [link(i, score=s, punsafe=0.1, n=i) for i, s in enumerate(scores)]
    path = source(tmp_path, rows)
    pq.write_table(pq.read_table(path), path, row_group_size=2)
    where = "score > 3 AND score < 9 AND punsafe < 0.5"
    report = make(path, tmp_path / "d", where=where, ledger=ledger)
    assert column(tmp_path / "d", "n") == ([0, 4] if odd == 0.0 else [0, 3, 4])
    assert report.counts.adds_up()
    assert report.counts.seen == len(rows)
    assert any("is null in 1 rows" in note for note in report.notes) == (odd != 0.0)


def test_a_preset_goes_before_where_over_published_columns(tmp_path):
    rows = [
        link(i, WIDTH=600.0, HEIGHT=600.0, pwatermark=0.1, AESTHETIC_SCORE=4.0 + i, hash=i,
             similarity=0.3, punsafe=0.0)
        for i in range(4)
    ]  # fmt: skip
    report = make(source(tmp_path, rows), tmp_path / "d", preset="sd-v1", where="hash <> 3")
    assert urls(tmp_path / "d") == [rows[2]["url"]]
    assert report.counts.reasons == {"aesthetic_v2_published > 5": 2, "hash <> 3": 1}
    with pytest.raises(ConfigError, match="needs a column nsfw_l14 or punsafe"):
        make(source(tmp_path, [link(1)]), tmp_path / "e", preset="relaion-safe")


def test_the_best_share_of_a_preset_is_taken_over_all_rows(tmp_path):
    rows = [link(i, similarity=i / 10) for i in range(10)]
    report = make(source(tmp_path, rows), tmp_path / "d", preset="clip-top-30")
    assert urls(tmp_path / "d") == [rows[i]["url"] for i in (7, 8, 9)]
    assert report.counts.reasons == {"top 30 % by similarity": 7}


@pytest.mark.parametrize(
    "where",
    [
        "url IN (SELECT 1)", "read_csv('/etc/passwd') IS NULL", "1=1; DROP TABLE x",
        "duckdb_settings() IS NULL", "random() < 0.5", "true -- a comment", "nothing > 1",
        "(" * 60 + "true" + ")" * 60, "getenv('HOME') = ''", "count(*) > 1", "caption",
    ],
)  # fmt: skip
def test_a_hostile_or_wrong_where_is_refused_before_any_work(tmp_path, where):
    with pytest.raises(ConfigError) as caught:
        make(source(tmp_path, [link(1)]), tmp_path / "d", where=where)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_rows_without_links_have_no_hash_to_be_told_apart_by(tmp_path):
    path = source(tmp_path, [{"path": "/a.jpg", "text": "a b"}] * 2)
    with pytest.raises(ConfigError, match=r"--dedup hash: .* give --dedup url"):
        make(path, tmp_path / "d", dedup="hash")
    assert make(path, tmp_path / "d", dedup="url").counts.ok == 1


def test_a_conversion_that_fails_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="where"):
        make(source(tmp_path, [link(1)]), tmp_path / "d", where="CAST(caption AS INT) > 1")
    assert not (tmp_path / "d/metadata").exists()


def test_lists_block_domains_with_subdomains_links_hashes_and_contents(tmp_path):
    digest = hashlib.md5(b"bytes").hexdigest()
    rows = [
        {"url": "http://a.bad.example/1", "text": "", "md5": None},
        {"url": "http://notbad.example/2", "text": "", "md5": None},
        {"url": "http://u:p@BAD.example:80/3", "text": "", "md5": None},
        {"url": "http://fine.example/4", "text": "", "md5": None},
        {"url": "http://fine.example/5", "text": "", "md5": digest},
        {"url": "http://fine.example/6", "text": "six", "md5": None},
    ]
    hash_6 = column_of_hashes(tmp_path, rows)[5]
    (tmp_path / "block.txt").write_text(f"# a list\nbad.example\n{digest.upper()}\n{hash_6}\n")
    (tmp_path / "out.csv").write_text("url\nhttp://fine.example/4\n")
    report = make(
        source(tmp_path, rows), tmp_path / "d",
        blocklist=[str(tmp_path / "block.txt")], optout=[str(tmp_path / "out.csv")],
    )  # fmt: skip
    assert urls(tmp_path / "d") == ["http://notbad.example/2"]
    assert report.counts.reasons == {"blocklisted": 4, "opt_out_list": 1}
    assert (0, "blocklisted", "bad.example") in ledger(tmp_path / "d")
    (tmp_path / "block.txt").write_text("what is this\n")
    with pytest.raises(InputError, match="is no domain, link"):
        make(source(tmp_path, rows), tmp_path / "e", blocklist=[str(tmp_path / "block.txt")])


def column_of_hashes(folder: Path, rows: list[dict[str, Any]]) -> list[int]:
    make(source(folder, rows), folder / "hashes")
    return column(folder / "hashes", "hash")


@pytest.mark.parametrize("flag", ["blocklist", "optout", "join"])
def test_a_list_that_changed_is_not_passed_over(tmp_path, flag):
    path = source(tmp_path, [link(i) for i in range(4)])
    beside = tmp_path / "beside.csv"
    beside.write_text("url,told\nhttp://h1.example/1.jpg,1\n")
    chosen = {"on": "url", flag: str(beside)} if flag == "join" else {flag: [str(beside)]}
    first = make(path, tmp_path / "d", **chosen)
    assert make(path, tmp_path / "d", **chosen).skipped == first.shards
    beside.write_text("url,told\nhttp://h2.example/2.jpg,1\n")
    with pytest.raises(StaleOutput, match=r"beside\.csv has changed since .* --fresh"):
        make(path, tmp_path / "d", **chosen)


def test_links_can_be_stored_in_one_spelling(tmp_path):
    rows = [{"url": u, "text": ""} for u in (
        "HTTP://Example.COM:80/A?q=B#part", "https://example.com:443", "http://example.com:8080/x",
    )]  # fmt: skip
    make(source(tmp_path, rows), tmp_path / "d", normalize_urls=True)
    assert urls(tmp_path / "d") == [
        "http://example.com/A?q=B", "https://example.com/", "http://example.com:8080/x",
    ]  # fmt: skip


ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(["a", "b", None]), st.integers(0, 9)),
    min_size=1, max_size=60,
)  # fmt: skip
FAST = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


def table_of(drawn: list[tuple[int, str | None, int]]) -> list[dict[str, Any]]:
    return [
        {"url": f"http://h{u % 2}.example/{u}", "text": t, "score": s, "n": i, "hash": u * 3 - 9}
        for i, (u, t, s) in enumerate(drawn)
    ]


@FAST
@given(drawn=ROWS, kind=st.sampled_from(["url", "url+caption", "hash"]), shuffle=st.booleans())
def test_dedup_keeps_the_first_of_each_and_counts_sum(tmp_path_factory, drawn, kind, shuffle):
    folder, rows = tmp_path_factory.mktemp("dedup"), table_of(drawn)
    report = make(
        source(folder, rows), folder / "d", dedup=kind, where="score > 2", shuffle=shuffle
    )
    names = {
        "url": lambda r: r["url"],
        "url+caption": lambda r: (r["url"], r["text"] or ""),
        "hash": lambda r: r["hash"],
    }
    seen: dict[Any, int] = {}
    for row in rows:
        if row["score"] > 2:
            seen.setdefault(names[kind](row), row["n"])
    found = column(folder / "d", "n")
    assert sorted(found) == sorted(seen.values())
    assert shuffle or found == sorted(found)
    assert report.counts.adds_up()
    assert report.counts.seen == len(rows)
    assert len(ledger(folder / "d")) == len(rows) - len(found)


@FAST
@given(drawn=ROWS, limit=st.integers(1, 30), dedup=st.sampled_from(["none", "url"]))
def test_a_limit_keeps_the_first_rows_of_what_no_limit_keeps(tmp_path_factory, drawn, limit, dedup):
    folder, rows = tmp_path_factory.mktemp("limit"), table_of(drawn)
    path = source(folder, rows)
    make(path, folder / "all", dedup=dedup, where="score > 2")
    report = make(path, folder / "d", dedup=dedup, where="score > 2", limit=limit)
    assert column(folder / "d", "n") == column(folder / "all", "n")[:limit]
    assert report.counts.adds_up()


@pytest.mark.parametrize("sources", [1, 2])
def test_a_limit_says_what_was_not_read_and_nothing_where_all_was(tmp_path, sources):
    path = source(tmp_path, [link(i) for i in range(9)])
    more = [str(source(tmp_path, [link(9)], "more.parquet"))] * (sources - 1)
    config = MetadataConfig.build({"limit": 5}, "metadata")
    report = metadata([str(path), *more], str(tmp_path / "d"), config)
    assert report.counts.reasons == {"over_limit": 4}
    told = f"limit reached: nothing after row 8 of {path} was read"
    assert report.notes[-1:] == ((told,) if more else ())


def test_a_shuffle_is_a_seeded_permutation_that_spreads_hosts(tmp_path):
    rows = [{"url": f"http://h{i // 100}.example/{i}", "text": "", "n": i} for i in range(600)]
    path = source(tmp_path, rows)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make(path, tmp_path / name, shuffle=True, seed=seed, shard_size=100)
    a, b, c = (column(tmp_path / name, "n") for name in "abc")
    assert sorted(a) == list(range(600))
    assert a == b != c
    for start in range(0, 600, 60):
        hosts = collections.Counter(n // 100 for n in a[start : start + 60])
        assert max(hosts.values()) <= 13  # 10 each, were the spread perfect


def test_a_shuffle_goes_past_rows_of_which_none_is_kept(tmp_path):
    path = source(tmp_path, [link(0)] * 3)
    first = make(path, tmp_path / "d", shuffle=True, dedup="url")
    assert (first.counts.ok, first.counts.reasons) == (1, {"duplicate": 2})
    again = source(tmp_path / "again", [link(0)])
    make(again, tmp_path / "d", shuffle=True, dedup="url", append=True)
    assert urls(tmp_path / "d") == [link(0)["url"]]


def test_a_sample_is_the_same_links_whatever_their_order(tmp_path):
    rows = [link(i) for i in range(400)]
    make(source(tmp_path, rows), tmp_path / "a", sample=0.3)
    make(source(tmp_path / "r", rows[::-1]), tmp_path / "b", sample=0.3)
    make(source(tmp_path, rows), tmp_path / "c", sample=0.3, seed=1)
    assert set(urls(tmp_path / "a")) == set(urls(tmp_path / "b")) != set(urls(tmp_path / "c"))
    assert 80 < len(urls(tmp_path / "a")) < 160


def test_a_join_adds_columns_that_filters_can_ask(tmp_path):
    rows = [link(i, uid=f"{i:032x}") for i in range(4)]
    other = [{"UID": f"{i:032x}", "score": i, "text": "new"} for i in (1, 2, 3, 3)]
    joined = source(tmp_path, other, "scores.parquet")
    report = make(
        source(tmp_path, rows), tmp_path / "d", join=str(joined), on="uid", where="score >= 2"
    )
    assert column(tmp_path / "d", "score") == [None, 2, 3]
    assert column(tmp_path / "d", "text") == [None, "new", "new"]
    assert any("3 rows matched by uid" in note for note in report.notes)
    with pytest.raises(ConfigError, match=r"--on hash: .* has no such column"):
        make(source(tmp_path, rows), tmp_path / "e", join=str(joined))


def test_append_adds_new_shards_without_what_is_there(tmp_path):
    first, second = [link(i) for i in range(12)], [link(i) for i in range(8, 25)]
    make(source(tmp_path / "1", first), tmp_path / "d")
    with pytest.raises(StaleOutput, match=r"Add it as new shards: --append"):
        make(source(tmp_path / "2", second), tmp_path / "d")
    before = (tmp_path / "d/metadata/part-00000.parquet").read_bytes()
    report = make(source(tmp_path / "2", second), tmp_path / "d", append=True)
    assert urls(tmp_path / "d") == [link(i)["url"] for i in range(25)]
    assert (tmp_path / "d/metadata/part-00000.parquet").read_bytes() == before
    assert report.counts.reasons == {"duplicate": 4}
    work = WorkList.open(Folder(tmp_path / "d"))
    assert [work.rows(s) for s in work.shards()] == [10, 2, 10, 3]
    assert column(tmp_path / "d", "key")[12] == "000020"
    assert len(ledger(tmp_path / "d", "dropped-00001")) == 4
    assert make(source(tmp_path / "2", second), tmp_path / "d", append=True).skipped == 4


def test_append_leaves_the_numbers_of_healed_shards_alone(tmp_path):
    make(source(tmp_path / "1", [link(i) for i in range(12)]), tmp_path / "d")
    healed = StageRecords(Folder(tmp_path / "d"), SHARD_RECORDS)
    healed.commit(ShardRecord(shard="00002", fingerprint=""))
    more = source(tmp_path / "2", [link(i) for i in range(12, 15)])
    make(more, tmp_path / "d", append=True)
    assert WorkList.open(Folder(tmp_path / "d")).shards() == ["00000", "00001", "00003"]


def test_keys_can_be_kept(tmp_path):
    rows = [link(i, key=f"k{9 - i}") for i in range(5)]
    make(source(tmp_path, rows), tmp_path / "d", keep_keys="key")
    assert column(tmp_path / "d", "key") == ["k5", "k6", "k7", "k8", "k9"]
    assert column(tmp_path / "d", "url")[0] == rows[4]["url"]
    for bad, message in (("a.b", "without dots"), ("k9", "key 'k9' stands twice")):
        rows[1]["key"] = bad
        with pytest.raises(InputError, match=message):
            make(source(tmp_path, rows), tmp_path / "e", keep_keys="key")
        assert not (tmp_path / "e/metadata/part-00000.parquet").exists()
    with pytest.raises(ConfigError, match="did you mean key"):
        make(source(tmp_path, rows), tmp_path / "e", keep_keys="kex")


def test_counts_alone_are_those_of_the_full_ledger(tmp_path):
    rows = [link(i, score=i % 7) for i in range(50)]
    chosen = {"where": "score > 2 AND score < 6", "dedup": "url", "sample": 0.8}
    full = make(source(tmp_path, rows), tmp_path / "a", **chosen)
    counts = make(source(tmp_path, rows), tmp_path / "b", ledger="counts", **chosen)
    assert full.counts == counts.counts
    assert urls(tmp_path / "a") == urls(tmp_path / "b")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_columns_of_any_name_are_carried_through(tmp_path, form):
    names = ["code", "value", "kind", "place", "ordinal", "k", "host", "batch", "looked", "Row",
             "file_row_number", "_laionkit_code", "rowid", "select", 'a"b', "ä b"]  # fmt: skip
    rows = [link(i, score=i / 10, **{name: i for name in names}) for i in range(6)]
    path = source(tmp_path, rows)
    if form == "csv":
        path = tmp_path / "links.csv"
        pacsv.write_csv(pq.read_table(tmp_path / "links.parquet"), path)
    (tmp_path / "block.txt").write_text("h2.example\n")
    chosen = {"where": "score < 0.45", "dedup": "url", "shuffle": True}
    for i, more in enumerate(({}, {"blocklist": [str(tmp_path / "block.txt")]})):
        make(path, tmp_path / f"d{i}", **chosen, **more)
        kept = [0, 1, 3, 4] if more else [0, 1, 2, 3, 4]
        for name in names:
            ours = f"src_{name}" if name.startswith("_laionkit_") else name
            assert sorted(column(tmp_path / f"d{i}", ours)) == kept, name


def test_columns_of_odd_types_are_carried_through(tmp_path):
    kinds = {
        "half": (pa.float16(), np.float16(1.5), 1.5),
        "halves": (pa.list_(pa.float16()), [1.5], [1.5]),
        "wide": (pa.decimal256(60, 2), Decimal(10**40), f"{10**40}.00"),
        "money": (pa.decimal256(30, 2), Decimal("1.5"), Decimal("1.50")),
        "large": (pa.large_list(pa.large_string()), ["x"], ["x"]),
        "told": (pa.struct([("a", pa.float16())]), {"a": 1.5}, {"a": 1.5}),
        "pairs": (pa.map_(pa.string(), pa.float16()), [("a", 1.5)], [("a", 1.5)]),
        "json": (pa.json_(), "{}", "{}"),
        "": (pa.int64(), 7, 7),
    }
    columns = {"url": pa.array(["https://a.example/1"]), "score": pa.array([1.0])}
    for name, (kind, value, _) in kinds.items():
        columns[name] = pa.array([value], kind)
    pq.write_table(pa.table(columns), tmp_path / "odd.parquet")
    (tmp_path / "more.csv").write_text("url,score\nhttps://a.example/2,2\n")
    sources = [str(tmp_path / "odd.parquet"), str(tmp_path / "more.csv")]
    config = MetadataConfig(where="score > 0.5 AND half < 2", dedup="url", shuffle=True)
    metadata(sources, str(tmp_path / "d"), config)
    for name, (_, _, stored) in kinds.items():
        found = column(tmp_path / "d", name or f"column_{len(columns)}")
        assert [value for value in found if value is not None] == [stored], name
