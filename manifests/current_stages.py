"""What status.json says of the current stages and of the last mix, out of the catalogue.

A build publishes its status with every part. Most parts change one number of it, so the catalogue is asked again only
when something else was written. Reads a cursor of the catalogue; writes nothing.
"""

from __future__ import annotations

import json
import threading
from typing import Any

_STAGES = (
    "SELECT c.stage, s.fingerprint, s.sealed_at IS NOT NULL, s.num_in, s.num_kept, s.notes, "
    "(SELECT map(list(reason), list(num_dropped)) FROM stage_reasons r WHERE r.fingerprint = s.fingerprint), "
    "(SELECT count(*) FROM stage_parts sp WHERE sp.fingerprint = s.fingerprint) "
    "FROM current_stages c JOIN stages s USING (fingerprint)"
)
_MIXES = "SELECT m.* EXCLUDE (fingerprint) FROM mixes m JOIN current_stages USING (fingerprint) ORDER BY domain"

Known = tuple[int, dict[str, dict[str, Any]], list[dict[str, Any]]]
"""Version of what was read, figures by stage, and the domains of the mix."""


class CurrentStages:
    """The rows of the status. One thread may ask for them while another one writes and says so."""

    def __init__(self, reader: Any) -> None:
        """`reader` is a cursor that no other thread uses meanwhile."""
        self._reader = reader
        self._lock = threading.Lock()
        self._version = 0
        self._known: Known | None = None

    def changed(self) -> None:
        """Something was written that is no new part."""
        with self._lock:
            self._version += 1

    @property
    def known(self) -> Known | None:
        """What was last read; to be taken before a part is written, for `part_added`."""
        return self._known

    def part_added(self, fingerprint: str, before: Known | None) -> None:
        """A stage version got one more part. What was read since `before` may hold it or not."""
        with self._lock:
            if before is None or before is not self._known or before[0] != self._version:
                self._version += 1
                return
            for stage in before[1].values():
                if stage["fingerprint"] == fingerprint:
                    stage["num_parts"] += 1

    def rows(self) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
        """Figures by stage, and the domains of the mix."""
        with self._lock:
            version, known = self._version, self._known
            if known is not None and known[0] == version:
                return {name: dict(stage) for name, stage in known[1].items()}, known[2]
        found = version, self._read_stages(), self._reader.sql(_MIXES).to_arrow_table().to_pylist()
        with self._lock:
            self._known = found
        return {name: dict(stage) for name, stage in found[1].items()}, found[2]

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
