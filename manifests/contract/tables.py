"""The data contract: the Arrow schema of every table with a row for each sample, and the identity of a sample.

Tables are Parquet parts. Every column is described here once. Stages, the catalogue's views, releases and tests
all read these schemas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ID_BYTES = 16
TAXON_RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")

CANDIDATES = pa.schema(
    [
        ("sample_id", pa.string()),  # 32 hex digits, see sample_ids()
        ("source", pa.string()),  # name of the source in the config
        ("domain", pa.string()),  # e.g. plant, general
        ("record_key", pa.string()),  # the source's own key of the row
        ("group_id", pa.string()),  # what pictures of one thing share, as an observation; null: on its own
        ("row_number", pa.int64()),  # row in the source from 0, a header counted: in a spreadsheet it is one more
        ("url", pa.string()),  # http(s) address without secrets; beside a locator it is provenance and never requested
        ("locator", pa.string()),  # NAME@OFFSET+LENGTH of bytes below the source's root; null for web rows
        ("caption", pa.string()),  # as given, untouched
        *[(f"taxon_{rank}", pa.string()) for rank in TAXON_RANKS],  # any may be null, holes included
        ("taxon_scientific_name", pa.string()),  # as given, authorship included
        ("taxon_vernacular_name", pa.string()),
        ("licence", pa.string()),  # as given
        ("licence_url", pa.string()),
        ("rights_holder", pa.string()),
        ("creator", pa.string()),
        ("reference_url", pa.string()),  # the page a person would visit
        ("extra", pa.string()),  # json object of the other columns that the config maps
    ]
)

SECRETS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("url", pa.string()),  # what is asked, as the source gave it
        ("address", pa.string()),  # candidates.url and a short hash of `url`: what names it in FETCHED
    ]
)
"""Candidates whose address holds a secret. Read by fetch alone: it has no view and is part of no release."""

FACTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("outcome", pa.string()),  # manifests.contract.outcomes.Outcome
        ("detail", pa.string()),  # free text beside the outcome; never a credential
        ("http_status", pa.int16()),
        ("attempts", pa.int16()),
        ("host", pa.string()),
        ("final_url", pa.string()),  # after redirects, without credentials, secrets in the query masked
        ("redirects", pa.list_(pa.string())),  # addresses that led there, in order, masked likewise
        ("num_bytes", pa.int64()),  # of the body as downloaded
        ("image_id", pa.string()),  # sha256 of the bytes as downloaded, hex
        ("stored_sha256", pa.string()),  # sha256 of the bytes in the pool
        ("pixels_sha256", pa.string()),  # sha256 of the stored pixels (RGB8, row-major, size in front)
        ("phash", pa.uint64()),  # imagehash.phash of the stored pixels, first hash bit highest
        ("phash_mirrored", pa.uint64()),  # of the same pixels, left and right swapped
        ("middle_hash", pa.uint64()),  # of their middle: it tells sheets of one layout apart
        ("middle_mirrored", pa.uint64()),  # the same of the mirror image
        ("width_px", pa.int32()),  # as downloaded, after EXIF orientation
        ("height_px", pa.int32()),
        ("stored_width_px", pa.int32()),
        ("stored_height_px", pa.int32()),
        ("format", pa.string()),  # Pillow's name: JPEG, PNG, ...
        ("mode", pa.string()),  # Pillow's mode before conversion
        ("exif_orientation", pa.int8()),  # 1 to 8; 1 when absent
        ("has_camera", pa.bool_()),  # EXIF names the camera
        ("file_creator", pa.string()),  # who made it, by EXIF, IPTC or XMP; "" where they do not say
        ("file_rights", pa.string()),  # whom their copyright notice names, likewise
        ("pixel_std", pa.float32()),  # standard deviation of the luminance of the stored pixels, 0 to 127.5
        ("colour_std", pa.float32()),  # the same of their colour (Cb, Cr), 0 for grey
        ("pool_file", pa.string()),  # path relative to the pool folder
        ("offset", pa.int64()),  # of the stored bytes in pool_file
        ("length", pa.int64()),
    ]
)

SIGNALS = pa.field("signals", pa.map_(pa.string(), pa.list_(pa.string())))
"""What was said about use, by the place that was looked at (pipeline/fetching/consent); null: not stored."""

FETCHED = FACTS.append(pa.field("url", pa.string())).append(pa.field("round", pa.int32())).append(SIGNALS)
"""What each round of fetching found under an address. A build is round 0; each `plantmix retry` is one more."""

CAPTIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("text", pa.string()),  # cleaned text; the taxon's sentence where a taxon is known and the caption too short
        ("text_source", pa.string()),  # caption, taxon, or none when the text is empty
        ("texts", pa.map_(pa.string(), pa.string())),  # text types, where a taxon is known
        ("taxon_name", pa.string()),  # canonical (and, with a backbone, accepted) name without authors; null without
        ("taxon_ranks", pa.map_(pa.string(), pa.string())),  # known ranks as the texts use them; species is a binomial
        ("taxon_derived", pa.string()),  # ranks of `taxon_ranks` that the source left empty, joined by a space; or null
        ("taxon_given", pa.string()),  # the name that was looked up in the backbone; null without a backbone
        ("taxon_matched", pa.string()),  # how it was found there, see NAMES.matched_how
        ("taxon_id", pa.string()),  # the accepted taxon's id in the backbone
        ("text_key", pa.uint64()),  # hash of the folded text, for counting repeats; null unless from a caption
        ("licence_id", pa.string()),  # normalised licence; `unknown` when it cannot be read
        ("given_chars", pa.int32()),  # of the caption as given, code points
        ("given_words", pa.int32()),  # of the caption as given, split at white space
        ("num_chars", pa.int32()),  # this and all below: of `text`
        ("num_words", pa.int32()),  # in scripts without spaces two characters count as a word
        ("letter_ratio", pa.float32()),  # letters over non-space characters, 0 to 1
        ("repeated_ratio", pa.float32()),  # share of word n-grams seen before in the same text, 0 to 1
        ("language", pa.string()),  # ISO 639 code; null when there are no letters or it is not measured
        ("language_confidence", pa.float32()),  # 0 to 1
        ("filename_like", pa.bool_()),
        ("placeholder_like", pa.bool_()),
        ("has_binomial", pa.bool_()),
        ("bare_name", pa.bool_()),  # a scientific name and nothing else
        ("steps", pa.list_(pa.string())),  # names of the cleaning steps that changed something
    ]
)

JOINED_TEXTS = pa.schema(  # of fetched pictures
    [
        ("sample_id", pa.string()),
        ("name", pa.string()),  # the kind, of further texts with a number (trait_2); null where a rule dropped it
        ("kind", pa.string()),
        ("text", pa.string()),  # cleaned
        ("source", pa.string()),
        ("entry", pa.int16()),  # number in `captions` of the source, from 1
        ("row_number", pa.int64()),  # row in the table, counted likewise
        ("reason", pa.string()),  # the caption rule that dropped it, or empty_text, same_text; null when kept
        ("value", pa.string()),
        ("threshold", pa.string()),
    ]
)

NAMES = pa.schema(
    [
        ("name", pa.string()),  # as given
        ("kingdom_given", pa.string()),  # null when the source did not say
        ("matched_how", pa.string()),  # exact, species (of an infraspecific name), ambiguous, none
        ("matched_id", pa.string()),  # taxonID of the row that fits the name
        ("matched_status", pa.string()),  # accepted, synonym, ... as the backbone writes it
        ("accepted_id", pa.string()),
        ("accepted_name", pa.string()),  # canonical, without authors
        *[(rank, pa.string()) for rank in TAXON_RANKS],  # of the accepted taxon; species is the binomial
        ("vernacular", pa.string()),
    ]
)

REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("row_number", pa.int64()),
        ("record_key", pa.string()),
        ("url", pa.string()),
        ("reason", pa.string()),  # missing_key, invalid_url, ...: configs/guide/your-data.md
        ("value", pa.string()),
    ]
)

VERDICTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # the rule
        ("value", pa.string()),
        ("threshold", pa.string()),
    ]
)

SCORES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("scorer", pa.string()),  # clip, or the name of a plug-in
        ("score", pa.float32()),  # rounded to 0.0001
    ]
)

MARKS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("marks", pa.string()),  # NAME:blurred, NAME:flagged by the scorers' names, sorted, joined by a space
        # places to blur; sides are shares of width and height
        ("blur", pa.list_(pa.struct([(side, pa.float32()) for side in ("left", "top", "right", "bottom")]))),
    ]
)

PAIRS = pa.schema(
    [
        ("look_a", pa.uint64()),  # a < b; a number for both hashes of a picture (pipeline/judging/matching/looks.py)
        ("look_b", pa.uint64()),
        ("phash_a", pa.uint64()),
        ("phash_b", pa.uint64()),
        ("distance", pa.uint8()),  # of the pHashes: bits in which they differ
        ("mirrored", pa.bool_()),  # the distance is that of one hash to the mirror image of the other
    ]
)

DETAILS = pa.schema(  # of pictures that have a near copy of another size
    [
        ("pixels_sha256", pa.string()),  # of facts
        ("detail_px", pa.int64()),  # pixels that the detail fills; fewer than the picture has where it was blown up
    ]
)

SEMANTIC_PAIRS = pa.schema(
    [
        ("pixels_a", pa.string()),  # pixels_sha256 of facts, a < b
        ("pixels_b", pa.string()),
        ("cosine", pa.float32()),  # of their embeddings
    ]
)

EVALUATION = pa.schema(
    [
        ("evaluation_set", pa.string()),
        ("member", pa.string()),  # the set's own key of the image
        ("url", pa.string()),  # where the set says it came from
        ("outcome", pa.string()),  # manifests.contract.outcomes.Outcome; null when the set gives no bytes
        ("detail", pa.string()),
        ("image_id", pa.string()),  # as in facts, by the same measurement
        ("pixels_sha256", pa.string()),
        ("phash", pa.uint64()),
        ("phash_mirrored", pa.uint64()),
        ("middle_hash", pa.uint64()),
        ("middle_mirrored", pa.uint64()),
        ("pixel_std", pa.float32()),
    ]
)

LEAKS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("evaluation_set", pa.string()),
        ("evaluation_member", pa.string()),
        ("matched", pa.string()),  # bytes, pixels, near, mirrored, record_key, url, or duplicate: see via_sample_id
        ("distance", pa.uint8()),  # of pHashes, for near, mirrored and duplicate; else null
        ("via_sample_id", pa.string()),  # the leaking sample that this one is a near-duplicate of
    ]
)

CONFLICT = (
    pa.field("about", pa.string()),  # licence or label
    pa.field("matched", pa.string()),  # same bytes, same pixels or near copy
    pa.field("value", pa.string()),  # of the image itself
    pa.field("other_value", pa.string()),  # of its copy
    pa.field("other_sample_id", pa.string()),
)
"""What a copy of an image says otherwise."""

DECISIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("keep", pa.bool_()),
        ("stage", pa.string()),  # the stage whose rule dropped it; null when kept
        ("reason", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("other_sample_id", pa.string()),  # the sample kept in its place; for a leak by likeness, the leak it is like
        ("distance", pa.uint8()),
        ("kept_because", pa.string()),  # what that sample is better by, for a duplicate
        ("evaluation_set", pa.string()),  # for leaks: which set, and which of its images
        ("evaluation_member", pa.string()),
        ("conflicts", pa.list_(pa.struct(CONFLICT))),  # of an image that stays, some of each kind; null without any
    ]
)

EXTRA_CAPTIONS = pa.schema(
    [
        ("sample_id", pa.string()),  # the image that stays
        ("place", pa.int32()),  # from 1, the best first
        ("text", pa.string()),
        ("from_sample_id", pa.string()),  # the duplicate that brought it
    ]
)

DRAWS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("copy", pa.int32()),  # 0 for the first appearance
        ("domain", pa.string()),
        ("split", pa.string()),  # train or heldout
        ("rank", pa.int64()),  # place in the global shuffle of its split
    ]
)

PLACEMENTS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("copy", pa.int32()),
        ("domain", pa.string()),
        ("split", pa.string()),  # train or heldout
        ("shard", pa.string()),  # file name within the release's folder of the split
        ("position", pa.int32()),  # 0-based sample in the shard
        ("key", pa.string()),  # webdataset key, no dots
        ("jpg_offset", pa.int64()),  # of the image bytes in the shard file
        ("jpg_length", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_length", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_length", pa.int64()),
        ("packed_sha256", pa.string()),  # of the image in the shard where it is blurred; null: it is the stored one
    ]
)

HASHES = frozenset({"sample_id", "image_id", "stored_sha256", "pixels_sha256", "pixels_a", "pixels_b"})
"""Columns of hashes as hex digits, in any table."""

SOUGHT = frozenset({"sample_id", "domain", "source", "split", "shard"})
"""Texts that the tables of a release are sorted by, or that readers look for. These tables do not say of other texts
which value is the least and which the largest in a row group."""


TextType = Literal[
    "scientific",
    "common",
    "taxonomic",
    "sci",
    "com",
    "taxon",
    "taxonTag",
    "sci_com",
    "taxon_com",
    "taxonTag_com",
    "canonical",
    "sentence",
]
TEXT_TYPES: tuple[TextType, ...] = get_args(TextType)
"""Texts that name the taxon. Any other name of a text is `caption`, or the kind of a text that a source joins."""

# File name of each text type inside a shard, behind the key.
# Source: TreeOfLife-10M card, imageomics/TreeOfLife-10M; canonical and sentence are ours.
MEMBER_NAMES: dict[str, str] = {
    "scientific": "scientific_name.txt",
    "common": "common_name.txt",
    "taxonomic": "taxonomic_name.txt",
    **{name: f"{name}.txt" for name in TEXT_TYPES[3:]},
}


_NAMING = {name.lower() for name in (*TEXT_TYPES, *(file.removesuffix(".txt") for file in MEMBER_NAMES.values()))}


def names_taxon(name: str) -> bool:
    """Return whether a text of this name, or in a member of this name, names the taxon."""
    return name.lower() in _NAMING


def kind_of(name: str) -> str:
    """Return the name without the number that further texts of a kind have: `trait` of `trait_2`."""
    kind = name.rstrip("0123456789")
    return kind[:-1] if kind != name and kind.endswith("_") else name


def sample_ids(source: str, record_keys: Sequence[bytes]) -> pa.StringArray:
    """Identities of samples: 128-bit hashes (32 hex digits each) of the source's name and its own record keys."""
    begun, digests = hashlib.blake2b(f"{source}\x1f".encode(), digest_size=_ID_BYTES), []
    for key in record_keys:
        digest = begun.copy()  # takes half as long as a new one
        digest.update(key)
        digests.append(digest.digest())
    digits = b"".join(digests).hex().encode()
    ends = np.arange(len(digests) + 1, dtype=np.int32) * (2 * _ID_BYTES)
    return pa.StringArray.from_buffers(len(digests), pa.py_buffer(ends), pa.py_buffer(digits))


def sample_id(source: str, record_key: str) -> str:
    """Identity of one sample."""
    return str(sample_ids(source, [record_key.encode()])[0])


def make_verdicts(sample_ids: pa.Array, keep: pa.Array, reason: str, value: pa.Array, threshold: str) -> pa.Table:
    """Rows of VERDICTS for one rule; reason, value and threshold are null where a row is kept."""
    nothing = pa.scalar(None, pa.string())
    texts = (pc.if_else(keep, nothing, text) for text in (reason, value, threshold))
    return pa.table([sample_ids, keep, *texts], schema=VERDICTS)
