"""A catalogue is rebuilt from its snapshot and journal, and each kind of damage has a message that says what to do."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import (
    CATALOG_FILE,
    JOURNAL_FILE,
    SNAPSHOT_FILE,
    read_snapshot,
    rebuild,
    transaction,
)
from manifests.contract.reader import open_reader
from manifests.contract.records import Funnel, PartFile, PartRecord, StageRecord
from manifests.errors import IntegrityError, RunError
from manifests.stores import storage


def part(key: str) -> PartRecord:
    files = (PartFile("candidates", f"tables/{key}.parquet", 3, 10, "00" * 32),)
    return PartRecord(key, "ingest", "read", "recipe", files, Funnel(5, 3, {"invalid_url": 2}), {"é": [1]}, 0.25, 1)


def fill(workdir: Path, num_parts: int = 3) -> None:
    """A catalogue with a row in every table."""
    with Catalog.open(str(workdir)) as catalog:
        catalog.record_config('{"name": "demo"}')
        catalog.open_stage("ingest", "v1", {"a": 1})
        for number in range(num_parts):
            catalog.commit_parts("v1", {number: part(f"p{number}")})
        catalog.seal_stage(StageRecord("ingest", "v1", Funnel(15, 9, {"invalid_url": 6}), {"note": "x"}))
        catalog.rounds.begin("recipe", ["http_5xx"])
        shard = {"split": "train", "shard": "0.tar", "num_samples": 1, "num_bytes": 2, "sha256": "00"}
        catalog.record_release("demo-1", "releases/demo-1", "v9", "00", [shard])
        mix = {"domain": "plant", "target_share": 0.1, "realised_share": 1 / 3, "num_available": 2, "num_drawn": 1}
        catalog.record_mix("v8", [{**mix, "num_epochs": 0.5, "num_heldout": 0}])
        run = {"run": "a", "model_size": "s", "step": 1, "samples_seen": 2, "seed": 0, "mixture": {"plant": 1.0}}
        measured = {"losses": {"plant": {"value": 2.5}}, "epochs": {"plant": 0.1}, "validation": {}}
        catalog.record_proxy_runs("study", [{**run, **measured}])


def rows_of(workdir: Path) -> dict[str, list[tuple[object, ...]]]:
    with open_reader(str(workdir), per_sample=False) as sql:
        names = [row[0] for row in sql.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
        return {
            name: sql.execute(f'SELECT * FROM "{name}" ORDER BY ALL').fetchall()
            for name in sorted(names)
            if name not in ("inputs", "stamps", "snapshots")
        }


def test_a_rebuilt_catalogue_holds_the_same_rows(tmp_path: Path) -> None:
    fill(tmp_path)
    before = rows_of(tmp_path)
    assert all(before.values()), "a row in every table"
    (tmp_path / CATALOG_FILE).unlink()
    rebuild(str(tmp_path))
    assert rows_of(tmp_path) == before
    with Catalog.open(str(tmp_path)) as catalog:
        assert [found.key for found in catalog.parts_of("v1")] == ["p0", "p1", "p2"]
        assert catalog.parts_of("v1")[0] == part("p0")


def test_parts_of_a_killed_build_come_out_of_the_journal(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal\nsys.path.insert(0, sys.argv[2])\nfrom test_catalog_snapshot import part\n"
        "from manifests.contract.catalog import Catalog\ncatalog = Catalog.open(sys.argv[1])\n"
        "catalog.open_stage('ingest', 'v1', {})\n"
        "for number in range(3):\n    catalog.commit_parts('v1', {number: part(f'p{number}')})\n"
        "catalog.commit_parts('v1', {number: part(f'p{number}') for number in (3, 4)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), here], timeout=500, check=False)
    assert done.returncode == -signal.SIGKILL
    journal = tmp_path / JOURNAL_FILE
    journal.write_bytes(journal.read_bytes() + b"0123 cut")  # the last write of a killed process may be half a line
    for name in (CATALOG_FILE, f"{CATALOG_FILE}.wal"):
        (tmp_path / name).unlink()
    rebuild(str(tmp_path))
    with Catalog.open(str(tmp_path)) as catalog:
        assert catalog.find_parts([f"p{number}" for number in range(6)]).keys() == {f"p{number}" for number in range(5)}


def test_a_part_that_only_the_journal_knows_is_added_at_the_next_start(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    shutil.copytree(tmp_path, tmp_path / "copy")
    with Catalog.open(str(tmp_path / "copy")) as catalog:
        catalog.commit_parts("v1", {7: part("late")})
        journal = (tmp_path / "copy" / JOURNAL_FILE).read_bytes()
    (tmp_path / JOURNAL_FILE).write_bytes(journal)
    with Catalog.open(str(tmp_path)) as catalog:
        assert [found.key for found in catalog.parts_of("v1")] == ["p0", "p1", "late"]


@pytest.mark.parametrize("is_rebuilt", [False, True])
def test_what_a_killed_process_forgot_stays_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_rebuilt: bool
) -> None:
    """As it was found: snapshot and journal brought the parts back at the next start, and their stage was unsealed."""
    killed, path = tmp_path / "killed", tmp_path / "work"
    with Catalog.open(str(path)) as catalog:
        catalog.open_stage("ingest", "v1", {})
        catalog.commit_parts("v1", {number: part(f"p{number}") for number in range(3)})
        catalog.seal_stage(StageRecord("ingest", "v1", Funnel(5, 5), {}))
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "_write_snapshot", lambda self: shutil.copytree(path, killed))
            catalog.forget_parts(["p0", "p2"])
        catalog.commit_parts("v1", {0: part("p0")})
        journal = (path / JOURNAL_FILE).read_bytes()
    if is_rebuilt:
        (killed / JOURNAL_FILE).write_bytes(journal)
        (killed / CATALOG_FILE).unlink()
        rebuild(str(killed))
    with Catalog.open(str(killed)) as catalog:
        assert [found.key for found in catalog.parts_of("v1")] == ["p0", "p1"][not is_rebuilt :]
        assert catalog.find_sealed("v1") is None


def test_a_line_that_was_cut_costs_its_part_and_no_earlier_one(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with Catalog.open(str(tmp_path / "work")) as catalog:
        catalog.commit_parts("v1", {number: part(f"p{number}") for number in range(3)})
        shutil.copytree(tmp_path / "work", killed)
    journal = (killed / JOURNAL_FILE).read_bytes()
    (killed / JOURNAL_FILE).write_bytes(
        journal[: journal.index(b"tables/p1.parquet")]
    )  # as a kill leaves it amid the writing
    rebuild(str(killed))
    with Catalog.open(str(killed)) as catalog:
        assert [found.key for found in catalog.parts_of("v1")] == ["p0"]


# ---- damage


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(4096 * 3, len(content), 500):
        content[place] ^= 0xFF
    path.write_bytes(content)


def be_a_text(path: Path) -> None:
    path.write_text("once upon a time\n" * 1000)


def be_another_database(path: Path) -> None:
    path.unlink()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE holidays AS SELECT 1 AS day")


def be_of_another_folder(path: Path) -> None:
    other = path.parent / "other"
    fill(other)
    shutil.copy(other / CATALOG_FILE, path)
    shutil.rmtree(other)


def be_older(path: Path) -> None:
    old = path.read_bytes()
    with Catalog.open(str(path.parent)) as catalog:
        catalog.commit_parts("v1", {9: part("new")})
    path.write_bytes(old)


def be_of_a_newer_duckdb(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[12:20] = (9999).to_bytes(8, "little")  # the version number in the first header
    path.write_bytes(content)


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (lose, "the catalogue is gone"),
    (cut, "DuckDB cannot open it"),
    (empty, "DuckDB cannot open it"),
    (flip, "DuckDB cannot open it"),
    (be_a_text, "DuckDB cannot open it"),
    (be_another_database, r"a DuckDB database, but no catalogue \(tables: holidays\)"),
    (be_of_another_folder, "the catalogue of another work folder"),
    (be_older, "older than its snapshot"),
    (be_of_a_newer_duckdb, "DuckDB cannot open it"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_named_and_mended(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    fill(tmp_path)
    damage(tmp_path / CATALOG_FILE)
    with pytest.raises(IntegrityError, match=rf"catalog\.duckdb: {message}.*`plantmix repair .*` rebuilds it"):
        Catalog.open(str(tmp_path))
    if damage not in (be_of_another_folder, be_older):  # such a catalogue can be read, and is what it is
        with pytest.raises(IntegrityError, match=rf"{message}.*`plantmix repair"):
            open_reader(str(tmp_path))
    rebuild(str(tmp_path))
    with Catalog.open(str(tmp_path)) as catalog:
        assert {"p0", "p1", "p2"} <= catalog.find_parts(["p0", "p1", "p2"]).keys()
        assert catalog.find_sealed("v1") is not None


def test_without_a_snapshot_the_message_says_so(tmp_path: Path) -> None:
    fill(tmp_path)
    cut(tmp_path / CATALOG_FILE)
    (tmp_path / SNAPSHOT_FILE).unlink()
    with pytest.raises(IntegrityError, match=r"it cannot be rebuilt \(.*there is no snapshot\); take it from a backup"):
        Catalog.open(str(tmp_path))


def test_a_catalogue_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    with duckdb.connect(str(tmp_path / CATALOG_FILE)) as connection:
        connection.execute("UPDATE snapshots SET format = 99")
    with pytest.raises(IntegrityError, match="written by a newer version of PlantMix"):
        Catalog.open(str(tmp_path))


def test_a_catalogue_in_use_is_not_rebuilt(tmp_path: Path) -> None:
    script = "import sys\nfrom manifests.contract.catalog_file import rebuild\nrebuild(sys.argv[1])"
    with Catalog.open(str(tmp_path)):
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert "another process is writing this catalogue" in done.stderr


@pytest.mark.parametrize("name", [SNAPSHOT_FILE, JOURNAL_FILE])
def test_every_flipped_bit_of_snapshot_and_journal_is_found(tmp_path: Path, name: str) -> None:
    fill(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    assert read_snapshot(str(tmp_path)).closed
    rng = random.Random(0)
    for place in rng.sample(range(len(content)), min(100, len(content) - 1)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            whole = read_snapshot(str(tmp_path)).closed is not None
        except IntegrityError:
            whole = False
        assert not whole, place
    path.write_bytes(content)
    with Catalog.open(str(tmp_path)):
        pass


def test_a_flipped_bit_of_the_database_is_no_traceback(tmp_path: Path) -> None:
    fill(tmp_path)
    content = (tmp_path / CATALOG_FILE).read_bytes()
    wal = tmp_path / f"{CATALOG_FILE}.wal"
    rng = random.Random(0)
    for _ in range(12):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (tmp_path / CATALOG_FILE).write_bytes(flipped)
        wal.unlink(missing_ok=True)
        for opening in (open_and_close, read_and_close):
            with contextlib.suppress(IntegrityError):  # anything else would be a traceback for the user
                opening(str(tmp_path))


def open_and_close(workdir: str) -> None:
    with Catalog.open(workdir):
        pass


def read_and_close(workdir: str) -> None:
    open_reader(workdir).close()


def test_a_disk_that_refuses_the_commit_is_told() -> None:
    class Full:
        def execute(self, sql: str) -> None:
            if sql == "COMMIT":
                raise duckdb.IOException("Could not write file: No space left on device")

    message = r"the catalogue cannot be written: .*No space left.*run the same command again"
    with pytest.raises(RunError, match=message), transaction(Full()):
        pass


def test_what_lay_in_the_place_of_the_catalogue_is_kept(tmp_path: Path) -> None:
    fill(tmp_path)
    be_another_database(tmp_path / CATALOG_FILE)
    digest = storage.hash_file(str(tmp_path / CATALOG_FILE)).sha256
    rebuild(str(tmp_path))
    assert storage.hash_file(str(tmp_path / f"{CATALOG_FILE}.damaged")).sha256 == digest
    assert not list(tmp_path.glob(".*.tmp-*"))


def test_a_refused_catalogue_is_not_held_open(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    with duckdb.connect(str(path)) as other:
        other.execute("CREATE TABLE of_another_program (value INTEGER)")
    with pytest.raises(IntegrityError, match="no catalogue") as refused:  # its traceback knows the connection
        Catalog.open(str(tmp_path))
    with duckdb.connect(str(path), read_only=True) as other:
        assert other.execute("FROM of_another_program").fetchall() == []
    assert refused.value.__traceback__ is not None
