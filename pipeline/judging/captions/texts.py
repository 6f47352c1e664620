"""Which text a sample is written with: the caption or one of its taxon's text types.

Reads measured captions with `domain` and `source`; writes the column `txt` and the extra text members. Of several texts
one is drawn by the seed and the sample_id alone, so the draw stays when data is added. Nothing is measured.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.tables import MEMBER_NAMES
from pipeline.judging.captions.settings import OTHERWISE, TextChoice, TextSettings

EXTRA_CAPTION = "extra_caption_"  # and a number from 1: names of captions of dropped duplicates


def choose_texts(captions: pa.Table, settings: TextSettings) -> pa.Table:
    """Columns sample_id, txt (the text to write) and txt_type (caption or a text type), row for row.

    `captions` holds sample_id, text, text_source, texts, domain, source. `txt` is null only where a row has no text at
    all. A sentence that stands in for a missing caption (`text_source` is taxon) is no caption. Where
    `prefers_captions`, only rows without a caption need `texts`.
    """
    if not prefers_captions(settings):
        return _choose_by_row(captions, settings)
    # nearly all rows have a caption; the loop over rows took half the CPU of gathering samples (profile, 2026-11-26)
    text = captions["text"].combine_chunks()
    has_none = pc.not_equal(captions["text_source"].combine_chunks(), "caption")
    others = _choose_by_row(captions.filter(has_none), settings)
    txt = pc.replace_with_mask(text, has_none, others["txt"].combine_chunks())
    types = pc.replace_with_mask(pa.repeat("caption", len(text)), has_none, others["txt_type"].combine_chunks())
    return pa.table({"sample_id": captions["sample_id"], "txt": txt, "txt_type": types})


def prefers_captions(settings: TextSettings) -> bool:
    """Return whether the text of every row that has one is its `txt`."""
    return all(choice.any_of == ("caption",) for choice in settings.choices)


def _choose_by_row(captions: pa.Table, settings: TextSettings) -> pa.Table:
    columns = ("sample_id", "text", "text_source", "texts", "domain", "source")
    rows = zip(*(captions[column].to_pylist() for column in columns), strict=True)

    @functools.cache
    def choice_for(domain: str | None, source: str | None) -> TextChoice:
        return next((choice for choice in settings.choices if choice.fits(domain, source)), TextChoice())

    chosen = []
    for sample_id, text, origin, pairs, domain, source in rows:
        texts = dict(pairs) | ({"caption": text} if origin == "caption" else {})
        chosen.append(_choose(sample_id, texts, choice_for(domain, source), settings.seed))
    types, txt = (pa.array([pair[at] for pair in chosen], pa.string()) for at in (0, 1))
    return pa.table({"sample_id": captions["sample_id"], "txt": txt, "txt_type": types})


def member_of(name: str) -> str:
    """Return the file name, behind the key, of a text of this name."""
    return MEMBER_NAMES.get(name, f"{name}.txt")


def members_of(texts: pa.ChunkedArray) -> set[str]:
    """File names of the extra text members that rows of a column `texts` have."""
    return {member_of(name) for chunk in texts.chunks for name in pc.unique(chunk.keys).to_pylist()}


def members_by_row(texts: pa.ChunkedArray, members: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Return these extra text members for each row of a column `texts`.

    File name and content, "" where a row has none.
    """
    nothing = [(member, "") for member in members]
    if not any(len(chunk.keys) for chunk in texts.chunks):
        return [nothing] * len(texts)
    rows = ({member_of(name): text for name, text in pairs or ()} for pairs in texts.to_pylist())
    return [[(member, there.get(member, "")) for member in members] if there else nothing for there in rows]


def _choose(sample_id: str, there: Mapping[str, str], choice: TextChoice, seed: int) -> tuple[str | None, str | None]:
    choices = [name for name in choice.any_of if there.get(name)]
    if len(choices) > 1:
        digest = hashlib.blake2b(f"{seed}\x1f{sample_id}".encode(), digest_size=8).digest()
        choices = [choices[int.from_bytes(digest, "little") % len(choices)]]
    for name in [*choices, *OTHERWISE]:
        if there.get(name):
            return name, there[name]
    return None, None
