"""A clock that is set back between two builds decides nothing."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from manifests.contract import catalog
from manifests.contract.catalog import Catalog


def test_the_configuration_of_the_last_build_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Catalog.open(str(tmp_path)) as opened:
        for config, year in (('{"name": "a"}', 2030), ('{"name": "b"}', 2020), ('{"name": "c"}', 2000)):
            moment = datetime.datetime(year, 1, 1)
            monkeypatch.setattr(catalog, "utc_now", lambda moment=moment: moment)
            opened.record_config(config)
            assert opened.last_config() == config
        opened.record_config('{"name": "a"}')
        assert opened.last_config() == '{"name": "a"}'
