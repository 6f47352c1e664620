"""The scripts of .ci as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from building import ROOT


def load_ci_script(name: str) -> ModuleType:
    """The script .ci/NAME.py, not run as a program."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / f".ci/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
