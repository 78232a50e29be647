"""fetch when the network goes: nothing false is recorded, and slow hosts slow only themselves."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from laionkit.backends.http import limits
from laionkit.core.errors import ConfigError, StageFailed
from laionkit.core.files import Folder
from laionkit.core.progress import Event, Note
from laionkit.core.records import StageRecords
from laionkit.core.runner import Runner, Site
from laionkit.stages.fetch import FetchConfig, fetch, pump
from laionkit.stages.fetch.worker import FetchWorker, bytes_per_s, pump_limits
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


def test_a_network_that_refuses_every_connection_is_waited_for_too(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, many_hosts(server, 120), 100)
    server.requests.clear()
    server.leaves_at = 40
    notes = Notes()

    def emit(event: Event) -> None:
        Notes.emit(notes, event)
        if isinstance(event, Note) and "seems gone" in event.text:
            server.come_back()

    notes.emit = emit
    config = settings(dns, retries=3, backoff_s=0.01)
    report = fetch(dataset, config, runner=Runner(workers=1, progress=notes))
    assert (report.counts.ok, report.counts.reasons) == (120, {})
    (gone, back) = notes.texts
    assert "links at" in gone
    assert "Connect call failed" in gone
    assert "the network is back" in back


@pytest.mark.parametrize(
    ("portal", "words"),
    [
        ("http://login.example:{port}/login", "all led to login.example"),
        ("page", "all gave the same page"),
    ],
)
def test_a_network_that_asks_for_a_login_is_waited_for_too(tmp_path, dns, portal, words):
    """Each link would be recorded as a page, for good, though none of them is."""
    with FaultServer({"a.jpg": picture(1)}) as server:
        dataset = make_dataset(tmp_path, many_hosts(server, 80), 100)
        server.portal = portal.format(port=server.port)
        notes = Notes()

        def emit(event: Event) -> None:
            Notes.emit(notes, event)
            if isinstance(event, Note) and "seems gone" in event.text:
                server.portal = ""

        notes.emit = emit
        report = fetch(dataset, settings(dns), runner=Runner(workers=1, progress=notes))
    assert (report.counts.ok, report.counts.reasons) == (80, {})
    assert words in notes.texts[0]


@pytest.mark.parametrize(("path", "reason"), [("/html", "not_an_image"), ("/reset", None)])
def test_bad_links_at_the_head_of_a_list_do_not_stop_the_good_ones_behind(
    tmp_path, server, dns, path, reason
):
    """Where no server was met yet that answers, some that were not asked yet are."""
    good = [f"http://good{i}.example:{server.port}/ok" for i in range(60)]
    dataset = make_dataset(tmp_path, [*many_hosts(server, 60, path), *good], 1000)
    report = fetch(dataset, settings(dns, concurrency=4), runner=Runner(workers=1))
    assert (report.counts.ok, report.counts.reasons) == (60, {reason or "connection_lost": 60})


def test_a_network_that_cuts_every_connection_is_no_servers_fault(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, many_hosts(server, 60, "/reset"), 100)
    with pytest.raises(StageFailed, match=r"no server answered for 0\.3 s"):
        fetch(dataset, settings(dns, network_wait_s=0.3), runner=Runner(workers=1))
    assert StageRecords(Folder(dataset), "fetch").names() == []


def test_links_that_lead_to_one_host_take_their_turn_there(tmp_path, server, dns):
    one = f"http://cdn.example:{server.port}/slow/0.1"
    urls = many_hosts(server, 20, f"/to/{one}/x")
    dataset = make_dataset(tmp_path, urls, 100)
    report = fetch(dataset, settings(dns, per_host=2), runner=Runner(workers=1))
    assert report.counts.ok == 20
    assert report.seconds > 20 * 0.1 / 2


def test_a_host_that_leads_to_dead_ones_is_not_taken_for_dead(tmp_path, server, dns):
    dead = [f"/to/http://dead{i}.example:{server.port}/reset/{i}" for i in range(40)]
    urls = [f"http://short.example:{server.port}{path}" for path in [*dead, *["/ok"] * 20]]
    dataset = make_dataset(tmp_path, urls, 100)
    report = fetch(dataset, settings(dns, concurrency=4), runner=Runner(workers=1))
    assert (report.counts.ok, report.counts.reasons) == (20, {"connection_lost": 40})


def test_a_network_that_stays_away_stops_the_run_and_records_nothing(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, many_hosts(server, 60), 100)
    dns.good_answers, dns.fails_for_s = 0, 600
    with pytest.raises(StageFailed, match=r"no server answered for 0\.5 s"):
        fetch(dataset, settings(dns, network_wait_s=0.5), runner=Runner(workers=1))
    assert StageRecords(Folder(dataset), "fetch").names() == []
    assert not list(Path(dataset, "shards").glob("*.tar"))
    report = fetch(dataset, settings(dns, network_wait_s=0), runner=Runner(workers=1))
    assert report.counts.reasons == {"dns_temporary": 60}


def test_a_first_shard_that_fails_whole_waits_for_the_next_before_it_is_judged(
    tmp_path, server, dns
):
    """A network that was never there must not cost the rows asked for before the others came."""
    dataset = make_dataset(tmp_path, many_hosts(server, 60), 10)
    dns.good_answers, dns.fails_for_s = 0, 600
    config = settings(dns, network_wait_s=0.3)

    def shards():
        yield "00000"
        while len(worker.pump.watch.suspects) < 10 and worker.inbox.empty():
            time.sleep(0.01)
        assert worker.inbox.empty()
        yield from (f"{number:05d}" for number in range(1, 6))

    with FetchWorker(dataset, config, None, Site()) as worker, pytest.raises(StageFailed):
        list(worker.process(shards()))


def test_links_that_are_dead_by_themselves_are_recorded_without_a_wait(tmp_path, server, dns):
    dead = [f"http://nx{i}.example/x".replace("nx", "nx.") for i in range(60)]
    urls = [url for pair in zip(many_hosts(server, 60), dead, strict=True) for url in pair]
    dataset = make_dataset(tmp_path, urls, 1000)
    notes = Notes()
    report = fetch(dataset, settings(dns), runner=Runner(workers=1, progress=notes))
    assert (report.counts.ok, report.counts.reasons) == (60, {"dns_not_found": 60})
    assert notes.texts == []


@pytest.mark.parametrize("slow_hosts", [4, 24, 80])
def test_slow_hosts_leave_the_others_their_turn(tmp_path, server, dns, slow_hosts):
    """Slow hosts answer only once every other link has been: were they to hold it up, none would.

    Of four slow hosts, each gets few requests at once; 24 of them hold every hand there is, and 80
    five times as many: new hands are lent.
    """
    server.requests.clear()
    links = max(24, slow_hosts)
    waiting = [
        f"http://slow{i % slow_hosts}.example:{server.port}/after/200/{i}" for i in range(links)
    ]
    urls = [*waiting, *many_hosts(server, 200)]
    dataset = make_dataset(tmp_path, urls, 1000)
    report = fetch(dataset, settings(dns, timeout_s=60), runner=Runner(workers=1))
    assert report.counts.ok == links + 200
    assert [row["url"] for row in rows_of(dataset).to_pylist()] == urls
    assert server.requests["/ok"] == 200


@pytest.mark.parametrize(("most_held", "most_at_once"), [(100_000, 4), (10**9, 24)])
def test_slow_hosts_that_fill_the_memory_are_not_joined_by_others(
    tmp_path, dns, monkeypatch, most_held, most_at_once
):
    monkeypatch.setattr(pump, "MOST_HELD_BYTES", most_held)
    monkeypatch.setattr(pump, "SLOW_S", 0.2)
    with FaultServer({"a.jpg": picture(1)}) as server:
        dataset = make_dataset(tmp_path, many_hosts(server, 24, "/stall/100000/0.8/x"), 100)
        fetch(dataset, settings(dns, concurrency=4), runner=Runner(workers=1))
    assert 4 <= server.most_at_once <= most_at_once
    assert (server.most_at_once > 4) == (most_at_once > 4)


def test_a_dead_host_is_asked_a_few_times_and_its_rows_are_given_up(
    tmp_path, server, dns, monkeypatch
):
    monkeypatch.setattr(limits, "PARK_S", 0.05)
    server.requests.clear()
    dead = [f"http://dead.example:{server.port}/reset/{i}" for i in range(50)]
    dataset = make_dataset(tmp_path, [*dead, *many_hosts(server, 50)], 1000)
    report = fetch(dataset, settings(dns), runner=Runner(workers=1))
    asked = sum(1 for path in server.requests if path.startswith("/reset"))
    lost = {"connection_lost": asked, "host_parked": 50 - asked}
    assert (report.counts.ok, report.counts.reasons) == (50, lost)
    assert limits.FAILURES_TO_PARK < asked <= limits.FAILURES_TO_PARK + limits.FIRST_AT_ONCE


def test_the_network_is_told_from_the_machines_command_line(tmp_path, server, dns, laionkit):
    """The command says what it waits for, exits 1, and keeps what was finished before."""
    dataset = make_dataset(tmp_path, many_hosts(server, 60), 10)
    flags = ("--allow-private", "--no-robots-txt", "--retries", 0, "--resolver", dns.server)
    dns.good_answers, dns.fails_for_s = 0, 600
    ran = laionkit("fetch", dataset, *flags, "-q", "--workers", 1, "--network-wait-s", 0.3)
    assert ran.code == 1
    assert "the network seems gone" in ran.err
    assert "None of them was recorded; run the same command again" in ran.err
    dns.good_answers = 10**9
    ran = laionkit("fetch", dataset, *flags, "-q", "--workers", 1, "--json")
    assert (ran.code, ran.json()["counts"]["ok"]) == (0, 60)


def test_parts_divide_the_limits_and_the_rows(tmp_path, server, dns):
    dataset = make_dataset(tmp_path, [f"{server.url}/ok?{i}" for i in range(40)], 10)
    config = FetchConfig(per_host=16, per_host_rate=8.0, max_mbps=80.0, allow_private=True)
    for parts, workers in ((1, 1), (4, 2)):
        share = pump_limits(config, Site(workers=workers, part=1, parts=parts))
        assert share.per_host == 16 // (parts * workers)
        assert share.per_host_rate == 8.0 / (parts * workers)
        assert bytes_per_s(config, Site(workers=workers, parts=parts)) == 1e7 / (parts * workers)
    assert config.most_workers(parts=4) == 4
    with pytest.raises(
        ConfigError, match=r"per_host=16 cannot be shared by 9 workers on each of 2"
    ):
        fetch(dataset, config, runner=Runner(workers=9, part=(1, 2)))
    with pytest.raises(
        ConfigError, match=r"cannot be shared by 2 workers, .* --workers 1 or a larger"
    ):
        fetch(dataset, FetchConfig(per_host=1), runner=Runner(workers=2))
    for part in (1, 2, 3):
        fetch(dataset, settings(dns), runner=Runner(workers=1, part=(part, 3)))
        assert len(StageRecords(Folder(dataset), "fetch").names()) == {1: 2, 2: 3, 3: 4}[part]
    assert sorted(rows_of(dataset).column("key").to_pylist()) == [f"{i:06d}" for i in range(40)]


def test_a_host_is_asked_no_more_than_it_may_be_by_all_processes_together(tmp_path):
    with FaultServer({"a.jpg": picture(1)}) as server:
        dataset = make_dataset(tmp_path, [f"{server.url}/slow/0.1/{i}" for i in range(40)], 10)
        config = FetchConfig(
            allow_private=True, robots_txt=False, per_host=4, per_host_rate=20, timeout_s=60
        )
        report = fetch(dataset, config, runner=Runner(workers=2))
        assert report.counts.ok == 40
        assert server.most_at_once <= 4
        # Two processes that began at the same moment: half the links at half the rate each.
        assert server.times[-1] - server.times[0] > 0.9 * (20 - 1) / 10


def test_a_run_that_waits_says_for_whom(tmp_path, server, dns, monkeypatch):
    monkeypatch.setattr(pump, "SILENCE_S", 0.3)
    dataset = make_dataset(tmp_path, many_hosts(server, 5, "/slow/1.5/x"), 10)
    notes = Notes()
    report = fetch(dataset, settings(dns), runner=Runner(workers=1, progress=notes))
    assert report.counts.ok == 5
    assert "no link was finished for 0.3 s; 5 links wait" in notes.texts[0]
    assert notes.texts[0].endswith("h0.example, h1.example, h2.example and 2 more")


def test_a_site_that_asks_for_patience_is_named_with_what_it_costs(tmp_path, dns, monkeypatch):
    monkeypatch.setattr(pump, "LONG_S", 0.5)
    with FaultServer({"a.jpg": picture(1)}, "User-agent: *\nCrawl-delay: 0.2") as server:
        urls = [f"http://slow.example:{server.port}/ok?{i}" for i in range(8)]
        dataset = make_dataset(tmp_path, urls, 10)
        patient = settings(dns, robots_txt=True)
        notes = Notes()
        report = fetch(
            dataset, patient.model_copy(update={"dry_run": True}), runner=Runner(progress=notes)
        )
        assert report.extra["bound_by"] == "the crawl delay of slow.example"
        assert report.extra["hours"] * 3600 == pytest.approx(8 * 0.2, rel=0.2)
        (text,) = notes.texts
        assert "slow.example asks for 0.2 s between requests" in text
        assert "--no-crawl-delay" in text
        started = time.monotonic()
        hasty = patient.model_copy(update={"crawl_delay": False})
        assert fetch(dataset, hasty, runner=Runner(workers=1)).counts.ok == 8
        assert time.monotonic() - started < report.seconds


def test_the_bandwidth_asked_for_is_kept_over_all_processes(tmp_path):
    """1.2 MB at 8 Mbps are 1.2 s; twice the processes take no less."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 340, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    with FaultServer({"big.png": file.getvalue()}) as server:
        count = round(1_200_000 / len(file.getvalue()))
        urls = [f"{server.url}/img/big.png?{i}" for i in range(4 * count)]
        dataset = make_dataset(tmp_path, urls, 10)
        config = FetchConfig(allow_private=True, max_mbps=32, robots_txt=False, concurrency=1)
        report = fetch(dataset, config, runner=Runner(workers=2))
    assert report.counts.ok == 4 * count
    assert report.seconds > 4 * 1.2 * 8 / 32 * 0.6
