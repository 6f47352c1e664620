"""The score stage for real: an open_clip model with weights of our own, scores stored once, thresholds that move."""

from __future__ import annotations

from pathlib import Path

import pytest
from building import ROOT, Web, run_plantmix, write_build_config

from manifests.reader import open_reader

MODEL = ROOT / "configs/models/vit-tiny-demo.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip
    import torch

    torch.manual_seed(0)
    open_clip.add_model_config(MODEL)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.save(open_clip.create_model("vit-tiny-demo").state_dict(), path)
    return path


def _score_parts(work: Path) -> list[tuple[str, object]]:
    with open_reader(str(work)) as connection:
        return list(
            connection.sql(
                "SELECT part_key, committed_at FROM parts WHERE stage = 'score' AND step = 'measure' ORDER BY 1"
            ).fetchall()
        )


@pytest.mark.slow
def test_scores_are_stored_once_and_a_threshold_moves_over_them(web: Web, weights: Path, tmp_path: Path) -> None:
    score = {"model": str(MODEL), "pretrained": str(weights), "rules": [{"top_fraction": 0.75}]}
    done = run_plantmix("build", write_build_config(web, tmp_path, "build", score=score), "--to", "select")
    assert done.returncode == 0, done.stderr
    measured = _score_parts(tmp_path / "build")
    with open_reader(str(tmp_path / "build")) as connection:
        rows = connection.sql(
            "SELECT c.domain, v.keep, s.score FROM score_verdicts v JOIN scores s USING (sample_id) "
            "JOIN candidates c USING (sample_id)"
        ).fetchall()
    for domain in ("plant", "general"):
        kept = [score for name, keep, score in rows if name == domain and keep]
        dropped = [score for name, keep, score in rows if name == domain and not keep]
        assert len(kept) == -(-3 * (len(kept) + len(dropped)) // 4), "three quarters of each domain, rounded up"
        assert min(kept) >= max(dropped)
    assert all(-1 <= score <= 1 for _, _, score in rows)

    score["rules"] = [{"min_score": 2.0, "domains": ["general"]}]
    moved = run_plantmix("build", write_build_config(web, tmp_path, "build", score=score), "--to", "select")
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.partition(": ")[2].startswith("score, select")
    assert _score_parts(tmp_path / "build") == measured, "nothing is scored again"
    with open_reader(str(tmp_path / "build")) as connection:
        (num,) = connection.sql("SELECT count(*) FROM samples WHERE keep AND domain = 'general'").fetchall()
    assert num == (0,)


@pytest.mark.parametrize(
    ("score", "said"),
    [
        ({"model": "ViT-of-nowhere", "pretrained": "x"}, "open_clip knows no model 'ViT-of-nowhere'"),
        ({"model": "ViT-B-32", "pretrained": "no-such-tag"}, "neither a file nor a tag of ViT-B-32"),
        ({"model": "ViT-B-32"}, "score.pretrained is needed"),
        ({"rules": [{"min_score": 0.2}]}, "score.rules need score.model"),
    ],
)
def test_a_model_that_cannot_be_had_stops_before_any_work(
    web: Web, tmp_path: Path, score: dict[str, object], said: str
) -> None:
    done = run_plantmix("build", write_build_config(web, tmp_path, "build", score=score))
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "build").exists()
