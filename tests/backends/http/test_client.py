"""The client against a real server: names, addresses, redirects, robots.txt, DNS."""

import asyncio
import errno
import gc
import socket
import ssl
from dataclasses import replace
from itertools import pairwise

import aiohttp
import pytest

from laionkit.backends.http import robots
from laionkit.backends.http.answers import (
    Answer,
    Refused,
    knows_authorities,
    reason_of,
    retry_after,
)
from laionkit.backends.http.client import ClientLimits, HttpClient
from laionkit.backends.http.resolver import LookupFailed
from laionkit.backends.http.throttle import Throttle
from laionkit.core.errors import StageFailed
from laionkit.core.schemas import Reason
from laionkit.stages.fetch.config import FetchConfig
from laionkit.stages.fetch.policy import make_policy
from tests.fault_server import FaultServer
from tests.stages.shards import picture


@pytest.fixture(scope="module")
def server():
    rules = "User-agent: *\nDisallow: /img/secret\n"
    with FaultServer({"a.jpg": picture(1), "secret.jpg": picture(2)}, rules) as running:
        yield running


def ask(urls: list[str], lookup=None, **settings: object) -> list[Answer]:
    config = FetchConfig(**{"timeout_s": 5.0, **settings})

    async def run() -> list[Answer]:
        limits = ClientLimits(config.timeout_s, config.max_bytes, config.max_redirects)
        async with HttpClient(limits, make_policy(config), lookup=lookup) as client:
            return [await client.fetch(url) for url in urls]

    return asyncio.run(run())


