"""The planner needs NumPy, SciPy and PyYAML alone, so that it can be used without the rest of PlantMix."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"numpy", "scipy", "yaml"}
OURS = {"manifests.errors", "manifests.masking"}  # the errors hide secrets by the second


def modules() -> list[Path]:
    return [
        *sorted((ROOT / "pipeline/planning").rglob("*.py")),
        *(ROOT / f"{name.replace('.', '/')}.py" for name in sorted(OURS)),
    ]


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, within functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0, "the house writes whole names"
            yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_of_the_planner_imports_few_packages_and_no_other_room(path: Path) -> None:
    others = {
        name
        for name in imported(path)
        if name.partition(".")[0] not in PACKAGES | sys.stdlib_module_names
        and name not in OURS
        and not name.startswith("pipeline.planning.")
    }
    assert others == set()


def test_the_help_of_plan_loads_no_heavy_package() -> None:
    code = (
        "import contextlib, sys\n"
        "from pipeline.cli import main\n"
        "for step in ([], ['design'], ['fit'], ['choose']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(['plan', *step, '--help'])\n"
        "heavy = {'torch', 'ray', 'open_clip', 'matplotlib', 'duckdb', 'pyarrow', 'scipy', 'pydantic', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"
