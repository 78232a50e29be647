"""fetch onto an object store: the same bytes as on a disk, resume, retry and status from there."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from laionkit.core.files import Folder
from laionkit.core.runner import Runner
from laionkit.core.status import status
from laionkit.stages.fetch import FetchConfig, fetch
from laionkit.stages.metadata import MetadataConfig, metadata
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import data_bytes, make_dataset


@pytest.fixture
def store(monkeypatch):
    """A bucket of a real S3 server (moto) on loopback; yields the file system."""
    moto_server = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("fetched")
    yield files
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def stored_bytes(store) -> dict[str, bytes]:
    store.invalidate_cache()
    names = {path: path.rpartition("/")[2] for path in store.ls("fetched/data/shards")}
    return {n: store.cat(p) for p, n in names.items() if not n.endswith("_stats.json")}


def test_a_dataset_on_an_object_store_is_fetched_resumed_retried_and_told_of(
    tmp_path, store, laionkit
):
    config = FetchConfig(allow_private=True, retries=0, image_size=64)
    with FaultServer({f"{i}.jpg": picture(i) for i in range(30)}) as server:
        urls = [f"{server.url}/img/{i}.jpg" for i in range(30)]
        urls[4] = f"{server.url}/first/503/1/disk"
        disk = make_dataset(tmp_path, urls)
        fetch(disk, config, runner=Runner(workers=1))
        urls[4] = f"{server.url}/first/503/1/disk"
        server.requests["/first/503/1/disk"] = 0
        far = "s3://fetched/data"
        metadata([str(Path(tmp_path, "in.parquet"))], far, MetadataConfig(shard_size=10))
        report = fetch(far, config, runner=Runner(workers=1))
        assert (report.counts.ok, report.counts.reasons) == (29, {"http_server_error": 1})
        assert stored_bytes(store) == data_bytes(disk)

        store.rm("fetched/data/.laionkit/fetch/00001.json")  # killed before its record was written
        store.pipe("fetched/data/shards/00001.tar", b"half of one")
        server.requests.clear()
        again = laionkit(
            *("fetch", far, "-q", "--json", "--workers", 1, "--allow-private"),
            *("--retries", 0, "--image-size", 64),
        ).json()
        assert (again["counts"]["ok"], again["skipped"]) == (29, 2)
        assert sum(n for path, n in server.requests.items() if path.startswith("/img")) == 10
        assert stored_bytes(store) == data_bytes(disk)

        server.requests["/first/503/1/disk"] = 1
        healed = fetch(far, config.model_copy(update={"retry": True}), runner=Runner(workers=1))
        assert (healed.counts.ok, healed.counts.seen) == (1, 1)
        with Folder(far).open("shards/00003.parquet") as file:
            assert pq.read_table(file).column("key").to_pylist() == ["000004"]
        (found,) = (row for row in status(far) if row.stage == "fetch")
        assert (found.counts.seen, found.counts.ok, found.healed) == (30, 30, 1)
        probe = config.model_copy(update={"dry_run": True})
        assert fetch(far, probe).notes == ("nothing is left to fetch",)
