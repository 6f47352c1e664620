"""Measure the pictures of one part that lie here already: the decode, pool and facts of a download, no network.

Rows (sample id, source, locator) in; a pool file and a table of facts out, one fact a row, failures too. Reads the
files below each source's root in the order of their locators. Gives up on nothing: what happens to one picture is
an outcome in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.outcomes import Outcome
from manifests.tables import FACTS
from pipeline.pictures.facts import fact_of
from pipeline.pictures.image import StoredImage, measure_image
from pipeline.pictures.settings import ImageSettings
from pipeline.sources.files import BytesUnreadable, LocalReader
from pipeline.store.pool_file import PoolFile


def read_local(
    rows: Sequence[tuple[str, str, str]], roots: Mapping[str, str], settings: ImageSettings, pool_path: str | Path
) -> pa.Table:
    """Read, measure and store pictures; `rows` are (sample_id, source, locator), `roots` the folder of each source.

    The table is as of `fetch_rows`: schema FACTS, sorted by sample_id, `pool_file` null.
    """
    pool = PoolFile(pool_path)
    facts: dict[str, dict[str, Any]] = {}
    try:
        with ExitStack() as stack:
            readers = {name: stack.enter_context(LocalReader(root)) for name, root in roots.items()}
            for sample_id, source, locator in rows:
                facts[sample_id] = _measure(sample_id, readers[source], locator, settings, pool)
        for sample_id, (offset, length) in pool.close().items():
            facts[sample_id].update(offset=offset, length=length)
    except BaseException:
        pool.discard()
        raise
    return pa.Table.from_pylist([facts[sample_id] for sample_id in sorted(facts)], FACTS)


def _measure(
    sample_id: str, reader: LocalReader, locator: str, settings: ImageSettings, pool: PoolFile
) -> dict[str, Any]:
    fact: dict[str, Any] = {"sample_id": sample_id, "outcome": Outcome.OK.value, "attempts": 1}
    try:
        body = reader.read(locator, settings.max_body_bytes)
    except BytesUnreadable as error:
        return fact | {"outcome": error.outcome.value, "detail": error.detail}
    result = measure_image(body, settings)
    if isinstance(result, StoredImage):
        pool.add(sample_id, result.body)
    return fact | fact_of(result)
