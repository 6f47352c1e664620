"""A build's configuration: what does not fit together is refused, with what would."""

from __future__ import annotations

from typing import Any

import pytest

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError
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


def test_defaults_fit() -> None:
    found = config()
    assert found.domains == ["plant", "general"]
    assert found.run.executor == "ray"
    assert config(mix={"mixture": "mixture.json"}).mix.ratio is None
    assert config(select={"balance": {"caps": [{"by": "taxon", "about": 5}]}}).select.balance.caps[0].most == 5


def mix(**changes: Any) -> dict[str, Any]:
    return {"mix": {"ratio": {"plant": 1, "general": 1}, **changes}}


def scored(*rules: dict[str, float], **model: str) -> dict[str, Any]:
    return {"score": {**model, "rules": list(rules)}}


ONE_ORIGIN = "give exactly one of mix.ratio, mix.mixture and mix.by_size"
ONE_BOUND = "give exactly one of min_score, max_score and min_quantile"
MODEL = {"model": "ViT-B-32", "pretrained": "openai"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (mix(ratio={"plants": 1, "general": 1}), "mix.ratio: unknown domain plants; the sources have plant, general"),
    (mix(ratio={"plant": 1}), "mix.ratio: no share for the domain general; write 0 to leave it out"),
    (mix(max_epochs={"birds": 2}), "mix.max_epochs: unknown domain birds"),
    (mix(heldout={"num_samples": {"birds": 2}}), "mix.heldout.num_samples: unknown domain birds"),
    (mix(mixture="mixture.json"), ONE_ORIGIN),
    ({"mix": {}}, ONE_ORIGIN),
    *(
        (changes, "should be a finite number")
        for number in (float("nan"), float("inf"))
        for changes in (
            mix(ratio={"plant": 1, "general": number}),
            mix(max_epochs=number),
            {"run": {"retry_wait_seconds": number}},
        )
    ),
    (mix(ratio={"plant": 1, "general": -1}), "shares must be 0 or more, and not all 0"),
    (mix(ratio={"plant": 0, "general": 0}), "not all 0"),
    (mix(max_epochs=0.5), "must be 1 or more"),
    (mix(max_epochs={"plant": 0}), "must be 1 or more"),
    (  # it would be added to the pool and drawn twice
        mix(heldout={"num_samples": {"plant": -5}}),
        "'mix.heldout.num_samples.plant': Input should be greater than or equal to 0 (given: -5)",
    ),
    ({"sources": [source("gbif", "plant"), source("gbif", "general")]}, "sources: the name gbif is given twice"),
    (
        {"sources": [source("gbif", "plant", columns={"url": "u", "caption": "c", "license": "l"})]},
        "unknown key 'sources.0.columns.license'; did you mean 'licence'?",
    ),
    *(({"name": name}, "'name'") for name in ("", "With Space", "../up", "a.b", "UPPER")),
    (scored(model="ViT-B-32"), "score.pretrained is needed with score.model"),
    (scored({"min_score": 0.2}), "score.rules need score.model"),
    (scored({}, **MODEL), ONE_BOUND),
    (scored({"min_score": 0.2, "max_score": 0.5}, **MODEL), ONE_BOUND),
    (
        {"select": {"balance": {"caps": [{"by": "host", "at_most": 5, "domains": ["birds"]}]}}},
        "select.balance.caps.domains: unknown domain birds",
    ),
    (
        {"select": {"balance": {"caps": [{"by": "extra.category", "about": 5}]}}},
        "no source keeps the column 'category'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**changes)
    assert message in str(caught.value)


def test_execution_never_enters_a_recipe() -> None:
    from pipeline.stages.pack.record import release_recipe

    slow, fast = config(), config(work_dir="elsewhere", run={"executor": "inline", "num_workers": 7})
    assert release_recipe(slow) == release_recipe(fast)
    assert release_recipe(slow) != release_recipe(config(dedup={"radius": 3}))
    here, there = (
        config(sources=[source("gbif", "plant", table=f"{folder}/t.csv"), source("cc", "general")])
        for folder in ("/data", "s3://bucket/lists")
    )
    assert release_recipe(here) == release_recipe(there)
