"""The inputs on the disk, and the settings.

A setting names the fault (FAULTS of drawing.py) that it would show; it is left out while `off` holds that name.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from building import hash_tree
from tars import tar_of

from walk.web import NUM_MOTIFS, Web, picture

FORMS_OF_LIST = (
    *("jpg", "jpg", "jpg", "jpg", "jpg", "near", "near", "near", "png", "grey", "small", "wide"),
    *("noai", "tdm", "usage", "private", "iptc", "late", "late", "never", "gone", "mirrored"),
    *("latenoai", "latetdm", "lateprivate", "latesmall", "latewide", "latelong"),
)
_FIRST_LATE = FORMS_OF_LIST.index("latenoai")
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
ONE_OWNER = ("Zo\u00eb M\u00fcller", "Zoe\u0308 Mu\u0308ller", "ZO\u00cb\u00a0M\u00dcLLER")  # as others write the name
NAMES_OF = {  # files of the folders and the form of each; no ending of `named` and `exam` but .bmp and .jpg is watched
    "own": {"a.bmp": "bmp", "b.bmp": "bmp", "c.jpg": "jpg", "d.png": "png", "sub/e.jpg": "near", "f.bmp": "bmp"},
    "named": {"a.bmp": "bmp", "b.ppm": "ppm", "c": "jpg", "d.jpg": "jpg", ".hidden/e.jfif": "near", "f.ppm": "ppm"},
    "exam": {"a.bmp": "bmp", "b.ppm": "ppm", "c": "jpg"},
}
MEMBERS = {"m0": "jpg", "m1": "png", "m2": "near", "m3": "grey"}  # pictures of the first tar and the form of each
MORE = {"m0": "jpg", "m4": "near", "m5": "jpg"}  # of the second one
TAR_TEXT = "a leaf like picture number {} of the tar"
_OPT_OUTS = ["noai", "noimageai", "noindex", "noimageindex", "noml", "none"]
_SIGNALS = ["content_usage", "tdm_reservation", "tdmrep_file", "iptc_data_mining"]
_MIDDLE = {"scorer": "middle", "max_score": 0.5}
_UNSURE = [{"scorer": "unsure", "min_score": 0.1}, {"scorer": "unsure", "min_quantile": 0.05}]
_FAULTY = {"scorer": "faulty", "max_score": 0.3, "action": "blur"}
_REVERSED, _PIXELS, _TINY = [0.75, 0.75, 0.25, 0.25, 0.9], [8, 8, 40, 40, 0.9], [0.5, 0.5, 0.5001, 0.5001, 0.9]
_TWO_RULES = [{"preset": "plant", "domains": ["plant"]}, {"preset": "general"}]
SETTINGS: dict[str, tuple[list[Any], float, str]] = {  # the values, the first one first; how often; the fault it shows
    "fetch.image.min_side_px": ([32, 46, 60, 80], 1, "C6"),
    "fetch.image.max_aspect_ratio": ([20.0, 3.0], 0.5, "C6"),
    "fetch.image.max_body_bytes": ([50_000_000, 6_000], 0.5, "C6"),
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
    "score.unsure": ([[], [_UNSURE[0]], [_UNSURE[1]]], 1, "scores"),  # of a scorer that gives some pictures no number
    "score.faulty": ([None, _REVERSED, _PIXELS, _TINY], 1, "boxes"),  # what a detector gives as the box of a picture
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
    """Pictures of the first tar and the text beside each."""
    more: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The same of the second tar."""
    taken_keys: set[str] = field(default_factory=set)
    """Rows of the list whose pictures were taken down."""
    priorities: dict[str, int] = field(default_factory=dict)
    clock_seconds: float = 0.0
    num_moves: int = 0

    def __post_init__(self) -> None:
        (self.folder / "inputs").mkdir(parents=True)
        self.rows["list"] = {key: self._row(key) for key in self.keys_of_list() if int(key[1:]) % 5 != 4}
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
        own = [key for key in MORE if key not in MEMBERS or self.may("texts")]
        self.more = {key: (17 + place, CAPTIONS[place]) for place, key in enumerate(own)}
        self.write_tables()
        self.write_tar()

    def keys_of_list(self) -> list[str]:
        """The keys that the list may have."""
        num = len(FORMS_OF_LIST) if self.may("retried") else _FIRST_LATE
        return [f"k{place:02}" for place in range(num)]

    def _row(self, key: str) -> dict[str, str]:
        place = int(key[1:])
        form, caption = FORMS_OF_LIST[place], CAPTIONS[place % len(CAPTIONS)]
        if form in ("near", "mirrored"):  # copies are of the first ones, and every rule lets them pass
            motif, caption = place % 5, CAPTIONS[place % 3]
        elif place < _FIRST_LATE:
            motif = place
        else:  # what a retry gets is in the release, unless a limit refuses it
            motif, caption = NUM_MOTIFS - len(FORMS_OF_LIST) + place, CAPTIONS[place % 3]
        values = {"url": self.web.url(motif, form), "caption": caption}
        owner = ONE_OWNER[place % 3] if place % 7 == 1 and self.may("letters") else OWNERS[place % 3]
        return values | {"licence": LICENCES[place % 3], "owner": owner, "name": "Malus domestica"}

    @property
    def inputs(self) -> Path:
        """The folder of all inputs."""
        return self.folder / "inputs"

    @property
    def tars(self) -> Path:
        """The folder of the tars."""
        return self.inputs / "tars"

    @property
    def first(self) -> Path:
        """The folder of the config that `init` writes, and of its build."""
        return self.folder / "first"

    def keys_in(self, tar: Path) -> list[str]:
        """The samples of a tar."""
        return list(self.members if tar.stem == "some-0" else self.more)

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
        """Write the two tars, and the table of texts for the keys of the first, as they are now."""
        self.tars.mkdir(exist_ok=True)
        for number, (samples, forms) in enumerate(((self.members, MEMBERS), (self.more, MORE))):
            members = []
            for key, (motif, text) in samples.items():
                ending = "png" if forms[key] == "png" else "jpg"
                members += [(f"{key}.{ending}", picture(motif, forms[key])), (f"{key}.txt", text.encode())]
            (self.tars / f"some-{number}.tar").write_bytes(tar_of(members))
        with (self.folder / "inputs/about.csv").open("w", newline="", encoding="utf-8") as stream:
            rows = [(key, TAR_TEXT.format(motif)) for key, (motif, _) in self.members.items()]
            csv.writer(stream).writerows([("key", "text"), *rows])

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
                "domain": "general", "defaults": {"licence": "CC0-1.0"},
                "webdataset": {"path": str(self.tars), "fields": {"caption": "txt", "extra": ["__key__"]}},
                "captions": [
                    {"join": str(self.folder / "inputs/about.csv"), "on": {"extra.__key__": "key"}}
                    | {"text": "text", "kind": "trait"}
                ],
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
        if not {"list", "tar"} & self.sources:  # no other source has traits
            del config["caption"]["text"]["choices"]
        score = config["score"]
        score["rules"] = score["rules"] if score["plugins"] else []
        if unsure := score.pop("unsure"):
            score["rules"] = [*score["rules"], *unsure]
            score["plugins"] = [*score["plugins"], {"name": "unsure", "scorer": "own_scorer:Unsure"}]
        if box := score.pop("faulty"):
            faulty = {"name": "faulty", "scorer": "own_scorer:Faulty", "options": {"box": box}}
            score["rules"], score["plugins"] = [*score["rules"], _FAULTY], [*score["plugins"], faulty]
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
        used.append(hash_tree(self.tars) if "tar" in self.sources else None)
        files = [path for path in sorted((self.folder / "inputs").iterdir()) if path.is_file()]
        used += [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        return hashlib.sha256(json.dumps([config, used], sort_keys=True).encode()).hexdigest()


def recipe_of(values: Mapping[str, Any]) -> str:
    """What decides which bytes of a picture are stored."""
    names = ("size_px", "resize", "jpeg_quality")
    return ", ".join(f"{name} {values[f'fetch.image.{name}']}" for name in names)


def write_file(path: Path, content: bytes, stamp_of: os.stat_result | None = None) -> None:
    """Write a file in place, with the times that it had where they are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if stamp_of is not None:
        os.utime(path, ns=(stamp_of.st_atime_ns, stamp_of.st_mtime_ns))


def _motif_of(name: str, place: int) -> int:
    return {"own": 5, "named": 11, "exam": 3}[name] + place
