"""YAML in, a strict frozen model out. Every mistake becomes one readable line.

Reads one YAML file and writes nothing. Raises ConfigError, which names each wrong key and what was expected; for an
unknown key it names the nearest known one.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator

from manifests.errors import ConfigError

_MOST_BYTES = 16 << 20  # of a config file
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"  # of sources, domains, evaluation sets and releases


# Other programs' names for our keys, where the spelling does not lead to ours.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "val": "split",
    "image_size": "size_px",
    "model_name": "architecture",
    "init": "pretrained",
    "ray_address": "ray",
}


class Settings(BaseModel):
    """Base of every configuration model: unknown keys are errors, numbers finite, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_unknown(cls, values: Any, info: ValidationInfo) -> Any:
        """Leave out keys of other versions in what one of them kept. In a file of the user's they are errors."""
        if not isinstance(values, dict) or not (info.context or {}).get("is_kept"):
            return values
        return {name: value for name, value in values.items() if name in cls.model_fields}

    @classmethod
    def of_record(cls, values: Any) -> Self:
        """Read plain values that this or an earlier version recorded. Raises: ValueError for values that do not fit."""
        return cls.model_validate(values, context={"is_kept": True})


SettingsT = TypeVar("SettingsT", bound=Settings)


def from_config(value: str, info: ValidationInfo, is_name: bool = False) -> str:
    """Resolve a relative path from the folder of the config; an address or an absolute path stays as it is.

    `is_name`: a value that no file has is a name, such as that of an architecture.
    """
    folder = (info.context or {}).get("folder")
    if folder is None or not value or "://" in value or "\\" in value:  # a later check names a Windows path
        return value
    path = str(Path(value).expanduser()) if value.startswith("~") else value
    beside = os.path.normpath(Path(folder) / path)
    if Path(path).is_absolute() and "::" not in path:
        return path
    if "::" in path and not _lies_there(beside):  # several paths
        return "::".join(from_config(part, info, is_name) for part in path.split("::"))
    if not _lies_there(beside) and _lies_there(path):
        raise ValueError(
            f"{beside} is not there, but {path} in the current folder is; paths begin at the config's folder: write "
            f"{os.path.relpath(path, folder)}"
        )
    return value if is_name and not _lies_there(beside) else beside


def _lies_there(path: str) -> bool:
    """Return whether a file or folder is there; of a pattern, the folder before its first wildcard."""
    return Path(re.split(r"[^/]*[*?\[{]", path, maxsplit=1)[0] or ".").exists()


ConfigPath = Annotated[str, AfterValidator(from_config)]
"""A path. `read_settings` resolves it from the config's folder."""
NameOrPath = Annotated[str, AfterValidator(partial(from_config, is_name=True))]
"""A name of another program, or a path as `ConfigPath`."""


def _check_json(values: dict[str, Any]) -> dict[str, Any]:
    try:
        is_same = json.loads(json.dumps(values, allow_nan=False)) == values
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise ValueError("only text, finite numbers, booleans, null, lists and mappings with text keys; quote dates")
    return values


JsonValues = Annotated[dict[str, Any], AfterValidator(_check_json)]
"""Any values by name that JSON holds unchanged."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key that is given twice. YAML itself would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {line}: a list or mapping cannot be a key")
            if key in seen:
                raise ConfigError(f"line {line}: the key '{key}' is given twice; move its lines below the first one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_settings(path: str | Path, model: type[SettingsT]) -> SettingsT:
    """Read a YAML file into `model`.

    Raises: ConfigError for a missing or unreadable file, bad YAML, or values that do not fit the model.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)  # /dev/zero has no end
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{file}: is no config file: it has more than {_MOST_BYTES:,} bytes")
        text = content.decode()
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader underneath
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{file}: is nested too deeply to be read; a config has a few levels") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date but is none
        raise ConfigError(f"{file}: {_place_of(error, text)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected a mapping of settings, found {type(values).__name__}")
    return parse_settings(values, model, where=str(file), folder=str(file.parent))


