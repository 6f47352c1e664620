"""The planner's files: law.json, a whole law exact to the last bit, and mixture.json, a choice with its evidence.

law.json holds the parameters of every fitted form, the training runs (the Gaussian process predicts from them),
held-out errors and warnings; the same runs give the same bytes. The mix stage and people read mixture.json.
Reads local files, and writes none. Gives up with ConfigError on a file that is no law.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from manifests.errors import ConfigError
from pipeline.planning.arrays import Array, Index, Texts
from pipeline.planning.choose import Choice, TradeOff
from pipeline.planning.forms.catalogue import EXPONENTIAL, FORMS, MEAN
from pipeline.planning.forms.fitted import Fitted
from pipeline.planning.goals import NEAR_OPTIMAL_NATS, Goal
from pipeline.planning.laws import ColumnLaw, Law
from pipeline.planning.limits import epochs_of, natural_shares
from pipeline.planning.runs.groups import Groups, expand_domains, expand_shares
from pipeline.planning.runs.run_table import RunsTable
from pipeline.planning.search import shares_grid

LAW_FORMAT = "plantmix-law/5"
MIXTURE_FORMAT = "plantmix-mixture/1"
LEAST_KEPT = 1e-4  # a domain with a smaller share of a kept mixture is left out
_ARRAYS = {Array: float, Index: int, Texts: str}


def json_content(values: dict[str, Any]) -> bytes:
    """Return a law or a mixture as a file: readable json with sorted keys."""
    text = json.dumps(values, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    return text.encode()


def read_law(path: str | Path) -> tuple[Law, str]:
    """Return a law and the sha256 of its file.

    Raises: ConfigError for a missing file or one that holds no law of this version.
    """
    try:
        content = Path(path).read_bytes()
        values = json.loads(content)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such law; make one with `plantmix plan fit RUNS.csv --out {path}`") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a law file: {error}") from None
    stated = values.get("format") if isinstance(values, dict) else None
    if stated != LAW_FORMAT:
        raise ConfigError(f"{path}: not a law file of format {LAW_FORMAT} (found: {stated!r}); fit the law again")
    try:
        return law_from_json(values), hashlib.sha256(content).hexdigest()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: a damaged law file ({error!r}); fit the law again") from None


def read_ratio(path: str | Path) -> dict[str, float]:
    """Return the domains of a mixture file that have a share, and their ratio, which sums to 1.

    Raises: ConfigError for a file that holds no mixture.
    """
    try:
        ratio = {str(name): float(share) for name, share in json.loads(Path(path).read_bytes())["ratio"].items()}
        total = sum(ratio.values())
        kept = {name: share / total for name, share in ratio.items() if share / total >= LEAST_KEPT}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        raise ConfigError(f"{path}: not a mixture file; it needs a 'ratio', as `plantmix plan choose` writes") from None
    return kept


def law_to_json(law: Law) -> dict[str, Any]:
    """Return a law as plain json values: its fields by their names; nan becomes null."""
    return {
        "format": LAW_FORMAT,
        "domains": list(law.domains),
        "warnings": list(law.warnings),
        "runs": _plain(law.runs),
        "columns": [_plain(column) for column in law.columns],
    }


def law_from_json(values: dict[str, Any]) -> Law:
    """Return the law that `law_to_json` wrote, number for number."""
    runs = RunsTable(**_typed(RunsTable, values["runs"]))
    columns = tuple(_column_from_json(column, runs.shares) for column in values["columns"])
    return Law(runs.domains, columns, runs, tuple(values["warnings"]))


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and arrays as lists."""
    if isinstance(value, Fitted):  # the anchors are the shares of the runs, which the file holds once
        return _plain(value.arrays)
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and np.isnan(value) else value


