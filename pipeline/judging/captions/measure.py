"""Captions cleaned and measured, row by row: what every rule later reads.

Reads candidates (caption, taxon and licence columns); writes a table of the CAPTIONS schema, same rows, same
order. Pure: the measures of a row depend on that row alone. How often a caption occurs in the
corpus is therefore no measure; the stage counts it over `text_key`, in SQL.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.tables import CAPTIONS
from pipeline.judging.captions.clean import clean_captions
from pipeline.judging.captions.language import detect_languages
from pipeline.judging.captions.patterns import (
    BARE_NAME,
    BINOMIAL,
    CHARACTER_WORDS,
    DENSE_SCRIPT,
    FILENAME,
    NOT_A_GENUS,
    NOT_AN_EPITHET,
    PLACEHOLDER,
)
from pipeline.judging.captions.settings import NGRAM_WORDS
from pipeline.judging.vocabulary.backbone import apply_names
from pipeline.judging.vocabulary.licences import normalise_licences
from pipeline.judging.vocabulary.taxa import taxon_columns

FEWEST_CHARS = 3  # of a caption; "a" or "12" says less than the name of a taxon


def measure_captions(
    candidates: pa.Table, names: pa.Table | None = None, licences: Mapping[str, str] = MappingProxyType({})
) -> pa.Table:
    """Clean and measure the captions of candidates; `names` (schema NAMES) resolves their taxa, where given.

    `licences` gives the ids of licence texts that are not read, as `normalise_licence` takes them.

    Where a clean caption is empty or shorter than FEWEST_CHARS and a taxon is known, `text` is the taxon's sentence and
    `text_source` is "taxon". Such rows have no `text_key`, because many pictures of one species are no boilerplate.
    """
    raw = pc.fill_null(candidates["caption"].combine_chunks(), "")
    cleaned, steps = clean_captions(raw)
    resolved, provenance = _resolved(candidates, names)
    taxa = taxon_columns(resolved, candidates)
    text, source = _fall_back(cleaned, taxa["texts"])
    letters, visible = _count_letters(text)
    words = _count_words(text)
    languages, confidences = detect_languages(text.to_pylist(), (letters > 0).tolist())
    columns: dict[str, pa.Array] = {
        "sample_id": candidates["sample_id"].combine_chunks(),
        "text": text,
        "text_source": source,
        **taxa,
        **provenance,
        "text_key": text_keys(pc.if_else(pc.equal(source, "caption"), text, pa.scalar(None, pa.string()))),
        "licence_id": normalise_licences(candidates["licence"], candidates["licence_url"], licences),
        "given_chars": pc.utf8_length(raw),
        "given_words": pa.array([len(caption.split()) for caption in raw.to_pylist()], pa.int32()),
        "num_chars": pc.utf8_length(text),
        "num_words": words,
        "letter_ratio": pa.array((letters / np.maximum(visible, 1)).astype(np.float32)),
        "repeated_ratio": _repeated_ratios(text, words),
        "filename_like": _matches(text, FILENAME),
        "placeholder_like": _matches(pc.utf8_lower(text), PLACEHOLDER),
        **_name_measures(text, taxa["texts"], taxa["taxon_name"]),
        "language": languages,
        "language_confidence": confidences,
        "steps": steps,
    }
    return pa.table([columns[field.name].cast(field.type) for field in CAPTIONS], schema=CAPTIONS)


def _resolved(candidates: pa.Table, names: pa.Table | None) -> tuple[pa.Table, dict[str, pa.Array]]:
    if names is None:
        nothing = pa.nulls(len(candidates), pa.string())
        return candidates, dict.fromkeys(("taxon_given", "taxon_matched", "taxon_id"), nothing)
    candidates, provenance = apply_names(candidates, names)
    return candidates, {column: provenance[column].combine_chunks() for column in provenance.column_names}


def text_keys(text: pa.Array) -> pa.Array:
    """64-bit key of each text, the same whatever its case, punctuation and spacing; null for null and empty texts."""
    folded = pc.replace_substring_regex(pc.utf8_lower(text), r"[^\pL\pM\pN]+", " ")
    folded = pc.utf8_trim(folded, " ")
    folded = pc.if_else(pc.equal(folded, ""), text, folded)  # a text of signs alone keeps them
    return pa.array([_hash64(value) for value in folded.to_pylist()], pa.uint64())


def _hash64(value: str | None) -> int | None:
    if not value:
        return None
    return int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")


def _fall_back(cleaned: pa.Array, texts: pa.Array) -> tuple[pa.Array, pa.Array]:
    chars = pc.utf8_length(cleaned)
    rows = pc.indices_nonzero(pc.less(chars, FEWEST_CHARS))
    words = pc.count_substring_regex(cleaned.take(rows), CHARACTER_WORDS)  # each can be a whole word, so counts twice
    rows = rows.filter(pc.less(pc.add(chars.take(rows), words), FEWEST_CHARS))
    sentences = [dict(pairs).get("sentence") for pairs in texts.take(rows).to_pylist()]
    source = pc.if_else(pc.equal(chars, 0), "none", "caption")
    if not any(sentences):
        return cleaned, source
    replaced = cleaned.to_pylist()
    origin = source.to_pylist()
    for row, sentence in zip(rows.to_pylist(), sentences, strict=True):
        if sentence:
            replaced[row], origin[row] = sentence, "taxon"
    return pa.array(replaced, pa.string()), pa.array(origin, pa.string())


def _count_letters(text: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return how many letters (with marks) and how many visible characters each text has."""
    visible_text = pc.replace_substring_regex(text, r"\s+", "")
    visible = pc.utf8_length(visible_text).to_numpy()
    without_letters = pc.replace_substring_regex(visible_text, r"[\pL\pM]+", "")
    return visible - pc.utf8_length(without_letters).to_numpy(), visible


