"""A local picture is known by its content: what is replaced is read again, what is moved or touched is not."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from measuring import encode, picture
from tars import tar_of

from manifests.contract import records
from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.errors import ConfigError
from pipeline.answers.preflight import check_config
from pipeline.config import BuildConfig
from pipeline.engine.runner import BuildReport, Runner
from pipeline.flow import FLOW

NAMES = ("a", "b", "c", "d")
ODD = ("plain", "hidden/.in/x.jpg", "y.jfif", "z.ppm")


def bmp(seed: int) -> bytes:
    """One shape, so one size in bytes, whatever is drawn."""
    return encode(picture(seed=seed), "BMP")


def fill(folder: Path, first_seed: int, names: tuple[str, ...] = tuple(f"{name}.bmp" for name in NAMES)) -> Path:
    for seed, name in enumerate(names, first_seed):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bmp(seed))
    return folder


def with_table(folder: Path, names: tuple[str, ...] = ODD) -> dict[str, Any]:
    rows = "".join(f"{name},picture number {name}\n" for name in names)
    (folder / "list.csv").write_text("file,caption\n" + rows)
    columns = {"file": "file", "caption": "caption"}
    return {"folder": {"path": str(folder), "table": "list.csv", "columns": columns, "suffixes": ["bmp"]}}


def in_files(folder: Path) -> dict[str, Any]:
    return {"folder": {"path": str(folder), "suffixes": ["bmp"], "captions": "none"}}


def build(workdir: Path, origin: dict[str, Any], last: str | None = "dedup", **changes: Any) -> BuildReport:
    source = {"name": "ours", "domain": "plant", "defaults": {"licence": "CC0-1.0", "caption": "a drawn picture of it"}}
    values = {
        "name": "own",
        "work_dir": str(workdir),
        "sources": [source | origin],
        "mix": {"ratio": {"plant": 1}},
        "run": {"executor": "inline", "fetch_part_size": 3},
    }
    config = BuildConfig.model_validate(values | changes)
    check_config(config)
    with Catalog.open(config.work_dir) as catalog:
        return Runner(config, FLOW, catalog).run(last=last)


def ids_in(workdir: Path) -> dict[str, str]:
    """Record key -> sha256 of the picture that was read, or the outcome."""
    with open_reader(str(workdir)) as sql:
        rows = "SELECT record_key, if(outcome = 'ok', image_id, outcome) FROM facts JOIN candidates USING (sample_id)"
        return dict(sql.execute(rows).fetchall())


def ids_of(folder: Path, names: tuple[str, ...] = tuple(f"{name}.bmp" for name in NAMES)) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def read_again(workdir: Path) -> int:
    """How many local pictures were ever decoded."""
    with Catalog.open(str(workdir)) as catalog:
        (row,) = catalog.ask("SELECT coalesce(sum(num_in), 0)::BIGINT FROM parts WHERE step = 'local'")
        return int(row[0])


def write_over(path: Path, content: bytes) -> None:
    """In place, with the same size and the same time."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as stream:
        stream.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_picture_that_was_replaced_in_place_is_read_alone(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pics", 0)
    build(tmp_path / "work", in_files(folder))
    write_over(folder / "b.bmp", bmp(20))
    build(tmp_path / "work", in_files(folder))
    assert ids_in(tmp_path / "work") == ids_of(folder)
    assert read_again(tmp_path / "work") == 5
    assert build(tmp_path / "work", in_files(folder)).redone == ()


@pytest.mark.slow
def test_a_copy_costs_a_reading_and_makes_nothing_new(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pics", 0)
    report = build(tmp_path / "work", in_files(folder), last=None)
    shutil.copytree(folder, tmp_path / "copy")
    for path in folder.iterdir():
        os.utime(path)
    for place in (folder, tmp_path / "copy"):
        again = build(tmp_path / "work", in_files(place), last=None)
        assert (again.redone, again.release) == ((), report.release)
    assert read_again(tmp_path / "work") == 4


def test_unchanged_pictures_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "pics", 0)
    build(tmp_path / "work", in_files(folder))

    def refuse(path: str) -> str:
        raise AssertionError(f"{path} is hashed again")

    monkeypatch.setattr("manifests.contract.records.hash_or_unreadable", refuse)
    assert build(tmp_path / "work", in_files(folder)).redone == ()


@pytest.mark.slow
def test_pictures_of_a_killed_build_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "pics", 0)
    build(tmp_path / "work", in_files(folder))
    with Catalog.open(str(tmp_path / "work")) as catalog:  # as a kill before fetch was sealed leaves it
        catalog._connection.execute("DELETE FROM stamps")
        catalog._connection.execute("UPDATE stages SET sealed_at = NULL WHERE stage = 'fetch'")
    write_over(folder / "c.bmp", bmp(30))
    hashed: list[str] = []
    hash_one = records.hash_or_unreadable
    monkeypatch.setattr(records, "hash_or_unreadable", lambda path: hashed.append(path) or hash_one(path))
    build(tmp_path / "work", in_files(folder))
    assert ids_in(tmp_path / "work") == ids_of(folder)
    assert read_again(tmp_path / "work") == 5
    assert hashed == [str(folder / "c.bmp")]


