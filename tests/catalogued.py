"""Parts for tests of the catalogue."""

from __future__ import annotations

from pathlib import Path

from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel, PartFile, PartRecord


def part(
    key: str, *paths: str, workdir: str | None = None, step: str = "read", reuse_key: str = "recipe"
) -> PartRecord:
    """A part of the stage ingest; its files are written when a folder is given."""
    files = []
    for path in paths:
        content = f"content of {path}".encode()
        if workdir is not None:
            place = Path(workdir, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        files.append(PartFile("candidates", path, 3, len(content), "00" * 32))
    return PartRecord(
        key, "ingest", step, reuse_key, tuple(files), Funnel(5, 3, {"invalid_url": 2}), {"note": [1, "a"]}, 0.5, 1
    )


def count(catalog: Catalog, table: str) -> int:
    return int(catalog._connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])
