"""Verdicts over measured captions: one a row, the first rule that fails in the configured order.

Reads captions joined with `domain` and `source` (and `num_same_text`, `num_same_text_host`, `width_px`,
`height_px`, `pixel_std` where a rule asks for them); writes sample_id, keep, reason, value, threshold. Everything is
Arrow over whole columns, nothing is measured here. A missing value never fails a rule: what could not be measured
is not held against a picture. Gives up with ConfigError when a needed column is missing or no rule set fits a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ConfigError
from manifests.tables import VERDICTS
from pipeline.captions.patterns import CHARACTER_WORDS, ENGLISH_WORDS, KEYWORD_LIST, PROPER_NAME
from pipeline.captions.settings import RULE_NAMES, CaptionSettings, LanguageRule

Column: TypeAlias = pa.Array | pa.ChunkedArray
# Few letters say enough where they are two Chinese, Japanese or Korean ones, the time that a clock shows, or a digit.
_ENOUGH = (CHARACTER_WORDS + "{2}", r"^\d{1,2}:\d{2}$|^\d$")


@dataclass(frozen=True)
class Rule:
    """How one threshold is judged: the columns it reads, where it fails, and the value that is written down."""

    needs: tuple[str, ...]
    fails: Callable[[pa.Table, Any], Column]
    value: Callable[[pa.Table, Any], Column]
    written: Callable[[Any], str]


def _at_least(column: str) -> Rule:
    return Rule((column,), lambda t, low: pc.less(t[column], low), lambda t, _: t[column], lambda low: f">= {low:g}")


def _at_most(column: str) -> Rule:
    return Rule(
        (column,), lambda t, high: pc.greater(t[column], high), lambda t, _: t[column], lambda high: f"<= {high:g}"
    )


def _never(column: str, named: str) -> Rule:
    return Rule((column, "text"), lambda t, _: t[column], lambda t, _: t["text"], lambda _: named)


def _empty(table: pa.Table, _: Any) -> Column:
    return pc.equal(table["text"], "")


def _blocklist_pattern(entries: tuple[str, ...]) -> str:
    words = "|".join(re.escape(" ".join(entry.split())) for entry in sorted(entries))
    return rf"(?i)(?:^|[^\pL\pN])(?P<hit>{words})(?:[^\pL\pN]|$)"


def _blocked_phrase(table: pa.Table, entries: tuple[str, ...]) -> Column:
    """The first phrase of the list that stands in each text."""
    return pc.struct_field(pc.extract_regex(table["text"], _blocklist_pattern(entries)), "hit")


def _blocked(table: pa.Table, entries: tuple[str, ...]) -> Column:
    return pc.match_substring_regex(table["text"], _blocklist_pattern(entries))


def _other_language(table: pa.Table, rule: LanguageRule) -> Column:
    foreign = pc.invert(pc.is_in(table["language"], pa.array(rule.allow, pa.string())))
    sure = pc.and_(
        pc.greater_equal(table["language_confidence"], pa.scalar(rule.min_confidence, pa.float32())),
        pc.greater_equal(table["num_chars"], rule.min_chars),
    )
    fails = pc.and_(pc.and_(foreign, sure), table["language"].is_valid())
    if rule.spare_binomials:
        fails = pc.and_not(fails, table["has_binomial"])
    spared = [KEYWORD_LIST, PROPER_NAME, *([ENGLISH_WORDS] if "en" in rule.allow else [])]
    return _spare(fails, table["text"], lambda text: _matches_any(text, spared))


def _matches_any(text: Column, patterns: Sequence[str]) -> Column:
    found = pc.match_substring_regex(text, patterns[0])
    for pattern in patterns[1:]:
        found = pc.or_(found, pc.match_substring_regex(text, pattern))
    return found


def _spare(fails: Column, text: Column, spared: Callable[[Column], Column]) -> Column:
    """`fails` without the rows that are spared; only texts of failing rows are searched, for they are few."""
    rows = pc.indices_nonzero(fails)
    if not len(rows):
        return fails
    mask = _as_mask(fails).copy()
    mask[rows.to_numpy()] = ~_as_mask(spared(text.take(rows)))
    return pa.array(mask)


def _length(table: pa.Table, _: Any = None) -> Column:
    """Characters, one of a script whose single characters are words counted as two."""
    return pc.add(table["num_chars"], pc.cast(pc.count_substring_regex(table["text"], CHARACTER_WORDS), pa.int32()))


def _language_value(table: pa.Table, _: Any = None) -> Column:
    rounded = pc.cast(pc.round(pc.cast(table["language_confidence"], pa.float64()), 2), pa.string())
    return pc.binary_join_element_wise(table["language"], rounded, " ")


def _repeated(column: str) -> Rule:
    """Repeats of a bare scientific name are many pictures of one species, not boilerplate."""
    return Rule(
        (column, "bare_name"),
        lambda t, high: pc.and_not(pc.greater(t[column], high), t["bare_name"]),
        lambda t, _: t[column],
        lambda high: f"<= {high}",
    )


def _side(table: pa.Table, _: Any = None) -> Column:
    return pc.min_element_wise(table["width_px"], table["height_px"], skip_nulls=False)


def _aspect(table: pa.Table, _: Any = None) -> Column:
    longest = pc.max_element_wise(table["width_px"], table["height_px"], skip_nulls=False)
    shortest = pc.cast(_side(table), pa.float64())
    return pc.divide(pc.cast(longest, pa.float64()), shortest)


def _area(table: pa.Table, _: Any = None) -> Column:
    return pc.multiply(pc.cast(table["width_px"], pa.int64()), pc.cast(table["height_px"], pa.int64()))


_SIZES = ("width_px", "height_px")

RULES: dict[str, Rule] = {
    "not_empty": Rule(("text",), _empty, lambda t, _: t["text"], lambda _: "some text"),
    "not_placeholder_like": _never("placeholder_like", "no placeholder"),
    "not_filename_like": _never("filename_like", "no file name"),
    "blocklist": Rule(
        ("text",), _blocked, _blocked_phrase, lambda entries: f"none of {len(entries)} blocked phrases"
    ),
    "min_given_words": _at_least("given_words"),
    "min_given_chars": _at_least("given_chars"),
    "min_chars": Rule(
        ("num_chars", "text"),
        lambda t, low: _spare(
            pc.less(t["num_chars"], low),
            t["text"],
            lambda text: pc.greater_equal(_length(pa.table({"num_chars": pc.utf8_length(text), "text": text})), low),
        ),
        _length,
        lambda low: f">= {low}",
    ),
    "max_chars": _at_most("num_chars"),
    "min_words": _at_least("num_words"),
    "max_words": _at_most("num_words"),
    "max_clip_tokens": _at_most("num_clip_tokens"),
    "min_letter_ratio": Rule(
        ("letter_ratio", "text"),
        lambda t, low: _spare(pc.less(t["letter_ratio"], low), t["text"], lambda text: _matches_any(text, _ENOUGH)),
        lambda t, _: t["letter_ratio"],
        lambda low: f">= {low:g}",
    ),
    "max_digit_ratio": _at_most("digit_ratio"),
    "max_symbol_ratio": _at_most("symbol_ratio"),
    "max_repeated_ratio": _at_most("repeated_ratio"),
    "not_bare_name": _never("bare_name", "more than a scientific name"),
    "has_binomial": Rule(
        ("has_binomial", "text"),
        lambda t, _: pc.invert(t["has_binomial"]),
        lambda t, _: t["text"],
        lambda _: "a Latin binomial",
    ),
    "languages": Rule(
        ("language", "language_confidence", "num_chars", "has_binomial", "text"),
        _other_language,
        _language_value,
        lambda rule: f"{', '.join(rule.allow)} (from {rule.min_confidence:g} and {rule.min_chars} characters)",
    ),
    "max_repeats": _repeated("num_same_text"),
    "max_host_repeats": _repeated("num_same_text_host"),
    "min_side_px": Rule(_SIZES, lambda t, low: pc.less(_side(t), low), _side, lambda low: f">= {low}"),
    "max_aspect_ratio": Rule(
        _SIZES, lambda t, high: pc.greater(_aspect(t), high), _aspect, lambda high: f"<= {high:g}"
    ),
    "min_area_px": Rule(_SIZES, lambda t, low: pc.less(_area(t), low), _area, lambda low: f">= {low}"),
    "min_pixel_std": _at_least("pixel_std"),
}  # fmt: skip
assert tuple(RULES) == RULE_NAMES, "rules.py and settings.py must name the same rules in the same order"


def columns_needed(settings: CaptionSettings) -> frozenset[str]:
    """Columns that the configured rules read, so that the caller joins no more than that."""
    needed = {"sample_id", "domain", "source"}
    for rules in settings.rules:
        for name in rules.thresholds():
            needed.update(RULES[name].needs)
    return frozenset(needed)


def judge_captions(captions: pa.Table, settings: CaptionSettings) -> pa.Table:
    """One verdict a row, in the order of the rows (schema VERDICTS; `reason` is the rule's name).

    Raises: ConfigError when a column that a rule reads is missing, or no rule set fits some rows.
    """
    missing = sorted(columns_needed(settings) - set(captions.column_names))
    if missing:
        raise ConfigError(
            f"caption rules read columns that are not there: {', '.join(missing)}; join them, or leave the rules out"
        )
    set_of_row = _rule_sets(captions, settings)
    num_rows = len(captions)
    failing = np.full(num_rows, -1, np.int16)  # index into RULE_NAMES
    values = np.full(num_rows, None, object)
    thresholds = np.full(num_rows, None, object)
    for number, rules in enumerate(settings.rules):
        rows = np.flatnonzero(set_of_row == number)
        if len(rows) == 0:
            continue
        part = captions if len(rows) == num_rows else captions.take(rows)
        for name, threshold in rules.thresholds().items():
            mask = _as_mask(RULES[name].fails(part, threshold))
            if not mask.any():
                continue
            hit = np.flatnonzero(mask)
            value = RULES[name].value(part.take(hit), threshold)
            failing[rows[hit]] = RULE_NAMES.index(name)
            values[rows[hit]] = _written_values(value)
            thresholds[rows[hit]] = RULES[name].written(threshold)
            rows, part = rows[~mask], part.filter(pa.array(~mask))  # decided rows are not looked at again
    reasons = pa.array(RULE_NAMES, pa.string()).take(pa.array(failing, mask=failing < 0))
    columns = [captions["sample_id"], pa.array(failing < 0), reasons, pa.array(values, pa.string())]
    return pa.table([*columns, pa.array(thresholds, pa.string())], schema=VERDICTS)


def count_reasons(verdicts: pa.Table) -> dict[str, int]:
    """How many rows each reason dropped, most first; kept rows under `kept`."""
    counted = pc.value_counts(pc.fill_null(verdicts["reason"], "kept"))
    pairs = [(entry["values"].as_py(), entry["counts"].as_py()) for entry in counted]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _rule_sets(captions: pa.Table, settings: CaptionSettings) -> np.ndarray:
    """Number of the rule set that judges each row."""
    domains, sources = (_coded(captions[column]) for column in ("domain", "source"))
    width = len(sources.dictionary) + 1
    pair_of_row = _indices(domains) * width + _indices(sources)
    chosen = np.full((len(domains.dictionary) + 1) * width, -1, np.int64)
    uncovered = []
    for pair in np.unique(pair_of_row).tolist():
        domain, source = _at(domains, pair // width), _at(sources, pair % width)
        fitting = [number for number, rules in enumerate(settings.rules) if rules.fits(domain, source)]
        if fitting:
            chosen[pair] = fitting[0]
        else:
            uncovered.append(f"{source} (domain {domain})")
    if uncovered:
        raise ConfigError(
            f"no caption rule set fits the rows of {', '.join(uncovered)}; "
            "name them in caption.rules, or end the list with a set that names no domain and no source"
        )
    set_of_row: np.ndarray = chosen[pair_of_row]
    return set_of_row


def _coded(column: Column) -> pa.DictionaryArray:
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.dictionary_encode()


def _indices(coded: pa.DictionaryArray) -> np.ndarray:
    """Place in the dictionary of each row; one past its end for null."""
    places: np.ndarray = coded.indices.fill_null(len(coded.dictionary)).to_numpy().astype(np.int64)
    return places


def _at(coded: pa.DictionaryArray, place: int) -> str | None:
    return None if place == len(coded.dictionary) else str(coded.dictionary[place].as_py())


def _as_mask(fails: Column) -> np.ndarray:
    filled = pc.fill_null(fails, False)
    whole = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: np.ndarray = whole.to_numpy(zero_copy_only=False)
    return mask


def _written_values(value: Column) -> np.ndarray:
    """Values as text: floats to 4 digits, texts cut at 200 characters."""
    whole = value.combine_chunks() if isinstance(value, pa.ChunkedArray) else value
    if pa.types.is_floating(whole.type):
        whole = pc.round(pc.cast(whole, pa.float64()), 4)
    text = pc.cast(whole, pa.string())
    return np.array(pc.utf8_slice_codeunits(text, 0, 200).to_pylist(), object)
