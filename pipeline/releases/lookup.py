"""What a takedown names in the catalogue of a work folder: rows of every build that was made there, drawn or not.

Reads the candidates, facts and decisions that the catalogue knows of and that still lie there. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests import storage, tables
from manifests.catalog import Catalog
from manifests.takedowns import Entry, find_named
from pipeline.store.sql import open_scratch


@dataclass(frozen=True)
class Known:
    """Rows of the catalogue that entries name: by and key of the entry, sample_id, image_id, stored_sha256."""

    rows: Sequence[dict[str, Any]] = ()
    stand_ins: Sequence[str] = ()  # sample ids that the last build kept as the better copy of one of them

    @property
    def keys(self) -> set[tuple[str, str]]:
        """Keys of the entries that name something."""
        return {(row["by"], row["key"]) for row in self.rows}

    @property
    def sample_ids(self) -> set[str]:
        """The samples that are named."""
        return {row["sample_id"] for row in self.rows}

    @property
    def entries(self) -> list[Entry]:
        """The rows themselves, the same bytes, and what stands in for them, as entries."""
        values = {*self.sample_ids, *self.stand_ins, *(row["stored_sha256"] for row in self.rows)}
        return [Entry("id", value) for value in sorted(value for value in values if value)]


def look_up(catalog: Catalog, entries: Sequence[Entry]) -> Known:
    """Find what entries name; a later fetch of a row that failed so far is named by its address or owner."""
    with open_scratch(catalog.workdir, 4.0) as sql:
        for table, schema in (("candidates", tables.CANDIDATES), ("facts", tables.FACTS)):
            _view(sql, catalog, table, catalog.find_files(table), schema)
        find_named(sql, entries)
        rows = sql.sql(
            "SELECT DISTINCT n.by, key, sample_id, image_id, stored_sha256 "
            "FROM named n LEFT JOIN facts USING (sample_id) ORDER BY ALL"
        ).to_arrow_table()
        current = catalog.find_current("select")
        parts = catalog.parts_of(current) if current else []
        decided = [file.path for part in parts for file in part.files if file.table == "decisions"]
        _view(sql, catalog, "decisions", decided, tables.DECISIONS)
        stand_ins = sql.execute(
            "SELECT DISTINCT other_sample_id FROM decisions SEMI JOIN named USING (sample_id) "
            "WHERE reason IN ('exact_duplicate', 'near_duplicate') ORDER BY 1"
        ).fetchall()
    return Known(rows.to_pylist(), [row[0] for row in stand_ins])


def _view(sql: Any, catalog: Catalog, name: str, paths: Sequence[str], schema: Any) -> None:
    """A view over the files that are there; older builds may have fewer columns."""
    there = [path for path in (storage.join(catalog.workdir, path) for path in paths) if Path(path).is_file()]
    if there:
        sql.read_parquet(there, union_by_name=True).create_view(name)
    else:
        sql.register(name, schema.empty_table())
