"""PlantMix-13M by its law: small runs, a fitted law, its mixture, a release drawn by it, a training on that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT, done, release_of, write_pictures
from training_runs import tiny_values, write_values

from manifests.contract.release import Release
from pipeline.config import read_config
from training.cli import main as dalip

CONFIGS = ROOT / "configs/pipeline"
NUM_HELDOUT = 4


def test_the_planned_recipe_is_the_reference_recipe_but_for_its_ratio() -> None:
    fixed, planned = (read_config(CONFIGS / f"{name}.yaml") for name in ("plantmix-13m", "plantmix-13m-planned"))
    assert planned.model_copy(update={"name": fixed.name, "mix": fixed.mix}) == fixed
    assert planned.mix.mixture == str(Path(fixed.work_dir) / "mixture.json")
    assert (planned.mix.ratio, planned.mix.num_samples, fixed.mix.mixture) == (None, None, None)
    assert planned.mix.heldout == fixed.mix.heldout


def recipe(file: str, folder: Path, **changes: Any) -> Path:
    """A recipe as it stands, over a folder of pictures; `changes` are merged into its sections."""
    values = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))
    for source in values["sources"]:
        for kind in ("dwca", "table", "columns"):
            source.pop(kind, None)
        pictures = {"path": str(folder / "pics" / source["domain"]), "captions": "text_file"}
        source |= {"folder": pictures, "defaults": {"licence": "CC0-1.0"}}
    values["work_dir"] = str(folder / "work")
    values["mix"]["heldout"] = {"num_samples": dict.fromkeys(("plant", "general"), NUM_HELDOUT)}
    values["run"] |= {"executor": "inline"}
    for section, change in changes.items():
        values[section] = {**values[section], **change} if isinstance(change, dict) else change
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def train(folder: Path, command: str, release: Path | str, **values: Any) -> Path:
    """A tiny training of 24 pictures, or some of them; gives its folder."""
    run = tiny_values(folder, model={"preset": "clip"}, data={"batch_size": 8}, eval={"batch_size": NUM_HELDOUT})
    run |= {"release": str(release), "output_dir": str(folder / command), "schedule": {"steps": 3, "warmup_steps": 1}}
    assert dalip([command, write_values(folder, run | values, command)]) == 0
    return folder / command


@pytest.mark.slow
def test_the_reference_recipe_is_drawn_as_its_own_small_runs_say(tmp_path: Path) -> None:
    work, design, law = tmp_path / "work", tmp_path / "design.csv", tmp_path / "law.json"
    mixture = tmp_path / "mixture.json"
    write_pictures(tmp_path, 30)
    done("build", recipe("plantmix-13m", tmp_path, name="strata", pack={"kind": "stratified"}))
    pools = Release.open(str(work)).num_by_domain()
    assert pools == {"plant": 30 - NUM_HELDOUT, "general": 30 - NUM_HELDOUT}

    sizes = [f"--pool={domain}={num}" for domain, num in pools.items()]
    lengths = ["--samples", "24", "--proxy-samples", "24"]
    done("plan", "design", "--domains", "plant,general", "--budget", "5", *sizes, *lengths, "--out", design)
    train(tmp_path, "proxies", release_of(work), runs=str(design), catalogue=str(work))
    done("plan", "fit", work, "--out", law)
    goal = ["--objective", "plant=3,general=1", "--samples", "24", "--accept-untrusted", "--bootstrap", "20"]
    done("plan", "choose", law, *goal, *sizes, "--out", mixture)

    said = done("mix", recipe("plantmix-13m-planned", tmp_path, mix={"mixture": str(mixture)}))
    assert "fetch: reused" in said
    release, chosen = Release.open(str(work)), json.loads(mixture.read_text())
    drawn = release.num_by_domain()
    assert release.record["name"] == "plantmix-13m-planned"
    assert 0 < sum(drawn.values()) <= 24, "the samples that it was chosen for"
    for domain, share in chosen["ratio"].items():
        assert abs(drawn.get(domain, 0) - share * sum(drawn.values())) <= 1
    assert json.loads((Path(release.path) / "mixture.json").read_text())["law"] == chosen

    run = train(tmp_path, "train", release.path)
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"step"' in line]
    assert max(line["step"] for line in steps) == 3
