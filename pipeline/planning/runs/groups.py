"""Several domains as one: a mixture kept from an earlier plan moves as a whole, and its ratio stays.

`plan design --keep` gives runs in which the share of the kept mixture moves and the ratio inside it stays. `plan fit`
finds such groups from the shares alone. Pure functions.

Axes: Q mixtures, K domains, G domains after grouping.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.planning.arrays import Array
from pipeline.planning.limits import Limits

Groups = dict[str, dict[str, float]]
"""Name of a group -> its domains with their ratio, which sums to 1."""

_FEWEST_MIXTURES = 3
_SAME_RATIO = 0.01  # how far rounding may move a share off the ratio, relative to the domain's largest share


def name_group(members: tuple[str, ...]) -> str:
    """Return a name for domains that are planned as one, e.g. "plant+fungi" or "plant+7"."""
    return "+".join(members) if len(members) <= 3 else f"{members[0]}+{len(members) - 1}"


def find_groups(domains: tuple[str, ...], shares_QK: Array) -> Groups:
    """Return groups of domains whose shares vary from mixture to mixture, but in one ratio to each other."""
    groups: Groups = {}
    if len(np.unique(np.round(shares_QK, 6), axis=0)) < _FEWEST_MIXTURES:
        return groups
    total = shares_QK.sum(axis=0)
    varying = [k for k in range(len(domains)) if np.ptp(shares_QK[:, k]) > _SAME_RATIO * shares_QK[:, k].max()]
    while varying:
        first = varying[0]
        expected = shares_QK[:, [first]] * (total / total[first])
        off = np.abs(shares_QK - expected).max(axis=0) / np.maximum(shares_QK.max(axis=0), 1e-12)
        members = [k for k in varying if off[k] <= _SAME_RATIO]
        varying = [k for k in varying if k not in members]
        if len(members) > 1:
            ratio = total[members] / total[members].sum()
            inside = {domains[k]: float(part) for k, part in zip(members, ratio, strict=True)}
            groups[name_group(tuple(inside))] = inside
    return groups


def merge_shares(domains: tuple[str, ...], shares_QK: Array, groups: Groups) -> tuple[tuple[str, ...], Array]:
    """Return the domains after grouping, a group in the place of its first domain, and their shares."""
    names: dict[str, list[int]] = {}
    group_of = {domain: name for name, inside in groups.items() for domain in inside}
    for k, domain in enumerate(domains):
        names.setdefault(group_of.get(domain, domain), []).append(k)
    return tuple(names), np.stack([shares_QK[:, places].sum(axis=1) for places in names.values()], axis=1)


def expand_domains(domains: tuple[str, ...], groups: Groups) -> tuple[str, ...]:
    """Return the domains with each group replaced by its members."""
    return tuple(member for domain in domains for member in groups.get(domain, {domain: 1.0}))


def expand_shares(domains: tuple[str, ...], shares_QG: Array, groups: Groups) -> Array:
    """Shares of the members of all groups, in the order of `expand_domains`."""
    return np.stack(
        [
            shares_QG[..., g] * part
            for g, domain in enumerate(domains)
            for part in groups.get(domain, {domain: 1.0}).values()
        ],
        axis=-1,
    )


def merge_limits(limits: Limits, groups: Groups) -> Limits:
    """Turn limits of members into limits of their group. The member that reaches its limit first decides."""
    merged: dict[str, dict[str, float]] = {
        name: dict(getattr(limits, name)) for name in ("pools", "max_epochs", "min_shares", "max_shares")
    }
    for group, inside in groups.items():
        parts = {domain: part for domain, part in inside.items() if part > 0}
        caps = [
            limits.max_epochs[domain] * limits.pools[domain] / part
            for domain, part in parts.items()
            if domain in limits.max_epochs and domain in limits.pools
        ]
        for name, decide in (("pools", min), ("max_shares", min), ("min_shares", max)):
            values = [merged[name].pop(domain) / part for domain, part in parts.items() if domain in merged[name]]
            if values:
                merged[name][group] = decide([*values, *([merged[name][group]] if group in merged[name] else [])])
        if caps:
            for domain in parts:
                merged["max_epochs"].pop(domain, None)
            merged["max_epochs"][group] = min(caps) / merged["pools"][group]
        if group in merged["max_shares"]:
            merged["max_shares"][group] = min(merged["max_shares"][group], 1.0)
    changed: dict[str, Any] = {**merged}
    return replace(limits, **changed)
