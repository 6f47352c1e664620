"""How many samples of each domain: shares to exact counts, within what the pools hold. Pure.

Counts are the largest-remainder (Hamilton) apportionment of the total, so each is within one sample of its share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from manifests.errors import ConfigError


@dataclass(frozen=True)
class Quota:
    """What one domain gives: `num_samples` drawn (repeats counted) out of `num_available` distinct ones."""

    domain: str
    share: float
    num_available: int
    num_samples: int

    @property
    def num_epochs(self) -> float:
        """How often a sample appears on average."""
        return self.num_samples / self.num_available if self.num_available else 0.0


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` and lie within one of `share * total`.

    `shares` sum to 1. Of equal remainders the domain that comes first gets the sample.
    """
    exact = {domain: share * total for domain, share in shares.items()}
    counts = {domain: math.floor(value + 1e-9) for domain, value in exact.items()}
    rest = total - sum(counts.values())
    by_remainder = sorted(shares, key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[:rest]:
        counts[domain] += 1
    return counts


def allocate(
    ratio: Mapping[str, float],
    available: Mapping[str, int],
    max_epochs: Mapping[str, float],
    num_samples: int | None,
) -> list[Quota]:
    """Quotas of a mixture: `num_samples` in all, or as many as the pools allow.

    `ratio` holds weights (only proportions count), `max_epochs` how often a domain may be seen.

    Raises: ConfigError when a domain cannot give its share; the message names it and every way out.
    """
    weight = sum(ratio.values())
    shares = {domain: value / weight for domain, value in ratio.items()}
    caps = {domain: math.floor(available.get(domain, 0) * max_epochs[domain] + 1e-9) for domain in shares}
    empty = [domain for domain, share in shares.items() if share > 0 and not caps[domain]]
    if empty:
        raise ConfigError(
            f"mix: no sample of the domain {', '.join(empty)} is left after selection, but the ratio asks for "
            "some; see `plantmix status` for what dropped them, or set its share to 0"
        )
    most = _most_samples(shares, caps)
    total = most if num_samples is None else num_samples
    counts = apportion(shares, total)
    short = [domain for domain in shares if counts[domain] > caps[domain]]
    if short:
        domain = max(short, key=lambda name: counts[name] / max(caps[name], 1))
        need = math.ceil(100 * counts[domain] / available[domain]) / 100
        raise ConfigError(
            f"mix: {total:,} samples at this ratio need {counts[domain]:,} of the domain '{domain}', its pool has "
            f"{available[domain]:,} and max_epochs is {max_epochs[domain]:g}. Lower mix.num_samples to {most:,} or "
            f"less, raise mix.max_epochs for {domain} to {need:g}, or change the ratio"
        )
    return [Quota(domain, shares[domain], available.get(domain, 0), counts[domain]) for domain in shares]


def _most_samples(shares: Mapping[str, float], caps: Mapping[str, int]) -> int:
    """The largest total whose apportionment fits every cap; rounding moves it by less than one a domain."""
    total = min(math.floor((caps[domain] + 1) / share) for domain, share in shares.items() if share > 0)
    while total > 0 and any(num > caps[domain] for domain, num in apportion(shares, total).items()):
        total -= 1
    return total
