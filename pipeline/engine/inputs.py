"""From the inputs of a stage or a step to a fingerprint.

Inputs are one frozen dataclass. The worker gets that value and the fingerprint is taken from that value, so nothing can
be given to a worker that the fingerprint does not see.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from manifests.contract.settings import Settings

Kind = TypeVar("Kind")


def identity_of(value: Any) -> Any:
    """Inputs as plain JSON values: content and settings, never a place.

    A value with a method `identity()` says itself what counts: `Files` their content, a source its settings without
    paths.

    Raises: TypeError for a value of any other kind than dataclasses, settings, mappings, sequences and plain values.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, type):
        raise TypeError(f"the class {value.__name__} cannot be part of a step's inputs")
    if callable(getattr(value, "identity", None)):
        return value.identity()
    if isinstance(value, Settings):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value):
        return {field.name: identity_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): identity_of(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [identity_of(each) for each in value]
    raise TypeError(f"{type(value).__name__} cannot be part of a step's inputs: {value!r}")


def within(value: Any, kind: type[Kind]) -> Iterator[Kind]:
    """Every value of a kind in the inputs of a stage or a part."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        yield from within(list(value.values()), kind)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from within(each, kind)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from within(getattr(value, field.name), kind)
