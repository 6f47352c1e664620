"""The words of the runner: what a stage, a step, a part and its result are. No work here, no ray.

A stage is one entry of FLOW. It has steps; a step plans parts; a part is a pure function of a payload that
writes private files and returns a small record. The runner publishes and commits it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.records import Funnel, PartRecord, StageRecord
from manifests.rounds import FetchRound
from pipeline.config import BuildConfig

ROW_GROUP_ROWS = 100_000


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hash of plain JSON values: equal values give equal fingerprints, on any machine."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass(frozen=True)
class PrivateFile:
    """A file a worker wrote under a private name, to be published as `path` (relative to the work folder)."""

    table: str
    path: str
    temp: str
    num_rows: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PartResult:
    """What a worker returns: files in the order of publication, counts, and notes in plain JSON values."""

    files: tuple[PrivateFile, ...] = ()
    funnel: Funnel | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)


Work = Callable[[dict[str, Any]], PartResult]


@dataclass(frozen=True)
class Part:
    """A unit of work: `key` names its content, `payload` is all that `work` sees."""

    key: str
    payload: dict[str, Any]
    reuse_key: str = ""
    num_rows: int = 0


@dataclass(frozen=True)
class Step:
    """Parts that may run side by side.

    `plan` may raise ConfigError. `committed` names committed parts of other stage versions to stand on as well,
    whatever the plan says (the fetch stage keeps what it already downloaded). `shared` gives a picklable maker of one
    object that all workers of the run talk to (`payload["shared"]`), on a cluster through an actor. `gpus`, where a
    step has it, says that its work holds a model from part to part: on Ray its parts go to actors, one a worker, each
    with so many GPUs (0 for none).
    """

    name: str
    plan: Callable[[BuildContext], Sequence[Part]]
    work: Work
    unit: str = "parts"
    committed: Callable[[BuildContext], Sequence[PartRecord]] | None = None
    shared: Callable[[BuildContext], Callable[[], Any]] | None = None
    gpus: Callable[[BuildContext], float] | None = None


@dataclass(frozen=True)
class Stage:
    """One entry of FLOW.

    `identity` names everything that decides what the stage yields; its hash is the stage version.
    `conclude` turns the committed parts into the funnel and notes of the sealed stage; `settle` tells the
    catalogue what only this stage knows, whether it was done or reused.
    """

    name: str
    about: str
    identity: Callable[[BuildContext], dict[str, Any]]
    steps: tuple[Step, ...]
    conclude: Callable[[BuildContext], tuple[Funnel, dict[str, Any]]]
    settle: Callable[[BuildContext], None] | None = None


@dataclass
class BuildContext:
    """What plans may look at: the configuration, sealed stages before this one, and committed parts of this one."""

    config: BuildConfig
    workdir: str
    catalog: Any
    sealed: dict[str, StageRecord] = field(default_factory=dict)
    fingerprint: str = ""
    fetch_round: FetchRound | None = None
    """The round that `plantmix retry` is running; None in a build."""

    def files(self, stage: str, table: str) -> list[str]:
        """Absolute paths of a sealed stage's files that hold `table`, in plan order."""
        return self._files(self.sealed[stage].fingerprint, None, table)

    def content(self, stage: str, table: str) -> list[str]:
        """Hashes of a sealed stage's files that hold `table`: equal content gives equal fingerprints downstream."""
        version = self.sealed[stage].fingerprint
        return [file.sha256 for part in self.catalog.parts_of(version) for file in part.files if file.table == table]

    def execution(self) -> dict[str, Any]:
        """What a metadata step needs to run and no fingerprint may see."""
        return {"workdir": self.workdir, "memory_gb": self.config.run.memory_gb}

    def own_parts(self, step: str) -> list[PartRecord]:
        """Committed parts of an earlier step of the stage being built."""
        return list(self.catalog.parts_of(self.fingerprint, step))

    def own_result(self, step: str) -> tuple[Funnel, dict[str, Any]]:
        """Funnel and notes of a step that has one part: what most stages conclude with."""
        (part,) = self.own_parts(step)
        assert part.funnel is not None
        return part.funnel, dict(part.notes)

    def own_files(self, step: str, table: str) -> list[str]:
        """Absolute paths of the files that an earlier step of the stage being built committed."""
        return self._files(self.fingerprint, step, table)

    def paths(self, part: PartRecord, table: str) -> list[str]:
        """Absolute paths of a part's files that hold `table`."""
        return [storage.join(self.workdir, file.path) for file in part.files if file.table == table]

    def _files(self, version: str, step: str | None, table: str) -> list[str]:
        return [path for part in self.catalog.parts_of(version, step) for path in self.paths(part, table)]


