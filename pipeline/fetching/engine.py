"""Fetch the rows of one part: scheduler, decoders, pool file and facts, one after the other.

Rows (sample id, URL) in; a pool file and a table of facts out, one fact a row, failures too. `fetch.engine` picks the
loop: our own in this file, or img2dataset's in img2dataset_engine.py. Gives up with RunError when a row got no fact;
what happens to one picture is an outcome in the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pyarrow as pa

from pipeline.fetching.decoding import Decoders
from pipeline.fetching.hosts import Gate
from pipeline.fetching.http import HttpClient, client_of_this_program
from pipeline.fetching.part import PartWriter, fact_of_download
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import FetchSettings


def fetch_rows(
    rows: Sequence[tuple[str, str]],
    settings: FetchSettings,
    gate: Gate,
    pool_path: str | Path,
    client: HttpClient | None = None,
) -> pa.Table:
    """Download, measure and store pictures; `rows` are (sample_id, url) with unique ids.

    The table has the schema FACTS, sorted by sample_id, `pool_file` null; offset and length lie in `pool_path`,
    a tar that is written even when it holds no picture. Connections, addresses and robots.txt rules are kept for
    the next part in this process; a caller who wants them apart gives a `client`.

    Raises: ConfigError when a contact is needed or the engine is not installed; RunError when a row got no fact.
    """
    settings.network.require_contact(url for _, url in rows)
    rows = sorted(rows)
    with PartWriter(pool_path) as part:
        if settings.engine == "img2dataset":
            from pipeline.fetching.img2dataset_engine import download_with_img2dataset  # only who asks for it needs it

            download_with_img2dataset(rows, settings, part)
        else:
            _download(rows, settings, gate, client or client_of_this_program(settings.network), part)
        return part.finish([sample_id for sample_id, _ in rows])


def _download(
    rows: Sequence[tuple[str, str]], settings: FetchSettings, gate: Gate, client: HttpClient, part: PartWriter
) -> None:
    """Our own loop: rows are written down in the order in which they finish."""
    urls = [url for _, url in rows]
    with (
        Scheduler(urls, client, gate, settings.image.max_body_bytes) as scheduler,
        closing(Decoders(scheduler, settings).results(len(urls))) as results,
    ):
        for row, download, picture in results:
            part.add(rows[row][0], fact_of_download(download), picture)
