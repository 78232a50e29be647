"""metadata: sources in, a work list out; malformed rows in the ledger; done is done."""

import gzip
import json
from pathlib import Path

import mmh3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laionkit.core.errors import ConfigError, InputError, StaleOutput
from laionkit.core.files import Folder
from laionkit.core.progress import SamplesDone, StageEnded
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.status import status
from laionkit.core.worklist import WorkList
from laionkit.stages.metadata import MetadataConfig, inspect, metadata

ROWS = [{"url": f"http://pics.example/{i}.jpg", "text": f"picture {i}"} for i in range(25)]


def make(source: object, dataset: Path, **settings: object) -> StageReport:
    config = MetadataConfig.build({"shard_size": 10, **settings}, "metadata")
    return metadata([str(source)], str(dataset), config)


def kept(dataset: Path) -> pa.Table:
    with WorkList.open(Folder(dataset)) as work:
        return pa.concat_tables([work.read(shard) for shard in work.shards()])


def dropped(dataset: Path) -> list[dict]:
    return pq.read_table(dataset / "metadata/dropped.parquet").to_pylist()


def write(folder: Path, form: str, rows: list[dict] = ROWS) -> Path:
    """The same rows in each format laionkit reads."""
    path = folder / f"links.{form}"
    kind = form.partition(".")[0]
    lines = {
        "csv": lambda: ["url,text", *(f'{r["url"]},"{r["text"]}"' for r in rows)],
        "tsv": lambda: [f"{r['text']}\t{r['url']}" for r in rows],
        "jsonl": lambda: [json.dumps(r) for r in rows],
        "txt": lambda: [r["url"] for r in rows],
        "parquet": list,
    }[kind]()
    data = ("\n".join(lines) + "\n").encode()
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        data = sink.getvalue().to_pybytes()
    if form.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    if form.endswith(".zst"):
        data = bytes(pa.Codec("zstd").compress(data))
    path.write_bytes(data)
    return path


FORMS = [
    f"{kind}{packed}"
    for kind in ("parquet", "csv", "tsv", "jsonl", "txt")
    for packed in ("", ".gz", ".zst")
]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_gives_the_same_rows_and_keys(tmp_path, form):
    report = make(write(tmp_path, form), tmp_path / "d")
    table = kept(tmp_path / "d")
    assert report.counts.seen == report.counts.ok == table.num_rows == 25
    assert table["url"].to_pylist() == [row["url"] for row in ROWS]
    assert table["key"][0].as_py() == "000000"
    assert table["key"][-1].as_py() == "000024"
    if not form.startswith("txt"):
        assert table["caption"].to_pylist() == [row["text"] for row in ROWS]
        assert table["hash"][3].as_py() == mmh3.hash64(ROWS[3]["url"] + ROWS[3]["text"])[0]


def test_the_work_list_has_a_row_group_a_shard(tmp_path):
    make(write(tmp_path, "parquet"), tmp_path / "d")
    work = WorkList.open(Folder(tmp_path / "d"))
    assert work.shards() == ["00000", "00001", "00002"]
    assert [work.rows(s) for s in work.shards()] == [10, 10, 5]
    assert work.scheme.key(2, 4) == "000024"
    assert work.read("00001", ["url", "nothing"]).column_names == ["url"]
    assert len({work.content(s) for s in work.shards()}) == 3
    work.close()
    with pytest.raises(InputError, match="no shard 00009"):
        work.read("00009")


def test_the_parts_of_a_run_were_all_at_work_for_as_long_as_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr("laionkit.core.worklist_parts.SHARDS_PER_PART", 1)
    ended = []

    class Listening:
        def emit(self, event):
            if isinstance(event, StageEnded):
                ended.append(round(event.seconds, 3))

    source, config = write(tmp_path, "csv"), MetadataConfig(shard_size=10)
    metadata([str(source)], str(tmp_path / "d"), config, runner=Runner(progress=Listening()))
    parts = list(StageRecords(Folder(tmp_path / "d"), "metadata").all())
    assert [part.seconds for part in parts] == ended * 3


def test_a_second_identical_call_finds_it_done(tmp_path):
    source = write(tmp_path, "csv")
    first, second = make(source, tmp_path / "d"), make(source, tmp_path / "d")
    assert (first.skipped, second.skipped) == (0, 3)
    [row] = status(str(tmp_path / "d"))
    assert row.shards == first.shards == 3
    assert first.counts == second.counts
    with pytest.raises(StaleOutput, match="shard_size=10; this run has shard_size=100"):
        make(source, tmp_path / "d", shard_size=100)
    write(tmp_path, "csv", ROWS[:3])
    with pytest.raises(StaleOutput, match=r"links\.csv; this run has other content.*--fresh"):
        make(source, tmp_path / "d")


