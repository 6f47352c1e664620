"""What a person types after --objective, --constraint, --pool and the like, as values.

Pure. Gives up with ConfigError that shows the part it cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable

from manifests.errors import ConfigError
from pipeline.planning.choose import Constraint


def parse_amounts(option: str, parts: Iterable[str] | None) -> dict[str, float]:
    """`name=number` pairs, comma-separated and repeatable; numbers may be 10000000, 1e7, 10M or 10_000_000.

    Raises: ConfigError for anything else, and for a name given twice.
    """
    amounts: dict[str, float] = {}
    for item in _items(parts):
        name, equals, value = item.rpartition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"{option}: '{item}' is not NAME=NUMBER")
        if name in amounts:
            raise ConfigError(f"{option}: {name} is given twice")
        amounts[name] = parse_number(option, value)
    return amounts


def parse_number(option: str, text: str) -> float:
    """A number; k, M and G (or B) stand for 1e3, 1e6 and 1e9.

    Raises: ConfigError when it is no finite number.
    """
    scales = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
    trimmed = text.strip().replace("_", "")
    scale = scales.get(trimmed[-1:], 1.0)
    try:
        value = float(trimmed[:-1] if scale != 1.0 else trimmed) * scale
    except ValueError:
        raise ConfigError(f"{option}: '{text}' is not a number") from None
    if value != value or abs(value) == float("inf"):
        raise ConfigError(f"{option}: '{text}' is not a finite number")
    return value


def parse_objective(parts: Iterable[str] | None) -> dict[str, float]:
    """Losses and their weights: "plant=1,general=0.5", or "plant" for weight 1.

    Raises: ConfigError when nothing is given, a part cannot be read or a weight is not above 0.
    """
    items = [item if "=" in item else f"{item}=1" for item in _items(parts)]
    weights = parse_amounts("--objective", items)
    if not weights:
        raise ConfigError('--objective: name at least one loss, e.g. --objective "plant=1,general=1"')
    for name, weight in weights.items():
        if not weight > 0:
            raise ConfigError(f"--objective: the weight of {name} is {weight:g}; it must be above 0")
    return weights


def parse_constraints(parts: Iterable[str] | None) -> tuple[Constraint, ...]:
    """Upper limits on losses: "general<=1%" (above its best) or "general<=3.2" (absolute).

    Raises: ConfigError for a part of another shape.
    """
    constraints = []
    for item in _items(parts):
        name, sign, limit = item.partition("<=")
        if not sign or not name.strip() or not limit.strip():
            raise ConfigError(f"--constraint: '{item}' is not LOSS<=NUMBER or LOSS<=NUMBER%")
        relative = limit.strip().endswith("%")
        value = parse_number("--constraint", limit.strip().rstrip("%"))
        if value < 0:
            raise ConfigError(f"--constraint: '{item}': the limit must not be negative")
        constraints.append(Constraint(name.strip(), value / 100.0 if relative else value, relative))
    return tuple(constraints)


def _items(parts: Iterable[str] | None) -> list[str]:
    return [item.strip() for part in parts or () for item in part.split(",") if item.strip()]
