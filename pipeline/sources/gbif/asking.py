"""What GBIF is asked for, and where what it gave lies. Reads and writes nothing but JSON of one folder.

A source has a folder of its own:

    asked-HASH.json   what was asked (HASH is of it), a token that names the request, and GBIF's key once it is known
    KEY.json          what GBIF says of the download: DOI, citation, counts of each data set
    KEY.zip           the archive; KEY.zip.part while it comes

Source: https://techdocs.gbif.org/en/data-use/api-downloads
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from manifests import storage
from manifests.errors import ConfigError
from manifests.records import fingerprint
from manifests.remote.folder import local_place
from pipeline.sources.settings import REQUEST_FIELDS, DwcaSettings, GbifSettings, Origin, given

AnyOrigin = TypeVar("AnyOrigin", bound=Origin)
_MOST_CITED = 100
_LICENCES = {"CC0-1.0": "CC0_1_0", "CC-BY-4.0": "CC_BY_4_0", "CC-BY-NC-4.0": "CC_BY_NC_4_0"}


@dataclass(frozen=True)
class Request:
    """One request to GBIF as the folder remembers it; `key` is "" until GBIF has given one."""

    token: str
    key: str


def predicate(settings: GbifSettings, taxon_keys: list[int]) -> dict[str, Any]:
    """The filter as GBIF's API takes it; it always asks for records with pictures."""
    parts = [
        *_one_of("TAXON_KEY", taxon_keys),
        *_one_of("COUNTRY", settings.country),
        *_one_of("LICENSE", [_LICENCES[licence] for licence in settings.licence]),
        *_one_of("BASIS_OF_RECORD", settings.basis_of_record),
        *_one_of("MEDIA_TYPE", ["StillImage"]),
    ]
    if settings.years:
        for kind, year in zip(("greaterThanOrEquals", "lessThanOrEquals"), settings.years, strict=True):
            parts.append({"type": kind, "key": "YEAR", "value": str(year)})
    return {"type": "and", "predicates": parts}


def _one_of(key: str, values: list[Any]) -> list[dict[str, Any]]:
    texts = [str(value) for value in values]
    if len(texts) > 1:
        return [{"type": "in", "key": key, "values": texts}]
    return [{"type": "equals", "key": key, "value": text} for text in texts]


# ---- the folder of a source


def with_folder(origin: AnyOrigin, work_dir: str) -> AnyOrigin:
    """The source with the folder that keeps its archive: its own, or one in the work folder."""
    if origin.gbif is None or origin.gbif.path:
        return origin
    settings = origin.gbif.model_copy(update={"path": str(Path(local_place(work_dir), "gbif", origin.name))})
    settings.model_fields_set.discard("path")  # it was not set: a kept configuration follows a moved work folder
    return origin.model_copy(update={"gbif": settings})


def request_path(settings: GbifSettings) -> Path:
    """The file that remembers this very request; another filter or another `refresh` has another one."""
    wanted = settings.model_dump(mode="json", include=set(REQUEST_FIELDS))
    return Path(settings.path, f"asked-{fingerprint(wanted)[:12]}.json")


def read_request(settings: GbifSettings) -> Request | None:
    """What is known of the request; None when GBIF was not asked yet.

    Raises: ConfigError for a file that somebody else has written.
    """
    if settings.download:
        return Request("", settings.download)
    path = request_path(settings)
    if not path.exists():
        return None
    try:
        return Request(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: not what was written there; remove it, and build asks GBIF anew") from None


def write_request(settings: GbifSettings, request: Request) -> None:
    """Remember a request, before and after GBIF has given its key."""
    content = json.dumps({"token": request.token, "key": request.key})
    storage.publish_bytes(str(request_path(settings)), content.encode())


def archive_path(settings: GbifSettings) -> Path | None:
    """Where the archive lies or will lie; None until its key is known."""
    request = read_request(settings)
    return Path(settings.path, f"{request.key}.zip") if request and request.key else None


def is_waiting(origin: Origin) -> bool:
    """True for a source whose archive is not there yet."""
    if origin.gbif is None:
        return False
    path = archive_path(origin.gbif)
    return path is None or not path.exists()


def read_download(origin: Origin) -> dict[str, Any]:
    """What GBIF says of the archive of a source: key, DOI, citation, counts of each data set."""
    path = archive_path(given(origin.gbif))
    assert path is not None, "an archive that is there has a key"
    found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return found


def as_archive(origin: Origin) -> Origin:
    """The source as the reader of Darwin Core Archives takes it."""
    settings = given(origin.gbif)
    values = {name: getattr(settings, name) for name in DwcaSettings.model_fields}
    dwca = DwcaSettings.model_validate(values | {"path": str(archive_path(settings))})
    return origin.model_copy(update={"gbif": None, "dwca": dwca})


def cited(origin: Origin) -> dict[str, Any]:
    """What a release says of the download: all of `read_download`, with its largest data sets in place of every one."""
    found = read_download(origin)
    datasets = [{name: row[name] for name in ("key", "title", "doi", "num_records")} for row in found["datasets"]]
    return found | {"datasets": datasets[:_MOST_CITED], "num_datasets": len(datasets)}
