"""Ask GBIF for the downloads of a config, wait, fetch the archives. No download is requested twice.

Before a request is sent, its token is written down, and GBIF keeps the token with the download. So a process that was
killed anywhere finds its download again: by its key, or in the user's list by the token. Writes the folders of the
sources (asking.py); one process at a time, since the work folder is held meanwhile.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from time import sleep
from typing import Any, Protocol
from urllib.parse import quote
from uuid import uuid4

from manifests.errors import ConfigError, RunError
from manifests.stores import storage
from pipeline.sources.biology.gbif import asking
from pipeline.sources.biology.gbif.api import ASKED_TOO_MUCH, GbifApi, account_of, refused
from pipeline.sources.biology.gbif.asking import GbifSettings

log = logging.getLogger("plantmix.gbif")

_BEING_MADE = ("PREPARING", "RUNNING", "SUSPENDED")
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 60.0
_TOLD_SECONDS = 60.0
_PAGE_ROWS = 500
_REQUEST = "occurrence/download/request"


class Source(Protocol):
    """A source that GBIF is asked for; `where` names it in messages."""

    settings: GbifSettings
    where: str


def missing_account(source: Source, environment: Mapping[str, str]) -> str | None:
    """Which variables must be set before GBIF can be asked for this source; None when nothing is missing."""
    request = asking.read_request(source.settings)
    if source.settings.download or (request and request.key) or account_of(environment):
        return None
    names = [name for name in ("GBIF_USER", "GBIF_PWD") if not environment.get(name)]
    return f"{source.where}: set {' and '.join(names)} in the environment, from your account at gbif.org"


def obtain(sources: Sequence[Source], user_agent: str, environment: Mapping[str, str]) -> None:
    """Bring the archives of sources that wait for them. All are asked for before the first wait.

    Raises: ConfigError for what GBIF refuses; RunError when a download failed or GBIF stays away.
    """
    missing = [text for source in sources if (text := missing_account(source, environment))]
    if missing:
        raise ConfigError("; ".join(missing))
    opened = []
    try:
        for source in sources:
            api = GbifApi(source.settings.api, user_agent, account_of(environment))
            opened.append(api)
            storage.make_folder(source.settings.path)
            _ask(api, source, environment)
        for api, source in zip(opened, sources, strict=True):
            _bring(api, source)
    finally:
        for api in opened:
            api.close()


# ---- asking


def _ask(api: GbifApi, source: Source, environment: Mapping[str, str]) -> None:
    """Make sure that GBIF was asked, once, and that the key is known."""
    settings = source.settings
    request = asking.read_request(settings)
    if request and request.key:
        return
    account = account_of(environment)
    assert account is not None, "checked before"
    filters = asking.predicate(settings, [_taxon_key(api, source.where, taxon) for taxon in settings.taxon])
    key = _find(api, account.user, request.token) if request else None
    if request is None:
        request = asking.Request(uuid4().hex, "")
        asking.write_request(settings, request)
    content = {
        "creator": account.user,
        "sendNotification": bool(account.email),
        "notificationAddresses": [account.email] if account.email else [],
        "format": "DWCA",
        "predicate": filters,
        "machineDescription": {"plantmix": request.token},
    }
    num_refusals = 0
    while key is None:
        answer = api.post(_REQUEST, content)
        if answer is None:
            key = _find(api, account.user, request.token)
        elif answer.status in ASKED_TOO_MUCH:
            api.wait_for_room(answer, num_refusals)
            num_refusals += 1
        elif answer.status not in (200, 201):
            asking.request_path(settings).unlink()
            raise refused(answer)
        else:
            key = answer.body.decode("utf-8", "replace").strip().strip('"')
    if not key.replace("-", "").isalnum() or len(key) > 64:
        raise RunError(f"GBIF gave {key[:80]!r} in place of the key of a download; run build again")
    asking.write_request(settings, asking.Request(request.token, key))
    log.info("%s: GBIF makes download %s", source.where, key)


def _taxon_key(api: GbifApi, where: str, taxon: str | int) -> int:
    """Return the key of a taxon in GBIF's backbone; for a synonym, the key of the accepted name.

    Raises: ConfigError for a name that GBIF does not know as it is written.
    """
    if isinstance(taxon, int) or taxon.isdigit():
        return int(taxon)
    match = api.get("species/match", name=taxon, strict="true") or {}
    if match.get("matchType") != "EXACT" or not isinstance(match.get("usageKey"), int):
        near = f"; the nearest is {match['scientificName']}" if match.get("scientificName") else ""
        raise ConfigError(f"{where}: GBIF knows no taxon '{taxon}'{near}; write another name, or its key")
    key: int = match.get("acceptedUsageKey") or match["usageKey"]
    log.info("%s: '%s' is taxon %s, %s", where, taxon, key, match.get("scientificName", ""))
    return key


def _find(api: GbifApi, user: str, token: str) -> str | None:
    """Return the key of the download that carries this token, among the user's newest."""
    page = api.get(f"occurrence/download/user/{quote(user, safe='')}", signed=True, limit=100) or {}
    keys = [row["key"] for row in page.get("results", ()) if token in json.dumps(row.get("request", {}))]
    return str(keys[0]) if keys else None


