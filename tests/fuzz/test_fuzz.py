"""Some thousand mutated inputs; `python -m fuzz.fuzzing` in tests/ runs more (benchmarks/results/robustness.md)."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import fuzzing

from manifests.contract.release import read_record
from manifests.errors import ConfigError, IntegrityError
from pipeline.fetching.answers import parse_retry_after
from pipeline.sources.reading import read_rows
from pipeline.sources.settings import SourceSettings

COSTLY = {"texts": 10, "csv": 60, "tsv": 60, "jsonl": 60, "json table": 60, "pictures": 60, "webdataset": 60,
          "table of a folder": 40, "dwca zip": 60}  # fmt: skip


@pytest.fixture(autouse=True)
def own_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGPROF)
    yield
    signal.signal(signal.SIGPROF, before)


@pytest.mark.slow
def test_no_parser_crashes_hangs_or_takes_all_memory(tmp_path: Path) -> None:
    found = {
        name: fuzzing.run_cases(name, parser, COSTLY.get(name, 200), seed=0)
        for name, parser in fuzzing.parsers(tmp_path).items()
    }
    assert {name: [what for what, _ in each.bad] for name, each in found.items() if each.bad} == {}
    assert sum(each.num_cases for each in found.values()) > 2500


@pytest.mark.slow
def test_a_slow_a_greedy_and_a_crashing_parser_are_found() -> None:
    """The fuzzer itself can find something."""

    def slow(content: bytes) -> None:
        end = time.process_time() + 2
        while time.process_time() < end:
            pass

    for parse, what in (
        (slow, "over 1.0 s"),
        (lambda content: b"x" * (400 << 20), "MiB"),
        (lambda content: 1 / 0, "Zero"),
    ):
        found = fuzzing.run_cases("x", fuzzing.Parser(parse, (b"seed",)), 1, seed=0)
        assert what in found.bad[0][0]


# ---- what it found


def test_a_retry_after_of_another_script_is_none() -> None:
    assert parse_retry_after("\u00b2") is None


def test_a_deeply_nested_record_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "release.json").write_bytes(b"[" * 100_000)
    with pytest.raises(IntegrityError, match="not valid JSON"):
        read_record(str(tmp_path))


@pytest.mark.parametrize("name", ["9" * 5000, "a\0b", "a/" * 3000])
def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text(f"file,caption\n{name},c\n")
    values = {"path": str(tmp_path), "table": "t.csv", "columns": {"file": "file", "caption": "caption"}}
    given = SourceSettings.model_validate({"name": "s", "domain": "d", "folder": values})
    (batch,) = read_rows(given, lambda: pytest.fail("no join is needed"))
    assert batch.lost["reason"].to_pylist() == ["missing_file"]


def test_a_long_name_in_the_table_of_an_evaluation_set_is_missing(tmp_path: Path) -> None:
    from training.evaluation.set_layouts import open_eval_set

    (tmp_path / "metadata.csv").write_text(f"filepath,class\n{'9' * 5000},rose\n")
    with pytest.raises(ConfigError, match="1 of its 1 pictures are not there"):
        open_eval_set(str(tmp_path), "test")
