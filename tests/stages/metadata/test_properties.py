"""What holds for any rows: the order of steps, sums, and that every way of reading agrees."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laionkit.core.runner import StageReport
from laionkit.stages.metadata import MetadataConfig, metadata

SETTINGS = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHERE = "score >= 3 AND punsafe < 0.5"
ROW = st.fixed_dictionaries({
    "url": st.sampled_from([f"http://h{i % 3}.example/{i}" for i in range(9)] + [None, "", "x y"]),
    "text": st.sampled_from(["a", "b", None]),
    "score": st.one_of(st.none(), st.integers(0, 9)),
    "punsafe": st.one_of(st.none(), st.sampled_from([0.0, 0.4, 0.9, float("nan")])),
})  # fmt: skip
ROWS = st.lists(ROW, min_size=1, max_size=50)
TYPES = pa.schema(
    [("url", pa.string()), ("text", pa.string()), ("score", pa.int64()), ("punsafe", pa.float64())]
)


def reason(row: dict[str, Any]) -> str:
    """The first step that a row fails, in the order that the settings state."""
    if row["score"] is not None and row["score"] < 3:
        return "score >= 3"
    if row["punsafe"] is None or row["punsafe"] != row["punsafe"]:
        return "null:punsafe"
    if row["punsafe"] >= 0.5:
        return "punsafe < 0.5"
    if not row["url"]:
        return "missing_url"
    if "://" not in row["url"]:
        return "malformed_url"
    return "blocklisted" if "h2.example" in row["url"] else ""


def expect(rows: list[dict[str, Any]], limit: int) -> list[str]:
    """One reason a row; empty for those kept."""
    found = [reason(row) for row in rows]
    seen: set[str] = set()
    kept = 0
    for i, row in enumerate(rows):
        if found[i]:
            continue
        if row["url"] in seen:
            found[i] = "duplicate"
            continue
        seen.add(row["url"])
        kept += 1
        found[i] = "over_limit" if kept > limit else ""
    return found


def run(path: Path, dataset: Path, **chosen: Any) -> StageReport:
    config = MetadataConfig.build({"shard_size": 10, **chosen}, "metadata")
    return metadata([str(path)], str(dataset), config)


def kept(dataset: Path) -> pa.Table:
    parts = sorted((dataset / "metadata").glob("part-*.parquet"))
    return pa.concat_tables([pq.read_table(part) for part in parts])


def ledger(dataset: Path) -> list[tuple[int, str, str | None, str | None]]:
    rows = pq.read_table(dataset / "metadata/dropped.parquet").to_pylist()
    return sorted((r["row"], r["reason"], r["url"], r["value"]) for r in rows)


@SETTINGS
@given(rows=ROWS, limit=st.integers(1, 8))
def test_each_row_fails_the_first_step_of_the_stated_order(tmp_path_factory, rows, limit):
    folder = tmp_path_factory.mktemp("order")
    pq.write_table(pa.Table.from_pylist(rows, TYPES), folder / "links.parquet")
    (folder / "block.txt").write_text("h2.example\n")
    report = run(
        folder / "links.parquet", folder / "d", where=WHERE, dedup="url", limit=limit,
        blocklist=[str(folder / "block.txt")],
    )  # fmt: skip
    expected = expect(rows, limit)
    found = {row: why for row, why, _, _ in ledger(folder / "d")}
    assert [found.get(i, "") for i in range(len(rows))] == expected
    assert kept(folder / "d")["url"].to_pylist() == [
        row["url"] for row, why in zip(rows, expected, strict=True) if not why
    ]
    counts = {why: expected.count(why) for why in set(expected) - {""}}
    assert report.counts.reasons == counts
    assert report.counts.seen == len(rows) == report.counts.ok + sum(counts.values())


@SETTINGS
@given(rows=ROWS, dedup=st.sampled_from(["none", "url"]), shuffle=st.booleans(),
       null=st.sampled_from(["auto", "keep", "drop"]))  # fmt: skip
def test_every_way_of_reading_gives_the_same(tmp_path_factory, rows, dedup, shuffle, null):
    """Scanned by the engine, batch by batch through arrow, from JSON lines; with counts alone."""
    folder = tmp_path_factory.mktemp("ways")
    table = pa.Table.from_pylist(rows, TYPES)
    pq.write_table(table, folder / "scan.parquet", row_group_size=7)
    odd = table.set_column(0, "url", table["url"].dictionary_encode())
    pq.write_table(odd, folder / "batch.parquet")
    lines = [json.dumps(row).replace("NaN", "null") for row in rows]
    (folder / "lines.jsonl").write_text("\n".join(lines))
    chosen = {"where": WHERE, "dedup": dedup, "shuffle": shuffle, "null": null, "sample": 0.8}
    whole = run(folder / "scan.parquet", folder / "scan", **chosen)
    for name in ("batch.parquet", "lines.jsonl"):
        if name == "lines.jsonl" and any(all(r[k] is None for r in rows) for k in TYPES.names):
            continue  # JSON lines tell no type of a column of nulls
        report = run(folder / name, folder / name.partition(".")[0], **chosen)
        assert report.counts == whole.counts
        same = kept(folder / name.partition(".")[0])
        shown = [[v if v == v else None for v in c] for c in same.to_pydict().values()]
        wanted = kept(folder / "scan").select(same.column_names).to_pydict().values()
        assert shown == [[v if v == v else None for v in c] for c in wanted]
        assert ledger(folder / name.partition(".")[0]) == ledger(folder / "scan")
    counted = run(folder / "scan.parquet", folder / "counts", ledger="counts", **chosen)
    assert counted.counts == whole.counts
    assert kept(folder / "counts").equals(kept(folder / "scan"))
