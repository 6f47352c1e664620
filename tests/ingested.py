"""Builds of tars up to fetch, and what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from building import run_here, write_small_config
from foreign_tars import img2dataset_samples, write_tar

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.stores.web import WebFiles

NUM = 24


def tar_of(folder: Path, start: int = 0, stop: int = NUM) -> bytes:
    """A tar as img2dataset writes it."""
    return write_tar(folder / "made.tar", img2dataset_samples(start, stop)).read_bytes()


def config_of(folder: Path, path: str, work: str = "work", more: dict[str, Any] | None = None, **run: Any) -> Path:
    """The config of a build of these tars; `more` are keys of the source."""
    source = {
        "name": "theirs",
        "domain": "plant",
        "defaults": {"licence": "CC0-1.0"},
        "webdataset": {"path": path},
        **(more or {}),
    }
    run = {"max_attempts": 2, "retry_wait_seconds": 0.01, **run}
    return write_small_config(folder, source, name="tars", file=work, work_dir=str(folder / work), run=run)


def build(config: Path, status: int = 0, last: str = "fetch") -> str:
    """Build up to a stage; gives what was said."""
    WebFiles.clear_instance_cache()
    done = run_here("build", config, "--to", last)
    assert done.returncode == status, done.stderr
    return done.stderr


def rows_of(workdir: Path) -> dict[str, list[Any]]:
    """Record key -> caption, and what was fetched."""
    with open_reader(str(workdir)) as sql:
        asked = "caption, url, row_number, outcome, image_id, stored_sha256, locator"
        query = f"SELECT record_key, {asked} FROM candidates JOIN facts USING (sample_id)"
        return {key: rest for key, *rest in sql.execute(query).fetchall()}


def rejects_of(workdir: Path) -> list[tuple[str, str]]:
    """Reason and value of the rows that are no candidates."""
    with open_reader(str(workdir)) as sql:
        return sql.execute("SELECT reason, value FROM rejects ORDER BY ALL").fetchall()


def versions(workdir: Path) -> dict[str, str]:
    """The fingerprint of each stage."""
    with Catalog.open(str(workdir)) as catalog:
        return dict(catalog.ask("SELECT stage, fingerprint FROM current_stages"))
