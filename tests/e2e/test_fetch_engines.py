"""Builds with both engines: the demo's pictures and facts are the same, and a change of engine downloads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from building import Web, run_here, run_plantmix, write_build_config

from manifests.reader import open_reader
from manifests.tables import FACTS

pytestmark = pytest.mark.slow

FETCH: dict[str, Any] = {
    "network": {
        "threads": 8,
        "retries": 1,
        "robots_txt": False,
        "consent_signals": [],
        "profiles": [],
        "allow_private_addresses": True,
        "limits": {"requests_per_second": None, "connections": 8},
    }
}
NOT_TOLD = {"detail", "http_status", "attempts", "final_url", "redirects"}


def build(web: Web, folder: Path, name: str, engine: str) -> Path:
    """Build as far as the facts; gives the work folder."""
    done = run_plantmix(
        "build", write_build_config(web, folder, name, fetch={"engine": engine, **FETCH}), "--to", "fetch"
    )
    assert done.returncode == 0, done.stderr
    return folder / name


def facts_of(work: Path) -> pa.Table:
    with open_reader(str(work)) as connection:
        return connection.sql("SELECT * FROM facts ORDER BY sample_id").to_arrow_table()


@pytest.fixture(scope="module")
def works(web: Web, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A work folder an engine."""
    folder = tmp_path_factory.mktemp("engines")
    return {engine: build(web, folder, engine, engine) for engine in ("plantmix", "img2dataset")}


def test_the_demo_has_the_same_pictures_and_facts(works: dict[str, Path]) -> None:
    ours, theirs = facts_of(works["plantmix"]), facts_of(works["img2dataset"])
    told = [name for name in FACTS.names if name not in NOT_TOLD]
    assert theirs.select(told).equals(ours.select(told))
    assert pc.sum(pc.equal(ours["outcome"], "ok")).as_py() > 100
    assert set(theirs["outcome"].to_pylist()) >= {"http_404", "not_an_image", "corrupt_image"}
    pools = [{path.name: path.read_bytes() for path in (work / "pool").iterdir()} for work in works.values()]
    assert pools[0] == pools[1]


def test_a_change_of_engine_downloads_nothing(works: dict[str, Path], web: Web) -> None:
    work = works["img2dataset"]
    before = facts_of(work)
    sample_id = before.filter(pc.equal(before["outcome"], "ok"))["sample_id"][0].as_py()
    assert "ok after an unknown number of attempts: " in run_here("explain", work, sample_id).stdout
    build(web, work.parent, work.name, "plantmix")
    assert facts_of(work).equals(before), "our own engine would have told the number of attempts"
