"""Bodies that come compressed though none was asked for, within a bound.

What the bytes say counts: servers name gzip where they send none, and send it without a name.
"""

import zlib

from laionkit.backends.http.answers import Answer, Refused
from laionkit.core.schemas import Reason

_GZIP, _ZLIB, _BARE = 31, 15, -15
# Encodings that Python has no decoder of before 3.14.
_UNREADABLE = frozenset({"br", "zstd", "compress"})


def inflate(body: bytes, encoding: str, max_bytes: int, *, is_cut: bool = False) -> bytes:
    """A body without its Content-Encoding. Raises Refused where it is too long or ends early.

    `is_cut` takes what there is of a body that ends early.
    """
    encoding = encoding.strip().lower()
    if encoding in _UNREADABLE:
        detail = f"Content-Encoding: {encoding}, which was not asked for"
        raise Refused(Answer(None, Reason.HTTP_PROTOCOL, detail, bytes_in=len(body)))
    kind = _kind(body, encoding)
    if not kind:
        return body
    stream = zlib.decompressobj(kind)
    try:
        data = stream.decompress(body, max_bytes + 1)
    except zlib.error:
        return body
    if is_cut:
        return data
    if len(data) > max_bytes:
        detail = f"over {max_bytes} bytes, unpacked"
        raise Refused(Answer(None, Reason.TOO_MANY_BYTES, detail, bytes_in=len(body)))
    if not stream.eof:
        detail = "the compressed body ends early"
        raise Refused(Answer(None, Reason.TRUNCATED_BODY, detail, bytes_in=len(body)))
    return data


def _kind(body: bytes, encoding: str) -> int:
    """How zlib is to read a body; 0 where it is none of zlib's."""
    if body[:2] == b"\x1f\x8b":
        return _GZIP
    if encoding != "deflate" or len(body) < 2:
        return 0
    return _ZLIB if body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0 else _BARE
