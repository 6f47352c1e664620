"""The words of the runner: what a stage, a step, a part and its result are. No work here, no ray.

A stage is one entry of FLOW. It has steps; a step plans parts; a part is a pure function of a payload that
writes private files and returns a small record. The runner publishes and commits it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests import storage
from manifests.catalog import Funnel, PartRecord, StageRecord
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
    whatever the plan says (the fetch stage keeps what it already downloaded).
    """

    name: str
    plan: Callable[[BuildContext], Sequence[Part]]
    work: Work
    unit: str = "parts"
    committed: Callable[[BuildContext], Sequence[PartRecord]] | None = None


@dataclass(frozen=True)
class Stage:
    """One entry of FLOW.

    `identity` names everything that decides what the stage yields; its hash is the stage version.
    `conclude` turns the committed parts into the funnel and notes of the sealed stage; `after_seal` tells the
    catalogue what only this stage knows.
    """

    name: str
    about: str
    identity: Callable[[BuildContext], dict[str, Any]]
    steps: tuple[Step, ...]
    conclude: Callable[[BuildContext], tuple[Funnel, dict[str, Any]]]
    after_seal: Callable[[BuildContext], None] | None = None


@dataclass
class BuildContext:
    """What plans may look at: the configuration, sealed stages before this one, and committed parts of this one."""

    config: BuildConfig
    workdir: str
    catalog: Any
    sealed: dict[str, StageRecord] = field(default_factory=dict)
    fingerprint: str = ""
    generation: int = 0

    def files(self, stage: str, table: str) -> list[str]:
        """Absolute paths of a sealed stage's files that hold `table`, in plan order."""
        return self._files(self.sealed[stage].fingerprint, None, table)

    def own_parts(self, step: str) -> list[PartRecord]:
        """Committed parts of an earlier step of the stage being built."""
        return list(self.catalog.parts_of(self.fingerprint, step))

    def own_files(self, step: str, table: str) -> list[str]:
        """Absolute paths of the files that an earlier step of the stage being built committed."""
        return self._files(self.fingerprint, step, table)

    def _files(self, version: str, step: str | None, table: str) -> list[str]:
        return [
            storage.join(self.workdir, file.path)
            for part in self.catalog.parts_of(version, step)
            for file in part.files
            if file.table == table
        ]


class TableWriter:
    """Stream Arrow tables of one schema into a private Parquet file (zstd)."""

    def __init__(self, workdir: str, table: str, path: str, schema: pa.Schema) -> None:
        self._table, self._path = table, path
        final = storage.join(workdir, path)
        storage.make_folder(final.rpartition("/")[0])
        self._temp = storage.temp_path(final)
        fs, inner = storage.filesystem(self._temp)
        self._schema = schema
        self._stream = fs.open(inner, "wb")
        self._writer = pq.ParquetWriter(self._stream, schema, compression="zstd")
        self._num_rows = 0

    def write(self, rows: pa.Table) -> None:
        """Append rows; columns are put in the order of the schema and cast to it."""
        rows = rows.select(self._schema.names).cast(self._schema)
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        self._num_rows += rows.num_rows

    def close(self) -> PrivateFile:
        """Finish the file and say what it is."""
        self._writer.close()
        self._stream.close()
        return private_file(self._table, self._path, self._temp, self._num_rows)


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


def open_sql(scratch: str, memory_gb: float, num_threads: int = 2) -> Any:
    """An in-memory DuckDB for one metadata step: spills to `scratch` past its memory, keeps row order on request."""
    import duckdb

    folder = Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(
        config={
            "memory_limit": f"{max(256, int(memory_gb * 1000))}MB",
            "temp_directory": str(folder),
            "threads": num_threads,
            "preserve_insertion_order": False,
        }
    )
