"""The inputs on the disk, the settings, and every change that a walk may make to them.

A change names the fault (FAULTS of walker.py) that it would show; it is left out while `off` holds that name.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from building import hash_tree
from tars import tar_of

from walk.web import NUM_MOTIFS, Web, picture

FORMS_OF_LIST = (
    *("jpg", "jpg", "jpg", "jpg", "jpg", "near", "near", "near", "png", "grey", "small", "wide"),
    *("noai", "tdm", "usage", "private", "iptc", "late", "late", "never", "gone"),
)
CAPTIONS = (
    "a ripe fruit on a wooden table in the morning",
    "red berries after the rain, seen from above",
    "a bottle that stands on a shelf of the shop",
    "IMG_0042.JPG",
    "untitled",
    "click here to buy now with free shipping",
    "x",
    "",
    "ein reifer Apfel, der auf einem alten Tisch aus Holz liegt",
    "leaf leaf leaf leaf leaf leaf leaf leaf leaf",
)
LICENCES = ("CC0-1.0", "CC-BY-4.0", "CC BY-NC 4.0", "all rights reserved", "")
OWNERS = ("Ann", "Bo", "Cy")
NAMES_OF = {  # files of the folders and the form of each; no ending of `named` and `exam` but .bmp and .jpg is watched
    "own": {"a.bmp": "bmp", "b.bmp": "bmp", "c.jpg": "jpg", "d.png": "png", "sub/e.jpg": "near", "f.bmp": "bmp"},
    "named": {"a.bmp": "bmp", "b.ppm": "ppm", "c": "jpg", "d.jpg": "jpg", ".hidden/e.jfif": "near", "f.ppm": "ppm"},
    "exam": {"a.bmp": "bmp", "b.ppm": "ppm", "c": "jpg"},
}
MEMBERS = {"m0": "jpg", "m1": "png", "m2": "near", "m3": "grey"}  # pictures of the tar and the form of each
_OPT_OUTS = ["noai", "noimageai", "noindex", "noimageindex", "noml", "none"]
_SIGNALS = ["content_usage", "tdm_reservation", "tdmrep_file", "iptc_data_mining"]
_MIDDLE = {"scorer": "middle", "max_score": 0.5}
_TWO_RULES = [{"preset": "plant", "domains": ["plant"]}, {"preset": "general"}]
SETTINGS: dict[str, tuple[list[Any], float, str]] = {  # the values, the first one first; how often; the fault it shows
    "fetch.image.min_side_px": ([32, 46, 60, 80], 1, "C6"),
    "fetch.image.max_aspect_ratio": ([20.0, 3.0], 0.5, "C6"),
    "fetch.image.size_px": ([64, 56], 0.2, ""),
    "fetch.image.resize": (["keep_ratio", "no"], 0.1, ""),
    "fetch.image.jpeg_quality": ([95, 90], 0.1, ""),
    "fetch.network.robots_txt": ([True, False], 0.7, "C3"),
    "fetch.network.x_robots_directives": ([_OPT_OUTS, ["noml"], []], 0.7, "C3"),
    "fetch.network.consent_signals": ([_SIGNALS, ["tdm_reservation"], []], 0.7, "C3"),
    "dedup.radius": ([4, 0, 8], 1, ""),
    "dedup.extra_captions": ([0, 2], 0.3, ""),
    "dedup.semantic": ([None], 1, "C5"),
    "caption.rules": ([[{"preset": "general"}], [{"preset": "plant"}], [{}], _TWO_RULES], 1, ""),
    "caption.text.members": ([[], ["sci", "sentence"]], 0.3, ""),
    "caption.text.seed": ([0, 1], 0.1, ""),
    "caption.text.choices": ([[{}], [{"any_of": ["caption", "trait"]}]], 0.3, ""),
    "score.plugins": ([[], [{"name": "middle", "scorer": "own_scorer:Middle"}]], 0.2, ""),
    "score.rules": ([[], [_MIDDLE | {"action": "blur"}], [_MIDDLE | {"action": "flag"}], [_MIDDLE]], 0.4, ""),
    "select.licences.deny": ([["all-rights-reserved"], ["CC-BY-NC"], []], 0.6, ""),
    "select.balance.caps": ([[], [{"by": "creator", "at_most": 3}], [{"by": "source", "about": 6}]], 0.4, ""),
    "mix.ratio": ([{"plant": 1, "general": 1}, {"plant": 3, "general": 1}], 1, ""),
    "mix.seed": ([0, 1, 2], 0.6, ""),
    "mix.max_epochs": ([2.0, 1.0], 0.4, ""),
    "mix.num_samples": ([None, 6], 0.3, ""),
    "mix.heldout": ([{"num_samples": {"plant": 2}}, {}, {"share": 0.2}], 0.6, ""),
    "pack.kind": (["mixed", "stratified"], 0.4, ""),
    "pack.samples_per_shard": ([5, 8], 0.4, ""),
    "run.fetch_part_size": ([8, 1000], 0.3, ""),
    "run.executor": (["inline"], 0.5, ""),
}


@dataclass
class World:
    """What a walk may change, and where it lies."""

    folder: Path
    web: Web
    off: frozenset[str] = frozenset()
    """Faults that are open still: what shows them is not done."""
    semantic: list[Any] = field(default_factory=lambda: [None])
    executors: tuple[str, ...] = ("inline",)
    favoured: Mapping[str, float] = field(default_factory=dict)
    """Settings that change so much more often."""
    values: dict[str, Any] = field(default_factory=lambda: {name: values[0] for name, (values, *_) in SETTINGS.items()})
    rows: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """By table and key: the rows that it has now."""
    version: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES_OF, 1))
    sources: set[str] = field(default_factory=lambda: {"list", "own", "named", "exam", "tar"})
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Captions that another table has for the list: a kind and a text, by row of that table."""
    members: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Pictures of the tar and the text beside each."""
    priorities: dict[str, int] = field(default_factory=dict)
    clock_seconds: float = 0.0
    num_moves: int = 0

    def __post_init__(self) -> None:
        (self.folder / "inputs").mkdir(parents=True)
        self.rows["list"] = {
            f"k{place:02}": self._row(place, form) for place, form in enumerate(FORMS_OF_LIST) if place % 5 != 4
        }
        for name, forms in NAMES_OF.items():
            for place, (file, form) in enumerate(forms.items()):
                if name == "own" or place % 3 != 2 or name == "exam":  # some files come later
                    write_file(self.place(name) / file, picture(_motif_of(name, place), form))
                (self.place(name) / file).parent.mkdir(parents=True, exist_ok=True)
                if name == "own":
                    (self.place(name) / file).with_suffix(".txt").write_text(CAPTIONS[place % 4])
            if name != "own":
                self.rows[name] = {
                    file: {"caption": CAPTIONS[place % 3], "licence": "CC0-1.0", "owner": OWNERS[place % 3]}
                    for place, file in enumerate(forms)
                }
        kinds = ("caption", "trait")
        self.said = {f"k{place:02}": (kinds[place % 2], f"a leaf that {place} people saw") for place in range(0, 14, 3)}
        self.members = {key: (13 + place, CAPTIONS[place]) for place, key in enumerate(list(MEMBERS)[:3])}
        self.write_tables()
        self.write_tar()

    def _row(self, place: int, form: str) -> dict[str, str]:
        motif = place % 5 if form == "near" else place  # near copies are of the first ones
        values = {"url": self.web.url(motif % NUM_MOTIFS, form), "caption": CAPTIONS[place % len(CAPTIONS)]}
        return values | {"licence": LICENCES[place % 3], "owner": OWNERS[place % 3], "name": "Malus domestica"}

    @property
    def work(self) -> Path:
        """The work folder, which may be moved."""
        return self.folder / f"work-{self.num_moves}"

    def place(self, name: str) -> Path:
        """The folder that a source has now."""
        return self.folder / "inputs" / f"{name}-v{self.version[name]}"

    def may(self, fault: str) -> bool:
        """Whether a change that shows a fault is to be made."""
        return fault not in self.off

    def write_tables(self) -> None:
        """Write the three tables as they are now."""
        for name, rows in self.rows.items():
            key = "key" if name == "list" else "file"
            folder = self.folder / "inputs" if name == "list" else self.place(name)
            columns = [key, *next(iter(rows.values()), {"caption": ""})]
            with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, columns)
                writer.writeheader()
                writer.writerows({key: name_of, **row} for name_of, row in rows.items())

        for kind in ("caption", "trait"):
            with (self.folder / f"inputs/{kind}.csv").open("w", newline="", encoding="utf-8") as stream:
                rows = [(key, text) for key, (of, text) in self.said.items() if of == kind]
                csv.writer(stream).writerows([("key", "text"), *rows])

    def write_tar(self) -> None:
        """Write the tar as it is now."""
        members = []
        for key, (motif, text) in self.members.items():
            ending = "png" if MEMBERS[key] == "png" else "jpg"
            members += [(f"{key}.{ending}", picture(motif, MEMBERS[key])), (f"{key}.txt", text.encode())]
        (self.folder / "inputs/some.tar").write_bytes(tar_of(members))

    def config(self, work: Path, *, inline: bool = False) -> dict[str, Any]:
        """The configuration as it is now, for a work folder."""
        config: dict[str, Any] = {"name": "walk", "work_dir": str(work), "sources": [], "evaluation": []}
        said = {"caption": "caption", "licence": "licence", "rights_holder": "owner"}
        kinds: dict[str, dict[str, Any]] = {
            "list": {
                "domain": "plant", "table": str(self.folder / "inputs/list.csv"),
                "columns": {"url": "url", "record_key": "key", "taxon_scientific_name": "name", **said},
                "captions": [
                    {"join": str(self.folder / f"inputs/{kind}.csv"), "on": {"record_key": "key"}}
                    | {"text": "text", "kind": kind}
                    for kind in ("caption", "trait")
                ],
            },
            "tar": {
                "domain": "general", "webdataset": {"path": str(self.folder / "inputs/some.tar")},
                "defaults": {"licence": "CC0-1.0"},
            },
            "own": {
                "domain": "general", "folder": {"path": str(self.place("own")), "captions": "text_file"},
                "defaults": {"licence": "CC0-1.0", "creator": "Ann"},
            },
            "named": {
                "domain": "plant",
                "folder": {"path": str(self.place("named")), "table": "named.csv", "columns": {"file": "file", **said}},
            },
            "exam": {
                "unreadable": "report",
                "folder": {"path": str(self.place("exam")), "table": "exam.csv", "columns": {"file": "file"}},
            },
        }  # fmt: skip
        for name, kind in kinds.items():
            if name in self.sources:
                more = {"priority": self.priorities[name]} if name in self.priorities else {}
                config["evaluation" if name == "exam" else "sources"].append({"name": name, **kind, **more})
        for dotted, value in self.values.items():
            *sections, last = dotted.split(".")
            section = config
            for each in sections:
                section = section.setdefault(each, {})
            section[last] = value
        if "list" not in self.sources:  # no other source has traits
            del config["caption"]["text"]["choices"]
        if not config["score"]["plugins"]:
            config["score"]["rules"] = []
        config["fetch"]["network"] |= {
            "allow_private_addresses": True, "retries": 0,
            "limits": {"requests_per_second": None, "connections": 4},
        }  # fmt: skip
        config["run"] |= {"num_workers": 2, "max_passing_share": 1.0}
        if inline:
            config["run"] = {"executor": "inline", "max_passing_share": 1.0}
        return config

    def write_config(self, work: Path, *, inline: bool = False) -> str:
        """Write it, and give its path."""
        path = self.folder / ("clean.yaml" if inline else "walk.yaml")
        path.write_text(yaml.safe_dump(self.config(work, inline=inline), sort_keys=False, allow_unicode=True))
        return str(path)

    def fingerprint(self) -> str:
        """All that a release may depend on but the takedowns and what the web said: inputs and settings."""
        config = self.config(Path("work"), inline=True)
        used: list[Any] = [hash_tree(self.place(name)) for name in NAMES_OF if name in self.sources]
        files = [path for path in sorted((self.folder / "inputs").iterdir()) if path.is_file()]
        used += [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return hashlib.sha256(json.dumps([config, used], sort_keys=True).encode()).hexdigest()


def recipe_of(values: Mapping[str, Any]) -> str:
    """What decides which bytes of a picture are stored."""
    return f"{values['fetch.image.size_px']} px, quality {values['fetch.image.jpeg_quality']}"


def write_file(path: Path, content: bytes, stamp_of: os.stat_result | None = None) -> None:
    """Write a file in place, with the times that it had where they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if stamp_of is not None:
        os.utime(path, ns=(stamp_of.st_atime_ns, stamp_of.st_mtime_ns))


