"""The runner when parts fail: errors are policies."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import (
    SharedRay,
    leftovers,
    run,
    square_work,
    stage_of,
    tables_of,
    traced,
    tries,
)

from manifests.contract.reader import open_reader, read_status
from manifests.contract.records import Funnel
from manifests.errors import ConfigError, IntegrityError, PartError, RetryableError, RunError
from manifests.stores import storage
from pipeline.engine.executing import InlineExecutor
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.work import Execution, PartResult

# ---- errors are policies


def test_a_stop_amid_a_query_is_a_stop(tmp_path: Path) -> None:
    """What DuckDB raises where a KeyboardInterrupt falls into a query. When it looks for one is not known."""

    def behave(inputs: dict[str, Any]) -> None:
        if inputs["place"] == 2:
            raise RuntimeError("Query interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, InlineExecutor(), stage_of(square_work(behave)))
    assert len(tables_of(tmp_path)) == 2, "what was committed stays"


def test_a_passing_fault_is_tried_again(tmp_path: Path, trace: Path, executor: Any) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:

        if inputs["place"] == 2 and before < 2:
            raise RetryableError("the network had a moment")

    report = run(tmp_path / "w", executor, stage_of(traced(behave), trace=str(trace)))
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 2: 3}
    assert report.stages["square"].funnel.num_in == 30
    with open_reader(str(tmp_path / "w")) as connection:
        rows = connection.execute("SELECT max(attempts), sum(attempts) FROM parts").fetchall()
    assert rows == [(3, 8)]


def test_a_fault_that_stays_fails_its_part_and_keeps_the_others(tmp_path: Path, trace: Path, executor: Any) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:
        from manifests.errors import PartError

        if inputs["place"] == 1:
            raise RetryableError("the network never comes back")
        if inputs["place"] == 4:
            raise PartError("this one cannot be done")

    stage = stage_of(traced(behave), trace=str(trace))
    with pytest.raises(PartError, match=r"square: 2 of 6 parts failed, the others are kept; first: .*Mend the cause"):
        run(tmp_path / "w", executor, stage)
    assert tries(trace) == {0: 1, 1: 3, 2: 1, 3: 1, 4: 1, 5: 1}
    assert len(tables_of(tmp_path / "w")) == 4
    assert read_status(str(tmp_path / "w"))["stages"]["square"]["sealed"] is False
    report = run(tmp_path / "w", executor, stage_of(traced(), trace=str(trace)))  # mended
    assert tries(trace) == {0: 1, 1: 4, 2: 1, 3: 1, 4: 2, 5: 1}
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})


def test_a_defect_in_one_part_is_told_and_costs_only_that_part(tmp_path: Path, executor: Any) -> None:
    def behave(inputs: dict[str, Any]) -> None:
        if inputs["place"] == 3:
            {}["no such key"]

    with pytest.raises(
        PartError, match=r"1 of 6 parts failed.*KeyError: 'no such key' \(test_runner_errors.py, line \d+\)"
    ):
        run(tmp_path, executor, stage_of(square_work(behave)))
    assert len(tables_of(tmp_path)) == 5


def test_a_full_disk_stops_the_build_and_says_what_to_do(tmp_path: Path, trace: Path) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:
        if inputs["place"] == 1:
            raise OSError(28, "No space left on device", "pool/x.tar")

    with pytest.raises(RunError, match=r"the disk is full \([\d,]+ MB free\): pool/x.tar. Make room, or move"):
        run(tmp_path / "w", InlineExecutor(), stage_of(traced(behave), trace=str(trace)))
    assert tries(trace) == {0: 1, 1: 1}, "another try would ask all hosts again"
    assert len(tables_of(tmp_path / "w")) == 1


def test_a_full_disk_at_the_status_file_loses_figures_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish = storage.publish_bytes

    def full(path: str, content: bytes) -> Any:
        if path.endswith("status.json"):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return publish(path, content)

    monkeypatch.setattr(storage, "publish_bytes", full)
    assert run(tmp_path, InlineExecutor(), stage_of(square_work())).redone == ("square",)
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ["No space left on device" in record.message for record in said] == [True]


def test_another_fault_of_a_disk_passes(tmp_path: Path, trace: Path) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:
        if inputs["place"] == 0:
            raise OSError(5, "Input/output error")

    with pytest.raises(PartError, match=r"OSError: \[Errno 5\] Input/output error"):
        run(tmp_path / "w", InlineExecutor(), stage_of(traced(behave), trace=str(trace)))
    assert tries(trace)[0] == 3


@pytest.mark.parametrize("kind", [IntegrityError, ConfigError, RunError])
def test_some_errors_stop_at_once(tmp_path: Path, trace: Path, kind: type[Exception]) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:
        if inputs["place"] == 2:
            raise kind("pool/a.tar is not what was stored")

    with pytest.raises(kind, match=r"pool/a\.tar"):
        run(tmp_path / "w", InlineExecutor(), stage_of(traced(behave), trace=str(trace)))
    assert tries(trace) == {0: 1, 1: 1, 2: 1}  # none after it
    assert len(tables_of(tmp_path / "w")) == 2


@pytest.mark.slow
def test_an_integrity_error_in_a_ray_worker_stops_the_build(tmp_path: Path, ray_executor: RayExecutor) -> None:
    def behave(inputs: dict[str, Any]) -> None:
        from manifests.errors import IntegrityError

        raise IntegrityError(f"part {inputs['place']} is not what was stored")

    with pytest.raises(IntegrityError, match=r"part \d+ is not what was stored"):
        run(tmp_path, SharedRay(ray_executor), stage_of(square_work(behave), 20))
    assert not (tmp_path / "tables").exists() or tables_of(tmp_path) == {}


def test_counts_that_do_not_add_up_are_never_committed(tmp_path: Path) -> None:
    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((), Funnel(5, 3, {"odd": 1}))

    with pytest.raises(IntegrityError, match="square work: 5 rows came in, but 3 kept \\+ 1 dropped do not add up"):
        run(tmp_path, InlineExecutor(), stage_of(work))
    with open_reader(str(tmp_path)) as connection:
        assert connection.execute("SELECT count(*) FROM parts").fetchall() == [(0,)]


def test_a_stop_in_the_middle_keeps_what_is_committed(tmp_path: Path, trace: Path) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:
        if inputs["place"] == 3 and before == 0:
            raise KeyboardInterrupt

    stage = stage_of(traced(behave), trace=str(trace))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "w", InlineExecutor(), stage)
    assert len(tables_of(tmp_path / "w")) == 3
    assert leftovers(tmp_path / "w") == []
    run(tmp_path / "w", InlineExecutor(), stage)
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 3: 2}


def test_what_a_killed_build_left_is_cleared_before_work(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "spill").write_text("x")
    (tmp_path / "tables" / ".square-000.parquet.tmp-0123456789ab").write_text("half")
    run(tmp_path, InlineExecutor(), stage_of(square_work()))
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_ray_that_does_not_start_is_told() -> None:
    code = "from pipeline.engine.on_ray import RayExecutor; RayExecutor(1)"
    environment = os.environ | {"RAY_TMPDIR": "/proc/nothing"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "RunError: Ray did not start: " in done.stderr
    assert "run the same command again, or set `run: {executor: processes}`" in done.stderr
