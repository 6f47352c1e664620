"""A catalogue of an empty work folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.contract.catalog import Catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(str(tmp_path)) as opened:
        yield opened
