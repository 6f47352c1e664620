"""The request to GBIF, and the folder of its answer. Reads and writes only the small JSON files of that folder.

A source has a folder of its own:

    asked-HASH.json   a token that names the request, and GBIF's key once it is known; HASH is of what was asked
    KEY.json          what GBIF says of the download: DOI, citation, counts of each data set
    KEY.zip           the archive; KEY.zip.part while it comes

Source: https://techdocs.gbif.org/en/data-use/api-downloads
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from manifests.contract.records import fingerprint
from manifests.contract.settings import ConfigPath
from manifests.errors import ConfigError
from manifests.stores import storage
from pipeline.sources.biology.dwca import DwcaSettings

_MOST_CITED = 100
_LICENCES = {"CC0-1.0": "CC0_1_0", "CC-BY-4.0": "CC_BY_4_0", "CC-BY-NC-4.0": "CC_BY_NC_4_0"}


REQUEST_FIELDS = ("taxon", "country", "licence", "basis_of_record", "years", "refresh", "download", "api")
"""The settings of a request. They decide which archive comes; the rows depend on the bytes of the archive alone."""


class GbifSettings(DwcaSettings):
    """A download that GBIF makes for us: by what the records must be, or by the key of one that is there already.

    The archive is read as `dwca` reads it. GBIF_USER, GBIF_PWD and GBIF_EMAIL of the environment say who asks.
    """

    path: ConfigPath = ""
    """Folder that keeps the archive; empty: gbif/NAME of the work folder."""
    taxon: list[str | int] = Field(default_factory=list)
    """Names, or keys of GBIF's backbone; any of them."""
    country: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(default_factory=list)
    """ISO codes of two letters."""
    licence: list[Literal["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0"]] = Field(default_factory=list)
    """Licences of the records; that of a picture goes under `where`."""
    basis_of_record: list[Annotated[str, Field(pattern=r"^[A-Z_]+$")]] = Field(default_factory=list)
    """Kinds of records, such as HUMAN_OBSERVATION and PRESERVED_SPECIMEN."""
    years: tuple[int, int] | None = None
    """First and last year, both included."""
    refresh: str | int = ""
    """Any text, such as a date; another text asks GBIF anew."""
    download: Annotated[str, Field(pattern=r"^[0-9]{7}-[0-9]{6,15}$")] | None = None
    """Key of a download that GBIF made already; the filters above do not go with it."""
    api: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$")] = "https://api.gbif.org/v1"
    """Where GBIF answers."""

    @model_validator(mode="after")
    def _one_way(self) -> GbifSettings:
        filters = [name for name in ("taxon", "country", "licence", "basis_of_record", "years") if getattr(self, name)]
        if self.download and (filters or self.refresh):
            raise ValueError(f"{(filters or ['refresh'])[0]} and download: give filters or a key, not both")
        if not self.download and not filters:
            raise ValueError("without a filter this asks for all of GBIF; give taxon, country, years, ... or download")
        if self.years and self.years[0] > self.years[1]:
            raise ValueError(f"years: {self.years[0]} is after {self.years[1]}")
        return self


@dataclass(frozen=True)
class Request:
    """One request to GBIF as the folder remembers it; `key` is "" until GBIF has given one."""

    token: str
    key: str


def predicate(settings: GbifSettings, taxon_keys: list[int]) -> dict[str, Any]:
    """Return the filter as GBIF's API takes it; it always asks for records with pictures."""
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


def request_path(settings: GbifSettings) -> Path:
    """Return the file of this request. Another filter or another `refresh` gives another file."""
    asked = settings.model_dump(mode="json", include=set(REQUEST_FIELDS))
    return Path(settings.path, f"asked-{fingerprint(asked)[:12]}.json")


def read_request(settings: GbifSettings) -> Request | None:
    """Return the request that `write_request` wrote; None when GBIF was not asked yet.

    Raises: ConfigError for a file of other content.
    """
    if settings.download:
        return Request("", settings.download)
    path = request_path(settings)
    if not path.exists():
        return None
    try:
        return Request(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: not as it was written; remove it, and build asks GBIF anew") from None


def write_request(settings: GbifSettings, request: Request) -> None:
    """Write a request down: before GBIF is asked, and again with the key that it gave."""
    content = json.dumps({"token": request.token, "key": request.key})
    storage.publish_bytes(str(request_path(settings)), content.encode())


def archive_path(settings: GbifSettings) -> Path | None:
    """Where the archive lies or will lie; None until its key is known."""
    request = read_request(settings)
    return Path(settings.path, f"{request.key}.zip") if request and request.key else None


def is_waiting(settings: GbifSettings) -> bool:
    """Return true while the archive is not there."""
    path = archive_path(settings)
    return path is None or not path.exists()


def read_download(settings: GbifSettings) -> dict[str, Any]:
    """Read what GBIF said of an archive that is there: key, DOI, citation, counts of each data set."""
    path = archive_path(settings)
    assert path is not None, "an archive that is there has a key"
    download: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return download


def cited(settings: GbifSettings) -> dict[str, Any]:
    """Cite the download in a release: all of `read_download`, with its largest data sets in place of every one."""
    download = read_download(settings)
    datasets = [{name: row[name] for name in ("key", "title", "doi", "num_records")} for row in download["datasets"]]
    return download | {"datasets": datasets[:_MOST_CITED], "num_datasets": len(datasets)}
