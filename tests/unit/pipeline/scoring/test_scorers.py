"""Scorers found, checked before work, loaded once; scores that do not depend on their batch."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from tiny_clip import MODEL, save_weights

from manifests.errors import ConfigError, PartError
from pipeline.scoring.clip import ClipScorer
from pipeline.scoring.scorers import Box, check_scorers, find_boxes, loaded_scorer, score_batch
from pipeline.scoring.settings import PluginSettings, ScoreSettings


@pytest.fixture(autouse=True)
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delitem(sys.modules, "own_scorer", raising=False)


def settings_with(**plugin: Any) -> ScoreSettings:
    return ScoreSettings(plugins=[PluginSettings(name="mine", **plugin)])


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (
            {"scorer": "no_such_module:Thing"},
            "score.plugins.mine: the module no_such_module cannot be imported: .*; install it, or put .* PYTHONPATH",
        ),
        ({"scorer": "own_scorer:Thing"}, "own_scorer:Thing cannot be loaded: .* has no attribute 'Thing'"),
        ({"scorer": "own_scorer:Brightness"}, "does not take these options: .*log"),
        ({"scorer": "own_scorer:NoScorer"}, "is no scorer: it has no load, score"),
        ({"scorer": "pathlib:Path"}, "is no scorer"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_one_clear_error(plugin: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_scorers(settings_with(**plugin))


def test_only_a_detector_has_something_to_blur(tmp_path: Path) -> None:
    rules = [{"scorer": "mine", "max_score": 0.5, "action": "blur"}]
    plugin = {"name": "mine", "scorer": "own_scorer:Brightness", "options": {"log": str(tmp_path / "log")}}
    with pytest.raises(ConfigError, match="mine gives no boxes, so there is nothing to blur"):
        check_scorers(ScoreSettings.model_validate({"plugins": [plugin], "rules": rules}))
    plugin = {"name": "mine", "scorer": "own_scorer:Middle"}
    check_scorers(ScoreSettings.model_validate({"plugins": [plugin], "rules": rules}))


@pytest.mark.parametrize(("model", "tag"), [("ViT-B-32", "openai"), ("ViT-L-14", "dfn2b")])
def test_weights_of_another_activation_are_refused_with_the_right_model(model: str, tag: str) -> None:
    with pytest.raises(ConfigError, match=f"QuickGELU, {model} computes GELU: take the model {model}-quickgelu$"):
        check_scorers(ScoreSettings(model=model, pretrained=tag))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"plugins": [{"name": "clip", "scorer": "a:B"}]}, "the name clip is taken twice"),
        ({"plugins": [{"name": "a", "scorer": "a:B"}] * 2}, "the name a is taken twice"),
        ({"plugins": [{"name": "a", "scorer": "a.B"}]}, "pattern"),
        ({"plugins": [{"name": "a", "scorer": "a:B"}], "rules": [{"scorer": "b", "max_score": 1}]}, "no scorer 'b'"),
        ({"model": "m", "pretrained": "p", "rules": [{"min_score": 1, "max_score": 1}]}, "exactly one of min_score"),
        ({"model": "m", "pretrained": "p", "rules": [{"min_quantile": 1.0}]}, "less than 1"),
        ({"model": "m", "pretrained": "p", "rules": [{"min_score": 0, "action": "blur"}]}, "blur needs max_score"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ScoreSettings.model_validate(values)


def test_a_scorer_is_loaded_once_a_process_whatever_the_rules(tmp_path: Path) -> None:
    log = tmp_path / "loads"
    for threshold in (0.1, 0.2):
        settings = ScoreSettings.model_validate(
            {
                "plugins": [{"name": "mine", "scorer": "own_scorer:Brightness", "options": {"log": str(log)}}],
                "rules": [{"scorer": "mine", "max_score": threshold}],
            }
        )
        assert loaded_scorer(settings, "mine").name == "brightness"
    assert len(log.read_text().splitlines()) == 1


def test_a_clip_score_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    import torch

    weights = str(save_weights(tmp_path))
    num_threads = torch.get_num_threads()
    try:
        scorer = ClipScorer(str(MODEL), weights)
        scorer.check()
        scorer.load()
        images = [Image.effect_noise((80, 70), 10.0 * n + 5).convert("RGB") for n in range(7)]
        texts = [f"noise number {n}" for n in range(7)]
        together = score_batch(scorer, images, texts, 8, decimals=9)
        alone = [
            score_batch(scorer, [image], [text], 8, decimals=9)[0] for image, text in zip(images, texts, strict=True)
        ]
        rounded = score_batch(scorer, images, texts, 8)
    finally:
        torch.set_num_threads(num_threads)
    assert together == pytest.approx(alone, abs=1e-6), "far below the fourth decimal, to which scores are rounded"
    assert rounded == pytest.approx([round(score, 4) for score in together], abs=1e-9)
    assert len(set(rounded)) > 3
    half = ClipScorer(str(MODEL), str(tmp_path / "tiny.pt"), precision="bf16")
    half.load()
    torch.set_num_threads(num_threads)
    assert score_batch(half, images, texts, 8) == pytest.approx(together, abs=0.05)


def test_weights_of_another_model_are_one_clear_error(tmp_path: Path) -> None:
    import torch

    torch.save({"text.weight": torch.zeros(2)}, tmp_path / "other.pt")
    num_threads = torch.get_num_threads()
    try:
        with pytest.raises(ConfigError, match=r"score: .* cannot load .*other\.pt"):
            ClipScorer(str(MODEL), str(tmp_path / "other.pt")).load()
    finally:
        torch.set_num_threads(num_threads)


def test_code_in_a_file_of_weights_is_not_run_and_nobody_advises_it(tmp_path: Path) -> None:
    import torch

    class Malicious:
        def __reduce__(self) -> tuple[Any, Any]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"text.weight": Malicious()}, tmp_path / "bad.pt")
    num_threads = torch.get_num_threads()
    try:
        with pytest.raises(ConfigError, match=r"cannot load .*bad\.pt: it holds more than tensors") as raised:
            ClipScorer(str(MODEL), str(tmp_path / "bad.pt")).load()
    finally:
        torch.set_num_threads(num_threads)
    assert "weights_only" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_a_scorer_that_loses_images_is_named(tmp_path: Path) -> None:
    class Lazy:
        name = "lazy"

        def __init__(self, answer: Any) -> None:
            self._answer = answer

        def load(self) -> None: ...

        def score(self, images: Any, texts: Any) -> Any:
            return self._answer

    with pytest.raises(ConfigError, match="lazy gave 1 scores for 4 images"):
        score_batch(Lazy([0.5]), [None], ["a"], 4)
    for answer in ([None], ["high"], None, 0.5):
        with pytest.raises(PartError, match="the scorer lazy gave something that is no number"):
            score_batch(Lazy(answer), [None], ["a"], 1)


NO_PLACES = {
    "nan": Box(float("nan"), 0.1, 0.9, 0.9, 0.9),
    "pixels": Box(10, 20, 90, 100, 0.9),
    "reversed": Box(0.9, 0.1, 0.2, 0.9, 0.9),
    "below a pixel": Box(0.5, 0.5, 0.505, 0.9, 0.9),
    "beyond the edge": Box(-0.1, 0.5, 0.5, 0.9, 0.9),
    "no confidence": Box(0.1, 0.1, 0.9, 0.9, float("nan")),
}


@pytest.mark.parametrize("box", NO_PLACES.values(), ids=NO_PLACES)
def test_a_box_that_is_none_is_named_with_its_scorer(box: Box) -> None:
    from own_scorer import Faulty

    image = Image.new("RGB", (100, 80))
    whole = Box(0.0, 0.0, 1.0, 1.0, 0.9)
    assert find_boxes(Faulty(whole), [image]) == ([0.9], [[whole]])
    with pytest.raises(PartError, match=r"the scorer faulty gave Box\(left=.* for a picture of 100 x 80 pixels"):
        find_boxes(Faulty(box), [image])


@pytest.mark.parametrize("answer", [None, [], [None], [[None]], [[(0, 0, 1, 1)]], [[(0, 0, 1, 1, "high")]]], ids=repr)
def test_what_is_no_list_of_boxes_is_named_with_its_scorer(answer: Any) -> None:
    class Other:
        name = "other"

        def boxes(self, images: Any) -> Any:
            return answer

    with pytest.raises(PartError, match="the scorer other gave no list of boxes, of five numbers each, for each of 1"):
        find_boxes(Other(), [Image.new("RGB", (100, 80))])
