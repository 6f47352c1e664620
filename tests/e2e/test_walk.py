"""Short walks over the commands: after each of them, a clean build of the same inputs gives the same release."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from walk.drawing import COMMANDS, WRITERS, Action, draw, shorten
from walk.oracle import DifferenceError
from walk.walker import walking

from manifests.catalog import Catalog


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
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
    for _ in range(105):  # walks of 40 commands
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
