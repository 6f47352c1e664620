"""Verdicts over measured captions: one a row, by the first rule that fails.

Reads captions joined with what the rules look at (rules.py); writes sample_id, keep, reason, value, threshold. Raises
ConfigError when a column is missing or no rule set fits a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.outcomes import REASON_OF_RULE
from manifests.contract.tables import VERDICTS
from manifests.errors import ConfigError
from pipeline.judging.captions.rules import RULE_NAMES, RULES, Column, as_mask
from pipeline.judging.captions.settings import CaptionSettings

_MAX_VALUE_CHARS = 200


def columns_needed(settings: CaptionSettings) -> frozenset[str]:
    """Columns that the configured rules read, so that the caller joins no more than that."""
    names = {name for rules in settings.rules for name in rules.thresholds()}
    return frozenset({"sample_id", "domain", "source"}.union(*(RULES[name].needs for name in names)))


def judge_captions(captions: pa.Table, settings: CaptionSettings) -> pa.Table:
    """One verdict a row, in the order of the rows (schema VERDICTS; `reason` says what is wrong).

    Raises: ConfigError when a column that a rule reads is missing, or no rule set fits some rows.
    """
    missing = sorted(columns_needed(settings) - set(captions.column_names))
    if missing:
        raise ConfigError(f"caption rules read columns that are missing: {', '.join(missing)}; leave those rules out")
    set_of_row = _rule_sets(captions, settings)
    num_rows = len(captions)
    failing = np.full(num_rows, -1, np.int16)  # index into RULE_NAMES
    values = np.full(num_rows, None, object)
    thresholds = np.full(num_rows, None, object)
    for number, rules in enumerate(settings.rules):
        rows = np.flatnonzero(set_of_row == number)
        part = captions if len(rows) == num_rows else captions.take(rows)
        for name, threshold in rules.thresholds().items():
            mask = as_mask(RULES[name].fails(part, threshold))
            if not mask.any():
                continue
            hit = np.flatnonzero(mask)
            failing[rows[hit]] = RULE_NAMES.index(name)
            values[rows[hit]] = _written_values(RULES[name].value(part.take(hit), threshold))
            thresholds[rows[hit]] = RULES[name].written(threshold)
            rows, part = rows[~mask], part.filter(pa.array(~mask))  # no rule looks at a dropped row again
    reasons = pa.array([REASON_OF_RULE.get(name, name) for name in RULE_NAMES], pa.string()).take(
        pa.array(failing, mask=failing < 0)
    )
    columns = [captions["sample_id"], pa.array(failing < 0), reasons, pa.array(values, pa.string())]
    return pa.table([*columns, pa.array(thresholds, pa.string())], schema=VERDICTS)


def count_reasons(verdicts: pa.Table) -> dict[str, int]:
    """Return how many rows each reason dropped, most first; kept rows under `kept`."""
    counted = pc.value_counts(pc.fill_null(verdicts["reason"], "kept"))
    pairs = [(entry["values"].as_py(), entry["counts"].as_py()) for entry in counted]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _rule_sets(captions: pa.Table, settings: CaptionSettings) -> npt.NDArray[np.int64]:
    """Return the number of the rule set that judges each row: the first that fits.

    Raises: ConfigError when none fits some rows.
    """
    set_of_row = np.full(len(captions), -1, np.int64)
    for number, rules in enumerate(settings.rules):
        fits = set_of_row < 0
        for column, names in (("domain", rules.domains), ("source", rules.sources)):
            if names:
                fits &= as_mask(pc.is_in(captions[column], pa.array(names, pa.string())))
        set_of_row[fits] = number
    left = captions.select(["source", "domain"]).filter(pa.array(set_of_row < 0))
    if len(left):
        pairs = left.group_by(["source", "domain"]).aggregate([]).sort_by("source").to_pylist()
        named = ", ".join(f"{pair['source']} (domain {pair['domain']})" for pair in pairs)
        raise ConfigError(
            f"no caption rule set fits the rows of {named}; "
            "name them in caption.rules, or end the list with a set that names no domain and no source"
        )
    return set_of_row


def _written_values(value: Column) -> npt.NDArray[np.object_]:
    """Values as text: floats to 4 digits, texts cut at 200 characters."""
    whole = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
    if pa.types.is_floating(whole.type):
        whole = pc.round(pc.cast(whole, pa.float64()), 4)
    text = pc.cast(whole, pa.string())
    return np.array(pc.utf8_slice_codeunits(text, 0, _MAX_VALUE_CHARS).to_pylist(), object)
