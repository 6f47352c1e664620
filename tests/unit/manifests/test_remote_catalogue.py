"""The catalogue of a work folder in a store: who may write it, what a lost driver costs, how others take it up."""

from __future__ import annotations

import datetime
import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from waiting import wait_until

from manifests.contract import session
from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader, read_status
from manifests.contract.records import Funnel, PartFile, PartRecord, StageRecord
from manifests.errors import ConfigError, RunError
from manifests.stores import folder as remote
from manifests.stores import lease, storage


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A work folder in a store that lives in this process."""
    on(tmp_path / "first", monkeypatch)
    monkeypatch.setattr(session, "JOURNAL_SECONDS", 0.1)
    place = f"memory://{uuid.uuid4().hex}/work"
    yield place
    fsspec.filesystem("memory").rm(place, recursive=True)


def on(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.PLACE_VARIABLE, str(machine))


def part(number: int) -> PartRecord:
    file = PartFile("facts", f"tables/fetch/{number}.parquet", 1, 1, "0" * 64)
    return PartRecord(f"part-{number}", "fetch", "download", "recipe", (file,), Funnel(1, 1), {}, 0.1, 1)


def keys(catalog: Catalog) -> set[str]:
    return {row[0] for row in catalog.ask("SELECT part_key FROM parts")}


def lose(catalog: Catalog) -> None:
    """As when the machine is lost: its process, its folder, and all that was not sent."""
    held = catalog._session
    assert held is not None
    held._closing.set()
    held._thread.join()
    held._lock.close()
    catalog._reader.close()
    catalog._connection.close()
    shutil.rmtree(catalog.workdir)


def wait_for_journal(address: str, num: int) -> None:
    fs, inner = storage.filesystem(f"{address}/catalog/journal")
    wait_until(lambda: fs.exists(inner) and len(fs.find(inner)) >= num)


def age_lease(address: str, seconds: float) -> None:
    fs, inner = storage.filesystem(f"{address}/catalog")
    (path,) = [name for name in fs.ls(inner, detail=False) if "lease-" in name]
    held = json.loads(fs.cat_file(path))
    renewed = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    fs.pipe_file(path, json.dumps(held | {"renewed_at": renewed.isoformat(), "host": "another"}).encode())


def test_a_lost_machine_costs_nothing_that_was_sent(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = Catalog.open(address)
    catalog.open_stage("fetch", "version", {})
    catalog.commit_parts("version", {0: part(0)})
    catalog.seal_stage(StageRecord("fetch", "version", Funnel(1, 1), {}))
    catalog.commit_parts("version", {1: part(1)})
    wait_for_journal(address, 1)
    on(tmp_path / "second", monkeypatch)
    with open_reader(address, per_sample=False) as sql:  # while it is built elsewhere
        assert sql.execute("SELECT count(*) FROM parts").fetchall() == [(2,)]
    catalog.commit_parts("version", {2: part(2)})
    wait_for_journal(address, 2)
    lose(catalog)
    age_lease(address, lease.STALE_SECONDS + 1)
    with Catalog.open(address) as other:
        assert keys(other) == {"part-0", "part-1", "part-2"}
        assert other.find_sealed("version") is not None
        other.commit_parts("version", {3: part(3)})
    on(tmp_path / "third", monkeypatch)
    with open_reader(address, per_sample=False) as sql:
        assert sql.execute("SELECT count(*) FROM parts").fetchall() == [(4,)]
    fs, inner = storage.filesystem(f"{address}/catalog")
    assert not [name for name in fs.find(inner) if "/journal/" in name], "a snapshot takes the journal's place"


def test_a_machine_that_others_have_overtaken_takes_their_catalogue_up(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(address) as first:
        first.commit_parts("version", {0: part(0)})
    on(tmp_path / "second", monkeypatch)
    with Catalog.open(address) as second:
        second.commit_parts("version", {1: part(1)})
        second.publish_status({"name": "elsewhere", "running": None, "pid": None})
    on(tmp_path / "first", monkeypatch)
    assert read_status(address)["name"] == "elsewhere"
    with Catalog.open(address) as first:
        assert keys(first) == {"part-0", "part-1"}


def test_a_second_driver_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog.open(address):
        with pytest.raises(RunError, match="another process of this machine is writing this work folder"):
            Catalog.open(address)
        on(tmp_path / "second", monkeypatch)
        with pytest.raises(RunError, match=r"another driver holds this work folder .* delete memory://.*lease-000001"):
            Catalog.open(address)
    with Catalog.open(address) as catalog:
        assert keys(catalog) == set()


def test_a_driver_that_was_followed_stops(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Catalog.open(address)
    age_lease(address, lease.STALE_SECONDS + 1)
    on(tmp_path / "second", monkeypatch)
    with Catalog.open(address) as second:
        with pytest.raises(RunError, match="another driver took this work folder"):
            first.seal_stage(StageRecord("fetch", "version", Funnel(0, 0), {}))
        second.commit_parts("version", {0: part(0)})
    with pytest.raises(RunError, match="another driver took this work folder"):
        first.__exit__(None)
    with Catalog.open(address) as again:
        assert keys(again) == {"part-0"}


def test_of_two_that_take_a_free_folder_one_wins(address: str) -> None:
    lease.Lease(address, []).take()
    with pytest.raises(RunError, match="another driver has just taken this work folder"):
        lease.Lease(address, []).take()


def test_a_journal_may_be_gone_when_its_removal_is_tried_again(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, inner = storage.filesystem(f"{address}/catalog")
    remove, tried = fs.rm, list[int]()

    def lose_the_answer(paths: list[str]) -> None:
        remove(paths)
        tried.append(len(paths))
        raise ConnectionResetError("no answer")

    with Catalog.open(address) as catalog, monkeypatch.context() as patch:
        catalog.seal_stage(StageRecord("fetch", "version", Funnel(0, 0), {}))
        catalog.commit_parts("version", {0: part(0)})
        wait_for_journal(address, 1)
        patch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01,))
        patch.setattr(type(fs), "rm", lambda _, paths: lose_the_answer(paths))
        catalog.seal_stage(StageRecord("dedup", "another", Funnel(0, 0), {}))
        assert tried
    assert not [name for name in fs.find(inner) if "/journal/" in name]


def test_a_place_without_a_catalogue_is_named(address: str) -> None:
    storage.publish_bytes(f"{address}/other", b"")
    with pytest.raises(ConfigError, match=f"^{address}: no catalogue here; give the work folder of a build"):
        open_reader(address)


def test_a_table_that_another_machine_made_again_is_not_taken_from_here(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Catalog.open(address) as first:
        for number in (0, 1):
            first.commit_parts("version", {number: part(number)})
            storage.write_file(f"{first.workdir}/tables/fetch/{number}.parquet", b"here")
    on(tmp_path / "second", monkeypatch)
    with Catalog.open(address) as second:
        second.forget_parts(["part-0"])
        (file,) = part(0).files
        second.commit_parts("version", {0: replace(part(0), files=(replace(file, sha256="1" * 64),))})
    on(tmp_path / "first", monkeypatch)
    with Catalog.open(address) as first:
        there = {path.name for path in Path(first.workdir, "tables/fetch").iterdir()}
        assert there == {"1.parquet"}
