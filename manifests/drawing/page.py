"""An HTML page of panels that needs no other file: for desk and phone, light, dark and paper."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from manifests import storage
from manifests.drawing.panels import MADE_BY, Panel, draw_png, draw_svg
from manifests.drawing.theme import theme_css
from manifests.errors import ConfigError
from manifests.release import require_output

_ID = re.compile(r'((?:id="|#)[mp])([0-9a-f]{10})\b')  # of a marker or a clip path, as matplotlib names them

PAGE_CSS = """\
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 16px 16px 48px; }
h1 { font-size: 24px; margin: 4px 0 8px; overflow-wrap: anywhere; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 18px; }
.panels svg { display: block; width: 100%; height: auto; }
.soft { color: var(--soft); }
.warn { border-left: 4px solid var(--warn); padding: 2px 0 2px 10px; color: var(--warn); font-weight: 600; }
@media print { .panels svg { break-inside: avoid; } }
"""


def require_drawing_name(option: str, out: str) -> None:
    """Raises: ConfigError when the name of a file says neither picture nor page, or something else lies there."""
    if Path(out).is_dir() or Path(out).suffix.lower() not in (".png", ".html"):
        raise ConfigError(f"{option} {out}: the name must end in .png for a picture, or in .html for a page")
    require_output(out, is_drawing)


def is_drawing(content: bytes) -> bool:
    """Whether a file is a picture or a page that a command of ours drew."""
    return (content.startswith(b"\x89PNG") and MADE_BY.encode() in content[:400]) or (
        b"<!doctype html>" in content[:400] and theme_css().encode() in content
    )


def write_drawing(out: str, title: str, panels: Sequence[Panel], cautions: Sequence[str] = (), about: str = "") -> None:
    """Write panels as a picture, or as a page that also has the words `about`: the name of the file says which.

    Raises: ConfigError without matplotlib, or when the place cannot be written.
    """
    if out.lower().endswith(".png"):
        content = draw_png(panels, title, cautions)
    else:
        content = draw_page(title, panels, cautions, about).encode()
    storage.write_file(out, content)


def draw_page(title: str, panels: Sequence[Panel], cautions: Sequence[str] = (), about: str = "") -> str:
    """An HTML page that needs no other file.

    Raises: ConfigError without matplotlib.
    """
    notes = "".join(f'<p class="warn" role="note">{html.escape(text)}</p>\n' for text in cautions)
    # two panels of the same lines have the same ids, so each gets its number into them
    numbered = (_ID.sub(rf"\g<1>{number}-\2", draw_svg(panel)) for number, panel in enumerate(panels))
    drawn = "\n".join(f"<div>{svg}</div>" for svg in numbered)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{theme_css()}{PAGE_CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{html.escape(title)}</h1>\n{notes}<p class="soft">{html.escape(about)}</p>\n'
        f'<div class="panels">\n{drawn}\n</div>\n</main>\n</body>\n</html>\n'
    )
