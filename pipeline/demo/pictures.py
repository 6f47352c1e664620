"""Set up the demo's little web: picture files, two URL tables, and a known number of the web's troubles.

Reads Debian packages (the stamps of Tux Paint, photos and drawings with a sentence each; the word pictures
of pySioGame). Writes into one folder, deterministically, same packages and Pillow give the same bytes:

    tuxpaint/ pysiogame/   the pictures, bytes as in the package
    mirror/ resized/ odd/  planted troubles, see below
    plants.csv             URL table of the domain plant, with Darwin Core's column names
    general.parquet        URL table of the domain general
    robots.txt README.txt  for fetchers, for people
    demo.json              counts and versions; written last: without it the set-up is not done

Planted troubles, on top of those that the packages have (mirrored twins, pictures without a caption,
the same fruit drawn twice): what each is and how many there are stands in TROUBLES and in README.txt.
Every other row is the package's own picture with its author's caption.

Gives up with ConfigError where the packages cannot be had; the message says what to do instead.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.storage import make_folder, publish_bytes
from pipeline.demo.debian import fetch_package, package_version, read_members
from pipeline.demo.plants import find_plant_name

LOG = logging.getLogger(__name__)

PREFERRED_PORT = 8731
MARKER = "demo.json"
# part of the marker: raise it when what is written changes, and an older set-up is done again
LAYOUT = 1

TROUBLES = {
    "dead_links": "the URL leads nowhere (404)",
    "exact_copies": "the same bytes under a second URL, with another caption",
    "resized_copies": "re-encoded as JPEG at three quarters of the size: near-duplicates",
    "filename_captions": "the caption is a camera's file name",
    "one_character_captions": "the caption is one character",
    "html_as_jpg": "an HTML page where a JPEG was promised",
    "truncated_files": "a JPEG that ends half-way",
    "tracking_pixels": "a GIF of 1 x 1 pixel",
}
# how many of each in (plant, general)
_NUM_TROUBLES = {
    "dead_links": (5, 7),
    "exact_copies": (8, 12),
    "resized_copies": (15, 15),
    "filename_captions": (3, 7),
    "one_character_captions": (1, 3),
    "html_as_jpg": (1, 1),
    "truncated_files": (1, 1),
    "tracking_pixels": (0, 2),
}
_RESIZED_TO = 0.75
_MIN_RESIZED_SIDE_PX = 100

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
    """A Debian package with pictures: where they lie in it, and under which terms."""

    name: str
    folder: str  # the name of its folder on the demo's web
    root: str  # path in the package under which the pictures lie
    suffix: str
    licence: str
    licence_url: str
    rights_holder: str
    reference_url: str
    captions: str  # `sidecar`: first line of the .txt file beside the picture; `filename`: its words


# Licences and holders: the copyright file of each package. Other projects that use pySioGame's word
# pictures name CC-BY-SA-3.0 for them; the demo carries what the package it takes them from says.
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
    """One row of a URL table, and its bytes where they lie on the demo's web (None: a dead link)."""

    record_id: str
    path: str  # on the web, not yet percent-encoded
    caption: str
    domain: str
    category: str
    package: Package
    content: bytes | None = field(repr=False)


def prepare_web(web: Path, packages_folder: Path, port: int | None = None) -> dict[str, Any]:
    """Set up the demo's web in `web` unless it is there already; give its marker (counts, port, versions).

    `port` is the one to write into the URLs; None keeps what is there, or takes PREFERRED_PORT.

    Raises: ConfigError when the packages cannot be had.
    """
    marker = read_marker(web)
    if marker is not None and port in (None, marker["port"]):
        LOG.info("pictures: reusing %d rows in %s", sum(marker["rows"].values()), web)
        return marker
    port = port or (marker["port"] if marker else PREFERRED_PORT)
    debs = [(package, fetch_package(package.name, packages_folder)) for package in PACKAGES]
    own = [picture for package, deb in debs for picture in read_package(package, deb)]
    pictures = plant_troubles(own)
    return _write_web(web, pictures, port, {package.name: package_version(deb) for package, deb in debs})


