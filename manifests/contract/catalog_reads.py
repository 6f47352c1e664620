"""Frequent reads of a build's catalogue: committed parts, and the figures of status.json. Writes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from manifests.contract.records import Funnel, PartFile, PartRecord

Figures = tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]  # by stage, and the domains of the mix
NO_FIGURES: Figures = ({}, [])
_STAGES = (
    "SELECT c.stage, s.fingerprint, s.sealed_at IS NOT NULL AS sealed, s.num_in AS 'in', s.num_kept AS kept, s.notes, "
    "reasons, coalesce(num_parts, 0) AS num_parts FROM current_stages c JOIN stages s USING (fingerprint) LEFT JOIN "
    "(SELECT fingerprint, map(list(reason), list(num_dropped)) AS reasons FROM stage_reasons GROUP BY ALL) "
    "USING (fingerprint) LEFT JOIN "
    "(SELECT fingerprint, count(*) AS num_parts FROM stage_parts GROUP BY ALL) USING (fingerprint)"
)
_MIXES = "SELECT m.* EXCLUDE (fingerprint) FROM mixes m JOIN current_stages USING (fingerprint) ORDER BY domain"


def read_parts(connection: Any, keys: Sequence[str]) -> dict[str, PartRecord]:
    """Return the committed parts among `keys`."""
    if not keys:
        return {}
    rows, file_rows = (
        connection.execute(f"FROM {table} WHERE part_key IN (SELECT unnest(?::VARCHAR[]))", [keys]).fetchall()
        for table in ("parts", "files")
    )
    files: dict[str, list[PartFile]] = {}
    for key, *values in file_rows:
        files.setdefault(key, []).append(PartFile(*values))
    return {row[0]: part_of(row, files.get(row[0], ())) for row in rows}


def part_of(row: Iterable[Any], files: Iterable[PartFile]) -> PartRecord:
    """Return a part of its row in `parts`, in the order of the columns, and its files."""
    key, stage, step, reuse_key, num_in, num_kept, reasons, notes, seconds, attempts, _ = row
    funnel = None if num_in is None else Funnel(num_in, num_kept, json.loads(reasons))
    noted = MappingProxyType(json.loads(notes))
    return PartRecord(key, stage, step, reuse_key, tuple(files), funnel, noted, seconds, attempts)


def current_stages(reader: Any) -> Figures:
    """Return the figures of status.json. `reader` is a cursor that no other thread uses meanwhile."""
    rows, mixes = (reader.sql(query).to_arrow_table().to_pylist() for query in (_STAGES, _MIXES))
    stages = {
        row.pop("stage"): row | {"notes": json.loads(row["notes"] or "{}"), "reasons": dict(row["reasons"] or ())}
        for row in rows
    }
    return stages, mixes


def status_bytes(status: Mapping[str, Any]) -> bytes:
    """Return the content of status.json, with a hash of the rest, so that damage shows."""
    rest = {name: value for name, value in status.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**rest, "sha256": digest}, indent=1, sort_keys=True).encode()
