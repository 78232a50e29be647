"""Consent as a user meets it: what refuses, the evidence kept, and each switch by its name."""

import json

import pytest

from tests.fault_server import DATE, FaultServer
from tests.stages.shards import picture
from tests.stages.test_fetch import make_dataset, rows_of

ROBOTS = "User-agent: laionkit\nDisallow: /img/secret\nUser-agent: *\nDisallow: /\n"
REFUSED = {
    "X-Robots-Tag: noai": ("x-robots-tag", "noai"),
    "x-robots-tag: NoImageAI": ("x-robots-tag", "NoImageAI"),
    "X-ROBOTS-TAG: max-snippet: 3, noindex": ("x-robots-tag", "max-snippet: 3, noindex"),
    "X-Robots-Tag: noimageindex": ("x-robots-tag", "noimageindex"),
    "X-Robots-Tag: nofollow|X-Robots-Tag: noml": ("x-robots-tag", "noml"),
    "X-Robots-Tag: otherbot: noai|X-Robots-Tag: LAIONkit: noai": ("x-robots-tag", "LAIONkit: noai"),
    "TDM-Reservation: 1": ("tdm-reservation", "1"),
}
ALLOWED = (
    "X-Robots-Tag: otherbot: noai, noindex",
    "X-Robots-Tag: nofollow, noarchive",
    "TDM-Reservation: 0",
)
CALM = ("-q", "--workers", 1, "--allow-private", "--retries", 0)


@pytest.fixture
def server():
    pictures = {"a.jpg": picture(1), "secret.jpg": picture(2)}
    with FaultServer(pictures, ROBOTS) as running:
        yield running


@pytest.fixture
def dataset(tmp_path, server):
    headers = [f"/header/{header}".replace(" ", "%20") for header in (*REFUSED, *ALLOWED)]
    paths = [*headers, "/img/a.jpg", "/img/secret.jpg"]
    return make_dataset(tmp_path, [f"{server.url}{path}" for path in paths], 100)


def reasons(dataset: str) -> list[str | None]:
    return rows_of(dataset).column("reason").to_pylist()


def test_every_refusal_is_honoured_with_its_evidence_and_nothing_else_is(dataset, server, laionkit):
    ran = laionkit("fetch", dataset, *CALM)
    assert ran.code == 0
    rows = rows_of(dataset).to_pylist()
    for row, (header, value) in zip(rows, REFUSED.values(), strict=False):
        assert row["reason"] == "opted_out"
        assert row["error_message"] == f"{header}: {value}"
        evidence = {"header": header, "value": value, "time": DATE}
        assert json.loads(row["opt_out"]) == evidence
    others = rows[len(REFUSED) :]
    assert [row["reason"] for row in others] == [None] * 4 + ["robots_disallowed"]
    assert {row["opt_out"] for row in others[:-1]} == {None}
    rule = {"header": "robots.txt", "value": "Disallow: /img/secret", "time": DATE}
    assert json.loads(others[-1]["opt_out"]) == rule
    assert server.requests["/robots.txt"] == 1
    assert server.requests["/img/secret.jpg"] == 0


@pytest.mark.parametrize(
    ("flags", "still_refused"),
    [
        (("--no-x-robots-tag",), {"opted_out": 1, "robots_disallowed": 1}),
        (("--no-tdm-reservation",), {"opted_out": 6, "robots_disallowed": 1}),
        (("--no-robots-txt",), {"opted_out": 7}),
        (
            ("--opt-out-directives", "noml,noimageai"),
            {"opted_out": 3, "robots_disallowed": 1},
        ),
        (("--no-x-robots-tag", "--no-tdm-reservation", "--no-robots-txt"), {}),
    ],
)
def test_each_kind_of_consent_is_switched_off_by_its_own_name(
    dataset, laionkit, flags, still_refused
):
    ran = laionkit("fetch", dataset, *CALM, "--json", *flags)
    assert ran.json()["counts"]["reasons"] == still_refused


def test_the_agent_is_honest_and_a_missing_contact_is_warned_about(
    tmp_path, dataset, server, laionkit
):
    with_contact = laionkit("fetch", dataset, *CALM, "--contact", "https://example.org/bot")
    assert with_contact.err == ""
    (agent,) = server.agents
    assert agent.startswith("laionkit/")
    assert agent.endswith(" (+https://example.org/bot)")
    public = make_dataset(tmp_path / "public", ["http://nowhere.invalid/x"])
    without = laionkit("fetch", public, "-q", "--retries", 0)
    assert "add --contact with a URL or an e-mail address" in without.err


def test_a_contact_of_two_lines_is_refused_before_any_link_is_asked_for(dataset, server, laionkit):
    ran = laionkit("fetch", dataset, *CALM, "--contact", "me\r\nX-Injected: 1")
    assert ran.code == 2
    assert "give a URL or an e-mail address in one line" in ran.err
    assert server.requests.total() == 0


@pytest.mark.parametrize("status", [429, 503])
def test_a_robots_txt_that_is_in_trouble_holds_its_links_back_and_they_may_heal(
    tmp_path, server, laionkit, status
):
    """RFC 9309, 2.3.1.4: nothing is asked for then; another day it may be."""
    server.robots = str(status)
    dataset = make_dataset(tmp_path, [f"{server.url}/img/a.jpg"])
    laionkit("fetch", dataset, *CALM)
    (row,) = rows_of(dataset).to_pylist()
    assert row["error_message"] == f"its robots.txt: HTTP {status}"
    assert server.requests["/img/a.jpg"] == 0
    server.robots = None
    healed = laionkit("fetch", dataset, *CALM, "--retry", "--json").json()
    assert healed["counts"]["ok"] == 1
