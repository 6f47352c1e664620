"""Secrets in addresses: what must not leave the work folder, taken out of a URL or of any text that holds URLs.

Pure. A secret is whatever would let a reader act as somebody else: the user and password of `user:pw@host`, and values
of the query or fragment whose name or shape is that of a token or signature. Identifiers (numbers, UUIDs, hex hashes,
file names) stay, so that the address stays useful.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"
PIPE = "pipe:"  # what begins a shard that is the output of a command
_SECRET_WORDS = frozenset(
    {"signature", "sig", "sign", "signed", "token", "secret", "key", "hmac", "jwt", "nonce", "policy", "ticket", "otp"}
    | {"password", "passwd", "pass", "pwd", "auth", "authorization", "oauth", "credential", "credentials"}
    | {"session", "sessionid", "sid", "cookie"}
)
_SECRET_NAMES = frozenset(
    ["apikey", "accesskey", "authkey", "awsaccesskeyid", "accesstoken", "authtoken", "keypairid", "subscriptionkey"]
)
_FREE_KEYS = ("options",)  # of a configuration: what stands below is for others to read
_SIGNED_BY = (["x", "amz"], ["x", "goog"], ["x", "oss"], ["x", "cos"])  # every parameter of a signed link
_END = r'\s"<>\\'  # what ends a URL within a text or a JSON document
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.\-]*://)"
    # up to the last @ of the host's part; a password may wrongly hold / ? #, but a port is a number
    rf"(?P<user>[^{_END}/?#]*@|[^{_END}/?#@:\[]*:(?!\d+(?:[/?#]|$))[^{_END}@]*@)?"
    rf"(?P<path>[^{_END}?#]*)(?P<query>\?[^{_END}#]*)?(?P<fragment>\#[^{_END}]*)?",
    re.IGNORECASE,
)
MAY_HOLD_SECRETS = r"://\S*[@?#]"
"""A pattern that every text with something to hide fits; most texts do not, and are done with."""


def hide_secrets(text: str) -> str:
    """Return the text with no user and password in any URL of it, and `***` for each secret in a query or fragment.

    The same again when it is given its own answer.
    """
    return _URL.sub(_without_secrets, text) if re.search(MAY_HOLD_SECRETS, text) else text


def hide_in_address(text: str) -> str:
    """Return a value of a column of addresses without its secrets, also where it lacks a scheme."""
    if "://" in text or not re.search("[@?#]", text):
        return hide_secrets(text)
    scheme = "x:" if text.startswith("//") else "x://"
    return hide_secrets(scheme + text).removeprefix(scheme)


def hide_users(text: str) -> str:
    """Return the text with no user and password in any URL of it, and all else as it is."""
    if "@" not in text or "://" not in text:
        return text
    return _URL.sub(lambda url: url[0].replace(url["user"], "", 1) if url["user"] else url[0], text)


def hide_in(value: Any, named: str | None = None) -> Any:
    """JSON values of a configuration without secrets: those of addresses, and of free values also by their names.

    Free are the values below `options`: there `***` stands for each whose key, or a key above it,
    would be masked in a query, and for each that looks like a token. `named` is such a key; None outside. Of a command
    behind `pipe:` the program and the name of a tar are left.
    """
    if isinstance(value, Mapping):
        return {key: hide_in(inner, _named_within(named, str(key))) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(inner, named) for inner in value]
    if named is not None and not isinstance(value, bool) and value not in (None, "") and _names_secret(named):
        return MASK
    if not isinstance(value, str):
        return value
    if value.startswith(PIPE):
        return _without_arguments(value)
    return MASK if named is not None and _looks_secret(value) else hide_secrets(value)


def _without_arguments(pipe: str) -> str:
    """Return a command behind `pipe:` as its program and the last name of a tar in it.

    Any other word may be a secret.
    """
    program = re.match(r"[\w./+-]+(?=\s|$)", pipe.removeprefix(PIPE).lstrip())
    tars = re.findall(r"[\w.-]+\.tar\b", pipe)
    return " ".join([PIPE + (program[0] if program else ""), MASK, *tars[-1:]])


def _named_within(named: str | None, key: str) -> str | None:
    if named is None:
        return "" if key in _FREE_KEYS else None
    return named if _names_secret(named) else key


def mask_secrets(query: str) -> str:
    """Return a query string with `***` for every value that would let a reader of the catalogue act as somebody else.

    Masked are values whose name holds a telling word (signature, token, key, X-Amz-...; names are split at - _ . and
    capitals), JSON web tokens, long mixtures of both cases and digits, which signed links carry under many names, and
    whole addresses with a secret of their own.
    """
    return "&".join(_mask(pair) for pair in query.split("&"))


def _without_secrets(url: re.Match[str]) -> str:
    parts = [url["scheme"], url["path"]]
    for part in (url["query"], url["fragment"]):
        if part:
            parts += [part[0], mask_secrets(part[1:])]
    return "".join(parts)


def _mask(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals:  # a value without a name
        return MASK if _looks_secret(unquote(name)) else pair
    plain = unquote(value)
    if value and (_names_secret(unquote(name)) or _looks_secret(plain) or hide_secrets(plain) != plain):
        return f"{name}={MASK}"
    return pair


def _names_secret(name: str) -> bool:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", " ", name).lower()
    words = spaced.split()
    return bool(_SECRET_WORDS & set(words)) or spaced.replace(" ", "") in _SECRET_NAMES or words[:2] in _SIGNED_BY


def _looks_secret(value: str) -> bool:
    if re.match(r"eyJ[\w-]+\.[\w-]+\.", value):
        return True
    mixed = re.fullmatch(r"[A-Za-z0-9+/_~=.-]{32,}", value)
    return bool(mixed and all(re.search(kind, value) for kind in ("[a-z]", "[A-Z]")) and _is_random(value))


def _is_random(value: str) -> bool:
    """Return true when the kind of character changes often, as it never does in words or in hex."""
    kinds = ["d" if c.isdigit() else "u" if c.isupper() else "l" for c in value if c.isalnum()]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    return changes > 0.35 * len(kinds)
