"""What may be fetched: http and https, public addresses only, judged before any connection."""

import functools
import ipaddress
from urllib.parse import urlsplit, urlunsplit

from laionkit.core.reasons import Reason

MAX_URL_CHARS = 8192

# What `ipaddress` calls global and still is nobody's public server: Azure's wire server, the block
# of protocol assignments (RFC 6890), where Oracle keeps its metadata, the relays of 6to4 (RFC 7526)
# and the newer documentation block (RFC 9637).
_INSIDE = tuple(
    ipaddress.ip_network(block)
    for block in ("168.63.129.16/32", "192.0.0.0/24", "192.88.99.0/24", "3fff::/20")
)
# The middle of an ISATAP address (RFC 5214), whose last 32 bits are an IPv4 one.
_ISATAP = (0x00005EFE, 0x02005EFE)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class UrlError(ValueError):
    """A URL that will not be fetched: the reason from the closed list, and what is wrong."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def checked_url(url: str, *, allow_private: bool = False) -> tuple[str, str]:
    """Return (URL to request, host in lower case) or raise UrlError.

    Blanks around are dropped, ``//host/x`` becomes http, a fragment falls away. A host that is an
    address is judged here; a name is judged by what it resolves to.
    """
    text = url.strip()
    if text.startswith("//"):
        text = "http:" + text
    if len(text) > MAX_URL_CHARS:
        raise UrlError(Reason.MALFORMED_URL, f"{len(text)} characters long")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UrlError(Reason.MALFORMED_URL, str(error)) from error
    if parts.scheme not in ("http", "https"):
        shown = parts.scheme or "no scheme"
        raise UrlError(Reason.SCHEME_REFUSED, f"{shown}: only http and https are fetched")
    if not host or port == 0 or any(c < "!" or c.isspace() or c in "\\\x7f" for c in parts.netloc):
        raise UrlError(Reason.MALFORMED_URL, "no usable host")
    host = host.rstrip(".").lower()
    if not allow_private and _is_address(host) and not is_public(host):
        raise UrlError(Reason.ADDRESS_REFUSED, f"{host} is not a public address")
    if parts.fragment or text.endswith("#"):
        text = urlunsplit(parts._replace(fragment=""))
    return text, host


def host_of(url: str | None) -> str:
    """The host a URL names, in lower case; empty where it names none."""
    try:
        return (urlsplit((url or "").strip()).hostname or "").rstrip(".").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


@functools.lru_cache(maxsize=65536)
def is_public(address: str) -> bool:
    """Whether an IP address is somebody's public server.

    Loopback, private, link-local (cloud metadata), shared, multicast, reserved and unspecified
    addresses are not; nor are IPv6 forms that wrap one. What is no address is not public.
    """
    try:
        ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(
            address.partition("%")[0]
        )
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64 or (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo or ip.is_site_local:
            return False
    inside = ip.is_multicast or ip.is_reserved or any(ip in network for network in _INSIDE)
    return ip.is_global and not inside
