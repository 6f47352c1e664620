"""The words of the runner: stage, step, part, and what a part returns. No work here, no ray.

A stage is one entry of FLOW. `inputs` is the only function of a stage that sees the configuration and the stages before
it. It returns one frozen dataclass, and the fingerprint of that value is the version of the stage.

A stage has steps. A step declares which tables and values it reads and which tables it gives, and that makes its
parts. The fingerprint of a part's inputs is its key. Work is a pure function of a part's inputs: it writes private
files and returns a small record, which the runner publishes and commits.

How to run (folders, memory, rates, devices) travels in an `Execution`, which no fingerprint can see.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.catalog import Catalog
from manifests.contract.reader import SAMPLE_VIEWS
from manifests.contract.records import FetchRound, Funnel, PartRecord, StageRecord, fingerprint
from manifests.errors import PartError
from manifests.stores import storage
from manifests.stores.folder import bring_missing, store_of
from pipeline.config import BuildConfig, RunSettings
from pipeline.engine.inputs import Inputs, identity_of, value_of
from pipeline.store.buckets import Bucket, cut_buckets
from pipeline.store.files import Files, files_of
from pipeline.store.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.store.writing import ROW_GROUP_ROWS, PrivateFile, TableWriter, require_columns

StageInputs = TypeVar("StageInputs")
PartInputs = TypeVar("PartInputs")
How = TypeVar("How")


@dataclass(frozen=True)
class PartResult:
    """The result of a worker: files in the order of publication, counts, and notes in plain JSON values.

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
    """Execution settings of a part. Nothing here may change its results.

    `stem` names the part's files. `shared` is the object that all workers of a step talk to. `how` is what else the
    step needs to run: rates, devices, folders of sources. `pieces` is set when a part is tried again: the tables that
    earlier tries committed. Where the work folder lies in a store, `workdir` is its local folder.
    """

    workdir: str
    memory_gb: float
    stem: str
    how: How
    shared: Any = None  # any object, or a handle on it in another process
    pieces: tuple[str, ...] = ()
    store: str = ""  # address of the store behind the work folder
    stage: str = ""
    gives: Mapping[str, pa.Schema] = field(default_factory=dict)
    """The tables that the step gives, with their columns."""

    def scratch(self) -> AbstractContextManager[Any]:
        """Return a private DuckDB that is gone afterwards."""
        return open_scratch(self.workdir, self.memory_gb)

    @contextmanager
    def views(self, inputs: Inputs, **called: str) -> Iterator[Any]:
        """Open a private DuckDB with a view over each table that the part reads (`Inputs.view`)."""
        with self.scratch() as sql:
            inputs.view(sql, **called)
            yield sql

    def writer(
        self, table: str, name: str = "", row_group_rows: int = ROW_GROUP_ROWS, schema: pa.Schema | None = None
    ) -> TableWriter:
        """Stream a table that the step gives into a private file, `name` without its folder and ending.

        `schema` says the columns where they are more than the step declares.

        Raises: PartError for a table that the step does not give, or that lacks columns.
        """
        if table not in self.gives:
            raise PartError(f"{self.stage}: no step says that it gives the table {table}; name it in its `gives`")
        schema = schema or self.gives[table]
        require_columns(table, self.gives[table], schema.names)
        path = f"tables/{self.stage}/{name or f'{table}-{self.stem}'}.parquet"
        return TableWriter(self.workdir, table, path, schema, row_group_rows)

    def save(self, sql: Any, table: str, query: str, order: str, schema: pa.Schema | None = None) -> PrivateFile:
        """Write the rows of a query, sorted, as a table that the step gives."""
        return copy_sorted(sql, query, order, self.writer(table, schema=schema))

    def save_digested(
        self, sql: Any, table: str, query: str, order: str, columns: Sequence[str] = ()
    ) -> tuple[PrivateFile, str]:
        """As `save`, with a digest of the rows (of `columns`, or else of all); afterwards the table is a view."""
        file = self.save(sql, table, query, order)
        view_parquet(sql, table, [file.temp])
        return file, facet(sql, columns or self.gives[table].names, table)

    def write(self, table: str, rows: pa.Table, name: str = "") -> PrivateFile:
        """Write rows as a table that the step gives; `name` as of `writer`."""
        writer = self.writer(table, name)
        writer.write(rows)
        return writer.close()


@dataclass(frozen=True)
class Part(Generic[PartInputs]):
    """A unit of work. Later builds find it by `reuse` (`StageRun.made_of`); `num_rows` weighs progress."""

    inputs: PartInputs
    reuse: Any = None
    """A typed value: all that decides what becomes of its rows. None: only a build with equal inputs finds it."""
    num_rows: int = 0


