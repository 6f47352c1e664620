"""Fetch the rows of one part: img2dataset's loop, our scheduler, decoder and writer.

Rows (sample id, URL) in; a pool file and a table of facts out, one fact a row, failures too.
Writes `pool_path` and private files beside it. Gives up with RunError when a row got no fact; what happens to
one picture is an outcome in the table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.errors import RunError
from manifests.outcomes import Outcome
from manifests.tables import FACTS
from pipeline.fetching.decoding import Decoders
from pipeline.fetching.hosts import Gate
from pipeline.fetching.http import HttpClient, client_of_this_program
from pipeline.fetching.img2dataset_engine import make_downloader
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import FetchSettings
from pipeline.fetching.visits import Download
from pipeline.pictures.facts import Fact, fact_of
from pipeline.pictures.image import Rejected, StoredImage
from pipeline.store.pool_file import PoolFile


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

    Raises: ConfigError when a contact is needed; RunError when img2dataset does not fit or lost a row.
    """
    settings.network.require_contact(url for _, url in rows)
    client = client or client_of_this_program(settings.network)
    part = _Part(sorted(rows), settings, gate, client, PoolFile(pool_path))
    try:
        return part.run()
    except BaseException:
        part.pool.discard()
        raise


class _Body:
    """What the loop passes from download to resizer: a measured picture in the guise of a stream."""

    def __init__(self, row: int, result: StoredImage | Rejected) -> None:
        self.row = row
        self.result = result

    def seek(self, _: int) -> None:
        """The loop rewinds; the body is whole."""

    def close(self) -> None:
        """The loop closes; nothing is held."""


class _Part:
    """State of one part, shared by the four things that stand in img2dataset's seams."""

    def __init__(
        self,
        rows: Sequence[tuple[str, str]],
        settings: FetchSettings,
        gate: Gate,
        client: HttpClient,
        pool: PoolFile,
    ) -> None:
        self.rows = rows
        self.settings = settings
        self.gate = gate
        self.client = client
        self.pool = pool
        self.facts: dict[str, Fact] = {}
        self.pending: dict[str, Fact] = {}  # what is known of a row before the writer gets it

    def run(self) -> pa.Table:
        """Drive img2dataset's loop over the rows."""
        if self.rows:
            with tempfile.TemporaryDirectory(prefix="plantmix-fetch-") as folder:
                listing = Path(folder) / "rows.arrow"
                ids, urls = zip(*self.rows, strict=True)
                table = pa.table({"sample_id": pa.array(ids, pa.string()), "url": pa.array(urls, pa.string())})
                with pa.OSFile(str(listing), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                self._downloader(folder).download_shard((0, str(listing)))
        missing = [sample_id for sample_id, _ in self.rows if sample_id not in self.facts]
        if missing:
            raise RunError(
                f"{len(missing)} of {len(self.rows)} rows ended without a fact, the first is {missing[0]}; "
                "this is a defect in PlantMix, please report it with the log"
            )
        places = self.pool.close()
        for sample_id, (offset, length) in places.items():
            self.facts[sample_id].update(offset=offset, length=length)
        return pa.Table.from_pylist([self.facts[sample_id] for sample_id, _ in self.rows], FACTS)

    def _downloader(self, folder: str) -> Any:
        return make_downloader(
            self._thread_pool,
            sample_writer_class=self._writer,
            resizer=self.resize,
            thread_count=self.settings.network.threads,
            save_caption=False,
            extract_exif=False,
            output_folder=folder,
            column_list=["sample_id", "url"],
            timeout=self.settings.network.read_timeout_seconds,
            number_sample_per_shard=max(2, len(self.rows)),
            oom_shard_count=1,
            compute_hash=None,
            verify_hash_type=None,
            encode_format="jpg",
            retries=0,
            user_agent_token=None,
            disallowed_header_directives=None,
        )

    def _thread_pool(self, _: int) -> _SchedulerPool:
        return _SchedulerPool(self)

    def _writer(self, *_: Any) -> _Writer:
        return _Writer(self)

    def resize(
        self, body: _Body, _: Any = None
    ) -> tuple[StoredImage | None, int | None, int | None, int | None, int | None, str | None]:
        """img2dataset's resizer: picture, stored and original size, or an error message (here: the outcome)."""
        fact = self.pending[self.rows[body.row][0]]
        result = body.result
        fact.update(fact_of(result))
        if isinstance(result, Rejected):
            return None, None, None, None, None, result.outcome.value
        seen = result.seen
        return result, result.stored_width_px, result.stored_height_px, seen.width_px, seen.height_px, None


class _SchedulerPool:
    """Our scheduler in the place of a thread pool."""

    def __init__(self, part: _Part) -> None:
        self._part = part
        urls = [url for _, url in part.rows]
        self._scheduler = Scheduler(urls, part.client, part.gate, part.settings.image.max_body_bytes)

    def __enter__(self) -> _SchedulerPool:
        self._scheduler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._scheduler.__exit__(*error)

    def imap_unordered(
        self, _: Callable[..., Any], rows: Iterator[tuple[int, str]]
    ) -> Iterator[tuple[int, _Body | None, str | None]]:
        """(row number, body, error message) of every row; the function, img2dataset's own download, is not called."""
        expected = [url for _, url in self._part.rows]
        if [url for _, url in rows] != expected:
            raise RunError("img2dataset handed over other rows than it was given; use the tested release")
        for row, download, result in Decoders(self._scheduler, self._part.settings).results(len(expected)):
            sample_id = self._part.rows[row][0]
            self._part.pending[sample_id] = _download_fact(sample_id, download)
            if result is not None:
                yield row, _Body(row, result), None
            else:
                yield row, None, download.outcome.value

    def terminate(self) -> None:
        """The loop calls this at its end; leaving the context does the work."""

    def join(self) -> None:
        """As above."""


class _Writer:
    """img2dataset's sample writer: picture to the pool, facts to the part."""

    def __init__(self, part: _Part) -> None:
        self._part = part

    def write(self, image: StoredImage | None, _key: str, _caption: None, meta: dict[str, Any]) -> None:
        """One call a row, failures too (their image is None)."""
        sample_id = meta["sample_id"]
        fact = self._part.pending.pop(sample_id)
        if (image is None) != (fact["outcome"] != Outcome.OK.value) or sample_id in self._part.facts:
            raise RunError(f"row {sample_id}: img2dataset gave it twice or lost its picture; use the tested release")
        self._part.facts[sample_id] = fact
        if image is not None:
            self._part.pool.add(sample_id, image.body)

    def close(self) -> None:
        """Completeness is checked by the part, after the loop."""


def _download_fact(sample_id: str, download: Download) -> Fact:
    return {
        "sample_id": sample_id,
        "outcome": download.outcome.value,
        "detail": download.detail or None,
        "http_status": download.http_status,
        "attempts": download.attempts,
        "host": download.host,
        "final_url": download.final_url,
        "redirects": list(download.redirects),
    }
