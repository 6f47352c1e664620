"""The select stage over rows that a test writes down."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hashed_pairs import RADIUS, look_of, pairs_of

from manifests.contract import tables
from manifests.contract.catalog import Catalog
from manifests.contract.copies import FLAT_BITS
from manifests.contract.records import Funnel
from manifests.contract.takedowns import Entry, Picture
from pipeline.config import PREFER, BuildConfig
from pipeline.engine.runner import Runner
from pipeline.judging.quotas.balance import BalanceSettings
from pipeline.judging.vocabulary.licences import LicenceSettings
from pipeline.stages.select import stage as select
from pipeline.stages.select.stage import Choice, SelectInputs
from pipeline.store.files import Files

CONFIG = {
    "name": "x",
    "work_dir": "work",
    "sources": [{"name": "gbif", "domain": "plant", "table": "t.csv", "columns": {"url": "url", "caption": "c"}}],
    "fetch": {"network": {"contact": "nobody@example.org"}},
    "mix": {"ratio": {"plant": 1}},
    "run": {"executor": "inline", "memory_gb": 1},
}


@dataclass(frozen=True)
class Selected:
    """What select makes."""

    funnel: Funnel
    notes: Any
    decisions: pa.Table
    extra_captions: list[dict[str, Any]]
    num_parts: dict[str, int]


def decide(folder: Path, inputs: SelectInputs) -> Selected:
    """Run the stage over given tables, in a work folder of its own."""
    config = BuildConfig.model_validate(CONFIG)
    stage = replace(select.STAGE, inputs=lambda _: inputs)
    work = tempfile.mkdtemp(dir=folder)
    with Catalog.open(work) as catalog:
        sealed = Runner(config, [stage], catalog).run().stages["select"]
        parts = catalog.parts_of(sealed.fingerprint)
    found: dict[str, list[pa.Table]] = {"decisions": [], "extra_captions": []}
    for part in parts:
        for file in part.files:
            found.setdefault(file.table, []).append(pq.read_table(Path(work, file.path)))
    num_parts = {step.name: sum(part.step == step.name for part in parts) for step in stage.steps}
    extra = pa.concat_tables([tables.EXTRA_CAPTIONS.empty_table(), *found["extra_captions"]]).to_pylist()
    return Selected(sealed.funnel, sealed.notes, pa.concat_tables(found["decisions"]), extra, num_parts)


ORDINARY = 0xAAAA_AAAA_AAAA_AAAA
FLAT = 1 << 63


def flat(name: str, phash: int = FLAT, **changes: Any) -> dict[str, Any]:
    """A picture without light and shade: its hash has the first bit alone, or a few more."""
    return sample(name, **changes) | {"phash": phash, "pixel_std": 9.0}


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """A fetched image that passes every rule and looks like no other.

    `phash` is taken as its distance to a hash of 32 set bits, as photos have.
    """
    row = {
        "sample_id": name,
        "source": "gbif",
        "domain": "plant",
        "outcome": "ok",
        "phash": int.from_bytes(name.encode().ljust(8, b"\0"), "big") * 0x9E3779B97F4A7C15 % 2**64,
        "image_id": f"bytes of {name}",
        "pixels_sha256": f"pixels of {name}",
        "width_px": 100,
        "height_px": 100,
        "middle_hash": 0,
        "num_words": 5,
        "licence_id": "CC-BY-4.0",
        "keep": True,
        "length": 1000,
        "pixel_std": 50.0,
        "colour_std": changes.get("pixel_std", 50.0),
        "has_camera": False,
        **changes,
    }
    if changes.get("phash") is not None:
        row["phash"] ^= ORDINARY
    return {"stored_width_px": row["width_px"], "stored_height_px": row["height_px"], **row}


def run_decide(
    folder: Path,
    samples: list[dict[str, Any]],
    prefer: tuple[str, ...] = PREFER,
    balance: BalanceSettings = BalanceSettings(),  # noqa: B008  # frozen
    takedowns: list[Entry] | None = None,
    leaks: list[dict[str, Any]] | None = None,
    extra_captions: int = 0,
    semantic: list[dict[str, Any]] | None = None,
    pictures: Sequence[Picture] = (),
    other_labels: str = "keep_one",
    licences: LicenceSettings = LicenceSettings(),  # noqa: B008  # frozen
) -> tuple[dict[str, dict[str, Any]], Selected]:
    folder.mkdir(parents=True, exist_ok=True)

    def written(name: str, schema: pa.Schema, rows: list[dict[str, Any]]) -> Files:
        picked = [{key: value for key, value in row.items() if key in schema.names} for row in rows]
        pq.write_table(pa.Table.from_pylist(picked, schema=schema), folder / f"{name}.parquet")
        return Files((str(folder / f"{name}.parquet"),))

    fetched = [row for row in samples if row["outcome"] == "ok"]
    hashes = [row["phash"] for row in fetched if row["phash"].bit_count() > FLAT_BITS and row["pixel_std"] >= 2]
    pq.write_table(pairs_of(np.array(hashes, np.uint64), look=look_of), folder / "pairs.parquet")
    inputs = SelectInputs(
        choice=Choice(
            prefer=prefer,
            extra_captions=extra_captions,
            priority={"gbif": 0, "cc": 1, "folders": 0},
            class_folders=("folders",),
            licences=licences,
            other_labels=other_labels,
            balance=balance,
            takedowns=tuple(takedowns or ()),
            pictures=tuple(pictures),
            limits={"image_too_small": "32"},
        ),
        candidates=written("candidates", tables.CANDIDATES, samples),
        facts=written("facts", tables.FACTS, samples),
        captions=written("captions", tables.CAPTIONS, samples),
        radius=RADIUS,
        caption_verdicts=written("caption_verdicts", tables.VERDICTS, fetched),
        score_verdicts=Files(),
        pairs=Files((str(folder / "pairs.parquet"),)),
        details=written("details", tables.DETAILS, [row for row in fetched if "detail_px" in row]),
        leaks=written("leaks", tables.LEAKS, leaks or []),
        semantic_pairs=written("semantic_pairs", tables.SEMANTIC_PAIRS, semantic) if semantic else Files(),
    )
    result = decide(folder, inputs)
    decisions = result.decisions.to_pylist()
    assert [row["sample_id"] for row in decisions] == sorted(row["sample_id"] for row in samples)
    return {row["sample_id"]: row for row in decisions}, result
