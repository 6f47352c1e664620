"""GBIF's API over HTTP: bounded answers, pauses as it asks for them, patience that ends.

Passing faults (no connection, 5xx, 429) are tried again after a pause that doubles, or as long as Retry-After says. The
password goes to GBIF's own address only, over https (or to this machine). Raises RunError when GBIF stays away, and
ConfigError for what it refuses for good. Logs pauses, and never who asks.
Source: https://techdocs.gbif.org/en/data-use/api-downloads; status 420 is what GBIF sent in place of 429 until 2020.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3

from manifests.errors import ConfigError, RunError

log = logging.getLogger("plantmix.gbif")

MAX_FAULTS = 8  # in a row: about four minutes of pauses
_MAX_ANSWER_BYTES = 64 << 20  # a download of all of GBIF has about 60,000 data sets; they come in pages
_MAX_PAUSE_SECONDS = 60.0
_CHUNK_BYTES = 1 << 20
_TOLD_SECONDS = 30.0
ASKED_TOO_MUCH = (420, 429)
_REDIRECTS = urllib3.Retry(5, connect=0, read=0, status=0, other=0, redirect=5)
_TIMEOUT = urllib3.Timeout(connect=15.0, read=120.0)


@dataclass(frozen=True)
class Account:
    """Who asks GBIF. Never printed."""

    user: str
    password: str
    email: str

    def __repr__(self) -> str:
        return "Account(...)"

    @property
    def headers(self) -> dict[str, str]:
        """Basic authentication."""
        return dict(urllib3.make_headers(basic_auth=f"{self.user}:{self.password}"))


def account_of(environment: Mapping[str, str]) -> Account | None:
    """Return the account that the environment names; None when user or password is missing."""
    user, password = environment.get("GBIF_USER", ""), environment.get("GBIF_PWD", "")
    return Account(user, password, environment.get("GBIF_EMAIL", "")) if user and password else None


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of one answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The start of the body, on one line, for messages."""
        return " ".join(self.body[:500].decode("utf-8", "replace").split())[:200]


