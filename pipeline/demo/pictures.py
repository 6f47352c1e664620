"""Set up the demo's little web: picture files, two URL tables, and a known number of the web's troubles.

Reads Debian packages: the stamps of Tux Paint (photos and drawings with a sentence each) and the word pictures of
pySioGame. Writes into one folder; the same packages and the same Pillow give the same bytes:

    tuxpaint/ pysiogame/   the pictures, bytes as in the package
    mirror/ resized/ odd/  planted troubles, see below
    plants.csv             URL table of the domain plant, with Darwin Core's column names
    general.parquet        URL table of the domain general
    robots.txt README.txt  for fetchers, for people
    demo.json              counts and versions; written last: without it the set-up is not done

Processes that set up the same folder at the same time wait for each other (a lock file beside it).

TROUBLES and README.txt say what the planted troubles are and how many there are. The packages have some of their own:
mirrored twins, pictures without a caption, the same fruit drawn twice. Every other row is a picture of a package. Its
caption is its author's sentence, or its file name, with the class of its folder: `A banana. (fruit)`.

Gives up with ConfigError where a package cannot be downloaded; the message says what to do instead.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.stores.cache import locked
from manifests.stores.storage import make_folder, publish_bytes
from pipeline.demo.debian import fetch_package, package_version
from pipeline.demo.packages import PACKAGES, Picture, read_package
from pipeline.demo.plants import find_plant_name
from pipeline.demo.troubles import TROUBLES, plant_troubles

LOG = logging.getLogger(__name__)

PREFERRED_PORT = 8731
MARKER = "demo.json"
LAYOUT = 4  # raise it when what is written changes: an older set-up is then made again


def prepare_web(web: Path, packages_folder: Path, port: int | None = None) -> dict[str, Any]:
    """Set up the demo's web in `web` unless it is there already; give its marker (counts, port, versions).

    `port` is written into the URLs. None keeps the port that is there, or takes PREFERRED_PORT.

    Raises: ConfigError when a package cannot be downloaded.
    """
    with _one_at_a_time(web):
        marker = read_marker(web)
        if marker is not None and port in (None, marker["port"]):
            LOG.info("pictures: reusing %d rows in %s", sum(marker["rows"].values()), web)
            return marker
        port = port or (marker["port"] if marker else PREFERRED_PORT)
        debs = [(package, fetch_package(package.name, packages_folder)) for package in PACKAGES]
        packaged = [picture for package, deb in debs for picture in read_package(package, deb)]
        pictures = plant_troubles(packaged)
        return _write_web(web, pictures, port, {package.name: package_version(deb) for package, deb in debs})


@contextmanager
def _one_at_a_time(web: Path) -> Iterator[None]:
    """Wait until no other process sets up the same web: each would remove what the other has written."""
    make_folder(str(web.parent))
    with locked(web.parent / f".{web.name}.lock"):
        yield


def read_marker(web: Path) -> dict[str, Any] | None:
    """Return the marker of a finished set-up of today's layout, or None."""
    try:
        marker: dict[str, Any] = json.loads((web / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    tables = ("plants.csv", "general.parquet")
    whole = marker.get("layout") == LAYOUT and all((web / table).is_file() for table in tables)
    return marker if whole else None


def table_rows(pictures: list[Picture], domain: str, port: int) -> list[dict[str, str]]:
    """Rows of one domain's URL table; only plants have taxon columns. An unknown value is an empty text."""
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
    if web.exists():
        shutil.rmtree(web)  # an older set-up, or half of one
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
        "troubles": {kind: sum(trouble.counts) for kind, trouble in TROUBLES.items()},
    }
    publish_bytes(str(web / "README.txt"), _readme(marker).encode())
    publish_bytes(str(web / MARKER), (json.dumps(marker, indent=2) + "\n").encode())
    LOG.info("pictures: wrote %d rows and their pictures into %s", len(plants) + len(general), web)
    return marker


def _readme(marker: dict[str, Any]) -> str:
    lines = ["The little web of the PlantMix demo: made by `python -m pipeline.demo pictures`, not to be edited.", ""]
    lines += [f"plants.csv       {marker['rows']['plant']} rows, domain plant"]
    lines += [f"general.parquet  {marker['rows']['general']} rows, domain general", ""]
    lines += ["Pictures; a caption is the author's, with the class of its folder in brackets:"]
    for package in PACKAGES:
        version = marker["packages"][package.name]
        lines += [f"  {package.folder + '/':12} Debian package {package.name} {version}, {package.licence}"]
    lines += ["", "Planted troubles (everything else is as in the packages):"]
    lines += [f"  {marker['troubles'][kind]:3}  {kind}: {trouble.meaning}" for kind, trouble in TROUBLES.items()]
    lines += ["", "Every third of the resized copies of plants is in the general table.", ""]
    return "\n".join(lines)
