"""Names to addresses: the system's resolver, a DNS server of one's own, and both when they fail."""

import asyncio
import socket
import struct
import threading

import pytest

from laionkit.backends.http.dns import DnsClient, read_reply, split_server
from laionkit.core.errors import ConfigError
from laionkit.core.schemas import Reason
from tests.backends.http.test_client import ask
from tests.fault_dns import FaultDns
from tests.fault_server import FaultServer
from tests.stages.shards import picture


@pytest.fixture(scope="module")
def server():
    with FaultServer({"a.jpg": picture(1)}) as running:
        yield running


def test_names_that_do_not_resolve_say_whether_they_may_come_back():
    async def missing(host: str, port: int) -> list[str]:
        kind = socket.EAI_NONAME if host == "gone.example" else socket.EAI_AGAIN
        raise socket.gaierror(kind, "no")

    reasons = [a.reason for a in ask(["http://gone.example/", "http://later.example/"], missing)]
    assert reasons == [Reason.DNS_NOT_FOUND, Reason.DNS_TEMPORARY]


def test_a_lookup_that_hangs_costs_its_link_alone_and_holds_no_exit_up(server, monkeypatch):
    done, ask_system = threading.Event(), socket.getaddrinfo

    def hang(host: str, *rest: object, **more: object) -> list:
        if host == "hang.example":
            done.wait(60)
        return ask_system(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    urls = ["http://hang.example/", f"http://localhost:{server.port}/ok"]
    answers = ask(urls, allow_private=True, timeout_s=0.5, robots_txt=False)
    assert [a.reason for a in answers] == [Reason.TIMEOUT, None]
    left = [thread for thread in threading.enumerate() if thread.name == "dns"]
    assert [thread.daemon for thread in left] == [True]
    done.set()
    left[0].join(5)


def test_a_dns_server_of_ones_own_is_asked_directly():
    dns = FaultDns()
    client = DnsClient(dns.server)
    assert asyncio.run(client.look_up("pictures.example", 80)) == ["127.0.0.9"]
    with pytest.raises(socket.gaierror) as caught:
        asyncio.run(client.look_up("nx.example", 80))
    assert caught.value.errno == socket.EAI_NONAME
    dns.close()


def test_a_dns_server_that_fails_at_ipv6_alone_is_believed_about_ipv4():
    dns = FaultDns()
    dns.knows_ipv6 = False
    assert asyncio.run(DnsClient(dns.server).look_up("pictures.example", 80)) == ["127.0.0.9"]
    dns.close()


def test_an_unreadable_dns_reply_is_a_temporary_failure():
    query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\1a\0" + struct.pack(">2H", 1, 1)
    for reply in (b"", query, struct.pack(">6H", 7, 0x8180, 1, 9, 0, 0), b"\xff" * 40):
        with pytest.raises(socket.gaierror):
            read_reply(reply, query, 1)


def test_a_resolver_that_is_no_address_is_a_config_error():
    assert split_server("1.1.1.1") == ("1.1.1.1", 53)
    assert split_server("127.0.0.1:5353") == ("127.0.0.1", 5353)
    assert split_server("[::1]:54") == ("::1", 54)
    assert split_server("2606:4700:4700::1111") == ("2606:4700:4700::1111", 53)
    with pytest.raises(ConfigError, match="give one such as"):
        split_server("dns.google")