def read_marker(web: Path) -> dict[str, Any] | None:
    """The marker of a finished set-up of today's layout, or None."""
    try:
        marker: dict[str, Any] = json.loads((web / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tables = ("plants.csv", "general.parquet")
    whole = marker.get("layout") == LAYOUT and all((web / table).is_file() for table in tables)
    return marker if whole else None


def read_package(package: Package, deb: Path) -> list[Picture]:
    """All pictures of a package as rows, ordered by path."""
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
        plant = folder.startswith(_PLANT_FOLDERS) or stem in _PLANT_WORDS_ELSEWHERE
        pictures.append(
            Picture(
                record_id=f"{package.folder}/{stem}",
                path=f"{package.folder}/{path}",
                caption=caption,
                domain="plant" if plant else "general",
                category=category_of(folder),
                package=package,
                content=files[path],
            )
        )
    return pictures


def category_of(folder: str) -> str:
    """One class name for a package's folder: the longest part of its path that the hand-made map knows."""
    steps = folder.split("/")
    for depth in range(len(steps), 0, -1):
        known = _CATEGORIES.get("/".join(steps[:depth]))
        if known:
            return known
    return steps[0]


def plant_troubles(own: list[Picture]) -> list[Picture]:
    """Add the troubles of TROUBLES to the packages' own rows; a pure function of them, no chance in it."""
    changed: dict[str, Picture] = {}
    added: list[Picture] = []
    for place, domain in enumerate(("plant", "general")):
        victims = _victims([picture for picture in own if picture.domain == domain and picture.caption])
        for kind, counts in _NUM_TROUBLES.items():
            for number in range(1, counts[place] + 1):
                victim = next(v for v in victims if kind != "resized_copies" or _is_large(v))
                made = _MAKERS[kind](victim, number)
                if made.record_id == victim.record_id:
                    changed[made.record_id] = made
                else:
                    added.append(made)
    return [changed.get(picture.record_id, picture) for picture in own] + added


def _victims(pictures: list[Picture]) -> Iterator[Picture]:
    """The pictures in an order that is fixed but unrelated to their names; each is used once."""
    return iter(sorted(pictures, key=lambda picture: hashlib.sha256(picture.record_id.encode()).digest()))


def _is_large(picture: Picture) -> bool:
    from PIL import Image

    with Image.open(io.BytesIO(picture.content or b"")) as image:
        return min(image.size) >= _MIN_RESIZED_SIDE_PX


def _dead_link(victim: Picture, number: int) -> Picture:
    name = f"gone/{victim.domain}-{number}.jpg"
    return replace(victim, record_id=f"gone/{victim.domain}-{number}", path=name, content=None)


def _exact_copy(victim: Picture, number: int) -> Picture:
    # spaces and an umlaut on purpose: the URL needs percent-encoding
    suffix = victim.path.rpartition(".")[2]
    name = f"mirror/schöne bilder/{victim.domain} {number}"
    text = f"Free picture no. {number}: {victim.caption}"
    return replace(victim, record_id=f"mirror/{victim.domain}-{number}", path=f"{name}.{suffix}", caption=text)


def _resized_copy(victim: Picture, number: int) -> Picture:
    from PIL import Image

    with Image.open(io.BytesIO(victim.content or b"")) as image:
        see_through = image.convert("RGBA")
    ground = Image.new("RGBA", see_through.size, "white")
    ground.alpha_composite(see_through)
    size = (round(ground.width * _RESIZED_TO), round(ground.height * _RESIZED_TO))
    stream = io.BytesIO()
    ground.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=80)
    # every third plant copy turns up among the general pairs, as on the web
    domain = "general" if number % 3 == 0 else victim.domain
    name = f"resized/{victim.domain}-{number}"
    text = f"{victim.caption} (small)"
    return replace(victim, record_id=name, path=f"{name}.jpg", caption=text, domain=domain, content=stream.getvalue())


def _filename_caption(victim: Picture, number: int) -> Picture:
    return replace(victim, caption=f"IMG_{4000 + 37 * number}.jpg" if number % 2 else f"DSC{1200 + number:05d}.JPG")


def _one_character_caption(victim: Picture, number: int) -> Picture:
    return replace(victim, caption="x.-?"[number % 4])


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


_MAKERS: dict[str, Callable[[Picture, int], Picture]] = {
    "dead_links": _dead_link,
    "exact_copies": _exact_copy,
    "resized_copies": _resized_copy,
    "filename_captions": _filename_caption,
    "one_character_captions": _one_character_caption,
    "html_as_jpg": _html_as_jpg,
    "truncated_files": _truncated_file,
    "tracking_pixels": _tracking_pixel,
}


def table_rows(pictures: list[Picture], domain: str, port: int) -> list[dict[str, str]]:
    """Rows of one domain's URL table, taxon columns only for plants; an unknown value is an empty text."""
    rows = []
    for picture in pictures:
        if picture.domain != domain:
            continue
        package = picture.package
        row = {
            "record_id": picture.record_id,
            "url": f"http://127.0.0.1:{port}/{urllib.parse.quote(picture.path)}",
            "caption": picture.caption,
            "category": picture.category,
            "licence": package.licence,
            "licence_url": package.licence_url,
            "rights_holder": package.rights_holder,
            "creator": package.rights_holder,
            "reference_url": package.reference_url,
        }
        if domain == "plant":
            name = find_plant_name(picture.caption, picture.record_id)
            row |= {
                "kingdom": name.kingdom if name else "",
                "family": name.family if name else "",
                "genus": name.genus if name else "",
                "scientificName": name.scientific if name else "",
                "vernacularName": name.vernacular if name else "",
            }
        rows.append(row)
    return rows


def _write_web(web: Path, pictures: list[Picture], port: int, versions: dict[str, str]) -> dict[str, Any]:
    (web / MARKER).unlink(missing_ok=True)
    for folder in sorted({str((web / picture.path).parent) for picture in pictures}):
        make_folder(folder)
    for picture in pictures:
        if picture.content is not None:
            (web / picture.path).write_bytes(picture.content)
    plants, general = (table_rows(pictures, domain, port) for domain in ("plant", "general"))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(plants[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plants)
    publish_bytes(str(web / "plants.csv"), text.getvalue().encode())
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(general), sink, compression="zstd")
    publish_bytes(str(web / "general.parquet"), sink.getvalue())
    publish_bytes(str(web / "robots.txt"), b"User-agent: *\nAllow: /\n")
    marker = {
        "layout": LAYOUT,
        "port": port,
        "packages": versions,
        "rows": {"plant": len(plants), "general": len(general)},
        "troubles": {kind: sum(counts) for kind, counts in _NUM_TROUBLES.items()},
    }
    publish_bytes(str(web / "README.txt"), _readme(marker).encode())
    publish_bytes(str(web / MARKER), (json.dumps(marker, indent=2) + "\n").encode())
    LOG.info("pictures: wrote %d rows and their pictures into %s", len(plants) + len(general), web)
    return marker


def _readme(marker: dict[str, Any]) -> str:
    lines = ["The little web of the PlantMix demo: made by `python -m pipeline.demo pictures`, not to be edited.", ""]
    lines += [f"plants.csv       {marker['rows']['plant']} rows, domain plant"]
    lines += [f"general.parquet  {marker['rows']['general']} rows, domain general", ""]
    lines += ["Pictures, with their authors' captions:"]
    for package in PACKAGES:
        version = marker["packages"][package.name]
        lines += [f"  {package.folder + '/':12} Debian package {package.name} {version}, {package.licence}"]
    lines += ["", "Planted troubles (everything else is as in the packages):"]
    lines += [f"  {marker['troubles'][kind]:3}  {kind}: {meaning}" for kind, meaning in TROUBLES.items()]
    lines += ["", "Every third of the resized copies of plants stands in the general table.", ""]
    return "\n".join(lines)
