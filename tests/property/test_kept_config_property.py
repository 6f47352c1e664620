"""A configuration that a work folder keeps reads back to the same value, with keys unset and keys set to null."""

from __future__ import annotations

import json
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from manifests.contract.settings import Settings, keys_of
from pipeline.config import BuildConfig, EvaluationSet, MixSettings
from pipeline.engine.kept_config import dump_config, read_dumped
from pipeline.judging.captions.rules import PRESETS, RULE_NAMES
from pipeline.judging.captions.settings import RuleSet
from pipeline.judging.quotas.balance import CapSettings
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.captions import JoinedCaptions
from pipeline.sources.tables.fields import FieldColumns, JoinedFields
from pipeline.stages.pack.record import release_recipe

TEXTS = [
    "plant",
    "general",
    "a/b.csv",
    "m:Class",
    "https://u:pw@h.example/t?token=x",
    "é \u2028 \"'\\",
    "10%",
    "US",
    "*",
]
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 20, 0.5, 0.1 + 0.2, 1e-300, 1e300]),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.sampled_from(TEXTS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3)),
    max_leaves=6,
)
TABLE = {"table": "t.csv", "columns": {"url": "u", "caption": "c"}}
BASES: dict[type[Settings], list[dict[str, Any]]] = {  # what a section that needs some of its keys begins with
    SourceSettings: [
        {"name": "s", "domain": "plant"} | origin
        for origin in (
            TABLE,
            {"folder": {"path": "p"}},
            {"webdataset": {"path": "p"}},
            {"parquet": {"path": "p", "columns": {"image": "img", "extra": ["x"]}}},
            {"dwca": {"path": "p"}},
            {"eol": {"path": "p"}},
            {"inaturalist": {"path": "p"}},
            {"gbif": {"country": ["DE"]}},
        )
    ],
    EvaluationSet: [{"name": "e", "folder": {"path": "p"}}, {"name": "e", "match_names": True} | TABLE],
    CapSettings: [{"by": "species", "about": 3}, {"by": "extra.x", "at_most": 1}],
    JoinedCaptions: [{"join": "t.csv", "on": "extra.id", "text": "words", "kind": "trait"}],
    JoinedFields: [{"table": "t.csv", "on": "extra.id", "columns": {"licence": "rights"}}],
    FieldColumns: [{"licence": "rights"}, {"extra": ["split"]}],
    MixSettings: [{"ratio": {"plant": 1}}, {"mixture": "m.json"}, {"by_size": {"plant": "all"}}],
    BuildConfig: [{"name": "n", "work_dir": "w", "sources": [{"name": "s", "domain": "plant"} | TABLE]}],
}
SECTIONS = {section: None for key in keys_of(BuildConfig) for section, _ in key.sections}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Values as YAML may give them; not all fit."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return values_of(inner[0])
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(each) for each in inner])
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and Ellipsis not in inner:
        return st.tuples(*[values_of(each) for each in inner]).map(list)
    if origin in (list, tuple):
        return st.lists(values_of(inner[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.sampled_from(TEXTS), values_of(inner[1]), max_size=2)
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return sections_of(annotation)
    kinds = {type(None): st.none(), bool: st.booleans(), int: NUMBERS, float: NUMBERS, str: st.sampled_from(TEXTS)}
    return kinds.get(annotation, JSON)


@st.composite
def sections_of(draw: st.DrawFn, model: type[Settings]) -> dict[str, Any]:
    """Keys of a section that fit together; each of the others is left out."""
    fields = model.model_fields
    needed = {name: values_of(field.annotation) for name, field in fields.items() if field.is_required()}
    values = draw(st.sampled_from(BASES[model])) if model in BASES else draw(st.fixed_dictionaries(needed))
    if model is BuildConfig:
        values = values | {"mix": draw(st.sampled_from(BASES[MixSettings]))}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=6, unique=True)) if fields else []:
        changed = values | {name: draw(values_of(fields[name].annotation))}
        if fits(model, changed):
            values = changed
    return values if fits(model, values) else reject()


def fits(model: type[Settings], values: dict[str, Any]) -> bool:
    try:
        model.model_validate(values)
    except ValidationError:
        return False
    return True


OPTIONS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.mark.parametrize("model", list(SECTIONS), ids=lambda model: model.__name__)
@settings(max_examples=20, **OPTIONS)
@given(data=st.data())
def test_every_section_reads_back_to_the_same_value(model: type[Settings], data: st.DataObject) -> None:
    section = model.model_validate(data.draw(sections_of(model)))
    again = model.model_validate_json(section.model_dump_json(exclude_unset=True))
    assert again == section
    assert again.model_dump(exclude_unset=True) == section.model_dump(exclude_unset=True)


@settings(max_examples=100, **OPTIONS)
@given(data=st.data())
def test_a_whole_config_reads_back_to_the_same_recipe(data: st.DataObject) -> None:
    config = BuildConfig.model_validate(data.draw(sections_of(BuildConfig)))
    again = read_dumped(dump_config(config))
    assert again == config
    assert again.caption.rules_identity() == config.caption.rules_identity()
    if not any(source.gbif for source in config.sources):  # its recipe reads what GBIF said
        assert release_recipe(again) == release_recipe(config)


RULES = {name: values_of(RuleSet.model_fields[name].annotation) for name in RULE_NAMES if name in RuleSet.model_fields}


@settings(max_examples=100, **OPTIONS)
@given(preset=st.sampled_from([*PRESETS, None]), data=st.data())
def test_rules_that_are_null_and_rules_that_are_not_set_read_back(preset: Any, data: st.DataObject) -> None:
    names = data.draw(st.sets(st.sampled_from(sorted(RULES))))
    rules = dict.fromkeys(names) | ({"preset": preset} if preset else {})
    config = BuildConfig.model_validate(
        BASES[BuildConfig][0] | {"mix": {"ratio": {"plant": 1}}, "caption": {"rules": [rules]}}
    )
    assert read_dumped(dump_config(config)).caption.rules_identity() == config.caption.rules_identity()


def test_keys_that_are_gone_stop_no_command_that_reads_a_kept_config() -> None:
    config = BuildConfig.model_validate(BASES[BuildConfig][0] | {"mix": {"ratio": {"plant": 1}}})
    kept = json.loads(dump_config(config)) | {
        "caption": {"text": {"choices": [{"otherwise": ["caption", "sentence"]}]}},
        "fetch": {"network": {"max_redirects": 9}},
    }
    assert release_recipe(read_dumped(json.dumps(kept))) == release_recipe(config)


@pytest.mark.parametrize("value", ["2024-01-01", "!!binary aGk=", "{1: a}", ".inf", "[.nan]", "!!set {a}"])
def test_free_values_that_json_does_not_hold_are_refused(value: str) -> None:
    plugin = {"scorer": "m:C", "name": "p", "options": {"x": yaml.safe_load(value)}}
    with pytest.raises(ValidationError, match="only text, finite numbers"):
        BuildConfig.model_validate(
            BASES[BuildConfig][0] | {"mix": {"ratio": {"plant": 1}}, "score": {"plugins": [plugin]}}
        )
