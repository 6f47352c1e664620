"""The words of the runner: stage, step, part, and what a part returns. No work here, no ray.

A stage is one entry of FLOW. `inputs` is the only function of a stage that sees the configuration and the stages before
it. It returns one frozen dataclass, and the fingerprint of that value is the version of the stage.

A stage has steps. A step plans parts from the stage's inputs. A part has inputs of its own, and the fingerprint of
those is its key. Work is a pure function of a part's inputs: it writes private files and returns a small record, which
the runner publishes and commits.

How to run (folders, memory, rates, devices) travels in an `Execution`, which no fingerprint can see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.catalog import Catalog
from manifests.contract.records import FetchRound, Funnel, PartRecord, StageRecord, fingerprint
from manifests.stores import storage
from manifests.stores.folder import bring_missing, store_of
from pipeline.config import BuildConfig, RunSettings
from pipeline.engine.inputs import identity_of
from pipeline.store.buckets import Bucket, cut_buckets
from pipeline.store.files import Files, files_of
from pipeline.store.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.store.writing import ROW_GROUP_ROWS, PrivateFile, TableWriter, write_table

StageInputs = TypeVar("StageInputs")
PartInputs = TypeVar("PartInputs")
How = TypeVar("How")


@dataclass(frozen=True)
class PartResult:
    """What a worker returns: files in the order of publication, counts, and notes in plain JSON values.

    A part whose work takes long may yield several results, each about other rows; they are its pieces. Every piece is
    committed as it comes. What no piece holds is planned again by the next build.
    """

    files: tuple[PrivateFile, ...] = ()
    funnel: Funnel | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    is_piece: bool = False
    weight: int | None = None
    """Of a piece, how much of the part's `num_rows` it is; None: all."""