def fixed(*answers: list[str]):
    """A resolver that gives each list of addresses once, the last one for ever."""
    left = list(answers)

    async def lookup(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return lookup


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1"])
def test_a_name_that_leads_to_a_private_address_is_never_connected_to(server, address):
    before = server.connections
    url = f"http://innocent.example:{server.port}/ok"
    (answer,) = ask([url], fixed([address]))
    assert answer.reason == Reason.ADDRESS_REFUSED
    assert server.connections == before


def test_rebinding_gains_nothing_since_the_checked_address_is_the_one_connected_to(server):
    before = server.connections
    url = f"http://rebind.example:{server.port}/ok"
    (answer,) = ask([url], fixed(["203.0.113.1", "127.0.0.1"], ["127.0.0.1"]), timeout_s=0.5)
    assert answer.reason in (Reason.ADDRESS_REFUSED, Reason.TIMEOUT, Reason.CONNECT_FAILED)
    assert server.connections == before


# Hosts that lead inside, in every spelling that a parser, a resolver or aiohttp may take for one.
INSIDE = (
    *("127.0.0.1", "127.0.0.1.", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0", "0.0.0.0"),
    *("127。0。0。1", "１２７.0.0.1", "localhost", "user:word@127.0.0.1"),
    *("10.0.0.1", "192.168.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a00:1]", "[64:ff9b::7f00:1]"),
    *("[2002:7f00:1::]", "[2001:4860::5efe:127.0.0.1]", "[fe80::1]", "[fd00:ec2::254]"),
)


def through_an_open_door(server: FaultServer, target: str, robots_txt: bool = False) -> Answer:
    """Fetch a link whose first hop may be the server on loopback, and whose next is `target`."""
    policy = make_policy(FetchConfig(robots_txt=robots_txt))
    door = "http://door.example/"

    def is_public(address: str) -> bool:
        return address == "127.0.0.77" or policy.is_public(address)

    async def lookup(host: str, port: int) -> list[str]:
        if host == "door.example":
            return ["127.0.0.77"]
        return [str(e[4][0]) for e in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

    async def run() -> Answer:
        lenient = replace(policy, is_public=is_public)
        async with HttpClient(ClientLimits(5.0), lenient, lookup=lookup) as client:
            return await client.fetch(f"{door[:-1]}:{server.port}/to/{target}")

    return asyncio.run(run())


@pytest.fixture(scope="module")
def door():
    """A server on all of loopback, so that its first hop has an address of its own."""
    with FaultServer({"a.jpg": picture(1)}, address="0.0.0.0") as running:
        yield running


@pytest.mark.parametrize("host", INSIDE)
def test_no_spelling_of_an_inner_address_is_connected_to_on_any_hop(door, host):
    name, _, place = host.rpartition("@")
    target = f"http://{name + '@' if name else ''}{place}:{door.port}/ok"
    (answer,) = ask([target], robots_txt=False)
    assert answer.reason == Reason.ADDRESS_REFUSED
    before = door.requests.total()
    answer = through_an_open_door(door, target)
    assert answer.reason == Reason.ADDRESS_REFUSED, answer.detail
    assert door.requests.total() == before + 1  # the door itself
    assert door.requests["/ok"] == 0


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://x/y", "gopher://x", "data:,x"])
def test_no_redirect_leaves_http(door, target):
    assert through_an_open_door(door, target).reason == Reason.SCHEME_REFUSED


def test_a_robots_txt_cannot_redirect_inside_either(door):
    door.robots = f"http://127。0。0。1:{door.port}/inner"
    answer = through_an_open_door(door, f"http://door.example:{door.port}/ok", robots_txt=True)
    door.robots = None
    assert door.requests["/robots.txt"] == 1
    assert door.requests["/inner"] == 0
    assert answer.reason == Reason.ADDRESS_REFUSED


def test_a_name_in_another_script_is_looked_up_in_its_ascii_form(door):
    names = []

    async def lookup(host: str, port: int) -> list[str]:
        names.append(host)
        return ["127.0.0.1"]

    (answer,) = ask([f"http://bücher.example:{door.port}/ok"], lookup, allow_private=True)
    assert answer.body is not None
    assert names == ["xn--bcher-kva.example"]


def test_robots_txt_is_read_once_and_honoured_unless_switched_off(server):
    server.requests.clear()
    urls = [f"{server.url}/img/{name}" for name in ("a.jpg", "secret.jpg", "a.jpg")]
    answers = ask(urls, allow_private=True)
    assert [a.reason for a in answers] == [None, Reason.ROBOTS_DISALLOWED, None]
    assert server.requests["/robots.txt"] == 1
    assert server.requests["/img/secret.jpg"] == 0
    assert [a.reason for a in ask(urls, allow_private=True, robots_txt=False)] == [None] * 3


def test_an_endless_robots_txt_is_read_as_far_as_one_is_and_the_link_then_asked_for():
    with FaultServer({"a.jpg": picture(1)}, "endless") as server:
        (answer,) = ask([f"{server.url}/ok"], allow_private=True)
    assert answer.reason is None


@pytest.mark.parametrize(("status", "then"), [("429", None), ("500", Reason.HTTP_SERVER_ERROR)])
def test_a_robots_txt_in_trouble_is_not_asked_for_again_soon_unless_it_was_busy(door, status, then):
    async def run() -> list[Reason | None]:
        policy = make_policy(FetchConfig(allow_private=True))
        async with HttpClient(ClientLimits(5.0), policy) as client:
            door.robots = status
            first = await client.fetch(f"{door.url}/ok")
            door.robots = None
            return [first.reason, (await client.fetch(f"{door.url}/ok")).reason]

    first, second = asyncio.run(run())
    assert first is not None
    assert second == then


def test_robots_txts_are_forgotten_before_they_fill_the_memory(server, monkeypatch):
    monkeypatch.setattr(robots, "MAX_RULES", 3)

    async def run() -> tuple[int, int]:
        config = FetchConfig(allow_private=True)
        async with HttpClient(
            ClientLimits(5.0), make_policy(config), lookup=fixed(["127.0.0.1"])
        ) as client:
            for i in range(8):
                await client.fetch(f"http://h{i}.example:{server.port}/ok")
            return len(client._robots._rules), client._robots._rules_kept

    assert asyncio.run(run()) == (2, 2)


def test_a_step_ends_at_another_host_and_says_what_the_robots_txt_wants_there(door):
    door.robots = "User-agent: *\nCrawl-delay: 500"

    async def run() -> tuple[Answer, Answer, Answer]:
        config = FetchConfig(allow_private=True, max_redirects=2)
        limits = ClientLimits(5.0, max_redirects=2)
        async with HttpClient(limits, make_policy(config), lookup=fixed(["127.0.0.1"])) as client:
            link = f"http://a.example:{door.port}/to/http://b.example:{door.port}/redirect/1"
            moved = await client.step(link, 0, 5.0)
            end = await client.step(moved.moved_to, moved.hops, 5.0)
            return moved, end, await client.step(moved.moved_to, 2, 5.0)

    moved, end, too_far = asyncio.run(run())
    door.robots = None
    assert (moved.body, moved.reason, moved.hops) == (None, None, 1)
    assert moved.moved_to == f"http://b.example:{door.port}/redirect/1"
    assert (end.reason, end.body, end.gap_s) == (None, door.small, 10.0)
    assert too_far.reason == Reason.TOO_MANY_REDIRECTS


def test_a_link_is_asked_for_as_it_was_written():
    """Signed links break when an escape is spelt in another way."""
    paths = ("/ok?u=https%3A%2F%2Fa%2c%27b%27&s=%e4+a", "/ok?a[]=~%7E", "/ok%3Fx")
    odd = {"/img/../ok": "/ok", "/ok?a b": "/ok?a+b", "/ok?ü": "/ok?%C3%BC"}
    with FaultServer({"a.jpg": picture(1)}) as server:
        urls = [server.url + path for path in (*paths, *odd)]
        assert {a.reason for a in ask(urls, allow_private=True, robots_txt=False)} == {None}
    assert server.as_written >= {*paths[:2], *odd.values()}


def test_no_proxy_of_the_environment_stands_in_between(server, monkeypatch):
    """It would resolve names itself, past every check of addresses."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    (answer,) = ask([f"{server.url}/ok"], allow_private=True)
    assert answer.reason is None


@pytest.mark.parametrize("size", [9_000, 60_000])
def test_a_long_header_does_not_cost_the_picture(server, size):
    (answer,) = ask([f"{server.url}/longheader/{size}"], allow_private=True)
    assert answer.reason is None


def test_headers_without_end_are_cut(server):
    urls = [f"{server.url}/manyheaders", f"{server.url}/longheader/70000"]
    answers = ask(urls, allow_private=True, timeout_s=30)
    assert [a.reason for a in answers] == [Reason.HTTP_PROTOCOL] * 2


def test_links_that_fail_leave_nothing_behind_but_the_reason(server):
    """A kept exception would keep its traceback, and so each request that it ended."""

    async def missing(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no")

    async def run() -> int:
        policy = make_policy(FetchConfig(allow_private=True))
        async with HttpClient(ClientLimits(5.0), policy, lookup=missing) as client:
            for _ in range(2):
                for number in range(20):
                    answer = await client.fetch(f"http://h{number}.example/")
                    assert answer.reason == Reason.DNS_NOT_FOUND
            gc.collect()
            kept = (LookupFailed, Refused, aiohttp.ClientError)
            return sum(issubclass(type(thing), kept) for thing in gc.get_objects())

    assert asyncio.run(run()) < 5


def test_no_file_left_to_open_stops_the_run_and_blames_no_server():
    def full(code: int) -> OSError:
        return OSError(code, "Too many open files")

    for code in (errno.EMFILE, errno.ENFILE):
        error = aiohttp.ClientError("Cannot connect")
        error.__cause__ = full(code)
        with pytest.raises(StageFailed, match="ulimit -n"):
            reason_of(error)


def test_a_machine_without_authorities_stops_the_run_and_blames_no_server(tmp_path, monkeypatch):
    """Small containers lack them; each https link would be recorded as lost for good."""
    text = "certificate verify failed: unable to get local issuer certificate"
    error = ssl.SSLCertVerificationError(1, text)
    assert reason_of(error)[0] == Reason.TLS_FAILED
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    knows_authorities.cache_clear()
    with pytest.raises(StageFailed, match="install them"):
        reason_of(error)
    assert reason_of(ssl.SSLError(1, "wrong version number"))[0] == Reason.TLS_FAILED
    monkeypatch.undo()
    knows_authorities.cache_clear()


def test_a_slow_body_and_a_slow_start_end_at_the_deadline(server):
    urls = [f"{server.url}/drip", f"{server.url}/hang"]
    answers = ask(urls, allow_private=True, timeout_s=0.4)
    assert [a.reason for a in answers] == [Reason.TIMEOUT] * 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), ("0", 0), ("-1", 0), ("soon", 0), ("999999", 3600), ("9" * 5000, 0), ("²", 0)],
)
def test_retry_after_is_read_in_both_forms_and_never_believed_for_long(value, seconds):
    assert retry_after(value) == seconds
    assert 3000 < retry_after("Fri, 01 Jan 2100 00:00:00 GMT") <= 3600


def test_bandwidth_stays_below_its_bound():
    async def run() -> float:
        loop = asyncio.get_running_loop()
        throttle, started = Throttle(1_000_000), loop.time()
        for _ in range(5):
            await throttle.turn()
            throttle.took(50_000)
        await throttle.turn()
        return loop.time() - started

    assert 0.24 < asyncio.run(run()) < 2


def test_bandwidth_is_taken_evenly_not_in_bursts():
    """Forty hands that wait together start one by one, at the pace of what answers bring."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        throttle, starts = Throttle(2_000_000), []

        async def hand() -> None:
            advance = await throttle.turn()
            starts.append(loop.time())
            throttle.took(20_000)
            throttle.ended(advance)

        await hand()
        await asyncio.gather(*(hand() for _ in range(40)))
        return starts

    starts = asyncio.run(run())
    assert 0.35 < starts[-1] - starts[0] < 2
    assert all(later - sooner < 0.2 for sooner, later in pairwise(starts))
    assert max(sum(1 for s in starts if t <= s < t + 0.05) for t in starts) < 12
