"""A build's configuration: what does not fit together is refused, with what would."""

from __future__ import annotations

from typing import Any

import pytest

from manifests.errors import ConfigError
from manifests.settings import parse_settings
from pipeline.config import BuildConfig


def source(name: str, domain: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "domain": domain, "table": "t.csv", "columns": {"url": "u", "caption": "c"}, **changes}


def config(**changes: Any) -> BuildConfig:
    values = {
        "name": "demo",
        "work_dir": "data/demo",
        "sources": [source("gbif", "plant"), source("cc", "general")],
        "mix": {"ratio": {"plant": 10, "general": 3}},
        **changes,
    }
    return parse_settings(values, BuildConfig, where="demo.yaml")


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    return str(caught.value)


def test_defaults_fit() -> None:
    found = config()
    assert found.domains == ["plant", "general"]
    assert found.run.executor == "ray"


def test_domains_must_be_those_of_the_sources() -> None:
    assert "mix.ratio: unknown domain plants; the sources have plant, general" in refusal(
        mix={"ratio": {"plants": 1, "general": 1}}
    )
    assert "mix.ratio: no share for the domain general; write 0 to leave it out" in refusal(mix={"ratio": {"plant": 1}})
    assert "mix.max_epochs: unknown domain birds" in refusal(
        mix={"ratio": {"plant": 1, "general": 1}, "max_epochs": {"birds": 2}}
    )
    assert "mix.heldout.num_samples: unknown domain birds" in refusal(
        mix={"ratio": {"plant": 1, "general": 1}, "heldout": {"num_samples": {"birds": 2}}}
    )


def test_a_mixture_has_one_origin() -> None:
    message = "give exactly one of mix.ratio, mix.mixture and mix.by_size"
    assert message in refusal(mix={"ratio": {"plant": 1, "general": 1}, "mixture": "mixture.json"})
    assert message in refusal(mix={})
    assert config(mix={"mixture": "mixture.json"}).mix.ratio is None


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_numbers_are_finite(share: float) -> None:
    assert "should be a finite number" in refusal(mix={"ratio": {"plant": 1, "general": share}})
    assert "should be a finite number" in refusal(mix={"ratio": {"plant": 1, "general": 1}, "max_epochs": share})
    assert "should be a finite number" in refusal(run={"retry_wait_seconds": share})


def test_shares_are_weights() -> None:
    assert "shares must be 0 or more, and not all 0" in refusal(mix={"ratio": {"plant": 1, "general": -1}})
    assert "not all 0" in refusal(mix={"ratio": {"plant": 0, "general": 0}})


@pytest.mark.parametrize("epochs", [0.5, {"plant": 0}])
def test_epochs_are_one_or_more(epochs: Any) -> None:
    assert "must be 1 or more" in refusal(mix={"ratio": {"plant": 1, "general": 1}, "max_epochs": epochs})


def test_a_hold_out_is_a_count() -> None:
    """A negative one would be added to the pool and drawn twice."""
    text = refusal(mix={"ratio": {"plant": 1, "general": 1}, "heldout": {"num_samples": {"plant": -5}}})
    assert "'mix.heldout.num_samples.plant': Input should be greater than or equal to 0 (given: -5)" in text


def test_source_names_are_identities() -> None:
    text = refusal(sources=[source("gbif", "plant"), source("gbif", "general")])
    assert "sources: the name gbif is given twice" in text


def test_unknown_keys_deep_in_a_source() -> None:
    text = refusal(sources=[source("gbif", "plant", columns={"url": "u", "caption": "c", "license": "l"})])
    assert "unknown key 'sources.0.columns.license'; did you mean 'licence'?" in text


@pytest.mark.parametrize("name", ["", "With Space", "../up", "a.b", "UPPER"])
def test_names_fit_into_file_names(name: str) -> None:
    assert "'name'" in refusal(name=name)


def test_scores_need_weights_and_rules_a_model() -> None:
    assert "score.pretrained is needed with score.model" in refusal(score={"model": "ViT-B-32"})
    assert "score.rules need score.model" in refusal(score={"rules": [{"min_score": 0.2}]})
    for rule in ({}, {"min_score": 0.2, "max_score": 0.5}):
        score = {"model": "ViT-B-32", "pretrained": "openai", "rules": [rule]}
        assert "give exactly one of min_score, max_score and min_quantile" in refusal(score=score)


def test_caps_name_domains_and_columns_that_there_are() -> None:
    caps = {"balance": {"caps": [{"by": "host", "at_most": 5, "domains": ["birds"]}]}}
    assert "select.balance.caps.domains: unknown domain birds" in refusal(select=caps)
    caps = {"balance": {"caps": [{"by": "extra.category", "about": 5}]}}
    assert "no source keeps the column 'category'" in refusal(select=caps)
    assert config(select={"balance": {"caps": [{"by": "taxon", "about": 5}]}}).select.balance.caps[0].most == 5


def test_execution_never_enters_a_recipe() -> None:
    from pipeline.stages.pack_record import release_recipe

    slow, fast = config(), config(work_dir="elsewhere", run={"executor": "inline", "num_workers": 7})
    assert release_recipe(slow) == release_recipe(fast)
    assert release_recipe(slow) != release_recipe(config(dedup={"radius": 3}))
    here, there = (
        config(sources=[source("gbif", "plant", table=f"{folder}/t.csv"), source("cc", "general")])
        for folder in ("/data", "s3://bucket/lists")
    )
    assert release_recipe(here) == release_recipe(there)
