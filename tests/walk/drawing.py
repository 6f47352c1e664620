"""What a walk does next, the rarest pair of commands first, and what it leaves out once it ended badly.

An action is (what, name, seed): all else follows from the world as it is then. So a walk can be done again without some
of its actions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from walk.changes import CHANGES
from walk.oracle import DifferenceError
from walk.world import SETTINGS

Action = tuple[str, str, int]

FAULTS = {  # what a walk leaves out while a fault is open: it would meet the same one again and again
    "A1": "repair without CONFIG",
    "A2": "takedown after retry",
    "C1": "a local picture replaced by one of the same size",
    "C2": "a file that a table names and whose ending is not watched",
    "C3": "other settings of robots.txt and consent",
    "C5": "dedup.semantic",
    "C6": "other limits of pictures",
    "C9": "a file replaced by one of the same size and time",
    "kin": "a picture made from one that was taken down, in a later release",
    "goes out": "publish and export of an older release that holds one",
    "letters": "owners whose names are written with other letters",
    "texts": "keys that stand in two tars, and a table of texts by key",
    "scores": "scores that are no numbers",
    "boxes": "boxes that are none",
    "retried": "a setting that decided in a round of retry is loosened",
    "init": "rows that init saw, and that have no outcome",
    "readers": "a release that webdataset, our loader or datasets does not read whole",
    "W1": "a damaged catalogue or samples.parquet, which DuckDB tells with a traceback",
}
OPEN: tuple[str, ...] = ()
"""Faults that are known and not mended yet: take one out as soon as it is."""
WRITERS = {"build": 4.0, "mix": 1.0, "retry": 1.0, "takedown": 1.5, "repair": 1.0, "repair CONFIG": 0.7}
READERS = {
    "publish": 0.3,
    "export": 0.3,
    "init": 0.2,
    "verify": 0.4,
    "verify --deep": 0.4,
    "diff": 0.3,
    "status": 0.3,
    "explain": 0.3,
    "query": 0.3,
    "report": 0.3,
}
COMMANDS = WRITERS | READERS
BEFORE = {  # a command: changes right before it, and how often each
    "repair": {"damage": 0.7},
    "repair CONFIG": {"damage": 0.7},
    "verify": {"damage": 0.2},
    "build": {"stricter": 0.1},  # retry takes the settings of the build before it
    "retry": {"healing": 0.5},
}
AFTER = {"takedown": {"other_pixels": 0.3, "leaving": 0.5}, "retry": {"looser": 0.6}}

FAVOURED = {  # what shows a fault comes so much more often in a walk that looks for it
    "A1": {"repair": 8.0, "damage": 1.0},
    "A2": {"retry": 4.0, "takedown": 4.0},
    "C1": {"file": 2.0, "other_place": 2.0},
    "C2": {"file": 4.0, "build": 2.0},
    "C3": {"setting": 2.0, "build": 3.0, **dict.fromkeys([name for name in SETTINGS if "network" in name], 8.0)},
    "C5": {"setting": 2.0, "row": 2.0, "build": 3.0, "dedup.semantic": 8.0},
    "kin": {"takedown": 4.0, "build": 2.0, "source": 2.0},
    "goes out": {"takedown": 4.0, "publish": 8.0, "export": 8.0},
    "letters": {"takedown": 8.0},
    "texts": {"member": 8.0, "build": 2.0},
    "scores": {"setting": 2.0, "build": 2.0, "score.unsure": 8.0},
    "boxes": {"setting": 2.0, "build": 2.0, "score.faulty": 8.0},
    "retried": {"retry": 4.0, "build": 4.0},
    "init": {"init": 20.0},
}


def draw(
    rng: random.Random,
    num_commands: int,
    pairs: Mapping[tuple[str, str], int] | None = None,
    favoured: Mapping[str, float] | None = None,
    steps: Sequence[Sequence[Any]] | None = None,
    moved: Callable[[], bool] = lambda: True,
) -> Iterator[Action]:
    """The actions of a walk. `pairs` counts which command came after which: what came seldom comes first.

    `steps` grows with each command that was done, its name first: one that cannot be done now is no part of a pair.
    `moved` says whether the next command meets something new; a step that does not is not counted.
    """
    changes = {name: weight for name, (_, weight) in CHANGES.items()} | {"damage": 0.0}  # of Walk, not of the world
    last, refused = "build", set[str]()
    yield "command", "build", rng.randrange(1 << 30)
    for _ in range(num_commands - 1):
        num_done, last = len(steps or ()), steps[-1][0] if steps else last
        seldom: Mapping[str, float] = COMMANDS
        if pairs is not None:
            fewest = min(pairs.get((last, name), 0) for name in COMMANDS if name not in refused)
            seldom = {name: 4.0 ** (fewest - pairs.get((last, name), 0)) for name in COMMANDS if name not in refused}
        last = _pick(rng, seldom, favoured or {})
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            yield "change", _pick(rng, changes, favoured or {}), rng.randrange(1 << 30)
        for kind, share in BEFORE.get(last, {}).items():
            if rng.random() < share:
                yield "change", kind, rng.randrange(1 << 30)
        for _ in range(5):
            if moved():
                break
            yield "change", _pick(rng, changes, favoured or {}), rng.randrange(1 << 30)
        yield "command", last, rng.randrange(1 << 30)
        for kind, share in AFTER.get(last, {}).items():
            if rng.random() < share:
                yield "change", kind, rng.randrange(1 << 30)
        refused = {*refused, last} if steps is not None and len(steps) == num_done else set()


def _pick(rng: random.Random, weights: Mapping[str, float], times: Mapping[str, float]) -> str:
    return rng.choices(list(weights), [weight * times.get(name, 1.0) for name, weight in weights.items()])[0]


def shorten(
    actions: Sequence[Action], kind: str, fails: Callable[[Sequence[Action]], DifferenceError | None], most: int = 60
) -> list[Action]:
    """Leave out what a difference of this kind does not need, ever smaller runs of actions, in so many tries."""
    kept, size = list(actions), max(1, len(actions) // 2)
    for _ in itertools.repeat(None, most):
        for start in range(0, len(kept) - 1, size):  # the last action is the one that fails
            fewer = kept[:start] + kept[min(start + size, len(kept) - 1) :]
            most -= 1
            if len(fewer) < len(kept) and (error := fails(fewer)) is not None and error.kind == kind:
                kept = fewer
                break
            if most <= 0:
                return kept
        else:
            if size == 1:
                return kept
            size = max(1, size // 2)
    return kept
