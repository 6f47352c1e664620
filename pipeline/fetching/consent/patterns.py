"""Patterns of paths, as robots.txt, tdmrep.json and RSL licences write them. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote

_PERCENT = re.compile("%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def plain_path(path: str) -> str:
    """Return a path of a request as patterns are compared with: its own `*` and `$` are no marks."""
    return unescaped(path).replace("$", "%24").replace("*", "%2A")


def unescaped(path: str) -> str:
    """Return a path in which only those characters are percent-encoded that must be."""
    return _PERCENT.sub(lambda match: _plain_or_upper(match[0]), path)


def _plain_or_upper(escaped: str) -> str:
    plain = unquote(escaped, errors="replace")
    return plain if plain in _UNRESERVED else escaped.upper()


def fits(pattern: str, path: str) -> bool:
    """Return true when a path begins as the pattern says; `*` is any text, `$` at the end is the end of the path.

    Each piece is looked for once, so that a pattern of many stars takes no longer than the path is long.
    """
    is_whole = pattern.endswith("$")
    first, *pieces = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    if not pieces:
        return not is_whole or path == first
    position = len(first)
    for piece in pieces[:-1] if is_whole else pieces:
        start = path.find(piece, position)
        if start < 0:
            return False
        position = start + len(piece)
    return not is_whole or (path.endswith(pieces[-1]) and len(path) - len(pieces[-1]) >= position)
