"""The dedup stage over real facts tables: all pairs and no other, whatever earlier builds had.

The hash of a mirror image follows from that of a picture here, but for a bit that differs between pictures of one hash.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hashed_pairs import look_of

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.copies import MIDDLE_RADIUS
from manifests.contract.records import Funnel
from pipeline.config import BuildConfig
from pipeline.engine.runner import Runner
from pipeline.engine.work import Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.stages.dedup import stage as dedup

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def fetched(hashes: Sequence[Hashes]) -> Stage[dict[str, Any]]:
    """A stage in the place of fetch that states these pHashes as facts, one table a source."""
    names = ["_".join(str(int(value)) for value in some[:3]) + f"_{len(some)}" for some in hashes]

    def write(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        rows, name = inputs["phash"], inputs["name"]
        facts = {
            "sample_id": [f"source-{name}-{row:05d}" for row in range(len(rows))],
            "outcome": ["ok"] * len(rows),
            "phash": rows,
            "phash_mirrored": [mirrored(value, row) for row, value in enumerate(rows)],
            "middle_hash": [middle(value, row) for row, value in enumerate(rows)],
            "middle_mirrored": [middle(value, row) ^ 1 << 60 for row, value in enumerate(rows)],
            "pixels_sha256": [f"source-{name}-{row // 2}" for row in range(len(rows))],  # every image twice
        }
        table = pa.table({name: pa.array(facts.get(name, [None] * len(rows)), kind) for name, kind in SCHEMA})
        return PartResult((run.write("facts", table, f"source-{name}"),))

    def plan(_: dict[str, Any], run: StageRun[None]) -> list[Part[dict[str, Any]]]:
        return [Part({"name": name, "phash": some.tolist()}) for name, some in zip(names, hashes, strict=True)]

    def conclude(_: dict[str, Any], run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
        num = sum(len(some) for some in hashes)
        return Funnel(num, num), {"content": "+".join(names)}

    return Stage(
        "fetch", "facts", lambda _: {"names": names}, (Step("write", write, gives=("facts",), plan=plan),), conclude
    )


SCHEMA = [(field.name, field.type) for field in tables.FACTS]


def build(workdir: Path, sources: Sequence[Hashes], radius: int = 4, **run: Any) -> tuple[str, list[dict[str, int]]]:
    """Build facts and dedup; gives the hash of the pairs table, and the rows it holds."""
    config = BuildConfig.model_validate(
        {
            "name": "demo",
            "work_dir": str(workdir),
            "sources": [
                {"name": "a", "domain": "plant", "table": "a.csv", "columns": {"url": "url", "caption": "caption"}}
            ],
            "dedup": {"radius": radius},
            "mix": {"ratio": {"plant": 1}},
            "run": {"executor": "inline", **run},
        }
    )
    with Catalog.open(str(workdir)) as catalog:
        Runner(config, (fetched(sources), dedup.STAGE), catalog).run()
        sealed = catalog._connection.execute("SELECT fingerprint FROM current_stages WHERE stage = 'dedup'").fetchall()
        (part,) = catalog.parts_of(sealed[0][0], "pairs")
        (file,) = part.files
    return file.sha256, pq.read_table(workdir / file.path).to_pylist()


ODD_FREQUENCIES = 0x5555555555555555


def middle(value: int, row: int) -> int:
    """One of three, of which the first and the last are not near."""
    return (0, 0x7F, 0xFF)[(value >> 7 ^ row) % 3]


def mirrored(value: int, row: int) -> int:
    return value ^ ODD_FREQUENCIES ^ (1 << value % 61 if value % 3 else 0) ^ (row % 2) << 63


def brute_force(sources: Sequence[Hashes], radius: int) -> list[tuple[int, ...]]:
    shown = {
        (int(value), mirrored(int(value), row), middle(int(value), row))
        for some in sources
        for row, value in enumerate(some)
    }
    hash_of, turned, middles = (np.array(column, np.uint64) for column in zip(*sorted(shown), strict=True))
    looks = [look_of(*hashes) for hashes in zip(hash_of.tolist(), middles.tolist(), strict=True)]
    apart = np.bitwise_count(hash_of[:, None] ^ hash_of).astype(int)
    across = np.bitwise_count(hash_of[:, None] ^ turned).astype(int)
    best: dict[tuple[int, ...], tuple[bool, int]] = {}  # as they are before mirrored, then the nearest
    for distances, is_mirrored in ((apart, False), (across, True)):
        others = middles ^ np.uint64(is_mirrored << 60)
        near_middles = np.bitwise_count(middles[:, None] ^ others) <= MIDDLE_RADIUS
        for i, j in np.argwhere((distances <= radius) & near_middles).tolist():
            (look_a, hash_a), (look_b, hash_b) = sorted((looks[at], int(hash_of[at])) for at in (i, j))
            near = (is_mirrored, int(distances[i, j]))
            if look_a != look_b:
                pair = look_a, look_b, hash_a, hash_b
                best[pair] = min(near, best.get(pair, near))
    return [(*pair, best[pair][1], best[pair][0]) for pair in sorted(best)]


def some_hashes(seed: int, num: int) -> Hashes:
    """Half of them within 0 to 6 bits of one of a few centres, which all seeds share, or of its mirror image."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).integers(0, 2**64, 30, dtype=np.uint64)
    hashes = rng.integers(0, 2**64, num, dtype=np.uint64)
    near = rng.choice(centres, num // 2) ^ rng.choice(np.array([0, 0, ODD_FREQUENCIES], np.uint64), num // 2)
    for _ in range(6):
        near ^= np.where(rng.random(num // 2) < 0.4, np.uint64(1) << rng.integers(0, 64, num // 2, dtype=np.uint64), 0)
    hashes[: num // 2] = near
    return hashes


A, B, C = (some_hashes(seed, num) for seed, num in ((1, 900), (2, 400), (3, 250)))


def as_tuples(rows: list[dict[str, int]]) -> list[tuple[int, ...]]:
    return [tuple(row[name] for name in tables.PAIRS.names) for row in rows]


@pytest.mark.parametrize("radius", [0, *(pytest.param(radius, marks=pytest.mark.slow) for radius in (4, 8))])
def test_any_history_gives_all_pairs_of_the_build_and_the_same_bytes(tmp_path: Path, radius: int) -> None:
    whole, rows = build(tmp_path / "whole", [A, B, C], radius)
    assert as_tuples(rows) == brute_force([A, B, C], radius)
    for sources in ([B, C], [A], [C, A]):  # some leave, and come back
        _, rows = build(tmp_path / "grown", sources, radius)
        assert as_tuples(rows) == brute_force(sources, radius)
    assert build(tmp_path / "grown", [A, B, C], radius)[0] == whole


def test_without_pictures_there_are_no_pairs(tmp_path: Path) -> None:
    _, rows = build(tmp_path, [A[:0]])
    assert rows == []


def test_placeholders_are_named_by_different_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.PLACEHOLDER_MIN_COUNT", 3)
    blank = np.full(10, 12345, np.uint64)  # ten rows, five different pixel contents
    twins = np.array([77, 77], np.uint64)  # two rows of one image
    with_blank = np.concatenate([blank, twins, A])
    build(tmp_path, [with_blank])
    with Catalog.open(str(tmp_path)) as catalog:
        (notes,) = itertools.chain(
            *catalog._connection.execute(
                "SELECT notes FROM stages JOIN current_stages USING (fingerprint) WHERE stages.stage = 'dedup'"
            ).fetchall()
        )
    assert '"0000000000003039": 5' in notes
    assert "000000000000004d" not in notes
