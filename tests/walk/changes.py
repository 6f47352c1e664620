"""Every change that a walk may make to the inputs and the settings.

A change names the fault (FAULTS of drawing.py) that it would show; it is left out while `off` holds that name.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable

from walk.web import NUM_MOTIFS, picture
from walk.world import (
    CAPTIONS,
    LICENCES,
    MEMBERS,
    MORE,
    NAMES_OF,
    ONE_OWNER,
    OWNERS,
    SETTINGS,
    World,
    write_file,
)

Change = Callable[[World, random.Random], str | None]
CHANGES: dict[str, tuple[Change, float]] = {}
"""Each change and how often it is made; it says what it did, or None when there was nothing to do."""


def change(weight: float) -> Callable[[Change], Change]:
    """Register a change."""

    def register(function: Change) -> Change:
        CHANGES[function.__name__] = (function, weight)
        return function

    return register


@change(5)
def setting(world: World, rng: random.Random) -> str | None:
    values = {name: of for name, (of, _, fault) in SETTINGS.items() if world.may(fault)}
    values |= {"run.executor": list(world.executors)}
    values |= {"dedup.semantic": world.semantic} if world.may("C5") else {}
    names = [name for name, of in values.items() if len(of) > 1]
    name = rng.choices(names, [SETTINGS[name][1] * world.favoured.get(name, 1.0) for name in names])[0]
    world.values[name] = rng.choice([value for value in values[name] if value != world.values[name]])
    return f"{name}: {json.dumps(world.values[name])}"


@change(3)
def row(world: World, rng: random.Random) -> str | None:
    """Add, remove or edit a row of a table; an address keeps the rows that have it, so that what it said is known."""
    name = rng.choice(["list", "list", "list", "named", "exam"])
    rows = world.rows[name]
    spare = [key for key in (world.keys_of_list() if name == "list" else NAMES_OF[name]) if key not in rows]
    what = rng.choice(["add", "remove", "edit", "edit"])
    if what == "add" and spare:
        key = rng.choice(spare)
        made = world._row(key) if name == "list" else dict(rows[min(rows)])
        world.rows[name] = {each: made if each == key else rows[each] for each in sorted([*rows, key])}
    elif what == "remove" and len(rows) > 2:
        key = rng.choice(sorted(rows))
        del rows[key]
    else:
        key = rng.choice(sorted(rows))
        column = rng.choice(["caption", "licence", "owner"])
        owners = (*OWNERS, *ONE_OWNER) if world.may("letters") else OWNERS
        values = {"caption": CAPTIONS, "licence": LICENCES, "owner": owners}[column]
        rows[key] = rows[key] | {column: rng.choice([value for value in values if value != rows[key][column]])}
        what = f"edit {column} of"
    world.write_tables()
    return f"{name}: {what} {key}"


@change(4)
def file(world: World, rng: random.Random) -> str | None:
    """Add, remove or replace one file of a folder; the other picture may have the same size, and the same time."""
    name = rng.choice(sorted(NAMES_OF))
    file_name = rng.choice(sorted(NAMES_OF[name]))
    form, path = NAMES_OF[name][file_name], world.place(name) / file_name
    is_watched = name == "own" or path.suffix in (".bmp", ".jpg")
    if not is_watched and not world.may("C2"):
        return None
    content = picture(rng.randrange(NUM_MOTIFS), form)
    if not path.exists():
        write_file(path, content)
        return f"{name}: {file_name} comes"
    before = path.read_bytes()
    if rng.random() < 0.25 and sum(1 for each in NAMES_OF[name] if (world.place(name) / each).exists()) > 2:
        path.unlink()
        return f"{name}: {file_name} goes"
    if rng.random() < 0.2:  # half of it is copied, into the room for all
        content = before[: len(before) // 2] + bytes(len(before) - len(before) // 2)
    if content == before or (len(content) == len(before) and not world.may("C1")):
        return None
    keeps_time = len(content) == len(before) and rng.random() < 0.3 and world.may("C9")
    write_file(path, content, path.stat() if keeps_time else None)
    return f"{name}: {file_name} replaced, {len(before)} to {len(content)} bytes{', same time' if keeps_time else ''}"


@change(1)
def words(world: World, rng: random.Random) -> str | None:
    """Another text beside a picture."""
    path = (world.place("own") / rng.choice(sorted(NAMES_OF["own"]))).with_suffix(".txt")
    path.write_text(rng.choice(CAPTIONS))
    return f"own: {path.name}"


@change(1.5)
def joined(world: World, rng: random.Random) -> str | None:
    """Another table says something else of a row of the list, or nothing any more."""
    key = rng.choice(world.keys_of_list())
    if key in world.said and rng.random() < 0.4:
        del world.said[key]
    else:
        text = rng.choice([*CAPTIONS, f"a leaf that {rng.randrange(50)} people saw"])
        world.said = dict(sorted({**world.said, key: (rng.choice(["caption", "trait"]), text)}.items()))
    world.write_tables()
    return f"text of another table for {key}: {world.said.get(key)}"


@change(1.5)
def member(world: World, rng: random.Random) -> str | None:
    """Another picture or text in a tar, one more, or one less; the second tar may hold keys of the first."""
    samples, forms = rng.choice([(world.members, MEMBERS), (world.members, MEMBERS), (world.more, MORE)])
    key = rng.choice([each for each in sorted(forms) if forms is MEMBERS or each not in MEMBERS or world.may("texts")])
    if key in samples and len(samples) > 1 + (forms is MEMBERS) and rng.random() < 0.3:
        del samples[key]
    else:
        motif, text = samples.get(key, (13, CAPTIONS[0]))
        samples[key] = (motif, rng.choice(CAPTIONS)) if rng.random() < 0.5 else (rng.randrange(NUM_MOTIFS), text)
        ordered = sorted(samples.items())
        samples.clear()
        samples.update(ordered)
    world.write_tar()
    return f"tar {1 + (forms is MORE)}: {key} {samples.get(key)}"


@change(1.5)
def other_place(world: World, rng: random.Random) -> str | None:
    """The path of a source names a copy, in which some pictures are others of the same size."""
    name = rng.choice(sorted(NAMES_OF))
    before = world.place(name)
    world.version[name] += 1
    shutil.copytree(before, world.place(name))
    replaced = []
    for file_name, form in NAMES_OF[name].items():
        path = world.place(name) / file_name
        is_open = form == "ppm" and not world.may("C2")
        if form in ("bmp", "ppm") and path.exists() and rng.random() < 0.6 and world.may("C1") and not is_open:
            path.write_bytes(picture(rng.randrange(NUM_MOTIFS), form))
            replaced.append(file_name)
    return f"{name}: path of v{world.version[name]}, others: {', '.join(replaced)}"


@change(1)
def source(world: World, rng: random.Random) -> str | None:
    """Add or take out a source or the evaluation set, or change a priority."""
    name = rng.choice(["own", "named", "tar", "exam", "exam"])
    if name != "exam" and rng.random() < 0.4:
        world.priorities[name] = rng.choice([value for value in (-1, 1, 2) if value != world.priorities.get(name)])
        return f"{name}: priority {world.priorities[name]}"
    if name == "own":
        return None  # the ratio names its domain
    world.sources ^= {name}
    return f"{name}: {'there' if name in world.sources else 'gone'}"


@change(0.5)
def old_times(world: World, rng: random.Random) -> str | None:
    """All inputs get the times that another machine gave them."""
    moment = 1e9 + rng.randrange(1_000_000)
    for path in (world.folder / "inputs").rglob("*"):
        os.utime(path, (moment, moment))
    return "times set back"


@change(0.4)
def other_clock(world: World, rng: random.Random) -> str | None:
    world.clock_seconds = rng.choice([0.0, -4e7, 3e6, -3600.0])
    return f"clock: {world.clock_seconds:+.0f} s"


@change(0.6)
def healing(world: World, rng: random.Random) -> str | None:
    if world.web.num_healed == 3:
        return None
    world.web.num_healed += 1
    return f"{world.web.num_healed} of 3 late addresses answer now"


@change(0.6)
def move(world: World, rng: random.Random) -> str | None:
    """The work folder moves."""
    before = world.work
    if not before.exists():
        return None
    world.num_moves += 1
    before.rename(world.work)
    return "work folder moved"


# ---- what comes before or after a command (BEFORE and AFTER of drawing.py)

_LIMITS = {
    "fetch.image.min_side_px": (32, 46),
    "fetch.image.max_aspect_ratio": (20.0, 3.0),
    "fetch.image.max_body_bytes": (50_000_000, 6_000),
    "fetch.network.robots_txt": (False, True),
    "fetch.network.x_robots_directives": ([], SETTINGS["fetch.network.x_robots_directives"][0][0]),
    "fetch.network.consent_signals": ([], SETTINGS["fetch.network.consent_signals"][0][0]),
}
"""What refuses pictures: the loose value and the strict one."""


@change(0)
def other_pixels(world: World, rng: random.Random) -> str | None:
    """Pictures are stored in another size or quality."""
    name = rng.choice(["fetch.image.size_px", "fetch.image.jpeg_quality"])
    world.values[name] = next(value for value in SETTINGS[name][0] if value != world.values[name])
    return f"{name}: {world.values[name]}"


@change(0)
def leaving(world: World, rng: random.Random) -> str | None:
    """A row whose picture was taken down leaves the list, as its owner will have asked there too."""
    keys = sorted(world.taken_keys.intersection(world.rows["list"]))
    if not keys or len(world.rows["list"]) < 4:
        return None
    key = rng.choice(keys)
    del world.rows["list"][key]
    world.write_tables()
    return f"list: remove {key}"


@change(0)
def stricter(world: World, rng: random.Random) -> str | None:
    """All that refuses pictures is switched on."""
    values = {name: strict for name, (_, strict) in _LIMITS.items() if world.may(SETTINGS[name][2])}
    world.values |= values
    return json.dumps(values)


@change(0)
def looser(world: World, rng: random.Random) -> str | None:
    """A limit that refuses pictures is loosened, or all are."""
    names = [
        name for name, (loose, _) in _LIMITS.items() if world.values[name] != loose and world.may(SETTINGS[name][2])
    ]
    if not names:
        return None
    values = {name: _LIMITS[name][0] for name in rng.choice([names, [rng.choice(names)]])}
    world.values |= values
    return json.dumps(values)
