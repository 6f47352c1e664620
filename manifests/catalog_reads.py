"""What a build asks its catalogue again and again: committed parts, and the figures of status.json.

A part never changes, so one that was read is kept. A build publishes its status twice a second. Most commits change one
number of it, so the catalogue is asked again only when something else was written. Reads the catalogue; writes nothing.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from manifests.records import Funnel, PartFile, PartRecord

MOST_KEPT = 10_000  # parts; about 10 MB
_STAGES = (
    "SELECT c.stage, s.fingerprint, s.sealed_at IS NOT NULL, s.num_in, s.num_kept, s.notes, "
    "(SELECT map(list(reason), list(num_dropped)) FROM stage_reasons r WHERE r.fingerprint = s.fingerprint), "
    "(SELECT count(*) FROM stage_parts sp WHERE sp.fingerprint = s.fingerprint) "
    "FROM current_stages c JOIN stages s USING (fingerprint)"
)
_MIXES = "SELECT m.* EXCLUDE (fingerprint) FROM mixes m JOIN current_stages USING (fingerprint) ORDER BY domain"

Known = tuple[int, dict[str, dict[str, Any]], list[dict[str, Any]]]
"""Version of what was read, figures by stage, and the domains of the mix."""


class CommittedParts:
    """Reads parts by their keys, through the connection of the catalogue that alone writes them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._kept: dict[str, PartRecord] = {}

    def find(self, keys: Sequence[str]) -> dict[str, PartRecord]:
        """The committed ones among `keys`."""
        unknown = [key for key in keys if key not in self._kept]
        if unknown and len(self._kept) + len(unknown) > MOST_KEPT:
            self._kept.clear()
            unknown = list(keys)
        read = self._read(unknown) if unknown else {}
        if len(read) > MOST_KEPT:
            return read
        self._kept |= read
        return {key: self._kept[key] for key in keys if key in self._kept}

    def in_order(self, keys: Sequence[str]) -> list[PartRecord]:
        """The parts of `keys`, all of which are committed."""
        parts = self.find(keys)
        return [parts[key] for key in keys]

    def forget(self, key: str) -> None:
        """A part is no longer committed."""
        self._kept.pop(key, None)

    def _read(self, keys: Sequence[str]) -> dict[str, PartRecord]:
        self._connection.register("wanted", pa.table({"part_key": pa.array(keys, pa.string())}))
        try:
            rows = self._connection.execute("SELECT p.* FROM parts p JOIN wanted USING (part_key)").fetchall()
            of_files = "SELECT f.* FROM files f JOIN (SELECT DISTINCT part_key FROM wanted) USING (part_key)"
            file_rows = self._connection.execute(of_files).fetchall() if rows else []
        finally:
            self._connection.unregister("wanted")
        files: dict[str, list[PartFile]] = {}
        for key, *values in file_rows:
            files.setdefault(key, []).append(PartFile(*values))
        parts = {}
        for key, stage, step, reuse_key, num_in, num_kept, reasons, notes, seconds, attempts, _ in rows:
            funnel = None if num_in is None else Funnel(num_in, num_kept, json.loads(reasons))
            said = MappingProxyType(json.loads(notes))
            parts[key] = PartRecord(
                key, stage, step, reuse_key, tuple(files.get(key, ())), funnel, said, seconds, attempts
            )
        return parts


class CurrentStages:
    """The rows of the status. One thread may ask for them while another one writes and says so."""

    def __init__(self, reader: Any) -> None:
        """`reader` is a cursor that no other thread uses meanwhile."""
        self._reader = reader
        self._lock = threading.Lock()
        self._version = 0
        self._last_read: Known | None = None

    def changed(self) -> None:
        """Something was written that is no new part."""
        with self._lock:
            self._version += 1

    @property
    def last_read(self) -> Known | None:
        """What was last read; to be taken before parts are written, for `parts_added`."""
        return self._last_read

    def parts_added(self, fingerprint: str, num: int, before: Known | None) -> None:
        """A stage version got so many more parts. What was read since `before` may hold them or not."""
        with self._lock:
            if before is None or before is not self._last_read or before[0] != self._version:
                self._version += 1
                return
            for stage in before[1].values():
                if stage["fingerprint"] == fingerprint:
                    stage["num_parts"] += num

    def rows(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Figures by stage, and the domains of the mix."""
        with self._lock:
            version, last = self._version, self._last_read
            if last is not None and last[0] == version:
                return {name: dict(stage) for name, stage in last[1].items()}, last[2]
        fresh = version, self._read_stages(), self._reader.sql(_MIXES).to_arrow_table().to_pylist()
        with self._lock:
            self._last_read = fresh
        return {name: dict(stage) for name, stage in fresh[1].items()}, fresh[2]

    def _read_stages(self) -> dict[str, dict[str, Any]]:
        return {
            stage: {
                "fingerprint": fingerprint,
                "sealed": sealed,
                "in": num_in,
                "kept": num_kept,
                "notes": json.loads(notes) if notes else {},
                "reasons": dict(reasons or {}),
                "num_parts": num_parts,
            }
            for stage, fingerprint, sealed, num_in, num_kept, notes, reasons, num_parts in self._reader.execute(
                _STAGES
            ).fetchall()
        }
