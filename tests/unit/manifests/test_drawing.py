from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from PIL import Image

from manifests.drawing.panels import Panel, draw_png, draw_svg
from manifests.drawing.theme import INK

HOSTILE = "<script>alert(1)</script> $\\frac{1}{$ \u202e"


def _draw(axis: Any) -> None:
    axis.plot([0, 1, 2], [1 / 3, 2 / 3, 1], color=INK, label=HOSTILE)
    axis.legend()


PANEL = Panel(HOSTILE, _draw, f"words & {HOSTILE}")


def test_a_panel_is_the_same_svg_every_time_and_words_stay_words() -> None:
    svg = draw_svg(PANEL)
    assert svg == draw_svg(PANEL)
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == f"words & {HOSTILE}"
    texts = ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count(HOSTILE.strip()) == 2, "title and legend; not read as mathematics"
    assert "<script" not in svg
    assert f"var(--ink, {INK})" in svg
    assert not re.search(r"\d\.\d{3}", re.sub(r">[^<]*<", "><", svg.partition(">")[2])), (
        "no digits that a machine may round"
    )


def test_a_picture_holds_all_panels_and_what_to_beware_of() -> None:
    plain, warned = (
        Image.open(io.BytesIO(draw_png([PANEL] * 4, "heading", cautions))) for cautions in ((), ("DO NOT TRUST",))
    )
    assert plain.width == warned.width == round(3 * PANEL.width * 110)
    assert warned.height > plain.height > 2 * PANEL.height * 110
