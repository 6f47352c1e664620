"""GBIF is asked once, whatever happens between the request and the archive; its faults end as sentences."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from darwin_core import gbif_files, write_zip
from gbif_server import ACCOUNT, DATASETS, PASSWORD, USER, GbifServer
from pydantic import ValidationError

from manifests.errors import ConfigError, RunError
from manifests.stores import storage
from pipeline.sources.biology.gbif import obtaining
from pipeline.sources.biology.gbif.asking import read_download
from pipeline.sources.reading import check_source, digest_inputs
from pipeline.sources.settings import SourceSettings

OAK = {"gbifID": "1", "kingdom": "Plantae", "species": "Quercus robur", "scientificName": "Quercus robur L."}
PHOTO = {"gbifID": "1", "type": "StillImage", "identifier": "https://a.org/1.jpg", "license": "CC0"}


@pytest.fixture
def gbif(tmp_path: Path) -> Iterator[GbifServer]:
    archive = write_zip(tmp_path / "made.zip", gbif_files([OAK], [PHOTO])).read_bytes()
    with GbifServer(archive) as server:
        yield server


def source(gbif: GbifServer, folder: Path, **settings: Any) -> SourceSettings:
    asked = {"api": gbif.api, **({"taxon": ["Fagus"]} | settings)}
    if "download" in settings:
        del asked["taxon"]
    values = {"name": "oaks", "domain": "plant", "gbif": asked}
    return SourceSettings.model_validate(values).in_work_folder(str(folder / "work"))


def bring(given: SourceSettings, pauses: list[float] | None = None, **environment: str) -> bool:
    return obtain(given, ACCOUNT | environment, [].append if pauses is None else pauses.append)


def obtain(given: SourceSettings, environment: dict[str, str], sleep: Callable[[float], None]) -> bool:
    """Whether there was an archive to bring."""
    reader = given.reader
    if reader.waits_for() is None:
        return False
    with pytest.MonkeyPatch.context() as patch:
        for module in ("api", "obtaining"):
            patch.setattr(f"pipeline.sources.biology.gbif.{module}.sleep", sleep)
        obtaining.obtain([reader], "PlantMix/test", environment)
    return True


def test_a_download_by_filter_comes_and_is_read(gbif: GbifServer, tmp_path: Path, read: Any) -> None:
    given = source(
        gbif, tmp_path, taxon=["Fagus", 7, "Rosa altissima"], country=["DE"], licence=["CC0-1.0", "CC-BY-4.0"],
        basis_of_record=["HUMAN_OBSERVATION"], years=[2015, 2024],
    )  # fmt: skip
    assert given.reader.waits_for()
    assert bring(given)
    rows, _ = read(given)
    assert [row["url"] for row in rows] == ["https://a.org/1.jpg"]
    assert not bring(given), "nothing is asked for what is there"
    assert gbif.asked("POST") == 1
    (made,) = gbif.downloads.values()
    assert made["request"]["creator"] == USER
    assert made["request"]["notificationAddresses"] == ["ann@example.org"]
    assert made["request"]["predicate"] == {
        "type": "and",
        "predicates": [
            {"type": "in", "key": "TAXON_KEY", "values": ["2874569", "7", "8395064"]},
            {"type": "equals", "key": "COUNTRY", "value": "DE"},
            {"type": "in", "key": "LICENSE", "values": ["CC0_1_0", "CC_BY_4_0"]},
            {"type": "equals", "key": "BASIS_OF_RECORD", "value": "HUMAN_OBSERVATION"},
            {"type": "equals", "key": "MEDIA_TYPE", "value": "StillImage"},
            {"type": "greaterThanOrEquals", "key": "YEAR", "value": "2015"},
            {"type": "lessThanOrEquals", "key": "YEAR", "value": "2024"},
        ],
    }


def test_what_must_be_cited_is_kept(gbif: GbifServer, tmp_path: Path) -> None:
    given = source(gbif, tmp_path)
    bring(given)
    found = read_download(given.reader.settings)
    assert found["doi"] == "10.15468/dl.abc123"
    assert found["citation"] == "GBIF.org (2026-11-26) GBIF Occurrence Download https://doi.org/10.15468/dl.abc123"
    assert [row["num_records"] for row in found["datasets"]] == [30, 20, 10], "all pages, the largest first"
    assert found["datasets"][2]["title"] == DATASETS[0]["datasetTitle"]
    assert given.reader.cites()["num_datasets"] == 3


def test_the_rows_depend_on_the_archive_alone(gbif: GbifServer, tmp_path: Path) -> None:
    one, other = source(gbif, tmp_path), source(gbif, tmp_path / "other", country=["DE"], refresh="2026-12")
    for given in (one, other):
        gbif.statuses = ["SUCCEEDED"]
        bring(given)
    assert digest_inputs(one, hash_of) == digest_inputs(other, hash_of)
    assert one.identity() == other.identity()
    assert one.identity() != source(gbif, tmp_path, extra=["locality"]).identity()


def hash_of(path: str) -> str:
    return storage.hash_file(path).sha256


def test_another_filter_or_refresh_asks_anew_and_the_old_archive_stays(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.statuses = ["SUCCEEDED"]
    for settings in ({}, {"refresh": "2026-12"}, {"country": ["FR"]}):
        assert bring(source(gbif, tmp_path, **settings))
    assert not bring(source(gbif, tmp_path)), "back at the first request: its archive is there"
    assert gbif.asked("POST") == 3


def test_a_key_needs_no_account(gbif: GbifServer, tmp_path: Path, read: Any) -> None:
    key = gbif.make({})
    given = source(gbif, tmp_path, download=key)
    assert obtain(given, {}, lambda _: None)
    assert len(read(given)[0]) == 1
    assert gbif.asked("POST") == 0
    assert not any(signed for _, _, signed in gbif.log)


def test_the_account_is_asked_for_before_the_first_request(gbif: GbifServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sources\.oaks: set GBIF_PWD in the environment"):
        bring(source(gbif, tmp_path), GBIF_PWD="")
    assert gbif.log == []


def test_neither_password_nor_user_is_written_or_logged(
    gbif: GbifServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="plantmix")
    gbif.lose_key, gbif.faults = 1, [500, 429]
    given = source(gbif, tmp_path)
    bring(given)
    written = b"".join(path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file())
    texts = caplog.text + str(given.model_dump()) + str(given.recipe())
    for secret in (PASSWORD, USER + "@", "Basic "):
        assert secret not in texts
        assert secret.encode() not in written
    assert not re.search(rf"\b{USER}\b", caplog.text)


def test_a_password_goes_over_https_only(tmp_path: Path, gbif: GbifServer) -> None:
    with pytest.raises(ConfigError, match="over https only"):
        bring(source(gbif, tmp_path, api="http://gbif.example.org/v1"))


# ---- faults on the way to a key


def test_a_key_that_was_lost_on_the_way_is_found_again(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.lose_key = 1
    assert bring(source(gbif, tmp_path))
    assert gbif.asked("POST") == 1
    assert len(gbif.downloads) == 1


class KilledError(Exception):
    """Stands for SIGKILL: nothing behind it runs."""


def killed(_: float) -> None:
    raise KilledError


@pytest.mark.parametrize("moment", ["after the request", "while waiting", "amid the archive"])
def test_killed_anywhere_it_goes_on_and_asks_once(gbif: GbifServer, tmp_path: Path, moment: str) -> None:
    given = source(gbif, tmp_path)
    if moment == "after the request":
        gbif.lose_key = 1
    elif moment == "amid the archive":
        gbif.statuses, gbif.cuts = ["SUCCEEDED"], [100]
    with pytest.raises(KilledError):
        obtain(given, ACCOUNT, killed)
    assert given.reader.waits_for()
    assert bring(given)
    assert (gbif.asked("POST"), len(gbif.downloads)) == (1, 1)
    if moment == "amid the archive":
        assert gbif.ranges == [None, "bytes=100-"]
    check_source(given)


def test_too_many_downloads_at_once_are_waited_for(gbif: GbifServer, tmp_path: Path) -> None:
    text = "A download limitation is exceeded:\nUser ann has too many simultaneous downloads; the limit is 3.\n"
    gbif.refusals = [(429, {"Retry-After": "90"}, text), (420, {}, text), (429, {}, text)]
    pauses: list[float] = []
    assert bring(source(gbif, tmp_path), pauses)
    assert pauses[:3] == [90.0, 60.0, 120.0]
    assert len(gbif.downloads) == 1


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((401, {}, ""), "check GBIF_USER and GBIF_PWD"),
        ((413, {}, "A download limitation is exceeded: the predicate is too complex"), r"413.*too complex"),
        ((400, {}, "no such country"), "400.*no such country"),
    ],
)
def test_a_refusal_is_told_and_forgotten(
    gbif: GbifServer, tmp_path: Path, refusal: tuple[int, dict[str, str], str], message: str
) -> None:
    gbif.refusals = [refusal]
    with pytest.raises(ConfigError, match=message):
        bring(source(gbif, tmp_path))
    assert bring(source(gbif, tmp_path)), "the next build asks again"


def test_a_name_that_gbif_does_not_know_is_named(gbif: GbifServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GBIF knows no taxon 'Fagsu'"):
        bring(source(gbif, tmp_path, taxon=["Fagsu"]))
    assert gbif.asked("POST") == 0


# ---- faults on the way to the archive


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "CANCELLED", "FILE_ERASED"])
def test_a_download_that_failed_is_asked_for_anew_by_the_next_build(
    gbif: GbifServer, tmp_path: Path, status: str
) -> None:
    gbif.statuses = ["PREPARING", "RUNNING", status]
    with pytest.raises(RunError, match=r"erased|ended as") as failure:
        bring(source(gbif, tmp_path))
    assert "run build again to ask anew" in str(failure.value)
    gbif.statuses = ["SUCCEEDED"]
    assert bring(source(gbif, tmp_path))
    assert gbif.asked("POST") == 2


def test_an_erased_download_by_key_needs_another_key(gbif: GbifServer, tmp_path: Path) -> None:
    given = source(gbif, tmp_path, download=gbif.make({}))
    gbif.statuses = ["FILE_ERASED"]
    with pytest.raises(RunError, match="give another key"):
        bring(given)


def test_a_key_that_is_not_there_is_told(gbif: GbifServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="GBIF knows no such download"):
        bring(source(gbif, tmp_path, download="0099999-240101000000000"))


def test_a_download_in_another_format_is_told(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.format = "SIMPLE_CSV"
    with pytest.raises(ConfigError, match="has the format SIMPLE_CSV; give one of the format DWCA"):
        bring(source(gbif, tmp_path, download=gbif.make({})))


def test_a_busy_gbif_is_asked_ever_more_seldom(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.statuses = ["RUNNING"] * 20 + ["SUCCEEDED"]
    pauses: list[float] = []
    bring(source(gbif, tmp_path), pauses)
    assert pauses == sorted(pauses)
    assert pauses[0] == 1.0
    assert pauses[-1] == 60.0


def test_faults_on_the_way_pass(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.faults, gbif.cuts = [503, 0, 429, 502], [10, 0, 200]
    pauses: list[float] = []
    assert bring(source(gbif, tmp_path), pauses)
    assert 7.0 in pauses, "Retry-After is kept"
    assert len(gbif.downloads) == 1


def test_a_gbif_that_stays_away_ends_the_build_and_the_next_goes_on(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.statuses, gbif.cuts = ["SUCCEEDED"], [0] * 100
    with pytest.raises(RunError, match=r"cannot be reached .*run build again later"):
        bring(source(gbif, tmp_path))
    gbif.cuts = []
    assert bring(source(gbif, tmp_path))
    assert gbif.asked("POST") == 1


def test_a_server_without_ranges_sends_it_all_again(gbif: GbifServer, tmp_path: Path, read: Any) -> None:
    gbif.statuses, gbif.cuts, gbif.has_ranges = ["SUCCEEDED"], [100], False
    given = source(gbif, tmp_path)
    bring(given)
    assert len(read(given)[0]) == 1


def test_what_is_no_zip_is_not_kept(gbif: GbifServer, tmp_path: Path) -> None:
    whole, gbif.archive = gbif.archive, b"<html>maintenance</html>"
    with pytest.raises(RunError, match="is no zip"):
        bring(source(gbif, tmp_path))
    gbif.archive = whole
    assert bring(source(gbif, tmp_path))
    assert gbif.asked("POST") == 1


def test_more_bytes_than_stated_are_not_kept(gbif: GbifServer, tmp_path: Path) -> None:
    gbif.stated_size = 50
    with pytest.raises(RunError, match="GBIF sent more than the 50 bytes"):
        bring(source(gbif, tmp_path))
    assert not list((tmp_path / "work").rglob("*.zip*"))


def test_a_request_file_that_was_changed_is_named(gbif: GbifServer, tmp_path: Path) -> None:
    given = source(gbif, tmp_path)
    bring(given)
    (asked,) = (tmp_path / "work/gbif/oaks").glob("asked-*.json")
    for content in ("", "[]", '{"key": 1, "other": 2}'):
        asked.write_text(content)
        with pytest.raises(ConfigError, match="remove it, and build asks GBIF anew"):
            check_source(given)


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "asks for all of GBIF"),
        ({"taxon": ["Fagus"], "download": "0012345-240101000000000"}, "taxon and download"),
        ({"years": [2020, 2010]}, "2020 is after 2010"),
        ({"country": ["Germany"]}, "pattern"),
        ({"download": "../../etc/passwd"}, "pattern"),
    ],
)
def test_settings_that_cannot_be_meant(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceSettings.model_validate({"name": "s", "domain": "d", "gbif": settings})


def test_before_the_archive_is_there_a_reader_says_what_to_do(gbif: GbifServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="plantmix build CONFIG --to ingest"):
        check_source(source(gbif, tmp_path))
    assert gbif.log == []
