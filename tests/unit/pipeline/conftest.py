from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from manifests.contract.tables import CANDIDATES, sample_id


@pytest.fixture
def make_candidates() -> Callable[..., pa.Table]:
    """Candidates from a list of rows; what a row does not give is null."""

    def make(rows: list[dict[str, Any]], source: str = "web", domain: str = "general") -> pa.Table:
        full = [
            {"sample_id": sample_id(source, str(i)), "source": source, "domain": domain, **row}
            for i, row in enumerate(rows)
        ]
        return pa.Table.from_pylist(full, schema=CANDIDATES)

    return make
