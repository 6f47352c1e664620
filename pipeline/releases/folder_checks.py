"""Checks of a whole work folder: catalogue, tables, pool, releases, pointers, small files (`plantmix verify`).

Every file that the catalogue or a release records is compared with its size and sha256. Without `deep` only sizes of
pool files and shards are compared: they hold nearly all bytes. Where the database cannot be read, its snapshot says
what must be there. Writes nothing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.contract.catalog import STATUS_FILE
from manifests.contract.catalog_file import (
    CATALOG_FILE,
    JOURNAL_FILE,
    SNAPSHOT_FILE,
    TAKEDOWNS_FILE,
    file_size,
    find_snapshot,
    read_snapshot,
    require_work_folder,
)
from manifests.contract.catalog_reads import status_bytes
from manifests.contract.reader import is_of_copy, open_reader
from manifests.contract.release import LATEST_FILE, RECORD_FILE, read_record
from manifests.contract.takedowns import WHEN_GONE, read_list
from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.stores import storage
from manifests.stores.folder import place_of, sizes_below, store_of

Row = Mapping[str, Any]
_TABLES = ("parts", "files", "releases", "inputs", "snapshots")
FROM_THE_WEB = ("fetch", "download")  # the step whose parts no other step can make


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: in which file, relative to the work folder; what it costs, and what mends it."""

    kind: str
    """catalogue, snapshot, table, pool, release, pointer, status or takedowns."""
    file: str
    fault: str
    cost: str
    mend: str


@dataclass(frozen=True)
class FolderChecked:
    """Result of checking a folder: counts of checked files, and the faults."""

    findings: tuple[Finding, ...]
    num_files: int
    num_bytes_read: int
    releases: tuple[str, ...]


