"""Consent: headers of every published form, and robots.txt as RFC 9309 has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.ops.consent import find_opt_out, parse_robots


@pytest.mark.parametrize(
    ("value", "refuses"),
    [
        ("noai", True),
        ("NoAI, NoImageAI", True),
        ("noindex, nofollow", True),
        ("noml", True),
        ("nofollow", False),
        ("all", False),
        ("laionkit: noai", True),
        ("LaionKit: nofollow, noai", True),
        ("googlebot: noai", False),
        ("googlebot: noindex, otherbot: noai", False),
        ("googlebot: nofollow, laionkit: noimageai", True),
        ("max-snippet: 20, noai", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noimageindex", True),
        ("unavailable_after: Fri, 25 Jun 2030 15:00:00 PST, noai", True),
        ("otherbot: unavailable_after: Fri, 25 Jun 2030 15:00:00 PST, noai", False),
        ("*: noai", True),
        ("none", True),
        ("otherbot: none", False),
        ("max-image-preview: none", False),
        ("", False),
    ],
)
def test_the_robots_tag_refuses_whom_it_names(value, refuses):
    found = find_opt_out([("Content-Type", "image/png"), ("X-Robots-Tag", value)], "laionkit")
    assert (found is not None) == refuses


def test_the_evidence_is_the_header_its_value_and_the_servers_time():
    headers = [("X-ROBOTS-TAG", "NoAI"), ("Date", "today")]
    found = find_opt_out(headers, "laionkit")
    assert (found.header, found.value, found.time) == ("x-robots-tag", "NoAI", "today")


def test_every_kind_of_consent_can_be_switched_off_by_name():
    headers = [("x-robots-tag", "noai"), ("tdm-reservation", "1")]
    assert find_opt_out(headers, "laionkit").header == "x-robots-tag"
    assert find_opt_out(headers, "laionkit", x_robots_tag=False).header == "tdm-reservation"
    assert find_opt_out(headers, "laionkit", tdm=False, directives=frozenset({"noml"})) is None
    assert find_opt_out([("tdm-reservation", "0")], "laionkit") is None


ROBOTS = """
User-agent: googlebot
Disallow: /

User-agent: *
Disallow: /private
Allow: /private/open
Disallow: /*.png$
Disallow: /a*b*c
# a comment
User-agent: other
User-agent: laionbot
Disallow: /other
"""


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/", True),
        ("/private/x", False),
        ("/private/open/x", True),
        ("/x.png", False),
        ("/x.png?size=1", True),
        ("/axxbxxcx", False),
        ("/other", True),
    ],
)
def test_the_longest_rule_of_our_group_decides(path, allowed):
    assert (parse_robots(ROBOTS, "laionkit").forbids(path) is None) == allowed


def test_a_group_of_our_own_replaces_the_one_for_all():
    rules = parse_robots(
        "User-agent: *\nDisallow: /\nUser-agent: LAIONkit\nDisallow: /x", "laionkit"
    )
    assert rules.forbids("/y") is None
    assert rules.forbids("/x") == "Disallow: /x"
    assert parse_robots(ROBOTS, "laionbot").forbids("/private") is None


def test_a_group_may_name_our_version_too():
    robots = "User-agent: laionkit/1.0 (images)\nDisallow: /x\nUser-agent: *\nDisallow: /y"
    assert parse_robots(robots, "laionkit").forbids("/x") == "Disallow: /x"
    assert parse_robots(robots, "laionkit").forbids("/y") is None


def test_an_empty_disallow_allows_all():
    assert parse_robots("User-agent: *\nDisallow:", "laionkit").forbids("/x") is None


@pytest.mark.parametrize(
    ("robots", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 2.5\nDisallow: /x", 2.5),
        ("User-agent: laionkit\nDisallow: /x\nUser-agent: *\nCrawl-Delay: 5", 0),
        ("User-agent: other\nCrawl-delay: 9\nUser-agent: laionkit\nDisallow: /x", 0),
        ("User-agent: *\nCrawl-delay: soon", 0),
        ("User-agent: *\nCrawl-delay: 1e9", 0),
        ("Crawl-delay: 3\nUser-agent: *\nDisallow: /x", 0),
    ],
)
def test_the_crawl_delay_of_our_group_is_told_and_changes_no_group(robots, seconds):
    rules = parse_robots(robots, "laionkit")
    assert rules.delay_s == seconds
    assert (rules.forbids("/x") is None) == ("Disallow" not in robots)


@given(st.text(), st.text())
def test_no_robots_txt_raises(text, path):
    parse_robots(f"User-agent: *\nDisallow: {text}\n{text}", "laionkit").forbids("/" + path)


def test_a_hostile_pattern_is_matched_in_time():
    rules = parse_robots("User-agent: *\nDisallow: /" + "*a" * 500 + "$", "laionkit")
    assert rules.forbids("/" + "a" * 2000 + "b") is None


@pytest.mark.parametrize(
    ("rule", "path"),
    [
        ("/ü", "/%C3%BC/x.jpg"),
        ("/%c3%bc", "/ü"),
        ("/a%2Db", "/a-b"),
        ("/a-b", "/a%2db"),
        ("/x%2fy", "/x%2Fy"),
    ],
)
def test_rules_and_paths_are_compared_in_the_same_octets(rule, path):
    rules = parse_robots(f"User-agent: *\nDisallow: {rule}", "laionkit")
    assert rules.forbids(path) is not None
    assert rules.forbids("/other") is None
    assert parse_robots("User-agent: *\nDisallow: /x%2Fy", "laionkit").forbids("/x/y") is None
