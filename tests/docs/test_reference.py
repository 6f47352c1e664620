"""configs/REFERENCE.md is what the settings classes say, no key lacks a meaning, and pages name no other keys."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from types import ModuleType

import pytest
from building import ROOT

from manifests.settings import keys_of
from pipeline.config import BuildConfig
from training.config import TrainSettings

ROOMS = ("configs", "manifests", "pipeline", "training")
PAGES = (
    "README.md",
    "configs/GUIDE.md",
    *(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("README.md")),
)
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`")
FILES = ("json", "jsonl", "md", "parquet", "pt", "py", "safetensors", "tar", "tsv", "yaml")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / ".ci/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(reference: ModuleType) -> None:
    assert (ROOT / "configs/REFERENCE.md").read_text(encoding="utf-8") == reference.render(), "run `make reference`"


def test_every_key_has_a_meaning_and_a_place(reference: ModuleType) -> None:
    page = reference.render()
    without = []
    for model in (BuildConfig, TrainSettings):
        for _, section in reference.sections_of(model):
            without += [
                f"{section.__name__}.{name}" for name in section.model_fields if not reference.meaning_of(section, name)
            ]
        for key in keys_of(model):
            assert f"| `{key.place.rpartition('.')[2]}` |" in page, key.place
    assert without == []


@pytest.mark.parametrize(
    "row",
    [
        "| `radius` | whole number from 0 to 16 | `4` | Largest Hamming distance of the 64-bit pHashes of ",
        "| `total_timeout_seconds` | number above 0 | `60.0` | Longest time for one attempt, ",
        "| `rules` | list of keys below | `[{preset: general}]` |",
        "| `split` | text or null | `heldout` |",
        "| `output_dir` | text | required | Folder of the run, also of an object store",
        "### `fetch.network.hosts[]`",
        '| `caption.text.choices[].otherwise` | `["caption", "sentence"]` | ',
    ],
)
def test_rows_say_type_default_and_meaning(reference: ModuleType, row: str) -> None:
    assert row in reference.render()


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_is_there(page: str) -> None:
    keys = {key.place.replace("[]", "") for model in (BuildConfig, TrainSettings) for key in keys_of(model)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set(KEY.findall((ROOT / page).read_text(encoding="utf-8")))
    of_configs = {key for key in named if key.split(".")[0] in sections and key.rpartition(".")[2] not in FILES}
    assert of_configs <= keys, f"{page} names keys that no config has: {', '.join(sorted(of_configs - keys))}"


def test_the_guide_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    guide = (ROOT / "configs/GUIDE.md").read_text(encoding="utf-8")
    assert set(re.findall(r"plantmix\[(\w+)\]", guide)) == set(project["optional-dependencies"]) - {"dev"}
