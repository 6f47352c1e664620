"""From the inputs of a stage or a step to a fingerprint.

Inputs are one frozen dataclass. The worker gets that value and the fingerprint is taken from that value, so nothing can
be given to a worker that the fingerprint does not see. `Inputs` is the one that the runner makes of what a step
declares.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from manifests.contract.settings import Settings
from pipeline.store.buckets import Bucket
from pipeline.store.files import Files
from pipeline.store.sql import view_table

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a part, as its step declares them: tables, and values that its work gets by their names."""

    tables: Mapping[str, Files] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    bucket: Bucket | None = None
    """The sample ids of the part, where the step is cut."""
    cut: tuple[str, ...] = ()
    """Tables of which the part reads its bucket alone."""
    columns: Mapping[str, pa.Schema] = field(default_factory=dict)
    """Of the tables that have no files."""

    def __getitem__(self, table: str) -> Files:
        return self.tables[table]

    def identity(self) -> dict[str, Any]:
        """Return the values for a fingerprint: tables, values and bucket."""
        read = {**self.tables, **self.values}
        return {name: identity_of(value) for name, value in read.items()} | (
            {"bucket": identity_of(self.bucket)} if self.bucket else {}
        )

    def view(self, sql: Any, *names: str, **called: str) -> None:
        """Create views over all tables, or over the named ones. `called` gives some another name.

        A view holds the rows of the bucket where its table is cut. It is empty where the table has no files.
        """
        for name in (*names, *called) if names else self.tables:
            where = self.bucket.where if self.bucket and name in self.cut else "true"
            view_table(sql, called.get(name, name), self.tables[name], self.columns.get(name), where)


def identity_of(value: Any) -> Any:
    """Return inputs as plain JSON values: content and settings, never a place.

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
        return {str(key): identity_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [identity_of(inner) for inner in value]
    raise TypeError(f"{type(value).__name__} cannot be part of a step's inputs: {value!r}")


def value_of(inputs: Any, name: str) -> Any:
    """Return the field of that name of a stage's inputs, or of a dataclass among them.

    Raises: LookupError when there is none.
    """
    if hasattr(inputs, name):
        return getattr(inputs, name)
    for field_ in dataclasses.fields(inputs):
        if dataclasses.is_dataclass(value := getattr(inputs, field_.name)) and hasattr(value, name):
            return getattr(value, name)
    raise LookupError(f"{type(inputs).__name__} holds no {name}")


def within(value: Any, kind: type[Kind]) -> Iterator[Kind]:
    """Every value of a kind in the inputs of a stage or a part."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Mapping):
        yield from within(list(value.values()), kind)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from within(inner, kind)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from within(getattr(value, field.name), kind)
