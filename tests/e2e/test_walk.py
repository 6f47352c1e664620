"""Short walks over the commands: after each of them, a clean build of the same inputs gives the same release."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from building import release_of
from walk import laws, oracle
from walk.drawing import COMMANDS, OPEN, WRITERS, Action, draw, shorten
from walk.oracle import DifferenceError, is_named
from walk.running import Ran, run
from walk.walker import walking
from walk.web import NUM_MOTIFS
from walk.world import ONE_OWNER

from manifests.contract.catalog import Catalog


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
def test_every_command_leaves_what_a_clean_build_gives(tmp_path: Path, seed: int) -> None:
    with walking(tmp_path / "walk") as walk:
        steps = [step for action in draw(random.Random(seed), 20) if (step := walk.do(action)) is not None]
    assert sum(step.compared for step in steps) >= 4, "\n".join(walk.log)


@pytest.mark.slow
def test_a_walk_sees_a_build_that_overlooks_an_edited_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with walking(tmp_path / "walk") as walk:
        walk.do(("command", "build", 3))
        monkeypatch.setattr(Catalog, "input_sha256", lambda catalog, path, name=None: walk.world.folder.name)
        walk.do(("command", "build", 3))
        walk.world.rows["list"].popitem()
        walk.world.write_tables()
        with pytest.raises(DifferenceError, match="release"):
            walk.do(("command", "build", 3))


@pytest.mark.slow
def test_each_law_sees_what_breaks_it(tmp_path: Path) -> None:
    with walking(tmp_path / "walk", off=OPEN) as walk:
        walk.do(("command", "build", 3))
        world, newest = walk.world, release_of(walk.work)
        shown = laws.motifs_in(newest)
        assert len(shown) > 8
        laws.check_kin(newest, set(range(NUM_MOTIFS)) - shown)
        with pytest.raises(DifferenceError, match=r"kin: .* \[" + str(min(shown))):
            laws.check_kin(newest, {min(shown)})
        said = Ran(2, "", "holds 1 images that were taken down since")
        assert not laws.check_goes_out(said, newest, None, shown, by_name=False)
        for by_name, taken in ((False, shown), (True, set())):
            with pytest.raises(DifferenceError, match=r"goes out: .* holds"):
                laws.check_goes_out(Ran(0, "published", ""), newest, None, taken, by_name)
        with pytest.raises(DifferenceError, match=r"goes out: .* not sent whole"):
            laws.check_goes_out(Ran(0, "published", ""), newest, tmp_path, (), by_name=False)
        laws.check_scores(newest, [])
        with pytest.raises(DifferenceError, match="no number"):
            laws.check_scores(newest, [{"scorer": "unsure"}])
        laws.check_boxes(newest)
        rows = oracle.rows_in(walk.work)
        answering = next(row for row in rows if row["url"] and row["outcome"] == "ok")
        others = [row if row is not answering else row | {"outcome": "http_5xx"} for row in rows]
        laws.check_retried(others, rows, answered=set())
        with pytest.raises(DifferenceError, match=r"retried: \S+ is http_5xx, of a clean build ok$"):
            laws.check_retried(others, rows, answered={oracle.path_of(answering["url"])})
        laws.check_readers(newest, with_texts=False)
        shard = next(newest.glob("shards/*.tar"))
        content = shard.read_bytes()
        shard.write_bytes(content.replace(b"JFIF", b"JFIX", 1))  # in one picture, which both readers see
        laws.check_readers(newest, with_texts=False)
        shard.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        with pytest.raises(DifferenceError, match="readers: "):
            laws.check_readers(newest, with_texts=False)
        first = ["init", f"--domain=plant={world.tars}", "--out", str(world.first / "first.yaml")]
        world.first.mkdir()
        printed = run(first).out
        laws.check_init(world, first, printed)
        shutil.rmtree(world.first / "work")
        with pytest.raises(DifferenceError, match="no outcome for 6 rows"):
            laws.check_init(world, [f"--domain=plant={world.tars},{world.place('own')}"], printed)
        shutil.rmtree(world.first / "work")
        laws.check_init(world, [f"--domain=plant={world.place('own')}"], f"\n 1. not read: {world.place('own')}")


def test_owners_are_the_same_however_their_names_are_written() -> None:
    first, *others = ONE_OWNER
    assert all(is_named("owner", name, first) and name != first for name in others)
    assert not is_named("owner", "Ann", first)
    assert not is_named("url", others[0], first)


def test_a_walk_is_shortened_to_what_fails() -> None:
    actions: list[Action] = [("change", name, 0) for name in "12345678"] + [("command", "build", 0)]

    def fails(some: list[Action]) -> DifferenceError | None:
        names = "".join(name for _, name, _ in some)
        return DifferenceError("release", names) if "2" in names and "7" in names else None

    assert [name for _, name, _ in shorten(actions, "release", fails)] == ["2", "7", "build"]


def test_every_ordered_pair_of_commands_comes_about_as_often() -> None:
    """Also where readers change nothing, changes find nothing to do, and takedown cannot be done now and then."""
    rng, pairs, steps = random.Random(0), Counter[tuple[str, str]](), list[list[str]]()
    new = [False]  # whether something has changed since the last command
    for _ in range(165):  # walks of 40 commands
        steps.clear()
        for what, name, _ in draw(rng, 40, pairs, steps=steps, moved=lambda: new[0]):
            if what == "change":
                new[0] |= rng.random() < 0.7
            elif name != "takedown" or rng.random() < 0.5:
                pairs[steps[-1][0] if steps else "", name] += new[0]
                steps.append([name])
                new[0] = name in WRITERS and rng.random() < 0.6
    assert min(pairs[first, second] for first in COMMANDS for second in COMMANDS) >= 20
    assert pairs.total() < 1.3 * 20 * len(COMMANDS) ** 2
