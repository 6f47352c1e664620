"""The law of inputs: every field of a stage's or step's inputs counts, and where files lie does not.

The inputs of every stage and step of FLOW are made from their types alone, so that a new field is held without a word
here; a new kind of setting needs two examples in EXAMPLES.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests.contract.catalog import Catalog
from manifests.contract.records import PartRecord, fingerprint
from manifests.contract.takedowns import Entry
from pipeline.config import EvaluationSet, RunSettings
from pipeline.engine.inputs import Inputs, identity_of, value_of
from pipeline.engine.work import Part, Stage, StageRun, Step
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.flow import FLOW
from pipeline.judging.captions.settings import RuleSet, TextSettings
from pipeline.judging.quotas.balance import BalanceSettings
from pipeline.judging.vocabulary.backbone import BackboneSettings
from pipeline.judging.vocabulary.licences import LicenceSettings
from pipeline.scoring.settings import ScoreRule
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.captions import JoinedCaptions
from pipeline.store.buckets import Bucket
from pipeline.store.files import Files, Named, RowGroup


def _source(name: str) -> SourceSettings:
    columns = {"url": "url", "caption": "caption"}
    return SourceSettings.model_validate({"name": name, "domain": "plant", "table": "t.csv", "columns": columns})


def _captions(kind: str) -> JoinedCaptions:
    return JoinedCaptions(join="t.csv", on="url", text="caption", kind=kind)


def _set(name: str) -> EvaluationSet:
    return EvaluationSet.model_validate({"name": name, "folder": {"path": "held"}})


EXAMPLES: dict[type, tuple[Any, Any]] = {
    str: ("a", "b"),
    int: (1, 2),
    float: (0.5, 0.25),
    bool: (True, False),
    Files: (Files(("/one/x",), ("1",), ("1",)), Files(("/one/x",), ("2",), ("2",))),
    RowGroup: (RowGroup("/one/x", 0, "1"), RowGroup("/one/x", 0, "2")),
    Named: (Named("/one/x", "1"), Named("/one/x", "2")),
    ImageSettings: (ImageSettings(), ImageSettings(size_px=300)),
    SourceSettings: (_source("a"), _source("b")),
    EvaluationSet: (_set("a"), _set("b")),
    RuleSet: (RuleSet(preset="general"), RuleSet(preset="general", min_words=9)),
    TextSettings: (TextSettings(), TextSettings(seed=1)),
    BackboneSettings: (BackboneSettings(path="b.zip"), BackboneSettings(path="b.zip", languages=("fr",))),
    LicenceSettings: (LicenceSettings(), LicenceSettings(allow=("CC0-1.0",))),
    BalanceSettings: (BalanceSettings(), BalanceSettings(seed=1)),
    ScoreRule: (ScoreRule(min_score=0.2), ScoreRule(min_score=0.3)),
    JoinedCaptions: (_captions("a"), _captions("b")),
    Entry: (Entry("url", "a"), Entry("url", "b")),
}
MOVED: dict[type, Any] = {
    Files: Files(("/two/y",), ("1",), ("1",)),
    RowGroup: RowGroup("/two/y", 7, "1"),
    Named: Named("/two/y", "1"),
}


def two_of(kind: Any) -> tuple[Any, Any]:
    """Two values of a type that mean something else."""
    if kind is Any:
        return "a", "b"
    if kind in EXAMPLES:
        return EXAMPLES[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        kinds = [each for each in arguments if each is not Ellipsis]
        pairs = [two_of(each) for each in kinds]
        return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
    if origin is dict:
        first, second = two_of(arguments[1])
        return {"key": first}, {"key": second}
    if origin in (typing.Union, types.UnionType):
        return two_of(next(each for each in arguments if each is not type(None)))
    if origin is typing.Literal:
        return arguments[0], arguments[1]
    if dataclasses.is_dataclass(kind):
        fields = fields_of(kind)
        first = {name: two_of(each)[0] for name, each in fields.items()}
        return kind(**first), kind(**{name: two_of(each)[1] for name, each in fields.items()})
    raise AssertionError(f"give two examples of {kind} in EXAMPLES")


def fields_of(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def reads_of(stage: Stage[Any], step: Step[Any, Any]) -> Any:
    """The type of what the parts of a step read: one that its plan makes, or else one with a field for each name."""
    hints = typing.get_type_hints(step.work)
    tables = (*step.cut, *step.reads)
    if not tables and not step.values:
        return hints[next(iter(inspect.signature(step.work).parameters))]
    fields = [*((name, Files) for name in tables), *((name, hints[name]) for name in step.values)]
    bucket = [("bucket", Bucket)] if step.cut else []

    def identity(value: Any) -> Any:
        read, given = ({name: getattr(value, name) for name in names} for names in (tables, step.values))
        return Inputs(read, given, getattr(value, "bucket", None), step.cut).identity()

    return dataclasses.make_dataclass(step.name, fields + bucket, namespace={"identity": identity}, frozen=True)


def kinds_of(stage: Stage[Any]) -> dict[str, Any]:
    """The types of the inputs of a stage and of its steps, by name."""
    kinds = {stage.name: typing.get_type_hints(stage.inputs)["return"]}
    for step in stage.steps:
        kinds[f"{stage.name} {step.name}"] = reads_of(stage, step)
    return kinds


KINDS = {name: kind for stage in FLOW for name, kind in kinds_of(stage).items()}


def moved(value: Any) -> Any:
    """The same value with every file in another place."""
    if type(value) in MOVED:
        return MOVED[type(value)]
    if isinstance(value, tuple):
        return tuple(moved(each) for each in value)
    if isinstance(value, dict):
        return {key: moved(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not isinstance(value, Entry):
        return type(value)(**{field.name: moved(getattr(value, field.name)) for field in dataclasses.fields(value)})
    return value


def changes(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """Every value that differs in one field, dataclasses within looked into; with the name of the field."""
    for name, inner in fields_of(kind).items():
        first, second = two_of(inner)
        yield name, dataclasses.replace(value, **{name: second})
        if type(first) in EXAMPLES or not dataclasses.is_dataclass(first):
            continue
        for deeper, changed in changes(type(first), first):
            yield f"{name}.{deeper}", dataclasses.replace(value, **{name: changed})


# the scorer and an evaluation set are what they are by kind: fields of the other kind do not count
NOT_OF_THIS_KIND = {"scorer_class", "code", "options"}


@pytest.mark.parametrize("name", KINDS)
def test_every_field_of_the_inputs_counts(name: str) -> None:
    value = two_of(KINDS[name])[0]
    own = fingerprint({"inputs": identity_of(value)})
    silent = [
        field
        for field, changed in changes(KINDS[name], value)
        if fingerprint({"inputs": identity_of(changed)}) == own and field.rpartition(".")[2] not in NOT_OF_THIS_KIND
    ]
    assert silent == [], f"{name}: the fingerprint does not see {', '.join(silent)}"


@pytest.mark.parametrize("name", KINDS)
def test_moving_files_changes_nothing(name: str) -> None:
    value = two_of(KINDS[name])[0]
    assert identity_of(moved(value)) == identity_of(value)


def test_the_fields_of_a_plug_in_count() -> None:
    (kind,) = [kind for name, kind in fields_of(KINDS["score measure"]).items() if name == "scorer"]
    plugin = dataclasses.replace(two_of(kind)[0], model=None, weights=None)
    for name in ("name", "batch_size", *NOT_OF_THIS_KIND):
        other = dataclasses.replace(plugin, **{name: two_of(fields_of(kind)[name])[1]})
        assert identity_of(other) != identity_of(plugin), name


@pytest.mark.parametrize("place", range(len(FLOW)), ids=[stage.name for stage in FLOW])
def test_what_a_step_reads_is_given_before_with_the_same_columns(place: int) -> None:
    """A table is one of the stage's inputs or of an earlier step; a value of the stage's inputs keeps its type."""
    stage = FLOW[place]
    of_stage, given = fields_of(KINDS[stage.name]), dict[str, Any]()
    for earlier in FLOW[: place + 1]:
        for step in earlier.steps:
            if earlier is stage:
                for name in (*step.cut, *step.reads):
                    assert of_stage.get(name) is Files or name in given, f"{stage.name} {step.name}: {name}"
                    if name in given:  # else texts of sources, whose tables pack joins
                        assert stage.columns_of(name) == given[name], f"{stage.name} {step.name}: {name}"
                hints = typing.get_type_hints(step.work)
                within = [of_stage, *(fields_of(kind) for kind in of_stage.values() if dataclasses.is_dataclass(kind))]
                for name in step.values:
                    kinds = [kind for fields in within for field, kind in fields.items() if field == name]
                    if kinds and kinds[0] not in (Files, tuple[Files, ...]):  # of tables a plan may pick some rows
                        assert hints[name] in (kinds[0], *typing.get_args(kinds[0])), f"{step.name}: {name}"
            given |= {name: earlier.columns_of(name) for name in step.gives}


def test_a_value_that_nothing_holds_is_refused() -> None:
    with pytest.raises(LookupError, match="RuleSet holds no such"):
        value_of(dataclasses.make_dataclass("RuleSet", [])(), "such")


def test_every_stage_is_held() -> None:
    assert len(FLOW) == 8
    assert set(KINDS) == {stage.name for stage in FLOW} | {f"{s.name} {step.name}" for s in FLOW for step in s.steps}


def test_a_step_and_its_version_are_part_of_a_key() -> None:
    stage = next(stage for stage in FLOW if stage.name == "caption")
    part = Part({"rows": 1})
    keys = [stage.key_of(step, part) for step in stage.steps]
    keys += [stage.key_of(dataclasses.replace(step, version=step.version + 1), part) for step in stage.steps]
    assert all(one != other for one, other in itertools.combinations(keys, 2))
    raised = dataclasses.replace(stage, steps=(*stage.steps[:2], dataclasses.replace(stage.steps[2], version=99)))
    inputs = two_of(KINDS["caption"])[0]
    assert raised.fingerprint(inputs) != stage.fingerprint(inputs)


def test_parts_of_another_version_of_a_step_are_not_taken_over(tmp_path: Path) -> None:
    stage = next(stage for stage in FLOW if stage.name == "caption")
    step, value = stage.steps[0], RuleSet()
    with Catalog.open(str(tmp_path)) as catalog:
        record = PartRecord("p0", stage.name, step.name, step.reuse_key(value), (), None, {}, 0.0, 1)
        catalog.commit_parts("version", {0: record})

        def keys_at(version: int, reuse: Any) -> list[str]:
            steps = (dataclasses.replace(step, version=version), *stage.steps[1:])
            run = StageRun(dataclasses.replace(stage, steps=steps), "version", catalog, RunSettings(), None)
            return [part.key for part in run.made_of(step.name, reuse)]

        assert keys_at(step.version, value) == ["p0"]
        assert keys_at(step.version, RuleSet(min_words=9)) == []
        assert keys_at(step.version + 1, value) == []


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", Files])
def test_a_value_that_no_fingerprint_knows_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be part of a step's inputs"):
        identity_of({"inputs": value})
