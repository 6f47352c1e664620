"""A data provider or a task is named by its own modules and by no core module, so that another one can be added."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMING_GBIF = {
    "pipeline/fetching/settings.py",  # the profile of its hosts
    "pipeline/judging/vocabulary/backbone.py",
}


def test_only_its_own_modules_name_gbif() -> None:
    naming = {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "manifests", "training")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".html") and "README" not in path.name
        if "gbif" in path.read_text(encoding="utf-8").lower()
    }
    assert {name for name in naming if not name.startswith("pipeline/sources/biology/")} == NAMING_GBIF


def test_loop_loader_and_evaluation_name_no_task() -> None:
    for room in ("run", "data", "evaluation"):
        for path in (ROOT / "training" / room).glob("*.py"):
            words = path.read_text(encoding="utf-8").lower()
            assert not [word for word in ("contrastive", "sum_of_", "sumof") if word in words], path
