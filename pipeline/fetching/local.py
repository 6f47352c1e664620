"""Measure the pictures of one part that lie in local files: the same decode, pool and facts as a download.

Rows (sample id, source, locator, address) in; a pool file, a table of facts and addresses out, one fact a row, failures
too. Reads the files below each source's root in the order of their locators. What happens to one picture is an outcome
in the table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from manifests.contract.outcomes import Outcome
from manifests.contract.records import UNREADABLE
from pipeline.fetching.part import PartWriter
from pipeline.fetching.pictures.image import measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.sources.files import BytesUnreadable, LocalReader, address_of, split_locator


def read_local(
    rows: Sequence[tuple[str, str, str, str | None]],
    readers: Mapping[str, LocalReader],
    settings: ImageSettings,
    pool_path: str | Path,
) -> tuple[pa.Table, dict[str, str]]:
    """Read, measure and store pictures; `rows` are (sample_id, source, locator, address), `readers` those of sources.

    An address says which content the locator had when it was looked at (`address_of`); without one the picture is read
    for the first time, and gets the address of what is read. A whole file that has other content by now ends as
    `file_changed`. A picture that refuses training is stored, with the refusal as its detail: `collect` decides.

    The table is as that of a `Piece` (engine.py). With it come the addresses by sample id.
    """
    addresses: dict[str, str] = {}
    with PartWriter(pool_path) as part, ExitStack() as stack:
        for reader in readers.values():
            stack.enter_context(reader)
        for sample_id, source, locator, address in rows:
            sha256 = UNREADABLE
            try:
                body = readers[source].read(locator, settings.max_body_bytes)
                sha256 = hashlib.sha256(body).hexdigest()
                expected = (None, address_of(locator, UNREADABLE), address_of(locator, sha256))
                if address not in expected and split_locator(locator)[1] == 0:  # of a tar the whole is hashed
                    raise BytesUnreadable(Outcome.FILE_CHANGED, "it was replaced while this build was running")
            except BytesUnreadable as error:
                part.add(sample_id, {"outcome": error.outcome.value, "detail": error.detail, "attempts": 1})
            else:
                result = measure_image(body, settings)
                part.add(sample_id, {"outcome": Outcome.OK.value, "attempts": 1}, result)
            addresses[sample_id] = address or address_of(locator, sha256)
        return part.finish(), addresses
