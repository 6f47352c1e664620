"""The packages that the demo's pictures come from, and their pictures as rows.

Reads .deb files, writes nothing. What a package says of a picture (path, text file beside it, licence) becomes a
Picture: one row of a URL table, with its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.demo.debian import read_members

_CATEGORIES = {  # folder of the package -> one word for both packages, to be used as a class name
    "food/fruit": "fruit",
    "food/vegetables": "vegetables",
    "fruit_n_veg": "fruit",
    "clothes_n_accessories": "clothes",
    "body": "body parts",
    "people/body_parts": "body parts",
    "jobs": "people",
    "sport": "sports",
    "transport": "vehicles",
    "construction": "buildings",
    "town/houses": "buildings",
    "town/monuments": "buildings",
    "town/roadsigns": "road signs",
    "town/flags": "flags",
    "symbols/alphabets": "letters",
    "symbols/money": "money",
    "symbols/music": "music",
    "hobbies/music": "music",
    "seasonal": "holidays",
    "naturalforces": "nature",
    "household/tools": "tools",
}
_PLANT_FOLDERS = ("plants", "food/fruit", "food/vegetables", "food/nuts", "food/spices", "fruit_n_veg")
_PLANT_WORDS_ELSEWHERE = ("food/coconut", "food/corn", "food/walnut", "food/peanut")


@dataclass(frozen=True)
class Package:
    """A Debian package with pictures: where in it they are, and under which terms."""

    name: str
    folder: str  # the name of its folder on the demo's web
    root: str  # path in the package under which the pictures lie
    suffix: str
    licence: str
    licence_url: str
    rights_holder: str
    reference_url: str
    captions: str  # `sidecar`: first line of the .txt file beside the picture; `filename`: its words


# Licences and holders are those in the copyright file of each package. Other projects that use pySioGame's word
# pictures name CC-BY-SA-3.0 for them.
PACKAGES = (
    Package(
        name="tuxpaint-stamps-default",
        folder="tuxpaint",
        root="usr/share/tuxpaint/stamps/",
        suffix=".png",
        licence="GPL-2",
        licence_url="https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
        rights_holder="Bill Kendrick",
        reference_url="https://tuxpaint.org/stamps/",
        captions="sidecar",
    ),
    Package(
        name="pysiogame",
        folder="pysiogame",
        root="usr/share/games/pysiogame/res/images/art4apps/",
        suffix=".jpg",
        licence="public-domain",
        licence_url="",
        rights_holder="Ireneusz Imiolek",
        reference_url="https://sourceforge.net/projects/pysiogame/",
        captions="filename",
    ),
)


@dataclass(frozen=True)
class Picture:
    """One row of a URL table, and the bytes that its URL serves (None: a dead link)."""

    record_id: str
    path: str  # on the web, not yet percent-encoded
    caption: str
    domain: str
    category: str
    package: Package
    content: bytes | None = field(repr=False)


def read_package(package: Package, deb: Path) -> list[Picture]:
    """All pictures of a package as rows, ordered by path; captions as `A banana. (fruit)`, or empty."""
    files = {
        path.removeprefix(package.root): content
        for path, content in read_members(deb)
        if path.startswith(package.root) and path.endswith((package.suffix, ".txt"))
    }
    pictures = []
    for path in sorted(name for name in files if name.endswith(package.suffix)):
        stem, folder = path.removesuffix(package.suffix), path.rpartition("/")[0]
        if package.captions == "sidecar":
            lines = files.get(f"{stem}.txt", b"").decode("utf-8", "replace").splitlines()
            caption = lines[0].strip() if lines else ""
        else:
            caption = stem.rpartition("/")[2].replace("_", " ")
        category = category_of(folder)
        if caption:
            # Web albums title pictures like this. Without it no caption names a class, and a text tower trained from
            # nothing never sees the words that zero-shot classification asks about.
            caption = f"{caption} ({category})"
        plant = folder.startswith(_PLANT_FOLDERS) or stem in _PLANT_WORDS_ELSEWHERE
        pictures.append(
            Picture(
                record_id=f"{package.folder}/{stem}",
                path=f"{package.folder}/{path}",
                caption=caption,
                domain="plant" if plant else "general",
                category=category,
                package=package,
                content=files[path],
            )
        )
    return pictures


def category_of(folder: str) -> str:
    """One class name for a folder of a package: that of the longest part of its path in _CATEGORIES, else its first."""
    steps = folder.split("/")
    for depth in range(len(steps), 0, -1):
        category = _CATEGORIES.get("/".join(steps[:depth]))
        if category:
            return category
    return steps[0]