def test_the_same_sources_give_the_same_bytes(tmp_path):
    source = write(tmp_path, "parquet")
    for name in ("a", "b"):
        make(source, tmp_path / name)
    files = [(tmp_path / n / "metadata/part-00000.parquet").read_bytes() for n in ("a", "b")]
    assert files[0] == files[1]


def test_malformed_rows_go_to_the_ledger_with_their_reason(tmp_path):
    rows = [
        {"url": "http://a.example/1.jpg", "text": "fine"},
        {"url": None, "text": "no link"},
        {"url": "  ", "text": "blank"},
        {"url": "a caption where the link should be", "text": "shifted"},
        {"url": " https://b.example/2.jpg ", "text": None},
    ]
    report = make(write(tmp_path, "parquet", rows), tmp_path / "d")
    assert report.counts.reasons == {"malformed_url": 1, "missing_url": 2}
    assert kept(tmp_path / "d")["url"].to_pylist() == [rows[0]["url"], "https://b.example/2.jpg"]
    lines = dropped(tmp_path / "d")
    assert [(line["row"], line["reason"]) for line in lines] == [
        (1, "missing_url"),
        (2, "missing_url"),
        (3, "malformed_url"),
    ]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_lines_that_are_no_row_are_counted_and_numbered(tmp_path, form):
    path = write(tmp_path, form)
    lines = path.read_text().splitlines()
    at = 4 if form == "csv" else 3
    lines.insert(at, "a,b,c,d" if form == "csv" else "{broken")
    path.write_text("\n".join(lines))
    report = make(path, tmp_path / "d")
    assert report.counts.reasons == {"malformed_row": 1}
    assert (report.counts.seen, report.counts.ok) == (26, 25)
    assert [line["row"] for line in dropped(tmp_path / "d")] == [3]


