"""The score stage for real: an open_clip model with weights of our own, scores stored once, thresholds that move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from building import Web, done, run_here, write_build_config
from tiny_clip import MODEL, save_weights

from manifests.contract.reader import open_reader


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("weights"))


def _score_parts(work: Path) -> list[tuple[str, object]]:
    with open_reader(str(work)) as connection:
        return list(
            connection.sql(
                "SELECT part_key, committed_at FROM parts WHERE stage = 'score' AND step = 'measure' ORDER BY 1"
            ).fetchall()
        )


def _rows(work: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_reader(str(work)) as connection:
        return list(connection.sql(sql).fetchall())


@pytest.mark.slow
def test_scores_are_stored_once_and_a_threshold_moves_over_them(web: Web, weights: Path, tmp_path: Path) -> None:
    plugins = [{"name": "bright", "scorer": "scorer_of_lengths:Brightness", "batch_size": 16}]
    score = {
        "model": str(MODEL),
        "pretrained": str(weights),
        "plugins": plugins,
        "rules": [{"min_quantile": 0.25}, {"scorer": "bright", "max_score": 0.9}],
    }
    work = tmp_path / "build"
    done("build", write_build_config(web, tmp_path, "build", score=score), "--to", "select")
    measured = _score_parts(work)
    rows = _rows(
        work,
        "SELECT c.domain, v.keep OR v.reason = 'bright_score', s.score FROM score_verdicts v JOIN scores s "
        "USING (sample_id) JOIN candidates c USING (sample_id) WHERE scorer = 'clip'",
    )
    for domain in ("plant", "general"):
        kept = [score for name, keep, score in rows if name == domain and keep]
        dropped = [score for name, keep, score in rows if name == domain and not keep]
        num = len(kept) + len(dropped)
        assert len(dropped) == -(-(num - 1) // 4), "those below the quantile, which lies between two scores"
        assert min(kept) >= max(dropped)
    ((num, low, high, middle),) = _rows(
        work, "SELECT count(*), min(score), max(score), median(score) FROM scores WHERE scorer = 'bright'"
    )
    ((without_text,),) = _rows(
        work, "SELECT count(*) FROM captions JOIN facts USING (sample_id) WHERE outcome = 'ok' AND text = ''"
    )
    assert num - len(_rows(work, "SELECT 1 FROM scores WHERE scorer = 'clip'")) == without_text > 0
    assert 0 <= low < high <= 1
    assert low < middle < high
    (one,) = _rows(work, "SELECT sample_id FROM scores WHERE scorer = 'clip' ORDER BY 1 LIMIT 1")
    told = run_here("explain", work, one[0]).stdout
    assert " by clip" in told
    assert " by bright" in told

    score["rules"] = [{"min_quantile": 0.5, "domains": ["plant"]}, {"min_score": 2.0, "domains": ["general"]}]
    moved = run_here("build", write_build_config(web, tmp_path, "build", score=score), "--to", "select")
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.partition(": ")[2].startswith("score, select")
    assert _score_parts(work) == measured, "nothing is scored again"
    assert _rows(work, "SELECT count(*) FROM samples WHERE keep AND domain = 'general'") == [(0,)]
    ((kept, all_in, threshold),) = _rows(
        work,
        "SELECT count(*) FILTER (v.keep), count(*), max(v.threshold) FROM score_verdicts v JOIN candidates c "
        "USING (sample_id) WHERE domain = 'plant'",
    )
    assert abs(kept - all_in / 2) <= 1
    assert threshold.endswith("the 0.5 quantile of plant")


@pytest.mark.slow
def test_an_edited_caption_is_scored_alone(web: Web, weights: Path, tmp_path: Path) -> None:
    table = tmp_path / "plants.csv"
    text = web.plants.read_text(encoding="utf-8")
    table.write_text(text, encoding="utf-8")
    edited = Web(table, web.general, web.root)
    config = write_build_config(edited, tmp_path, "build", score={"model": str(MODEL), "pretrained": str(weights)})
    assert run_here("build", config, "--to", "score").returncode == 0
    before = dict(_rows(tmp_path / "build", "SELECT sample_id, score FROM scores"))
    num_parts = len(_score_parts(tmp_path / "build"))
    table.write_text(text.replace("An apricot.", "A ripe apricot on a table.", 1), encoding="utf-8")
    assert run_here("build", config, "--to", "score").returncode == 0
    after = dict(_rows(tmp_path / "build", "SELECT sample_id, score FROM scores"))
    assert len(_score_parts(tmp_path / "build")) == num_parts + 1
    num_rows = _rows(
        tmp_path / "build",
        "SELECT f.num_rows FROM files f JOIN parts p USING (part_key) WHERE p.stage = 'score' AND p.step = 'measure' "
        "ORDER BY p.committed_at DESC LIMIT 1",
    )
    assert num_rows == [(1,)], "the one edited caption"
    assert set(before) == set(after)
    assert sum(before[key] != after[key] for key in before) <= 1


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ({"model": "ViT-of-nowhere", "pretrained": "x"}, "open_clip knows no model 'ViT-of-nowhere'"),
        ({"model": "ViT-B-32", "pretrained": "no-such-tag"}, "neither a file nor a tag of ViT-B-32"),
    ],
)
def test_a_model_that_cannot_be_had_stops_before_any_work(
    web: Web, tmp_path: Path, score: dict[str, object], said: str
) -> None:
    done = run_here("build", write_build_config(web, tmp_path, "build", score=score))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "build").exists()
