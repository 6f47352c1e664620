"""A picture that was taken down is asked of nobody again where the list knows its hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from building import write_small_config
from damaging import build_small, counting_web, kinds_of, make_pictures, write_config

from manifests.contract.reader import open_reader
from pipeline.cli import main


class Small:
    """The finished build, and the web that it came from."""

    def __init__(self, folder: Path, root: str, requests: list[str]) -> None:
        self.folder, self.root, self.requests = folder, root, requests

    def asked_for_taken(self) -> int:
        """Requests for the picture that was taken down; the counting begins anew."""
        asked = [line for line in self.requests if "/3.png" in line]
        self.requests.clear()
        return len(asked)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    make_pictures(tmp_path / "web")
    with counting_web(tmp_path / "web") as (root, requests):
        build_small(tmp_path, root)
        made = Small(tmp_path, root, requests)
        assert made.asked_for_taken() == 1
        yield made


def reasons_of(work: Path) -> dict[str, int]:
    with open_reader(str(work)) as sql:
        return dict(sql.sql("SELECT reason, count(*) FROM decisions WHERE NOT keep GROUP BY ALL").fetchall())


def without_addresses(listed: Path) -> None:
    """Make the list one of version 0.5.0, which kept none."""
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    listed.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "addresses"}) + "\n" for line in lines))


def test_a_fresh_folder_with_the_list_does_not_ask_for_it(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was found: it was downloaded from its owner's server once more."""
    fresh = small.folder / "fresh"
    (fresh / "work").mkdir(parents=True)
    shutil.copy(small.folder / "work/takedowns.jsonl", fresh / "work")
    config = str(write_config(fresh, small.root))
    assert main(["--quiet", "build", config]) == 0
    assert len(small.requests) == 25
    assert small.asked_for_taken() == 0
    assert reasons_of(fresh / "work") == {"takedown": 1, "http_404": 2}
    capsys.readouterr()
    assert main(["build", config]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main(["--quiet", "retry", str(fresh / "work")]) == 0
    assert main(["verify", str(fresh / "work"), "--deep"]) == 0
    assert main(["explain", str(fresh / "work"), f"{small.root}3.png"]) == 0
    assert "takedown" in capsys.readouterr().out
    assert small.asked_for_taken() == 0


def test_a_list_of_before_makes_one_request_that_is_the_last(small: Small) -> None:
    fresh = small.folder / "fresh"
    (fresh / "work").mkdir(parents=True)
    shutil.copy(small.folder / "work/takedowns.jsonl", fresh / "work")
    without_addresses(fresh / "work/takedowns.jsonl")
    config = str(write_config(fresh, small.root))
    assert main(["--quiet", "build", config]) == 0
    assert small.asked_for_taken() == 1
    assert reasons_of(fresh / "work") == {"takedown": 1, "http_404": 2}
    assert main(["build", config]) == 0
    lists = [sorted((folder / "work/takedowns.jsonl").read_text().splitlines()) for folder in (fresh, small.folder)]
    assert lists[0] == lists[1]


@pytest.mark.parametrize("is_old", [False, True])
def test_a_repair_does_not_ask_for_it(small: Small, is_old: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was found: the photographer was asked again for what he had taken down."""
    work = small.folder / "work"
    if is_old:
        without_addresses(work / "takedowns.jsonl")
    for kind in ("pool", "shard", "takedown shard"):
        for path in kinds_of(work)[kind]:
            path.unlink()
    assert main(["repair", str(work)]) == 1
    assert "23 rows must be downloaded again" in capsys.readouterr().out
    assert main(["repair", str(work), "--yes"]) in (0, 1)
    assert len(small.requests) == 23
    assert small.asked_for_taken() == 0
    assert reasons_of(work)["takedown"] == 1


def stored_bytes(work: Path, number: int) -> bytes:
    with open_reader(str(work)) as sql:
        query = "SELECT pool_file, f.offset, length FROM facts f JOIN candidates USING (sample_id) WHERE url LIKE ?"
        ((file, offset, length),) = sql.execute(query, [f"%/{number}.png"]).fetchall()
    return (work / "pool" / file).read_bytes()[offset : offset + length]


def test_a_purge_takes_the_bytes_out_of_the_pool(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was found: no command did."""
    work = small.folder / "work"
    taken, other = stored_bytes(work, 3), stored_bytes(work, 4)
    pool = work / "pool"
    assert any(taken in path.read_bytes() for path in pool.iterdir())
    releases = {path: path.read_bytes() for path in (work / "releases").rglob("*.tar")}
    capsys.readouterr()
    assert main(["status", str(work)]) == 0
    said = capsys.readouterr().out
    assert "of 1 pictures that were taken down, there still lie in\n  pool: 1 pictures; `plantmix takedown" in said
    (first,) = [line for line in said.splitlines() if ": 1 pictures; delete it" in line]
    assert Path(first.split(":")[0].strip()).is_dir()
    assert main(["takedown", str(work), "--purge"]) == 0
    assert "taken out of the pool: 1 pictures" in capsys.readouterr().out
    assert not any(taken in path.read_bytes() for path in pool.iterdir())
    assert any(other in path.read_bytes() for path in pool.iterdir())
    assert main(["--quiet", "build", str(small.folder / "small.yaml")]) == 0
    assert small.requests == []
    assert main(["verify", str(work), "--deep"]) == 0
    assert reasons_of(work) == {"takedown": 1, "http_404": 2}
    assert all(path.read_bytes() == content for path, content in releases.items())
    assert not any(taken in path.read_bytes() for path in pool.iterdir())
    assert main(["takedown", str(work), "--purge"]) == 0
    assert "taken out of the pool: 0 pictures" in capsys.readouterr().out
    assert main(["status", str(work)]) == 0
    assert "pool: " not in capsys.readouterr().out


def test_a_purged_picture_of_a_folder_is_not_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pictures(tmp_path / "own")
    for number in range(24):
        (tmp_path / f"own/{number}.txt").write_text(f"a square of many colours, number {number}")
    source = {
        "name": "own",
        "domain": "plant",
        "folder": {"path": str(tmp_path / "own")},
        "defaults": {"licence": "CC0-1.0"},
    }
    config = str(write_small_config(tmp_path, source, caption={"rules": [{}]}, run={"fetch_part_size": 10}))
    assert main(["--quiet", "build", config]) == 0
    work = tmp_path / "work"
    image = hashlib.sha256((tmp_path / "own/3.png").read_bytes()).hexdigest()
    with open_reader(str(work)) as sql:
        place = "SELECT pool_file, f.offset, length FROM facts f WHERE image_id = ?"
        ((file, offset, length),) = sql.execute(place, [image]).fetchall()
    taken = (work / "pool" / file).read_bytes()[offset : offset + length]
    assert main(["takedown", str(work), "--id", image, "--purge"]) == 0
    assert "taken out of the pool: 1 pictures" in capsys.readouterr().out
    assert main(["--quiet", "build", config]) == 0
    assert reasons_of(work) == {"takedown": 1}
    assert not any(taken in path.read_bytes() for path in (work / "pool").iterdir())
    assert main(["verify", str(work), "--deep"]) == 0
    assert "nothing to do" in [main(["build", config]), capsys.readouterr().out][1]


def test_no_picture_of_a_takedown_stands_in_a_report(small: Small) -> None:
    work, page = small.folder / "work", small.folder / "page.html"
    first = next(path for path in (work / "releases").iterdir() if path.is_dir() and holds_taken(path))
    samples = pq.read_table(first / "samples.parquet").to_pylist()
    assert main(["report", str(first), "--out", str(page)]) == 0
    shown = {row["sample_id"] for row in samples if row["sample_id"] in page.read_text()}
    (taken,) = {row["sample_id"] for row in samples if row["url"].endswith("/3.png")}
    sealed = {row["sample_id"] for row in samples if row["sample_id"] in (first / "report.html").read_text()}
    assert shown, "pictures of others"
    assert shown == sealed - {taken}


def holds_taken(release: Path) -> bool:
    return any(url.endswith("/3.png") for url in pq.read_table(release / "samples.parquet")["url"].to_pylist())
