"""Arrow as processes of PlantMix use it: without pandas, which they do not need."""

from __future__ import annotations

import importlib.abc
import sys

import pyarrow as pa


class _WithoutPandas(importlib.abc.MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def without_pandas() -> None:
    """Keep pyarrow from importing pandas with the first list that it is given.

    It imports pandas only to see whether the list is an object of pandas. Where pandas is installed, this takes a third
    of a second and 50 MiB in every process. Whoever asks Arrow for a DataFrame still gets one.
    """
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([None])  # it looks for pandas once
    finally:
        sys.meta_path.remove(finder)
