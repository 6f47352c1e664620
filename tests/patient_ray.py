"""Ray gives a node of its own half a minute to start, which a machine that runs many tests may not keep.

For processes that begin a local Ray: what `ray_nodes.START` says for nodes of a cluster.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

_SERVICES = "ray._private.services"
_TIMES = 5  # one try lasts half a minute


class _Finder:
    """Finds the module that knows of nodes, once, and lets it ask for one more often."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name != _SERVICES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        load = loader.exec_module

        def load_patiently(module: Any) -> None:
            load(module)
            get = module.get_node
            module.get_node = lambda *arguments: _ask(get, arguments)

        loader.exec_module = load_patiently
        return spec


def _ask(get: Any, arguments: tuple[Any, ...]) -> Any:
    for _ in range(_TIMES - 1):
        try:
            return get(*arguments)
        except RuntimeError:  # it is not there yet
            continue
    return get(*arguments)


def be_patient() -> None:
    """In this process, whenever it imports Ray, and in its forks."""
    if _SERVICES not in sys.modules:
        sys.meta_path.insert(0, _Finder())
