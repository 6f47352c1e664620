"""The answer to one request, and the meaning of statuses, headers and errors.

Pure. Raises nothing: an error that is not known here becomes a bad_response with the error's words.
"""

from __future__ import annotations

import email.utils
import os
import time
import zlib
from dataclasses import dataclass

from manifests.contract.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one request: a body, a redirect (`location`), or an outcome that is not ok."""

    outcome: Outcome
    detail: str = ""
    http_status: int | None = None
    body: bytes = b""
    location: str | None = None
    retry_after_seconds: float | None = None
    seconds: float = 0.0
    was_sent: bool = True  # false when no request went out
    said: list[str] | None = None  # what its headers say about use; None without a picture


def refuse_status(status: int) -> Outcome | None:
    """Return the outcome of a status that brings no picture; None for 200 and for 203, which is a proxy's 200."""
    if status in (200, 203):
        return None
    if status in (204, 205):
        return Outcome.EMPTY_BODY
    named = {404: Outcome.HTTP_404, 410: Outcome.HTTP_410, 429: Outcome.HTTP_429}
    if status in named:
        return named[status]
    if 400 <= status < 500:
        return Outcome.HTTP_4XX
    return Outcome.HTTP_5XX if 500 <= status < 600 else Outcome.BAD_RESPONSE


def parse_retry_after(value: str | None, date: str | None = None) -> float | None:
    """Seconds a Retry-After header asks for, in either of its forms; `date` is the server's own clock."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    try:
        now = email.utils.parsedate_to_datetime(date or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        now = time.time()
    return max(0.0, until - now)


def explain_failure(code: int, text: str, system_error: int = 0) -> tuple[Outcome, str]:
    """Outcome and detail of an error of libcurl: its code (CURLE_*), its own words, and the errno behind it."""
    import pycurl  # an extra brings it

    of_tls = {
        pycurl.E_SSL_CONNECT_ERROR,
        pycurl.E_PEER_FAILED_VERIFICATION,
        pycurl.E_SSL_CACERT_BADFILE,
        pycurl.E_SSL_CIPHER,
        pycurl.E_SSL_CERTPROBLEM,
        pycurl.E_SSL_ISSUER_ERROR,
    }
    system = os.strerror(system_error) if system_error else ""
    if code == pycurl.E_SSL_CONNECT_ERROR and any(words in text for words in _GONE):
        return Outcome.CONNECTION_RESET, system or "closed during the TLS handshake"
    if code in of_tls:
        return Outcome.TLS_FAILURE, text[:_MAX_DETAIL_CHARS]
    if code == pycurl.E_COULDNT_CONNECT:
        return Outcome.CONNECT_FAILED, system or "no connection"
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return Outcome.CONNECT_TIMEOUT, "no connection in time"
    if code == pycurl.E_PARTIAL_FILE:
        return Outcome.BODY_TRUNCATED, "fewer bytes came than were announced"
    if code in (pycurl.E_GOT_NOTHING, pycurl.E_SEND_ERROR):
        return Outcome.CONNECTION_RESET, system or "closed without an answer"
    if code == pycurl.E_RECV_ERROR and "chunk" not in text:  # broken chunks have the same code
        return Outcome.CONNECTION_RESET, system or "closed in the middle"
    return Outcome.BAD_RESPONSE, text[:_MAX_DETAIL_CHARS]


UNEXPECTED_END = "unexpected eof"  # OpenSSL's words for a connection that ends without TLS's close_notify
_GONE = (UNEXPECTED_END, "Recv failure", "Send failure", "reset by peer", "SSL_ERROR_SYSCALL")
_MAX_DETAIL_CHARS = 200


def unpack(body: bytes, encoding: str, max_body_bytes: int, status: int) -> Answer:
    """Decode a whole body. We asked for no content encoding. The limit of bytes holds for the result too."""
    encoding = encoding.strip().lower()
    if (encoding in ("gzip", "x-gzip") and body[:2] == b"\x1f\x8b") or encoding == "deflate":
        unpacker = zlib.decompressobj(wbits=47 if encoding != "deflate" or body[:1] == b"\x78" else -15)
        try:
            plain = unpacker.decompress(body, max_body_bytes + 1)
        except zlib.error as error:
            return Answer(Outcome.BAD_RESPONSE, f"broken {encoding} body: {error}", status)
        if len(plain) > max_body_bytes:
            return Answer(Outcome.BODY_TOO_LARGE, f"unpacks to more than {max_body_bytes} bytes", status)
        if not unpacker.eof:
            return Answer(Outcome.BODY_TRUNCATED, f"{encoding} body ends early", status)
        body = plain
    elif encoding not in ("", "identity", "gzip", "x-gzip"):
        return Answer(Outcome.BAD_RESPONSE, f"content encoding {encoding[:40]} was not asked for", status)
    if not body:
        return Answer(Outcome.EMPTY_BODY, "no bytes", status)
    return Answer(Outcome.OK, http_status=status, body=body)
