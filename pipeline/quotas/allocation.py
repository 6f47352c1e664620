"""How many samples of each domain and source: shares or sizes to exact counts, within what the pools hold. Pure.

Counts are the largest-remainder (Hamilton) apportionment of the total, so each is within one sample of its share;
within a domain its sources are apportioned in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from manifests.errors import ConfigError

Size = str | int | float
"""Of `mix.by_size`: `all`, a whole number of samples, or a share of the whole mixture between 0 and 1."""


@dataclass(frozen=True)
class Pool:
    """What can be drawn of a domain: distinct samples, epochs allowed, and its sources' weights, if they have any."""

    num_available: int
    max_epochs: float = 1.0
    weights: Mapping[str, float] | None = None
    by_source: Mapping[str, int] | None = None

    @property
    def capacity(self) -> int:
        """Most samples it can give, repeats counted, whatever its sources."""
        return math.floor(self.num_available * self.max_epochs + 1e-9)

    def source_capacity(self, source: str) -> int:
        """Most samples one of its sources can give, repeats counted."""
        return math.floor((self.by_source or {}).get(source, 0) * self.max_epochs + 1e-9)

    def split(self, num_samples: int) -> dict[str, int]:
        """Samples of each source; empty when sources have no weights."""
        if not self.weights:
            return {}
        total = sum(self.weights.values())
        return apportion({source: weight / total for source, weight in self.weights.items()}, num_samples)

    def short_source(self, num_samples: int) -> str | None:
        """A source that cannot give its part of `num_samples`, if there is one."""
        short = [source for source, num in self.split(num_samples).items() if num > self.source_capacity(source)]
        return short[0] if short else None

    def can_give(self, num_samples: int) -> bool:
        """Whether the pool and each of its sources hold enough."""
        return num_samples <= self.capacity and self.short_source(num_samples) is None


@dataclass(frozen=True)
class SourceQuota:
    """What one source gives within its domain; `share` is of the domain."""

    source: str
    share: float
    num_available: int
    num_samples: int


@dataclass(frozen=True)
class Quota:
    """What one domain gives: `num_samples` drawn (repeats counted) out of `num_available` distinct ones."""

    domain: str
    share: float
    num_available: int
    num_samples: int
    sources: tuple[SourceQuota, ...] = ()

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


def allocate(ratio: Mapping[str, float], pools: Mapping[str, Pool], num_samples: int | None) -> list[Quota]:
    """Quotas of a mixture: `num_samples` in all, or as many as the pools allow.

    `ratio` holds weights (only proportions count); `pools` may lack domains of weight 0.

    Raises: ConfigError when a domain cannot give its share; the message names it and every way out.
    """
    weight = sum(ratio.values())
    shares = {domain: value / weight for domain, value in ratio.items()}
    wanted = {domain: pools.get(domain, Pool(0)) for domain in shares}
    _refuse_empty(shares, wanted)
    most = _most_samples(shares, wanted)
    total = most if num_samples is None else num_samples
    counts = apportion(shares, total)
    short = [domain for domain in shares if not wanted[domain].can_give(counts[domain])]
    if short:
        domain = max(short, key=lambda name: counts[name] / max(wanted[name].capacity, 1))
        raise _too_small(domain, wanted[domain], counts[domain], f"{total:,} samples at this ratio need", most)
    return [_quota(domain, shares[domain], wanted[domain], counts[domain]) for domain in shares]


def allocate_by_size(sizes: Mapping[str, Size], pools: Mapping[str, Pool]) -> list[Quota]:
    """Quotas of `mix.by_size`: whole pools and counts are taken as they are, shares fill up to match.

    With F samples of the domains given by `all` or a count, and shares that sum to S < 1, the mixture holds
    F / (1 - S) samples.

    Raises: ConfigError when a pool cannot give what is asked of it.
    """
    fixed: dict[str, int] = {}
    for domain, size in sizes.items():
        pool = pools.get(domain, Pool(0))
        if size == "all":
            fixed[domain] = pool.num_available
        elif isinstance(size, int):
            fixed[domain] = size
    shares = {domain: size for domain, size in sizes.items() if isinstance(size, float)}
    _refuse_empty({domain: 1.0 for domain, size in sizes.items() if size != 0}, pools)
    matched = sum(shares.values())
    total = round(sum(fixed.values()) / (1 - matched))
    filled = apportion({domain: share / matched for domain, share in shares.items()}, total - sum(fixed.values()))
    quotas = []
    for domain in sizes:
        pool, num = pools.get(domain, Pool(0)), {**fixed, **filled}[domain]
        if not pool.can_give(num):
            raise _too_small(domain, pool, num, f"mix.by_size ({domain}: {sizes[domain]}) asks for", None)
        quotas.append(_quota(domain, shares.get(domain, num / max(total, 1)), pool, num))
    return quotas


