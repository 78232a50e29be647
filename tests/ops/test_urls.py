"""Which links may be fetched, judged before any connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.schemas import Reason
from laionkit.ops.urls import UrlError, checked_url, is_public

PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.0.192", "168.63.129.16", "240.0.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fec0::1"),
    *("64:ff9b:1::7f00:1", "2001:4860::5efe:10.0.0.1", "192.88.99.1", "3fff::1", "::127.0.0.1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "100.100.100.200", "no address", ""),
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_known_in_every_spelling(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_let_through(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/x.jpg", Reason.SCHEME_REFUSED),
        ("file:///etc/passwd", Reason.SCHEME_REFUSED),
        ("data:image/png;base64,xx", Reason.SCHEME_REFUSED),
        ("example.org/x.jpg", Reason.SCHEME_REFUSED),
        ("http://", Reason.MALFORMED_URL),
        ("http:///x.jpg", Reason.MALFORMED_URL),
        ("http://host:99999/", Reason.MALFORMED_URL),
        ("http://[::1", Reason.MALFORMED_URL),
        ("http://a b/", Reason.MALFORMED_URL),
        ("http://a\x1b[2Jb/", Reason.MALFORMED_URL),
        ("http://a\x00b/", Reason.MALFORMED_URL),
        ("http://good.org\\@127.0.0.1/", Reason.MALFORMED_URL),
        ("http://127.0.0.1/x", Reason.ADDRESS_REFUSED),
        ("http://user:pass@10.0.0.1:8080/x", Reason.ADDRESS_REFUSED),
        ("http://[::ffff:127.0.0.1]/x", Reason.ADDRESS_REFUSED),
        ("http://2130706433/x", Reason.ADDRESS_REFUSED),
        ("http://example.org/" + "x" * 9000, Reason.MALFORMED_URL),
    ],
)
def test_what_may_not_be_fetched_is_refused_with_its_reason(url, reason):
    with pytest.raises(UrlError) as caught:
        checked_url(url)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (" http://Example.ORG/a b?c#frag ", ("http://Example.ORG/a b?c", "example.org")),
        ("//cdn.example.org/x", ("http://cdn.example.org/x", "cdn.example.org")),
        ("https://example.org./x", ("https://example.org./x", "example.org")),
        ("https://bücher.example/ü.jpg", ("https://bücher.example/ü.jpg", "bücher.example")),
    ],
)
def test_a_link_is_tidied_before_it_is_asked_for(url, wanted):
    assert checked_url(url) == wanted


def test_ones_own_servers_can_be_allowed():
    assert checked_url("http://127.0.0.1:8000/x", allow_private=True)[1] == "127.0.0.1"


@given(st.text())
def test_no_text_raises_anything_but_a_reason(text):
    for url in (text, f"http://{text}", f"http://example.org/{text}"):
        try:
            checked_url(url)
        except UrlError as error:
            assert error.reason in Reason
