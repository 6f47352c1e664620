"""Parquet of strangers: a small file that means gigabytes takes little memory, and every value comes back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store import foreign
from pipeline.store.foreign import Rows, read_rows

MB = 1 << 20


def read(path: Path, columns: list[str], batch_rows: int = 20_000, batch_bytes: int = 64 * MB) -> list[Rows]:
    with path.open("rb") as stream:
        return list(read_rows(stream, columns, batch_rows, batch_bytes, 4 * MB))


def repeated(value: str, num: int) -> pa.Array:
    """A column that says one value once, for every row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * num, pa.int32()), pa.array([value]))


MEASURE = """
import sys
from pathlib import Path
import pyarrow as pa
from pipeline.store import foreign
from pipeline.store.foreign import read_rows

foreign.MAX_CHUNK_BYTES = 4 << 30  # so that nothing but the reading itself bounds the memory

def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) // 1024

before = resident("VmRSS")
num = long = 0
with open(sys.argv[1], "rb") as stream:
    for some in read_rows(stream, ["caption"], 20_000, 64 << 20, 4 << 20):
        num += some.rows.num_rows
        long += len(some.too_long)
        some.rows.column("caption").cast(pa.string())
print(num, long, resident("VmHWM") - before)
"""


@pytest.mark.parametrize(("value_bytes", "num_rows", "kept"), [(2 * MB, 700, 700), (8 * MB, 300, 0)])
def test_a_repeated_value_takes_the_memory_of_a_batch(
    tmp_path: Path, value_bytes: int, num_rows: int, kept: int
) -> None:
    path = tmp_path / "a.parquet"
    column = repeated("x" * value_bytes, num_rows)
    pq.write_table(pa.table({"caption": column}), path, dictionary_pagesize_limit=64 * MB, compression="zstd")
    assert path.stat().st_size < 100_000
    done = subprocess.run([sys.executable, "-c", MEASURE, path], capture_output=True, text=True, check=True)
    num, num_long, peak_mb = map(int, done.stdout.split())
    assert (num, num_long) == (kept, num_rows - kept)
    assert peak_mb < 256, f"the rows hold {value_bytes * num_rows / MB:,.0f} MiB"


def test_values_within_lists_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    kind = pa.list_(pa.struct([("t", pa.string())]))
    values = [[], [{"t": "short"}], [{"t": "x" * (3 * MB)}, {"t": "x" * (3 * MB)}], None]
    pq.write_table(pa.table({"c": pa.array(values, kind)}), path, dictionary_pagesize_limit=64 * MB)
    (found,) = read(path, ["c"])
    assert found.rows.column("c").to_pylist() == [[], [{"t": "short"}], None]
    assert found.numbers.tolist() == [0, 1, 3]
    assert [number for number, _ in found.too_long] == [2]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["x" * (3 * MB)], "row group 0: 'c' unpacks .* bytes to .*; write the file again in smaller row groups"),
        ([[0] * 5000], "row group 0: 'c, list, element' has 5,000 values"),
        (pa.array([b"x" * 5000], pa.binary(5000)), "each value of 'c' has 5,000 bytes"),
    ],
)
def test_what_unpacks_to_too_much_is_refused(
    tmp_path: Path, column: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "MAX_CHUNK_BYTES", MB)
    monkeypatch.setattr(foreign, "MAX_LIST_VALUES", 1000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"c": column, "other": ["x"]}), path, compression="zstd")
    with pytest.raises(ValueError, match=message):
        read(path, ["c"])
    assert [found.rows.num_rows for found in read(path, ["other"])] == [1], "a column that is not mapped costs nothing"


def test_a_footer_that_contradicts_itself_is_named() -> None:
    """As the fuzzer found it: pyarrow 26 ends the process when it is asked for a column of this footer."""
    with pytest.raises(ValueError, match="its footer cannot be read"):
        read(Path(__file__).with_name("contradicting_footer.parquet"), ["url", "caption"])


TEXTS = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["a" * 300, "b" * 301]))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(TEXTS, max_size=30),
    group=st.integers(1, 12),
    batch_rows=st.integers(1, 9),
    batch_bytes=st.sampled_from([200, 700, 10**6]),
    store_schema=st.booleans(),
)
def test_every_row_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str | None],
    group: int,
    batch_rows: int,
    batch_bytes: int,
    store_schema: bool,
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.parquet"
    columns = {
        "text": pa.array(texts, pa.string()),
        "large": pa.array(texts, pa.large_string()),
        "view": pa.array(texts, pa.string_view()),
        "coded": pa.array(texts, pa.string()).dictionary_encode(),
        "list": pa.array([None if text is None else [text, None, "z"] for text in texts], pa.list_(pa.string())),
        "map": pa.array([[] if text is None else [("k", text)] for text in texts], pa.map_(pa.string(), pa.string())),
        "number": pa.array(range(len(texts)), pa.int16()),
        "nothing": pa.nulls(len(texts)),
    }
    written = pa.table(columns)
    pq.write_table(written, path, row_group_size=group, store_schema=store_schema)
    found = read(path, list(columns), batch_rows, batch_bytes)
    assert [row for some in found for row in some.rows.to_pylist()] == written.to_pylist()
    assert [number for some in found for number in some.numbers.tolist()] == list(range(len(texts)))
    assert all(some.rows.num_rows <= batch_rows and not some.too_long for some in found)
