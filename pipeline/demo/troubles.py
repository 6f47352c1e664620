"""Troubles of the web, so many of each among the demo's pictures: the demo shows every way to be dropped.

Pure: a hash of its name decides which picture gets which trouble.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.demo.packages import Picture

_RESIZED_TO = 0.75
_MIN_RESIZED_SIDE_PX = 100


def plant_troubles(packaged: list[Picture]) -> list[Picture]:
    """Return the packages' own rows with the troubles of TROUBLES among them; the same rows give the same troubles."""
    changed: dict[str, Picture] = {}
    added: list[Picture] = []
    for column, domain in enumerate(("plant", "general")):
        pictures = [picture for picture in packaged if picture.domain == domain and picture.caption]
        # in a fixed order that has nothing to do with their names
        victims = iter(sorted(pictures, key=lambda picture: hashlib.sha256(picture.record_id.encode()).digest()))
        for kind, trouble in TROUBLES.items():
            for number in range(1, trouble.counts[column] + 1):
                victim = next(picture for picture in victims if kind != "resized_copies" or _is_large(picture))
                made = trouble.make(victim, number)
                if made.record_id == victim.record_id:
                    changed[made.record_id] = made
                else:
                    added.append(made)
    return [changed.get(picture.record_id, picture) for picture in packaged] + added


def _is_large(picture: Picture) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(picture.content or b"")) as image:
        return min(image.size) >= _MIN_RESIZED_SIDE_PX


def _dead_link(victim: Picture, number: int) -> Picture:
    name = f"gone/{victim.domain}-{number}.jpg"
    return replace(victim, record_id=f"gone/{victim.domain}-{number}", path=name, content=None)


def _exact_copy(victim: Picture, number: int) -> Picture:
    # Spaces and an umlaut, so that the URL needs percent-encoding.
    suffix = victim.path.rpartition(".")[2]
    name = f"mirror/schöne bilder/{victim.domain} {number}"
    return replace(
        victim, record_id=f"mirror/{victim.domain}-{number}", path=f"{name}.{suffix}", caption=victim.category
    )


def _resized_copy(victim: Picture, number: int) -> Picture:
    from PIL import Image

    with Image.open(io.BytesIO(victim.content or b"")) as image:
        see_through = image.convert("RGBA")
    ground = Image.new("RGBA", see_through.size, "white")
    ground.alpha_composite(see_through)
    size = (round(ground.width * _RESIZED_TO), round(ground.height * _RESIZED_TO))
    stream = io.BytesIO()
    ground.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=80)
    # On the web, plants turn up among general pictures too: every third copy of a plant does here.
    domain = "general" if number % 3 == 0 else victim.domain
    name = f"resized/{victim.domain}-{number}"
    text = f"{victim.caption} (small)"
    return replace(victim, record_id=name, path=f"{name}.jpg", caption=text, domain=domain, content=stream.getvalue())


def _filename_caption(victim: Picture, number: int) -> Picture:
    return replace(victim, caption=f"IMG_{4000 + 37 * number}.jpg" if number % 2 else f"DSC{1200 + number:05d}.JPG")


def _html_as_jpg(victim: Picture, number: int) -> Picture:
    page = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in.</body></html>\n"
    name = f"odd/{victim.domain}-page-{number}"
    return replace(victim, record_id=name, path=f"{name}.jpg", content=page.encode())


def _truncated_file(victim: Picture, number: int) -> Picture:
    whole = _resized_copy(victim, 1).content or b""
    name = f"odd/{victim.domain}-half-{number}"
    return replace(victim, record_id=name, path=f"{name}.jpg", content=whole[: len(whole) // 2])


def _tracking_pixel(victim: Picture, number: int) -> Picture:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("P", (1, 1)).save(stream, "GIF")
    name = f"odd/{victim.domain}-pixel-{number}"
    return replace(victim, record_id=name, path=f"{name}.gif", content=stream.getvalue())


@dataclass(frozen=True)
class Trouble:
    """A kind of trouble: how many of it there are in (plant, general), and how a picture gets it."""

    meaning: str
    counts: tuple[int, int]
    make: Callable[[Picture, int], Picture]


TROUBLES = {
    "dead_links": Trouble("the URL leads nowhere (404)", (5, 7), _dead_link),
    "exact_copies": Trouble(
        "the same bytes under a second URL, with the name of its category as caption", (8, 12), _exact_copy
    ),
    "resized_copies": Trouble(
        "re-encoded as JPEG at three quarters of the size: near-duplicates", (15, 15), _resized_copy
    ),
    "filename_captions": Trouble("the caption is a camera's file name", (3, 7), _filename_caption),
    "one_character_captions": Trouble(
        "the caption is one character", (1, 3), lambda victim, number: replace(victim, caption="x.-?"[number % 4])
    ),
    "html_as_jpg": Trouble("an HTML page where a JPEG was promised", (1, 1), _html_as_jpg),
    "truncated_files": Trouble("a JPEG that ends half-way", (1, 1), _truncated_file),
    "tracking_pixels": Trouble("a GIF of 1 x 1 pixel", (0, 2), _tracking_pixel),
}
