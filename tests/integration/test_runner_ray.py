"""The runner on Ray: lost workers, bounds on what is in flight, one object for all."""

from __future__ import annotations

import ast
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import (
    NUM_WORKERS,
    SharedRay,
    by_value,
    config_of,
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

from manifests.contract.catalog import Catalog
from manifests.contract.catalog_file import JOURNAL_FILE
from manifests.contract.records import Funnel
from manifests.errors import PartError
from pipeline.engine.executing import InlineExecutor, Job
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.runner import Runner
from pipeline.engine.work import Execution, PartResult

# ---- Ray


def test_a_worker_that_dies_is_replaced(tmp_path: Path, trace: Path, ray_executor: RayExecutor) -> None:
    kill = int(signal.SIGKILL)

    def behave(inputs: dict[str, Any], before: int) -> None:
        if inputs["place"] == 1 and before == 0:
            os.kill(os.getpid(), kill)

    report = run(tmp_path / "w", SharedRay(ray_executor), stage_of(traced(behave), trace=str(trace)))
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})
    assert tries(trace)[1] == 2
    run(tmp_path / "inline", InlineExecutor(), stage_of(square_work()))
    assert tables_of(tmp_path / "w") == tables_of(tmp_path / "inline")


@pytest.mark.slow
def test_a_worker_that_always_dies_fails_its_part(
    tmp_path: Path, trace: Path, ray_executor: RayExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(inputs: dict[str, Any], before: int) -> None:

        if inputs["place"] == 0:
            os._exit(1)

    with (
        caplog.at_level(logging.WARNING, "plantmix.runner"),
        pytest.raises(PartError, match=r"1 of 3 parts failed.*a worker was lost \(WorkerCrashedError"),
    ):
        run(tmp_path / "w", SharedRay(ray_executor), stage_of(traced(behave), 3, trace=str(trace)), max_attempts=2)
    assert tries(trace) == {0: 2, 1: 1, 2: 1}
    assert "try 1 of 2" in caplog.text


@pytest.mark.slow
def test_never_more_than_two_parts_a_worker_are_in_flight(tmp_path: Path, ray_executor: RayExecutor) -> None:
    sent: list[str] = []
    most = 0

    class Counting:
        """Ray's remote function, and a note of what was handed in."""

        def __init__(self, remote: Any) -> None:
            self._remote = remote

        def remote(self, work: Any, job: Job, folder: str) -> Any:
            sent.append(job.key)
            return self._remote.remote(work, job, folder)

    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((), None, {"place": inputs})

    executor, original = ray_executor, ray_executor._remote
    executor._remote = Counting(original)
    try:
        ended = 0
        for done in one_by_one(executor.run(work, jobs_of([{}] * 30))):
            assert done.error is None
            most = max(most, len(sent) - ended)
            ended += 1
    finally:
        executor._remote = original
    assert ended == 30
    assert sorted(sent, key=int) == [str(number) for number in range(30)]
    assert most == 2 * NUM_WORKERS


ONE_WORKER_OF_A_CLUSTER = """
import sys, time
from pipeline.config import RaySettings
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.executing import Job
from pipeline.engine.work import Execution, Part, PartResult

def work(inputs, run):
    started = time.time()
    time.sleep(0.2)
    return PartResult((), None, {"span": (started, time.time())})

jobs = [Job(str(n), Part({}), Execution("", 1.0, str(n), None)) for n in range(6)]
executor = RayExecutor(1, RaySettings(address=sys.argv[1]))
spans = [done.result.notes["span"] for came in executor.run(work, jobs) for done in came]
executor.close()
print(spans)
"""


@pytest.mark.slow
def test_a_cluster_with_more_cpus_than_workers_runs_no_more_parts_than_workers(ray_executor: RayExecutor) -> None:
    address = ray_executor._ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", ONE_WORKER_OF_A_CLUSTER, address],
        env=os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},  # a Ray on the loopback is joined there
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    spans = sorted(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert len(spans) == 6
    assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(spans))


def test_workers_share_one_object(ray_executor: RayExecutor, executor: Any) -> None:
    class Counter:
        def __init__(self) -> None:
            self.num = 0

        def exchange(self, reports: int, wanted: Any, part: str = "") -> int:
            self.num += reports
            return self.num

    shared = executor.share(Counter)

    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((), None, {"seen": run.shared.exchange(1, None)})

    seen = [done.result.notes["seen"] for done in one_by_one(executor.run(work, jobs_of([{}] * 8, shared=shared)))]
    assert sorted(seen) == list(range(1, 9))


@pytest.mark.slow
def test_a_part_that_waits_for_the_shared_object_keeps_its_cpu(ray_executor: RayExecutor) -> None:
    """As it was found: three parts at a time on two CPUs, and workers that came and went."""

    slowly = by_value(be_slow)

    class Slow:
        def exchange(self, reports: Any, wanted: Any, part: str = "") -> None:
            slowly(0.3)

    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        began = time.time()
        for _ in range(4):
            run.shared.exchange(None, None)
        return PartResult((), None, {"span": (began, time.time())})

    jobs = jobs_of([{}] * 8, shared=ray_executor.share(Slow))
    spans = [done.result.notes["span"] for done in one_by_one(ray_executor.run(work, jobs))]
    at_a_time = [sum(began <= start < ended for began, ended in spans) for start, _ in spans]
    assert max(at_a_time) == NUM_WORKERS


@pytest.mark.slow
def test_a_worker_that_dies_after_its_last_result_costs_nothing(
    tmp_path: Path, trace: Path, ray_executor: RayExecutor
) -> None:
    """As it was found: the part was done again and committed twice, which ended in a traceback of the database."""
    inner, kill, journal = traced(), int(signal.SIGKILL), tmp_path / "w" / JOURNAL_FILE  # of what is committed
    until = by_value(wait_until)

    def work(inputs: dict[str, Any], run: Execution[None]) -> Iterator[PartResult]:
        yield inner(inputs, run)
        until(lambda: inputs["file"] in journal.read_text(errors="replace"))
        os.kill(os.getpid(), kill)

    report = run(tmp_path / "w", SharedRay(ray_executor), stage_of(work, 2, trace=str(trace)))
    assert report.stages["square"].funnel == Funnel(10, 5, {"odd": 5})
    assert tries(trace) == {0: 1, 1: 1}


@pytest.mark.slow
def test_a_shared_object_that_dies_is_replaced_and_told(ray_executor: RayExecutor) -> None:
    class Memory:
        def __init__(self) -> None:
            self.started_over = False

        def start_over(self) -> None:
            self.started_over = True

        def exchange(self, reports: Any, wanted: Any, part: str = "") -> tuple[int, bool]:
            import os

            return os.getpid(), self.started_over

    shared = ray_executor.share(Memory)
    pid, started_over = shared.exchange(None, None)
    assert not started_over
    os.kill(pid, signal.SIGKILL)
    other, started_over = shared.exchange(None, None)
    assert other != pid
    assert started_over


def test_ray_is_not_started_when_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(square_work())
    run(tmp_path, InlineExecutor(), stage)

    def never(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipeline.engine.executors.RayExecutor", never)
    with Catalog.open(str(tmp_path)) as catalog:
        assert Runner(config_of(tmp_path, "ray"), [stage], catalog).run().redone == ()
