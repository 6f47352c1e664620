"""A table of texts for the pictures of a place that a user names. Reads the first rows of both; their values decide."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from pipeline.answers.first_rows import read_head
from pipeline.answers.places import keys_of
from pipeline.sources.kinds import Place
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.captions import guess_join

_MEMORY_GB = 1.0


def join_table(path: str, place: Place) -> None:
    """Write into the settings of a place that the table gives its captions. Raises: as `guess_join`."""
    entry, place.comments["captions"] = guess_join(path, _keys_of(place))
    place.captions.append(entry)
    mapping = place.settings.setdefault(place.mapping, dict(place.fields)) if place.fields or place.could_keep else {}
    mapping["caption"] = []
    place.comments["caption"] = "the table gives it; what is named here comes first where there is one"
    place.missing = [words for words in place.missing if not words.startswith("captions of ")]
    (key,) = entry["on"]
    if name := key.partition("extra.")[2]:
        mapping["extra"] = list(dict.fromkeys([*mapping.get("extra", ()), name]))
        place.left_out.pop(name, None)


def _keys_of(place: Place) -> dict[str, list[str]]:
    """What tells the first pictures of a place apart: the distinct values of their keys, fields and addresses."""
    mapped: dict[str, Any] = place.settings.get(place.mapping) or place.fields
    names = [name for name in place.could_keep if name not in mapped.values()]
    settings = place.settings | {place.mapping: mapped | {"extra": names}} if names else place.settings
    rows = read_head(
        SourceSettings(name="x", domain="x", **keys_of(replace(place, settings=settings))), _MEMORY_GB
    ).rows
    extras = [json.loads(text) for text in rows["extra"].to_pylist()] if names else []
    values = {key: rows[key].to_pylist() for key in ("url", "record_key")}
    values |= {f"extra.{name}": [extra[name] for extra in extras] for name in names}
    distinct = {key: sorted({value.strip() for value in some if value}) for key, some in values.items()}
    return {key: some for key, some in distinct.items() if 2 * len(some) > rows.num_rows}
