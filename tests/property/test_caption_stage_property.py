"""The caption stage over Parquet: one verdict a fetched row, the same bytes however rows are ordered and cut."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import do_part

from manifests.contract import tables
from manifests.contract.records import Funnel
from pipeline.judging.captions.settings import MEASURED, CaptionSettings
from pipeline.stages import caption
from pipeline.stages.caption import STAGE
from pipeline.store.buckets import Bucket
from pipeline.store.files import Files, RowGroup

SETTINGS = CaptionSettings.model_validate(
    {
        "rules": [
            {"domains": ["plant"], "preset": "plant", "max_repeats": 3},
            {"preset": "general", "min_words": 2, "max_repeats": 2, "min_side_px": 100},
        ],
    }
)
CAPTIONS = st.sampled_from(["a red rose", "A red  rose!", "IMG_1", "Iris tectorum"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "caption": st.one_of(st.none(), st.text(max_size=30), CAPTIONS),
            "domain": st.sampled_from(["plant", "general"]),
            "outcome": st.sampled_from(["ok", "ok", "ok", "http_404"]),
            "host": st.sampled_from(["a.org", "b.org", None]),
            "width_px": st.sampled_from([50, 500, None]),
        }
    ),
    min_size=1,
    max_size=14,
)


def run_stage(
    folder: Path, rows: list[dict[str, Any]], cuts: list[int], num_buckets: int = 1
) -> tuple[str, Any, list[dict[str, Any]]]:
    """Measure each part, judge each bucket: hash of the first verdict file, funnel and verdicts of all."""
    folder.mkdir(parents=True)
    full = [{"source": "s", **row, "height_px": row["width_px"], "sample_id": row["sample_id"]} for row in rows]
    edges = [0, *sorted({cut % (len(full) + 1) for cut in cuts} - {0, len(full)}), len(full)]
    files: dict[str, list[str]] = {"candidates": [], "facts": [], "captions": []}
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        for name, schema in (("candidates", tables.CANDIDATES), ("facts", tables.FACTS)):
            picked = [{k: v for k, v in row.items() if k in schema.names} for row in full[start:stop]]
            pq.write_table(pa.Table.from_pylist(picked, schema=schema), folder / f"{name}-{number}.parquet")
            files[name].append(str(folder / f"{name}-{number}.parquet"))
        rows_of = RowGroup(files["candidates"][-1], 0, "")
        measured = do_part(
            STAGE, "measure", folder, stem=str(number), candidates=rows_of, measure=MEASURED, licences={}
        )
        files["captions"].append(measured.files[0].temp)
    tables_of = {name: Files(tuple(paths)) for name, paths in files.items()}
    of_all = {name: tables_of[name] for name in ("facts", "captions")}
    counted = do_part(STAGE, "repeats", folder, stem="all", **of_all, allowed=2)
    tables_of["repeats"] = Files((counted.files[0].temp,))
    results = [
        do_part(
            STAGE,
            "judge",
            folder,
            stem=f"x{number}",
            bucket=Bucket(number, num_buckets),
            **tables_of,
            rules=SETTINGS.rules,
        )
        for number in range(num_buckets)
    ]
    verdicts = [row for result in results for row in pq.read_table(result.files[0].temp).to_pylist()]
    return results[0].files[0].sha256, sum((result.funnel for result in results), Funnel(0, 0)), verdicts


@given(ROWS, st.lists(st.integers(0, 100), max_size=3), st.randoms(use_true_random=False))
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_parts_change_nothing_and_every_row_has_one_verdict(
    tmp_path_factory: Any, rows: list[dict[str, Any]], cuts: list[int], random: Any
) -> None:
    for number, row in enumerate(rows):
        row["sample_id"] = hashlib.md5(str(number).encode()).hexdigest()
    folder = tmp_path_factory.mktemp("stage")
    whole, funnel, verdicts = run_stage(folder / "whole", rows, [])
    fetched = sorted(row["sample_id"] for row in rows if row["outcome"] == "ok")
    assert [row["sample_id"] for row in verdicts] == fetched
    assert all((row["reason"] is None) == row["keep"] for row in verdicts)
    assert funnel.num_in == len(fetched) == funnel.num_kept + sum(funnel.reasons.values())
    turned = list(rows)
    random.shuffle(turned)
    assert run_stage(folder / "cut", turned, cuts)[:2] == (whole, funnel)
    assert run_stage(folder / "buckets", turned, cuts, num_buckets=3)[1:] == (funnel, verdicts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption, "ROWS_AT_ONCE", 2)
        assert run_stage(folder / "few at a time", rows, [])[:2] == (whole, funnel)
