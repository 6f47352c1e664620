"""Verdicts over measured captions: one a row, by the first rule that fails.

Reads captions joined with `domain` and `source`, and with `num_same_text`, `width_px` and `height_px` where a rule asks
for them; writes sample_id, keep, reason, value, threshold. All of it is Arrow over whole columns. A
missing value never fails a rule: a picture is not punished for what could not be measured. Raises ConfigError when a
column is missing or no rule set fits a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.outcomes import FORMER_REASONS
from manifests.contract.tables import VERDICTS
from manifests.errors import ConfigError
from pipeline.judging.captions.patterns import CHARACTER_WORDS, ENGLISH_WORDS, KEYWORD_LIST, PROPER_NAME, SPAM
from pipeline.judging.captions.settings import MIN_CHARS, MIN_CONFIDENCE, RULE_NAMES, CaptionSettings, LanguageRule

Column: TypeAlias = pa.Array | pa.ChunkedArray
# Few letters are enough in two Chinese, Japanese or Korean characters, in the time that a clock shows, and in a digit.
_ENOUGH = (CHARACTER_WORDS + "{2}", r"^\d{1,2}:\d{2}$|^\d$")
_MAX_VALUE_CHARS = 200
# Of 1,325 English captions of 20 to 29 characters, 3 were called Italian at 0.67 to 0.72 ("A good allround potato"),
# none at 0.75 or more. README.md says what of other languages is kept for that.
SHORT_CHARS = 30
SHORT_CONFIDENCE = 0.75


@dataclass(frozen=True)
class Rule:
    """How one threshold is applied: the columns it reads, where it fails, the value and threshold that are recorded."""

    needs: tuple[str, ...]
    fails: Callable[[pa.Table, Any], Column]
    value: Callable[[pa.Table, Any], Column]
    written: Callable[[Any], str]


def _column(name: str) -> Callable[[pa.Table, Any], Column]:
    return lambda table, _: table[name]


def _at_least(column: str) -> Rule:
    return Rule((column,), lambda t, low: pc.less(t[column], low), _column(column), lambda low: f">= {low:g}")


def _at_most(column: str) -> Rule:
    return Rule((column,), lambda t, high: pc.greater(t[column], high), _column(column), lambda high: f"<= {high:g}")


def _never(column: str, threshold: str) -> Rule:
    return Rule((column, "text"), _column(column), _column("text"), lambda _: threshold)


def _too_short(table: pa.Table, low: int) -> Column:
    """Fewer than `low` characters, where a character that can be a whole word counts twice."""
    short = pc.less(table["num_chars"], low)
    return _spare(short, table["text"], lambda text: pc.greater_equal(_length(pc.utf8_length(text), text), low))


def _length(num_chars: Column, text: Column) -> Column:
    return pc.add(num_chars, pc.cast(pc.count_substring_regex(text, CHARACTER_WORDS), pa.int32()))


def _too_few_letters(table: pa.Table, low: float) -> Column:
    return _spare(pc.less(table["letter_ratio"], low), table["text"], lambda text: _matches_any(text, _ENOUGH))


def _other_language(table: pa.Table, rule: LanguageRule) -> Column:
    foreign = pc.invert(pc.is_in(table["language"], pa.array(rule.allow, pa.string())))
    short = pc.less(table["num_chars"], SHORT_CHARS)
    least = pc.if_else(short, SHORT_CONFIDENCE, MIN_CONFIDENCE)
    sure = pc.and_(
        pc.greater_equal(table["language_confidence"], pc.cast(least, pa.float32())),
        pc.greater_equal(table["num_chars"], MIN_CHARS),
    )
    fails = pc.and_not(pc.and_(pc.and_(foreign, sure), table["language"].is_valid()), table["has_binomial"])
    spared = [KEYWORD_LIST, PROPER_NAME, *([ENGLISH_WORDS] if "en" in rule.allow else [])]
    return _spare(fails, table["text"], lambda text: _matches_any(text, spared))


def _language_value(table: pa.Table, _: Any) -> Column:
    rounded = pc.cast(pc.round(pc.cast(table["language_confidence"], pa.float64()), 2), pa.string())
    return pc.binary_join_element_wise(table["language"], rounded, " ")


def _matches_any(text: Column, patterns: Sequence[str]) -> Column:
    matches = pc.match_substring_regex(text, patterns[0])
    for pattern in patterns[1:]:
        matches = pc.or_(matches, pc.match_substring_regex(text, pattern))
    return matches


def _spare(fails: Column, text: Column, spared: Callable[[Column], Column]) -> Column:
    """`fails` without the rows that are spared; only the few failing texts are searched."""
    rows = pc.indices_nonzero(fails)
    if not len(rows):
        return fails
    mask = _as_mask(fails).copy()
    mask[rows.to_numpy()] = ~_as_mask(spared(text.take(rows)))
    return pa.array(mask)


def _bare_without_taxon(table: pa.Table, _: Any) -> Column:
    """A bare name is noise in a web caption. Where the source states the taxon, the name is what the picture shows."""
    return pc.and_(table["bare_name"], table["taxon_name"].is_null())


def _repeated(table: pa.Table, high: int) -> Column:
    """Repeats of a bare scientific name are many pictures of one species, not boilerplate."""
    return pc.and_not(pc.greater(table["num_same_text"], high), table["bare_name"])


def _side(table: pa.Table, _: Any = None) -> Column:
    return pc.min_element_wise(table["width_px"], table["height_px"], skip_nulls=False)


def _aspect(table: pa.Table, _: Any = None) -> Column:
    longest = pc.max_element_wise(table["width_px"], table["height_px"], skip_nulls=False)
    return pc.divide(pc.cast(longest, pa.float64()), pc.cast(_side(table), pa.float64()))


_SIZES = ("width_px", "height_px")
_SPOKEN = ("language", "language_confidence", "num_chars", "has_binomial", "text")

RULES: dict[str, Rule] = {
    "not_empty": Rule(("text",), lambda t, _: pc.equal(t["text"], ""), _column("text"), lambda _: "some text"),
    "not_placeholder_like": _never("placeholder_like", "no placeholder"),
    "not_filename_like": _never("filename_like", "no file name"),
    "not_spam_like": Rule(
        ("text",), lambda t, _: pc.match_substring_regex(t["text"], SPAM), _column("text"), lambda _: "no advertisement"
    ),
    "min_given_words": _at_least("given_words"),
    "min_given_chars": _at_least("given_chars"),
    "min_chars": Rule(
        ("num_chars", "text"), _too_short, lambda t, _: _length(t["num_chars"], t["text"]), lambda low: f">= {low}"
    ),
    "max_chars": _at_most("num_chars"),
    "min_words": _at_least("num_words"),
    "max_words": _at_most("num_words"),
    "min_letter_ratio": Rule(
        ("letter_ratio", "text"), _too_few_letters, _column("letter_ratio"), lambda low: f">= {low:g}"
    ),
    "max_repeated_ratio": _at_most("repeated_ratio"),
    "not_bare_name": Rule(
        ("bare_name", "taxon_name", "text"),
        _bare_without_taxon,
        _column("text"),
        lambda _: "more than a scientific name",
    ),
    "languages": Rule(
        _SPOKEN,
        _other_language,
        _language_value,
        lambda rule: (
            f"{', '.join(rule.allow)} (from {MIN_CONFIDENCE:g} and {MIN_CHARS} characters, "
            f"{SHORT_CONFIDENCE:g} below {SHORT_CHARS})"
        ),
    ),
    "max_repeats": Rule(("num_same_text", "bare_name"), _repeated, _column("num_same_text"), lambda high: f"<= {high}"),
    "min_side_px": Rule(_SIZES, lambda t, low: pc.less(_side(t), low), _side, lambda low: f">= {low}"),
    "max_aspect_ratio": Rule(
        _SIZES, lambda t, high: pc.greater(_aspect(t), high), _aspect, lambda high: f"<= {high:g}"
    ),
}
assert tuple(RULES) == RULE_NAMES, "rules.py and settings.py must name the same rules in the same order"


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
            mask = _as_mask(RULES[name].fails(part, threshold))
            if not mask.any():
                continue
            hit = np.flatnonzero(mask)
            failing[rows[hit]] = RULE_NAMES.index(name)
            values[rows[hit]] = _written_values(RULES[name].value(part.take(hit), threshold))
            thresholds[rows[hit]] = RULES[name].written(threshold)
            rows, part = rows[~mask], part.filter(pa.array(~mask))  # no rule looks at a dropped row again
    reasons = pa.array([FORMER_REASONS.get(name, name) for name in RULE_NAMES], pa.string()).take(
        pa.array(failing, mask=failing < 0)
    )
    columns = [captions["sample_id"], pa.array(failing < 0), reasons, pa.array(values, pa.string())]
    return pa.table([*columns, pa.array(thresholds, pa.string())], schema=VERDICTS)


def count_reasons(verdicts: pa.Table) -> dict[str, int]:
    """How many rows each reason dropped, most first; kept rows under `kept`."""
    counted = pc.value_counts(pc.fill_null(verdicts["reason"], "kept"))
    pairs = [(entry["values"].as_py(), entry["counts"].as_py()) for entry in counted]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _rule_sets(captions: pa.Table, settings: CaptionSettings) -> npt.NDArray[np.int64]:
    """Number of the rule set that judges each row: the first that fits.

    Raises: ConfigError when none fits some rows.
    """
    set_of_row = np.full(len(captions), -1, np.int64)
    for number, rules in enumerate(settings.rules):
        fits = set_of_row < 0
        for column, names in (("domain", rules.domains), ("source", rules.sources)):
            if names:
                fits &= _as_mask(pc.is_in(captions[column], pa.array(names, pa.string())))
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


def _as_mask(fails: Column) -> npt.NDArray[np.bool_]:
    filled = pc.fill_null(fails, False)
    whole = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: npt.NDArray[np.bool_] = whole.to_numpy(zero_copy_only=False)
    return mask


def _written_values(value: Column) -> npt.NDArray[np.object_]:
    """Values as text: floats to 4 digits, texts cut at 200 characters."""
    whole = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
    if pa.types.is_floating(whole.type):
        whole = pc.round(pc.cast(whole, pa.float64()), 4)
    text = pc.cast(whole, pa.string())
    return np.array(pc.utf8_slice_codeunits(text, 0, _MAX_VALUE_CHARS).to_pylist(), object)
