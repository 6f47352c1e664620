"""A folder called manifests, pipeline or training where the user stands hides none of our packages from the commands.

An environment is made as an install makes it: the packages, or the path to them, and the commands.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from building import ROOT, write_folder_config, write_pictures
from environments import lacks

NAMES = ("manifests", "pipeline", "training")
PYTHON = """
import json, sys
from manifests import __version__
import pipeline.cli, training.cli
print(json.dumps([sys.modules[name].__file__ for name in ("manifests", "pipeline", "training")]))
"""


def environment(folder: Path) -> Path:
    """Python of a new environment that has what ours has, without PlantMix; `site` is where packages go."""
    venv.create(folder, with_pip=False)
    site = site_of(folder)
    (site / "z-ours.pth").write_text("\n".join(path for path in sys.path if Path(path).name == "site-packages"))
    return folder / "bin/python"


def site_of(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip install --editable` leaves it."""
    folder = tmp_path_factory.mktemp("edited")
    python = environment(folder)
    (site_of(folder) / "_editable_impl_plantmix.pth").write_text(f"{ROOT}\n")
    command = folder / "bin/plantmix"
    command.write_text(f"#!{python}\nimport sys\nfrom pipeline.cli import main\nsys.exit(main())\n")
    command.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a wheel, built and installed by pip."""
    folder = tmp_path_factory.mktemp("installed")
    python = environment(folder)
    pip = [sysconfig.get_path("scripts") + "/python", "-m", "pip", "--quiet"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "-w", folder / "dist", ROOT], capture_output=True, text=True, check=False
    )
    if built.returncode:
        assert "(from versions: none)" in built.stderr, built.stderr
        lacks("a package index to get hatchling from")
    (wheel,) = (folder / "dist").glob("plantmix-*.whl")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    return python


def stand_in(folder: Path, *packages: str) -> Path:
    """A folder that holds one of each name; those of `packages` can be imported."""
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "deployment.yaml").write_text("kind: Deployment\n")
        if name in packages:
            (folder / name / "__init__.py").write_text("raise ImportError('this is the user\\'s own')\n")
    return folder


def run(program: Path, folder: Path, *words: str) -> str:
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def packages_of(python: Path) -> Path:
    """The folder that holds the packages which this Python must find."""
    site = site_of(python.parents[1])
    return site if (site / "manifests").is_dir() else ROOT


@pytest.mark.parametrize("install", ["edited", pytest.param("installed", marks=pytest.mark.slow)])
def test_python_finds_ours_beside_plain_folders(request: pytest.FixtureRequest, tmp_path: Path, install: str) -> None:
    """As in a notebook: the folder where it starts is the first that Python looks in."""
    python = request.getfixturevalue(install)
    expected = [str(packages_of(python) / name / "__init__.py") for name in NAMES]
    assert json.loads(run(python, stand_in(tmp_path / "here"), "-c", PYTHON)) == expected


def test_the_command_finds_ours_beside_packages(edited: Path, tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "here", *NAMES)
    assert run(edited.with_name("plantmix"), folder, "--version").startswith("plantmix ")


def test_a_notebook_beside_a_package_that_hides_ours_is_told(edited: Path, tmp_path: Path) -> None:
    folder = stand_in(tmp_path / "here", "manifests")
    ended = subprocess.run(
        [edited, "-c", "import training.api"], capture_output=True, text=True, check=False, cwd=folder
    )
    assert ended.stderr.splitlines()[-1] == (
        f"ImportError: {folder}/manifests hides PlantMix's own package `manifests`; rename that folder, or start "
        "Python in another one"
    )


@pytest.mark.slow
@pytest.mark.parametrize(("install", "executor"), [("edited", "ray"), ("installed", "ray"), ("edited", "processes")])
def test_a_build_started_beside_packages_ends(
    request: pytest.FixtureRequest, tmp_path: Path, install: str, executor: str
) -> None:
    command = request.getfixturevalue(install).with_name("plantmix")
    folder = stand_in(tmp_path / "here", *NAMES)
    config = write_folder_config(
        tmp_path, str(tmp_path / "work"), write_pictures(tmp_path, 6), executor=executor, num_workers=2
    )
    assert "release: " in run(command, folder, "build", str(config))


@pytest.mark.slow
def test_the_door_of_the_guide_opens_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed, stand_in(tmp_path / "here"), "-c", "from training.api import load")


@pytest.mark.slow
def test_the_line_for_a_missing_package_works(installed: Path, tmp_path: Path) -> None:
    """pip takes it; no index has PlantMix's name."""
    program = "from manifests.services.packages import install_line; print(install_line('torch'))"
    pip, *words = shlex.split(run(installed, tmp_path, "-c", program))
    assert pip == "pip"
    assert "plantmix[training] @ file://" in words[-1]
    pip_of_ours = [sysconfig.get_path("scripts") + "/python", "-m", "pip", "--python", installed]
    subprocess.run([*pip_of_ours, *words, "--dry-run", "--no-deps"], check=True, cwd=tmp_path)
