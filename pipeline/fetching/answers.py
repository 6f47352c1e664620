"""What one request gave: the answer, and what statuses, headers and errors mean.

Pure. Raises nothing: an error that is not known here becomes a bad_response with the error's name.
"""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
from dataclasses import dataclass
from typing import Any

import urllib3

from manifests.outcomes import Outcome


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request gave: a body, a redirect (`location`), or an outcome that is not ok."""

    outcome: Outcome
    detail: str = ""
    http_status: int | None = None
    body: bytes = b""
    location: str | None = None
    retry_after_seconds: float | None = None
    seconds: float = 0.0
    was_sent: bool = True  # false when no request went out


def refuse_status(status: int) -> Outcome | None:
    """The outcome of a status that brings no picture; None for 200 and for 203, which is a proxy's 200."""
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


def explain_failure(error: Exception) -> tuple[Outcome, str]:
    """Outcome and detail of an error from urllib3, http.client or the system."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            reason = getattr(cause, "verify_message", "") or cause.reason or "handshake failed"
            return Outcome.TLS_FAILURE, str(reason)
        if isinstance(cause, urllib3.exceptions.NewConnectionError):
            return Outcome.CONNECT_FAILED, str(cause.args[-1]).rpartition(": ")[2]
        if isinstance(cause, urllib3.exceptions.ConnectTimeoutError):
            return Outcome.CONNECT_TIMEOUT, "no connection in time"
        if isinstance(cause, (TimeoutError, urllib3.exceptions.ReadTimeoutError)):
            return Outcome.READ_TIMEOUT, "silent for too long"
    for cause in chain:
        if isinstance(cause, (ConnectionError, ssl.SSLError)):  # RemoteDisconnected is one
            return Outcome.CONNECTION_RESET, type(cause).__name__
        if isinstance(cause, urllib3.exceptions.InvalidChunkLength) and cause.length:
            return Outcome.BAD_RESPONSE, "chunked body with a length that is no number"
        if isinstance(cause, (urllib3.exceptions.IncompleteRead, http.client.IncompleteRead)):
            return Outcome.BODY_TRUNCATED, "fewer bytes came than were announced"
    return Outcome.BAD_RESPONSE, type(chain[-1]).__name__


def causes(error: BaseException) -> list[BaseException]:
    """The error and those wrapped in it, outermost first."""
    found: list[BaseException] = []
    rest: list[Any] = [error]
    while rest and len(found) < 10:
        here = rest.pop(0)
        if isinstance(here, BaseException) and here not in found:
            found.append(here)
            rest += [*here.args, getattr(here, "reason", None), here.__cause__]
    return found
