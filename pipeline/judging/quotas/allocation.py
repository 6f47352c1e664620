"""Shares or sizes in, exact counts of samples a domain and source out, never more than the pools hold. Pure.

The total is apportioned by largest remainders (Hamilton), so every count is within one sample of its share. Within a
domain its sources are apportioned in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from manifests.errors import ConfigError
from manifests.services.draws import largest_remainders

Size = str | int | float
"""Of `mix.by_size`: `all`, a whole number of samples, or a share of the whole mixture between 0 and 1."""


@dataclass(frozen=True)
class Pool:
    """The supply of a domain.

    `num_available` counts its distinct samples, `max_epochs` says how often each may appear on average. Where its
    sources have weights, `weights` holds them and `by_source` the distinct samples of each source.
    """

    num_available: int
    max_epochs: float = 1.0
    weights: Mapping[str, float] | None = None
    by_source: Mapping[str, int] | None = None

    @property
    def capacity(self) -> int:
        """The most samples it can give, repeats counted, without a look at its sources."""
        return math.floor(self.num_available * self.max_epochs + 1e-9)

    def source_capacity(self, source: str) -> int:
        """Return the most samples that one of its sources can give, repeats counted."""
        return math.floor((self.by_source or {}).get(source, 0) * self.max_epochs + 1e-9)

    def split(self, num_samples: int) -> dict[str, int]:
        """Return how `num_samples` are split over the sources; empty when the sources have no weights."""
        if not self.weights:
            return {}
        total = sum(self.weights.values())
        return apportion({source: weight / total for source, weight in self.weights.items()}, num_samples)

    def short_source(self, num_samples: int) -> str | None:
        """Return the first source that cannot give its part of `num_samples`, or None."""
        split = self.split(num_samples)
        return next((source for source, num in split.items() if num > self.source_capacity(source)), None)

    def can_give(self, num_samples: int) -> bool:
        """Return true when the pool and each of its sources hold enough."""
        return num_samples <= self.capacity and self.short_source(num_samples) is None


@dataclass(frozen=True)
class SourceQuota:
    """The quota of one source within its domain; `share` is of the domain."""

    source: str
    share: float
    num_available: int
    num_samples: int


@dataclass(frozen=True)
class Quota:
    """The quota of one domain: `num_samples` drawn (repeats counted) out of `num_available` distinct ones."""

    domain: str
    share: float
    num_available: int
    num_samples: int
    sources: tuple[SourceQuota, ...] = ()

    @property
    def num_epochs(self) -> float:
        """Return how often a sample appears, on average."""
        return self.num_samples / self.num_available if self.num_available else 0.0


def apportion(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers that sum to `total` and lie within one of `share * total`; `shares` sum to 1."""
    counts = largest_remainders([share * total for share in shares.values()], total)
    return dict(zip(shares, counts, strict=True))


def allocate(
    ratio: Mapping[str, float], pools: Mapping[str, Pool], num_samples: int | None, most_samples: int | None = None
) -> list[Quota]:
    """Quotas of a mixture: `num_samples` in all, or when it is None as many as the pools and `most_samples` allow.

    `ratio` holds weights, of which only the proportions count. `pools` may leave out domains of weight 0.

    Raises: ConfigError when a domain cannot give its share.
    """
    weight = sum(ratio.values())
    shares = {domain: value / weight for domain, value in ratio.items()}
    pool_of = {domain: pools.get(domain, Pool(0)) for domain in shares}
    _refuse_empty(shares, pool_of)
    most = _most_samples(shares, pool_of, most_samples)
    total = most if num_samples is None else num_samples
    counts = apportion(shares, total)
    short = [domain for domain in shares if not pool_of[domain].can_give(counts[domain])]
    if short:
        domain = max(short, key=lambda name: counts[name] / max(pool_of[name].capacity, 1))
        raise _too_small(domain, pool_of[domain], counts[domain], f"{total:,} samples at this ratio need", most)
    return [_quota(domain, shares[domain], pool_of[domain], counts[domain]) for domain in shares]


