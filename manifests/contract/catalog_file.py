"""The files of a catalogue: its database, and the snapshot and journal that it can be rebuilt from.

`catalog.snapshot` holds every row as JSON, a line each with a hash of its own. It is written when the catalogue is
opened, when a stage is sealed and when the catalogue is closed. `catalog.journal` holds each part that was committed
or forgotten since then. Each is in the journal before it is in the database, so the two files together never know less
than the database does. When the database is closed, its sha256 is the last line of the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.masking import hide_in
from manifests.names.sql import identifier
from manifests.stores import storage

CATALOG_FILE = "catalog.duckdb"
CONFIG_FILE = "catalog.config"  # private: the last configuration, when it holds secrets
HIDDEN = "without-secrets-"  # begins the key of a configuration that is shown otherwise than it is
TAKEDOWNS_FILE = "takedowns.jsonl"  # read and written by takedowns.py
SNAPSHOT_FILE, JOURNAL_FILE = "catalog.snapshot", "catalog.journal"
FORMAT = 1  # of the catalogue and its snapshot; raise it when an older program must not write them
_READ_OF_0_4 = 6  # the version of ingest's step `read` in 0.4.0 (commit 39107260)
MAX_LOST_SHARE = 0.1  # of the recorded files of a folder
_GUARDED = ("pool", "tables")  # a release that was deleted is made from these
_NOT_KEPT = (
    "inputs",
    "stamps",
    "snapshots",
)  # hashes that can be taken again; the snapshot says itself which one it is

Row = dict[str, Any]


@dataclass
class Snapshot:
    """The content of the snapshot and the journal of a work folder together."""

    catalog_id: str
    number: int
    tables: dict[str, list[Row]] = field(default_factory=dict)
    closed: Row | None = None
    """Size and sha256 of the database, if it was closed after the snapshot."""


def open_database(workdir: str) -> Any:
    """Open the database of a work folder for writing, or make it; its tables are those of schema.sql afterwards.

    Raises: RunError when another process holds it; IntegrityError when it is gone, damaged, of another work folder or
        of a newer program.
    """
    path = storage.join(workdir, CATALOG_FILE)
    snapshot_path = Path(storage.join(workdir, SNAPSHOT_FILE))
    if not Path(path).exists() and snapshot_path.exists():
        raise gone(workdir)
    with ExitStack() as when_refused:  # else a later command of this process would meet a database that is still open
        try:
            connection = duckdb.connect(path)
            when_refused.callback(_let_go, connection)
            # statements of a row or two, while workers keep all cores busy: waking more threads doubles their CPU
            connection.execute("SET threads = 1")
            refuse_foreign(connection, workdir)
            _bring_schema(connection)
            snapshot = find_snapshot(workdir)
            _refuse_other(connection, workdir, snapshot)
            if snapshot is not None:  # a build may have been killed between journal and database
                _insert(connection, {name: snapshot.tables.get(name, []) for name in ("parts", "files", "stage_parts")})
            write_snapshot(connection, workdir)  # reads every row, so damage shows now
        except duckdb.Error as error:
            raise explain_duckdb(workdir, error) from None
        when_refused.pop_all()
    return connection


def _bring_schema(connection: Any) -> None:
    """Make the tables those of schema.sql, unless a comment says that they are."""
    schema = (Path(__file__).parent / "schema.sql").read_text(encoding="utf-8")
    note = f"One row: which catalogue this is. Its tables are those of {hashlib.sha256(schema.encode()).hexdigest()}"
    noted = "SELECT 1 FROM duckdb_tables() WHERE table_name = 'snapshots' AND comment = ?"
    if not connection.execute(noted, [note]).fetchall():
        with transaction(connection):  # one, not one a statement: 80 waits for the disk took 0.5 s and more
            connection.execute(f"{schema}; COMMENT ON TABLE snapshots IS '{note}'")


def _let_go(connection: Any) -> None:
    with suppress(duckdb.Error):  # of a damaged one
        connection.close()


def shown_config(config: str) -> tuple[str, str]:
    """Return the key of a configuration and its text without secrets.

    The key is of that text, and says whether it had any.
    """
    shown = hide_in(values := json.loads(config))
    text = config if shown == values else json.dumps(shown)
    return f"{'' if text == config else HIDDEN}{hashlib.sha256(text.encode()).hexdigest()}", text


def whole_config(workdir: str, key: str, shown: str) -> str:
    """Return a configuration with its secrets, out of its private file where it has any.

    Raises: ConfigError when they are not kept here.
    """
    if not key.startswith(HIDDEN):
        return shown
    path = Path(storage.join(workdir, CONFIG_FILE))
    whole = path.read_text(encoding="utf-8") if path.is_file() else "{}"
    if shown_config(whole)[0] != key:
        raise ConfigError(
            f"{path}: the secrets of the last build's configuration are not kept here; give CONFIG, or run "
            "`plantmix build CONFIG` once more"
        )
    return whole


def is_work_folder(path: str) -> bool:
    """Return whether a catalogue or its snapshot lies here."""
    return any(Path(storage.join(path, name)).is_file() for name in (CATALOG_FILE, SNAPSHOT_FILE))


def require_work_folder(path: str) -> None:
    """Raise ConfigError where neither a catalogue nor its snapshot lies."""
    if not is_work_folder(path):
        raise ConfigError(f"{path}: no catalogue ({CATALOG_FILE}) here; give the work folder of a build")


def gone(workdir: str) -> IntegrityError:
    """Return the error to raise when there is a snapshot, and no database."""
    return IntegrityError(f"{storage.join(workdir, CATALOG_FILE)}: the catalogue is gone; {_advice(workdir)}")


def explain_duckdb(workdir: str, error: Exception) -> Exception:
    """Return the error to raise when DuckDB cannot read a catalogue: held by another process, or broken."""
    path, text = storage.join(workdir, CATALOG_FILE), str(error)
    if is_held(error):
        return RunError(
            f"{path}: another process is writing this catalogue (a build is running here); commands that only read "
            "work meanwhile (status, query, explain, verify, browse, report), this one when the build has ended"
        )
    if "Could not write" in text:  # a fault of the disk, not of what is on it
        return RunError(f"{path}: {text.splitlines()[0]}; mend the cause and run the same command again")
    return IntegrityError(f"{path}: DuckDB cannot open it: {text.splitlines()[0]}; {_advice(workdir)}")


def is_held(error: Exception) -> bool:
    """Return whether DuckDB could not open a database because another process writes it."""
    return "set lock on file" in str(error)


def _advice(workdir: str) -> str:
    try:
        read_snapshot(workdir)
    except IntegrityError as error:
        return (
            f"it cannot be rebuilt ({error}); take it from a backup, or give the build an empty work folder. Shards "
            "of a release can be a `webdataset` source there, and the web is not asked for their pictures"
        )
    return f"`plantmix repair {workdir}` rebuilds it from its snapshot, and asks the web for nothing"


def refuse_foreign(connection: Any, workdir: str) -> None:
    """Refuse a database that is no catalogue of this version.

    Raises: IntegrityError for other tables than those of a catalogue, ConfigError for one from before 0.4.0.
    """
    rows = connection.execute("SELECT table_name, database_name FROM duckdb_tables() WHERE NOT temporary").fetchall()
    names = {row[0] for row in rows}
    if names and not {"stages", "parts", "files"} <= names:
        raise IntegrityError(
            f"{storage.join(workdir, CATALOG_FILE)}: a DuckDB database, but no catalogue (tables: "
            f"{', '.join(sorted(names)[:5])}); {_advice(workdir)}"
        )
    if names:
        stages = connection.execute(f"SELECT stage, identity FROM {identifier(rows[0][1])}.main.stages").fetchall()
        _refuse_older(workdir, stages)


def _refuse_older(workdir: str, stages: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigError when one of the stage versions of a work folder, each with its identity, is older than 0.4.0.

    Every build begins with `ingest`, and the identity of a stage version names the versions of its steps.
    """
    reads = (json.loads(identity).get("versions", {}).get("read") for stage, identity in stages if stage == "ingest")
    if any(version is not None and version < _READ_OF_0_4 for version in reads):
        raise ConfigError(
            f"{workdir}: PlantMix before 0.4.0 built here, which this version does not read; nothing was changed. "
            "PlantMix 0.4.0 (commit 39107260) goes on with this folder. For this version, give the build an empty "
            "work folder; shards of a release can be a `webdataset` source there, without a download"
        )


