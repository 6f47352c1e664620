"""A package that is not installed is one line that names the extra, from both commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from manifests.services.packages import EXTRAS, explain, extra_of, install_line, require

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OTHER_NAMES = {"pillow": "PIL", "open-clip-torch": "open_clip", "scikit-learn": "sklearn"}

IMPORTS = re.compile(r"^ *(?:import (?=\w+(?:\.\w+)*(?: as|$| *#))|from (?=\S+ import ))(\w+)", re.MULTILINE)


def _modules_of(requirements: list[str]) -> set[str]:
    names = [re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-") for line in requirements]
    return {OTHER_NAMES.get(name, name.replace("-", "_")) for name in names}


def test_the_extras_are_those_of_the_project() -> None:
    """Each module stands under an extra that brings it, and every package of an extra stands somewhere."""
    extras = {name: _modules_of(lines) for name, lines in PROJECT["optional-dependencies"].items()}
    for extra, modules in EXTRAS.items():
        for module in set(modules) - {"fasttext", "timm"}:  # of packages that listed ones bring
            assert module in extras[extra], (extra, module)
    listed = {module for modules in EXTRAS.values() for module in modules}
    needed = set().union(*(modules for name, modules in extras.items() if name not in ("dev", "cluster")))
    assert needed <= listed


def test_every_module_that_may_be_missing_is_known() -> None:
    """Whatever the packages import beside the standard library and what is always installed."""
    imported = set()
    for package in ("manifests", "pipeline", "training"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            imported |= set(
                re.findall(r"^ *(?:import (?=\w+(?:\.\w+)*(?: as|$| *#))|from (?=\S+ import ))(\w+)", text, re.M)
            )
    assert {"torch", "duckdb", "pycurl"} <= imported, "within functions too"
    always = _modules_of(PROJECT["dependencies"]) - {"pyyaml"} | {"yaml"}
    always |= {"manifests", "pipeline", "training", *sys.stdlib_module_names}
    unknown = {name for name in imported - always if not extra_of(name)}
    assert not unknown, unknown


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("training.cli train configs/training/demo.yaml", "torch", "training"),
        ("training.cli eval nowhere", "torch", "training"),
        ("training.cli search nowhere --text x", "torch", "training"),
        ("pipeline.cli --quiet build configs/pipeline/demo.yaml", "pycurl", "pipeline"),
        ("training.cli train configs/training/demo.yaml --release s3://bucket/release", "s3fs", "s3"),
    ],
)
def test_a_command_without_its_package_is_one_line(command: str, module: str, extra: str) -> None:
    name, *arguments = command.split()
    code = f"import sys; sys.modules[{module!r}] = None; from {name} import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"needs {module}, which is not installed: {install_line(module)}" in done.stderr
    assert f"[{extra}]" in install_line(module)


@pytest.mark.parametrize(
    ("noted", "words"),
    [
        ({"url": "file://HERE/a%20clone", "dir_info": {"editable": True}}, "-e 'HERE/a clone[training]'"),
        ({"url": "file://HERE/a%20clone", "dir_info": {}}, "'HERE/a clone[training]'"),
        ({"url": "file://HERE/p-1.whl", "archive_info": {}}, "'plantmix[training] @ file://HERE/p-1.whl'"),
        (
            {"url": "https://a.example/p.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "'plantmix[training] @ git+https://a.example/p.git@abc'",
        ),
        ({"url": "file://HERE/gone.whl", "archive_info": {}}, "'torch>=2.7' 'resizer<5; sys_platform != \"linux\"'"),
        (None, "'torch>=2.7' 'resizer<5; sys_platform != \"linux\"'"),
    ],
)
def test_the_line_names_where_this_copy_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: dict[str, object] | None, words: str
) -> None:
    (tmp_path / "a clone").mkdir()
    (tmp_path / "p-1.whl").touch()
    (tmp_path / "plantmix-9.dist-info").mkdir()
    (tmp_path / "plantmix-9.dist-info/METADATA").write_text(
        "Metadata-Version: 2.4\nName: plantmix\nVersion: 9\nRequires-Dist: duckdb\n"
        "Requires-Dist: torch>=2.7; extra == 'training'\nRequires-Dist: jinja2; extra == 'pipeline'\n"
        'Requires-Dist: resizer<5; sys_platform != "linux" and extra == "training"\n'
    )
    if noted is not None:
        text = json.dumps(noted).replace("HERE", str(tmp_path))
        (tmp_path / "plantmix-9.dist-info/direct_url.json").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert install_line("torch") == "pip install " + words.replace("HERE", str(tmp_path))


def test_what_is_missing_is_told_before_it_is_imported() -> None:
    require("this", "json", "pyarrow")
    with pytest.raises(ConfigError, match=r"log\.x needs no_such_module, which is not installed: pip install no"):
        require("log.x", "json", "no_such_module")
    with pytest.raises(PackageNotFoundError):
        distribution("no_such_module")
    with pytest.raises(ModuleNotFoundError):
        explain(ModuleNotFoundError("No module named 'training.nothing'", name="training.nothing"))