def allocate_by_size(sizes: Mapping[str, Size], pools: Mapping[str, Pool]) -> list[Quota]:
    """Quotas of `mix.by_size`: whole pools and counts are taken as they are, and shares are filled up to match them.

    When the domains given by `all` or by a count have F samples, and the shares sum to S < 1, the mixture holds
    F / (1 - S) samples.

    Raises: ConfigError when a pool cannot give what is asked of it.
    """
    fixed = {
        domain: pools.get(domain, Pool(0)).num_available if size == "all" else int(size)
        for domain, size in sizes.items()
        if not isinstance(size, float)
    }
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
    weights, held = pool.weights or {}, pool.by_source or {}
    whole = sum(weights.values())
    sources = tuple(
        SourceQuota(source, weights[source] / whole, held.get(source, 0), num)
        for source, num in pool.split(num_samples).items()
    )
    return Quota(domain, share, pool.num_available, num_samples, sources)


def _refuse_empty(shares: Mapping[str, float], pools: Mapping[str, Pool]) -> None:
    empty = [domain for domain, share in shares.items() if share > 0 and not pools.get(domain, Pool(0)).capacity]
    if empty:
        raise ConfigError(
            f"mix: no sample of the domain {', '.join(empty)} is left, but the ratio asks for some; `plantmix status` "
            "shows what dropped them"
        )


def _too_small(domain: str, pool: Pool, num_samples: int, asked: str, most: int | None) -> ConfigError:
    """Return the error that names what is short, by how much, and every way out.

    `most` is the largest total that fits.
    """
    source = pool.short_source(num_samples) if num_samples <= pool.capacity else None
    if source is not None:
        num, held = pool.split(num_samples)[source], (pool.by_source or {}).get(source, 0)
        whose, last = f"the source '{source}' in the domain '{domain}'", "change mix.sources"
    else:
        num, held, whose = num_samples, pool.num_available, f"the domain '{domain}'"
        last = "change the ratio" if most is not None else f"give '{domain}' a smaller share or size"
    lower = f"Lower mix.num_samples to {most:,} or less" if most else "Ask for less"
    epochs = f"raise mix.max_epochs for {domain} to {math.ceil(100 * num / held) / 100:g}" if held else "fill that pool"
    return ConfigError(
        f"mix: {asked} {num:,} of {whose}, its pool has {held:,} and max_epochs is {pool.max_epochs:g}. "
        f"{lower}, {epochs}, or {last}"
    )


def _most_samples(shares: Mapping[str, float], pools: Mapping[str, Pool], limit: int | None) -> int:
    """Return the largest total, up to the limit, whose apportionment fits every pool.

    The search is bounded because a part is within two samples of its share of the total. Bisection finds a border.
    Counts by largest remainders can shrink when the total grows, so a few totals beyond the border are tried too.
    """

    def fits(total: int) -> bool:
        return all(pools[domain].can_give(num) for domain, num in apportion(shares, total).items())

    above = 1 + min(math.floor((capacity + 2) / share) for capacity, share in _bounds(shares, pools) if share > 0)
    limit = above + 2 * len(shares) if limit is None else limit
    most, above = 0, min(above, limit + 1)
    while above - most > 1:
        middle = (most + above) // 2
        most, above = (middle, above) if fits(middle) else (most, middle)
    beyond = range(most + 1, min(most + 1 + 2 * len(shares), limit) + 1)
    return max([most, *(total for total in beyond if fits(total))])


def _bounds(shares: Mapping[str, float], pools: Mapping[str, Pool]) -> list[tuple[int, float]]:
    """Capacity, and share of the whole, of each domain and of each source that has a weight."""
    bounds = []
    for domain, share in shares.items():
        pool, weights = pools[domain], pools[domain].weights or {}
        bounds.append((pool.capacity, share))
        whole = sum(weights.values())
        bounds += [(pool.source_capacity(source), share * weight / whole) for source, weight in weights.items()]
    return bounds
