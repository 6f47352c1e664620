"""Values of samples by the names of `fields`: text members, keys of the json member, columns of the Parquet beside it.

A text within the json that is json itself, as img2dataset writes EXIF, is read too: `json.exif.Image Artist`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from manifests.samples.tars import Sample
from manifests.services.untrusted import parse_json
from pipeline.sources.rows import as_text, check_unicode

_NOTHING = object()


def values_of(
    sample: Sample, names: Collection[str], listed: Mapping[str, Any], unseen: set[str] | None = None
) -> dict[str, str | None]:
    """Every field that is asked for. Those that the sample has leave `unseen`, also where they hold null.

    Raises: ValueError for a member that must not be read, and for a text that is no UTF-8 or no json.
    """
    for extension, fault in sample.faults.items():
        raise ValueError(f"{extension} {fault}")
    texts = {name: content.decode("utf-8-sig") for name, content in sample.texts.items()}
    record = parse_json(texts.get("json", "{}").encode())
    values: dict[str, str | None] = {"__key__": sample.key}
    for name in names:
        kind, _, rest = name.partition(".")
        if kind == "json" and rest:
            value = _at(record, rest)
        elif kind == "parquet" and rest:
            value = listed.get(rest, _NOTHING)
        elif name != "__key__":
            value = texts.get(name, _NOTHING)
        else:
            continue
        values[name] = None if value is _NOTHING else as_text(value)
        if unseen and value is not _NOTHING:
            unseen.discard(name)
    check_unicode(values.values())
    return values


def _at(record: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as `exif.Image Artist`; a key that holds dots is met as it stands."""
    if path in record:
        return record[path]
    head, _, rest = path.partition(".")
    inner = record.get(head) if rest else None
    if isinstance(inner, str):
        try:
            inner = parse_json(inner.encode())
        except ValueError:  # a text that is no json, or half a surrogate pair
            return _NOTHING
    return _at(inner, rest) if isinstance(inner, dict) else _NOTHING
