"""`dalip proxies` of a release in a real S3 server, with results into the catalogue of a work folder there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import release_writer as writer
from misbehaving.object_store import BUCKET, Store, become_user, serving
from training_runs import tiny_values, write_values

from manifests.contract.catalog import Catalog
from manifests.errors import ConfigError
from manifests.stores.folder import PLACE_VARIABLE
from pipeline.commands.plan.tables import read_runs
from training.proxies.runs import read_proxy_settings
from training.proxies.study import run_proxies

pytestmark = pytest.mark.slow

WORK = f"s3://{BUCKET}/work"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with serving() as found:
        become_user(found, monkeypatch)
        monkeypatch.setenv(PLACE_VARIABLE, str(tmp_path / "local"))
        yield found


def write_config(folder: Path, name: str, **changes: Any) -> str:
    values = tiny_values(
        folder,
        release=str(folder / "toy-0001"),
        output_dir=str(folder / name),
        runs=[{"run": "even", "mixture": {"plant": 0.5, "general": 0.5}}],
        data={"cache_dir": str(folder / "cache")},
        schedule={"steps": 4},
        eval={"batch_size": 8},
    )
    return write_values(folder, values | changes, name)


def test_a_release_and_a_catalogue_in_a_store_give_the_table_of_local_ones(store: Store, tmp_path: Path) -> None:
    writer.write_release(tmp_path / "toy-0001", writer.drawn_samples(60, 25, size_px=40), 15, stratified=True)
    fsspec.filesystem("s3").put(str(tmp_path / "toy-0001"), f"{BUCKET}/toy-0001", recursive=True)
    run_proxies(read_proxy_settings(write_config(tmp_path, "local")), lambda line: None)
    remote = write_config(tmp_path, "remote", release=f"s3://{BUCKET}/toy-0001", catalogue=WORK)
    with pytest.raises(ConfigError, match=f"^{WORK}: no catalogue here"):
        run_proxies(read_proxy_settings(remote), lambda line: None)
    with Catalog.open(WORK):
        pass
    store.requests.clear()
    run_proxies(read_proxy_settings(remote), lambda line: None)
    assert (tmp_path / "remote/runs.csv").read_text() == (tmp_path / "local/runs.csv").read_text()
    assert read_runs(WORK).shares.tolist() == [[0.5, 0.5]]  # as `plantmix plan fit` does
    shards = Counter(path for method, path in store.requests if path.endswith(".tar"))
    assert set(shards.values()) == {1}, "one request a shard"
    assert len(list((tmp_path / "cache/shards").glob("*.tar"))) == len(shards), "in the cache that the config names"
