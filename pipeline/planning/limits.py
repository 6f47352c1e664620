"""Limits of a mixture: finite pools, epochs, bounds on shares, and the worth of a repeated sample.

Pure functions and frozen values. Gives up with ConfigError when no mixture fits the limits.

Source: value of repetition from Muennighoff et al. 2023 ("Scaling Data-Constrained Language Models").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array

_SAME_SHARE = 1e-3
TEXT_HALF_LIFE_EPOCHS = 15.4  # R* of Muennighoff et al. 2023, text; none is published for image-text pairs


@dataclass(frozen=True)
class Limits:
    """Real limits of a training run; every mapping is by domain, missing domains are unlimited."""

    pools: dict[str, float] = field(default_factory=dict)  # distinct samples
    num_samples: float | None = None  # seen over the whole training, all domains
    max_epochs: dict[str, float] = field(default_factory=dict)  # hard cap on passes over a pool
    min_shares: dict[str, float] = field(default_factory=dict)
    max_shares: dict[str, float] = field(default_factory=dict)
    repetition_scale_epochs: float | None = TEXT_HALF_LIFE_EPOCHS  # R*; None: repetition costs nothing


@dataclass(frozen=True)
class Box:
    """Lower and upper share of each domain, and the reason for each upper bound."""

    low: Array
    high: Array
    reasons: tuple[str, ...]  # "" where there is no upper bound


def share_box(domains: tuple[str, ...], limits: Limits, held: dict[int, float]) -> Box:
    """Bounds on the shares that follow from the limits and from domains that must stay at their one tried share.

    Raises: ConfigError for unknown domains, an epoch cap without pool or samples, or bounds no mixture meets.
    """
    _check_values(domains, limits)
    low, high = np.zeros(len(domains)), np.ones(len(domains))
    reasons = [""] * len(domains)
    for k, domain in enumerate(domains):
        low[k] = limits.min_shares.get(domain, 0.0)
        if domain in limits.max_shares:
            high[k], reasons[k] = limits.max_shares[domain], "largest share allowed"
        if domain in limits.max_epochs:
            if limits.num_samples is None or domain not in limits.pools:
                raise ConfigError(
                    f"--max-epochs for {domain} needs its pool (--pool {domain}=N) and the total --samples"
                )
            cap = limits.max_epochs[domain] * limits.pools[domain] / limits.num_samples
            if cap < high[k]:
                high[k] = cap
                reasons[k] = f"{limits.max_epochs[domain]:g} epochs of its pool of {limits.pools[domain]:,.0f}"
        if k in held:
            if not low[k] - _SAME_SHARE <= held[k] <= high[k] + _SAME_SHARE:
                limit = f"at most {high[k]:.4g} ({reasons[k]})" if held[k] > high[k] else f"at least {low[k]:.4g}"
                raise ConfigError(
                    f"{domain}: all runs have the share {held[k]:.4g}, so the law knows no other share, but the "
                    f"limits ask for {limit}; change the limit, or add runs with other shares of {domain}"
                )
            low[k] = high[k] = held[k]
            reasons[k] = "the only share tried"
        if low[k] > high[k] + 1e-12:
            raise ConfigError(
                f"{domain}: the least share {low[k]:.4g} is above the largest {high[k]:.4g} ({reasons[k]})"
            )
    if low.sum() > 1 + 1e-9:
        raise ConfigError(f"the least shares sum to {low.sum():.4g}, above 1; lower one of them")
    if high.sum() < 1 - 1e-9:
        caps = ", ".join(f"{d} {high[k]:.4g} ({reasons[k]})" for k, d in enumerate(domains) if high[k] < 1)
        raise ConfigError(
            f"no mixture fits the limits: the largest shares sum to {high.sum():.4g}, below 1: {caps}; "
            "allow more epochs, take fewer --samples, or add data"
        )
    return Box(low, high, tuple(reasons))


def epochs_of(domains: tuple[str, ...], shares_QK: Array, limits: Limits) -> Array:
    """Return passes over each domain's pool, shape Q x K; nan where the pool or the samples are not given."""
    pools = np.array([limits.pools.get(domain, np.nan) for domain in domains])
    result: Array = shares_QK * (limits.num_samples or np.nan) / pools
    return result


def natural_shares(domains: tuple[str, ...], limits: Limits) -> dict[str, float]:
    """Each domain's part of all data.

    Raises: ConfigError when a pool is not given.
    """
    missing = [domain for domain in domains if domain not in limits.pools]
    if missing:
        raise ConfigError(f"--near-pools needs the pool of every domain; add --pool {missing[0]}=N")
    total = sum(limits.pools[domain] for domain in domains)
    return {domain: limits.pools[domain] / total for domain in domains}


def effective_shares(domains: tuple[str, ...], shares_QK: Array, limits: Limits) -> Array:
    """Shares by what they are worth: samples seen e > 1 times count U (1 + R* (1 - exp(-(e - 1) / R*))).

    Sums to less than 1 when something is repeated. Equal to the shares without pools, samples or R*.
    """
    scale = limits.repetition_scale_epochs
    if scale is None or limits.num_samples is None:
        return shares_QK
    epochs = epochs_of(domains, shares_QK, limits)
    extra = np.maximum(np.nan_to_num(epochs, nan=0.0) - 1.0, 0.0)
    worth = 1.0 + scale * (1.0 - np.exp(-extra / scale))
    with np.errstate(invalid="ignore", divide="ignore"):
        discounted = shares_QK * worth / epochs
    return np.where(extra > 0, discounted, shares_QK)


def _check_values(domains: tuple[str, ...], limits: Limits) -> None:
    amounts = {"--pool": limits.pools, "--max-epochs": limits.max_epochs}
    shares = {"--min-share": limits.min_shares, "--max-share": limits.max_shares}
    for option, values in {**amounts, **shares}.items():
        for domain, value in values.items():
            if domain not in domains:
                raise ConfigError(f"{option}: '{domain}' is no domain of the law ({', '.join(domains)})")
            if option in shares and not 0 <= value <= 1:
                raise ConfigError(f"{option}: {domain}={value:g} is out of range: a share lies in 0 to 1")
            if option in amounts and not value > 0:
                raise ConfigError(
                    f"{option}: {domain}={value:g} is out of range: it must be above 0; to leave {domain} out, write "
                    f"--max-share {domain}=0"
                )
    if limits.num_samples is not None and not limits.num_samples > 0:
        raise ConfigError(f"--samples is {limits.num_samples:g}; it must be above 0")
