"""verify finds what is damaged in a work folder; repair makes just that anew, and asks the web for nothing it has."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from damaging import build_small, contents, counting_web, flip_bit, kinds_of, make_pictures, write_config
from sealed import flip_byte

from manifests.contract import tables
from pipeline.cli import main

CHANGING = ("catalog.", "status.json")  # they hold times and counters


class Small:
    """The finished build, and the web that it came from."""

    def __init__(self, folder: Path, root: str, requests: list[str]) -> None:
        self.folder, self.root, self.requests = folder, root, requests


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    folder = tmp_path_factory.mktemp("small")
    make_pictures(folder / "web")
    with counting_web(folder / "web") as (root, requests):
        build_small(folder, root)
        yield Small(folder, root, requests)


@pytest.fixture
def work(small: Small, tmp_path: Path) -> Path:
    """A copy of the work folder; the requests are counted anew."""
    shutil.copytree(small.folder / "work", tmp_path / "work", copy_function=shutil.copy2)
    small.requests.clear()
    return tmp_path / "work"


def verify(work: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", str(work), *options])
    return code, capsys.readouterr().out


def test_a_sound_folder_is_said_to_be_sound(work: Path, small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(work)
    code, out = verify(work, capsys)
    assert code == 0
    assert "files are as recorded" in out
    assert "of pool and shards only the sizes: --deep reads them" in out
    code, out = verify(work, capsys, "--deep")
    assert code == 0
    assert "images decode" in out
    code, out = verify(work, capsys, "--deep", "--json")
    assert code == 0
    assert json.loads(out)["findings"] == []
    assert main(["repair", str(work)]) == 0
    assert "nothing to repair" in capsys.readouterr().out
    assert contents(work) == before
    assert small.requests == []


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    flip_bit(path, random.Random(1))


def be_another_database(path: Path) -> None:
    path.unlink()
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE t AS SELECT 1 AS x")


@pytest.mark.parametrize("damage", [lose, pytest.param(be_another_database, marks=pytest.mark.slow)])
def test_a_catalogue_comes_back_and_nothing_is_asked_for(
    work: Path, small: Small, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(work, *CHANGING)
    damage(work / "catalog.duckdb")
    code, out = verify(work, capsys)
    assert code == 1
    assert f"to mend it: plantmix repair {work}" in out
    assert main(["repair", str(work)]) == 0, capsys.readouterr().out
    assert main(["--quiet", "build", str(write_config(work.parent, small.root))]) == 0
    assert contents(work, *CHANGING) == before
    assert small.requests == []


BY_THEMSELVES = ("catalog.duckdb", "catalog.snapshot", "table fetched", "takedown release.json", "takedowns.jsonl")


@pytest.mark.parametrize("damage", [flip, *(pytest.param(damage, marks=pytest.mark.slow) for damage in (lose, cut))])
def test_a_file_of_every_kind_is_found_and_mended_without_the_web(
    work: Path, small: Small, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(work, *CHANGING)
    kinds = kinds_of(work)
    assert {"pool", "shard", "takedown shard", "table select", "samples.parquet", "LATEST", "status.json"} <= set(kinds)
    damaged = []
    for kind, paths in kinds.items():
        rewritten = kind in ("status.json", "catalog.journal")  # by the next build, where they are gone
        if kind not in BY_THEMSELVES and not (rewritten and damage is lose):
            damaged.append(max(paths, key=lambda path: path.stat().st_mtime_ns))  # of the newest version
            damage(damaged[-1])
    code, out = verify(work, capsys, "--deep", "--json")
    assert code == 1
    found = {finding["file"] for finding in json.loads(out)["findings"]}
    assert found == {str(path.relative_to(work)) for path in damaged}
    assert main(["repair", str(work)]) == 0, capsys.readouterr().out
    assert contents(work, *CHANGING) == before
    assert small.requests == []


def test_a_release_in_a_folder_of_another_name_gets_no_pointer(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = (work / "releases/LATEST").read_text().strip()
    shutil.copytree(work / "releases" / newest, work / "releases/mine")
    code, out = verify(work, capsys)
    assert (code, "LATEST" in out) == (0, False), out
    assert main(["repair", str(work)]) == 0
    assert not (work / "releases/.LATEST").exists()


@pytest.mark.slow
def test_an_older_takedown_that_is_made_again_does_not_become_the_newest(work: Path, small: Small) -> None:
    cuts = []
    for number in (5, 6):
        assert main(["takedown", str(work), "--url", f"{small.root}{number}.png"]) == 0
        cuts.append((work / "releases/LATEST").read_text().strip())
    before = contents(work / "releases")
    flip_bit(work / "releases" / cuts[0] / "mixture.json", random.Random(1))
    assert main(["repair", str(work)]) == 0
    assert contents(work / "releases") == before
    assert (work / "releases/LATEST").read_text().strip() == cuts[1], "else picture 6 is in the newest release again"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["catalog.duckdb", "catalog.snapshot"])
def test_damage_to_the_catalogue_or_its_snapshot_is_found_and_mended(
    work: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(work / kind)
    code, out = verify(work, capsys)
    assert code == 1
    assert kind in out
    assert main(["repair", str(work)]) == 0, capsys.readouterr().out
    assert verify(work, capsys)[0] == 0


def test_with_database_and_snapshot_damaged_the_message_says_what_to_do(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(work / "catalog.duckdb")
    (work / "catalog.snapshot").write_bytes(b"")
    code, out = verify(work, capsys)
    assert (code, "take both from a backup" in out) == (1, True)
    assert main(["repair", str(work), "--yes"]) == 1
    told = capsys.readouterr().err
    assert "the snapshot is damaged" in told
    assert "take it from a backup, or give the build an empty work folder" in told


@pytest.mark.slow
def test_a_damaged_table_of_downloads_costs_only_the_rows_without_a_picture(
    work: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = contents(work / "releases")
    for path in kinds_of(work)["table fetched"]:
        flip(path)
    assert main(["repair", str(work)]) == 1
    out = capsys.readouterr().out
    assert "2 rows must be downloaded again" in out
    assert f"to go on: plantmix repair {work} --yes" in out
    assert small.requests == []
    assert main(["repair", str(work), "--yes"]) == 0, capsys.readouterr().out
    assert sorted(small.requests) == ["GET /24.png HTTP/1.1", "GET /25.png HTTP/1.1"]
    assert contents(work / "releases") == releases


@pytest.mark.slow
def test_shards_that_lost_their_pool_file_too_are_packed_from_what_the_web_gives(
    work: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = contents(work / "releases")
    flip_byte(kinds_of(work)["pool"][0], 600)  # in the first picture
    for kind in ("shard", "takedown shard"):
        for path in kinds_of(work)[kind]:
            path.write_bytes(bytes(1000))  # what is left of a shard would give its pictures back
    assert main(["repair", str(work)]) == 1
    assert "1 rows must be downloaded again from 127.0.0.1" in capsys.readouterr().out
    assert main(["repair", str(work), "--yes"]) == 0, capsys.readouterr().out
    assert len(small.requests) == 1
    assert contents(work / "releases") == releases
    assert not (work / "scratch").exists() or not list((work / "scratch").iterdir())


@pytest.mark.slow
def test_what_only_the_web_can_give_is_asked_for_and_what_it_lost_is_named(
    work: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = contents(work / "releases")
    shutil.rmtree(work / "releases")
    for path in kinds_of(work)["pool"]:
        path.unlink()
    code = main(["build", str(write_config(work.parent, small.root))])
    assert code == 1
    err = capsys.readouterr().err
    assert "/pool: 3 of 3 recorded files are gone" in err
    assert f"`plantmix repair {work}`" in err
    gone = small.folder / "web/5.png"
    body = gone.read_bytes()
    gone.unlink()
    try:
        assert main(["repair", str(work)]) == 1
        assert "23 rows must be downloaded again from 127.0.0.1" in capsys.readouterr().out
        assert small.requests == []
        assert main(["repair", str(work), "--yes"]) == 0
    finally:
        gone.write_bytes(body)
    out = capsys.readouterr().out
    assert "1 pictures are lost for good; later releases lack them" in out
    assert f"{small.root}5.png: http_404" in out
    assert len(small.requests) == 23
    assert set(contents(work / "releases")) != set(releases)


def test_a_damaged_takedown_list_or_record_is_named_with_its_cost(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (record,) = kinds_of(work)["takedown release.json"]
    cut(record)
    flip(work / "takedowns.jsonl")
    code, out = verify(work, capsys)
    assert code == 1
    assert "takedowns.jsonl: " in out
    assert "pictures that were taken down may come into the next build" in out
    assert f"{record.relative_to(work)}: " in out
    assert main(["repair", str(work)]) == 1
    assert "lost: its record no longer says what was taken out" in capsys.readouterr().out


def oldest_first(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.slow
def test_placements_of_a_version_without_arranged_samples_come_back_from_its_samples(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = kinds_of(work)
    older = oldest_first(kinds["table arranged"])[0]
    (placed,) = [
        path
        for path in kinds["table pack"]
        if "shard" in pq.read_schema(path).names
        and path.stat().st_mtime_ns < oldest_first(kinds["table arranged"])[2].stat().st_mtime_ns
        and pq.read_table(path)["split"][0].as_py() == "heldout"
    ]
    sound = placed.read_bytes()
    flip(older)
    flip(placed)
    assert main(["repair", str(work)]) == 0, capsys.readouterr().out
    assert placed.read_bytes() == sound
    assert f"{placed.relative_to(work)}: made again, as recorded" in capsys.readouterr().out


@pytest.mark.slow
def test_damaged_placements_that_no_version_uses_any_more_are_removed(
    work: Path, small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture comes anew and lies elsewhere, so the build packs its shard by another part than before."""
    releases, kinds = contents(work / "releases"), kinds_of(work)
    placed = oldest_first(kinds["table pack"])[-1]
    member = f"{pq.read_table(placed)['sample_id'][0]}.jpg".encode()
    (pool,) = [path for path in kinds["pool"] if member in path.read_bytes()]
    flip_byte(pool, pool.read_bytes().index(member) + 600)  # in a picture of the last shard
    for kind in ("shard", "takedown shard"):
        for path in kinds[kind]:
            path.write_bytes(bytes(1000))
    for path in (placed, oldest_first(kinds["table arranged"])[-1], *kinds["samples.parquet"]):
        flip(path)
    assert main(["repair", str(work), "--yes"]) == 0, capsys.readouterr().out
    assert f"{placed.relative_to(work)}: removed, no version uses it any more" in capsys.readouterr().out
    assert contents(work / "releases") == releases


