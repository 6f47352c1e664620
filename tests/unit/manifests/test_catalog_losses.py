"""What a catalogue does about files that are gone or have another size."""

from __future__ import annotations

from pathlib import Path

import pytest
from catalogued import count, part

from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel, StageRecord
from manifests.errors import DamageError, IntegrityError


def test_lost_parts_are_uncommitted_and_their_stages_unsealed(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    for key in ("p1", "p2"):
        catalog.commit_parts("v1", {int(key[1]): part(key, f"{key}.parquet", f"{key}.tar", workdir=catalog.workdir)})
    sealed = StageRecord("ingest", "v1", Funnel(10, 6, {"invalid_url": 4}), {})
    catalog.seal_stage(sealed)
    assert catalog.drop_lost_parts({"ingest"}) == {}
    assert catalog.find_sealed("v1") == sealed
    Path(catalog.workdir, "p1.tar").unlink()
    assert catalog.drop_lost_parts({"fetch", "mix"}) == {}
    assert catalog.find_sealed("v1") == sealed
    assert catalog.drop_lost_parts({"ingest"}) == {"ingest": 1}
    assert catalog.find_sealed("v1") is None
    assert [found.key for found in catalog.parts_of("v1")] == ["p2"]
    catalog.commit_parts("v1", {1: part("p1", "p1.parquet", "p1.tar", workdir=catalog.workdir)})
    catalog.seal_stage(sealed)
    assert catalog.drop_lost_parts({"ingest"}) == {}
    assert catalog.find_sealed("v1") == sealed


def test_an_older_version_that_lost_files_is_unsealed_too(catalog: Catalog) -> None:
    """Else a build that goes back to it would claim a release that is not there."""
    for version in ("v1", "v2"):
        catalog.open_stage("ingest", version, {})
        catalog.commit_parts(version, {0: part(f"p-{version}", f"{version}.parquet", workdir=catalog.workdir)})
        catalog.seal_stage(StageRecord("ingest", version, Funnel(5, 5), {}))
    Path(catalog.workdir, "v1.parquet").unlink()
    assert catalog.drop_lost_parts({"ingest"}) == {"ingest": 1}
    assert catalog.find_sealed("v1") is None
    assert catalog.find_sealed("v2") is not None


def test_a_file_of_another_size_is_damaged(catalog: Catalog) -> None:
    catalog.open_stage("ingest", "v1", {})
    catalog.commit_parts("v1", {0: part("p1", "p1.parquet", workdir=catalog.workdir)})
    Path(catalog.workdir, "p1.parquet").write_bytes(b"cut")
    with pytest.raises(DamageError, match=r"p1\.parquet: not what was recorded.*`plantmix repair") as caught:
        catalog.drop_lost_parts({"ingest"})
    assert caught.value.paths == ("p1.parquet",)
    assert list(catalog.find_parts(["p1"])) == ["p1"]


@pytest.mark.parametrize(
    ("lost", "stops"),
    [
        (["pool/0.tar"], False),
        ([f"pool/{number}.tar" for number in range(4)], True),
        ([f"pool/{number}.tar" for number in range(20)], True),
        (["releases/a/0.tar", "releases/a/1.tar"], False),
        (["tables/0.parquet"], False),
        (["tables/0.parquet", "tables/1.parquet"], True),
    ],
)
def test_mass_loss_stops_before_anything_is_dropped(catalog: Catalog, lost: list[str], stops: bool) -> None:
    catalog.open_stage("ingest", "v1", {})
    paths = [
        *(f"pool/{number}.tar" for number in range(20)),
        *(f"tables/{number}.parquet" for number in range(12)),
        *(f"releases/a/{number}.tar" for number in range(2)),
    ]
    for number, path in enumerate(paths):
        catalog.commit_parts("v1", {number: part(path, path, workdir=catalog.workdir)})
    for path in lost:
        Path(catalog.workdir, path).unlink()
    if not stops:
        assert catalog.drop_lost_parts({"ingest"}) == {"ingest": len(lost)}
        return
    folder = lost[0].partition("/")[0]
    with pytest.raises(IntegrityError, match=rf"/{folder}: {len(lost)} of \d+ recorded .* mount it .*`plantmix repair"):
        catalog.drop_lost_parts({"ingest"})
    assert count(catalog, "parts") == len(paths)