# ---- waiting and fetching


def _bring(api: GbifApi, source: Source) -> None:
    settings = source.settings
    path = asking.archive_path(settings)
    assert path is not None, "asked for before"
    key, what = path.stem, f"{source.where}: GBIF download {path.stem}"
    download = _wait(api, key, settings, what)
    num_bytes = int(download.get("size") or 0)
    if download.get("request", {}).get("format", "DWCA") != "DWCA":
        raise ConfigError(f"{what} has the format {download['request']['format']}; give one of the format DWCA")
    content = json.dumps(_described(api, key, download), indent=1, sort_keys=True, ensure_ascii=False)
    storage.publish_bytes(str(path.with_suffix(".json")), content.encode())
    part = path.with_name(path.name + ".part")
    log.info("%s is made: %s records, fetching %.1f MB", what, f"{download.get('totalRecords', 0):,}", num_bytes / 1e6)
    if not api.download(f"{_REQUEST}/{key}.zip", part, num_bytes, what):
        raise _ended(settings, what, "FILE_ERASED")
    if not zipfile.is_zipfile(part):
        part.unlink()
        raise RunError(f"{what}: the download is no zip, though it has the {num_bytes:,} bytes stated; run build again")
    storage.publish(str(part), str(path))


def _wait(api: GbifApi, key: str, settings: GbifSettings, what: str) -> dict[str, Any]:
    """Wait for the file of a download; GBIF's words on it. Asks seldom: after 1 s, then ever longer, up to 60 s."""
    pause, waited, told = _FIRST_PAUSE_SECONDS, 0.0, ("", 0.0)
    while True:
        download = api.get(f"occurrence/download/{key}")
        if download is None:
            if settings.download:
                raise ConfigError(f"{what}: GBIF knows no such download; check the key")
            download = {"status": "PREPARING"}  # GBIF gave the key but does not list it yet
        status = str(download.get("status"))
        if status == "SUCCEEDED":
            return dict(download)
        if status not in _BEING_MADE:
            raise _ended(settings, what, status)
        if status != told[0] or waited - told[1] >= _TOLD_SECONDS:
            log.info(
                "%s: %s, waited %.0f s; this may take hours, and a stopped build goes on later", what, status, waited
            )
            told = (status, waited)
        sleep(pause)
        waited += pause
        pause = min(pause * 1.5, _MAX_PAUSE_SECONDS)


def _ended(settings: GbifSettings, what: str, status: str) -> RunError:
    """Return the error where GBIF has no file for us.

    A request of our own is forgotten, so that the next build asks anew.
    """
    why = {"FILE_ERASED": "GBIF has erased its file, as it does after some months"}.get(status, f"it ended as {status}")
    if settings.download:
        return RunError(f"{what}: {why}; give another key, or filters in its place")
    asking.request_path(settings).unlink(missing_ok=True)
    return RunError(f"{what}: {why}; run build again to ask anew")


def _described(api: GbifApi, key: str, download: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a download as a release must: how to cite it, and how many records came from which data set."""
    datasets: list[dict[str, Any]] = []
    while True:
        page = api.get(f"occurrence/download/{key}/datasets", limit=_PAGE_ROWS, offset=len(datasets)) or {}
        rows = page.get("results", [])
        datasets += [
            {
                "key": row.get("datasetKey") or "",
                "title": row.get("datasetTitle") or "",
                "doi": row.get("datasetDOI") or "",
                "citation": row.get("datasetCitation") or "",
                "num_records": row.get("numberRecords") or 0,
            }
            for row in rows
        ]
        if page.get("endOfRecords", True) or not rows:
            break
    doi, created = str(download.get("doi") or ""), str(download.get("created") or "")[:10]
    return {
        "key": key,
        "doi": doi,
        "citation": f"GBIF.org ({created}) GBIF Occurrence Download https://doi.org/{doi}",
        "licence": download.get("license") or "",
        "created": created,
        "num_records": download.get("totalRecords") or 0,
        "datasets": sorted(datasets, key=lambda row: (-row["num_records"], row["key"])),
    }