class TableWriter:
    """Stream Arrow tables of one schema into a private Parquet file (zstd).

    Row groups hold exactly `row_group_rows` rows, however the rows come: DuckDB cuts its batches at its own
    122,880 rows when it sorts on more than one thread, and a file may not depend on the number of cores.
    """

    def __init__(
        self, workdir: str, table: str, path: str, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS
    ) -> None:
        self._table, self._path = table, path
        final = storage.join(workdir, path)
        storage.make_folder(final.rpartition("/")[0])
        self._temp = storage.temp_path(final)
        fs, inner = storage.filesystem(self._temp)
        self.schema = schema
        self._stream = fs.open(inner, "wb")
        self._writer = pq.ParquetWriter(self._stream, schema, compression="zstd")
        self._num_rows = 0
        self._row_group_rows = row_group_rows
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def write(self, rows: pa.Table) -> None:
        """Append rows; columns are put in the order of the schema and cast to it."""
        rows = rows.select(self.schema.names).cast(self.schema)
        self._waiting.append(rows)
        self._num_waiting += rows.num_rows
        self._num_rows += rows.num_rows
        if self._num_waiting >= self._row_group_rows:
            self._write_groups(self._num_waiting - self._num_waiting % self._row_group_rows)

    def write_group(self, rows: pa.Table) -> None:
        """Write rows as one row group of their own; not to be mixed with `write`."""
        rows = rows.select(self.schema.names).cast(self.schema).combine_chunks()
        self._num_rows += rows.num_rows
        self._writer.write_table(rows, row_group_size=rows.num_rows)

    def close(self) -> PrivateFile:
        """Finish the file and say what it is."""
        if self._num_waiting:
            self._write_groups(self._num_waiting)
        self._writer.close()
        self._stream.close()
        return private_file(self._table, self._path, self._temp, self._num_rows)

    def _write_groups(self, num_rows: int) -> None:
        rows = pa.concat_tables(self._waiting)
        # one chunk a column: a chunk's borders would move the borders of Parquet's pages
        self._writer.write_table(rows.slice(0, num_rows).combine_chunks(), row_group_size=self._row_group_rows)
        rest = rows.slice(num_rows)
        self._waiting, self._num_waiting = [rest], rest.num_rows


def write_table(workdir: str, table: str, path: str, rows: pa.Table, schema: pa.Schema) -> PrivateFile:
    """Write one Arrow table to a private Parquet file."""
    writer = TableWriter(workdir, table, path, schema)
    writer.write(rows)
    return writer.close()


def private_file(table: str, path: str, temp: str, num_rows: int) -> PrivateFile:
    """Describe a finished private file by its content."""
    written = storage.hash_file(temp)
    return PrivateFile(table, path, temp, num_rows, written.num_bytes, written.sha256)


def private_bytes(workdir: str, table: str, path: str, content: bytes, num_rows: int = 0) -> PrivateFile:
    """Write bytes to a private file that will be published as `path`."""
    final = storage.join(workdir, path)
    storage.make_folder(final.rpartition("/")[0])
    temp = storage.temp_path(final)
    fs, inner = storage.filesystem(temp)
    with fs.open(inner, "wb") as stream:
        stream.write(content)
    return PrivateFile(table, path, temp, num_rows, len(content), hashlib.sha256(content).hexdigest())