@dataclass(frozen=True)
class Execution(Generic[How]):
    """How a part runs. Nothing here may change what it yields.

    `stem` names the part's files. `shared` is the object that all workers of a step talk to. `how` is what else the
    step needs to run: rates, devices, folders of sources. `pieces` is set when a part is tried again: the files that
    earlier tries committed. Where the work folder lies in a store, `workdir` is its local folder.
    """

    workdir: str
    memory_gb: float
    stem: str
    how: How
    shared: Any = None  # any object, or a handle on it in another process
    pieces: tuple[str, ...] = ()
    store: str = ""  # address of the store behind the work folder

    def scratch(self) -> AbstractContextManager[Any]:
        """A private DuckDB that is gone afterwards."""
        return open_scratch(self.workdir, self.memory_gb)

    def writer(self, table: str, path: str, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> TableWriter:
        """Stream a table into a private file that will be published as `path`."""
        return TableWriter(self.workdir, table, path, schema, row_group_rows)

    def save(self, sql: Any, name: str, schema: pa.Schema, query: str, order: str) -> PrivateFile:
        """Write the rows of a query, sorted, as the table STAGE/TABLE that `name` says."""
        writer = self.writer(name.rpartition("/")[2], f"tables/{name}-{self.stem}.parquet", schema)
        return copy_sorted(sql, query, order, writer)

    def save_digested(
        self, sql: Any, name: str, schema: pa.Schema, query: str, order: str, columns: Sequence[str] = ()
    ) -> tuple[PrivateFile, str]:
        """As `save`, with a digest of the rows (of `columns`, or else of all); afterwards the table is a view."""
        file, table = self.save(sql, name, schema, query, order), name.rpartition("/")[2]
        view_parquet(sql, table, [file.temp])
        return file, facet(sql, columns or schema.names, table)

    def write(self, table: str, path: str, rows: pa.Table, schema: pa.Schema) -> PrivateFile:
        """Write one table to a private file that will be published as `path`."""
        return write_table(self.workdir, table, path, rows, schema)


@dataclass(frozen=True)
class Part(Generic[PartInputs]):
    """A unit of work. Later builds find it by `reuse` (`StageRun.made_of`); `num_rows` weighs progress."""

    inputs: PartInputs
    reuse: Any = None
    """A typed value: all that decides what becomes of its rows. None: only a build with equal inputs finds it."""
    num_rows: int = 0


def brought(files: Files) -> Files:
    """The same files, after those of a work folder in a store were copied here."""
    bring_missing(files.paths)
    return files


@dataclass
class StageRun(Generic[How]):
    """What plans may look at besides the inputs of their stage: committed parts, and how the build runs."""

    stage: Stage[Any]
    fingerprint: str
    catalog: Catalog
    settings: RunSettings
    how: How
    fetch_round: FetchRound | None = None
    require: Callable[[Files], Files] = brought
    """Checks the content of files that are about to be read."""

    @property
    def workdir(self) -> str:
        """The work folder."""
        return self.catalog.workdir

    def parts(self, step: str) -> list[PartRecord]:
        """Committed parts of an earlier step of this stage."""
        return self.catalog.parts_of(self.fingerprint, step)

    def made_of(self, step: str, reuse: Any, of_version: Mapping[int, str] = MappingProxyType({})) -> list[PartRecord]:
        """Committed parts of any build that this version of a step made with an equal `reuse`, oldest first.

        `of_version` names the key that parts of a version had in earlier catalogues.
        """
        step_now = next(each for each in self.stage.steps if each.name == step)
        keys = [key for key in (of_version.get(step_now.version), step_now.reuse_key(reuse)) if key]
        return [part for key in keys for part in self.catalog.parts_like(self.stage.name, step, key)]

    def files(self, step: str, table: str) -> Files:
        """Files that an earlier step of this stage committed."""
        return self.files_of(self.parts(step), table)

    def files_of(self, parts: Sequence[PartRecord], table: str) -> Files:
        """The files of these parts that hold `table`, checked.

        Raises: DamageError.
        """
        return self.require(files_in(self.workdir, parts, table))

    def result(self, step: str) -> tuple[Funnel, dict[str, Any]]:
        """Funnel and notes of a step that has one part."""
        (part,) = self.parts(step)
        assert part.funnel is not None
        return part.funnel, dict(part.notes)

    def execution(self, stem: str, shared: Any = None) -> Execution[How]:
        """How a part of this stage runs."""
        store = store_of(self.workdir) or ""
        return Execution(self.workdir, self.settings.memory_gb, stem, self.how, shared, store=store)

    def scratch(self) -> AbstractContextManager[Any]:
        """A private DuckDB for planning."""
        return open_scratch(self.workdir, self.settings.memory_gb)

    def funnel(self, step: str) -> Funnel:
        """The sum over all parts of a step."""
        return sum((part.funnel for part in self.parts(step) if part.funnel), Funnel(0, 0))

    def num_rows(self, table: Files) -> int:
        """How many rows a table has, as its files say."""
        return sum(pq.ParquetFile(path).metadata.num_rows for path in brought(table).paths)

    def buckets(self, table: Files) -> list[Bucket]:
        """Ranges of sample ids that fit the memory of one worker, by the number of rows of a table."""
        return cut_buckets(self.num_rows(table), self.settings.memory_gb)

    def scratch_file(self, name: str) -> str:
        """Path of a private file that lives as long as the build."""
        folder = storage.join(self.workdir, "scratch")
        storage.make_folder(folder)
        return storage.join(folder, name)


def whole(inputs: PartInputs, run: StageRun[None]) -> Sequence[Part[PartInputs]]:
    """The plan of a step that is done in one part."""
    return [Part(inputs)]


@dataclass(frozen=True)
class Step(Generic[StageInputs, PartInputs, How]):
    """Parts that may run side by side.

    `plan` gives the inputs of each part, as a `Part` where they weigh differently or later builds take them up. It may
    raise ConfigError. `committed` names parts of earlier builds that count too: fetch keeps what it downloaded.

    `how` gives what only says how to run. `shared` gives a picklable maker of one object that all workers of the step
    talk to, on a cluster through an actor. `gpus`, where a step has it, says that its work holds a model from part to
    part: on Ray its parts go to actors, one a worker, each with so many GPUs (0 for none).

    `from_outside` says that its parts hold what no earlier stage can make again.

    `reports` says that the parts check in at `shared` (pipeline/fetching/tally.py). There they say how far they are,
    and when they are asked to stop, they soon yield what they have.

    Raise `version` when the same inputs would yield something else.

    `prepares` says that its parts only bring rows together for the next step. The version of the stage does not see
    such a step: the next step's version stands for both.

    `learns` adds to the stage's inputs what this step has read: the content of a file that nobody had read before.
    Later steps get these inputs, and their fingerprint becomes the version of the stage.
    """

    name: str
    plan: Callable[[StageInputs, StageRun[How]], Sequence[Part[PartInputs]] | Sequence[PartInputs]]
    work: Callable[[PartInputs, Execution[How]], PartResult | Iterator[PartResult]]
    version: int = 1
    how: Callable[[BuildContext], How] | None = None
    unit: str = "parts"
    committed: Callable[[StageInputs, StageRun[How]], Sequence[PartRecord]] | None = None
    shared: Callable[[BuildContext], Callable[[], Any]] | None = None
    gpus: Callable[[BuildContext], float] | None = None
    reports: bool = False
    from_outside: bool = False
    prepares: bool = False
    learns: Callable[[StageInputs, StageRun[Any]], StageInputs] | None = None

    def reuse_key(self, reuse: Any) -> str:
        """The name of parts that this version of the step makes with `reuse`; empty where that is None."""
        if reuse is None:
            return ""
        return fingerprint({"step": self.name, "version": self.version, "reuse": identity_of(reuse)})


@dataclass(frozen=True)
class Stage(Generic[StageInputs]):
    """One entry of FLOW.

    `conclude` turns the committed parts into the funnel and notes of the sealed stage; without it they are those of the
    last step, which then has one part. `settle` writes into the catalogue what only this stage knows, also when it
    is reused.
    """

    name: str
    about: str
    inputs: Callable[[BuildContext], StageInputs]
    steps: tuple[Step[StageInputs, Any, Any], ...]
    conclude: Callable[[StageInputs, StageRun[None]], tuple[Funnel, dict[str, Any]]] | None = None
    settle: Callable[[BuildContext], None] | None = None

    def identity(self, inputs: StageInputs) -> dict[str, Any]:
        """What the fingerprint of a version of this stage stands for."""
        versions = {step.name: step.version for step in self.steps if not step.prepares}
        return {"versions": versions, **identity_of(inputs)}

    def fingerprint(self, inputs: StageInputs) -> str:
        """The version of this stage that these inputs make."""
        return fingerprint({"stage": self.name, **self.identity(inputs)})

    def key_of(self, step: Step[StageInputs, Any, Any], part: Part[Any]) -> str:
        """The key of a part: equal inputs give equal keys."""
        return fingerprint(
            {"step": f"{self.name}.{step.name}", "version": step.version, "inputs": identity_of(part.inputs)}
        )


@dataclass
class BuildContext:
    """What the inputs of a stage are made from: the configuration and the sealed stages before it."""

    config: BuildConfig
    workdir: str
    catalog: Catalog
    sealed: dict[str, StageRecord] = field(default_factory=dict)
    fingerprint: str = ""
    """Version of the stage that is being built."""
    fetch_round: FetchRound | None = None
    """The round that `plantmix retry` is running; None in a build."""
    require: Callable[[Files], Files] = brought
    """Checks the content of files that are about to be read."""

    def files(self, stage: str, table: str) -> Files:
        """A sealed stage's files that hold `table`, in plan order."""
        return files_in(self.workdir, self.catalog.parts_of(self.sealed[stage].fingerprint), table)

    def facts(self) -> Files:
        """The table of facts, known by what the images show, not by how they were fetched or where they lie."""
        return self.files("fetch", "facts").digested(self.sealed["fetch"].notes["content"])


def files_in(workdir: str, parts: Sequence[PartRecord], table: str) -> Files:
    """The files of committed parts that hold `table`."""
    held = [file for part in parts for file in part.files if file.table == table]
    return files_of([(storage.join(workdir, file.path), file.sha256) for file in held])
