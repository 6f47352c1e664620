"""law.json: a whole law in one file, exact to the last bit, the same bytes for the same runs.

Holds every fitted form's parameters, the training runs (the Gaussian process predicts from them), held-out
errors and warnings. Reads and writes local or fsspec paths. Gives up with ConfigError on a file that is no law.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from manifests import storage
from manifests.errors import ConfigError
from pipeline.planning.descent import Array
from pipeline.planning.fitted import Fitted
from pipeline.planning.forms import CANDIDATES, FORMS
from pipeline.planning.laws import ColumnLaw, Law
from pipeline.planning.runs import RunsTable

FORMAT = "plantmix-law/1"
_ONLY_FOR_DEVIATION = "root_weight"


def write_law(law: Law, path: str | Path) -> storage.WrittenFile:
    """Publish a law as json.

    Raises: ConfigError when the place cannot be written.
    """
    return write_json(law_to_json(law), path)


def write_json(values: dict[str, Any], path: str | Path) -> storage.WrittenFile:
    """Publish a mapping as readable json with sorted keys.

    Raises: ConfigError when the place cannot be written.
    """
    text = json.dumps(values, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    storage.make_parent(str(path))
    try:
        return storage.publish_bytes(str(path), text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_law(path: str | Path) -> tuple[Law, str]:
    """A law and the sha256 of its file.

    Raises: ConfigError for a missing file or one that holds no law of this version.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such law; make one with `plantmix plan fit RUNS.csv --out {path}`") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        values = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not a law file: {error}") from None
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise ConfigError(f"{path}: not a law file of format {FORMAT} (found: {found!r}); fit the law again")
    try:
        return law_from_json(values), hashlib.sha256(content).hexdigest()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: a damaged law file ({error!r}); fit the law again") from None


def law_to_json(law: Law) -> dict[str, Any]:
    """A law as plain json values."""
    table = law.runs
    return {
        "format": FORMAT,
        "domains": list(law.domains),
        "warnings": list(law.warnings),
        "nesting": list(law.nesting),
        "source": {"file": table.source, "sha256": table.sha256, "where": table.where},
        "runs": {
            "shares": table.shares.tolist(),
            "losses": {loss: _numbers_out(table.loss_values[:, c]) for c, loss in enumerate(table.losses)},
            "weights": table.weights.tolist(),
            "rows": table.rows.tolist(),
            "model_sizes": list(table.model_sizes),
            "steps": _numbers_out(table.steps),
            "seeds": list(table.seeds),
            "samples_seen": _numbers_out(table.samples_seen),
            "derived": table.derived.tolist(),
        },
        "columns": [_column_out(column) for column in law.columns],
    }


def law_from_json(values: dict[str, Any]) -> Law:
    """The law that `law_to_json` wrote; predicts identical numbers."""
    runs, source = values["runs"], values["source"]
    shares = np.array(runs["shares"], dtype=float)
    columns = tuple(_column_in(column, shares) for column in values["columns"])
    losses = tuple(column.loss for column in columns)
    table = RunsTable(
        domains=tuple(values["domains"]),
        losses=losses,
        shares=shares,
        loss_values=np.stack([_numbers_in(runs["losses"][loss]) for loss in losses], axis=1),
        weights=np.array(runs["weights"], dtype=float),
        rows=np.array(runs["rows"], dtype=np.int64),
        model_sizes=tuple(runs["model_sizes"]),
        steps=_numbers_in(runs["steps"]),
        seeds=tuple(runs["seeds"]),
        samples_seen=_numbers_in(runs["samples_seen"]),
        derived=np.array(runs["derived"], dtype=bool),
        source=source["file"],
        sha256=source["sha256"],
        where=source["where"],
    )
    return Law(table.domains, columns, table, tuple(values["warnings"]), tuple(values["nesting"]))


def _column_out(column: ColumnLaw) -> dict[str, Any]:
    return {
        "loss": column.loss,
        "form": column.form,
        "weights": column.weights.tolist(),
        "cv_errors": column.errors,
        "forms": {name: fit.to_json() for name, fit in column.whole.items()},
        "fold_forms": {
            name: {key: value for key, value in fit.to_json().items() if key != _ONLY_FOR_DEVIATION}
            for name, fit in column.folds.items()
        },
        "residuals": column.residuals.tolist(),
        "residual_folds": column.residual_folds.tolist(),
        "residual_widths": column.residual_widths.tolist(),
        "typical_doubt": column.typical_doubt,
        "doubt_share": column.doubt_share,
        "noise_floor": _number_out(column.noise_floor),
        "coverage": column.coverage,
    }


def _column_in(values: dict[str, Any], shares: Array) -> ColumnLaw:
    def fits(held: dict[str, Any]) -> dict[str, Fitted]:
        result = {}
        for name, arrays in held.items():
            if name not in FORMS:
                raise ValueError(f"unknown form {name}")
            loaded = {key: np.array(value, dtype=float) for key, value in arrays.items()}
            result[name] = Fitted(loaded, shares if "alpha" in loaded else None)
        return result

    if values["form"] not in CANDIDATES:
        raise ValueError(f"unknown form {values['form']}")
    if not values["residuals"]:
        raise ValueError("no held-out errors")
    return ColumnLaw(
        loss=values["loss"],
        form=values["form"],
        weights=np.array(values["weights"], dtype=float),
        errors={name: float(error) for name, error in values["cv_errors"].items()},
        whole=fits(values["forms"]),
        folds=fits(values["fold_forms"]),
        residuals=np.array(values["residuals"], dtype=float),
        residual_folds=np.array(values["residual_folds"], dtype=np.intp),
        residual_widths=np.array(values["residual_widths"], dtype=float),
        typical_doubt=float(values["typical_doubt"]),
        doubt_share=float(values["doubt_share"]),
        noise_floor=float("nan") if values["noise_floor"] is None else float(values["noise_floor"]),
        coverage=float(values["coverage"]),
    )


def _number_out(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _numbers_out(values: Array) -> list[float | None]:
    return [_number_out(float(value)) for value in values]


def _numbers_in(values: list[float | None]) -> Array:
    return np.array([float("nan") if value is None else value for value in values], dtype=float)
