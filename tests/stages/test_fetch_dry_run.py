"""fetch --dry-run: what a run would bring and take, told from a thousand links; nothing written."""

from pathlib import Path

import pyarrow as pa
import pytest

from laionkit.core.files import Folder
from laionkit.core.runner import Runner, Task
from laionkit.stages.fetch import FetchConfig, fetch
from laionkit.stages.fetch.dry_run import LINKS, draw
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import make_dataset


@pytest.fixture(scope="module")
def server():
    with FaultServer({f"{i}.jpg": picture(i, 300, 400) for i in range(10)}) as running:
        yield running


def tree(folder: str) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


def links(server: FaultServer, count: int) -> list[str]:
    """Nine pictures, then a link that is gone, and so on."""
    return [
        f"{server.url}/img/{i % 10}.jpg?{i}" if i % 10 else f"{server.url}/status/404#{i}"
        for i in range(count)
    ]


def test_a_dry_run_tells_success_bytes_hours_and_disk_and_writes_nothing(
    tmp_path, server, laionkit
):
    dataset = make_dataset(tmp_path, links(server, 3000), 100)
    before, asked = tree(dataset), server.requests.total()
    flags = ("--allow-private", "--no-robots-txt", "--per-host", 64, "--image-size", 64)
    ran = laionkit("fetch", dataset, "--dry-run", "--json", "-q", *flags)
    assert (ran.code, ran.err) == (0, "")
    report = ran.json()
    assert tree(dataset) == before
    assert server.requests.total() - asked == LINKS
    assert report["counts"]["in"] == LINKS
    assert set(report["counts"]["reasons"]) == {"http_not_found"}
    found = report["extra"]
    assert (found["links"], found["sampled"]) == (3000, LINKS)
    assert found["success"] == report["counts"]["ok"] / LINKS
    assert abs(found["success"] - 0.9) <= found["give_or_take"] * 1.5
    assert found["images"] == round(found["success"] * 3000)
    real = fetch(dataset, FetchConfig(allow_private=True, robots_txt=False, image_size=64))
    assert real.counts.ok == 2700
    written = sum(f.stat().st_size for f in Path(dataset, "shards").iterdir())
    assert found["disk_bytes"] == pytest.approx(written, rel=0.15)
    assert found["network_bytes"] > found["images"] * 3000
    assert found["hours"] > 0
    ran = laionkit("fetch", dataset, "--dry-run", "-q", *flags)
    assert "nothing is left to fetch" in ran.out


def test_the_shell_shows_reasons_and_the_estimate(tmp_path, server, laionkit):
    dataset = make_dataset(tmp_path, links(server, 20))
    ran = laionkit("fetch", dataset, "--dry-run", "-q", "--allow-private")
    text = " ".join(ran.out.split())
    assert "2 10.0 % http_not_found" in text
    assert "90.0 ± 0.0 % of 20 sampled links gave an image" in text
    assert "all of it: about 18 images" in text
    ran = laionkit("fetch", dataset, "--dry-run", "-q")
    assert "fetch again with --allow-private" in ran.out
    assert "--fresh" not in ran.out


def test_a_retry_is_tried_on_the_links_that_may_heal(tmp_path, server):
    urls = [*links(server, 9), f"{server.url}/first/503/1/retry", f"{server.url}/busy"]
    dataset = make_dataset(tmp_path, urls)
    config = FetchConfig(allow_private=True, retries=0)
    fetch(dataset, config, runner=Runner(workers=1))
    before = tree(dataset)
    again = config.model_copy(update={"retry": True, "dry_run": True})
    report = fetch(dataset, again, runner=Runner(workers=1))
    assert (report.counts.ok, report.counts.reasons) == (1, {"http_rate_limited": 1})
    assert tree(dataset) == before


def test_the_sample_is_seeded_without_repeats_and_from_all_over_the_list(tmp_path):
    urls = [f"http://host/{i}" for i in range(5000)]
    dataset = Folder(make_dataset(tmp_path, urls, 10))
    tasks = [Task(f"{i:05d}", {}, 10) for i in range(500)]
    one, two = draw(dataset, tasks, None), draw(dataset, tasks, None)
    assert one.equals(two)
    keys = one.column("key").to_pylist()
    assert len(set(keys)) == len(keys) == LINKS
    shards = [int(key[:5]) for key in keys]
    assert min(shards) < 50 < 450 < max(shards)
    few = draw(dataset, tasks[:3], None)
    assert few.num_rows == 30
    assert isinstance(few, pa.Table)
