"""Write configs/REFERENCE.md: every key of every config, from the settings models alone.

A meaning is the text under the field. A section is told once, under its heading, by the first paragraph of its class. A
kind of source, whose field no class names, has its description. `make reference` runs this;
tests/docs/test_reference.py compares.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from manifests.contract.settings import Settings, keys_of, sections_in
from pipeline.config import BuildConfig
from training.config import TrainSettings
from training.proxies.runs import ProxySettings

OUT = Path(__file__).parents[1] / "configs/REFERENCE.md"
CONFIGS: dict[str, type[Settings]] = {  # every model that a command reads from YAML; a test looks for others
    "A build config": BuildConfig,
    "A training config": TrainSettings,
    "A config of `dalip proxies`": ProxySettings,
}
SHARED = 5  # so many keys that another section has as well are not listed again
HEAD = """# Every key

Written by `make reference` from the settings classes; change a meaning there. `[]` stands for an entry of a list. A
name ends with its unit (`_px` pixels, `_gb`, `_seconds`). An unknown key is an error that names the nearest known one.
"""


@cache
def meanings_of(model: type[Settings]) -> dict[str, str]:
    """Return the comments in the source of a class on the fields that it defines itself."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def definer_of(model: type[Settings], name: str) -> type[Settings]:
    """Return the class in whose body a field stands."""
    return next(base for base in model.__mro__ if name in vars(base).get("__annotations__", {}))


def meaning_of(model: type[Settings], name: str) -> str:
    """Return the meaning of a key or of the section below it; empty when nothing says so."""
    sections = sections_in(model.model_fields[name].annotation)
    return own_meaning_of(model, name) or " ".join(meaning_of_section(section) for section in sections)


def own_meaning_of(model: type[Settings], name: str) -> str:
    """Return the comment of a key's field.

    Empty where only the section below it says something, under its own heading.
    """
    said = model.model_fields[name].description or meanings_of(definer_of(model, name)).get(name, "")
    sections = sections_in(model.model_fields[name].annotation)
    return "" if said in [meaning_of_section(section) for section in sections] else said


def meaning_of_section(model: type[Settings]) -> str:
    """Return the meaning of a section, from the docstring of its class."""
    return " ".join(inspect.cleandoc(model.__doc__ or "").split())


def type_of(annotation: Any, metadata: list[Any]) -> str:
    """Return a type as people say it, with its bounds."""
    bounds = [f"{word} {getattr(mark, key):g}" for mark in metadata
              for kind, key, word in ((Ge, "ge", "from"), (Gt, "gt", "above"), (Le, "le", "to"), (Lt, "lt", "below"))
              if isinstance(mark, kind)]  # fmt: skip
    return " ".join([_plain_type(annotation), *bounds])


def _plain_type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(inner[0], [mark for each in inner[1:] for mark in getattr(each, "metadata", [each])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_plain_type(each) for each in inner))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (list, tuple):
        if origin is tuple and Ellipsis not in inner and len(inner) > 1:
            return f"{len(inner)} of {_plain_type(inner[0])}"
        return f"list of {_plain_type(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"{_plain_type(inner[0])}: {_plain_type(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "keys below"
    names = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any"}
    return names.get(annotation, str(annotation))


def default_of(field: FieldInfo) -> str:
    """Return the default as YAML; empty for a section, whose keys have their own."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Settings):
        return ""
    value = to_jsonable_python(_without_unset(value))
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _without_unset(value: Any) -> Any:
    """Return lists of sections with only the keys that the default sets."""
    if isinstance(value, list | tuple):
        return [_without_unset(each) for each in value]
    return value.model_dump(exclude_unset=True) if isinstance(value, Settings) else value


def sections_of(model: type[Settings], told: set[type[Settings]] | None = None) -> Iterator[tuple[str, type[Settings]]]:
    """Every section of a config with its place, the top first; a class that stands in two places comes once.

    What is in `told` is left out, and what comes is added to it.
    """
    seen = set() if told is None else told
    seen.add(model)
    yield "", model
    for key in keys_of(model):
        for section, place in key.sections:
            if section not in seen:
                seen.add(section)
                yield place, section


def lines_of_configs() -> Iterator[str]:
    """Yield the tables of all configs. A section that several have is told in the first."""
    first_seen: dict[tuple[type[Settings], str], str] = {}
    told: set[type[Settings]] = set()
    for heading, model in CONFIGS.items():
        yield from ("", f"## {heading}")
        for place, section in sections_of(model, told):
            yield from ("", f"### {f'`{place}`' if place else 'The top level'}", "", meaning_of_section(section), "")
            yield from rows_of(section, place or heading[0].lower() + heading[1:], first_seen)


def rows_of(section: type[Settings], title: str, first_seen: dict[tuple[type[Settings], str], str]) -> Iterator[str]:
    """Yield the table of one section. `first_seen` has the title under which each key was told, and takes its own."""
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    repeated_from: dict[str, list[str]] = {}
    for name in section.model_fields:
        origin = (definer_of(section, name), name)
        if origin in first_seen:
            repeated_from.setdefault(first_seen[origin], []).append(name)
    repeated = {name for names in repeated_from.values() if len(names) >= SHARED for name in names}
    for name, field in section.model_fields.items():
        first_seen.setdefault((definer_of(section, name), name), title)
        if name not in repeated:
            cells = (f"`{name}`", type_of(field.annotation, field.metadata), default_of(field),
                     own_meaning_of(section, name))  # fmt: skip
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for other, names in repeated_from.items():
        if len(names) >= SHARED:
            yield f"| `{names[0]}` to `{names[-1]}` | | | {len(names)} keys, as in {other} |"


def render() -> str:
    """Return the whole page."""
    lines = [HEAD.rstrip(), *lines_of_configs()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    OUT.write_text(render(), encoding="utf-8")
    print(f"reference: wrote {OUT}")
