"""Each status says what the catalogue holds, and so do the parts that are read."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_reads import read_parts
from manifests.contract.reader import read_status
from manifests.contract.records import Funnel, PartFile, PartRecord


def part(key: str, path: str) -> PartRecord:
    file = PartFile("candidates", path, 3, 5, "00" * 32)
    return PartRecord(key, "ingest", "read", "recipe", (file,), Funnel(5, 3, {"invalid_url": 2}), {}, 0.5, 1)


def test_each_status_says_what_the_catalogue_holds(catalog: Catalog) -> None:
    fresh = catalog._reader

    def published() -> dict[str, int]:
        catalog.publish_status({"name": "demo", "running": None})
        status = read_status(catalog.workdir)
        stages = dict(fresh.execute("SELECT stage, fingerprint FROM current_stages").fetchall())
        assert {name: stage["fingerprint"] for name, stage in status["stages"].items()} == stages
        found = {name: stage["num_parts"] for name, stage in status["stages"].items()}
        asked = "SELECT count(*) FROM stage_parts WHERE fingerprint = ?"
        assert found == {name: fresh.execute(asked, [key]).fetchall()[0][0] for name, key in stages.items()}
        return found

    catalog.open_stage("ingest", "v1", {})
    assert published() == {"ingest": 0}
    for position in range(3):
        catalog.commit_parts("v1", {position: part(f"p{position}", f"{position}.parquet")})
        assert published() == {"ingest": position + 1}
    catalog.commit_parts("v1", {1: part("p1 again", "again.parquet")})  # in the place of another one
    assert published() == {"ingest": 3}
    assert [found.key for found in catalog.parts_of("v1")] == ["p0", "p1 again", "p2"]
    others = {3: part("p3", "3.parquet"), 1: part("p1 a third time", "third.parquet"), 9: part("p9", "9.parquet")}
    catalog.commit_parts("v1", others)
    assert published() == {"ingest": 5}
    catalog.commit_parts("v0", {0: part("p of another version", "other.parquet")})
    assert published() == {"ingest": 5}
    catalog.open_stage("mix", "m1", {})
    catalog.link_parts("v1", "read", [(0, "p0")])
    assert published() == {"ingest": 1, "mix": 0}
    catalog.forget_parts(["p0"])
    assert published() == {"ingest": 0, "mix": 0}
    catalog.forget_current(["mix"])
    assert published() == {"ingest": 0}


# ---- parts


def test_parts_are_those_of_the_catalogue(catalog: Catalog) -> None:
    def looked_up() -> list[str]:
        keys = [f"p{number}" for number in range(6)]
        in_order = catalog.parts_of("v1")
        committed = [part.key for part in in_order]
        for some in (keys, keys[2:4], keys[::-1], []):
            assert list(catalog.find_parts(some)) == [key for key in some if key in committed]
        assert list(catalog.find_parts(committed).values()) == in_order
        assert catalog.find_parts(keys) == read_parts(catalog._connection, keys), "as another process would read them"
        stored = catalog.ask("SELECT part_key FROM stage_parts WHERE fingerprint = 'v1' ORDER BY step, position")
        assert committed == [key for (key,) in stored]
        like = catalog.parts_like("ingest", "read", "recipe")
        assert sorted(like, key=lambda part: part.key) == in_order
        return sorted(catalog.find_parts(keys))

    catalog.open_stage("ingest", "v1", {})
    assert looked_up() == []
    for position in range(4):
        catalog.commit_parts("v1", {position: part(f"p{position}", f"{position}.parquet")})
        assert looked_up() == [f"p{number}" for number in range(position + 1)]
    with pytest.raises(duckdb.ConstraintException):  # nothing of a transaction that fails is known
        catalog.commit_parts("v1", {4: part("p4", "4.parquet"), 5: part("p0", "5.parquet")})
    assert looked_up() == ["p0", "p1", "p2", "p3"]
    catalog.name_anew("ingest", "v1", "v2", {})
    catalog.name_anew("ingest", "v2", "v1", {})
    assert looked_up() == ["p0", "p1", "p2", "p3"]
    catalog.forget_parts(["p1", "p3"])
    assert looked_up() == ["p0", "p2"]
    catalog.commit_parts("v1", {1: part("p1", "another.parquet")})  # done again, with other bytes
    assert looked_up() == ["p0", "p1", "p2"]
    (again,) = catalog.find_parts(["p1"]).values()
    assert [file.path for file in again.files] == ["another.parquet"]
    with pytest.raises(TypeError):
        again.notes["changed"] = True


def test_links_that_are_there_are_not_written_again(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    for position in range(2):
        catalog.commit_parts("v1", {position: part(f"p{position}", f"{position}.parquet")})
    links = "SELECT *, rowid FROM stage_parts ORDER BY ALL"
    before = catalog.ask(links)
    catalog.link_parts("v1", "read", [(1, "p1"), (0, "p0")])
    catalog.link_parts("v1", "other", [])
    assert catalog.ask(links) == before, "nothing was written"
    catalog.link_parts("v1", "read", [(0, "p1")])
    assert [found.key for found in catalog.parts_of("v1")] == ["p1"]


def test_without_its_file_the_status_is_that_of_the_catalogue(tmp_path: Path) -> None:
    """After `status.json` was deleted and a takedown had run, `plantmix status` found no build."""
    workdir = str(tmp_path)
    with Catalog.open(workdir) as catalog:
        catalog.record_config('{"name": "demo"}')
        catalog.open_stage("ingest", "v1", {})
        catalog.commit_parts("v1", {0: part("p0", "0.parquet")})
        catalog.publish_status({"name": "demo", "running": None, "pid": None})
    written = read_status(workdir)
    (tmp_path / "status.json").unlink()
    read = read_status(workdir)
    assert read.pop("updated_at") <= written.pop("updated_at")
    del written["sha256"]
    assert read == written