class FolderCheck:
    """One look at a work folder."""

    def __init__(self, workdir: str, deep: bool) -> None:
        self._workdir, self._deep = workdir, deep
        self._mend = f"plantmix repair {store_of(workdir) or workdir}"
        self._num_files = self._num_bytes_read = 0
        self._is_writing = False
        self._in_store = sizes_below(workdir)

    def run(self) -> FolderChecked:
        """Look at everything.

        While a build writes here, its last commit is checked.

        Raises: ConfigError when this is no work folder; RunError for `deep` while a build writes here.
        """
        findings, rows = self._check_catalogue()
        releases: list[str] = []
        if rows is not None:
            releases = self._release_names(rows)
            findings += self._check_parts(rows)
            findings += [finding for name in releases for finding in self._check_release(name, rows)]
            findings += self._check_pointers(releases)
            findings += self._check_takedowns(rows)
        findings += self._check_status()
        if self._is_writing and findings:  # a build may replace parts meanwhile
            still = {row["path"] for row in self._read_catalogue()["files"]}
            findings = [
                finding for finding in findings if finding.kind not in ("table", "pool") or finding.file in still
            ]
        return FolderChecked(tuple(findings), self._num_files, self._num_bytes_read, tuple(releases))

    # ---- the catalogue

    def _check_catalogue(self) -> tuple[list[Finding], dict[str, list[Row]] | None]:
        """Faults of database and snapshot, and the rows that say what else must be there; None when neither does."""
        path = Path(storage.join(self._workdir, CATALOG_FILE))
        require_work_folder(self._workdir)
        self._num_files += 2
        findings = []
        snapshot, cost = find_snapshot(self._workdir), "nothing: it is rebuilt from its snapshot"
        rows: dict[str, list[Row]] | None = None
        try:
            rows = self._read_catalogue()
        except IntegrityError as error:
            if snapshot is None:
                cost = "all is done again, unless you take both from a backup: its snapshot is damaged too"
            findings.append(self._finding("catalogue", CATALOG_FILE, str(error).partition(": ")[2], cost))
            if snapshot is not None:
                rows = {name: list(snapshot.tables.get(name, ())) for name in _TABLES}
        else:
            if self._is_writing and self._deep:
                raise RunError(
                    f"{self._workdir}: a build is writing here, and --deep reads every byte; run it when the build has "
                    "ended, or leave --deep out now"
                )
            if not self._is_writing:
                findings += self._compare_with_snapshot(path, rows["snapshots"])
        return findings, rows

    def _read_catalogue(self) -> dict[str, list[Row]]:
        """Return the rows of _TABLES, and note whether a build writes here."""
        with open_reader(self._workdir, per_sample=False) as sql:
            self._is_writing = is_of_copy(sql, self._workdir)
            there = {row[0] for row in sql.execute("SELECT view_name FROM duckdb_views()").fetchall()}
            return {
                name: sql.sql(f"SELECT * FROM {name}").to_arrow_table().to_pylist() if name in there else []
                for name in _TABLES
            }

    def _compare_with_snapshot(self, path: Path, own: Sequence[Row]) -> Iterator[Finding]:
        """Faults of a snapshot, and of a database that opens but is not the one that was closed."""
        cost = "nothing: it is written anew"
        try:
            snapshot = read_snapshot(self._workdir)
        except IntegrityError as error:
            name = JOURNAL_FILE if "journal" in str(error) else SNAPSHOT_FILE
            yield self._finding("snapshot", name, str(error).rpartition(": ")[2], cost)
            return
        closed = snapshot.closed
        is_older = any(row["catalog_id"] != snapshot.catalog_id or row["number"] < snapshot.number for row in own)
        if is_older:
            fault, cost = "older than its snapshot, or of another folder", "nothing: it is rebuilt from its snapshot"
            yield self._finding("catalogue", CATALOG_FILE, fault, cost)
            return
        if closed is None:
            if not path.with_name(f"{path.name}.wal").exists():  # a killed build leaves one
                yield self._finding("snapshot", JOURNAL_FILE, "its last line is gone", cost)
            return
        cost = "nothing: it is rebuilt from its snapshot"
        written = storage.hash_file(str(path))
        self._num_bytes_read += written.num_bytes
        if (written.num_bytes, written.sha256) != (closed["num_bytes"], closed["sha256"]):
            yield self._finding("catalogue", CATALOG_FILE, "not as it was closed", cost)

    # ---- tables and pool

    def _check_parts(self, rows: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
        parts = {row["part_key"]: row for row in rows["parts"]}
        for row in rows["files"]:
            kind = "pool" if row["path"].startswith("pool/") else "table"
            if row["path"].startswith("releases/"):
                continue
            fault = self._fault_of(row["path"], row, unread=kind == "pool" and not self._deep)
            if fault:
                part = parts[row["part_key"]]
                yield self._finding(kind, row["path"], fault, _cost_of(kind, part))

    def _fault_of(self, path: str, recorded: Row, unread: bool = False) -> str | None:
        """Return the fault of a file, or None. Its content is compared too, unless it stays `unread`."""
        self._num_files += 1
        place = place_of(self._workdir, path)
        size = file_size(place) if self._in_store is None else self._in_store.get(path)
        if size is None:
            return "gone"
        if size != recorded["num_bytes"]:
            return f"{size:,} bytes, recorded are {recorded['num_bytes']:,}"
        if unread:
            return None
        self._num_bytes_read += size
        try:
            is_sound = storage.hash_file(place).sha256 == recorded["sha256"]
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        return None if is_sound else "other content than recorded"

    # ---- releases

    def _release_names(self, rows: Mapping[str, Sequence[Row]]) -> list[str]:
        """Return the releases in the folder.

        A release whose whole folder is gone was deleted on purpose. One without a record that the catalogue does not
        know is half made, and the next build finishes it.
        """
        in_catalogue = {row["name"] for row in rows["releases"]}
        there = self._files_below("releases")
        names = sorted({path.split("/")[1] for path in there if path.count("/") > 1})
        return [name for name in names if name in in_catalogue or f"releases/{name}/{RECORD_FILE}" in there]

    def _files_below(self, folder: str) -> list[str]:
        """Paths of the files below a folder of the work folder, sorted."""
        if self._in_store is not None:
            return sorted(path for path in self._in_store if path.startswith(f"{folder}/"))
        files = (path for path in Path(self._workdir, folder).rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self._workdir)) for path in files)

    def _check_release(self, name: str, rows: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
        folder = f"releases/{name}"
        recorded = {row["path"]: row for row in rows["files"] if row["path"].startswith(f"{folder}/")}
        if f"{folder}/{RECORD_FILE}" not in recorded:  # of a takedown, or of another work folder: its record knows
            sealed_hashes = [row["record_sha256"] for row in rows["releases"] if row["name"] == name]
            record_path = place_of(self._workdir, f"{folder}/{RECORD_FILE}")
            unseen = "; without it no other file of this release can be checked"
            try:
                record = read_record(place_of(self._workdir, folder))
            except (ConfigError, IntegrityError) as error:
                yield self._release_finding(f"{folder}/{RECORD_FILE}", str(error).rpartition(": ")[2] + unseen)
                return
            self._num_files += 1
            if sealed_hashes and storage.hash_file(record_path).sha256 != sealed_hashes[0]:
                yield self._release_finding(f"{folder}/{RECORD_FILE}", f"not the one that the catalogue knows{unseen}")
                return
            recorded = {f"{folder}/{path}": entry for path, entry in record["files"].items()}
        else:  # a build that met a lost file of an older release has forgotten it; the record of the release has not
            with contextlib.suppress(ConfigError, IntegrityError):
                record = read_record(place_of(self._workdir, folder))
                recorded = {f"{folder}/{path}": entry for path, entry in record["files"].items()} | recorded
        for path, entry in sorted(recorded.items()):
            fault = self._fault_of(path, entry, unread=path.endswith(".tar") and not self._deep)
            if fault:
                yield self._release_finding(path, fault)
        for path in self._files_below(folder):
            if path not in recorded and not path.endswith(RECORD_FILE) and not storage.is_private(path):
                mend = f"{'rm' if self._in_store is None else 'delete'} {place_of(self._workdir, path)}"
                yield Finding("release", path, "not part of the release", "nothing", mend)

    def _release_finding(self, path: str, fault: str) -> Finding:
        cost = "nothing, while pool and tables are sound: it is made again to the recorded sha256"
        return self._finding("release", path, fault, cost)

    # ---- small files

    def _check_pointers(self, releases: Sequence[str]) -> Iterator[Finding]:
        """Yield faults unless the newest release, of all and of each name, is pointed at."""
        there = {path for path in self._files_below("releases") if path.count("/") == 1 and path.endswith(LATEST_FILE)}
        # a release without "-" in its folder's name was renamed by hand: it belongs to no name
        of_names = {f"releases/{name}.{LATEST_FILE}" for name in (each.rpartition("-")[0] for each in releases) if name}
        expected = {f"releases/{LATEST_FILE}", *of_names} if releases else set()
        for path in sorted(there | expected):
            self._num_files += 1
            content = b"".join(storage.read_chunks(place_of(self._workdir, path))) if path in there else b""
            if content not in [f"{name}\n".encode() for name in releases]:
                fault = "names no release of this folder" if path in there else "gone"
                yield self._finding("pointer", path, fault, "nothing: it is written anew")

    def _check_status(self) -> Iterator[Finding]:
        path = Path(storage.join(self._workdir, STATUS_FILE))
        cost = "nothing: it is written anew"
        if not path.exists():
            return
        self._num_files += 1
        content = path.read_bytes()
        try:
            if status_bytes(json.loads(content)) == content:
                return
            fault = "other content than when it was written"
        except (ValueError, TypeError, AttributeError):
            fault = "cannot be read"
        yield self._finding("status", STATUS_FILE, fault, cost)

    def _check_takedowns(self, rows: Mapping[str, Sequence[Row]]) -> Iterator[Finding]:
        path = storage.join(self._workdir, TAKEDOWNS_FILE)
        seen = [row for row in rows["inputs"] if row["path"] == TAKEDOWNS_FILE]
        cost = "pictures that were taken down may come into the next build"
        if not Path(path).exists():
            if seen:
                yield Finding(
                    "takedowns", TAKEDOWNS_FILE, "gone", "no build and no takedown runs without it", WHEN_GONE
                )
            return
        self._num_files += 1
        mend = f"take {TAKEDOWNS_FILE} from a backup, or compare it with the takedowns in each {RECORD_FILE}"
        try:
            read_list(self._workdir)
        except ConfigError as error:
            yield Finding("takedowns", TAKEDOWNS_FILE, str(error).partition(": ")[2] or str(error), cost, mend)
            return
        info = Path(path).stat()
        for row in seen:  # who edits the list changes its time
            unchanged = (info.st_size, round(info.st_mtime, 3)) == (row["num_bytes"], round(row["mtime_ns"] / 1e9, 3))
            if unchanged and storage.hash_file(path).sha256 != row["sha256"]:
                yield Finding("takedowns", TAKEDOWNS_FILE, "changed without being edited", cost, mend)

    def _finding(self, kind: str, file: str, fault: str, cost: str) -> Finding:
        return Finding(kind, file, fault, cost, self._mend)


def _cost_of(kind: str, part: Row) -> str:
    what = f"{part['stage']} {part['step']}"
    if (part["stage"], part["step"]) != FROM_THE_WEB:
        source = "the files of its source" if part["step"] == "local" else "earlier stages"
        return f"{what} is done again for this part, from {source}"
    num = f"{part['num_in'] or 0:,}"
    if kind == "pool":
        return f"sound pictures stay; what no release holds either is asked of the web again, at most {num} rows"
    return f"what the table of facts does not hold is asked of the web again, at most {num} rows"
