"""One part of a work folder on its way to disk: pictures into the pool file, one fact a row into the table.

What downloads and pictures from local files have in common. Writes the pool file. Gives up with RunError when a
row got no fact.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from manifests.contract.tables import FACTS, SIGNALS
from manifests.errors import RunError
from pipeline.fetching.pictures.image import Fact, Rejected, StoredImage, fact_of
from pipeline.fetching.visits import Download
from pipeline.store.pool import PoolWriter

MEASURED = FACTS.append(SIGNALS)
"""What is known of a row when its part is done; where its address and its pictures lie is not known here."""


class PartWriter(AbstractContextManager["PartWriter"]):
    """Collects pictures and facts of rows; `finish` it or `discard` it.

    As a context manager it is discarded on an error.
    """

    def __init__(self, pool_path: str | Path, same: Mapping[str, Sequence[str]] = MappingProxyType({})) -> None:
        """Start with `same`, all rows of one address, this one included: they get the same fact and picture."""
        self._same = same
        self.pool_path = str(pool_path)
        self._pool = PoolWriter(pool_path)
        self._facts: dict[str, Fact] = {}
        self._finished = False

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def sample_ids(self) -> Collection[str]:
        """The rows that have a fact."""
        return self._facts.keys()

    def add(self, sample_id: str, fact: Fact, result: StoredImage | Rejected | None = None) -> None:
        """Keep what is known of a row: `fact` is how its bytes were got, `result` what their measurement gave."""
        measured = {**fact, **(fact_of(result) if result else {})}
        for same_id in self._same.get(sample_id, (sample_id,)):
            if isinstance(result, StoredImage):
                self._pool.add(same_id, result.body)
            self._facts[same_id] = {"sample_id": same_id, **measured}

    def finish(self) -> pa.Table:
        """Write the pool file; gives the facts, sorted by sample_id, with schema MEASURED and `pool_file` null."""
        with self._pool:
            for sample_id, (offset, length) in self._pool.finish().items():
                self._facts[sample_id].update(offset=offset, length=length)
        self._finished = True
        return pa.Table.from_pylist([self._facts[sample_id] for sample_id in sorted(self._facts)], MEASURED)

    def discard(self) -> None:
        """Leave no file behind, unless it is finished."""
        if not self._finished:
            self._pool.discard()


def require_facts(missing: Sequence[str], num_rows: int) -> None:
    """Raise RunError when a row has no fact: each must have one."""
    if missing:
        raise RunError(
            f"{len(missing)} of {num_rows} rows ended without a fact, the first is {missing[0]}; "
            "the log may say why; if not, this is a defect in PlantMix, please report it"
        )


def fact_of_download(download: Download) -> Fact:
    """Return the fields that a finished download adds to the fact of its row."""
    return {
        "outcome": download.outcome.value,
        "detail": download.detail or None,
        "http_status": download.http_status,
        "attempts": download.attempts,
        "host": download.host,
        "final_url": download.final_url,
        "redirects": list(download.redirects),
        "signals": list(download.said.items()),
    }
