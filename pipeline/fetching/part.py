"""One part of a work folder on its way to disk: pictures into the pool file, one fact a row into the table.

What downloads and pictures from local files have in common. Writes the pool file and its spool file. Gives up with
RunError when a row got no fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from manifests.errors import RunError
from manifests.tables import FACTS
from pipeline.fetching.visits import Download
from pipeline.pictures.facts import Fact, fact_of
from pipeline.pictures.image import Rejected, StoredImage
from pipeline.store.pool import PoolWriter


class PartWriter:
    """Collects the pictures and facts of one part; use it as a context manager: an error leaves no file behind."""

    def __init__(self, pool_path: str | Path) -> None:
        self._pool = PoolWriter(pool_path)
        self._facts: dict[str, Fact] = {}

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def add(self, sample_id: str, fact: Fact, result: StoredImage | Rejected | None = None) -> None:
        """Keep what is known of a row: `fact` is how its bytes were got, `result` what their measurement gave."""
        if isinstance(result, StoredImage):
            self._pool.add(sample_id, result.body)
        self._facts[sample_id] = {"sample_id": sample_id, **fact, **(fact_of(result) if result else {})}

    def finish(self, sample_ids: Sequence[str]) -> pa.Table:
        """Write the pool file; gives the facts of `sample_ids` in that order, with schema FACTS and `pool_file` null.

        Raises: RunError when a row is without a fact.
        """
        missing = [sample_id for sample_id in sample_ids if sample_id not in self._facts]
        if missing:
            raise RunError(
                f"{len(missing)} of {len(sample_ids)} rows ended without a fact, the first is {missing[0]}; "
                "the log may say why; if not, this is a defect in PlantMix, please report it"
            )
        for sample_id, (offset, length) in self._pool.finish().items():
            self._facts[sample_id].update(offset=offset, length=length)
        return pa.Table.from_pylist([self._facts[sample_id] for sample_id in sample_ids], FACTS)


def fact_of_download(download: Download) -> Fact:
    """What a finished download adds to the fact of its row."""
    return {
        "outcome": download.outcome.value,
        "detail": download.detail or None,
        "http_status": download.http_status,
        "attempts": download.attempts,
        "host": download.host,
        "final_url": download.final_url,
        "redirects": list(download.redirects),
    }