def _refuse_other(connection: Any, workdir: str, snapshot: Snapshot | None) -> None:
    """Raise IntegrityError when the database belongs to another work folder or is older than the snapshot."""
    path = storage.join(workdir, CATALOG_FILE)
    rows = connection.execute("SELECT catalog_id, format, number FROM snapshots").fetchall()
    catalog_id, made_with, number = rows[0] if rows else (None, FORMAT, 0)
    if made_with > FORMAT:
        raise IntegrityError(f"{path}: written by a newer version of PlantMix (format {made_with}); use that version")
    if snapshot is not None and catalog_id not in (None, snapshot.catalog_id):
        raise IntegrityError(f"{path}: the catalogue of another work folder; {_advice(workdir)}")
    if snapshot is not None and number < snapshot.number:
        raise IntegrityError(f"{path}: older than its snapshot ({number} of {snapshot.number}); {_advice(workdir)}")
    if catalog_id is None:
        connection.execute("INSERT INTO snapshots VALUES (?, ?, 0)", [uuid.uuid4().hex, FORMAT])


# ---- snapshot and journal


def write_snapshot(connection: Any, workdir: str) -> None:
    """Write every row of the catalogue, then begin a new journal."""
    changed = connection.execute("UPDATE snapshots SET number = number + 1 RETURNING catalog_id, number")
    ((catalog_id, number),) = changed.fetchall()
    tables = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY 1").fetchall()
    kept = [name for (name,) in tables if name not in _NOT_KEPT]
    # that a takedown list was there must outlive it, so its row is kept of a table that is not
    listed = f"SELECT 'inputs', to_json(t)::VARCHAR FROM inputs t WHERE path = '{TAKEDOWNS_FILE}'"
    union = " UNION ALL ".join(
        [*(f"SELECT '{name}', to_json(t)::VARCHAR FROM {identifier(name)} t" for name in kept), listed]
    )
    rows = connection.execute(union).fetchall()  # one statement costs half of what one a table did
    body = b"".join(_hashed(f'["{table}", {row}]'.encode()) for table, row in rows)
    head = {"format": FORMAT, "catalog": catalog_id, "number": number, "sha256": hashlib.sha256(body).hexdigest()}
    storage.publish_bytes(storage.join(workdir, SNAPSHOT_FILE), _line(head) + body)
    Path(storage.join(workdir, JOURNAL_FILE)).unlink(missing_ok=True)