def _quota(domain: str, share: float, pool: Pool, num_samples: int) -> Quota:
    quota = Quota(domain, share, pool.num_available, num_samples)
    if not pool.weights:
        return quota
    weight, held = sum(pool.weights.values()), pool.by_source or {}
    counts = pool.split(num_samples)
    return replace(
        quota,
        sources=tuple(
            SourceQuota(source, value / weight, held.get(source, 0), counts[source])
            for source, value in pool.weights.items()
        ),
    )


def _refuse_empty(shares: Mapping[str, float], pools: Mapping[str, Pool]) -> None:
    empty = [domain for domain, share in shares.items() if share > 0 and not pools.get(domain, Pool(0)).capacity]
    if empty:
        raise ConfigError(
            f"mix: no sample of the domain {', '.join(empty)} is left after selection, but the ratio asks for "
            "some; see `plantmix status` for what dropped them, or set its share to 0"
        )


def _too_small(domain: str, pool: Pool, num_samples: int, what: str, most: int | None) -> ConfigError:
    lower = f"Lower mix.num_samples to {most:,} or less, raise" if most else "Ask for less, raise"
    ratio = "change the ratio" if most is not None else f"give '{domain}' a smaller share or size"
    source = pool.short_source(num_samples)
    if source is not None and num_samples <= pool.capacity:
        part, held = pool.split(num_samples)[source], (pool.by_source or {}).get(source, 0)
        way = f"mix.max_epochs for {domain} to {_epochs(part, held)}, or " if held else "the pool of the source, or "
        return ConfigError(
            f"mix: {what} {part:,} of the source '{source}' in the domain '{domain}', its pool has {held:,} and "
            f"max_epochs is {pool.max_epochs:g}. {lower} {way}change mix.sources"
        )
    return ConfigError(
        f"mix: {what} {num_samples:,} of the domain '{domain}', its pool has {pool.num_available:,} and "
        f"max_epochs is {pool.max_epochs:g}. {lower} mix.max_epochs for {domain} to "
        f"{_epochs(num_samples, pool.num_available)}, or {ratio}"
    )


def _epochs(num_samples: int, num_available: int) -> str:
    return f"{math.ceil(100 * num_samples / num_available) / 100:g}"


def _most_samples(shares: Mapping[str, float], pools: Mapping[str, Pool]) -> int:
    """The largest total whose apportionment fits every pool.

    A part is within two samples of its share of the total, which bounds the search. Largest remainders are not quite
    monotone in the total, so a few totals beyond the border that bisection finds are tried as well.
    """

    def fits(total: int) -> bool:
        return all(pools[domain].can_give(num) for domain, num in apportion(shares, total).items())

    above = 1 + min(math.floor((capacity + 2) / share) for capacity, share in _bounds(shares, pools) if share > 0)
    most = 0
    while above - most > 1:
        middle = (most + above) // 2
        most, above = (middle, above) if fits(middle) else (most, middle)
    beyond = range(most + 1, most + 2 + 2 * len(shares))
    return max([most, *(total for total in beyond if fits(total))])


def _bounds(shares: Mapping[str, float], pools: Mapping[str, Pool]) -> list[tuple[int, float]]:
    """Capacity and share of the whole of each domain, and of each source that has a weight."""
    bounds = []
    for domain, share in shares.items():
        pool = pools[domain]
        bounds.append((pool.capacity, share))
        weights = pool.weights or {}
        weight = sum(weights.values())
        for source, own in weights.items():
            bounds.append((pool.source_capacity(source), share * own / weight))
    return bounds