def test_a_table_of_the_same_size_and_time_is_read(tmp_path: Path) -> None:
    folder, work = fill(tmp_path / "pics", 0, ODD), tmp_path / "work"
    origin = with_table(folder)
    build(work, origin)
    text = (folder / "list.csv").read_bytes()
    write_over(folder / "list.csv", text.replace(b"picture number", b"drawing number"))
    build(work, origin)
    with open_reader(str(work)) as sql:
        captions = sql.execute("SELECT DISTINCT left(caption, 14) FROM candidates").fetchall()
    assert captions == [("drawing number",)]


def test_a_leak_is_found_after_an_evaluation_picture_was_replaced(tmp_path: Path) -> None:
    folder, held = fill(tmp_path / "pics", 0), fill(tmp_path / "held", 70)
    sets = [{"name": "held", **in_files(held)}]

    def leaks() -> list[tuple[str, ...]]:
        build(tmp_path / "work", in_files(folder), evaluation=sets)
        with open_reader(str(tmp_path / "work")) as sql:
            rows = sql.execute("SELECT record_key FROM leaks JOIN candidates USING (sample_id) ORDER BY 1")
            return list(rows.fetchall())

    assert leaks() == []
    write_over(held / "b.bmp", bmp(2))
    assert leaks() == [("c.bmp",)]
    write_over(held / "b.bmp", bmp(71))
    assert leaks() == []


def drawn_tar(first_seed: int) -> bytes:
    named = enumerate(NAMES, first_seed)
    return tar_of(
        each for seed, name in named for each in ((f"{name}.bmp", bmp(seed)), (f"{name}.txt", b"a drawn picture"))
    )


@pytest.mark.slow
def test_a_tar_is_known_by_its_content(tmp_path: Path) -> None:
    path, work = tmp_path / "0.tar", tmp_path / "work"
    origin = {"webdataset": {"path": str(path), "suffixes": ["bmp"]}}
    whole = drawn_tar(0)
    path.write_bytes(whole)
    broken = whole[:600] + bytes(4000) + whole[4600:]
    write_over(path, broken)
    build(work, origin)
    for content, first_seed in ((whole, 0), (drawn_tar(80), 80)):
        write_over(path, content)
        build(work, origin)
        expected = {f"0/{name}": bmp(seed) for seed, name in enumerate(NAMES, first_seed)}
        assert ids_in(work) == {key: hashlib.sha256(body).hexdigest() for key, body in expected.items()}
    assert build(work, origin).redone == ()


@pytest.mark.slow
def test_decisions_say_what_a_limit_was_compared_with_and_no_words_of_a_library(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pics", 0)
    (folder / "small.bmp").write_bytes(encode(picture(40, 20), "BMP"))
    (folder / "cut.bmp").write_bytes(bmp(0)[:1000])
    decisions = []
    for work, min_side_px in (("work", 32), ("work", 34), ("clean", 34)):
        build(tmp_path / work, in_files(folder), last="select", fetch={"image": {"min_side_px": min_side_px}})
        with open_reader(str(tmp_path / work)) as sql:
            rows = "SELECT record_key, reason, value, threshold FROM decisions JOIN candidates USING (sample_id)"
            decisions.append(sql.execute(f"{rows} WHERE NOT keep ORDER BY 1").fetchall())
    cut = ("cut.bmp", "corrupt_image", None, None)
    assert decisions[0] == [cut, ("small.bmp", "image_too_small", "20", "32")]
    assert decisions[1] == decisions[2] == [cut, ("small.bmp", "image_too_small", "20", "34")]


@pytest.mark.parametrize("sign", ["?", "*", "[", "\\"])
def test_a_work_folder_that_reads_as_a_pattern_is_refused(tmp_path: Path, sign: str) -> None:
    folder = fill(tmp_path / "pics", 0)
    with pytest.raises(ConfigError, match="which DuckDB takes for a pattern; choose another folder"):
        build(tmp_path / f"wo{sign}rk", in_files(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["pics"]


@pytest.mark.slow
def test_names_with_signs_of_patterns_are_names(tmp_path: Path) -> None:
    folder = fill(tmp_path / "pics [1]", 0, ODD)
    tables = tmp_path / "tables [1]"
    tables.mkdir()
    origin = with_table(folder)
    (folder / "list.csv").replace(tables / "list [2].csv")
    for table in (tables, tables / "list [2].csv"):
        origin["folder"]["table"] = str(table)
        build(tmp_path / "work", origin, last="fetch")
        assert ids_in(tmp_path / "work") == ids_of(folder, ODD)