def holds(path: Path, sample_id: str) -> bool:
    if path.suffix == ".tar":
        return sample_id.encode() in path.read_bytes()
    return sample_id in pq.read_table(path)["sample_id"].to_pylist()


@pytest.mark.slow
def test_a_sample_of_flipped_bits_is_found_and_cured(
    work: Path, small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit in every kind of file a round, many kinds at once; the catalogue in three forms, one a round."""
    rng, num_flipped = random.Random(7), 0
    taken = tables.sample_id("list", f"{small.root}3.png")
    releases = contents(work / "releases")
    for number in range(3):
        copy = tmp_path / str(number) / "work"
        shutil.copytree(work, copy, copy_function=shutil.copy2)
        damaged = []
        for kind, paths in kinds_of(copy).items():
            vouching = ("catalog.duckdb", "catalog.snapshot", "catalog.journal")  # each stands in for the others
            if kind in ("takedown release.json", "takedowns.jsonl", *vouching) and kind != vouching[number % 3]:
                continue
            if kind in ("pool", "table fetched"):  # nobody is asked for the picture that was taken down
                paths = [path for path in paths if not holds(path, taken)]
            if kind.startswith("table"):  # older versions are made again when a build goes back to them
                paths = sorted(paths, key=lambda path: path.stat().st_mtime_ns)[-1:]
            damaged.append(rng.choice(paths))
            flip_bit(damaged[-1], rng)
        num_flipped += len(damaged)
        code, out = verify(copy, capsys, "--deep", "--json")
        assert code == 1
        found = {finding["file"] for finding in json.loads(out)["findings"]}
        unnamed = {str(path.relative_to(copy)) for path in damaged} - found
        assert not unnamed
        assert main(["--quiet", "repair", str(copy), "--yes"]) == 0, capsys.readouterr().out
        assert contents(copy / "releases") == releases
        shutil.rmtree(copy)
    assert num_flipped >= 75
