"""Measure the pictures of one part that lie in local files: the same decode, pool and facts as a download.

Rows (sample id, source, locator) in; a pool file and a table of facts out, one fact a row, failures too. Reads the
files below each source's root in the order of their locators. What happens to one picture is an outcome in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from manifests.outcomes import Outcome
from pipeline.fetching.part import PartWriter
from pipeline.pictures.facts import Fact
from pipeline.pictures.image import Rejected, StoredImage, measure_image
from pipeline.pictures.phash import one_blas_thread
from pipeline.pictures.settings import ImageSettings
from pipeline.sources.files import BytesUnreadable, LocalReader


def read_local(
    rows: Sequence[tuple[str, str, str]],
    roots: Mapping[str, str],
    settings: ImageSettings,
    pool_path: str | Path,
    *,
    with_c2pa: bool = False,
) -> pa.Table:
    """Read, measure and store pictures; `rows` are (sample_id, source, locator), `roots` the folder of each source.

    A picture that says that it must not train a model is stored with that as its detail: `collect` decides.
    The table is as of `fetch_rows`: schema FACTS, sorted by sample_id, `pool_file` null.
    """
    with PartWriter(pool_path) as part, ExitStack() as stack, one_blas_thread():
        readers = {name: stack.enter_context(LocalReader(root)) for name, root in roots.items()}
        for sample_id, source, locator in rows:
            part.add(sample_id, *_read(readers[source], locator, settings, with_c2pa))
        return part.finish()


def _read(
    reader: LocalReader, locator: str, settings: ImageSettings, with_c2pa: bool
) -> tuple[Fact, StoredImage | Rejected | None]:
    try:
        body = reader.read(locator, settings.max_body_bytes)
    except BytesUnreadable as error:
        return {"outcome": error.outcome.value, "detail": error.detail, "attempts": 1}, None
    return {"outcome": Outcome.OK.value, "attempts": 1}, measure_image(body, settings, with_c2pa=with_c2pa)
