"""mixture.json: the chosen ratio with its evidence, read by the mix stage and by people.

Reads a law's identity and a `Chosen`. Writes one json file. Gives up with ConfigError when it cannot be written.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from manifests import storage
from pipeline.planning.choose import Chosen, Wish
from pipeline.planning.descent import Array
from pipeline.planning.forms import EXPONENTIAL, MEAN
from pipeline.planning.law_files import write_json
from pipeline.planning.laws import Law

FORMAT = "plantmix-mixture/1"


def write_mixture(
    law: Law, law_sha256: str, law_name: str, wish: Wish, chosen: Chosen, path: str | Path
) -> storage.WrittenFile:
    """Publish mixture.json.

    Raises: ConfigError when the place cannot be written.
    """
    return write_json(mixture_to_json(law, law_sha256, law_name, wish, chosen), path)


def mixture_to_json(law: Law, law_sha256: str, law_name: str, wish: Wish, chosen: Chosen) -> dict[str, Any]:
    """The chosen mixture as plain json values; `ratio` sums to 1 within 1e-9."""
    domains = law.domains
    return {
        "format": FORMAT,
        "ratio": _by_domain(domains, chosen.shares),
        "interval": _ranges(domains, chosen.interval),
        "near_optimal": {
            "within_nats": wish.near_optimal_nats,
            "shares": _ranges(domains, chosen.region),
        },
        "objective": {
            "weights": dict(wish.weights),
            "constraints": [
                {
                    "loss": c.loss,
                    "limit": c.limit,
                    "relative_to_best": c.relative,
                    "allowed": chosen.allowed[c.loss],
                }
                for c in wish.constraints
            ],
            "value": chosen.objective,
            "interval": list(chosen.objective_interval),
        },
        "predicted": {
            name: {"loss": value, "low": low, "high": high} for name, (value, low, high) in chosen.losses.items()
        },
        "trade_off": _curve(domains, chosen),
        "epochs": {
            domain: float(epochs)
            for domain, epochs in zip(domains, chosen.epochs, strict=True)
            if math.isfinite(epochs)
        },
        "binding": list(chosen.binding),
        "law": {
            "file": law_name,
            "sha256": law_sha256,
            "runs": {"file": law.runs.source, "sha256": law.runs.sha256, "where": law.runs.where},
            "num_runs": law.runs.num_runs,
            "losses": {column.loss: _evidence(column) for column in law.columns},
        },
        "limits": {
            "pools": dict(wish.limits.pools),
            "num_samples": wish.limits.num_samples,
            "max_epochs": dict(wish.limits.max_epochs),
            "min_shares": dict(wish.limits.min_shares),
            "max_shares": dict(wish.limits.max_shares),
            "repetition_scale_epochs": wish.limits.repetition_scale_epochs,
        },
        "warnings": list(chosen.warnings),
    }


def _evidence(column: Any) -> dict[str, Any]:
    return {
        "form": column.form,
        "cv_error": column.errors[column.form],
        "cv_error_mean": column.errors[MEAN],
        "cv_error_exponential": column.errors[EXPONENTIAL],
        "noise_floor": None if math.isnan(column.noise_floor) else column.noise_floor,
        "coverage_of_90_percent_interval": column.coverage,
    }


def _curve(domains: tuple[str, ...], chosen: Chosen) -> dict[str, Any] | None:
    if chosen.curve_losses is None:
        return None
    points = []
    for q, shares in enumerate(chosen.curve_points):
        losses = {
            name: {"loss": float(value[q]), "low": float(low[q]), "high": float(high[q])}
            for name, (value, low, high) in chosen.curve.items()
        }
        points.append({"ratio": _by_domain(domains, shares), "losses": losses})
    return {"between": list(chosen.curve_losses), "points": points}


def _by_domain(domains: tuple[str, ...], shares_K: Array) -> dict[str, float]:
    return {domain: float(share) for domain, share in zip(domains, shares_K, strict=True)}


def _ranges(domains: tuple[str, ...], ends_K2: Array) -> dict[str, list[float]]:
    return {domain: [float(low), float(high)] for domain, (low, high) in zip(domains, ends_K2, strict=True)}
