"""Outcomes of a URL: the closed list that the fetch stage writes, and that `retry`, `status` and `explain` read."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """One value for each candidate. The detail (an errno, a header, a size) stands beside it in the table of facts."""

    OK = "ok"
    # passing: another try, on another day, may succeed
    DNS_FAILURE = "dns_failure"
    CONNECT_FAILED = "connect_failed"
    CONNECT_TIMEOUT = "connect_timeout"
    CONNECTION_RESET = "connection_reset"
    READ_TIMEOUT = "read_timeout"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    BODY_TRUNCATED = "body_truncated"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    HOST_UNAVAILABLE = "host_unavailable"
    FILE_MISSING = "file_missing"
    FILE_UNREADABLE = "file_unreadable"
    # final: never asked for again, since the answer would be the same or the owner has said no
    FILE_CHANGED = "file_changed"
    INVALID_URL = "invalid_url"
    REFUSED_TARGET = "refused_target"
    TLS_FAILURE = "tls_failure"
    BAD_RESPONSE = "bad_response"
    HTTP_404 = "http_404"
    HTTP_410 = "http_410"
    HTTP_4XX = "http_4xx"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    OPTED_OUT = "opted_out"
    ROBOTS_DISALLOWED = "robots_disallowed"
    BODY_TOO_LARGE = "body_too_large"
    EMPTY_BODY = "empty_body"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_IMAGE = "unsupported_image"
    CORRUPT_IMAGE = "corrupt_image"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_COSTLY = "too_costly"
    IMAGE_TOO_SMALL = "image_too_small"
    ASPECT_TOO_EXTREME = "aspect_too_extreme"
    TAKEDOWN = "takedown"  # never asked: the takedown list knows the picture of this address

    @property
    def passing(self) -> bool:
        """True for a fault that may be gone tomorrow: `plantmix retry` asks for these again."""
        return self in PASSING


UNREACHABLE = frozenset(
    {
        Outcome.DNS_FAILURE,
        Outcome.CONNECT_FAILED,
        Outcome.CONNECT_TIMEOUT,
        Outcome.CONNECTION_RESET,
        Outcome.READ_TIMEOUT,
        Outcome.DEADLINE_EXCEEDED,
    }
)
PASSING = UNREACHABLE | {
    Outcome.BODY_TRUNCATED,
    Outcome.HTTP_429,
    Outcome.HTTP_5XX,
    Outcome.HOST_UNAVAILABLE,
    Outcome.FILE_MISSING,
    Outcome.FILE_UNREADABLE,
}

REASON_OF_RULE = {
    "not_empty": "empty_caption",
    "not_placeholder_like": "looks_like_a_placeholder",
    "not_filename_like": "looks_like_a_filename",
    "not_spam_like": "looks_like_spam",
    "not_bare_name": "bare_scientific_name",
}
"""Caption rules that say what a caption must not be, and the reason that a row is dropped with: what was wrong.

The reason of any other rule is its own name.
"""