def brought(files: Files) -> Files:
    """Return the same files, after those of a work folder in a store were copied here."""
    bring_missing(files.paths)
    return files


@dataclass
class StageRun(Generic[How]):
    """The view that plans have besides the inputs of their stage: committed parts, and how the build runs."""

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
        """Return committed parts of an earlier step of this stage."""
        return self.catalog.parts_of(self.fingerprint, step)

    def made_of(self, step: str, reuse: Any) -> list[PartRecord]:
        """Return committed parts of any build that this version of a step made with an equal `reuse`, oldest first."""
        step_now = next(declared for declared in self.stage.steps if declared.name == step)
        return self.catalog.parts_like(self.stage.name, step, step_now.reuse_key(reuse))

    def files(self, step: str, table: str) -> Files:
        """Files that an earlier step of this stage committed."""
        return self.files_of(self.parts(step), table)

    def table(self, name: str, inputs: Any) -> Files:
        """Return a table that a step reads: of the stage's inputs, or else of the step of this stage that gives it."""
        of_stage = getattr(inputs, name, None)
        if isinstance(of_stage, Files):
            return of_stage
        return self.files(next(step.name for step in self.stage.steps if name in step.gives), name)

    def files_of(self, parts: Sequence[PartRecord], table: str) -> Files:
        """Return the files of these parts that hold `table`, checked.

        Raises: DamageError.
        """
        return self.require(files_in(self.workdir, parts, table))

    def result(self, step: str) -> tuple[Funnel, dict[str, Any]]:
        """Funnel and notes of a step that has one part."""
        (part,) = self.parts(step)
        assert part.funnel is not None
        return part.funnel, dict(part.notes)

    def execution(self, step: Step[Any, How], stem: str, shared: Any = None) -> Execution[How]:
        """Return how a part of this stage runs."""
        store = store_of(self.workdir) or ""
        gives = {table: self.stage.columns_of(table) for table in step.gives}
        options = (self.settings.memory_gb, stem, self.how, shared, (), store, self.stage.name)
        return Execution(self.workdir, *options, gives)

    def scratch(self) -> AbstractContextManager[Any]:
        """Return a private DuckDB for planning."""
        return open_scratch(self.workdir, self.settings.memory_gb)

    def funnel(self, step: str) -> Funnel:
        """Return the sum over all parts of a step."""
        return sum((part.funnel for part in self.parts(step) if part.funnel), Funnel(0, 0))

    def num_rows(self, table: Files) -> int:
        """Return how many rows a table has, as its files say."""
        return sum(pq.ParquetFile(path).metadata.num_rows for path in brought(table).paths)

    def buckets(self, table: Files) -> list[Bucket]:
        """Ranges of sample ids that fit the memory of one worker, by the number of rows of a table."""
        return self.buckets_of(self.num_rows(table))

    def buckets_of(self, num_rows: int) -> list[Bucket]:
        """Return the same of so many rows. With a store they are not fine: a part elsewhere brings its tables whole."""
        return cut_buckets(num_rows, self.settings.memory_gb, store_of(self.workdir) is None)

    def scratch_file(self, name: str) -> str:
        """Path of a private file that lives as long as the build."""
        folder = storage.join(self.workdir, "scratch")
        storage.make_folder(folder)
        return storage.join(folder, name)


Work = Callable[..., PartResult | Iterator[PartResult]]