def _count_words(text: pa.Array) -> pa.Array:
    """Words by spaces; in scripts written without spaces two characters count as a word."""
    spaced = pc.if_else(pc.equal(text, ""), 0, pc.add(pc.count_substring_regex(text, r"\s+"), 1))
    dense = pc.count_substring_regex(text, DENSE_SCRIPT)
    return pc.add(spaced, pc.cast(pc.divide(dense, 2), pa.int32()))


def _repeated_ratios(text: pa.Array, words: pa.Array) -> pa.Array:
    """Share of the word n-grams that stand in the same text before."""
    n = NGRAM_WORDS
    ratios = np.zeros(len(text), np.float32)
    rows = pc.indices_nonzero(pc.greater(words, n))
    for row, value in zip(rows.to_pylist(), text.take(rows).to_pylist(), strict=True):
        split = value.lower().split()
        if len(set(split)) == len(split):
            continue  # all words differ: no n-gram can repeat
        total = len(split) - n + 1
        if total > 1:
            ratios[row] = 1 - len({tuple(split[i : i + n]) for i in range(total)}) / total
    return pa.array(ratios)


def _matches(text: pa.Array, pattern: str) -> pa.Array:
    return pc.match_substring_regex(text, pattern)


def _name_measures(text: pa.Array, texts: pa.Array, taxon_names: pa.Array) -> dict[str, pa.Array]:
    """Return whether a Latin binomial stands in the text, and whether nothing else does."""
    english = pc.match_substring_regex(text, NOT_AN_EPITHET)
    binomial = pc.and_not(pc.match_substring_regex(text, BINOMIAL), english)
    bare = pc.and_not(pc.match_substring_regex(text, BARE_NAME), pc.match_substring_regex(text, NOT_A_GENUS))
    bare = pc.and_not(bare, english)
    with_taxon = pc.indices_nonzero(taxon_names.is_valid())
    if len(with_taxon):
        has, only = _against_taxon(text.take(with_taxon).to_pylist(), texts.take(with_taxon).to_pylist())
        binomial = _or_at(binomial, with_taxon, has)
        bare = _or_at(bare, with_taxon, only)
    return {"has_binomial": binomial, "bare_name": bare}


def _against_taxon(texts: list[str], variants: list[list[tuple[str, str]]]) -> tuple[list[bool], list[bool]]:
    has, only = [], []
    for text, pairs in zip(texts, variants, strict=True):
        names = dict(pairs)
        lowered = text.casefold().rstrip(".")
        scientific = names["scientific"].casefold()
        has.append(" " in scientific and scientific in lowered)
        only.append(lowered in {scientific, names["canonical"].casefold()})
    return has, only


def _or_at(mask: pa.Array, rows: pa.Array, values: Iterable[bool]) -> pa.Array:
    out = mask.to_numpy(zero_copy_only=False).copy()
    out[rows.to_numpy()] |= np.fromiter(values, bool)
    return pa.array(out)