def _typed(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass from their json values: a list becomes an array where the field is one, else a tuple."""
    typed = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    arrays = {name: _ARRAYS[of] for name, of in get_type_hints(kind).items() if of in _ARRAYS}
    return typed | {name: np.array(values[name], dtype=dtype) for name, dtype in arrays.items()}


def _column_from_json(values: dict[str, Any], shares: Array) -> ColumnLaw:
    def fits(held: dict[str, Any]) -> dict[str, Fitted]:
        unknown = sorted(set(held) - set(FORMS))
        if unknown:
            raise ValueError(f"unknown form {unknown[0]}")
        loaded = {
            name: {key: np.array(value, dtype=float) for key, value in arrays.items()} for name, arrays in held.items()
        }
        return {name: Fitted(arrays, shares) for name, arrays in loaded.items()}

    if not values["residuals"]:
        raise ValueError("no held-out errors")
    fields = {**_typed(ColumnLaw, values), "whole": fits(values["whole"]), "folds": fits(values["folds"])}
    if fields["noise_floor"] is None:
        fields["noise_floor"] = float("nan")
    return ColumnLaw(**fields)


def mixture_to_json(law: Law, law_sha256: str, law_name: str, goal: Goal, choice: Choice) -> dict[str, Any]:
    """Return the chosen mixture as plain json values; `ratio` sums to 1 within 1e-9."""
    domains, groups = law.domains, law.runs.groups
    of_all = expand_domains(domains, groups)
    passes = epochs_of(of_all, expand_shares(domains, choice.shares, groups)[None], goal.limits)[0].tolist()
    epochs = dict(zip(of_all, passes, strict=True))
    constraints = [
        {"loss": c.loss, "limit": c.limit, "relative_to_best": c.relative, "allowed": choice.allowed[c.loss]}
        for c in goal.constraints
    ]
    return {
        "format": MIXTURE_FORMAT,
        "ratio": _by_domain(domains, choice.shares, groups),
        "interval": _by_domain(domains, choice.interval, groups),
        "near_optimal": {"within_nats": NEAR_OPTIMAL_NATS, "shares": _by_domain(domains, choice.near_optimal, groups)},
        "objective": {
            "weights": dict(goal.weights),
            "constraints": constraints,
            "value": choice.objective[0],
            "interval": list(choice.objective[1:]),
        },
        "predicted": {
            name: {"loss": value, "low": low, "high": high} for name, (value, low, high) in choice.losses.items()
        },
        "gains": [
            {
                "over": gain.rival,
                "ratio": _by_domain(domains, gain.shares, groups),
                "nats": gain.value,
                "interval": [gain.low, gain.high],
            }
            for gain in choice.gains
        ],
        "advice": choice.advice,
        "trade_off": None if choice.trade_off is None else _curve(law, choice.trade_off),
        "near_pools": None
        if choice.optimum is None or goal.near_pools_nats is None
        else {
            "within_nats": goal.near_pools_nats,
            "natural": natural_shares(of_all, goal.limits),
            "optimum": _by_domain(domains, choice.optimum, groups),
        },
        "epochs": {domain: passes for domain, passes in epochs.items() if math.isfinite(passes)},
        "binding": list(choice.binding),
        "law": {
            "file": law_name,
            "sha256": law_sha256,
            "runs": {"file": law.runs.source, "sha256": law.runs.sha256, "where": law.runs.where},
            "num_runs": law.runs.num_runs,
            "losses": {column.loss: _evidence(column) for column in law.columns},
        },
        "limits": dataclasses.asdict(goal.limits),
        "warnings": list(choice.warnings),
        "drawn": _drawn(law),
    }


def _drawn(law: Law) -> dict[str, Any]:
    """Return the plotted part of a law: its runs and, for up to three domains, its losses on a grid, with intervals."""
    num_domains = len(law.domains)
    grid = np.zeros((0, num_domains)) if law.runs.groups else shares_grid(num_domains)
    predicted = law.predict(grid) if len(grid) else {}
    return {
        "domains": list(expand_domains(law.domains, law.runs.groups)),
        "runs": {
            "shares": _short(expand_shares(law.domains, law.runs.shares, law.runs.groups)),
            "losses": {name: _short(law.runs.loss_values[:, c]) for c, name in enumerate(law.losses)},
        },
        "grid": _short(grid),
        "losses": {
            name: dict(zip(("loss", "low", "high"), map(_short, predicted[name]), strict=True)) if predicted else {}
            for name in law.losses
        },
    }


def _short(values: Array) -> list[Any]:
    """Numbers to 5 significant digits, enough for a drawing; null for nan."""
    short = [None if math.isnan(value) else float(f"{value:.5g}") for value in values.ravel().tolist()]
    width = values.shape[-1] if values.ndim == 2 else 0
    return [short[at : at + width] for at in range(0, len(short), width)] if width else short


def _evidence(column: ColumnLaw) -> dict[str, Any]:
    return {
        "form": column.describe_weights(),
        "cv_error": column.error,
        "cv_error_mean": column.form_errors[MEAN],
        "cv_error_exponential": column.form_errors[EXPONENTIAL],
        "noise_floor": None if math.isnan(column.noise_floor) else column.noise_floor,
    }


def _curve(law: Law, trade_off: TradeOff) -> dict[str, Any]:
    points = [
        {
            "ratio": _by_domain(law.domains, shares, law.runs.groups),
            "losses": {loss: {"loss": value} for loss, value in zip(trade_off.losses, values.tolist(), strict=True)},
        }
        for shares, values in zip(trade_off.shares, trade_off.predicted, strict=True)
    ]
    return {"between": list(trade_off.losses), "points": points}


def _by_domain(domains: tuple[str, ...], values: Array, groups: Groups) -> dict[str, Any]:
    """One value, or both ends of an interval, for each domain. A member of a group has its part of the group's."""
    return dict(zip(expand_domains(domains, groups), expand_shares(domains, values.T, groups).T.tolist(), strict=True))
