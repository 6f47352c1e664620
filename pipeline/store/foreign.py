"""Read Parquet files that others wrote, in pieces of bounded size.

Parquet says a repeated value once, in a dictionary, and a list of a million zeros in a few bytes. So a small file can
hold more than any memory. Columns whose values may be long are read with their dictionary, and each row is measured
before it is written out. Pyarrow unpacks a page in one go and shows nobody its header, so a page that is larger than
the footer says takes what it holds, 2 GiB at most. Gives up with ValueError that names row group and column.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.services.untrusted import MAX_PACKING, check_packing

MAX_CHUNK_BYTES = 256 << 20
"""Of a column in one row group, and of the texts of all rows, where they are packed more than MAX_PACKING times."""
MAX_LIST_VALUES = 16_000_000  # within the lists of a column, in one row group
FEW_ROWS = 8
_SIZES = (
    "SELECT row_group_id, row_group_num_rows, path_in_schema, num_values, total_compressed_size, "
    "total_uncompressed_size FROM parquet_metadata(?)"
)
_SHORT_BYTES = 24  # a number as text
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)


@dataclass(frozen=True)
class Rows:
    """Some rows of a file, and those that are too long: their number and how many bytes they have."""

    rows: pa.RecordBatch
    numbers: np.ndarray
    too_long: list[tuple[int, int]]
    num_bytes: int
    """Of the texts in `rows`, written out. A column of texts may still have its dictionary."""


def read_rows(stream: Any, columns: Sequence[str], batch_rows: int, batch_bytes: int, row_bytes: int) -> Iterator[Rows]:
    """Every row, in order; a row of more than `row_bytes` is only counted.

    A batch has at most `batch_rows` rows, and `batch_bytes` bytes or little more.

    Raises: ValueError for a file that unpacks to too much; pyarrow's own errors for a damaged one.
    """
    file = pa.PythonFile(stream, mode="r")  # one, so that two readers share its place
    plain = pq.ParquetFile(file)
    metadata = plain.metadata
    leaves = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    numbers = [n for n, leaf in enumerate(leaves) if any(f"{leaf.path}.".startswith(f"{name}.") for name in columns)]
    texts = [leaves[number].path for number in numbers if leaves[number].physical_type == "BYTE_ARRAY"]
    coded = pq.ParquetFile(file, metadata=metadata, read_dictionary=texts)
    for number in numbers:
        if leaves[number].physical_type == "FIXED_LEN_BYTE_ARRAY" and leaves[number].length * batch_rows > batch_bytes:
            raise ValueError(f"each value of '{leaves[number].path}' has {leaves[number].length:,} bytes")
    _check_sizes(file, columns)
    first = num_bytes = 0
    for group in range(metadata.num_row_groups):
        head = next(coded.iter_batches(1, row_groups=[group], columns=columns), None)
        longest = max((_longest(column) for column in head.columns), default=0) if head is not None else 0
        reader = coded if longest * batch_rows > batch_bytes else plain
        for batch in reader.iter_batches(batch_rows, row_groups=[group], columns=columns):
            for some in _measured(batch, first, batch_bytes, row_bytes):
                num_bytes += some.num_bytes + _SHORT_BYTES * some.rows.num_rows  # a row without a value is work too
                check_packing(file.size(), num_bytes, MAX_CHUNK_BYTES)
                yield some
            first += batch.num_rows


def read_long_rows(
    stream: Any, columns: Sequence[str], start: int, buffer_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch | Exception]]:
    """Rows that may hold pictures, from row `start` on, a few at a time, each time with the number of the first.

    Where a row group cannot be read on, the error stands for the rest of its rows. Memory: of each column a page,
    unpacked, and `buffer_bytes`; and FEW_ROWS rows.

    Raises: ValueError for a file that unpacks to too much; pyarrow's own errors for one without a footer.
    """
    file = pa.PythonFile(stream, mode="r")
    parquet = pq.ParquetFile(file, buffer_size=buffer_bytes, pre_buffer=False)  # else it reads a row group at once
    _check_sizes(file, columns)
    end = 0
    for group in range(parquet.metadata.num_row_groups):
        first, end = end, end + parquet.metadata.row_group(group).num_rows
        if end <= start:
            continue
        try:
            for batch in parquet.iter_batches(FEW_ROWS, row_groups=[group], columns=columns, use_threads=False):
                if first + batch.num_rows > start:
                    skipped = max(0, start - first)
                    yield first + skipped, batch.slice(skipped)
                first += batch.num_rows
            if first < end:
                raise pa.ArrowInvalid(f"row group {group} has {end - first:,} rows fewer than the footer says")
        except (pa.ArrowException, OSError) as error:
            yield max(first, start), error


def _check_sizes(file: Any, columns: Sequence[str]) -> None:
    """Compare what columns unpack to with the limits, by the footer alone.

    DuckDB reads it: pyarrow 26 ends the process at the column of a footer whose parts contradict each other.
    """
    position = file.seek(max(0, file.size() - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(4, position - length))
    descriptor = os.memfd_create("footer")
    try:
        os.write(descriptor, b"PAR1" + file.read())
        with duckdb.connect() as sql:
            rows = sql.execute(_SIZES, [f"/proc/self/fd/{descriptor}"]).fetchall()
    except duckdb.Error as error:
        raise ValueError(f"its footer cannot be read: {str(error).splitlines()[0]}") from None
    finally:
        os.close(descriptor)
    for group, num_rows, path, num_values, packed, unpacked in rows:
        if not any(f"{path}, ".startswith(f"{name}, ") for name in columns):
            continue
        if unpacked > MAX_CHUNK_BYTES and unpacked > MAX_PACKING * packed:
            raise ValueError(
                f"row group {group}: '{path}' unpacks {packed:,} bytes to {unpacked:,}; "
                "write the file again in smaller row groups"
            )
        if num_values > max(num_rows, MAX_LIST_VALUES):
            raise ValueError(f"row group {group}: '{path}' has {num_values:,} values")


def _measured(batch: pa.RecordBatch, first: int, batch_bytes: int, row_bytes: int) -> Iterator[Rows]:
    """Yield the rows of a batch in pieces; the rows that are too long come with the first of them."""
    lengths = sum((_lengths(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    numbers = np.arange(first, first + batch.num_rows)
    short = lengths <= row_bytes
    too_long = list(zip(numbers[~short].tolist(), lengths[~short].tolist(), strict=True))
    if too_long:
        batch, numbers, lengths = batch.filter(pa.array(short)), numbers[short], lengths[short]
    _, starts = np.unique(np.cumsum(lengths) // batch_bytes, return_index=True)
    ends = [*starts[1:].tolist(), batch.num_rows]
    for start, end in zip(starts.tolist() or [0], ends, strict=True):
        yield Rows(batch.slice(start, end - start), numbers[start:end], too_long, int(lengths[start:end].sum()))
        too_long = []


def _longest(array: pa.Array) -> int:
    """Length of the longest value that the dictionaries of an array hold, in use or not."""
    if pa.types.is_dictionary(array.type):
        return int(_lengths(array.dictionary).max(initial=0))
    return max((_longest(child) for child in _children(array)), default=0)


def _lengths(array: pa.Array) -> np.ndarray:
    """Return how many bytes each value has as text, or a little more."""
    return np.asarray(_sizes(array), np.int64)


def _sizes(array: pa.Array) -> Any:
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = np.append(_lengths(array.dictionary), 0)  # the last is for null
        return lengths[pc.fill_null(array.indices, len(lengths) - 1).to_numpy()]
    children = _children(array)
    if pa.types.is_struct(kind):
        return sum((_lengths(child) + 4 for child in children), np.zeros(len(array), np.int64))
    if children:  # a list or a map
        ends = np.append(0, np.cumsum(sum(_lengths(child) + 4 for child in children)))[array.offsets.to_numpy()]
        return ends[1:] - ends[:-1]
    if any(is_view(kind) for is_view in (pa.types.is_string_view, pa.types.is_binary_view)):
        array = array.cast(pa.large_binary())
    elif not any(is_text(kind) for is_text in _TEXTS):
        return np.full(len(array), _SHORT_BYTES)
    return pc.fill_null(pc.binary_length(array), 0).to_numpy()


def _children(array: pa.Array) -> list[pa.Array]:
    kind = array.type
    if pa.types.is_struct(kind):
        return [array.field(number) for number in range(kind.num_fields)]
    if pa.types.is_map(kind):
        return [array.keys, array.items]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [array.values]
    return []


def columns_of_bytes(stream: Any) -> list[str]:
    """Columns that hold bytes and no text, alone or as `datasets` keeps pictures, by their first values.

    None of a file that cannot be read, which who reads its rows says.
    """
    with suppress(pa.ArrowException, OSError):
        file = pq.ParquetFile(stream)
        binary = [field.name for field in file.schema_arrow if _is_binary(field.type)]
        first = next(file.iter_batches(8, columns=binary), None) if binary else None
        return [name for name in binary if first is None or not _is_text(first[name])]
    return []


def _is_binary(kind: pa.DataType) -> bool:
    is_flat = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    return is_flat or (pa.types.is_struct(kind) and any(_is_binary(field.type) for field in kind))


def _is_text(column: pa.Array) -> bool:
    try:
        column.cast(pa.string())
    except pa.ArrowException:
        return False
    return True
