"""The texts of a sample that PlantMix did not write, by the names of `data.text.members`.

`sci` names the member `KEY.sci.txt` or `KEY.sci`, `json:caption` a key of the member json. A text that is empty or
blank, null, or no text is none. Of bytes that cannot be read the reason is told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from manifests.contract.tables import kind_of
from manifests.samples.tars import Sample, has_text
from manifests.services.untrusted import parse_json

JSON = "json:"  # a text is a key of the member json
NO_TEXT = ""  # among the texts of a sample: why it has none
_MOST_KEY_BYTES = 4096  # of a json, that an index names


def text_name(ending: str) -> str:
    """Return the name of a member in `data.text.members`: `sci` for `KEY.sci.txt`."""
    return ending if ending == "txt" else ending.removesuffix(".txt")


def is_asked_for(name: str, members: Collection[str]) -> bool:
    """Return whether a text is one of the members, or a further one of their kind, such as trait_2, or the `txt`."""
    return name == "txt" or name in members or kind_of(name) in members


def texts_of_sample(sample: Sample, members: Sequence[str]) -> dict[str, str]:
    """Return the texts that are asked for, by name, and one that stands as `txt`; else NO_TEXT: why there is none."""
    texts: dict[str, str] = {}
    faults = [f"its {ending} {fault}" for ending, fault in sample.faults.items()]
    for ending, content in sample.texts.items():
        try:
            if ending == "json":
                texts |= _texts_of_json(content, [name for name in members if name.startswith(JSON)])
            elif is_asked_for(name := text_name(ending), members) and has_text(content):
                texts[name] = content.decode("utf-8-sig")
        except ValueError as error:  # also of UTF-8
            faults.append(f"its {ending} cannot be read: {error}")
    if not texts:
        return {NO_TEXT: "; ".join(faults) or f"it has no text ({', '.join(members)})"}
    first = next((name for name in ("txt", *members) if name in texts), next(iter(texts)))
    return {"txt": texts[first]} | texts


def member_names(sample: Sample) -> list[str]:
    """Members of a sample in an index: its endings without those of blank texts, and of its json the keys of texts.

    A json that cannot be read stands by its ending: who asks for its keys is told what is wrong.
    """
    names: list[str] = []
    for ending in sorted(sample.endings):
        content = sample.texts.get(ending)
        if ending in sample.faults:
            names.append(f"{ending} (not read)")
        elif ending == "json" and content is not None:
            names += _keys_of_json(content)
        elif content is None or has_text(content):
            names.append(ending)
    return names


def has_any(names: Collection[str], members: Sequence[str]) -> bool:
    """Return whether a sample with such `member_names` has a text that is asked for, or one that cannot be read."""
    asks_json = any(name.startswith(JSON) for name in members)
    return any(is_asked_for(text_name(name), members) or (asks_json and name == "json") for name in names)


def _texts_of_json(content: bytes, names: Sequence[str]) -> dict[str, str]:
    values = parse_json(content) if names else {}
    texts = {name: values.get(name.removeprefix(JSON)) for name in names}
    found = {name: text for name, text in texts.items() if isinstance(text, str) and text.strip()}
    "".join(found.values()).encode()  # raises ValueError for half a surrogate pair
    return found


def _keys_of_json(content: bytes) -> list[str]:
    try:
        values = parse_json(content)
        keys = [JSON + key for key, text in values.items() if isinstance(text, str) and text.strip()]
        num_bytes = len("\n".join(keys).encode())
    except ValueError:
        return ["json"]
    return keys if num_bytes <= _MOST_KEY_BYTES and "\n" not in "".join(keys) else ["json"]
