"""Read a work folder: the catalogue's tables, views over the Parquet parts, and the snapshot of a running build.

Never writes. `open_reader` gives an in-memory DuckDB connection, so a work folder can be moved. `open_sandbox` gives
the same for statements of a stranger. While a build, retry or takedown holds the catalogue, both read a copy of its
last commit: the writer does not wait, and is not asked for anything.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from manifests.contract import tables
from manifests.contract.catalog import STATUS_FILE
from manifests.contract.catalog_file import (
    CATALOG_FILE,
    explain_duckdb,
    gone,
    is_held,
    refuse_foreign,
    require_work_folder,
)
from manifests.contract.catalog_reads import current_stages
from manifests.contract.session import at_hand
from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.names.sql import identifier
from manifests.stores import stamps, storage
from manifests.stores.folder import bring_missing

log = logging.getLogger("plantmix.catalog")

COPY_TRIES, SECONDS_BETWEEN_TRIES = 40, 0.25
MEMORY_GB = 4.0  # of a command that reads and builds nothing
SAMPLE_VIEWS: dict[str, tuple[str, pa.Schema, str]] = {
    "candidates": ("ingest", tables.CANDIDATES, "One row a candidate: what its source says of it."),
    "rejects": ("ingest", tables.REJECTS, "Rows of sources that are no candidates, and why."),
    "facts": ("fetch", tables.FACTS, "One row a candidate: how its URL ended, what was measured, where it is stored."),
    "fetched": (
        "fetch",
        tables.FETCHED,
        "One row for each candidate, address and round of fetching: all that was ever tried.",
    ),
    "pairs": (
        "dedup",
        tables.PAIRS,
        "Different pHashes within the radius, as they are or mirrored, and their distance.",
    ),
    "details": ("dedup", tables.DETAILS, "Detail of pictures that have a near copy of another size."),
    "evaluation": (
        "dedup",
        tables.EVALUATION,
        "One row an image of an evaluation set: its hashes, or why it has none.",
    ),
    "semantic_pairs": ("dedup", tables.SEMANTIC_PAIRS, "Pictures whose embeddings are close (dedup.semantic)."),
    "leaks": ("dedup", tables.LEAKS, "One row a fetched image and evaluation set it shows: how it was matched."),
    "captions": ("caption", tables.CAPTIONS, "One row a candidate: its clean text and all that is measured of it."),
    "names": ("caption", tables.NAMES, "One row a name looked up in the backbone: as given, matched how, accepted as."),
    "caption_verdicts": ("caption", tables.VERDICTS, "One row a fetched image: the caption rule that dropped it."),
    "joined_texts": ("caption", tables.JOINED_TEXTS, "Texts joined to fetched pictures, or the rule that dropped one."),
    "scores": ("score", tables.SCORES, "What each configured scorer says of an image and its text."),
    "score_verdicts": (
        "score",
        tables.VERDICTS,
        "One row that passed the caption rules: the score rule that dropped it, if any.",
    ),
    "marks": ("score", tables.MARKS, "Rows that a score rule blurs or flags, and where."),
    "decisions": (
        "select",
        tables.DECISIONS,
        "One row a candidate: kept, or dropped: by which stage, why, and for which other sample.",
    ),
    "extra_captions": (
        "select",
        tables.EXTRA_CAPTIONS,
        "Captions of dropped duplicates, kept with the image that stays (dedup.extra_captions).",
    ),
    "draws": ("mix", tables.DRAWS, "One row a drawn copy: its split and its place in the global shuffle."),
    "placements": ("pack", tables.PLACEMENTS, "One row a packed copy: shard, position, key, byte offsets."),
}
"""View name -> (stage that writes it, its columns, what it holds)."""

_EXPLAIN = re.compile(r"\s*explain\s+(?:analyze\s+|\((?:\s*(?:analyze|format\s+\w+)\s*,?)+\)\s*)?", re.IGNORECASE)


@contextmanager
def open_sandbox(workdir: str, memory_gb: float, spill: str) -> Iterator[Any]:
    """Open the connection of `open_reader`, locked by DuckDB itself; what does not fit into memory goes into `spill`.

    It reaches no file but the tables of the work folder, without the whole addresses of `secrets`. It loads no
    extension, and none of its settings can be changed.

    Raises: as `open_reader`.
    """
    workdir = at_hand(workdir)
    with open_reader(workdir) as connection:
        parts = [path for path in Path(workdir, "tables").rglob("*.parquet") if not path.stem.endswith("-secrets")]
        named = [storage.join(workdir, str(path.relative_to(workdir))) for path in parts]  # as the views name them
        lock_down(connection, max(256, int(memory_gb * 1000)), spill, "allowed_paths", named)
        yield connection


def kinds_of(connection: Any, sql: str) -> list[str]:
    """Return the kinds of these statements. EXPLAIN ANALYZE runs what it explains, so that is looked at instead."""
    statements = connection.extract_statements(sql)
    if [statement.type.name for statement in statements] == ["EXPLAIN"]:
        statements = connection.extract_statements(_EXPLAIN.sub("", statements[0].query, count=1))
    return [statement.type.name for statement in statements]


def open_reader(workdir: str, per_sample: bool = True) -> Any:
    """Return an in-memory DuckDB connection over a work folder: catalogue tables and per-sample views, read-only.

    Of a work folder in a store, the catalogue and the tables of the last build are downloaded, where they are not here.
    Without `per_sample` there are the catalogue's tables alone, even where files of the last build are gone. While
    another process writes the catalogue, the tables are those of its last commit, and a warning says of when.

    Raises: ConfigError when there is no catalogue; RunError when it changes too fast to be copied; IntegrityError when
    it is gone or damaged, or when a file that it names is gone.
    """
    workdir = at_hand(workdir)
    path = storage.join(workdir, CATALOG_FILE)
    require_work_folder(workdir)
    if not Path(path).is_file():
        raise gone(workdir)
    # by itself it takes four fifths of the machine, and spills into the folder where the user stands
    spill = Path(tempfile.gettempdir(), f"plantmix-{uuid.uuid4().hex[:12]}")
    connection = duckdb.connect(config={"memory_limit": f"{MEMORY_GB}GB", "temp_directory": str(spill)})
    try:
        _attach(connection, workdir)
        refuse_foreign(connection, workdir)
        comments = connection.execute(
            "SELECT table_name, comment FROM duckdb_tables() WHERE database_name = 'catalog'"
        ).fetchall()
        # reads every block, so damage shows here and not in the middle of an answer
        hashes = (f"SELECT bit_xor(hash(t)) FROM catalog.main.{identifier(name)} t" for name, _ in comments)
        connection.execute(" UNION ALL ".join(hashes)).fetchall()
    except duckdb.Error as error:
        connection.close()
        raise explain_duckdb(workdir, error) from None
    for name, about in comments:
        connection.execute(f"CREATE VIEW {identifier(name)} AS SELECT * FROM catalog.main.{identifier(name)}")
        connection.execute(f"COMMENT ON VIEW {identifier(name)} IS {literals([about])}")
    if not per_sample:
        return connection
    current = paths_of_current(connection, workdir)
    for view, (stage, schema, about) in SAMPLE_VIEWS.items():
        paths = current[stage, view]
        bring_missing(paths)
        create_table_view(connection, view, paths, schema)
        connection.execute(f"COMMENT ON VIEW {view} IS {literals([about])}")
    connection.execute((Path(__file__).parent / "views.sql").read_text(encoding="utf-8"))
    return connection


def _attach(connection: Any, workdir: str) -> None:
    """Attach the database as `catalog`, or a copy of it while another process writes it."""
    attach = "ATTACH {} AS catalog (READ_ONLY)"
    path = storage.join(workdir, CATALOG_FILE)
    try:
        connection.execute(attach.format(literals([path])))
    except duckdb.IOException as error:
        if not is_held(error):
            raise
        # DuckDB keeps the file open, so the copy may be deleted at once
        with tempfile.TemporaryDirectory(prefix="plantmix-catalog-") as private:
            copied_at = copy_catalogue(workdir, private)
            connection.execute(attach.format(literals([storage.join(private, CATALOG_FILE)])))
        log.warning(
            "%s: a build is writing here; the answer is as of its last commit, %s UTC",
            workdir,
            f"{copied_at:%Y-%m-%d %H:%M:%S}",
        )


def is_of_copy(connection: Any, workdir: str) -> bool:
    """Return whether a connection of `open_reader` reads a copy, since another process writes the catalogue."""
    ((path,),) = connection.execute("SELECT path FROM duckdb_databases() WHERE database_name = 'catalog'").fetchall()
    return Path(path).resolve() != Path(storage.join(at_hand(workdir), CATALOG_FILE)).resolve()


def copy_catalogue(workdir: str, folder: str) -> datetime:
    """Copy the database of a work folder, with the commits that wait in its log, and return the time of the last one.

    A copy counts when the database did not change meanwhile and its log only grew: DuckDB ignores a commit that is cut.

    Raises: RunError when the database changes in each of COPY_TRIES tries.
    """
    database, waiting = (Path(workdir, name) for name in (CATALOG_FILE, f"{CATALOG_FILE}.wal"))
    for _ in range(COPY_TRIES):
        before, length = stamps.of_disk(database.stat()), _length(waiting)
        shutil.copyfile(database, Path(folder, CATALOG_FILE))
        with contextlib.suppress(FileNotFoundError):  # without commits that wait there is no log
            shutil.copyfile(waiting, Path(folder, waiting.name))
        changed_at = max(file.stat().st_mtime for file in (database, waiting) if file.exists())
        if before == stamps.of_disk(database.stat()) and _length(waiting) >= length:
            return datetime.fromtimestamp(changed_at, UTC)
        Path(folder, waiting.name).unlink(missing_ok=True)
        time.sleep(SECONDS_BETWEEN_TRIES)
    raise RunError(f"{database}: a build changes it all the time; try again in a minute")


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def paths_of_current(connection: Any, workdir: str) -> defaultdict[tuple[str, str], list[str]]:
    """Paths of the files that the current version of each stage uses, by stage and table, in plan order."""
    rows = connection.execute(
        "SELECT c.stage, f.table_name, f.path FROM files f JOIN stage_parts sp USING (part_key) "
        "JOIN current_stages c USING (fingerprint) ORDER BY sp.step, sp.position"
    ).fetchall()
    paths: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for stage, table, path in rows:
        paths[stage, table].append(storage.join(workdir, path))
    return paths


def create_table_view(connection: Any, view: str, paths: Sequence[str], schema: pa.Schema) -> None:
    """Make a view over Parquet parts, or an empty view of the same columns when there are none.

    Raises: IntegrityError that names a part that is not there.
    """
    rows = f"FROM empty_{view}"
    connection.register(f"empty_{view}", schema.empty_table())
    try:
        if paths:
            scan = f"FROM read_parquet([{literals(paths)}])"
            columns = {row[0] for row in connection.execute(f"DESCRIBE {scan}").fetchall()}
            # 0.4.0 had fewer columns in some tables
            rows = scan if columns.issuperset(schema.names) else f"{rows} UNION ALL BY NAME {scan}"
        connection.execute(f"CREATE VIEW {view} AS {rows}")
    except duckdb.IOException as error:
        raise IntegrityError(
            f"the table {view} of the last build cannot be read: {str(error).splitlines()[0]}. Where files are "
            "gone, `plantmix build` with the same configuration makes them anew"
        ) from None


def read_proxy_runs(workdir: str) -> list[dict[str, Any]]:
    """Return the proxy runs of a work folder in the planner's columns, oldest study first, by run.

    Columns: run, study, model_size, step, samples_seen, seed, mix_DOMAIN, loss_DOMAIN, epochs_DOMAIN, and how losses
    were measured (validation_release, validation_batch_size); a domain that a run does not name has share 0.

    Raises: ConfigError when there is no catalogue or no run in it; what `open_reader` raises.
    """
    with open_reader(workdir) as connection:
        runs = rows_of(
            connection,
            "SELECT run, study, model_size, step, samples_seen, seed, mixture, losses, epochs, validation "
            "FROM proxy_runs ORDER BY min(recorded_at) OVER (PARTITION BY study), run",
        )
    if not runs:
        raise ConfigError(f"{workdir}: no proxy runs are recorded here; `dalip proxies` does them and records them")
    for run in runs:
        mixture, losses, epochs, how = (
            json.loads(run.pop(name) or "{}") for name in ("mixture", "losses", "epochs", "validation")
        )
        run |= {f"mix_{domain}": share for domain, share in mixture.items()}
        run |= {f"loss_{domain}": value for domain, value in losses.items()}
        run |= {f"epochs_{domain}": value for domain, value in epochs.items()}
        run |= {f"validation_{name}": how.get(name) for name in ("release", "batch_size")}
    columns = list(dict.fromkeys(name for run in runs for name in run))
    return [{name: run.get(name, 0.0 if name.startswith("mix_") else None) for name in columns} for run in runs]


def read_status(workdir: str) -> dict[str, Any]:
    """Return the figures that a build left in a work folder, or those of its catalogue where that file is gone.

    Raises: ConfigError when a folder has neither; IntegrityError when that file is damaged; what `open_reader` raises.
    """
    path = Path(storage.join(at_hand(workdir), STATUS_FILE))
    if not path.is_file():
        return _status_of_catalogue(workdir)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise IntegrityError(f"{path}: damaged ({error}); the next build or `plantmix repair` writes it anew") from None


def _status_of_catalogue(workdir: str) -> dict[str, Any]:
    with open_reader(workdir, per_sample=False) as reader:
        stages, mixes = current_stages(reader)
        last = rows_of(reader, "SELECT config, used_at FROM configs ORDER BY used_at DESC LIMIT 1")
    name, used_at = (json.loads(last[0]["config"])["name"], str(last[0]["used_at"])) if last else ("", "")
    return {"name": name, "stages": stages, "mix": mixes, "updated_at": used_at, "running": None, "pid": None}


def literals(texts: Iterable[str]) -> str:
    """Texts as SQL literals, with commas between them."""
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)


def rows_of(connection: Any, query: str, values: Any = ()) -> list[dict[str, Any]]:
    """Return the rows of a query. `values` are its parameters, in order or by name."""
    return list(connection.sql(query, params=values).to_arrow_table().to_pylist())


def sealed_version(connection: Any, stage: str) -> dict[str, Any] | None:
    """`identity`, `notes` and `sealed_at` of a stage as the last build used it; None where it did not seal it."""
    query = (
        "SELECT identity, notes, sealed_at FROM stages JOIN current_stages USING (stage, fingerprint) "
        "WHERE stage = $1 AND sealed_at IS NOT NULL"
    )
    for row in rows_of(connection, query, [stage]):
        return row | {name: json.loads(row[name] or "{}") for name in ("identity", "notes")}
    return None


def lock_down(connection: Any, memory_mb: int, spill: str, what: str, allowed: Iterable[str]) -> None:
    """Let DuckDB reach nothing but `allowed` (`what`: allowed_paths or allowed_directories), with settings that stay.

    It loads no extension. What does not fit into memory goes into the folder `spill`.
    """
    for setting, value in {
        "memory_limit": literals([f"{memory_mb}MB"]),
        "temp_directory": literals([spill]),
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        what: f"[{literals(allowed)}]",
        "enable_external_access": "false",
        "lock_configuration": "true",
    }.items():
        connection.execute(f"SET {setting} = {value}")
