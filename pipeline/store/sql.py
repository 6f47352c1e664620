"""DuckDB for steps: a scratch database that spills to disk, views over Parquet, sorted Parquet out, digests of rows."""

from __future__ import annotations

import atexit
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from manifests.contract.reader import literals
from manifests.errors import RunError
from manifests.names.sql import identifier
from manifests.stores import storage
from manifests.stores.faults import ask
from manifests.stores.folder import bring_missing
from pipeline.store.files import Files, RowGroup
from pipeline.store.writing import ROW_GROUP_ROWS, PrivateFile, TableWriter, require_columns


def facet(connection: Any, columns: Sequence[str], table: str) -> str:
    """Digest of a set of rows in any order: count, xor and sum of the rows' md5 numbers."""
    # each value follows its length, so that no text can pass for two columns or for a null
    joined = ", ".join(
        f"coalesce(strlen({column}::VARCHAR)::VARCHAR, '-'), if({column} IS NULL, '', ':'), {column}::VARCHAR"
        for column in columns
    )
    (row,) = connection.execute(
        f"SELECT count(*), to_hex(bit_xor(h)), sum((h >> 64)::UBIGINT % 1000000007) "
        f"FROM (SELECT md5_number(concat({joined})) AS h FROM {table})"
    ).fetchall()
    return "-".join(str(value) for value in row)


def count_within(connection: Any, query: str) -> dict[str, dict[str, int]]:
    """Rows of two names and a number, as the numbers of the second names within each first one."""
    counts: dict[str, dict[str, int]] = {}
    for outer, inner, num in connection.execute(query).fetchall():
        counts.setdefault(outer, {})[inner] = num
    return counts


def first_half_of_md5(text: str) -> str:
    """Return SQL for an unsigned 64-bit number of a text.

    `md5_number_upper` gives the same for four times the CPU (DuckDB 2).
    """
    return f"(md5_number({text}) & {2**64 - 1}::UHUGEINT)::UBIGINT"


_MADE_IN = "scratch"  # a database of its own for each use: to drop it costs less than to find and drop what is in it


@dataclass
class _Database:
    """An in-memory DuckDB, and the private folder below `scratch` that it spills into."""

    root: Any
    scratch: str = ""
    folder: str = ""

    @classmethod
    def open(cls) -> Self:
        # a thread of its own gives memory back that is no longer used, also while this process has nothing to do
        return cls(duckdb.connect(config={"allocator_background_threads": True}))

    @contextmanager
    def connected(self, scratch: str, memory_gb: float) -> Iterator[Any]:
        """Open a connection to an empty database and remove both afterwards, unless the context ends with an error."""
        connection = self.root.cursor()
        if scratch != self.scratch:  # it may change as long as nothing was spilled
            self.scratch, self.folder = scratch, storage.join(scratch, uuid.uuid4().hex[:12])  # made when it must spill
            connection.execute("SET temp_directory = ?", [self.folder])
        # the libraries of the process and what it holds beside the query take the rest
        limit_mb = max(256, int(memory_gb * 1000 - min(450, memory_gb * 290)))
        connection.execute(f"SET memory_limit = '{limit_mb}MB'; SET preserve_insertion_order = false")
        connection.execute(f"ATTACH ':memory:' AS {_MADE_IN}; USE {_MADE_IN}")
        with connection:  # closes it
            yield connection
        self.root.execute(f"DETACH {_MADE_IN}")

    def close(self) -> None:
        """Give the memory back and remove the folder."""
        self.root.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def beside(connection: Any) -> Any:
    """Return a second cursor on the tables of `open_scratch`, for while the first one is still reading rows."""
    cursor = connection.cursor()
    cursor.execute(f"USE {_MADE_IN}")
    return cursor


_idle: list[_Database] = []  # one at most


@contextmanager
def open_scratch(workdir: str, memory_gb: float) -> Iterator[Any]:
    """Open an in-memory DuckDB with a memory limit. Its content and the files that it spilled go with it.

    A database that neither spilled nor read from a store is kept for the next one of this process, until
    `close_scratch`: to open and close one takes 15 ms, and a build needs some fifty.

    Raises: RunError where a query fits neither into the memory limit nor on the disk.
    """
    scratch = storage.join(workdir, "scratch")
    storage.make_folder(scratch)
    database = _idle.pop() if _idle else _Database.open()
    try:
        with database.connected(scratch, memory_gb) as connection:
            yield connection
    except BaseException as error:
        database.close()
        if "Out of Memory Error" in str(error):  # a kind of its own, or within one of Arrow's
            raise RunError(
                f"a query does not fit into run.memory_gb ({memory_gb:g}), nor on the disk of {scratch} "
                f"({str(error).splitlines()[0]}); give it more of either, then run the same command to go on"
            ) from None
        raise
    if Path(database.folder).exists() or database.root.list_filesystems():
        database.close()  # nothing else frees the disk, or forgets what was read from a store
    else:
        close_scratch()  # one that was needed beside this one
        _idle.append(database)


def close_scratch() -> None:
    """Close the database that `open_scratch` keeps, if any."""
    while _idle:
        _idle.pop().close()


atexit.register(close_scratch)