@pytest.mark.parametrize(
    "rest",
    ["four\nhttp://a/5,five\n", 'four\nhttp://a/5,"five"\nhttp://a/6,"six"\n', 'four""\n', "x" * 9],
)
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_quote_left_open_is_one_line_that_tells_where(tmp_path, rest, packed):
    """A parser takes the rows up to the next quote for one cell, and says nothing."""
    text = f'url,text\nhttp://a/1,"one, ""1""\nand more"\nhttp://a/2,12" x 3"\nhttp://a/4,"{rest}'
    path = tmp_path / f"links.csv{packed}"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(InputError, match=r"links\.csv.*the quote opened in line 5 is not closed"):
        make(path, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_cells_of_several_lines_are_read_as_they_are(tmp_path):
    captions = ['one\n"two"\n', '"', '""\n""', 'a "b", c', "\n", 'x"y', ""] * 9
    lines = [
        f'http://a.example/{i},"{c.replace(chr(34), chr(34) * 2)}"' for i, c in enumerate(captions)
    ]
    lines += ['http://a.example/x,5" disk', 'http://a.example/y,"quoted" and not']
    for end in ("\n", "\r\n", ""):
        text = ("\n".join(["url,text", *lines]) + end).encode()
        (tmp_path / "links.csv").write_bytes(text)
        make(tmp_path / "links.csv", tmp_path / f"d{len(end)}")
        found = kept(tmp_path / f"d{len(end)}")["caption"].to_pylist()
        assert found == [*captions, '5" disk', "quoted and not"]


@pytest.mark.parametrize(
    ("name", "data", "captions"),
    [
        ("bom.csv", "\ufeffurl,text\r\nhttp://a/1,é b\r\n".encode(), ["é b"]),
        ("bom.jsonl", '\ufeff{"url": "http://a/1", "text": "b"}\r\n'.encode(), ["b"]),
        ("bom.txt", "\ufeffhttp://a/1\r\nhttp://a/2\r\n".encode(), [None, None]),
        ("latin.csv", b"url,text\nhttp://a/1,gar\xe7on\nhttp://a/2,b\n", ["gar\ufffdon", "b"]),
        ("latin.tsv", b"gar\xe7on c\thttp://a/1\nb d\thttp://a/2\n", ["gar\ufffdon c", "b d"]),
        ("half.jsonl", b'{"url": "http://a/1", "text": "\\ud800 \\ud83d\\ude00"}\n', ["? 😀"]),
        ("semicolons.csv", b'url;text\nhttp://a/1;"b;c, d"\n', ["b;c, d"]),
        ("tabs.csv", b"url\ttext\nhttp://a/1\tb, c\n", ["b, c"]),
        ("links.csv", b"http://a/1;x,b c\n", ["b c"]),
    ],
)
def test_odd_text_is_read_and_costs_no_row(tmp_path, name, data, captions):
    (tmp_path / name).write_bytes(data)
    report = make(tmp_path / name, tmp_path / "d")
    assert not report.counts.reasons
    assert kept(tmp_path / "d")["caption"].to_pylist() == captions


def test_a_file_is_read_once_whatever_its_names(tmp_path):
    path = write(tmp_path, "csv")
    (tmp_path / "again.csv").symlink_to(path)
    names = [path, tmp_path / "again.csv", tmp_path / "." / "x" / ".." / path.name]
    (tmp_path / "x").mkdir()
    report = metadata([f"{name.parent}/{name.name}" for name in names], str(tmp_path / "d"))
    assert report.counts.seen == 25


@pytest.mark.parametrize("change", ["grows", "goes"])
def test_a_local_file_that_changes_while_it_is_read_is_refused(tmp_path, change):
    path = write(tmp_path, "parquet")

    class Changing:
        def emit(self, event):
            if isinstance(event, SamplesDone) and path.exists():
                path.unlink() if change == "goes" else path.write_bytes(path.read_bytes() + b"x")

    with pytest.raises(InputError, match="changed while it was read: run again"):
        metadata([str(path)], str(tmp_path / "d"), runner=Runner(progress=Changing()))
    assert not (tmp_path / "d").exists()


def test_counts_alone_leave_no_ledger(tmp_path):
    make(write(tmp_path, "txt", [{"url": "nothing"}]), tmp_path / "d", ledger="counts")
    assert not (tmp_path / "d/metadata/dropped.parquet").exists()
    assert kept_rows(tmp_path / "d") == 0


def kept_rows(dataset: Path) -> int:
    return WorkList.open(Folder(dataset)).total()


def test_a_run_cut_off_between_records_starts_again_clean(tmp_path):
    source = write(tmp_path, "csv")
    make(source, tmp_path / "d")
    records = StageRecords(Folder(tmp_path / "d"), "metadata")
    whole = records.read("part-00000")
    records.commit(whole.model_copy(update={"extra": {**whole.extra, "parts": 2}}))
    with pytest.raises(InputError, match="was cut off: run the same laionkit metadata again"):
        WorkList.open(Folder(tmp_path / "d"))
    assert make(source, tmp_path / "d").skipped == 0
    assert kept(tmp_path / "d").num_rows == 25


def test_a_failed_run_leaves_nothing_that_counts(tmp_path):
    folder = tmp_path / "sources"
    folder.mkdir()
    write(folder, "csv")
    (folder / "second.csv").write_text("url,text\n" + 'http://a.example/1,"never closed\n' * 3)
    with pytest.raises(InputError, match=r"second\.csv: the quote opened in line 2"):
        make(folder, tmp_path / "d")
    with pytest.raises(InputError, match="no work list"):
        WorkList.open(Folder(tmp_path / "d"))
    (folder / "second.csv").unlink()
    assert make(folder, tmp_path / "d", ledger="counts").counts.ok == 25


def test_several_sources_are_read_in_order_into_the_union_of_their_columns(tmp_path):
    a = write(tmp_path, "parquet", [{"URL": "http://a.example/1", "TEXT": "x", "score": 1}])
    b = write(tmp_path, "jsonl", [{"url": "http://a.example/2", "caption": "y", "score": 0.5}])
    metadata([str(a), str(b)], str(tmp_path / "d"))
    assert kept(tmp_path / "d").select(["url", "caption", "score"]).to_pylist() == [
        {"url": "http://a.example/1", "caption": "x", "score": 1.0},
        {"url": "http://a.example/2", "caption": "y", "score": 0.5},
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"PAR1 but not really", "x.parquet is not readable as parquet"),
        ("x.csv", b"", "x.csv is empty"),
        ("x.csv", b"a,b\n1,2\n", "no column of links; it has a, b: name it with --url-column"),
        ("x.csv", b"url,URL\n1,2\n", "two columns of one name"),
        ("x.csv", b"\x00\x01\x02", "is no text"),
        ("x.bin", b"1234", "its format is unknown"),
        ("x.csv.gz", b"no gzip", "x.csv.gz is not readable as csv"),
        ("x.jsonl", b"nothing\n", "no column of links"),
        ("x.jsonl", b"", "x.jsonl is empty"),
        ("x.txt", b"\n \n", "x.txt is empty"),
    ],
)
def test_a_bad_source_is_one_line_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        make(tmp_path / name, tmp_path / "d")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "d").exists()


