"""Commands run after each other over one work folder: what one leaves is what the next one goes by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import hash_tree, loopback, write_small_config
from misbehaving.answers import encode, pixels, send, send_picture
from misbehaving.numbered import NumberedPictures
from sealed import flip_byte

from manifests.contract.reader import open_reader
from pipeline.cli import main

NUM_PICTURES = 6
COPY, MISSING = NUM_PICTURES, NUM_PICTURES + 1  # a near copy of picture 0, worse than it; one that fails for now


class Web(NumberedPictures):
    """One of its pictures fails until it is `mended`."""

    mended = False

    def answer(self, sock: Any, number: int) -> None:
        if number == MISSING and not self.mended:
            send(sock, "500 Internal Server Error")
        elif number == COPY:
            send_picture(sock, encode(pixels(60, 40, seed=0), quality=80))
        else:
            super().answer(sock, number)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as made:
        yield made


def write_config(folder: Path, web: Web, name: str = "small", **changes: Any) -> Path:
    """Two domains, a caption that a rule of the preset drops, a near copy, and a picture that is not there yet."""
    sources = []
    for domain, numbers in (("plant", [0, 1, 2, *range(6, MISSING + 1)]), ("general", range(3, 6))):
        captions = ["IMG_0042" if n == 1 else f"a photo of plant number {n} in the field" for n in numbers]
        rows = [f"{web.url_of(n)},{caption}" for n, caption in zip(numbers, captions, strict=True)]
        (folder / f"{domain}.csv").write_text("\n".join(["url,caption", *rows]))
        source = {"name": domain, "domain": domain, "table": str(folder / f"{domain}.csv")}
        columns = {"url": "url", "caption": "caption"}
        sources.append(source | {"columns": columns, "defaults": {"licence": "CC0"}})
    rules = [{"domains": ["plant"], "preset": "plant", "max_chars": None}, {"preset": "general"}]
    sections = {"fetch": loopback(robots_txt=False), "caption": {"rules": rules}} | changes
    return write_small_config(folder, *sources, file=name, **sections)


@pytest.fixture(scope="module")
def built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    assert main(["--quiet", "build", str(write_config(folder, web))]) == 0
    return folder


@pytest.fixture
def folder(built: Path, web: Web, tmp_path: Path) -> Path:
    """A copy of the build, and its config; the picture that fails fails again."""
    web.mended = False
    shutil.copytree(built / "work", tmp_path / "work")
    write_config(tmp_path, web)
    return tmp_path


def latest(folder: Path) -> str:
    return (folder / "work/releases/LATEST").read_text().strip()


def damage(folder: Path, stage: str) -> None:
    """Flip a byte of the newest table of a stage."""
    flip_byte(max((folder / "work/tables" / stage).glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns))


def num_sealed(folder: Path) -> int:
    with open_reader(str(folder / "work")) as connection:
        return int(connection.sql("SELECT count(*) FROM current_stages").fetchall()[0][0])


# ---- build, repair


@pytest.mark.slow
def test_a_repair_that_would_make_another_release_says_so_and_makes_none(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = hash_tree(folder / "work/releases")
    damage(folder, "select")
    other = write_config(folder, web, "other", caption={"rules": [{"preset": "plant", "max_words": 3}]})
    assert main(["repair", str(folder / "work"), str(other)]) == 1
    said = capsys.readouterr().out
    assert "caption: rules: " in said
    assert f"to make that release: plantmix build {other}" in said
    assert hash_tree(folder / "work/releases") == releases
    assert main(["repair", str(folder / "work")]) == 0
    assert hash_tree(folder / "work/releases") == releases


@pytest.mark.slow
def test_a_repair_says_that_a_release_waits_for_tables_that_it_may_not_make_again(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = hash_tree(folder / "work/releases")
    for path in (folder / "work/tables/pack").glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))  # the end, where a reader begins
    damaged = folder / "work/releases" / latest(folder) / "samples.parquet"
    damaged.unlink()
    changed = write_config(folder, web, caption={"rules": [{"preset": "plant", "max_words": 3}]})
    assert main(["repair", str(folder / "work"), str(changed)]) == 1
    assert ": not yet: a table that it is made from is damaged: " in capsys.readouterr().out
    assert main(["repair", str(folder / "work")]) == 0
    assert hash_tree(folder / "work/releases") == releases


@pytest.mark.slow
def test_a_lost_shard_is_seen_after_a_build_of_another_release_has_forgotten_it(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    releases = hash_tree(folder / "work/releases" / (first := latest(folder)))
    next((folder / "work/releases" / first / "shards").glob("*.tar")).unlink()
    other = write_config(folder, web, mix={"ratio": {"plant": 2, "general": 1}})
    assert main(["build", str(other)]) == 0
    assert latest(folder) != first
    assert main(["verify", str(folder / "work")]) == 1
    assert main(["repair", str(folder / "work")]) == 1
    assert f"releases/{first}: not yet: not all of its shards are recorded." in capsys.readouterr().out
    assert main(["build", str(write_config(folder, web))]) == 0
    assert hash_tree(folder / "work/releases" / first) == releases
    assert main(["verify", str(folder / "work")]) == 0


@pytest.mark.slow
def test_a_repair_mends_what_comes_before_a_changed_takedown_list(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["takedown", str(folder / "work"), "--url", web.url_of(2)]) == 0
    releases = hash_tree(folder / "work/releases")
    damage(folder, "caption")
    assert main(["repair", str(folder / "work")]) == 0
    damage(folder, "select")
    assert main(["repair", str(folder / "work")]) == 1
    assert "select: choice.takedowns: " in capsys.readouterr().out
    assert hash_tree(folder / "work/releases") == releases


def test_a_mix_that_is_refused_is_not_the_config_of_the_last_build(folder: Path, web: Web) -> None:
    releases = hash_tree(folder / "work/releases")
    other = write_config(folder, web, "other", caption={"rules": [{"preset": "plant", "max_words": 3}]})
    assert main(["mix", str(other)]) == 2
    damage(folder, "caption")
    assert main(["repair", str(folder / "work")]) == 0
    assert hash_tree(folder / "work/releases") == releases
    assert main(["verify", str(folder / "work")]) == 0


# ---- retry, takedown


@pytest.mark.parametrize("mended", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_near_copy_is_taken_down_after_a_retry(
    folder: Path, web: Web, mended: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    web.mended = mended
    before = num_sealed(folder)
    assert main(["retry", str(folder / "work")]) == 0
    assert f"{int(mended)} more pictures" in capsys.readouterr().out
    assert num_sealed(folder) == before
    assert main(["takedown", str(folder / "work"), "--url", web.url_of(COPY)]) == 0
    said = capsys.readouterr().out
    assert "taken down: 1 images" in said
    assert "of these, kept in place of a near copy that was asked for: 1 images" in said


@pytest.mark.slow
def test_a_near_copy_is_taken_down_while_the_next_build_has_not_decided_yet(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_config(folder, web, dedup={"radius": 2})
    assert main(["build", str(other), "--to", "dedup"]) == 0
    assert main(["takedown", str(folder / "work"), "--url", web.url_of(COPY)]) == 0
    assert "taken down: 1 images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_takedown_without_decisions_is_refused_until_they_are_made_again(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "work/tables/select").glob("*.parquet"):
        path.unlink()
    before = hash_tree(folder / "work/releases")
    assert main(["takedown", str(folder / "work"), "--url", web.url_of(COPY)]) == 2
    assert "does not hold the decisions that it was made by" in capsys.readouterr().err
    assert hash_tree(folder / "work/releases") == before
    assert not (folder / "work/takedowns.jsonl").exists()
    assert main(["repair", str(folder / "work")]) == 0
    assert main(["takedown", str(folder / "work"), "--url", web.url_of(COPY)]) == 0
    assert "taken down: 1 images" in capsys.readouterr().out


def test_a_retry_that_brings_nothing_leaves_the_release(folder: Path) -> None:
    releases = hash_tree(folder / "work/releases")
    assert main(["retry", str(folder / "work")]) == 0
    assert main(["verify", str(folder / "work"), "--deep"]) == 0
    assert main(["build", str(folder / "small.yaml")]) == 0
    assert hash_tree(folder / "work/releases") == releases


# ---- plan choose, mix


def write_mixture(folder: Path, num_samples: float | None) -> Path:
    path = folder / "mixture.json"
    path.write_text(json.dumps({"ratio": {"plant": 0.5, "general": 0.5}, "limits": {"num_samples": num_samples}}))
    return path


@pytest.mark.parametrize(
    ("chosen_for", "num_drawn"),
    [(4.0, 4), *(pytest.param(number, 8, marks=pytest.mark.slow) for number in (1000.0, None))],
)
def test_a_mixture_is_drawn_up_to_the_samples_it_was_chosen_for(
    folder: Path, web: Web, chosen_for: float | None, num_drawn: int
) -> None:
    mixture = write_mixture(folder, chosen_for)
    config = write_config(folder, web, mix={"mixture": str(mixture), "max_epochs": 2})
    assert main(["mix", str(config)]) == 0
    record = json.loads((folder / "work/releases" / latest(folder) / "release.json").read_text())
    assert record["counts"]["samples"] == num_drawn


def test_more_samples_than_a_mixture_was_chosen_for_are_a_contradiction(
    folder: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    mixture = write_mixture(folder, 4.0)
    config = write_config(folder, web, mix={"mixture": str(mixture), "num_samples": 5})
    assert main(["mix", str(config), "--dry-run"]) == 2
    assert "mix.num_samples: 5 is more than the 4 samples that" in capsys.readouterr().err