class _ForDuckDB(AbstractFileSystem):  # type: ignore[misc]  # its base is Any: fsspec has no types
    """A store as DuckDB reads it. DuckDB closes no file, so none may read ahead in the background, as gcsfs would."""

    cachable = False

    def __init__(self, fs: Any) -> None:
        super().__init__()
        self.protocol, self._fs = fs.protocol, fs
        self.exists, self.glob, self.info, self.ls, self.modified = fs.exists, fs.glob, fs.info, fs.ls, fs.modified

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return self._fs.open(path, mode, cache_type="readahead", **options)


def view_parquet(connection: Any, name: str, paths: Sequence[str], where: str = "true") -> None:
    """Make a view over the rows of Parquet files for which `where` holds.

    fsspec reads remote files; files of the work folder's store are brought here.
    """
    bring_missing(paths)
    for path in paths:
        if storage.is_remote(path):
            fs, _ = storage.filesystem(path)
            protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
            if not protocols & set(connection.list_filesystems()):
                connection.register_filesystem(_ForDuckDB(fs))
            with suppress(FileNotFoundError):  # then DuckDB says so
                # known from now on; else DuckDB asks 256 times about a table of 18 kB
                ask(path, partial(fs.ls, path.rpartition("/")[0]))
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{literals(paths)}]) WHERE {where}")


def view_table(connection: Any, name: str, files: Files, schema: pa.Schema | None, where: str = "true") -> None:
    """Make a view over a table; an empty one where there are no files."""
    if files or schema is None:
        view_parquet(connection, name, files.paths, where)
    else:
        connection.register(name, schema.empty_table())


def empty_columns(connection: Any, paths: Sequence[str]) -> frozenset[str]:
    """Columns of Parquet files that hold no value in any of them, by what the files say of their row groups.

    Joins and sorts need not carry them: of reading and sorting 40 columns, 11 such ones took a third (2026-11-27).
    """
    bring_missing(paths)
    columns = connection.execute(
        f"SELECT path_in_schema FROM parquet_metadata([{literals(paths)}]) GROUP BY ALL "
        "HAVING bool_and(coalesce(stats_null_count, 0) = num_values) AND sum(num_values) > 0"
    )
    return frozenset(path for (path,) in columns.fetchall() if ", " not in path)  # else it leads into a list or a map


def add_empty(rows: pa.Table, schema: pa.Schema, empty: Collection[str]) -> pa.Table:
    """Return the rows, with those columns of `schema` that are `empty` put back."""
    for field in schema:
        if field.name in empty:
            rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return rows


def copy_sorted(
    connection: Any, query: str, order: str, writer: TableWriter, empty: Collection[str] = ()
) -> PrivateFile:
    """Stream a query's rows, sorted, into a table file; columns are picked by the writer's schema.

    Columns that are known to be `empty` are not sorted.
    """
    names = ", ".join(identifier(name) for name in writer.schema.names if name not in empty)
    try:
        rows = connection.sql(f"SELECT {names} FROM ({query}) ORDER BY {order}")
    except duckdb.BinderException:
        require_columns(writer.table, writer.schema, {*connection.sql(query).columns, *empty})
        raise
    for batch in rows.to_arrow_reader(ROW_GROUP_ROWS):
        writer.write(add_empty(pa.Table.from_batches([batch]), writer.schema, empty))
    return writer.close()


def read_up_to(connection: Any, query: str, most_bytes: int | None) -> pa.Table | None:
    """Return the rows of a query; None when they take more than `most_bytes`."""
    reader, batches, num_bytes = connection.sql(query).to_arrow_reader(ROW_GROUP_ROWS), [], 0
    for batch in reader:
        num_bytes += batch.nbytes
        if most_bytes is not None and num_bytes > most_bytes:
            return None
        batches.append(batch)
    return pa.Table.from_batches(batches, reader.schema)


def cut_rows(
    connection: Any, query: str, order: str, hashed: str, path: str, num_rows: int
) -> list[tuple[RowGroup, int]]:
    """Write a query's rows, in order, to a scratch file with row groups of `num_rows`; returns each with its row count.

    The content of a row group is a digest of the text `hashed` over its rows, in any order.
    """
    connection.execute("SET preserve_insertion_order = true")  # sorted rows come in order, and are nowhere held twice
    reader = connection.sql(f"FROM ({query}) ORDER BY {order}").to_arrow_reader(num_rows)
    with pq.ParquetWriter(path, reader.schema, compression="lz4") as writer:
        waiting = reader.schema.empty_table()
        for batch in reader:
            waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
            while waiting.num_rows >= num_rows:
                writer.write_table(waiting.slice(0, num_rows), row_group_size=num_rows)
                waiting = waiting.slice(num_rows)
        if waiting.num_rows:
            writer.write_table(waiting, row_group_size=num_rows)
    groups = connection.execute(
        f"SELECT file_row_number // {num_rows}, count(*), to_hex(bit_xor(md5_number({hashed}))) "
        f"FROM read_parquet({literals([path])}, file_row_number = true) GROUP BY 1 ORDER BY 1"
    ).fetchall()
    return [(RowGroup(path, number, f"{num}-{content}"), num) for number, num, content in groups]