def _motif_of(name: str, place: int) -> int:
    return {"own": 5, "named": 11, "exam": 3}[name] + place


# ---- changes

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
    spare = [key for key in (_keys_of_list() if name == "list" else NAMES_OF[name]) if key not in rows]
    what = rng.choice(["add", "remove", "edit", "edit"])
    if what == "add" and spare:
        key = rng.choice(spare)
        made = world._row(int(key[1:]), FORMS_OF_LIST[int(key[1:])]) if name == "list" else dict(rows[min(rows)])
        world.rows[name] = {each: made if each == key else rows[each] for each in sorted([*rows, key])}
    elif what == "remove" and len(rows) > 2:
        key = rng.choice(sorted(rows))
        del rows[key]
    else:
        key = rng.choice(sorted(rows))
        column = rng.choice(["caption", "licence", "owner"])
        values = {"caption": CAPTIONS, "licence": LICENCES, "owner": OWNERS}[column]
        rows[key] = rows[key] | {column: rng.choice([value for value in values if value != rows[key][column]])}
        what = f"edit {column} of"
    world.write_tables()
    return f"{name}: {what} {key}"


def _keys_of_list() -> list[str]:
    return [f"k{place:02}" for place in range(len(FORMS_OF_LIST))]


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
    key = rng.choice(_keys_of_list())
    if key in world.said and rng.random() < 0.4:
        del world.said[key]
    else:
        text = rng.choice([*CAPTIONS, f"a leaf that {rng.randrange(50)} people saw"])
        world.said = dict(sorted({**world.said, key: (rng.choice(["caption", "trait"]), text)}.items()))
    world.write_tables()
    return f"text of another table for {key}: {world.said.get(key)}"


@change(1.5)
def member(world: World, rng: random.Random) -> str | None:
    """Another picture or text in the tar, one more, or one less."""
    key = rng.choice(sorted(MEMBERS))
    if key in world.members and len(world.members) > 2 and rng.random() < 0.3:
        del world.members[key]
    else:
        motif, text = world.members.get(key, (13, CAPTIONS[0]))
        text, motif = (rng.choice(CAPTIONS), motif) if rng.random() < 0.5 else (text, rng.randrange(NUM_MOTIFS))
        world.members = dict(sorted({**world.members, key: (motif, text)}.items()))
    world.write_tar()
    return f"tar: {key} {world.members.get(key)}"


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
    if world.web.healed:
        return None
    world.web.healed = True
    return "late addresses answer now"


@change(0.6)
def move(world: World, rng: random.Random) -> str | None:
    """The work folder moves."""
    before = world.work
    if not before.exists():
        return None
    world.num_moves += 1
    before.rename(world.work)
    return "work folder moved"
