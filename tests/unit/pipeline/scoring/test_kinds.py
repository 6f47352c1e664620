"""Kinds of pictures by prompts and by folders of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import MODEL, save_weights

from manifests.errors import ConfigError
from pipeline.scoring.kinds import PROMPTS, KindScorer

ROOT = Path(__file__).resolve().parents[4]


def photo(name: str) -> Image.Image:
    return Image.open(ROOT / f"tests/photos/{name}.jpg").convert("RGB")


# ---- kinds by a CLIP (random weights: the arithmetic is tested, no quality)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_weights(tmp_path_factory.mktemp("weights")))


def scored(weights: str, images: list[Image.Image], **options: Any) -> list[float]:
    scorer = KindScorer(str(MODEL), weights, **options)
    scorer.check()
    scorer.load()
    return scorer.score(images, [""] * len(images))


def test_the_probabilities_of_all_kinds_add_up(weights: str) -> None:
    images = [photo("lime"), photo("ginger")]
    shares = np.array([scored(weights, images, of=[kind]) for kind in PROMPTS])
    assert shares.min() > 0
    assert shares.sum(axis=0) == pytest.approx([1, 1], abs=1e-5)
    assert scored(weights, images, of=["map", "drawing"]) == pytest.approx(
        shares[[list(PROMPTS).index(kind) for kind in ("map", "drawing")]].sum(axis=0), abs=1e-5
    )


def test_examples_in_folders_decide_and_their_names_do_not(weights: str, tmp_path: Path) -> None:
    kinds: dict[str, str] = {}
    for kind, names in {"round": ("lime", "peach"), "milk": ("garant-ecological-standard-milk",)}.items():
        (tmp_path / kind).mkdir()
        for name in names:
            photo(name).save(tmp_path / kind / f"{name}.png")
        kinds[kind] = str(tmp_path / kind)
    images = [photo("lime"), photo("garant-ecological-standard-milk")]
    round_ones = scored(weights, images, of=["round"], kinds=kinds)
    assert round_ones[0] > round_ones[1]
    (tmp_path / "round/lime.png").rename(tmp_path / "round/zest.png")
    moved = kinds | {"round": str((tmp_path / "round").rename(tmp_path / "elsewhere"))}
    assert scored(weights, images, of=["round"], kinds=moved) == round_ones
    (tmp_path / "milk/notes.txt").write_text("no picture")
    with pytest.raises(ConfigError, match=r"notes\.txt cannot be read"):
        scored(weights, images, of=["round"], kinds=moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": ["maps"]}, r"\['maps'\]: name one or more of: drawer, drawing"),
        ({"of": []}, r"\[\]: name one or more of"),
        ({"of": "a", "kinds": {"a": ["x"]}}, "give at least two"),
        ({"of": "a", "kinds": {"a": ["x"], "b": "folder"}}, "all by prompts or all by folders"),
        ({"of": "a", "kinds": {"a": "no-folder", "b": "no-folder"}}, "there is no picture in no-folder"),
    ],
)
def test_kinds_that_cannot_be_told_apart_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        KindScorer("ViT-B-32", "x", **options).check()
