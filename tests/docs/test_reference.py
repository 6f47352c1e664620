"""configs/REFERENCE.md is what the settings classes say, no key lacks a meaning, and pages name no other keys."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from types import ModuleType

import pytest
from building import ROOT
from ci_scripts import load_ci_script

from manifests.contract.settings import Settings, keys_of

ROOMS = ("configs", "manifests", "pipeline", "training")
PAGES = (
    "README.md",
    "configs/GUIDE.md",
    *(str(path.relative_to(ROOT)) for path in (ROOT / "configs/guide").glob("*.md")),
    *(str(path.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).rglob("README.md")),
)
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)(?:: [^`]*)?`")
FILES = ("json", "jsonl", "md", "parquet", "pt", "py", "safetensors", "tar", "tsv", "yaml")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load_ci_script("reference")


def test_the_reference_is_current(reference: ModuleType) -> None:
    assert (ROOT / "configs/REFERENCE.md").read_text(encoding="utf-8") == reference.render(), "run `make reference`"


def test_every_key_has_a_meaning_and_a_place(reference: ModuleType) -> None:
    page = reference.render()
    without = []
    for model in reference.CONFIGS.values():
        for _, section in reference.sections_of(model):
            without += [
                f"{section.__name__}.{name}" for name in section.model_fields if not reference.meaning_of(section, name)
            ]
        for key in keys_of(model):
            assert f"| `{key.place.rpartition('.')[2]}` |" in page, key.place
    assert without == []


def read_from_yaml() -> dict[str, type[Settings]]:
    """Every model that a call of `read_settings` reads, by the place of the call."""
    models = {}
    for path in [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [
            call
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("read_settings")
        ]
        for call in calls:
            name = ast.unparse(call.args[1])
            imported = [
                node.module
                for node in ast.walk(tree)
                if isinstance(node, ast.ImportFrom) and node.module and name in [each.name for each in node.names]
            ]
            own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            place = f"{path.relative_to(ROOT)}:{call.lineno}"
            models[place] = getattr(importlib.import_module((imported or [own])[0]), name)
    return models


def test_every_model_that_a_command_reads_from_yaml_is_on_the_page(reference: ModuleType) -> None:
    told = {section for model in reference.CONFIGS.values() for _, section in reference.sections_of(model)}
    read = read_from_yaml()
    assert {model.__name__ for model in read.values()} >= {"BuildConfig", "TrainSettings", "ProxySettings"}
    missing = {place: model.__name__ for place, model in read.items() if model not in told}
    assert missing == {}, "add each to CONFIGS of .ci/reference.py"


@pytest.mark.parametrize(
    "row",
    [
        "| `radius` | whole number from 0 to 16 | `4` | Largest Hamming distance of the 64-bit pHashes of ",
        "| `total_timeout_seconds` | number above 0 | `60.0` | Longest time for one attempt, ",
        "| `rules` | list of keys below | `[{preset: general}]` |",
        "| `split` | text or null | `heldout` |",
        "| `output_dir` | text | required | Folder of the run, also of an object store",
        "### `fetch.network.hosts[]`",
        "| `decode_once` | true or false | `true` | ",
        "| `output_dir` to `eval` | | | 13 keys, as in a training config |",
    ],
)
def test_rows_say_type_default_and_meaning(reference: ModuleType, row: str) -> None:
    assert row in reference.render()


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_is_there(page: str, reference: ModuleType) -> None:
    keys = {key.place.replace("[]", "") for model in reference.CONFIGS.values() for key in keys_of(model)}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set(KEY.findall((ROOT / page).read_text(encoding="utf-8")))
    of_configs = {key for key in named if key.split(".")[0] in sections and key.rpartition(".")[2] not in FILES}
    assert of_configs <= keys, f"{page} names keys that no config has: {', '.join(sorted(of_configs - keys))}"


def test_the_guide_names_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    guide = (ROOT / "configs/guide/install.md").read_text(encoding="utf-8")
    table = guide.partition("| extra | brings |\n")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(project["optional-dependencies"]) - {"dev"}
