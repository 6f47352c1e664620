"""The house rules that a machine can hold: who imports whom, frozen command lines, sizes, the map in CONTRIBUTING."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from manifests import __version__
from manifests.contract.settings import read_settings
from pipeline.cli import build_parser
from pipeline.config import BuildConfig, read_config
from pipeline.sources.kinds import BUILT_IN
from training.cli import build_parser as build_training_parser
from training.config import EvalSettings, TrainSettings
from training.proxies.runs import ProxySettings

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "manifests", "training")
MOST_MODULES = 16  # in a folder
MOST_LINES = 450  # in a module
MOST_WORDS = 1450  # in the README, as `wc -w` counts, its configs and commands too


def _modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def _who_says(pattern: str) -> set[str]:
    found = re.compile(pattern, re.MULTILINE)
    return {str(path.relative_to(ROOT)) for path in _modules() if found.search(path.read_text(encoding="utf-8"))}


def test_ray_is_imported_in_the_runner_and_for_proxy_runs_alone() -> None:
    assert _who_says(r"^\s*(import ray\b|from ray\b)|import_module\(.ray.\)") == {
        "pipeline/engine/on_ray.py",
        "pipeline/engine/gates.py",
        "training/proxies/on_ray.py",
    }


def test_open_clip_is_imported_in_one_module() -> None:
    pattern = r"^\s*(import open_clip\b|from open_clip\b)|[\"']open_clip\.\w+[\"']|import_module\(.open_clip"
    assert _who_says(pattern) == {"manifests/services/open_clip_api.py"}


def test_no_other_room_knows_a_kind_of_source() -> None:
    """Another package can bring one, so nothing may depend on those that are here."""
    modules = "|".join(point.module.split(".")[2] for point in BUILT_IN)
    users = _who_says(rf"^\s*(from|import) pipeline\.sources(\.({modules})\b| import .*\b({modules})\b)")
    assert {name for name in users if not name.startswith("pipeline/sources/")} == set()
    assert users, "the pattern finds those in the room"


def test_only_storage_renames() -> None:
    assert _who_says(r"os\.(rename|replace|renames)\(|shutil\.move\(|\)\.(rename|replace)\(inner") == {
        "manifests/stores/storage.py"
    }


def test_a_table_is_of_one_stage() -> None:
    """The catalogue finds the tables of a build by their names."""
    found: dict[str, set[str]] = {}
    stages = ROOT / "pipeline/stages"
    for path in stages.rglob("*.py"):
        pattern = r"run\.(?:writer\(|write\(|save\(\s*sql,)\s*\"(?:\w+/)?(\w+)\""
        for name in re.findall(pattern, path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(path.relative_to(stages).parts[0].removesuffix(".py"))
    assert len(found) > 25
    assert {name: stages for name, stages in found.items() if len(stages) > 1} == {}


def test_what_a_picture_file_and_a_sample_are_is_said_once() -> None:
    """Another list of endings, or another way to part the members of a tar, would answer otherwise one day."""
    lists = r"(?:[\"'.]|\b)(jpe?g|png|webp)\b[\"'|, .()?]+(jpe?g|png|webp|tiff?|gif|heic)\b"
    of_captions = "pipeline/judging/captions/patterns.py"  # names of files within captions
    assert _who_says(lists) - {of_captions} == {"manifests/samples/endings.py"}
    assert _who_says(r"\btar_members\(") == {
        "manifests/services/untrusted.py",
        "manifests/samples/tars.py",
        "training/data/shards.py",  # the further texts of a sample of a release, whose key its table names
    }
    assert _who_says(r"group_by_keys|base_plus_ext|braceexpand\(|expand_urls") == {"manifests/samples/braces.py"}


def test_only_the_catalogue_opens_a_duckdb_file() -> None:
    assert _who_says(r"duckdb\.connect\((?!\)|config=|\s*config=|\s*\n\s*config=)") == {
        "manifests/contract/catalog_file.py"
    }


@pytest.mark.parametrize("module", ["pipeline.cli", "training.cli", "manifests.contract.release"])
def test_heavy_packages_are_not_imported_for_help(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "print(sorted({'torch', 'ray', 'open_clip', 'img2dataset', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FOLDERS = sorted({path.parent for path in _modules()})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_holds_few_modules(folder: Path) -> None:
    modules = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES, f"{folder} holds {len(modules)} modules: part it in two rooms"


def test_a_module_is_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in _modules()}
    assert {name: num for name, num in lines.items() if num > MOST_LINES} == {}


def test_the_readme_is_short() -> None:
    num = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert num < MOST_WORDS, f"README.md has {num} words: move what is special to the README of a room"


def test_the_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "manifests/__init__.py"}
    assert _who_says(rf"\b{re.escape(__version__)}\b") == {"manifests/__init__.py"}


def test_the_changelog_begins_with_the_version() -> None:
    versions = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == __version__


def _options(parser: argparse.ArgumentParser, name: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    own: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub, subparser in action.choices.items():
                found |= _options(subparser, f"{name} {sub}".strip())
        elif not isinstance(action, argparse._HelpAction):
            own += action.option_strings or [action.dest]
    return {name: sorted(own), **found} if name else {"": sorted(own), **found}


def test_the_command_line_is_frozen() -> None:
    """A new option is a decision: change this list in the commit that explains it."""
    options = _options(build_parser())
    assert {name: options[name] for name in options if not name.startswith("plan")} == {
        "": ["--quiet", "--verbose", "--version"],
        "build": ["--from", "--ray-address", "--to", "config"],
        "init": ["--captions", "--domain", "--evaluation", "--out"],
        "estimate": ["--head", "--json", "config"],
        "status": ["--json", "dir"],
        "explain": ["--json", "dir", "what"],
        "query": ["--format", "--json", "--memory-gb", "--seconds", "dir", "sql"],
        "browse": ["--evaluation", "--model", "--port", "--search", "dir"],
        "retry": ["dir"],
        "verify": ["--deep", "--json", "dir"],
        "repair": ["--yes", "config", "dir"],
        "preview": ["--json", "--num", "config"],
        "mix": ["--dry-run", "--json", "config"],
        "export": ["--for", "--out", "--ratio", "release"],
        "diff": ["--json", "after", "before"],
        "audit": ["--against", "--out", "test"],
        "publish": ["--author", "--dry-run", "--public", "--to", "release"],
        "report": ["--out", "release"],
        "takedown": ["--id", "--owner", "--purge", "--reason", "--url", "release"],
    }
    assert {"plan design", "plan fit", "plan choose"} <= set(options)


def test_the_command_line_of_training_is_frozen() -> None:
    assert _options(build_training_parser()) == {
        "": ["--version"],
        "train": ["--allow-changed", "--no-resume", "--output", "--release", "--resume", "config"],
        "eval": ["--architecture", "--kind", "--out", "--output", "--release", "--settings", "--split", "model"],
        "plot": ["--metric", "--out", "runs"],
        "proxies": ["--launcher", "--output", "--processes", "--ray-address", "--release", "--runs", "--task",
                    "config"],
        "export": ["--architecture", "--format", "--kind", "model", "target"],
        "publish": ["--architecture", "--dry-run", "--public", "--to", "model"],
        "import": ["--architecture", "checkpoint", "target"],
        "predict": ["--architecture", "--batch-size", "--calibrate", "--device", "--features", "--field", "--labels",
                    "--model", "--num-workers", "--out", "--rank", "--taxa", "--template", "--text", "--threshold",
                    "--top", "--within", "images"],
        "embed": ["--architecture", "--batch-size", "--device", "--features", "--model", "--num-workers", "--out",
                  "images"],
        "search": ["--architecture", "--device", "--image", "--json", "--model", "--serve", "--text", "--top",
                   "vectors"],
        "blend": ["--alpha", "--architecture", "--expert", "--general", "--out", "--release", "--settings", "--split",
                  "end", "start"],
        "table": ["--out", "--sets", "models"],
    }  # fmt: skip


@pytest.mark.parametrize("parser", [build_parser(), build_training_parser()], ids=["plantmix", "dalip"])
def test_every_command_shows_help_with_an_example(parser: argparse.ArgumentParser) -> None:
    for command in _commands(parser):
        text = command.format_help()
        assert "example" in text, command.prog
        assert "%%" not in text, f"{command.prog}: an escape that nobody removes"
        for action in command._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{command.prog} {action.dest}"


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands below a parser, and those below them."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield command
                yield from _commands(command)


def test_every_config_loads() -> None:
    for path in sorted((ROOT / "configs/pipeline").glob("*.yaml")):
        assert isinstance(read_config(path), BuildConfig), path
    for path in sorted((ROOT / "configs/recipes").glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "\nwork_dir:" in text:
            assert isinstance(read_config(path), BuildConfig), path
        else:
            model = ProxySettings if "\nruns:" in text else TrainSettings if "\nschedule:" in text else EvalSettings
            assert isinstance(read_settings(path, model), model), path
    for path in sorted((ROOT / "configs/training").glob("*.yaml")):
        model = ProxySettings if path.name.startswith("proxies") else TrainSettings
        assert isinstance(read_settings(path, model), model), path
    for path in sorted((ROOT / "configs/evaluation").glob("*.yaml")):
        assert isinstance(read_settings(path, EvalSettings), EvalSettings), path


def test_the_map_is_the_tree() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.partition("## Where things are")[2].partition("```")[2].partition("```")[0]
    for package in PACKAGES:
        part = re.search(rf"^{package}/.*?(?=^\S|\Z)", block, re.MULTILINE | re.DOTALL)
        assert part is not None, package
        for entry in sorted((ROOT / package).iterdir()):
            if entry.is_dir() and entry.name != "__pycache__":
                assert f"{entry.name}/" in part[0], f"{package}/{entry.name}/ is not on the map of CONTRIBUTING"
            elif entry.suffix == ".py" and package != "training" and entry.name != "__init__.py":
                assert entry.name in part[0], f"{package}/{entry.name} is not on the map of CONTRIBUTING"
        for named in re.findall(r"\b([a-z0-9_]+\.(?:py|sql))\b", part[0]):
            assert (ROOT / package / named).is_file(), (
                f"the map of CONTRIBUTING names {package}/{named}, which is not there"
            )


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    reasons = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=;\[ ]", line)[0] for group in groups for line in group}
    missing = sorted(name for name in names if name not in reasons)
    assert not missing, f"no reason in CONTRIBUTING.md for {', '.join(missing)}"


def test_torch_is_never_pinned() -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"^[\s\"]*torch(vision)?\s*==", text, re.MULTILINE), name


def test_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    assert any(".ci/run" in step for step in steps)
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\S+)", script, re.MULTILINE) == ["setup", "check"]
    assert re.search(r"^for tests in test test-all test-numerics; do$", script, re.MULTILINE)


def test_the_numeric_tests_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^NUMERIC_TESTS := (.*)$", makefile, re.MULTILINE)
    assert [name for name in line.split() if not (ROOT / name).exists()] == []


def test_a_commit_is_checked_as_make_check_does() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").partition("\ncheck:")[2].partition("\n\n")[0]
    checks = [line.strip().removeprefix("$(BIN)/").removesuffix(" .") for line in makefile.splitlines()[1:]]
    assert [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks] == checks
