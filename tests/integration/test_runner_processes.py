"""The runner on processes of this machine: lost workers, a driver that dies, what is in flight, what workers say."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from process_tree import below, is_running
from running import (
    NUM_WORKERS,
    ByValue,
    SharedProcesses,
    jobs_of,
    one_by_one,
    run,
    square_work,
    stage_of,
    tables_of,
    traced,
    tries,
)
from waiting import be_slow, wait_until

from manifests.contract.records import Funnel
from manifests.errors import IntegrityError, PartError
from pipeline.engine.executing import InlineExecutor
from pipeline.engine.on_processes import ProcessExecutor
from pipeline.engine.work import Execution, PartResult

Inputs = dict[str, Any]


def test_a_worker_that_dies_is_replaced(tmp_path: Path, trace: Path, process_executor: ProcessExecutor) -> None:
    def behave(inputs: Inputs, before: int) -> None:
        if inputs["place"] == 1 and before == 0:
            os.kill(os.getpid(), 9)

    report = run(tmp_path / "w", SharedProcesses(process_executor), stage_of(traced(behave), trace=str(trace)))
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 1: 2}
    run(tmp_path / "inline", InlineExecutor(), stage_of(square_work()))
    assert tables_of(tmp_path / "w") == tables_of(tmp_path / "inline")


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("says", r"a worker was lost \(exit code 3: the library gave up\)"),
        ("killed", r"a worker was lost \(ended by SIGKILL; the system does this when memory runs out: see run\."),
    ],
)
def test_a_worker_that_always_dies_fails_its_part_and_tells_how(
    tmp_path: Path,
    trace: Path,
    process_executor: ProcessExecutor,
    caplog: pytest.LogCaptureFixture,
    way: str,
    told: str,
) -> None:
    def behave(inputs: Inputs, before: int) -> None:
        if inputs["place"] == 0:
            if way == "killed":
                os.kill(os.getpid(), 9)
            os.write(2, b"it began well\nthe library gave up\n")
            os._exit(3)

    stage = stage_of(traced(behave), 3, trace=str(trace))
    with (
        caplog.at_level(logging.WARNING, "plantmix.runner"),
        pytest.raises(PartError, match=rf"1 of 3 parts failed.*{told}"),
    ):
        run(tmp_path / "w", SharedProcesses(process_executor), stage, max_attempts=2)
    assert tries(trace) == {0: 2, 1: 1, 2: 1}
    assert "try 1 of 2" in caplog.text


@pytest.mark.slow
def test_a_worker_that_dies_after_its_last_result_costs_nothing(
    tmp_path: Path, trace: Path, process_executor: ProcessExecutor
) -> None:
    inner = traced()

    def work(inputs: Inputs, run: Execution[None]) -> Iterator[PartResult]:
        yield inner(inputs, run)
        os.kill(os.getpid(), 9)

    report = run(tmp_path / "w", SharedProcesses(process_executor), stage_of(work, 4, trace=str(trace)))
    assert report.stages["square"].funnel == Funnel(20, 10, {"odd": 10})
    assert tries(trace) == dict.fromkeys(range(4), 1)


def test_a_fault_after_the_result_of_a_part_is_not_the_next_parts(process_executor: ProcessExecutor) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> Iterator[PartResult]:
        yield PartResult((), None, {"number": inputs["number"]})
        raise ValueError("too late to matter")

    done = list(one_by_one(process_executor.run(ByValue(work), jobs_of([{"number": number} for number in range(6)]))))
    assert [each.error for each in done] == [None] * 6
    assert {each.job.key: each.result.notes["number"] for each in done if each.result} == {
        str(number): number for number in range(6)
    }


def test_each_worker_has_one_part_at_a_time_and_all_have_one(tmp_path: Path) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        began = time.time()
        (tmp_path / str(os.getpid())).touch()
        wait_until(lambda: len(list(tmp_path.iterdir())) >= 3)  # all three are at work
        be_slow(0.1)
        return PartResult((), None, {"span": (began, time.time()), "pid": os.getpid()})

    executor = ProcessExecutor(3)
    try:
        done = [each.result for each in one_by_one(executor.run(ByValue(work), jobs_of([{}] * 12)))]
    finally:
        executor.close()
    spans = [each.notes["span"] for each in done if each]
    assert len({each.notes["pid"] for each in done if each}) == 3
    assert max(sum(began <= start < ended for began, ended in spans) for start, _ in spans) == 3


@pytest.mark.parametrize(("num_parts", "num_started"), [(1, 2), (2, 4), (5, 4)])
@pytest.mark.slow
def test_as_many_workers_again_get_ready_beside_those_at_work(num_parts: int, num_started: int) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        return PartResult((), None, {})

    def workers() -> set[int]:
        return {pid for pid, command in below(os.getpid()).items() if "process_worker" in command}

    before = workers()
    executor = ProcessExecutor(4)
    try:
        done = list(one_by_one(executor.run(ByValue(work), jobs_of([{}] * num_parts))))
        assert [each.error for each in done] == [None] * num_parts
        assert len(workers() - before) == num_started
    finally:
        executor.close()
    assert workers() <= before


@pytest.mark.parametrize(("num_parts", "memory_gb"), [(1, 6.0), (2, 2.0)])
def test_a_part_that_runs_alone_may_take_the_memory_of_all_workers(num_parts: int, memory_gb: float) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        return PartResult((), None, {"memory_gb": run.memory_gb})

    jobs = [replace(job, execution=replace(job.execution, memory_gb=2.0)) for job in jobs_of([{}] * num_parts)]
    executor = ProcessExecutor(3)
    try:
        done = list(one_by_one(executor.run(ByValue(work), jobs)))
    finally:
        executor.close()
    assert [each.result.notes["memory_gb"] for each in done if each.result] == [memory_gb] * num_parts


def test_what_each_needs_a_gpu_is_done_by_one_worker(process_executor: ProcessExecutor) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        return PartResult((), None, {"pid": os.getpid()})

    def pids(gpus: float | None) -> set[int]:
        done = one_by_one(process_executor.run(ByValue(work), jobs_of([{}] * 6), gpus))
        return {each.result.notes["pid"] for each in done if each.result}

    assert len(pids(1.0)) == 1


def test_a_worker_that_has_worked_for_long_does_no_further_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        be_slow(inputs["seconds"])
        return PartResult((), None, {"pid": os.getpid()})

    def pids(seconds: float, num: int) -> Iterator[int]:
        for each in one_by_one(executor.run(ByValue(work), jobs_of([{"seconds": seconds}] * num), gpus=1.0)):
            assert each.result
            yield each.result.notes["pid"]

    executor = ProcessExecutor(1)
    try:
        (young,) = pids(0.0, 1)
        step = pids(0.2, 4)
        assert next(step) == young
        monkeypatch.setattr("pipeline.engine.on_processes._OLD_SECONDS", 0.1)  # it is old from here on
        assert list(step) == [young] * 3  # the step that makes it old, it does to the end
        (after,) = pids(0.0, 1)
        assert after != young
        assert not is_running(young)
    finally:
        executor.close()


def test_the_pieces_of_a_part_come_while_it_works(process_executor: ProcessExecutor, tmp_path: Path) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> Iterator[PartResult]:
        for number in range(3):
            yield PartResult((), None, {"number": number}, is_piece=True)
            wait_until((tmp_path / str(number)).exists)  # goes on once the driver has this one

    seen = []
    for done in one_by_one(process_executor.run(ByValue(work), jobs_of([{}]))):
        assert done.result
        seen.append(done.result.notes["number"])
        (tmp_path / str(seen[-1])).touch()
    assert seen == [0, 1, 2]


def test_no_progress_of_queries_is_printed_in_a_worker(process_executor: ProcessExecutor) -> None:
    """As it was found: the last line of a worker that died was a bar of DuckDB."""

    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        import duckdb

        ((told,),) = duckdb.connect().sql("SELECT current_setting('enable_progress_bar')").fetchall()
        return PartResult((), None, {"told": told})

    (done,) = one_by_one(process_executor.run(ByValue(work), jobs_of([{}])))
    assert done.error is None
    assert done.result
    assert done.result.notes["told"] is False


def test_a_result_that_cannot_be_sent_fails_its_part_alone(process_executor: ProcessExecutor) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        return PartResult((), None, {"lock": threading.Lock()} if inputs["bad"] else {})

    jobs = jobs_of([{"bad": number == 2} for number in range(5)])
    done = {each.job.key: each for each in one_by_one(process_executor.run(ByValue(work), jobs))}
    assert isinstance(done["2"].error, PartError)
    assert "cannot pickle '_thread.lock' object; a part or its result could not be sent" in str(done["2"].error)
    assert all(done[key].result for key in ("0", "1", "3", "4"))


def test_a_run_that_is_left_amid_its_parts_leaves_none_of_them_to_the_next(
    tmp_path: Path, process_executor: ProcessExecutor
) -> None:
    def behave(inputs: Inputs) -> None:
        from manifests.errors import IntegrityError

        if inputs["place"] == 0:
            raise IntegrityError("a part is not what was stored")
        be_slow(0.5)

    shared = SharedProcesses(process_executor)
    with pytest.raises(IntegrityError, match="not what was stored"):
        run(tmp_path / "first", shared, stage_of(square_work(behave)))
    report = run(tmp_path / "second", shared, stage_of(square_work(), 4, name="other"))
    assert report.stages["other"].funnel == Funnel(20, 10, {"odd": 10})


def test_once_stopped_no_further_part_begins(process_executor: ProcessExecutor) -> None:
    ended, stop = 0, threading.Event()

    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        be_slow(0.1)
        return PartResult((), None, {})

    for done in one_by_one(process_executor.run(ByValue(work), jobs_of([{}] * 10), stopping=stop.is_set)):
        assert done.result
        ended += 1
        if ended == 2:
            stop.set()
    assert 2 <= ended < 2 + 2 * NUM_WORKERS, "what came with the second, and a part for each worker"


def test_the_error_of_a_shared_object_is_the_parts(process_executor: ProcessExecutor) -> None:
    class Strict:
        def exchange(self, reports: Any, wanted: Any, part: str = "") -> None:
            raise IntegrityError(f"{wanted} is unknown")

    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        run.shared.exchange(None, "example.org")
        return PartResult((), None, {})

    (done,) = one_by_one(process_executor.run(ByValue(work), jobs_of([{}], shared=process_executor.share(Strict))))
    assert str(done.error) == "example.org is unknown"


HANGING = """
import os
from pathlib import Path
from waiting import hang

def work(inputs, run):
    Path(inputs["folder"], str(os.getpid())).touch()
    hang()
"""
DRIVER = """
import signal
import hanging
import sys
from pipeline.engine.on_processes import ProcessExecutor
from pipeline.engine.executing import Job
from pipeline.engine.work import Execution, Part

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and what they start, ignore it
jobs = [Job(str(n), Part({"folder": sys.argv[1]}), Execution("", 1.0, str(n), None)) for n in range(4)]
list(ProcessExecutor(2).run(hanging.work, jobs))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_workers_end_at_once_with_their_driver(tmp_path: Path, number: int) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    (pids := tmp_path / "pids").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(pids)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        wait_until(lambda: len(list(pids.iterdir())) >= 2, driver)
        workers = {int(path.name) for path in pids.iterdir()}
        assert workers == below(driver.pid).keys()
        driver.send_signal(number)
        driver.wait(600)
    wait_until(lambda: not any(map(is_running, workers)))
