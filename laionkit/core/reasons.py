"""Why a sample was lost: the closed list. It loads no arrow, and so decoders need none."""

from enum import StrEnum


class Status(StrEnum):
    """What became of a link; the three words are img2dataset's."""

    SUCCESS = "success"
    FAILED_TO_DOWNLOAD = "failed_to_download"
    FAILED_TO_RESIZE = "failed_to_resize"


class Reason(StrEnum):
    """Why a sample was lost: a closed list, one reason a sample.

    A subset's ledger names the failed filter term instead (``aesthetic_v2 >= 6``).
    """

    # metadata: the row never became a link to fetch
    MALFORMED_ROW = "malformed_row"
    MISSING_URL = "missing_url"
    MALFORMED_URL = "malformed_url"
    BLOCKLISTED = "blocklisted"
    OPT_OUT_LIST = "opt_out_list"
    DUPLICATE = "duplicate"
    NOT_SAMPLED = "not_sampled"
    OVER_LIMIT = "over_limit"
    SUPERSEDED = "superseded"  # a picture that changed: its later row counts
    # fetch: never asked for
    TAKEN_DOWN = "taken_down"
    # fetch: no bytes came
    SCHEME_REFUSED = "scheme_refused"
    ADDRESS_REFUSED = "address_refused"
    DNS_NOT_FOUND = "dns_not_found"
    DNS_TEMPORARY = "dns_temporary"
    CONNECT_FAILED = "connect_failed"
    CONNECTION_LOST = "connection_lost"
    TLS_FAILED = "tls_failed"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    HTTP_NOT_FOUND = "http_not_found"
    HTTP_GONE = "http_gone"
    HTTP_FORBIDDEN = "http_forbidden"
    HTTP_RATE_LIMITED = "http_rate_limited"
    HTTP_CLIENT_ERROR = "http_client_error"
    HTTP_SERVER_ERROR = "http_server_error"
    HTTP_PROTOCOL = "http_protocol"
    HOST_PARKED = "host_parked"
    OPTED_OUT = "opted_out"
    ROBOTS_DISALLOWED = "robots_disallowed"
    FILE_MISSING = "file_missing"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_FEW_BYTES = "too_few_bytes"
    TRUNCATED_BODY = "truncated_body"
    HASH_MISMATCH = "hash_mismatch"
    CONTENT_BLOCKED = "content_blocked"
    # fetch and embed: bytes came, and no picture was had of them
    NOT_AN_IMAGE = "not_an_image"
    FORMAT_REFUSED = "format_refused"
    TRUNCATED_IMAGE = "truncated_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    ASPECT_REFUSED = "aspect_refused"
    DECODE_FAILED = "decode_failed"
    DECODE_TIMEOUT = "decode_timeout"
    ENCODE_FAILED = "encode_failed"
    WORKER_CRASHED = "worker_crashed"
    # embed, adopt: what lay in a shard could not be used
    CORRUPT_TAR = "corrupt_tar"
    MEMBER_MISSING = "member_missing"
    ENGINE_FAILED = "engine_failed"
    # head fit: a rating of a sample without a vector; score: a sample without an imported score
    NOT_EMBEDDED = "not_embedded"
    NOT_SCORED = "not_scored"

    @property
    def status(self) -> Status:
        """The img2dataset status of a link lost for this reason."""
        picture = self in _PICTURE_REASONS
        return Status.FAILED_TO_RESIZE if picture else Status.FAILED_TO_DOWNLOAD

    @property
    def may_heal(self) -> bool:
        """Whether trying the link again, now or another day, can succeed."""
        return self in _HEALING_REASONS


_PICTURE_REASONS = frozenset(
    {
        Reason.NOT_AN_IMAGE,
        Reason.FORMAT_REFUSED,
        Reason.TRUNCATED_IMAGE,
        Reason.TOO_MANY_PIXELS,
        Reason.TOO_SMALL,
        Reason.ASPECT_REFUSED,
        Reason.DECODE_FAILED,
        Reason.DECODE_TIMEOUT,
        Reason.ENCODE_FAILED,
        Reason.WORKER_CRASHED,
    }
)
_HEALING_REASONS = frozenset(
    {
        Reason.DNS_TEMPORARY,
        Reason.CONNECT_FAILED,
        Reason.CONNECTION_LOST,
        Reason.TIMEOUT,
        Reason.HTTP_RATE_LIMITED,
        Reason.HTTP_SERVER_ERROR,
        Reason.HTTP_PROTOCOL,
        Reason.HOST_PARKED,
        Reason.TRUNCATED_BODY,
        Reason.TRUNCATED_IMAGE,
        Reason.WORKER_CRASHED,
        Reason.ENGINE_FAILED,
    }
)
