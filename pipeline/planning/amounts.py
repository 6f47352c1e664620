"""Numbers and names as people type them in options: 10M, plant=0.5. Pure; gives up with ConfigError."""

from __future__ import annotations

import math
from collections.abc import Iterable

from manifests.errors import ConfigError

_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}


def parse_amounts(option: str, parts: Iterable[str] | None) -> dict[str, float]:
    """`name=number` pairs, comma-separated and repeatable; numbers may be 10000000, 1e7, 10M or 10_000_000.

    Raises: ConfigError for anything else, and for a name given twice.
    """
    amounts: dict[str, float] = {}
    for item in split_items(parts):
        name, equals, value = item.rpartition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{option}: '{item}' is not NAME=NUMBER")
        if name in amounts:
            raise ConfigError(f"{option}: {name} is given twice")
        amounts[name] = parse_number(option, value)
    return amounts


def parse_number(option: str, text: str) -> float:
    """Return a number; k, M and G (or B) stand for 1e3, 1e6 and 1e9.

    Raises: ConfigError when it is no finite number.
    """
    trimmed = text.strip().replace("_", "")
    scale = _SCALES.get(trimmed[-1:])
    try:
        value = float(trimmed) if scale is None else float(trimmed[:-1]) * scale
    except ValueError:
        raise ConfigError(f"{option}: '{text}' is not a number") from None
    if not math.isfinite(value):
        raise ConfigError(f"{option}: '{text}' is not a finite number")
    return value


def split_items(parts: Iterable[str] | None) -> list[str]:
    """Split at commas all parts of an option that may be given again."""
    return [item.strip() for part in parts or () for item in part.split(",") if item.strip()]