def _place_of(error: Exception, text: str) -> str:
    """Where a file is not valid YAML: line, column, what is wrong there, and the line itself."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not valid YAML: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[min(mark.line, len(lines) - 1)] if lines else ""
    problem = getattr(error, "problem", None) or "it cannot be read"
    tab = "; indent with spaces, not with a tab" if "\t" in line[: mark.column + 1] else ""
    return f"not valid YAML at line {mark.line + 1}, column {mark.column + 1}: {problem}{tab}: {line.strip():.80}"


def parse_settings(
    values: dict[str, Any], model: type[SettingsT], where: str, folder: str | None = None, is_kept: bool = False
) -> SettingsT:
    """Check a mapping against `model`. `where` names its origin in messages; relative paths begin at `folder`.

    `is_kept`: this or another version wrote the values, and keys that are unknown here are left out.

    Raises: ConfigError, one line a mistake.
    """
    try:
        return model.model_validate(values, context={"folder": folder, "is_kept": is_kept})
    except ValidationError as error:
        lines = [_explain(dict(item), model) for item in error.errors()]
        head = f"{where}: " if len(lines) == 1 else f"{where}: {len(lines)} mistakes:\n  "
        raise ConfigError(head + "\n  ".join(lines)) from None


def _explain(item: dict[str, Any], model: type[Settings]) -> str:
    key_path = ".".join(str(step) for step in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        name = str(item["loc"][-1])
        sections = _sections_at(item["loc"][:-1], model)
        keys = sorted({key for section in sections for key in section.model_fields})
        near = [key for key in keys if key == _OTHER_NAMES.get(name)]
        near = near or difflib.get_close_matches(name, keys, n=1, cutoff=0.8)
        elsewhere = [key.place for key in keys_of(model) if key.place.endswith(f".{name}")]
        if name in model.model_fields and not near:
            return f"unknown key '{key_path}'; '{name}' is a key of the top level: mind the indentation"
        if elsewhere and not near:
            places = [key.rpartition(".")[0] for key in elsewhere[:3]]
            return f"unknown key '{key_path}'; '{name}' is a key of {' or '.join(places)}"
        near = near or difflib.get_close_matches(name, keys, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        listed = f" (known here: {', '.join(keys)})" if keys and not near else ""
        return f"unknown key '{key_path}'{hint}{listed}"
    if item["type"] == "missing":
        return f"missing key '{key_path}'"
    if item["type"] == "value_error":
        return f"'{key_path}': {str(item['msg']).removeprefix('Value error, ')}"
    if item["type"] == "string_pattern_mismatch" and item["ctx"]["pattern"] == NAME_PATTERN:
        return f"'{key_path}': {item['input']!r:.80} is no name; use small letters, digits, - and _"
    if item["type"] == "too_short":
        return f"'{key_path}': the list is empty; it needs {item['ctx']['min_length']} or more"
    return f"'{key_path}': {item['msg']} (given: {item['input']!r:.80})"


@dataclass(frozen=True)
class Key:
    """One key of a configuration: its dotted place, where `[]` stands for an entry of a list and `NAME` for a name.

    `sections` are the models below it, each with its place.
    """

    place: str
    sections: tuple[tuple[type[Settings], str], ...]


def keys_of(model: type[Settings], prefix: str = "") -> Iterator[Key]:
    """Every key below `model`, each section before the keys in it."""
    for name, field in model.model_fields.items():
        below = f"{prefix}{name}{_container_of(field.annotation)}"
        sections = tuple((section, below) for section in sections_in(field.annotation))
        yield Key(f"{prefix}{name}", sections)
        for section, _ in sections:
            yield from keys_of(section, f"{below}.")


def _container_of(annotation: Any) -> str:
    """`[]` for a list of sections, `.NAME` for sections by name, nothing for one section."""
    origin = get_origin(annotation)
    if origin in (tuple, list):
        return "[]"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return ".NAME"
    if isinstance(annotation, type) or origin is Literal:
        return ""
    return "".join(sorted({_container_of(inner) for inner in get_args(annotation) if sections_in(inner)})[-1:])


def _sections_at(loc: tuple[Any, ...], model: type[Settings]) -> list[type[Settings]]:
    """Return the models that `loc` may lie in, by following annotations; a step without a model stays where it is."""
    here: list[type[Settings]] = [model]
    for step in loc:
        below: list[type[Settings]] = []
        for candidate in here:
            if candidate.__name__ == step:  # a tagged union names the member it tried
                below.append(candidate)
            field = candidate.model_fields.get(str(step))
            if field is not None:
                below.extend(sections_in(field.annotation))
        here = below or here
    return here


def sections_in(annotation: Any) -> list[type[Settings]]:
    """Return the models that a field holds: directly, in a list, by name, or in a union."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [section for inner in getattr(annotation, "__args__", ()) for section in sections_in(inner)]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values that differ, each with its old and its new value."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text: str = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
