"""Paths that one text stands for: `::` between them, and braces as bash writes them out.

`a/{000..002}.tar`, `{a,b}.tar` and nested ones, as webdataset and open_clip take them and as `plantmix export` prints
them. Looks at no file.
"""

from __future__ import annotations

import re

from braceexpand import braceexpand

from manifests.errors import ConfigError
from manifests.masking import hide_in


def split_paths(text: str) -> list[str]:
    """Return the paths between `::`, with their braces."""
    return text.split("::")


def has_braces(path: str) -> bool:
    """Return whether a text may stand for several paths by braces or `::`."""
    return "{" in path or "::" in path


def expand(text: str) -> list[str]:
    """All paths that a text stands for, in order. Raises: ConfigError for braces that do not close."""
    try:
        return [path for part in split_paths(text) for path in braceexpand(part)]
    except ValueError as error:
        raise ConfigError(f"{hide_in(text)}: its braces cannot be read: {error}") from None


def first_pattern(path: str) -> str:
    """Return the part of a path before its first brace or wildcard."""
    return re.split(r"[*?\[{]", path)[0]
