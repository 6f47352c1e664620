"""Real pictures over a real web: the demo's set-up and a loopback server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from building import (
    NUM_GENERAL,
    NUM_PLANTS,
    ROOT,
    Web,
    done,
    file_hash,
    thin_out,
    write_build_config,
    write_csv,
    write_parquet,
)
from sealed import unwritten

from pipeline.demo.pictures import prepare_web
from pipeline.demo.server import serving


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A part of the demo's pictures, troubles included, on a port of its own."""
    folder = ROOT / "data/demo/web"
    marker = prepare_web(folder, ROOT / "data/demo/packages")
    tables = tmp_path_factory.mktemp("tables")
    with serving(folder) as server:
        old, new = f"http://127.0.0.1:{marker['port']}/", f"http://127.0.0.1:{server.port}/"
        plants = pacsv.read_csv(folder / "plants.csv").to_pylist()
        general = pq.read_table(folder / "general.parquet").to_pylist()
        copied = {file_hash(row, folder) for row in [*plants, *general] if row["record_id"].startswith("mirror/")}
        for rows, num, write in ((plants, NUM_PLANTS, write_csv), (general, NUM_GENERAL, write_parquet)):
            some = thin_out(rows, num, copied, folder)
            for row in some:
                row["url"] = row["url"].replace(old, new)
            write(tables, some)
        yield Web(tables / "plants.csv", tables / "general.parquet", new)


@pytest.fixture(scope="session")
def built(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished build (`build.yaml`, `build/`), sealed: to change anything, take what `lend` gives."""
    folder = tmp_path_factory.mktemp("built")
    done("build", write_build_config(web, folder, "build"))
    with unwritten(folder):
        yield folder
