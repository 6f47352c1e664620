"""Does a change or a command, and checks what must hold after it."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from building import hash_tree, release_of
from damaging import flip_bit, kinds_of

from manifests.contract.outcomes import Outcome
from manifests.stores.storage import is_private
from walk import laws, oracle
from walk.arguments import arguments_of
from walk.changes import CHANGES
from walk.drawing import OPEN, WRITERS, Action
from walk.oracle import Clean, CleanBuilds, DifferenceError
from walk.running import Ran, run, run_and_kill
from walk.web import Web, semantic_settings
from walk.world import World, recipe_of

WRITES_AT_MOST = {"build": 150, "mix": 60, "retry": 50, "takedown": 16, "repair": 80, "repair CONFIG": 80}


@dataclass
class Step:
    """What a command did."""

    command: str
    counted: bool  # it changed the work folder, or met something that had changed since the command before it
    compared: bool  # with a clean build
    how: str
    code: int | None


@dataclass
class Walk:
    """One work folder and what is known of it."""

    world: World
    cleans: CleanBuilds = field(init=False)
    built: Clean | None = None
    built_with: dict[str, Any] | None = None
    """What the last build ended with; None while that is not sure."""
    built_from: str = ""
    cut: Path | None = None
    """The clean build's folder, with the takedowns since."""
    banned: set[tuple[str, str]] = field(default_factory=set)
    taken: set[int] = field(default_factory=set)
    """Motifs of pictures that were taken down."""
    damaged: dict[Path, bytes | None] = field(default_factory=dict)
    whole: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Releases as they were when they were right."""
    told: dict[str, set[str]] = field(default_factory=dict)
    """By recipe: addresses that gave a picture, as far as builds see it."""
    told_to_retry: dict[str, set[str]] = field(default_factory=dict)
    """The same of a round of retry that did not end."""
    stored: dict[str, set[str]] = field(default_factory=dict)
    looked_at: set[str] = field(default_factory=set)
    """Releases whose samples were read."""
    last_values: dict[str, Any] = field(default_factory=dict)
    retried: bool = False
    moved: bool = True
    log: list[str] = field(default_factory=list)
    asked_again: bool = False
    """Whether something was killed or damaged, so that the web may be asked again for what it gave."""

    def __post_init__(self) -> None:
        self.cleans = CleanBuilds(self.world)

    @property
    def work(self) -> Path:
        return self.world.work

    def do(self, action: Action) -> Step | None:
        """Do one action. A change gives no step.

        Raises: DifferenceError.
        """
        what, name, seed = action
        rng = random.Random(seed)
        if what == "change":
            done = self.damage(rng) if name == "damage" else CHANGES[name][0](self.world, rng)
            if name == "move" and done:
                self.damaged = {
                    self.work / path.relative_to(path.parents[-len(self.world.folder.parts) - 1]): content
                    for path, content in self.damaged.items()
                }
            self.moved |= done is not None
            self.log.append(f"{name}: {done or 'nothing to do'}")
            return None
        try:
            step = self._command(name, rng)
        except DifferenceError as error:
            self.log.append(f"{name}: {error}")
            error.add_note("\n".join(self.log))
            raise
        if step is not None:
            self.log.append(f"{name}{step.how}: exit code {step.code}{', compared' if step.compared else ''}")
        return step

    # ---- damage

    def damage(self, rng: random.Random) -> str | None:
        """Flip a bit of a file, or delete it."""
        if not self.whole or len(self.still_damaged()) > 1:
            return None
        kinds = kinds_of(self.work)
        spared = {"takedowns.jsonl", "catalog.duckdb.damaged"}
        spared |= set() if self.world.may("W1") else {"catalog.duckdb", "samples.parquet", "takedown samples.parquet"}
        kind = rng.choice(sorted(kinds.keys() - spared))
        path = rng.choice(kinds[kind])
        goes = rng.random() < 0.3 and not path.name.startswith("catalog")
        if goes:
            path.unlink()
        else:
            flip_bit(path, rng)
        self.damaged[path] = None if goes else path.read_bytes()
        return f"{path.relative_to(self.work)} {'deleted' if goes else 'flipped'}"

    def still_damaged(self) -> list[Path]:
        """What nothing has mended yet."""
        self.damaged = {
            path: content
            for path, content in self.damaged.items()
            if (path.read_bytes() if path.exists() else None) == content
        }
        return list(self.damaged)

    # ---- commands

    def _command(self, name: str, rng: random.Random) -> Step | None:
        argv = arguments_of(self, name, rng)
        if argv is None:
            return None
        before, newest_before = self._tree(), self._newest()
        damaged = self.still_damaged()
        self.world.web.asked.clear()
        how = ""
        if name in WRITERS and rng.random() < 0.15:
            kill_at = rng.randint(1, WRITES_AT_MOST[name])
            if rng.random() < 0.25:
                ran, how = run_and_kill(argv, kill_at), f" (SIGKILL at write {kill_at})"
            else:
                ran = run(argv, kill_at, self.world.clock_seconds)
                how = f" (killed at write {kill_at})"
            how = how if ran.code is None else ""
        else:
            ran = run(argv, clock_seconds=self.world.clock_seconds)
        oracle.check_words(ran)
        after = self._tree()
        changed = not same_but_for_bookkeeping(before, after)
        counted, self.moved = self.moved or changed, changed
        compared = False
        if name in WRITERS:
            self._check_requests(name, ran, damaged)
            compared = self._check_writer(name, argv, ran, damaged, newest_before)
        else:
            if after != before:
                raise DifferenceError("reader", f"{name} changed the work folder")
            self._check_reader(name, argv, ran, damaged)
        return Step(name, counted, compared, how, ran.code)

    # ---- what must hold after a writer

    def _check_requests(self, name: str, ran: Ran, damaged: Sequence[Path]) -> None:
        """The web is asked only for what is not stored; `told` follows what it said."""
        asked = Counter(path for path, _ in self.world.web.asked)
        ok = {path for path, is_ok in self.world.web.asked if is_ok}
        values = self.world.values if name in ("build", "mix", "repair CONFIG") else self.last_values
        recipe = recipe_of(values)
        if name in ("mix", "takedown") and asked:
            raise DifferenceError("requests", f"{name} asked for {sorted(asked)}")
        needless = sorted(self.stored.get(recipe, set()).intersection(asked))
        if needless and not self.asked_again and not damaged:
            raise DifferenceError("requests", f"{name} asked again for {needless}")
        several = sorted(path for path, num in asked.items() if num > 1)
        if several:
            raise DifferenceError("requests", f"{name} asked several times for {several}")
        if name == "retry" and ran.code != 0:
            self.told_to_retry.setdefault(recipe, set()).update(ok)
            return
        if name == "retry":
            ok |= self.told_to_retry.pop(recipe, set())
        told = self.told.setdefault(recipe, set())
        if name == "retry" and ok - told:
            self.built_with = None  # later stages are to be done again
        told.update(ok)
        self.asked_again |= bool(damaged) or ran.code is None

    def _check_writer(
        self, name: str, argv: list[str], ran: Ran, damaged: Sequence[Path], newest_before: str | None
    ) -> bool:
        damaged_now = self.still_damaged()
        values = self.world.values if name in ("build", "mix", "repair CONFIG") else self.last_values
        self.retried |= name == "retry"
        if name in ("build", "mix"):
            self.last_values = dict(self.world.values)
        if ran.code is None or (ran.code and (damaged or name not in ("takedown", "retry"))):
            self.built_with, self.cut = None, None
        if ran.code is None:
            return False
        compared = False
        if name in ("build", "mix"):
            compared = self._check_build(name, ran, damaged, damaged_now)
        elif name == "takedown":
            compared = self._check_takedown(argv, ran, damaged)
        elif name.startswith("repair"):
            compared = self._check_repair(ran, newest_before, damaged, values)
        elif ran.code and self.built_from == self._inputs(self.last_values) and not damaged:
            raise DifferenceError("exit code", f"{name}: {ran.err[-500:]}")
        if not damaged_now:
            oracle.check_counts(self.work, name == "build" and ran.code == 0)
            if newest := self._newest():
                self._check_laws(self.work / "releases" / newest)
        return compared

    def _check_laws(self, newest: Path) -> None:
        """What holds of a release whatever a clean build gives."""
        may = self.world.may
        oracle.check_taken_down(newest, self.banned)
        if may("kin"):
            laws.check_kin(newest, self.taken)
        if newest.name not in self.looked_at:
            self.looked_at.add(newest.name)
            if may("readers"):
                laws.check_readers(newest, with_texts=may("texts"))

    def _clean(self, values: dict[str, Any] | None = None) -> Clean:
        """The clean build of the inputs as they are, with these settings."""
        world = self.world
        own, world.values = world.values, dict(values or world.values)
        try:
            told = {path for path in self.told.get(recipe_of(world.values), ()) if "-late" in path}
            return self.cleans.get(self._takedowns(), told)
        finally:
            world.values = own

    def _takedowns(self) -> bytes:
        """The list, with only those addresses that the work folder never asked: a clean build asks the others too."""
        listed = self.work / "takedowns.jsonl"
        if not listed.exists():
            return b""
        asked = {row["url"] for row in oracle.rows_in(self.work) if row["outcome"] != Outcome.TAKEDOWN}
        lines = listed.read_text(encoding="utf-8").splitlines()
        for at, entry in enumerate(map(json.loads, lines)):
            if addresses := entry.pop("addresses", None):
                left = [address for address in addresses if address not in asked]
                lines[at] = json.dumps(entry | ({"addresses": left} if left else {}))
        return "".join(f"{line}\n" for line in lines).encode()

    def _inputs(self, values: dict[str, Any]) -> str | None:
        """What a build with these settings is made from now; None where the last one did not end well."""
        own, self.world.values = self.world.values, values
        try:
            return self.world.fingerprint() if self.built_with is not None else None
        finally:
            self.world.values = own

    def _check_build(self, name: str, ran: Ran, damaged: Sequence[Path], damaged_now: Sequence[Path]) -> bool:
        if ran.code:
            may_fail = damaged or (name == "mix" and "not done yet" in ran.err)
            clean = None if may_fail else self._clean()
            self._change_what_must_fail(name, ran)
            if clean is not None and clean.ran.code != ran.code:
                raise DifferenceError("exit code", f"{name} ends with {ran.err[-500:]}; a clean build with 0")
            return False
        clean, newest = self._clean(), release_of(self.work)
        files = hash_tree(newest)
        but_for = {str(path.relative_to(newest)) for path in damaged_now if newest in path.parents}
        if self.world.may("retried") and clean.files is not None and not damaged:
            answered = {path for path in self.told[recipe_of(self.world.values)] if "-late" in path}
            laws.check_retried(oracle.rows_in(self.work) if answered else (), clean.rows, answered)
        oracle.check_release(newest.name, files, clean, but_for)
        assert clean.files is not None
        self._is_right(clean)
        if self.world.may("scores"):
            laws.check_scores(newest, self.world.values["score.unsure"])
        if self.world.may("boxes"):
            laws.check_boxes(newest)
        if not damaged:
            left = [path.name for path in self.work.rglob("*") if is_private(path.name) or path.name == "scratch"]
            if left:
                raise DifferenceError("left behind", f"{name}: {left}")
        return True

    def _change_what_must_fail(self, name: str, ran: Ran) -> None:
        """A detector whose boxes are none ends every build with its name: it is taken out again."""
        if self.world.values["score.faulty"] and name == "build":
            if "faulty" not in ran.err:
                raise DifferenceError("boxes", f"the boxes of `faulty` are none, and the build says: {ran.err[-500:]}")
            self.world.values["score.faulty"] = None

    def _is_right(self, clean: Clean) -> None:
        """The newest release is that of a clean build."""
        self.built, self.built_with, self.cut, self.retried = clean, dict(self.world.values), None, False
        self.whole[clean.name] = clean.files or {}
        self.built_from = self.world.fingerprint()
        self.stored.setdefault(recipe_of(self.world.values), set()).update(clean.stored)
        self.asked_again = False

    def _check_takedown(self, argv: list[str], ran: Ran, damaged: Sequence[Path]) -> bool:
        assert self.built is not None
        by, value = argv[2].removeprefix("--"), argv[3]
        if ran.code:
            if self.built_with is not None and not damaged and "nothing would be left" not in ran.err + ran.out:
                raise DifferenceError("exit code", f"takedown: {ran.err[-500:]}")
            return False
        self.banned.add((by, value))
        newest = release_of(self.work)
        named = {"id": ("sample_id", "image_id"), "url": ("url",), "owner": ("rights_holder",)}[by]
        gone = [row for row in self.built.rows if any(oracle.is_named(by, row[column], value) for column in named)]
        motifs = {laws.motif_of(row["image_id"]) for row in gone if row["outcome"] == "ok"}
        self.taken |= {motif for motif in motifs if motif is not None}
        self.world.taken_keys |= {row["record_key"] for row in gone}
        copies = ("exact_duplicate", "near_duplicate")
        stand_ins = {row["other_sample_id"] for row in gone if row["reason"] in copies}
        images = {("id", row["image_id"]) for row in gone if row["image_id"] and row["outcome"] == "ok"}
        images |= {("id", row["image_id"]) for row in self.built.rows if row["sample_id"] in stand_ins}
        oracle.check_taken_down(newest, images)
        self.banned |= images
        if self.built_with is None or damaged:
            self.cut = None
            return False
        self.cut = self.cut or self.cleans.folder_of(self.built)
        if self.cut is None:
            self.built_with = None
            return False
        own, theirs = self.work / "takedowns.jsonl", self.cut / "takedowns.jsonl"
        clean = run(["takedown", str(self.cut), *argv[2:]])
        if clean.code != 0:
            raise DifferenceError("exit code", f"takedown from a clean build: {clean.err[-500:]}")
        missing = set(theirs.read_text().splitlines()).difference(own.read_text().splitlines())
        if missing:
            raise DifferenceError("takedown", f"not on the list, as from a clean build: {sorted(missing)}")
        if own.read_bytes() != theirs.read_bytes():  # the work folder knows more pictures of old
            self.built_with, self.cut = None, None
            return False
        expected = release_of(self.cut)
        if newest.name != expected.name:
            raise DifferenceError("release", f"{newest.name} by a takedown; from a clean build: {expected.name}")
        self.whole[newest.name] = hash_tree(expected)
        oracle.check_same(newest.name, hash_tree(newest), self.whole[newest.name])
        return True

    def _check_repair(
        self, ran: Ran, newest_before: str | None, damaged: Sequence[Path], values: dict[str, Any]
    ) -> bool:
        if ran.code:
            return False
        recorded = oracle.recorded_in(self.work)  # what no build needs may stay as it is
        left = sorted(recorded.intersection(str(path.relative_to(self.work)) for path in self.still_damaged()))
        self.damaged = {}
        if left:
            raise DifferenceError("repair", f"ends with 0, and as before are {left}")
        newest = self._newest()
        if damaged:
            for path in self.work.glob("releases/*/release.json"):
                name = path.parent.name
                if name in self.whole:
                    oracle.check_same(name, hash_tree(path.parent), self.whole[name])
        if newest in (newest_before, None) or newest_before is None:
            return bool(damaged)
        clean = self._clean(values)
        assert newest is not None
        oracle.check_release(newest, hash_tree(self.work / "releases" / newest), clean)
        own, self.world.values = self.world.values, dict(values)
        self._is_right(clean)
        self.world.values = own
        return True

    # ---- readers

    def _check_reader(self, name: str, argv: Sequence[str], ran: Ran, damaged: Sequence[Path]) -> None:
        is_sure = self.built_with is not None
        if name in ("publish", "export"):
            is_sure &= self._check_goes_out(ran, Path(argv[1]), self.published if name == "publish" else None, damaged)
        if name == "init" and ran.code == 0:
            laws.check_init(self.world, argv, ran.out)
        if name == "verify --deep" and damaged and ran.code == 0:
            recorded = {self.work / path for path in oracle.recorded_in(self.work)}
            forgotten = {path for path in damaged if path.is_relative_to(self.work / "tables")} - recorded
            if unseen := sorted(
                str(path) for path in set(damaged) - forgotten
            ):  # repair forgot a part and its file lies on
                raise DifferenceError("verify", f"all is as recorded, it says; damaged: {unseen}")
        if ran.code and is_sure and not damaged:
            raise DifferenceError("exit code", f"{name}: {(ran.err or ran.out)[-500:]}")

    def _check_goes_out(self, ran: Ran, release: Path, out: Path | None, damaged: Sequence[Path]) -> bool:
        """Gives whether it should have ended with 0."""
        if damaged or not self.world.may("goes out"):
            return False
        try:
            oracle.check_taken_down(release, self.banned)
            by_name = False
        except DifferenceError:
            by_name = True
        return laws.check_goes_out(ran, release, out, self.taken, by_name)

    # ---- the folder

    @property
    def published(self) -> Path:
        """The folder that releases are published to."""
        return self.world.folder / "published"

    def _newest(self) -> str | None:
        pointer = self.work / "releases/LATEST"
        name = pointer.read_text().strip() if pointer.exists() and pointer not in self.damaged else None
        return name if name and (self.work / "releases" / name / "samples.parquet").exists() else None

    def _tree(self) -> dict[str, str]:
        return hash_tree(self.work) if self.work.exists() else {}


def same_but_for_bookkeeping(before: Mapping[str, str], after: Mapping[str, str]) -> bool:
    """Whether only the catalogue's own files and the status differ."""
    names = {name for name in before.keys() | after.keys() if not name.startswith(("catalog.", "status.json"))}
    return all(before.get(name) == after.get(name) for name in names)


# ---- walks


@contextmanager
def walking(
    folder: Path,
    off: Iterable[str] = OPEN,
    semantic: bool = False,
    executors: Sequence[str] = ("inline",),
    favoured: Mapping[str, float] | None = None,
) -> Iterator[Walk]:
    """A new world in a folder that is removed at the end; `semantic` lets walks turn dedup.semantic on."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    web = Web()
    scorers = str(Path(__file__).parents[1] / "unit/pipeline/scoring")
    try:
        with web.server, mock.patch.object(sys, "path", [scorers, *sys.path]):
            values = semantic_settings(folder) if semantic else [None]
            yield Walk(World(folder / "world", web, frozenset(off), values, tuple(executors), favoured or {}))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replay(folder: Path, actions: Sequence[Action], **options: Any) -> DifferenceError | None:
    """Do the actions in a new world; gives the difference that ends them."""
    with walking(folder, **options) as walk:
        for action in actions:
            try:
                walk.do(action)
            except DifferenceError as error:
                return error
    return None
