"""A student learns the space of a teacher from vectors that were stored before; the teacher never runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import release_writer
import torch
from tiny_clip import exported_clip
from torch.nn import functional
from training_runs import (
    assert_same_run,
    final_weights,
    make_settings,
    run_once,
    stop_at,
    with_sections,
    write_values,
)
from vector_tables import random_vectors, write_vectors

from manifests.contract.release import Release
from manifests.errors import ConfigError, RunError
from training.cli import main
from training.data import vectors as vectors_module
from training.data.columns import txt_columns
from training.data.loader import open_releases
from training.data.shards import SamplePool, open_pool
from training.data.vectors import Vectors
from training.evaluation.encoder import Encoder
from training.model.presets import LossSettings
from training.record.log import read_log
from training.tasks.task import make_task
from training.using.nearest import StoredVectors

SECOND_ORDER = {"heads": 2, "reduced_width": 4}
WIDTH = 32  # of the teacher and of its students
TEACHER = release_writer.TINY_ARCHITECTURE | {
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
}


def make_teacher(folder: Path, seed: int) -> Path:
    path = folder / "dalip-distil-teacher.json"
    path.write_text(json.dumps(TEACHER))
    return exported_clip(folder, seed, str(path))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher"), 0)


@pytest.fixture(scope="module")
def embedded(teacher: Path, release_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dalip embed` writes of the release."""
    out = tmp_path_factory.mktemp("embedded") / "vectors.parquet"
    assert main(["embed", str(release_folder), "--model", str(teacher), "--out", str(out)]) == 0
    return out


@pytest.fixture
def distil(config: dict[str, Any], teacher: Path, embedded: Path, tmp_path: Path) -> dict[str, Any]:
    """The config of a student with a smaller picture tower, and copies in a folder of the test's own."""
    model = config["model"] | {"preset": "clip", "second_order": {}, "pretrained": str(teacher)}
    return config | {
        "model": model,
        "loss": {"form": "distil", "teacher": {"vectors": str(embedded)}},
        "data": config["data"] | {"cache_dir": str(tmp_path / "cache")},
        "optimiser": {"lr": 0.003},
    }


def with_teacher(distil: dict[str, Any], **teacher: Any) -> dict[str, Any]:
    return distil | {"loss": {"form": "distil", "teacher": distil["loss"]["teacher"] | teacher}}


def pool_of(release: Path | str, split: str = "train") -> SamplePool:
    return open_pool(open_releases(str(release)), split)