class GbifApi:
    """Questions to one GBIF."""

    def __init__(self, base: str, user_agent: str, account: Account | None) -> None:
        parts = urlsplit(base)
        if account and parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigError(f"gbif.api {base}: a password is sent over https only")
        self._base, self._account = base.rstrip("/"), account
        self._pool = urllib3.PoolManager(headers={"User-Agent": user_agent}, retries=False, timeout=_TIMEOUT)
        self._num_faults = 0

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def get(self, path: str, *, signed: bool = False, **query: Any) -> Any:
        """JSON at a path; None where GBIF has nothing (404)."""
        url = f"{self._base}/{path}" + (f"?{urlencode(query)}" if query else "")
        what = "GET the list of your downloads" if signed else f"GET {path}"  # a signed path names the user
        while (answer := self._try("GET", url, what, signed, passing=ASKED_TOO_MUCH)) is None:
            continue
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise refused(answer)
        try:
            return json.loads(answer.body)
        except ValueError:
            raise RunError(f"GBIF: {what} gave no JSON, but: {answer.text}; try again later") from None

    def post(self, path: str, content: dict[str, Any]) -> Answer | None:
        """Send JSON once, signed; None when nobody knows whether GBIF got it, after a pause."""
        return self._try("POST", f"{self._base}/{path}", f"POST {path}", True, json.dumps(content).encode())

    def wait_for_room(self, answer: Answer, num_tries: int) -> None:
        """Wait before the same request once more, because other downloads of this user are being made."""
        seconds = _retry_after(answer.headers)
        seconds = min(300.0, 30.0 * 2.0 ** min(num_tries, 5)) if seconds is None else seconds
        log.info("GBIF makes no further download now (%s); asking again in %.0f s", answer.text, seconds)
        sleep(seconds)

    def download(self, path: str, part: Path, num_bytes: int, what: str) -> bool:
        """Append to `part` until it holds `num_bytes`; False when GBIF has no such file.

        What is there already is not asked for again, unless the server cannot send the rest alone.
        """
        part.touch()
        last_size = part.stat().st_size
        while (size := part.stat().st_size) < num_bytes:
            self._num_faults = 0 if size > last_size else self._num_faults
            last_size = size
            if (free := shutil.disk_usage(part.parent).free) < num_bytes - size:
                raise RunError(f"{part}: {num_bytes - size:,} bytes are to come, but that disk has {free:,} free")
            try:
                if self._append(f"{self._base}/{path}", part, size, num_bytes, what) == 404:
                    return False
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if isinstance(error, OSError) and error.errno == 28:
                    raise
                self._pause_after_fault(f"{what}: {type(error).__name__} after {part.stat().st_size:,} bytes")
        if part.stat().st_size > num_bytes:
            part.unlink()
            raise RunError(f"{what}: GBIF sent more than the {num_bytes:,} bytes that it stated; run build again")
        self._num_faults = 0
        return True

    def _append(self, url: str, part: Path, size: int, num_bytes: int, what: str) -> int:
        headers = {"Range": f"bytes={size}-"} if size else {}
        response = self._pool.request(
            "GET", url, headers={**self._pool.headers, **headers}, retries=_REDIRECTS, preload_content=False,
            decode_content=False,
        )  # fmt: skip
        with response, part.open("ab") as stream:
            if response.status in (404, 410):
                return 404
            if response.status in ASKED_TOO_MUCH or response.status >= 500:
                self._pause_after_fault(f"{what}: status {response.status}", _retry_after(response.headers))
                return response.status
            if response.status not in (200, 206):
                raise refused(Answer(response.status, response.headers, response.read(500)))
            if response.status == 200 or not response.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
                if response.status == 206:
                    raise RunError(f"{what}: GBIF sent another piece than was asked for; run build again")
                stream.truncate(0)
            told = time.monotonic()
            for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
                stream.write(chunk)
                if stream.tell() > num_bytes:
                    break
                if time.monotonic() - told > _TOLD_SECONDS:
                    told = time.monotonic()
                    log.info("%s: %.0f of %.0f MB", what, stream.tell() / 1e6, num_bytes / 1e6)
            stream.flush()
            os.fsync(stream.fileno())
        return response.status

    def _send(self, method: str, url: str, signed: bool, body: bytes | None = None) -> Answer:
        headers = dict(self._pool.headers)
        if signed:
            assert self._account is not None, "checked before the first request"
            headers |= self._account.headers
        if body is not None:
            headers["Content-Type"] = "application/json"
        with self._pool.request(method, url, body=body, headers=headers, redirect=False, preload_content=False) as got:
            content = bytearray()
            for chunk in got.stream(_CHUNK_BYTES):
                content += chunk
                if len(content) > _MAX_ANSWER_BYTES:
                    raise RunError(f"GBIF: an answer has more than {_MAX_ANSWER_BYTES:,} bytes")
            return Answer(got.status, got.headers, bytes(content))

    def _try(
        self, method: str, url: str, what: str, signed: bool, body: bytes | None = None, passing: Collection[int] = ()
    ) -> Answer | None:
        """Return the answer; None after a fault that may pass, which statuses in `passing` are too, and a pause."""
        try:
            answer = self._send(method, url, signed, body)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._pause_after_fault(f"{what}: {type(error).__name__}")
            return None
        if answer.status in passing or answer.status >= 500:
            self._pause_after_fault(f"{what}: status {answer.status}", _retry_after(answer.headers))
            return None
        self._num_faults = 0
        return answer

    def _pause_after_fault(self, what: str, seconds: float | None = None) -> None:
        """Wait before the next try.

        Raises: RunError when there were too many faults in a row.
        """
        self._num_faults += 1
        if self._num_faults > MAX_FAULTS:
            raise RunError(f"GBIF cannot be reached ({what}); run build again later, it goes on where it was")
        seconds = min(_MAX_PAUSE_SECONDS, 2.0**self._num_faults) if seconds is None else seconds
        log.info("GBIF: %s; trying again in %.0f s", what, seconds)
        sleep(seconds)


def refused(answer: Answer) -> ConfigError:
    """Return the error for an answer that will stay the same."""
    if answer.status in (401, 403):
        return ConfigError(f"GBIF refuses this user (status {answer.status}); check GBIF_USER and GBIF_PWD")
    return ConfigError(f"GBIF refuses the request (status {answer.status}): {answer.text}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "").strip()
    return min(float(text), 3600.0) if text.isdigit() else None
