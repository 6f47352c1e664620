"""The catalogue: which parts exist, which stage versions are sealed, where everything lies.

It is one DuckDB file in the work folder. While one process writes it, no other can open it (DuckDB 2.0). So only the
driver opens it, and twice a second leaves a small `status.json` beside it for `plantmix status`. It can be made again
from files beside it (catalog_file.py). Readers use manifests/contract/reader.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from manifests.contract.catalog_file import (
    CONFIG_FILE,
    TAKEDOWNS_FILE,
    append_to_journal,
    check_losses,
    file_size,
    note_closed,
    open_database,
    shown_config,
    transaction,
    whole_config,
    write_snapshot,
)
from manifests.contract.catalog_reads import NO_FIGURES, current_stages, part_of, read_parts, status_bytes
from manifests.contract.records import FetchRounds, Funnel, PartRecord, StageRecord, Stamps, utc_now
from manifests.contract.session import Session
from manifests.errors import ConfigError, DamageError, RunError
from manifests.masking import hide_secrets
from manifests.stores import storage
from manifests.stores.folder import sizes_below, store_of

STATUS_FILE = "status.json"
_ROWS_A_STATEMENT = 100
_OF_PARTS = ("parts", "files", "stage_parts")
_LIKE = (
    "SELECT part_key FROM parts WHERE stage = $1 AND step = $2 AND ($3 IS NULL OR reuse_key = $3) "
    "ORDER BY committed_at, part_key"
)
_OFF_PLACE = "DELETE FROM stage_parts WHERE fingerprint = ? AND step = ? AND position = ?"


class Catalog(AbstractContextManager["Catalog"]):
    """The driver's handle, open for writing. Use it as a context manager."""

    def __init__(self, connection: Any, workdir: str, session: Session | None = None) -> None:
        self._connection = connection
        self._session = session
        self._reader = connection.cursor()
        # No other process writes the catalogue, so what was once read of it or written to it is not read again:
        # keys of all committed parts, some of the parts (1 kB each), and of some stage versions what they stand on.
        self._committed = {key for (key,) in self.ask("SELECT part_key FROM parts")}
        self._kept: dict[str, PartRecord] = {}
        self._links: dict[str, dict[tuple[str, int], str]] = {}
        self._num_changes, self._figures = 0, (-1, *NO_FIGURES)
        self._config = ""
        self.workdir = workdir
        self.rounds = FetchRounds(connection)
        self.stamps = Stamps(connection)

    @classmethod
    def open(cls, workdir: str) -> Catalog:
        """Open (or make) the catalogue of a work folder for writing. A folder in a store gets a local one.

        Raises: ConfigError when the folder cannot be written; RunError when another build holds it; IntegrityError when
            the catalogue is gone, damaged or not the one of this folder.
        """
        address = store_of(workdir)
        if address is None:
            if signs := sorted(set(workdir) & set("*?[\\")):
                raise ConfigError(
                    f"{workdir}: the path of a work folder cannot contain {' '.join(signs)}, which DuckDB takes for a "
                    "pattern; choose another folder, or rename this one"
                )
            storage.make_folder(workdir)
            return cls(open_database(workdir), workdir)
        session = Session.open(address)
        try:
            opened = cls(open_database(session.folder), session.folder, session)
            with session.new_snapshot():
                pass  # `open_database` has just written one
        except BaseException:
            session.close()
            raise
        return opened

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        listed = storage.join(self.workdir, TAKEDOWNS_FILE)
        try:
            try:
                if Path(listed).is_file():
                    self.input_sha256(listed, TAKEDOWNS_FILE)  # known from now on, so that damage to the list shows
                self._write_snapshot()
            finally:
                self._reader.close()
                self._connection.close()
                if self._session is not None:
                    self._session.close()
            note_closed(self.workdir)
        except (OSError, RunError):  # a full disk hides no earlier error; the next build writes a snapshot
            if kind is None:
                raise

    # ---- inputs

    def input_sha256(self, path: str, name: str | None = None) -> str:
        """Hash of the content of an input file. The file is read again only when its stamp has changed.

        The hash is kept under `name`, or else under the path without its secrets.
        """
        return self.stamps.sha256_of(path, name or hide_secrets(path))

    def record_config(self, config: str) -> None:
        """Keep the configuration (json) that a build runs with, once: without secrets here, whole in a private file."""
        if config == self._config:
            return
        self._config, (digest, shown) = config, shown_config(config)
        if shown != config:
            storage.publish_bytes(storage.join(self.workdir, CONFIG_FILE), config.encode(), is_secret=True)
        later = "greatest(?, (SELECT max(used_at) + INTERVAL 1 microsecond FROM configs))"  # when a clock was set back
        self._connection.execute(f"INSERT OR REPLACE INTO configs VALUES (?, ?, {later})", [digest, shown, utc_now()])

    def last_config(self) -> str | None:
        """Return the configuration (json) of the last build, or None.

        Raises: ConfigError when it held secrets that are not kept here.
        """
        rows = self.ask("SELECT config_sha256, config FROM configs ORDER BY used_at DESC LIMIT 1")
        return whole_config(self.workdir, *rows[0]) if rows else None

    # ---- stages

    def find_current(self, stage: str) -> str | None:
        """Fingerprint of the version of a stage that the last build used, sealed or not; or None."""
        return self._find_text("SELECT fingerprint FROM current_stages WHERE stage = ?", stage)

    def find_sealed(self, fingerprint: str) -> StageRecord | None:
        """Return the sealed stage version of this fingerprint, or None."""
        query = "SELECT stage, num_in, num_kept, notes FROM stages WHERE fingerprint = ? AND sealed_at IS NOT NULL"
        rows = self.ask(query, fingerprint)
        if not rows:
            return None
        stage, num_in, num_kept, notes = rows[0]
        query = "SELECT reason, num_dropped FROM stage_reasons WHERE fingerprint = ? ORDER BY ALL"
        reasons = dict(self.ask(query, fingerprint))
        return StageRecord(stage, fingerprint, Funnel(num_in, num_kept, reasons), json.loads(notes))

    def open_stage(self, stage: str, fingerprint: str, identity: Mapping[str, Any]) -> None:
        """Note that a stage version was begun and make it the current one."""
        version = {"fingerprint": fingerprint, "stage": stage, "identity": json.dumps(identity, sort_keys=True)}
        with self._changing():  # to ask first costs half of `INSERT OR IGNORE` and `INSERT OR REPLACE`
            if not self.ask("SELECT 1 FROM stages WHERE fingerprint = ?", fingerprint):
                self._insert("stages", [version | {"opened_at": utc_now()}])
            self._connection.execute("DELETE FROM current_stages WHERE stage = ?", [stage])
            self._connection.execute("INSERT INTO current_stages VALUES (?, ?)", [stage, fingerprint])

    def name_anew(self, stage: str, before: str, fingerprint: str, identity: Mapping[str, Any]) -> None:
        """Rename a version that was begun, when all its inputs are known; its parts go with it."""
        if before == fingerprint:
            return
        self.open_stage(stage, fingerprint, identity)
        links = self._links_of(before)
        with self._changing():
            self._connection.execute("DELETE FROM stage_parts WHERE fingerprint = ?", [fingerprint])
            self._connection.execute(
                "INSERT INTO stage_parts SELECT ?, step, position, part_key FROM stage_parts WHERE fingerprint = ?",
                [fingerprint, before],
            )
            for table in ("stage_parts", "stages"):
                self._connection.execute(f"DELETE FROM {table} WHERE fingerprint = ?", [before])
        del self._links[before]
        self._links[fingerprint] = links

    def seal_stage(self, stage: StageRecord) -> StageRecord:
        """Close a stage version for good; returns it as a later build will find it.

        Raises: IntegrityError when its rows do not add up.
        """
        stage.funnel.check(stage.stage)
        version, num_in, num_kept = stage.fingerprint, stage.funnel.num_in, stage.funnel.num_kept
        dropped = {reason: num for reason, num in sorted(stage.funnel.reasons.items()) if num}
        notes = _json(dict(stage.notes))
        with self._changing():
            self._connection.execute("DELETE FROM stage_reasons WHERE fingerprint = ?", [version])
            reasons = [{"fingerprint": version, "reason": name, "num_dropped": num} for name, num in dropped.items()]
            self._insert("stage_reasons", reasons)
            self._connection.execute(
                "UPDATE stages SET sealed_at = ?, num_in = ?, num_kept = ?, notes = ? WHERE fingerprint = ?",
                [utc_now(), num_in, num_kept, notes, version],
            )
        self._write_snapshot()
        return StageRecord(stage.stage, version, Funnel(num_in, num_kept, dropped), json.loads(notes))

    def forget_current(self, stages: Sequence[str]) -> None:
        """Take stages out of the current view: those after a changed stage are stale until they are done again."""
        with self._changing():
            self._connection.execute("DELETE FROM current_stages WHERE list_contains(?::VARCHAR[], stage)", [stages])

    # ---- parts

    def find_parts(self, keys: Sequence[str]) -> dict[str, PartRecord]:
        """Return the committed ones among `keys`."""
        unread = [key for key in keys if key in self._committed and key not in self._kept]
        self._kept |= read_parts(self._connection, unread)
        return {key: self._kept[key] for key in keys if key in self._kept}

    def parts_of(self, fingerprint: str, step: str | None = None) -> list[PartRecord]:
        """Parts of a stage version in plan order."""
        links = self._links_of(fingerprint)
        return self._in_order([links[position] for position in sorted(links) if step in (None, position[0])])

    def parts_like(self, stage: str, step: str, reuse_key: str | None = None) -> list[PartRecord]:
        """Every committed part with this `reuse_key` (None: any), of all versions of the stage, oldest first."""
        return self._in_order([key for (key,) in self.ask(_LIKE, stage, step, reuse_key)])

    def current_files(self, stage: str, table: str) -> list[str]:
        """Paths, relative to the work folder, of the files of a table of the newest version of a stage."""
        parts = self.parts_of(self.find_current(stage) or "")
        return [file.path for part in parts for file in part.files if file.table == table]

    def find_files(self, table: str) -> list[str]:
        """Paths, relative to the work folder, of every file of a table that any build committed, oldest first."""
        query = (
            "SELECT f.path FROM files f JOIN parts p USING (part_key) WHERE f.table_name = ? "
            "ORDER BY p.committed_at, f.path"
        )
        return list(dict.fromkeys(path for (path,) in self.ask(query, table)))

    def commit_parts(self, fingerprint: str, parts: Mapping[int, PartRecord]) -> None:
        """Commit parts of a stage version, by their positions in it: all of them or none. Their files are published."""
        if not parts:
            return
        entries = [_entry_of(fingerprint, position, part) for position, part in parts.items()]
        rows, files, links = ([row for entry in entries for row in entry[table]] for table in _OF_PARTS)
        before, new = self._links_of(fingerprint), {(row["step"], row["position"]): row["part_key"] for row in links}
        if self._session is not None:
            self._session.check()
        with transaction(self._connection):
            self._insert("parts", rows)
            self._insert("files", files)
            for step, position in before.keys() & new.keys():
                self._connection.execute(_OFF_PLACE, [fingerprint, step, position])
            self._insert("stage_parts", links)
            append_to_journal(self.workdir, entries)
        before |= new
        written = {part.key: part_of(row.values(), part.files) for row, part in zip(rows, parts.values(), strict=True)}
        self._kept |= written
        self._committed.update(written)

    def link_parts(self, fingerprint: str, step: str, keys: Sequence[tuple[int, str]]) -> None:
        """Record which committed parts a step of a stage version uses, in place of those of an earlier plan."""
        before, new = self._links_of(fingerprint), {(step, position): key for position, key in keys}
        others = {position: key for position, key in before.items() if position[0] != step}
        if before == others | new:
            return
        with transaction(self._connection):
            self._connection.execute("DELETE FROM stage_parts WHERE fingerprint = ? AND step = ?", [fingerprint, step])
            links = [_link(fingerprint, step, position, key) for position, key in keys]
            self._insert("stage_parts", links, "OR REPLACE ")
        self._links[fingerprint] = others | new

    def drop_lost_parts(self, stages: Collection[str]) -> dict[str, int]:
        """Un-commit parts of `stages` whose files are gone, and unseal what used them. Returns how many by stage.

        Looks at all versions of a stage: a build that goes back to an older configuration uses them again.

        Raises: IntegrityError when so many files are gone that a folder is probably not mounted; DamageError when files
            have another size than their record. Nothing is dropped then.
        """
        query = "SELECT part_key, path, num_bytes, list_contains(?, stage) FROM files LEFT JOIN parts USING (part_key)"
        rows = self.ask(query, list(stages))
        there = sizes_below(self.workdir)
        sizes = {
            path: file_size(storage.join(self.workdir, path)) if there is None else there.get(path)
            for _, path, *_ in rows
        }
        check_losses(self.workdir, {path: size is not None for path, size in sizes.items()})
        resized = sorted({path for _, path, num_bytes, ours in rows if ours and sizes[path] not in (None, num_bytes)})
        resized = [path for path in resized if not path.startswith("releases/")]  # no build reads a sealed release
        if resized:
            raise DamageError(self.workdir, resized)
        return self.forget_parts({key for key, path, _, ours in rows if ours and sizes[path] is None})

    def parts_with(self, paths: Sequence[str]) -> list[PartRecord]:
        """Return the committed parts that wrote any of these files."""
        rows = self.ask("SELECT DISTINCT part_key FROM files WHERE path IN (SELECT unnest(?::VARCHAR[]))", list(paths))
        return list(self.find_parts(sorted(row[0] for row in rows)).values())

    def forget_parts(self, keys: Collection[str]) -> dict[str, int]:
        """Un-commit parts, and unseal what used them. Returns how many by stage."""
        parts = self.find_parts(sorted(keys))
        self._links.clear()
        if parts:  # a killed process must not find them in the snapshot again
            append_to_journal(self.workdir, [{"forgotten": sorted(parts)}])
        for key in parts:
            del self._kept[key]
            self._committed.remove(key)
            with self._changing():
                self._connection.execute(
                    "UPDATE stages SET sealed_at = NULL WHERE fingerprint IN "
                    "(SELECT fingerprint FROM stage_parts WHERE part_key = ?)",
                    [key],
                )
                for table in ("stage_parts", "files", "parts"):
                    self._connection.execute(f"DELETE FROM {table} WHERE part_key = ?", [key])
        if parts:
            self._write_snapshot()
        return dict(Counter(part.stage for part in parts.values()))

    # ---- mixes and releases

    def record_mix(self, fingerprint: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Store what a mix drew from each domain (columns of the table `mixes`)."""
        with self._changing():
            self._connection.execute("DELETE FROM mixes WHERE fingerprint = ?", [fingerprint])
            self._insert("mixes", [{"fingerprint": fingerprint, **row} for row in rows])

    def record_proxy_runs(self, study: str, runs: Sequence[Mapping[str, Any]]) -> None:
        """Store results of proxy runs; a run of the same study and name is replaced.

        Keys of a run: run, model_size, step, samples_seen, seed, mixture (domain -> share), losses (domain -> figure
        with `value`), epochs (domain -> passes), validation (release, split, batch_size).
        """
        rows = [
            {"run": f"{study}/{run['run']}", "study": study, "recorded_at": utc_now()}
            | {name: run[name] for name in ("model_size", "step", "samples_seen", "seed")}
            | {name: _json(run[name]) for name in ("mixture", "epochs", "validation")}
            | {"losses": _json({domain: figure["value"] for domain, figure in run["losses"].items()})}
            for run in runs
        ]
        with transaction(self._connection):
            self._insert("proxy_runs", rows, "OR REPLACE ")

    def record_release(
        self, name: str, path: str, fingerprint: str, record_sha256: str, shards: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store a sealed release and its shards (split, shard, num_samples, num_bytes, sha256)."""
        num_samples = sum(int(row["num_samples"]) for row in shards if row["split"] == "train")
        with transaction(self._connection):
            self._connection.execute(
                "INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?, ?, ?)",
                [name, path, fingerprint, num_samples, record_sha256, utc_now()],
            )
            self._connection.execute("DELETE FROM shards WHERE release = ?", [name])
            columns = ("split", "shard", "num_samples", "num_bytes", "sha256")
            self._insert("shards", [{"release": name} | {column: row[column] for column in columns} for row in shards])

    def find_release(self, fingerprint: str) -> str | None:
        """Path of the release that a pack stage version sealed, relative to the work folder."""
        return self._find_text("SELECT path FROM releases WHERE fingerprint = ?", fingerprint)

    # ---- status

    def publish_status(self, extra: Mapping[str, Any]) -> None:
        """Write the snapshot that `plantmix status` reads while this process holds the catalogue.

        One thread at a time may call it, also while another one calls the other methods.
        """
        if self._figures[0] != (changes := self._num_changes):
            self._figures = (changes, *current_stages(self._reader))
        _, stages, mixes = self._figures
        for row in stages.values():
            if (links := self._links.get(row["fingerprint"])) is not None:
                row["num_parts"] = len(links)
        status = {"stages": stages, "mix": mixes, "updated_at": utc_now().isoformat() + "Z", **extra}
        storage.publish_bytes(storage.join(self.workdir, STATUS_FILE), status_bytes(status))

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query that changes nothing."""
        return list(self._connection.execute(query, list(values)).fetchall())

    # ---- inside

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Open a transaction that may change the figures of status.json, other than how many parts there are."""
        with transaction(self._connection):
            yield
        self._num_changes += 1

    def _links_of(self, fingerprint: str) -> dict[tuple[str, int], str]:
        """Keys of the parts that a stage version stands on, by step and position."""
        if fingerprint not in self._links:
            rows = self.ask("SELECT step, position, part_key FROM stage_parts WHERE fingerprint = ?", fingerprint)
            self._links[fingerprint] = {(step, position): key for step, position, key in rows}
        return self._links[fingerprint]

    def _write_snapshot(self) -> None:
        if self._session is None:
            write_snapshot(self._connection, self.workdir)
        else:
            with self._session.new_snapshot():
                write_snapshot(self._connection, self.workdir)

    def _insert(self, table: str, rows: Sequence[Mapping[str, Any]], how: str = "") -> None:
        """Insert rows that all have the same columns. A statement of many rows costs as much as one of one row."""
        for some in (rows[start : start + _ROWS_A_STATEMENT] for start in range(0, len(rows), _ROWS_A_STATEMENT)):
            names = list(some[0])
            places = ", ".join([f"({', '.join('?' * len(names))})"] * len(some))
            values = [row[name] for row in some for name in names]
            self._connection.execute(f"INSERT {how}INTO {table} ({', '.join(names)}) VALUES {places}", values)

    def _in_order(self, keys: Sequence[str]) -> list[PartRecord]:
        parts = self.find_parts(keys)
        return [parts[key] for key in keys]

    def _find_text(self, sql: str, *values: Any) -> str | None:
        rows = self.ask(sql, *values)  # all of them: `fetchone` would keep the connection busy
        return str(rows[0][0]) if rows else None


def _entry_of(fingerprint: str, position: int, part: PartRecord) -> dict[str, list[dict[str, Any]]]:
    funnel = part.funnel
    row = {
        "part_key": part.key,
        "stage": part.stage,
        "step": part.step,
        "reuse_key": part.reuse_key,
        "num_in": funnel.num_in if funnel else None,
        "num_kept": funnel.num_kept if funnel else None,
        "reasons": _json(dict(funnel.reasons) if funnel else {}),
        "notes": _json(dict(part.notes)),
        "seconds": part.seconds,
        "attempts": part.attempts,
        "committed_at": utc_now().isoformat(),
    }
    described = ("path", "num_rows", "num_bytes", "sha256")
    files = [
        {"part_key": part.key, "table_name": file.table} | {name: getattr(file, name) for name in described}
        for file in part.files
    ]
    return {"parts": [row], "files": files, "stage_parts": [_link(fingerprint, part.step, position, part.key)]}


def _link(fingerprint: str, step: str, position: int, key: str) -> dict[str, Any]:
    return {"fingerprint": fingerprint, "step": step, "position": position, "part_key": key}


def _json(values: Any) -> str:
    return json.dumps(values, sort_keys=True)