def test_a_student_learns_the_vectors_and_keeps_the_text_tower_of_its_teacher(
    distil: dict[str, Any], teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distil |= {"schedule": {"steps": 30, "warmup_steps": 2}}
    distil["eval"] = distil["eval"] | {"every_steps": 15}
    run_once(distil)
    folder = Path(distil["output_dir"])
    steps = read_log(folder / "log.jsonl", "step")
    assert steps[-1]["teacher_cosine"] > steps[0]["teacher_cosine"] + 0.3
    assert steps[-1]["loss"] == pytest.approx(1 - steps[-1]["teacher_cosine"])
    assert {line["without_vector"] for line in steps} == {0.0}
    assert read_log(folder / "log.jsonl", "column")[0]["note"] == (
        "loss.teacher: 107 of 107 samples of split 'train' have a vector"
    )
    printed = capsys.readouterr().err
    assert re.search(rf"weights from {teacher}: \d+ of \d+ tensors; new: \d+ \(clip.visual \d+\)", printed), printed
    theirs = Encoder.open(str(teacher)).model.state_dict()
    ours = final_weights(str(folder))
    of_texts = [name for name in ours if not name.startswith("clip.visual.")]
    assert all(torch.equal(ours[name], theirs[name]) for name in of_texts)
    assert len(of_texts) > 10

    validated = [line["losses"]["all"] for line in read_log(folder / "log.jsonl", "validation")]
    assert validated[1] < validated[0] < 1
    assert main(["eval", str(folder)]) == 0
    (figures,) = (folder / "eval").glob("*.json")
    result = json.loads(figures.read_text())
    assert result["validation_loss"]["all"]["value"] == pytest.approx(validated[1], rel=1e-5)
    assert result["validation_loss"]["all"]["chance"] == 1.0

    out = tmp_path / "hub"
    assert main(["export", str(folder), str(out), "--format", "huggingface"]) == 0
    assert "parquet" not in (out / "dalip_config.json").read_text()
    assert Encoder.open(str(out)).fingerprint == Encoder.open(str(folder)).fingerprint


def test_text_vectors_of_the_teacher_classify_with_the_student(
    distil: dict[str, Any], teacher: Path, tmp_path: Path
) -> None:
    """Pictures of a class lie at its text, less the mean of all texts; the texts of random weights are much alike."""
    rows = Release.open(distil["release"]).samples(columns=["sample_id", "text"]).to_pylist()
    texts = sorted({row["text"] for row in rows})
    text_KC = Encoder.open(str(teacher)).encode_texts(texts).numpy()
    at_class = dict(zip(texts, text_KC - text_KC.mean(0), strict=True))
    table = write_vectors(tmp_path / "v.parquet", {row["sample_id"]: at_class[row["text"]] for row in rows})
    distil = with_teacher(distil, vectors=str(table)) | {"schedule": {"steps": 120, "warmup_steps": 5}}
    distil["data"] = distil["data"] | {"batch_size": 24, "augment": {"scale": [0.8, 1.0]}}
    distil["eval"] = {"batch_size": 12, "zero_shot": [{"field": "extra.category", "templates": ["a {}"]}]}
    run_once(distil)
    assert main(["eval", distil["output_dir"]]) == 0
    (figures,) = Path(distil["output_dir"], "eval").glob("*.json")
    top1 = json.loads(figures.read_text())["zero_shot"][0]["figures"]["f"]["top1"]
    assert top1["low"] > top1["chance"] == pytest.approx(1 / 12)


@pytest.mark.parametrize("preset", ["clip", "dalip"])
def test_a_student_that_learns_from_captions_too_resumes_to_the_bit(
    preset: str, distil: dict[str, Any], config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distil = with_teacher(distil, weight=0.5 if preset == "dalip" else 1.0)
    if preset == "dalip":
        distil["model"] = config["model"] | {"pretrained": distil["model"]["pretrained"]}
    run_once(distil)
    again = distil | {"output_dir": str(tmp_path / "again")}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError):
            run_once(again)
    monkeypatch.setattr(Vectors, "_sort", None)  # the copy of the first run is there
    run_once(again)
    assert_same_run(distil["output_dir"], again["output_dir"])
    terms = [line["teacher_cosine"] for line in read_log(Path(again["output_dir"], "log.jsonl"), "step")]
    assert terms == [line["teacher_cosine"] for line in read_log(Path(distil["output_dir"], "log.jsonl"), "step")]
    if preset == "dalip":
        first = read_log(Path(distil["output_dir"], "log.jsonl"), "step")[0]
        assert first["loss"] > 0.5 * (1 - first["teacher_cosine"]) + 0.5
        parts = distil | {"output_dir": str(tmp_path / "parts")}
        run_once(parts, compute={"accumulate": 3})
        last = read_log(Path(parts["output_dir"], "log.jsonl"), "step")[-1]
        assert last["teacher_cosine"] == pytest.approx(terms[-1], abs=1e-3)


@pytest.mark.parametrize(
    ("weight", "sections"),
    [
        pytest.param(1.0, {"adapters": {"rank": 4}}, marks=pytest.mark.slow),
        (
            0.5,
            {
                "adapters": {"rank": 4},
                "loss": {"same_label": "positive"},
                "model": {"preset": "dalip", "second_order": SECOND_ORDER},
            },
        ),
        (1.0, {"lock": {"image_blocks": 1}}),
    ],
    ids=["adapters", "adapters, captions, second order", "last blocks"],
)
def test_a_student_may_be_the_teacher_with_a_part_that_trains(
    weight: float, sections: dict[str, Any], distil: dict[str, Any], teacher: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It resumes to the bit, and eval, export, embed and blend take it."""
    distil["model"] = distil["model"] | {"architecture": str(teacher.parent / "dalip-distil-teacher.json")}
    distil = with_sections(with_teacher(distil, weight=weight), **sections)
    run_once(distil)
    assert "are random and stay so" not in capsys.readouterr().err
    again = distil | {"output_dir": str(tmp_path / "again")}
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError):
            run_once(again)
    run_once(again)
    run = distil["output_dir"]
    assert_same_run(run, again["output_dir"])
    exported, vectors = str(tmp_path / "exported"), str(tmp_path / "v.parquet")
    assert main(["eval", run]) == 0
    assert main(["export", run, exported, "--format", "huggingface"]) == 0
    assert Encoder.open(exported).fingerprint == Encoder.open(run).fingerprint
    assert main(["embed", distil["release"], "--model", exported, "--out", vectors]) == 0
    groups = ["--expert", "plant", "--general", "general", "--release", distil["release"]]
    assert main(["blend", str(teacher), run, "--alpha", "0,1", "--out", str(tmp_path / "blended"), *groups]) == 0


def test_adapters_on_a_new_tower_are_said(distil: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The student's picture tower has another shape than the teacher's, so nothing was loaded into it."""
    run_once(with_sections(distil, adapters={"rank": 4}, schedule={"steps": 1, "warmup_steps": 0}))
    assert re.search(
        r"[\d,]+ parameters of the towers are random and stay so, by lock, adapters", capsys.readouterr().err
    )


def test_a_resume_on_other_vectors_is_refused_and_on_moved_ones_is_not(
    distil: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = random_vectors(distil["release"], WIDTH)
    table = write_vectors(tmp_path / "v.parquet", vectors)
    distil = with_teacher(distil, vectors=str(table))
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(RunError):
            run_once(distil)
    write_vectors(table, {key: value[::-1] for key, value in vectors.items()})
    with pytest.raises(ConfigError, match=r"a resume cannot change the files behind column 'teacher'.*107 of 107"):
        run_once(distil)
    run_once(with_teacher(distil, vectors=str(write_vectors(tmp_path / "moved" / "v.parquet", vectors))))


def test_vectors_of_many_files_are_those_of_the_samples_and_the_missing_are_counted(
    release_folder: Path, tmp_path: Path
) -> None:
    """Half floats as they lie; a row of zeros for a sample that is not there, null, not finite or zero."""
    pool = pool_of(release_folder)
    ids = pool.table["sample_id"].to_pylist()
    vectors: dict[str, Any] = dict(reversed(random_vectors(str(release_folder), 3, ["train"]).items()))
    del vectors[ids[5]]
    vectors |= {ids[7]: None, ids[9]: [np.nan, 1, 1], ids[11]: [np.inf, 1, 1], ids[13]: [0, 0, 0]}
    vectors |= {"of-no-sample-here" * 4: [1, 2, 3], "": [1, 2, 3]}
    items = list(vectors.items())
    for number in range(3):
        table = dict(items[40 * number : 40 * number + 40])
        write_vectors(tmp_path / f"many/{number}.parquet", table, column="bioclip-2_float16")
    column = Vectors(str(tmp_path / "many"), "bioclip-2_float16", str(tmp_path / "cache"))
    opened = column.open(pool, ())
    assert opened.note == (
        "loss.teacher: 102 of 107 samples of split 'train' have a vector; the other 5 teach nothing of the teacher"
    )
    expected = np.zeros((107, 3), np.float16)
    for row, key in enumerate(ids):
        if row not in (5, 7, 9, 11, 13):
            expected[row] = vectors[key]
    assert opened.rows.dtype == np.float16
    assert (opened.rows == expected).all()
    values = txt_columns(pool, {"teacher": column})["teacher"]
    torch.testing.assert_close(values, functional.normalize(torch.from_numpy(expected.astype(np.float32)), dim=1))
    (kept,) = (tmp_path / "cache/vectors").iterdir()
    assert {path.name for path in kept.iterdir()} == {"lock", "made.json", "rows.npy"}


def test_a_sample_without_a_vector_changes_no_weight_by_the_teacher() -> None:
    teacher = {"vectors": "v.parquet", "weight": 0.25}
    task, generator = make_task(LossSettings(form="distil", teacher=teacher)), torch.Generator().manual_seed(0)
    rows = functional.normalize(torch.randn(3, 6, 8, generator=generator), dim=-1)
    image = rows[0].clone().requires_grad_()
    features = {"image_features": image, "text_features": rows[1], "logit_scale": torch.tensor(10.0)}
    target = rows[2] * torch.tensor([1, 1, 0, 1, 0, 1])[:, None]
    losses = task(features, {"teacher": target})
    plain = make_task(LossSettings())(features, {})["loss"]
    cosines = (rows[0] * target).sum(1)
    assert losses["loss"].item() == pytest.approx(0.25 * (1 - cosines.mean().item()) + 0.75 * plain.item(), abs=1e-6)
    assert losses["without_vector"].item() == pytest.approx(2 / 6)
    (grad,) = torch.autograd.grad(losses["loss"], image, retain_graph=True)
    (of_pairs,) = torch.autograd.grad(0.75 * plain, image)
    torch.testing.assert_close(grad[[2, 4]], of_pairs[[2, 4]])
    assert (grad - of_pairs)[[0, 1, 3, 5]].abs().min() > 0
    held_out = task.of_pairs({**features, "image_features": rows[0]}, {"teacher": target}, 6)
    assert held_out.mean().item() == pytest.approx(losses["loss"].item(), abs=1e-6)


def test_a_published_table_is_joined_by_uuid_and_a_sample_may_be_there_twice(tmp_path: Path) -> None:
    samples = release_writer.drawn_samples(20, 0)
    more = {release_writer.sample_id("toy", s.record_key): {"record_key": f"uuid-{s.record_key}"} for s in samples}
    release = str(release_writer.write_release(tmp_path / "release", samples, more=more))
    vectors = {f"uuid-{number}": [number + 1, 1] for number in range(20)}
    table = write_vectors(tmp_path / "v.parquet", vectors, ids="uuid", kind=pa.float32())
    pool = open_pool([*open_releases(release), *open_releases(release)], "train")
    rows = Vectors(str(table), "vector", str(tmp_path / "cache")).open(pool, ()).rows
    keys = Release.open(release).samples("train").sort_by([("shard", "ascending"), ("position", "ascending")])
    numbers = np.array([int(key.removeprefix("uuid-")) for key in keys["record_key"].to_pylist()] * 2)
    expected = np.stack([numbers + 1, np.ones(40)], 1)
    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)


def test_what_does_not_fit_is_refused_by_name(
    distil: dict[str, Any], config: dict[str, Any], embedded: Path, tmp_path: Path
) -> None:
    vectors = random_vectors(distil["release"], WIDTH)
    half = {key: value[:16] for key, value in vectors.items()}
    some = dict(list(vectors.items())[:20])
    write_vectors(tmp_path / "two/0.parquet", some, model={"model": "a" * 64, "features": "f"})
    write_vectors(tmp_path / "two/1.parquet", vectors, model={"model": "b" * 64, "features": "f"})
    write_vectors(tmp_path / "widths/0.parquet", vectors)
    write_vectors(tmp_path / "widths/1.parquet", half)
    (tmp_path / "text.parquet").write_text("no table")
    of_both = {"model": "a" * 64, "features": "both"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"vectors": write_vectors(tmp_path / "half.parquet", half)}, "have 16 numbers, and .* gives 32; take an arch"),
        ({"vectors": write_vectors(tmp_path / "both.parquet", vectors, model=of_both)}, "are the features 'both' of"),
        ({"vectors": tmp_path / "two"}, r"1.parquet and .*0.parquet are of different models or features"),
        ({"vectors": tmp_path / "widths"}, r"widths/1.parquet: vector holds vectors of 16 numbers, not of 32"),
        ({"vectors": write_vectors(tmp_path / "x.parquet", {"x": vectors.popitem()[1]})}, "no sample of split 'train'"),
        ({"column": "bioclip-2_float16"}, r"needs a column 'bioclip-2_float16' and one of .*; it has name, error, vec"),
        (
            {"vectors": write_vectors(tmp_path / "y.parquet", some, ids="id")},
            "and one of sample_id, name, uuid; it",
        ),
        ({"vectors": write_vectors(tmp_path / "z.parquet", {"x": None})}, "has no vector in column 'vector'"),
        ({"vectors": tmp_path / "nowhere"}, "no Parquet file at .*nowhere"),
        ({"vectors": tmp_path / "text.parquet"}, "text.parquet cannot be read"),
    ]
    for teacher, words in cases:
        with pytest.raises(ConfigError, match=words):
            run_once(with_teacher(distil, **{key: str(value) for key, value in teacher.items()}))
        assert not Path(distil["output_dir"], "run.json").exists(), words
    other = make_teacher(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"vectors of .* are of the model [0-9a-f]{12}, and the text tower of"):
        run_once(distil, model={"pretrained": str(other)})
    own = with_teacher(distil, weight=0.9) | {"output_dir": str(tmp_path / "own")}
    run_once(own, model={"pretrained": str(other)})  # it may learn the other space
    with pytest.raises(ConfigError, match=r"at 1 the second-order branches would learn nothing; set model.preset"):
        run_once(distil | {"model": config["model"]})
    with pytest.raises(ConfigError, match=r"at 1 model.projectors would learn nothing; leave them out, or lower the"):
        run_once(distil, model={"projectors": ["plant", "general"]})
    with pytest.raises(ConfigError, match=r"loss.same_label: masked has no effect where loss.teacher.weight is 1"):
        run_once(distil, loss={"same_label": "masked"})
    with pytest.raises(ConfigError, match="needs the vectors of a teacher: give teacher"):
        make_settings(config, loss={"form": "distil"})
    with pytest.raises(ConfigError, match="teacher has no effect on form: sum_of_losses"):
        make_settings(config, loss={"form": "sum_of_losses", "teacher": {"vectors": str(embedded)}})