@dataclass(frozen=True)
class Step(Generic[StageInputs, How]):
    """Parts that may run side by side.

    `reads` names tables that each part reads whole, `cut` tables of which it reads a bucket of sample ids: the rows of
    the first one say how many buckets there are. A table is one of the stage's inputs, or one that an earlier step
    gives. `work` gets them as `Inputs`, and a value for each further parameter of its signature: what its plan gives
    by that name, else a field of the stage's inputs or of a dataclass among them. Nothing else reaches it.

    `plan` says what each part has of its own, by name; no part, where there is nothing to do. It gives a `Part` where
    they weigh differently or later builds take them up, and may raise ConfigError. Without it there is one part, or one
    a bucket. Work that takes nothing by name gets what the plan gives, or else the stage's inputs.

    `gives` names the tables that the parts write (`Stage.columns_of`).

    `committed` names parts of earlier builds that count too: fetch keeps what it downloaded.

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
    work: Work
    version: int = 1
    reads: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    plan: Callable[[StageInputs, StageRun[How]], Sequence[Any]] | None = None
    how: Callable[[BuildContext], How] | None = None
    unit: str = "parts"
    committed: Callable[[StageInputs, StageRun[How]], Sequence[PartRecord]] | None = None
    shared: Callable[[BuildContext], Callable[[], Any]] | None = None
    gpus: Callable[[BuildContext], float] | None = None
    reports: bool = False
    from_outside: bool = False
    prepares: bool = False
    learns: Callable[[StageInputs, StageRun[Any]], StageInputs] | None = None

    @property
    def values(self) -> dict[str, bool]:
        """The values that its work gets by name besides tables, and whether each must be given."""
        more = list(inspect.signature(self.work).parameters.values())[2:]
        return {parameter.name: parameter.default is parameter.empty for parameter in more}

    def parts(self, inputs: StageInputs, run: StageRun[How]) -> list[Part[Any]]:
        """Its parts, each with all that it reads."""
        names, values = (*self.cut, *self.reads), self.values
        planned = self.plan(inputs, run) if self.plan else [{} if names or values else inputs]
        parts = [part if isinstance(part, Part) else Part(part) for part in planned]
        if not parts or not (names or values):
            return parts
        tables = {name: run.table(name, inputs) for name in names if name not in parts[0].inputs}
        needed = [name for name, is_needed in values.items() if is_needed and name not in parts[0].inputs]
        shared = tables | {name: value_of(inputs, name) for name in needed}
        complete: list[Part[Any]] = []
        for part in parts:
            read = {**shared, **part.inputs}
            tables = {name: read.pop(name) for name in names}
            columns = {name: run.stage.columns_of(name) for name, files in tables.items() if not files}
            buckets = run.buckets(tables[self.cut[0]]) if self.cut else [None]
            complete += [replace(part, inputs=Inputs(tables, read, bucket, self.cut, columns)) for bucket in buckets]
        return complete

    def reuse_key(self, reuse: Any) -> str:
        """Return the name of parts that this version of the step makes with `reuse`; empty where that is None."""
        if reuse is None:
            return ""
        return fingerprint({"step": self.name, "version": self.version, "reuse": identity_of(reuse)})


@dataclass(frozen=True)
class Stage(Generic[StageInputs]):
    """One entry of FLOW.

    `tables` says the columns of tables of this stage, and of earlier ones, that no view of the catalogue shows.

    `conclude` turns the committed parts into the funnel and notes of the sealed stage; without it they are those of the
    last step, which then has one part. `settle` writes into the catalogue what only this stage knows, also when it
    is reused.
    """

    name: str
    about: str
    inputs: Callable[[BuildContext], StageInputs]
    steps: tuple[Step[StageInputs, Any], ...]
    conclude: Callable[[StageInputs, StageRun[None]], tuple[Funnel, dict[str, Any]]] | None = None
    settle: Callable[[BuildContext], None] | None = None
    tables: Mapping[str, pa.Schema] = field(default_factory=dict)

    def columns_of(self, table: str) -> pa.Schema:
        """Return the columns that a table has which a step reads or gives."""
        if table not in self.tables and table not in SAMPLE_VIEWS:
            raise LookupError(f"{self.name}: no columns are known of the table {table}; say them in `tables`")
        return self.tables[table] if table in self.tables else SAMPLE_VIEWS[table][1]

    def identity(self, inputs: StageInputs) -> dict[str, Any]:
        """Return the values for the fingerprint of a version of this stage."""
        versions = {step.name: step.version for step in self.steps if not step.prepares}
        return {"versions": versions, **identity_of(inputs)}

    def fingerprint(self, inputs: StageInputs) -> str:
        """Return the version of this stage that these inputs make."""
        return fingerprint({"stage": self.name, **self.identity(inputs)})

    def key_of(self, step: Step[StageInputs, Any], part: Part[Any]) -> str:
        """Return the key of a part: equal inputs give equal keys."""
        return fingerprint(
            {"step": f"{self.name}.{step.name}", "version": step.version, "inputs": identity_of(part.inputs)}
        )


@dataclass
class BuildContext:
    """The material for the inputs of a stage: the configuration and the sealed stages before it."""

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
        """Return a sealed stage's files that hold `table`, in plan order."""
        return files_in(self.workdir, self.catalog.parts_of(self.sealed[stage].fingerprint), table)

    def facts(self) -> Files:
        """Return the table of facts, known by what the images show, not by how they were fetched or where they lie."""
        return self.files("fetch", "facts").digested(self.sealed["fetch"].notes["content"])


def files_in(workdir: str, parts: Sequence[PartRecord], table: str) -> Files:
    """Return the files of committed parts that hold `table`."""
    held = [file for part in parts for file in part.files if file.table == table]
    return files_of([(storage.join(workdir, file.path), file.sha256) for file in held])
