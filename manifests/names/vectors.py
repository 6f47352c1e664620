"""Which samples of releases vectors are of, by the names that `dalip embed` gives them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_ID_DIGITS = 32


def samples_of(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The sample id in each name: alone, behind a place, or as the key in a shard. Other names give other texts."""
    last = pc.replace_substring_regex(names, r"^.*/", "")
    return pc.utf8_slice_codeunits(last, 0, _ID_DIGITS)
