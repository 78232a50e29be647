"""fetch when the network goes: nothing false is recorded, and slow hosts slow only themselves."""

import time
from pathlib import Path

import pytest

from laionkit.core.errors import StageFailed
from laionkit.core.files import Folder
from laionkit.core.progress import Event, Note
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner
from laionkit.stages.fetch import FetchConfig, fetch
from tests.fault_dns import FaultDns
from tests.fault_server import FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import make_dataset, rows_of


class Notes:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def emit(self, event: Event) -> None:
        if isinstance(event, Note):
            self.texts.append(event.text)


@pytest.fixture(scope="module")
def server():
    with FaultServer({"a.jpg": picture(1)}) as running:
        yield running


@pytest.fixture
def dns():
    running = FaultDns("127.0.0.1")
    yield running
    running.close()


def many_hosts(server: FaultServer, count: int, path: str = "/ok") -> list[str]:
    return [f"http://h{i}.example:{server.port}{path}" for i in range(count)]


def settings(dns: FaultDns, **more: object) -> FetchConfig:
    calm = {"allow_private": True, "robots_txt": False, "retries": 0, "resolver": dns.server}
    return FetchConfig(**{**calm, "concurrency": 16, **more})


def test_a_network_that_goes_and_comes_back_costs_no_link(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, many_hosts(server, 100), 100)
    dns.good_answers, dns.fails_for_s = 60, 0.7
    notes = Notes()
    report = fetch(dataset, settings(dns), runner=Runner(workers=1, progress=notes))
    assert report.counts.reasons == {}
    assert report.counts.ok == 100
    assert any("seems gone" in text for text in notes.texts)
    assert any("is back" in text for text in notes.texts)


def test_a_network_that_stays_away_stops_the_run_and_records_nothing(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, many_hosts(server, 60), 100)
    dns.good_answers, dns.fails_for_s = 0, 600
    with pytest.raises(StageFailed, match=r"no server answered for 0\.5 s"):
        fetch(dataset, settings(dns, network_wait_s=0.5), runner=Runner(workers=1))
    assert StageRecords(Folder(dataset), "fetch").names() == []
    assert not list(Path(dataset, "shards").glob("*.tar"))
    report = fetch(dataset, settings(dns, network_wait_s=0), runner=Runner(workers=1))
    assert report.counts.reasons == {"dns_temporary": 60}


def test_links_that_are_dead_by_themselves_are_recorded_without_a_wait(tmp_path, server, dns):
    dead = [f"http://nx{i}.example/x".replace("nx", "nx.") for i in range(60)]
    urls = [url for pair in zip(many_hosts(server, 60), dead, strict=True) for url in pair]
    dataset = make_dataset(tmp_path, urls, 1000)
    started = time.monotonic()
    report = fetch(dataset, settings(dns), runner=Runner(workers=1))
    assert (report.counts.ok, report.counts.reasons) == (60, {"dns_not_found": 60})
    assert time.monotonic() - started < 20


def test_slow_hosts_leave_the_others_their_speed(tmp_path, server, dns):
    slow = [f"http://slow{i % 4}.example:{server.port}/slow/3/{i}" for i in range(24)]
    urls = [*slow, *many_hosts(server, 200)]
    dataset = make_dataset(tmp_path, urls, 1000)
    started = time.monotonic()
    report = fetch(dataset, settings(dns, timeout_s=8), runner=Runner(workers=1))
    assert report.counts.ok == 224
    rows = rows_of(dataset).to_pylist()
    assert [row["url"] for row in rows] == urls
    assert time.monotonic() - started < 60