def test_another_picture_tower_takes_the_text_tower_from_a_run_but_only_to_distil(
    distil: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run of a second student; with any other loss weights that do not fit are refused, as ever."""
    run_once(distil)
    run = distil["output_dir"]
    other = dict(release_writer.TINY_ARCHITECTURE, vision_cfg=TEACHER["vision_cfg"] | {"layers": 3})
    (tmp_path / "dalip-distil-third.json").write_text(json.dumps(other))
    model = {"architecture": str(tmp_path / "dalip-distil-third.json"), "pretrained": run}
    third = distil | {"output_dir": str(tmp_path / "third"), "model": distil["model"] | model}
    run_once(third)
    with pytest.raises(ConfigError, match=r"were trained in another architecture|does not fit"):
        run_once(third | {"output_dir": str(tmp_path / "fourth"), "loss": {}})
    texts = dict(other, text_cfg=other["text_cfg"] | {"heads": 4})
    (tmp_path / "dalip-distil-heads.json").write_text(json.dumps(texts))
    model["architecture"] = str(tmp_path / "dalip-distil-heads.json")
    with pytest.raises(ConfigError, match=r"text_cfg.heads"):
        run_once(third | {"output_dir": str(tmp_path / "fifth"), "model": distil["model"] | model})


def test_vectors_of_before_and_after_are_searched_together(embedded: Path, tmp_path: Path) -> None:
    """A table of an earlier version says nothing of the text tower."""
    table = pq.read_table(embedded)
    said = json.loads(table.schema.metadata[vectors_module.METADATA_KEY])
    assert len(said.pop("text_tower")) == 64
    (tmp_path / "both").mkdir()
    pq.write_table(
        table.replace_schema_metadata({b"dalip": json.dumps(said).encode()}), tmp_path / "both/earlier.parquet"
    )
    (tmp_path / "both/now.parquet").symlink_to(embedded)
    vectors = StoredVectors.open(str(tmp_path / "both"))
    assert "text_tower" not in vectors.record
    assert len(vectors.names) == 2 * len(table)


def test_a_config_that_names_a_table_beside_it(distil: dict[str, Any], embedded: Path, tmp_path: Path) -> None:
    """Paths are of the config's folder, and the run's own settings find it again."""
    (tmp_path / "vectors").symlink_to(embedded.parent)
    path = write_values(tmp_path, with_teacher(distil, vectors="vectors/*.parquet"))
    assert main(["train", path]) == 0
    assert main(["train", distil["output_dir"]]) == 0
