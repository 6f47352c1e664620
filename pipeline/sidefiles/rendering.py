"""Fill in the templates of templates/. Writes nothing.

Values in HTML are escaped. In Markdown, what comes from outside goes through `plain`, or `cell` within a table.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping
from typing import Any

import jinja2

from manifests.publishing.markdown import markdown_cell, plain_markdown

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def render(template: str, **values: Any) -> str:
    """The text of a template with these values. A value that the template needs and does not get is an error."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.sidefiles"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": markdown_cell,
        "data_url": lambda jpg: "data:image/jpeg;base64," + base64.b64encode(jpg).decode(),
        "most_first": most_first,
        "number": lambda value, layout=",": format(value, layout),
        "pick": lambda row, *names: tuple(row[name] for name in names),
        "plain": plain_markdown,
        "size": _size,
        "words": lambda name: name.replace("_", " "),  # `http_404` as `http 404`
    }
    return environment


def most_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Names and their counts, the largest count first, equal counts by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _size(num_bytes: int) -> str:
    for unit, size in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
