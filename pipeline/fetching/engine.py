"""Fetch the rows of one part: scheduler, decoders, pool file and facts, one after the other.

Rows (sample id, URL) in; pool files and tables of facts out, one fact a row, failures too. A part that takes long gives
its result in pieces, so that what is downloaded is soon stored. `fetch.engine` picks the loop: our own in this file, or
img2dataset's in img2dataset_engine.py. Gives up with RunError when a row got no fact; what happens to one picture is an
outcome in the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import pyarrow as pa

from pipeline.fetching.decoding import Decoders
from pipeline.fetching.hosts import Gate
from pipeline.fetching.http import HttpClient, client_of_this_program
from pipeline.fetching.part import PartWriter, fact_of_download, require_facts
from pipeline.fetching.pictures.image import Fact, Rejected, StoredImage
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import FetchSettings
from pipeline.fetching.tally import Tally

_CHECK_IN_SECONDS = 0.5
# When a part is asked to stop, requests in flight may end for the first time, and what came is measured for the second.
# A build must be gone 10 s after Ctrl-C.
_GRACE_SECONDS = 3.0
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Piece:
    """Some rows of a part: their facts (schema MEASURED, sorted by sample_id, `pool_file` null) and their pool file."""

    facts: pa.Table
    pool_path: str
    is_whole: bool
    """True when it holds all rows of the part."""


def fetch_in_pieces(
    rows: Sequence[tuple[str, str]],
    settings: FetchSettings,
    gate: Gate,
    new_pool_file: Callable[[], str],
    piece_seconds: float = float("inf"),
    part: str = "",
    client: HttpClient | None = None,
    scratch: str | None = None,
) -> Iterator[Piece]:
    """Download, measure and store pictures; `rows` are (sample_id, url) with unique ids.

    An address that several rows have is asked for once.

    Yields what has ended every `piece_seconds`, and the rest at the end. `new_pool_file` names the file of the next
    piece. Under the name `part` the gate hears how far this is. When it wants to stop, the last piece comes soon, and
    rows without an answer are in no piece. What an engine keeps on disk meanwhile lies in the folder `scratch`.

    Connections, addresses and robots.txt rules are kept for the next part in this process; a caller who wants them
    apart gives a `client`.

    Raises: ConfigError when a contact is needed, or the engine is not installed; RunError when a row got no fact.
    """
    settings.network.require_contact(url for _, url in rows)
    same: dict[str, list[str]] = {}
    for sample_id, url in sorted(rows):
        same.setdefault(url, []).append(sample_id)
    num_rows, rows = len(rows), [(ids[0], url) for url, ids in same.items()]
    members = {ids[0]: ids for ids in same.values() if len(ids) > 1}
    if settings.engine == "img2dataset":
        from pipeline.fetching.img2dataset_engine import download_with_img2dataset  # only who asks for it needs it

        with PartWriter(new_pool_file(), members) as whole:
            download_with_img2dataset(rows, settings, whole, scratch)
            require_facts([sample_id for sample_id, _ in rows if sample_id not in whole.sample_ids], len(rows))
            facts = whole.finish()
        gate.check_in(part, _tally_of(facts), ended=True)
        yield Piece(facts, whole.pool_path, True)
        return
    writer, began = PartWriter(new_pool_file(), members), time.monotonic()
    client = client or client_of_this_program(settings.network)
    try:
        for ended in _download(rows, settings, gate, client, part):
            if ended is not None:
                writer.add(*ended)
            if time.monotonic() - began >= piece_seconds and 0 < len(writer.sample_ids) < num_rows:
                piece = _finish(writer, num_rows)
                writer, began = PartWriter(new_pool_file(), members), time.monotonic()
                yield piece
        if writer.sample_ids or not rows:
            yield _finish(writer, num_rows)
    finally:
        writer.discard()


def _finish(writer: PartWriter, num_rows: int) -> Piece:
    facts = writer.finish()
    return Piece(facts, writer.pool_path, facts.num_rows == num_rows)


def _download(
    rows: Sequence[tuple[str, str]],
    settings: FetchSettings,
    gate: Gate,
    client: HttpClient,
    part: str,
) -> Iterator[tuple[str, Fact, StoredImage | Rejected | None] | None]:
    """Our own loop: each row as it ends, and None whenever nothing has ended for a moment."""
    tally = Tally()
    if gate.check_in(part, tally):
        return
    urls = [url for _, url in rows]
    left = {sample_id for sample_id, _ in rows}
    stop_at, check_in_at = float("inf"), time.monotonic()
    with (
        Scheduler(urls, client, gate, settings.image.max_body_bytes, part) as scheduler,
        closing(Decoders(scheduler, settings).results(len(urls))) as results,
    ):
        for result in results:
            row, download, picture = result or (0, None, None)
            if download is None:
                yield None
            else:
                left.remove(rows[row][0])
                outcome = picture.outcome if isinstance(picture, Rejected) else download.outcome
                tally.add(outcome.value, download.host)
                if tally.num_rows == 1:
                    check_in_at = 0.0  # whoever waits for a first picture hears of it at once
                yield rows[row][0], fact_of_download(download), picture
            now = time.monotonic()
            if now >= stop_at:
                break
            if now >= check_in_at:
                check_in_at = now + _CHECK_IN_SECONDS
                if gate.check_in(part, tally) and stop_at == float("inf"):
                    stop_at = now + _STOP_SECONDS
                    scheduler.give_back(_GRACE_SECONDS)
    gate.check_in(part, tally, ended=True)
    if stop_at == float("inf"):
        require_facts(sorted(left), len(rows))


def _tally_of(facts: pa.Table) -> Tally:
    tally = Tally()
    for outcome, host in zip(facts["outcome"].to_pylist(), facts["host"].to_pylist(), strict=True):
        tally.add(outcome, host)
    return tally
