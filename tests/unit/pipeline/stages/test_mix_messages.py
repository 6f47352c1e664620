"""Where a ratio comes from, and what is said when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError
from pipeline.config import MixSettings
from pipeline.judging.quotas.allocation import Quota
from pipeline.stages.mix import Stratum, Target, plan_mixture, read_target

DOMAINS = ["plant", "general"]


def mixture(path: Path, content: Any) -> MixSettings:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return MixSettings(mixture=str(path))


def test_the_ratio_of_the_config_or_of_the_file(tmp_path: Path) -> None:
    assert read_target(MixSettings(ratio={"plant": 3, "general": 1}), DOMAINS).ratio == {"plant": 3, "general": 1}
    given = mixture(tmp_path / "m.json", {"ratio": {"general": 0.25, "plant": 0.75}, "law": {"any": "thing"}})
    assert read_target(given, DOMAINS).ratio == {"general": 0.25, "plant": 0.75}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"ratio": 3}', '{"ratio": {"plant": "much"}}', '{"ratio": {"plant": null}}']
)
def test_a_file_that_is_no_mixture(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"m\.json is not a mixture file; it needs a 'ratio'.*`plantmix plan choose`"):
        read_target(mixture(tmp_path / "m.json", content), DOMAINS)


@pytest.mark.parametrize(
    "ratio",
    [
        {},
        {"plant": 1},
        {"plant": 1, "general": 1, "birds": 1},
        {"plant": 1, "birds": -1},
    ],
)
def test_a_mixture_of_other_domains(tmp_path: Path, ratio: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"gives shares for .*; the sources have plant, general"):
        read_target(mixture(tmp_path / "m.json", {"ratio": ratio}), DOMAINS)


@pytest.mark.parametrize(
    ("ratio", "which"),
    [
        ({"plant": 0, "general": 0}, "their sum must be above 0"),
        ({"plant": 2, "general": -1}, "general has -1"),
        ({"plant": float("inf"), "general": 1}, "plant has inf"),
        ({"plant": float("nan"), "general": -0.5}, "plant has nan, general has -0.5"),
    ],
)
def test_shares_that_are_none_are_named(tmp_path: Path, ratio: dict[str, float], which: str) -> None:
    with pytest.raises(ConfigError, match=rf"m\.json gives shares that cannot be used: {which}; a share is 0 or more"):
        read_target(mixture(tmp_path / "m.json", {"ratio": ratio}), DOMAINS)


def test_a_mixture_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.json cannot be read: No such file"):
        read_target(MixSettings(mixture=str(tmp_path / "absent.json")), DOMAINS)


def settings(**changes: Any) -> MixSettings:
    return MixSettings.model_validate({"ratio": {"plant": 3, "general": 1}, **changes})


def plan_quotas(given: MixSettings, ratio: dict[str, float], kept: dict[str, int]) -> list[Quota]:
    return plan_mixture(given, Target(ratio), {domain: {domain: num} for domain, num in kept.items()})[0]


@pytest.mark.parametrize(
    ("heldout", "available"),
    [
        ({"num_samples": {"plant": 100}}, [300, 1000]),
        *((share, [360, 900]) for share in ("10%", "10 %", {"share": 0.1})),
        ({"share": 0.5, "num_samples": {"plant": 40}}, [360, 500]),
    ],
)
def test_held_out_samples_leave_the_pool_first(heldout: Any, available: list[int]) -> None:
    quotas = plan_quotas(settings(heldout=heldout), {"plant": 3, "general": 1}, {"plant": 400, "general": 1000})
    assert [quota.num_available for quota in quotas] == available
    assert [quota.num_samples for quota in quotas] == [available[0], available[0] // 3]


@pytest.mark.parametrize(
    ("num", "message"),
    [
        (1001, r"1,001 samples of 'general' are to be set aside, only 1,000 were kept; set aside fewer"),
        (1000, r"no sample of the domain general is left, but the ratio asks for some"),
    ],
)
def test_too_many_held_out(num: int, message: str) -> None:
    given = settings(heldout={"num_samples": {"general": num}})
    with pytest.raises(ConfigError, match=message):
        plan_quotas(given, {"plant": 3, "general": 1}, {"plant": 400, "general": 1000})


def test_an_unset_share_leaves_the_recipe_as_it_was() -> None:
    assert settings().model_dump(mode="json")["heldout"] == {"num_samples": {}}


def test_epochs_by_domain_default_to_one() -> None:
    given = settings(max_epochs={"plant": 2})
    quotas = plan_quotas(given, {"plant": 3, "general": 1}, {"plant": 300, "general": 1000})
    assert [quota.num_samples for quota in quotas] == [600, 200]


def test_sources_with_weights_are_strata_of_their_own() -> None:
    given = settings(
        sources={"plant": {"gbif": 3, "herbaria": 1}}, heldout={"num_samples": {"plant": 10, "general": 5}}
    )
    kept = {"plant": {"gbif": 310, "herbaria": 200}, "general": {"web": 60, "books": 65}}
    quotas, strata = plan_mixture(given, Target({"plant": 3, "general": 1}), kept)
    assert [(quota.num_available, quota.num_samples) for quota in quotas] == [(500, 362), (120, 120)]
    assert strata == [
        Stratum("plant", "gbif", 272, 6),
        Stratum("plant", "herbaria", 90, 4),
        Stratum("general", None, 120, 5),
    ]


def test_a_stratified_release_takes_pools_whole() -> None:
    kept = {"plant": {"gbif": 310}, "general": {"web": 60}}
    quotas, _ = plan_mixture(settings(), Target({"plant": 3, "general": 1}), kept, "stratified")
    assert [(quota.share, quota.num_samples) for quota in quotas] == [(0.75, 310), (0.25, 60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by_size": {"plant": "all", "general": 1.0}}, "a share lies between 0 and 1"),
        ({"by_size": {"plant": 0.5, "general": 0.5}}, "shares must sum to less than 1"),
        ({"by_size": {"plant": 0.5, "general": 0}}, "give one domain at least `all` or a number of samples"),
        ({"by_size": {"plant": -5, "general": 10}}, "a number of samples is 0 or more"),
        ({"by_size": {"plant": "all", "general": "most"}}, "by_size"),
        ({"by_size": {"plant": "all"}, "num_samples": 5}, "leave mix.num_samples out"),
        ({"by_size": {"plant": "all"}, "ratio": {"plant": 1}}, "give exactly one of"),
        ({"by_size": {"plant": "all"}, "sources": {"plant": {"gbif": 1}}}, "have no effect: mix.by_size takes all"),
        ({"ratio": {"plant": 1}, "sources": {"plant": {"gbif": 0}}}, "shares must be 0 or more"),
    ],
)
def test_mixtures_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixSettings.model_validate(change)


def test_by_size_needs_no_ratio() -> None:
    given = MixSettings.model_validate({"by_size": {"plant": "all", "general": 0.25}})
    assert read_target(given, DOMAINS).ratio is None
    quotas, _ = plan_mixture(given, Target(None), {"plant": {"a": 90}, "general": {"b": 99}})
    assert [quota.num_samples for quota in quotas] == [90, 30]
