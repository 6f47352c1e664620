"""The caption rules: the setting of each, what it reads, where it fails, and the presets.

A rule is a field of `Thresholds` and an entry of `RULES`, at the same place. It reads measured captions joined with
`domain` and `source`, and with `num_same_text`, `width_px` and `height_px` where it asks for them. All of it is Arrow
over whole columns. A missing value never fails a rule: a picture is not punished for what could not be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from manifests.contract.outcomes import REASON_OF_RULE
from manifests.contract.settings import Settings
from pipeline.judging.captions.patterns import CHARACTER_WORDS, ENGLISH_WORDS, KEYWORD_LIST, PROPER_NAME, SPAM

# Of the rule `languages`, measured in README.md: a guess less sure than this, or over fewer characters, drops nothing.
MIN_CONFIDENCE, MIN_CHARS = 0.6, 20
# Of 1,325 English captions of 20 to 29 characters, 3 were called Italian at 0.67 to 0.72 ("A good allround potato"),
# none at 0.75 or more. README.md says what of other languages is kept for that.
SHORT_CHARS = 30
SHORT_CONFIDENCE = 0.75

PresetName = Literal["datacomp-basic", "plant", "general"]


class LanguageRule(Settings):
    """Languages that may stay, by ISO 639 code as fastText writes it.

    A guess over a very short text is noise. So a caption stays when it is shorter than MIN_CHARS, or when the guess is
    less sure than MIN_CONFIDENCE (than SHORT_CONFIDENCE below SHORT_CHARS). It stays when it is a list of key words or
    a proper name, or when it holds a Latin binomial. Where English is allowed, a common English word (the, with, flag)
    saves a caption that is full of foreign names.
    """

    allow: tuple[str, ...] = ("en",)
    """Languages that may stay, as ISO 639 codes."""

    @field_validator("allow")
    @classmethod
    def _not_empty(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        if not allow:
            raise ValueError("name at least one language, or leave the rule out")
        return allow


class Thresholds(Settings):
    """One field a rule; None or False leaves the rule out. The rules are applied in the order of the fields."""

    not_empty: bool | None = None
    """Drop a row without a caption."""
    not_placeholder_like: bool | None = None
    """Drop "image", "untitled", "click to enlarge" and the like."""
    not_filename_like: bool | None = None
    """Drop file names such as IMG_0042."""
    not_spam_like: bool | None = None
    """Drop what a shop says to its visitors, such as "click here to buy"."""
    min_chars: int | None = Field(default=None, ge=0)
    """Least number of characters of the clean caption."""
    max_chars: int | None = Field(default=None, ge=1)
    """Most characters of the clean caption."""
    min_words: int | None = Field(default=None, ge=0)
    """Least number of words of the clean caption."""
    max_words: int | None = Field(default=None, ge=1)
    """Most words of the clean caption."""
    min_letter_ratio: float | None = Field(default=None, ge=0, le=1)
    """Least share of letters among all characters but spaces."""
    max_repeated_ratio: float | None = Field(default=None, ge=0, le=1)
    """Largest share of words that stand in repeated runs of words."""
    not_bare_name: bool | None = None
    """Drop a caption that is a scientific name and nothing else, where no taxon is stated."""
    languages: LanguageRule | None = None
    max_repeats: int | None = Field(default=None, ge=1)
    """Drop a caption that stands on more pictures of the corpus, but for case and punctuation."""
    min_side_px: int | None = Field(default=None, ge=1)
    """Least length of the shorter side of the picture as downloaded."""
    max_aspect_ratio: float | None = Field(default=None, ge=1)
    """Largest ratio of the longer to the shorter side, as downloaded."""


ON_GIVEN = ("min_given_words", "min_given_chars")  # of the caption as given: rules of DataComp's filter alone
Column: TypeAlias = pa.Array | pa.ChunkedArray
# Few letters are enough in two Chinese, Japanese or Korean characters, in the time that a clock shows, and in a digit.
_ENOUGH = (CHARACTER_WORDS + "{2}", r"^\d{1,2}:\d{2}$|^\d$")


@dataclass(frozen=True)
class Rule:
    """One threshold: the columns it reads, the condition under which it fails, the value and threshold to record."""

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
    mask = as_mask(fails).copy()
    mask[rows.to_numpy()] = ~as_mask(spared(text.take(rows)))
    return pa.array(mask)


def as_mask(fails: Column) -> npt.NDArray[np.bool_]:
    """Where a rule fails; a missing value does not."""
    filled = pc.fill_null(fails, False)
    whole = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    mask: npt.NDArray[np.bool_] = whole.to_numpy(zero_copy_only=False)
    return mask


def _bare_without_taxon(table: pa.Table, _: Any) -> Column:
    """Return which captions are a bare name without a taxon.

    A bare name is noise in a web caption, unless the source states the taxon.
    """
    return pc.and_(table["bare_name"], table["taxon_name"].is_null())


def _repeated(table: pa.Table, high: int) -> Column:
    """Return which texts repeat too often.

    Repeats of a bare scientific name are many pictures of one species, not boilerplate.
    """
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
RULE_NAMES = tuple(RULES)
RULE_OF_REASON = {REASON_OF_RULE.get(name, name): name for name in RULE_NAMES}
assert [name for name in RULE_NAMES if name not in ON_GIVEN] == list(Thresholds.model_fields), "rules in another order"

PRESETS: dict[PresetName, dict[str, Any]] = {
    # DataComp's basic filter without its language model: more than 2 words, more than 5 characters of the
    # caption as given, smallest side at least 200 px, aspect ratio at most 3.
    # Source: Gadre et al. 2023 (arXiv:2304.14108), section 5 and baselines/apply_filter.py of its repository.
    "datacomp-basic": {"min_given_words": 3, "min_given_chars": 6, "min_side_px": 200, "max_aspect_ratio": 3.0},
    "plant": {
        "not_empty": True,
        "not_placeholder_like": True,
        "not_filename_like": True,
        "not_spam_like": True,
        "max_chars": 2000,
        "min_letter_ratio": 0.2,
        "max_repeated_ratio": 0.5,
    },
    "general": {
        "not_empty": True,
        "not_placeholder_like": True,
        "not_filename_like": True,
        "not_spam_like": True,
        "max_chars": 1000,
        "max_words": 150,
        "min_letter_ratio": 0.2,
        "max_repeated_ratio": 0.5,
        "not_bare_name": True,
        "max_repeats": 250,
    },
}