def test_a_parquet_file_with_a_broken_page_is_one_line_that_names_it(tmp_path):
    data = bytearray(write(tmp_path, "parquet").read_bytes())
    data[40:200] = b"\xff" * 160
    (tmp_path / "broken.parquet").write_bytes(data)
    for look in (lambda: inspect([str(tmp_path / "broken.parquet")]),
                 lambda: make(tmp_path / "broken.parquet", tmp_path / "d")):  # fmt: skip
        with pytest.raises(InputError, match=r"broken\.parquet is not readable as parquet"):
            look()


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        make(tmp_path / "nothing.csv", tmp_path / "d")
    with pytest.raises(InputError, match="matches no file"):
        make(tmp_path / "*.csv", tmp_path / "d")
    with pytest.raises(ConfigError, match="name at least one SOURCE"):
        metadata([], str(tmp_path / "d"))
    with pytest.raises(ConfigError, match="one piece of work"):
        metadata(["x"], str(tmp_path / "d"), runner=Runner(part=(1, 2)))


def test_a_source_in_the_place_of_the_work_list_is_refused_untouched(tmp_path):
    (tmp_path / "d/metadata").mkdir(parents=True)
    for name in ("part-00000.parquet", "part-0-uuid.parquet"):
        source = write(tmp_path, "parquet").rename(tmp_path / "d/metadata" / name)
        before = source.read_bytes()
        with pytest.raises(InputError, match="lies where the work list is written"):
            make(source, tmp_path / "d")
        assert source.read_bytes() == before


def test_columns_can_be_named(tmp_path):
    source = write(tmp_path, "jsonl", [{"where": "http://a.example/1", "t1": "a", "t2": "b"}])
    make(source, tmp_path / "d", url_column="where", caption_column="t2")
    assert kept(tmp_path / "d").column_names == ["key", "url", "caption", "hash", "t1"]
    with pytest.raises(ConfigError, match=r"has no such column \(did you mean where"):
        make(source, tmp_path / "e", url_column="wher")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("img2dataset-laion400m-rows/test_1000.parquet", 1000),
        ("cc3m-validation/Validation_GCC_first5000.tsv", 5000),
        ("coyo-7-rows/coyo_rows.csv", 7),
        ("img2dataset-laion400m-rows/unique_images.txt", 54),
        ("img2dataset-laion400m-rows/test_bbox.parquet", 1),
    ],
)
def test_real_files_are_read_whole(tmp_path, real_data, name, rows):
    report = make(real_data / "metadata" / name, tmp_path / "d", shard_size=1000)
    assert (report.counts.ok, report.counts.reasons) == (rows, {})
    assert kept(tmp_path / "d")["url"].null_count == 0


def test_what_inspect_prints_stays_within_80_columns(tmp_path, laionkit):
    name, long = "clip_similarity_vitl14_of_everything", "a caption\nof two lines, which is long"
    row = {"url": "https://host.example/a/long/path.jpg", "TEXT": long, "hash": -(2**63), name: 0.5}
    rows = [row, {**row, "hash": 2**63 - 1, "TEXT": None}]
    path = write(tmp_path, "parquet", rows).rename(tmp_path / "links [of] me.parquet")
    shown = laionkit("metadata", "--inspect", path).out
    head, *rest = shown.splitlines()
    assert head.startswith(f"{path}  ")
    assert max(map(len, rest)) <= 80
    for text in ("caption ← TEXT", "https://h…", "a caption…", "-9.22e+18", "9.22e+18", "max"):
        assert text in shown


def test_inspect_says_what_is_there_and_touches_nothing(tmp_path):
    rows = [{**row, "WIDTH": i, "punsafe": None if i < 5 else 0.5} for i, row in enumerate(ROWS)]
    source = write(tmp_path, "parquet", rows)
    before = sorted(tmp_path.rglob("*"))
    look = inspect([str(source)]).sources[0]
    assert (look.set_name, look.rows) == ("generic", 25)
    columns = {column.name: column for column in look.columns}
    assert columns["caption"].source_name == "text"
    width = columns["width_published"]
    assert (width.nulls, width.least, width.greatest, width.whole) == (0, 0, 24, True)
    assert sum(width.histogram) == 25
    assert columns["punsafe"].nulls == 5
    assert sorted(tmp_path.rglob("*")) == before
    assert inspect([str(write(tmp_path, "csv"))]).sources[0].rows is None


def test_one_source_may_stand_without_a_list(tmp_path):
    (tmp_path / "links.txt").write_text("http://a.example/1.jpg\n")
    assert metadata(str(tmp_path / "links.txt"), str(tmp_path / "d")).counts.ok == 1
    assert len(inspect(str(tmp_path / "links.txt")).sources) == 1


def test_a_list_without_a_single_link_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("no link\nnone here\n")
    report = metadata([str(tmp_path / "notes.txt")], str(tmp_path / "d"))
    assert report.counts.reasons == {"malformed_url": 2}
    assert "no row is left: nothing can be fetched of this" in report.notes
    (tmp_path / "more.csv").write_text("url\nnone\n")
    more = MetadataConfig(append=True)
    report = metadata(str(tmp_path / "more.csv"), str(tmp_path / "d"), more)
    assert not any("no row is left" in note for note in report.notes)
