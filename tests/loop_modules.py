"""Modules of the training loop's tests, for tests in other folders: pytest's import mode gives them no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

LOOP_TESTS = Path(__file__).parent / "unit" / "training" / "loop"


def load_loop_module(name: str) -> ModuleType:
    """A module beside the tests of the training loop (release_writer, conftest), for tests that lie elsewhere."""
    spec = importlib.util.spec_from_file_location(f"dalip_{name}", LOOP_TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
