"""Tables as inputs of a step: paths of files, and hashes of their content. A fingerprint sees only the hashes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.stores import storage


@dataclass(frozen=True)
class Files:
    """Files that a step reads.

    `paths` say where they lie now, `sha256` what bytes each holds. `content` is what a fingerprint sees: the same
    hashes, or one digest of the columns that the step reads. Two `Files` with equal content are the same input,
    wherever they lie.
    """

    paths: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()

    def identity(self) -> list[str]:
        """Return the value for a fingerprint."""
        return list(self.content)

    def exact(self) -> Files:
        """Return the same files; a fingerprint sees every byte of them."""
        return Files(self.paths, self.sha256, self.sha256)

    def digested(self, *digests: str) -> Files:
        """Return the same files; a fingerprint sees these digests of the columns that a step reads."""
        return Files(self.paths, digests, self.sha256)

    def __bool__(self) -> bool:
        return bool(self.paths)

    def __add__(self, other: Files) -> Files:
        return Files(self.paths + other.paths, self.content + other.content, self.sha256 + other.sha256)

    @property
    def path(self) -> str:
        """The path of the only file."""
        (path,) = self.paths
        return path


@dataclass(frozen=True)
class RowGroup:
    """One row group of a Parquet file: `number` is its position in the file, `content` a hash of its rows."""

    path: str
    number: int
    content: str

    def identity(self) -> str:
        """Return the value for a fingerprint."""
        return self.content

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Its rows; of some columns, or of all."""
        return open_parquet(self.path).read_row_group(self.number, columns)


@dataclass(frozen=True)
class Named:
    """A value of the configuration that may name a file: `content` is the file's sha256, or else the value itself."""

    value: Any
    content: Any

    def identity(self) -> Any:
        """Return the value for a fingerprint."""
        return self.content


def open_parquet(path: str) -> pq.ParquetFile:
    """Open a Parquet file. From a store, only the parts that are asked for are read."""
    if not storage.is_remote(path):
        return pq.ParquetFile(path)
    return pq.ParquetFile(storage.open_file(path, cache_type="none"), pre_buffer=True)


def files_of(pairs: Sequence[tuple[str, str]]) -> Files:
    """Files from pairs of a path and its sha256."""
    hashes = tuple(sha256 for _, sha256 in pairs)
    return Files(tuple(path for path, _ in pairs), hashes, hashes)