def append_to_journal(workdir: str, entries: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to the journal, and wait until they are on the disk."""
    path = storage.join(workdir, JOURNAL_FILE)
    with storage.naming(path), Path(path).open("ab") as stream:
        stream.writelines(map(_line, entries))
        stream.flush()
        os.fsync(stream.fileno())


def note_closed(workdir: str) -> None:
    """Record what the closed database looks like, so that any later change of it shows."""
    written = storage.hash_file(storage.join(workdir, CATALOG_FILE))
    append_to_journal(workdir, [{"closed": {"num_bytes": written.num_bytes, "sha256": written.sha256}}])


def read_snapshot(workdir: str) -> Snapshot:
    """Snapshot and journal.

    Raises: IntegrityError when the snapshot is not there, damaged, or of a newer program; or when a line of the journal
        is damaged. The last line may be cut: a killed build wrote it.
    """
    path, journal = (Path(storage.join(workdir, name)) for name in (SNAPSHOT_FILE, JOURNAL_FILE))
    if not path.is_file():
        raise IntegrityError(f"{path}: there is no snapshot")
    # after the last line of each comes nothing, or one that was cut
    rows, entries = (file.read_bytes().split(b"\n") if file.is_file() else [b""] for file in (path, journal))
    head = _parsed(rows[0])
    if head is None or head.get("sha256") != hashlib.sha256(b"\n".join(rows[1:])).hexdigest():
        raise IntegrityError(f"{path}: the snapshot is damaged")
    if head["format"] > FORMAT:
        raise IntegrityError(f"{path}: written by a newer version of PlantMix (format {head['format']})")
    snapshot = Snapshot(head["catalog"], head["number"])
    for table, row in map(_parsed, rows[1:-1]):
        snapshot.tables.setdefault(table, []).append(row)
    for entry in map(_parsed, entries[:-1]):
        if entry is None:
            raise IntegrityError(f"{journal}: the journal is damaged")
        snapshot.closed = entry.pop("closed", None)
        if forgotten := entry.pop("forgotten", None):
            _forget(snapshot.tables, set(forgotten))
        for table, rows_of_part in entry.items():
            snapshot.tables.setdefault(table, []).extend(rows_of_part)
    return snapshot


def _forget(tables: dict[str, list[Row]], keys: set[str]) -> None:
    """Take out what `Catalog.forget_parts` took out of the database."""
    unsealed = {row["fingerprint"] for row in tables.get("stage_parts", ()) if row["part_key"] in keys}
    for row in tables.get("stages", ()):
        row["sealed_at"] = None if row["fingerprint"] in unsealed else row["sealed_at"]
    for name in ("stage_parts", "files", "parts"):
        tables[name] = [row for row in tables.get(name, ()) if row["part_key"] not in keys]


def _line(entry: Mapping[str, Any]) -> bytes:
    return _hashed(json.dumps(entry, sort_keys=True).encode())


def _hashed(text: bytes) -> bytes:
    """Return a line that says itself whether a byte of it has changed."""
    return hashlib.sha256(text).hexdigest()[:16].encode() + b" " + text + b"\n"


def _parsed(line: bytes) -> Any:
    """Return the value in a line; None when a byte of it has changed."""
    digest, _, text = line.partition(b" ")
    return json.loads(text) if hashlib.sha256(text).hexdigest()[:16].encode() == digest else None


def find_snapshot(workdir: str) -> Snapshot | None:
    """Snapshot and journal; None when they are not there or damaged."""
    try:
        return read_snapshot(workdir)
    except IntegrityError:
        return None


def _insert(connection: Any, tables: Mapping[str, list[Row]]) -> None:
    """Insert rows; those of parts that are already there are left out."""
    part_keys = {row[0] for row in connection.execute("SELECT part_key FROM parts").fetchall()}
    with transaction(connection):
        for table, rows in tables.items():
            new = [row for row in rows if row.get("part_key") not in part_keys]
            new = list({json.dumps(row, sort_keys=True): row for row in new}.values())
            if not new:
                continue
            names = dict.fromkeys(name for row in new for name in row)
            connection.register("new_rows", pa.table({name: [row.get(name) for row in new] for name in names}))
            how = "OR IGNORE " if table in ("parts", "stage_parts") else ""  # they may be in snapshot and journal
            connection.execute(f"INSERT {how}INTO {identifier(table)} BY NAME SELECT * FROM new_rows")
            connection.unregister("new_rows")


def rebuild(workdir: str) -> Snapshot:
    """Make the database anew from snapshot and journal. What lies there is kept as `catalog.duckdb.damaged`.

    Raises: IntegrityError when the snapshot is damaged too; RunError when another process holds the database.
    """
    path, new = storage.join(workdir, CATALOG_FILE), find_snapshot(workdir)
    if new is None:
        raise IntegrityError(f"{path}: {_advice(workdir)}")
    _refuse_older(workdir, ((row["stage"], row["identity"]) for row in new.tables.get("stages", ())))
    try:
        duckdb.connect(path, read_only=True).close()
    except duckdb.Error as error:
        held = explain_duckdb(workdir, error)
        if isinstance(held, RunError):
            raise held from None
    if Path(path).exists():
        storage.link_or_copy(path, f"{path}.damaged")
    temp = storage.temp_path(path)
    with duckdb.connect(temp) as connection:
        _bring_schema(connection)
        connection.execute("INSERT INTO snapshots VALUES (?, ?, ?)", [new.catalog_id, FORMAT, new.number])
        _insert(connection, new.tables)
    Path(f"{path}.wal").unlink(missing_ok=True)
    storage.publish(temp, path)
    return new


@contextmanager
def transaction(connection: Any) -> Iterator[None]:
    """Statements that are committed together or not at all.

    Raises: RunError when DuckDB cannot commit, as on a full disk.
    """
    connection.execute("BEGIN")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    try:
        connection.execute("COMMIT")
    except duckdb.IOException as error:
        raise RunError(
            f"the catalogue cannot be written: {str(error).splitlines()[0]}. What is committed stays; mend the "
            "cause (a full disk?) and run the same command again"
        ) from None


# ---- what the catalogue records of other files


def file_size(path: str) -> int | None:
    """Size of a file; None when there is none."""
    try:
        return Path(path).stat().st_size
    except FileNotFoundError:
        return None


def check_losses(workdir: str, present: Mapping[str, bool]) -> None:
    """Stop a build that would start over because a folder is not mounted.

    `present` tells of each recorded path whether it is there.

    Raises: IntegrityError when all files of a folder are gone, or several and more than MAX_LOST_SHARE of them.
    """
    for folder in _GUARDED:
        there = [is_there for path, is_there in present.items() if path.startswith(f"{folder}/")]
        num_lost = there.count(False)
        if num_lost and (num_lost == len(there) or (num_lost > 1 and num_lost > MAX_LOST_SHARE * len(there))):
            raise IntegrityError(
                f"{storage.join(workdir, folder)}: {num_lost:,} of {len(there):,} recorded files are gone. If the "
                "folder lies on a disk that is not mounted, mount it and run the same command again. To do the work "
                f"again, downloads included: `plantmix repair {workdir}`"
            )
