"""A URL as people and servers write it, turned into what an HTTP request needs, credentials apart.

Text in, Target out. Pure. Gives up with BadURL (an outcome and a detail that holds no credential).
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, urljoin, urlsplit

from manifests.contract.outcomes import Outcome
from manifests.masking import mask_secrets

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_URL_CHARS = 8192


class BadURL(Exception):  # noqa: N818
    """A URL that is not requested."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes."""

    scheme: str
    hostname: str  # ASCII, lower case, no brackets
    port: int
    path: str  # with the query, percent-encoded
    authorization: str | None = None  # Basic credentials of the URL; never printed or stored

    @property
    def host(self) -> str:
        """The host's name in limits and records; with its port where that is not the usual one."""
        name = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return name if self.port == _DEFAULT_PORTS[self.scheme] else f"{name}:{self.port}"

    @property
    def origin(self) -> str:
        """Scheme and host: what one robots.txt is for."""
        return f"{self.scheme}://{self.host}"

    @property
    def url(self) -> str:
        """The whole URL without credentials and fragment."""
        return self.origin + self.path

    @property
    def shown_url(self) -> str:
        """The URL as it may be stored and printed, with secrets in its query masked."""
        path, mark, query = self.path.partition("?")
        return self.origin + path + mark + mask_secrets(query)

    def __repr__(self) -> str:
        return f"Target({self.shown_url})"


def parse_url(text: str) -> Target:
    """Raise BadURL with invalid_url, or refused_target for a scheme that is not http or https."""
    text = (text or "").strip()
    if not text or len(text) > _MAX_URL_CHARS:
        raise BadURL(Outcome.INVALID_URL, f"{len(text)} characters")
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise BadURL(Outcome.INVALID_URL, "holds control characters")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadURL(Outcome.INVALID_URL, "port or brackets are wrong: " + type(error).__name__) from None
    if not parts.scheme:
        raise BadURL(Outcome.INVALID_URL, "no scheme")
    if parts.scheme not in _DEFAULT_PORTS:
        raise BadURL(Outcome.REFUSED_TARGET, f"scheme {parts.scheme[:20]}, only http and https are asked")
    path = _quote(parts.path or "/") + (f"?{_quote(parts.query)}" if parts.query else "")
    return Target(
        parts.scheme,
        _ascii_host(parts.hostname),
        _DEFAULT_PORTS[parts.scheme] if port is None else port,
        path,
        _basic(parts.username, parts.password),
    )


def follow(target: Target, location: str) -> Target:
    """Return the target of a redirect. Credentials are kept only for the same origin.

    Raises: BadURL.
    """
    try:
        joined = urljoin(target.url, location.strip())
    except ValueError:
        raise BadURL(Outcome.BAD_RESPONSE, "redirect to something that is no URL") from None
    try:
        redirected = parse_url(joined)
    except BadURL as error:
        outcome = Outcome.BAD_RESPONSE if error.outcome is Outcome.INVALID_URL else error.outcome
        raise BadURL(outcome, f"redirect: {error.detail}") from None
    keep = target.authorization if redirected.origin == target.origin else None
    return replace(redirected, authorization=redirected.authorization or keep)


def _ascii_host(hostname: str | None) -> str:
    host = (hostname or "").rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            host = ""
    host = host.lower()
    labels_fit = all(0 < len(label) <= 63 for label in host.split("."))
    if not host or len(host) > 253 or not ((re.fullmatch(r"[a-z0-9._\-]+", host) and labels_fit) or ":" in host):
        raise BadURL(Outcome.INVALID_URL, "no usable host name")
    return host


def _quote(text: str) -> str:
    """Percent-encode what a request line must not hold; what is already encoded stays as it is."""
    text = re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)
    return quote(text, safe="%/?:@!$&'()*+,;=~-._[]|")


def _basic(username: str | None, password: str | None) -> str | None:
    if username is None:
        return None
    pair = f"{unquote(username)}:{unquote(password or '')}".encode()
    return "Basic " + base64.b64encode(pair).decode("ascii")
