"""fetch end to end: a real server, real shards, reasons that sum, bytes that repeat."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from laionkit.cli.progress import Tally
from laionkit.core.errors import ConfigError
from laionkit.core.files import Folder
from laionkit.core.places import noted_places
from laionkit.core.progress import Event, SamplesDone, ShardDone, StageStarted
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner, StageReport
from laionkit.core.schemas import Reason
from laionkit.core.shards import list_shards
from laionkit.core.status import status
from laionkit.core.table import table
from laionkit.core.tars import read_contents, read_images
from laionkit.ops.images import decode
from laionkit.stages import fetch as stage
from laionkit.stages.fetch import FetchConfig
from laionkit.stages.forget import ForgetConfig, forget
from laionkit.stages.metadata import MetadataConfig, metadata
from tests.fault_server import FaultServer
from tests.stages.shards import picture

CALM = {"allow_private": True, "retries": 1, "backoff_s": 0.05}
FAST = {**CALM, "timeout_s": 2.0}


def fetch(dataset: str, config: FetchConfig, workers: int = 1) -> StageReport:
    return stage.fetch(dataset, config, runner=Runner(workers=workers))


@pytest.fixture(scope="module")
def server():
    pictures = {f"{i}.jpg": picture(i, 300 + i, 400) for i in range(30)}
    pictures["alpha.png"] = picture(99, kind="PNG")
    with FaultServer(pictures) as running:
        yield running


def make_dataset(folder: Path, urls: list[str], shard_size: int = 10, **columns: list) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    captions = [f"caption {i}" for i in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions, **columns}), folder / "in.parquet")
    dataset = str(folder / "data")
    metadata([str(folder / "in.parquet")], dataset, MetadataConfig(shard_size=shard_size))
    return dataset


def rows_of(dataset: str) -> pa.Table:
    tables = [pq.read_table(Folder(dataset).at(ref.table)) for ref in list_shards(Folder(dataset))]
    return pa.concat_tables(tables)


def data_bytes(dataset: str) -> dict[str, bytes]:
    """Every file whose bytes may not depend on time: all but statistics."""
    files = sorted(Path(dataset, "shards").iterdir())
    return {f.name: f.read_bytes() for f in files if not f.name.endswith("_stats.json")}


def urls_of(server: FaultServer, count: int = 25) -> list[str]:
    return [f"{server.url}/img/{i}.jpg" for i in range(count)]


def test_links_become_img2dataset_shards(tmp_path, server):
    dataset = make_dataset(tmp_path, urls_of(server), pwatermark=[0.5] * 25)
    report = fetch(dataset, FetchConfig(resize_mode="keep_ratio", image_size=64, **CALM))
    assert (report.counts.ok, report.counts.reasons) == (25, {})
    table = rows_of(dataset)
    assert table.column_names == [
        *(
            "hash",
            "pwatermark",
            "caption",
            "url",
            "key",
            "status",
            "error_message",
            "width",
            "height",
        ),
        *("original_width", "original_height", "exif", "sha256", "reason", "opt_out"),
    ]
    assert table.column("key").to_pylist() == [f"{i // 10:05d}{i % 10}" for i in range(25)]
    with (Path(dataset) / "shards/00001.tar").open("rb") as file:
        contents = read_contents(file)
        ref = list_shards(Folder(dataset))[1]
        assert noted_places(Folder(dataset), ref).equals(read_images(file)[0])
    assert len(contents.samples) == 10
    with tarfile.open(Path(dataset) / "shards/00001.tar") as tar:
        names = tar.getnames()
        row = json.load(tar.extractfile("000010.json"))
        image = decode(tar.extractfile("000010.jpg").read())
        assert tar.extractfile("000010.txt").read() == b"caption 10"
    assert names[:3] == ["000010.jpg", "000010.json", "000010.txt"]
    assert row == table.to_pylist()[10]
    assert image.rgb.shape[:2] == (row["height"], row["width"]) == (64, 83)
    stats = json.loads((Path(dataset) / "shards/00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["status_dict"]) == (10, 10, {"success": 10})


def test_every_kind_of_failure_has_its_reason_and_the_counts_sum(tmp_path, server):
    expected = {
        "/img/1.jpg": None,
        "/redirect/4": None,
        "/gzip": None,
        "/http10": None,
        "/cut/1": None,
        "/cut/2": None,
        "/first/503/1/a": None,
        "/first/429/1/a": None,
        "/status/404": Reason.HTTP_NOT_FOUND,
        "/status/410": Reason.HTTP_GONE,
        "/status/403": Reason.HTTP_FORBIDDEN,
        "/status/418": Reason.HTTP_CLIENT_ERROR,
        "/status/500": Reason.HTTP_SERVER_ERROR,
        "/status/204": Reason.NOT_AN_IMAGE,
        "/status/304": Reason.HTTP_PROTOCOL,
        "/busy": Reason.HTTP_RATE_LIMITED,
        "/loop": Reason.TOO_MANY_REDIRECTS,
        "/nowhere": Reason.HTTP_PROTOCOL,
        "/to/ftp://example.org/x": Reason.SCHEME_REFUSED,
        "/to/file:///etc/passwd": Reason.SCHEME_REFUSED,
        "/hang": Reason.TIMEOUT,
        "/drip": Reason.TIMEOUT,
        "/endless": Reason.TOO_MANY_BYTES,
        "/announced": Reason.TOO_MANY_BYTES,
        "/bomb": Reason.TOO_MANY_BYTES,
        "/truncated": Reason.TRUNCATED_BODY,
        "/halfpicture": Reason.TRUNCATED_IMAGE,
        "/html": Reason.NOT_AN_IMAGE,
        "/empty": Reason.NOT_AN_IMAGE,
        "/header/X-Robots-Tag: noai": Reason.OPTED_OUT,
        "/header/tdm-reservation: 1": Reason.OPTED_OUT,
        "/header/X-Robots-Tag: otherbot: noai": None,
        "/notext": Reason.OPTED_OUT,
        "/reset": Reason.CONNECTION_LOST,
        "/garbage": Reason.HTTP_PROTOCOL,
        "/badgzip": Reason.NOT_AN_IMAGE,
        "/coded/gzip/plain": None,
        "/coded/deflate/zlib": None,
        "/coded/deflate/bare": None,
        "/coded/x-unheard-of/gzip": None,
        "/coded/gzip/cut": Reason.TRUNCATED_BODY,
        "/coded/br/plain": Reason.HTTP_PROTOCOL,
    }
    urls = [server.url + path.replace(" ", "%20") for path in expected]
    urls.append("http://127.0.0.1:1/refused")
    dataset = make_dataset(tmp_path, urls, 100)
    report = fetch(dataset, FetchConfig(max_bytes=2_000_000, max_redirects=4, **FAST))
    found = dict(zip([*expected, "refused"], rows_of(dataset).to_pylist(), strict=True))
    wrong = {
        path: found[path]["reason"]
        for path, reason in expected.items()
        if found[path]["reason"] != reason
    }
    assert wrong == {}
    assert found["refused"]["reason"] == Reason.CONNECT_FAILED
    assert report.counts.seen == len(urls) == report.counts.ok + sum(report.counts.reasons.values())
    for row in found.values():
        reason = row["reason"]
        assert row["status"] == (Reason(reason).status if reason else "success")
    evidence = json.loads(found["/header/X-Robots-Tag: noai"]["opt_out"])
    assert (evidence["header"], evidence["value"]) == ("x-robots-tag", "noai")
    assert evidence["time"] == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_two_runs_give_the_same_bytes_whatever_the_concurrency(tmp_path, server):
    urls = [*urls_of(server), f"{server.url}/slow/0.3/1", f"{server.url}/status/404"]
    one = make_dataset(tmp_path / "a", urls)
    two = make_dataset(tmp_path / "b", urls)
    fetch(one, FetchConfig(concurrency=1, **CALM))
    fetch(two, FetchConfig(concurrency=50, **CALM), workers=2)
    assert data_bytes(one) == data_bytes(two)


def test_private_addresses_are_refused_unless_allowed_and_the_user_is_told(tmp_path, server):
    dataset = make_dataset(tmp_path, [*urls_of(server, 3), "http://localhost/x"])
    report = fetch(dataset, FetchConfig())
    assert report.counts.reasons == {"address_refused": 4}
    assert "--allow-private" in report.notes[0]


def test_pictures_on_disk_are_read_in_place(tmp_path, server):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    dataset = str(tmp_path / "data")
    metadata([str(folder)], dataset, MetadataConfig(shard_size=10))
    report = fetch(dataset, FetchConfig(image_size=32))
    assert (report.counts.ok, report.counts.reasons) == (4, {"decode_failed": 1})


def test_what_may_heal_is_tried_again_into_new_shards_under_its_key(tmp_path, server, laionkit):
    urls = urls_of(server, 22)
    urls[3] = urls[14] = f"{server.url}/first/503/2/heals"
    urls[5] = f"{server.url}/status/500"
    urls[6] = f"{server.url}/status/404"
    dataset = make_dataset(tmp_path, urls)
    config = FetchConfig(**{**CALM, "retries": 0})
    server.requests["/first/503/2/heals"] = 0
    first = fetch(dataset, config)
    assert first.counts.reasons == {"http_not_found": 1, "http_server_error": 3}
    before = data_bytes(dataset)
    report = fetch(dataset, config.model_copy(update={"retry": True}))
    assert report.notes == ("2 of 3 links tried again healed, into new shards",)
    assert (report.counts.ok, report.counts.reasons) == (2, {"http_server_error": 1})
    after = data_bytes(dataset)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"00003.tar", "00003.parquet"}
    healed = pq.read_table(Path(dataset) / "shards/00003.parquet")
    assert healed.column("key").to_pylist() == ["000003", "000014"]
    again = fetch(dataset, config.model_copy(update={"retry": True}))
    assert again.notes == ("0 of 1 links tried again healed, into new shards",)
    assert data_bytes(dataset) == after
    assert len(StageRecords(Folder(dataset), "fetch").names()) == 4
    (found,) = (row for row in status(dataset) if row.stage == "fetch")
    assert (found.tried_again, found.healed) == (3, 2)
    assert (found.counts.seen, found.counts.ok) == (22, 20)
    assert found.counts.reasons == {"http_not_found": 1, "http_server_error": 1}
    assert found.worst_hosts == {"127.0.0.1": 4}
    rows = table(dataset).filter("status = 'success'")
    assert len(rows.fetchall()) == 20
    shown = laionkit("status", dataset).out
    assert "2 of 3 tries at lost links healed them" in shown
    assert "127.0.0.1" in shown


def test_each_retry_tries_what_is_still_lost_and_nothing_twice(tmp_path, server):
    lost = [f"{server.url}/first/500/{1 if i % 3 else 2}/again{i}" for i in range(21)]
    dataset = make_dataset(tmp_path, [*urls_of(server, 8), *lost])
    config = FetchConfig(**{**CALM, "retries": 0}, concurrency=1)
    assert fetch(dataset, config).counts.ok == 8
    again = config.model_copy(update={"retry": True})
    for healed, left in ((14, 21), (7, 7)):
        asked = server.requests.total()
        assert fetch(dataset, again).notes == (
            f"{healed} of {left} links tried again healed, into new shards",
        )
        assert server.requests.total() - asked == left + 1  # robots.txt
    assert fetch(dataset, again).notes == ("0 of 0 links tried again healed, into new shards",)
    found = table(dataset).filter("status = 'success'").order("key").fetchall()
    assert [row[0] for row in found] == [f"{i // 10:05d}{i % 10}" for i in range(29)]


def test_what_was_taken_down_before_it_was_fetched_is_not_asked_for(tmp_path, server):
    dataset = make_dataset(tmp_path, urls_of(server, 12))
    forget(dataset, ForgetConfig(where="caption = 'caption 7'"), runner=Runner(yes=True))
    asked = server.requests["/img/7.jpg"]
    report = fetch(dataset, FetchConfig(**CALM))
    assert (report.counts.ok, report.counts.reasons) == (11, {"taken_down": 1})
    assert server.requests["/img/7.jpg"] == asked
    lost = rows_of(dataset).filter(pc.field("reason") == "taken_down")
    assert lost.column("key").to_pylist() == ["000007"]
    assert len(table(dataset).fetchall()) == 11


def test_of_a_picture_that_changed_before_it_was_read_the_later_row_alone_counts(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    dataset = str(tmp_path / "data")
    metadata([str(folder)], dataset, MetadataConfig(shard_size=10))
    (folder / "1.jpg").write_bytes(picture(9, 50, 60))
    metadata([str(folder)], dataset, MetadataConfig(shard_size=10))
    report = fetch(dataset, FetchConfig(image_size=32))
    assert (report.counts.ok, report.counts.reasons) == (3, {"superseded": 1})
    found = table(dataset).order("key").project("key, status").fetchall()
    assert found == [("000000", "success"), ("000002", "success"), ("000010", "success")]


def test_real_photographs_pass_through(tmp_path, real_data):
    folder = real_data / "images/imagenet-labelled/jpg"
    files = sorted(folder.iterdir())
    with FaultServer({f.name: f.read_bytes() for f in files}) as photographs:
        urls = [f"{photographs.url}/img/{f.name}" for f in files]
        dataset = make_dataset(tmp_path, urls, 100)
        report = fetch(dataset, FetchConfig(resize_mode="keep_ratio", **CALM))
    assert report.counts.ok == len(files) == 120
    with tarfile.open(Path(dataset) / "shards/00000.tar") as tar:
        for name in tar.getnames()[:30:3]:
            rgb = decode(tar.extractfile(name).read()).rgb
            assert min(rgb.shape[:2]) == 256
            assert np.std(rgb) > 5


def test_the_engine_img2dataset_keeps_the_same_contract(tmp_path, server):
    pytest.importorskip("img2dataset")
    urls = [*urls_of(server, 5), f"{server.url}/status/404", f"{server.url}/html", "ftp://x/y"]
    settings = {"resize_mode": "keep_ratio", "image_size": 64, **CALM}
    ours, theirs = make_dataset(tmp_path / "a", urls), make_dataset(tmp_path / "b", urls)
    fetch(ours, FetchConfig(**settings))
    report = fetch(theirs, FetchConfig(engine="img2dataset", **settings))
    assert report.counts.ok == 5
    one, two = rows_of(ours), rows_of(theirs)
    same = ["key", "url", "caption", "status", "width", "height", "original_width", "sha256"]
    for mine, peer in zip(one.to_pylist(), two.to_pylist(), strict=True):
        if mine["status"] == "success":
            assert [mine[name] for name in same] == [peer[name] for name in same]
    assert one.schema == two.schema
    assert two.column("reason").to_pylist()[5] == "http_not_found"
    with tarfile.open(Path(theirs) / "shards/00000.tar") as tar:
        assert len(tar.getnames()) == 15


def test_settings_that_img2dataset_cannot_follow_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="compute_phash=True needs --engine laionkit"):
        fetch(str(tmp_path), FetchConfig(engine="img2dataset", compute_phash=True))


def test_the_run_tells_rate_bandwidth_time_left_reasons_and_worst_hosts(tmp_path, server):
    urls = [*urls_of(server, 9), f"{server.url}/status/404", "http://localhost:1/refused"]
    dataset = make_dataset(tmp_path, urls, 100)
    seen = Seen()
    config = FetchConfig(**{**CALM, "retries": 0})
    stage.fetch(dataset, config, runner=Runner(workers=1, progress=seen))
    tally = Tally(next(event for event in seen.events if isinstance(event, StageStarted)))
    for event in seen.events:
        if isinstance(event, SamplesDone | ShardDone):
            tally.take(event)
    assert (tally.seen, tally.ok, tally.shards) == (11, 9, 1)
    assert tally.hosts == {"127.0.0.1": 1, "localhost": 1}
    assert tally.mbps() > 0
    assert tally.eta_s() == 0
    for word in ("/s", "81.8% ok", "Mbps"):
        assert word in tally.text()
    for word in ("1 http_not_found", "1 connect_failed", "127.0.0.1 1", "localhost 1"):
        assert word in tally.lost()


class Seen:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def test_shards_that_wait_for_slow_links_do_not_keep_others_from_beginning(tmp_path):
    shards = 6  # more than begin while there is enough to do
    with FaultServer({"0.jpg": picture(0)}) as server:
        urls = [f"{server.url}/ok#{i}" for i in range(10 * shards)]
        for shard in range(shards):
            urls[10 * shard] = f"{server.url}/after/{9 * shards}/{shard}"
        dataset = make_dataset(tmp_path, urls)
        config = FetchConfig(concurrency=16, robots_txt=False, timeout_s=20.0, **CALM)
        assert fetch(dataset, config).counts.ok == 10 * shards
