"""What must hold after each command: a clean build of the same inputs, settings and takedowns gives that release."""

from __future__ import annotations

import hashlib
import json
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from building import hash_tree, release_of
from sealed import lend

from manifests.contract.reader import open_reader, rows_of
from walk.running import Ran, run
from walk.world import World

MAX_FOLDERS = 6  # of clean builds, for takedowns
_ROWS = (
    "SELECT c.sample_id, c.record_key, c.url, c.rights_holder, f.outcome, f.image_id, d.keep, d.reason, "
    "d.other_sample_id FROM candidates c JOIN facts f USING (sample_id) JOIN decisions d USING (sample_id) ORDER BY 1"
)


class DifferenceError(AssertionError):
    """Something that must hold did not."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Clean:
    """How a build from nothing ended."""

    ran: Ran
    work: Path
    name: str = ""
    files: Mapping[str, str] | None = None
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def stored(self) -> set[str]:
        """The paths of the addresses whose pictures it stored."""
        return {path_of(row["url"]) for row in self.rows if row["url"] and row["outcome"] == "ok"}


class CleanBuilds:
    """Clean builds, by all that they are made from: equal states cost nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made: dict[str, Clean] = {}
        self.num_built = 0

    def get(self, takedowns: bytes, knows: Iterable[str]) -> Clean:
        """The clean build of the world as it is now, whose web says what the work folder was told."""
        world = self._world
        told = frozenset(knows)
        key = hashlib.sha256(json.dumps([world.fingerprint(), takedowns.hex(), sorted(told)]).encode()).hexdigest()
        if key not in self._made:
            self._made[key] = self._build(key[:12], takedowns, told)
        return self._made[key]

    def _build(self, name: str, takedowns: bytes, knows: frozenset[str]) -> Clean:
        world = self._world
        folders = sorted((world.folder / "clean").glob("*"), key=lambda path: path.stat().st_ctime_ns)
        for old in folders[: -MAX_FOLDERS + 1]:
            shutil.rmtree(old)
        work = world.folder / "clean" / name
        work.mkdir(parents=True)
        if takedowns:
            (work / "takedowns.jsonl").write_bytes(takedowns)
        self.num_built += 1
        world.web.knows = knows
        try:
            ran = run(["--quiet", "build", world.write_config(work, inline=True)])
        finally:
            world.web.knows = None
        if ran.code != 0:
            return Clean(ran, work)
        release = release_of(work)
        return Clean(ran, work, release.name, hash_tree(release), rows_in(work))

    def folder_of(self, clean: Clean) -> Path | None:
        """Its work folder, lent; None when it was made long ago."""
        if not clean.work.is_dir():
            return None
        copy = self._world.folder / "cut"
        shutil.rmtree(copy, ignore_errors=True)
        return lend(clean.work, copy)


def rows_in(work: Path) -> list[dict[str, Any]]:
    """What a work folder says became of each candidate."""
    with open_reader(str(work)) as sql:
        return rows_of(sql, _ROWS)


def recorded_in(work: Path) -> set[str]:
    """The files that its catalogue counts on."""
    with open_reader(str(work), per_sample=False) as sql:
        return {row["path"] for row in rows_of(sql, "SELECT path FROM files")}


def path_of(url: str) -> str:
    """The path of an address."""
    return "/" + url.split("/", 3)[-1]


# ---- checks that need no clean build


def check_words(ran: Ran) -> None:
    """A command ends by itself or with one readable line."""
    text = ran.out + ran.err
    for words in ("Traceback (most recent call last)", "please report it"):
        if words in text:
            raise DifferenceError("traceback", text[-2000:])
    if ran.code not in (None, 0) and "error" not in ran.err and not ran.out:
        raise DifferenceError("no words", f"exit code {ran.code} and nothing said")


def check_counts(work: Path, after_build: bool) -> None:
    """Rows in = rows kept + the sum of the reasons, at every stage; after a build nothing is lost between two."""
    ran = run(["status", str(work), "--json"])
    if ran.code != 0:
        raise DifferenceError("status", ran.err)
    stages = json.loads(ran.out)["stages"]
    for name, stage in stages.items():
        if stage["sealed"] and stage["in"] != stage["kept"] + sum(stage["reasons"].values()):
            raise DifferenceError("counts", f"{name}: {stage}")
    for before, after in (("ingest", "fetch"), ("fetch", "dedup"), ("fetch", "caption")) if after_build else ():
        pair = [stages.get(name, {"sealed": False}) for name in (before, after)]
        if all(stage["sealed"] for stage in pair) and pair[0]["kept"] != pair[1]["in"]:
            raise DifferenceError("counts", f"{before} keeps {pair[0]['kept']} rows, {after} gets {pair[1]['in']}")


def check_taken_down(release: Path, banned: Iterable[tuple[str, str]]) -> None:
    """Nothing that was taken down is in a release."""
    columns = ["sample_id", "image_id", "url", "rights_holder"]
    rows = pq.read_table(release / "samples.parquet", columns=columns).to_pylist()
    fields = {"id": ("sample_id", "image_id"), "url": ("url",), "owner": ("rights_holder",)}
    for by, value in banned:
        if any(is_named(by, row[name], value) for row in rows for name in fields[by]):
            raise DifferenceError("taken down", f"{release.name} still holds {by} {value}")


def is_named(by: str, of_row: str | None, value: str) -> bool:
    """Whether a takedown by `value` names a row; owners as everyone reads their names."""
    return fold(of_row) == fold(value) if by == "owner" else of_row == value


def fold(name: str | None) -> str:
    """A name without differences of case, of blanks and of how its letters are composed."""
    return " ".join(unicodedata.normalize("NFKC", name or "").casefold().split())


def check_release(name: str, files: Mapping[str, str], clean: Clean, but_for: Iterable[str] = ()) -> None:
    """The release of the clean build, byte for byte but for files that are damaged now."""
    if clean.files is None:
        raise DifferenceError("release", f"{name}; a clean build ends so: {clean.ran.err[-500:]}")
    if name != clean.name:
        raise DifferenceError("release", f"{name}; of a clean build: {clean.name}")
    check_same(name, files, clean.files, but_for)


def check_same(name: str, files: Mapping[str, str], expected: Mapping[str, str], but_for: Iterable[str] = ()) -> None:
    """Two folders have the same files."""
    names = (files.keys() | expected.keys()).difference(but_for)
    differ = sorted(path for path in names if files.get(path) != expected.get(path))
    if differ:
        raise DifferenceError("bytes", f"{name}: other bytes than expected in {', '.join(differ)}")
