"""Results that are there together are committed together, and each for itself all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from running import (
    Inputs,
    jobs_of,
    leftovers,
    run,
    square_work,
    stage_of,
    tables_of,
    traced,
    tries,
)

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from manifests.contract.records import Funnel
from manifests.errors import IntegrityError, PartError, RetryableError
from pipeline.engine.executing import Asked, Done, InlineExecutor, Job, never
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.work import Execution, PartResult


class Together(InlineExecutor):
    """All results of a run at once, as many workers give them to a driver that was busy."""

    def run(
        self, work: Any, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Sequence[Done]]:
        yield [done for came in super().run(work, jobs, gpus, stopping) for done in came]


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each commit was about."""
    commit, nums = Catalog.commit_parts, []

    def counted(self: Catalog, version: str, parts: Any) -> None:
        commit(self, version, parts)
        nums.append(len(parts))

    monkeypatch.setattr(Catalog, "commit_parts", counted)
    return nums


def pieces_of(work: Any) -> Any:
    """The same work, each part in two pieces."""

    def do(inputs: Inputs, run: Execution[None]) -> Iterator[PartResult]:
        for name, numbers in (("a", inputs["numbers"][:2]), ("b", inputs["numbers"][2:])):
            made = work({**inputs, "numbers": numbers, "file": f"{inputs['file']}-{name}"}, run)
            yield PartResult(made.files, made.funnel, made.notes, is_piece=True)

    return do


@pytest.mark.parametrize("in_pieces", [False, True])
def test_what_comes_together_is_committed_at_a_time_and_the_same(
    tmp_path: Path, commits: list[int], in_pieces: bool
) -> None:
    work = pieces_of(square_work()) if in_pieces else square_work()
    found = {}
    for name, executor in (("alone", InlineExecutor()), ("together", Together())):
        commits.clear()
        report = run(tmp_path / name, executor, stage_of(work))
        num = 12 if in_pieces else 6
        assert commits == ([1] * num if name == "alone" else [num])
        with Catalog.open(str(tmp_path / name)) as catalog:
            parts = catalog.parts_of(report.stages["square"].fingerprint)
        found[name] = report.stages, [(part.key, part.files, part.funnel) for part in parts]
    assert found["alone"] == found["together"]
    assert tables_of(tmp_path / "alone") == tables_of(tmp_path / "together")


def test_the_faults_among_them_cost_the_others_nothing(tmp_path: Path, trace: Path, commits: list[int]) -> None:
    def behave(inputs: Inputs, before: int) -> None:
        if inputs["place"] in (0, 3) and before < 1:
            raise RetryableError("the network had a moment")
        if inputs["place"] == 4:
            raise PartError("this one cannot be done")

    with pytest.raises(PartError, match=r"1 of 6 parts failed, the others are kept; first: this one cannot be done"):
        run(tmp_path / "w", Together(), stage_of(traced(behave), trace=str(trace)))
    assert [num for num in commits if num] == [3, 2]
    assert tries(trace) == {0: 2, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
    with open_reader(str(tmp_path / "w")) as connection:
        attempts = connection.execute("SELECT attempts, count(*) FROM parts GROUP BY 1 ORDER BY 1").fetchall()
    assert attempts == [(1, 3), (2, 2)]


def test_what_stops_the_build_comes_after_the_results_beside_it(tmp_path: Path, trace: Path) -> None:
    def behave(inputs: Inputs, before: int) -> None:
        if inputs["place"] == 0 and before == 0:
            raise IntegrityError("pool/a.tar is not what was stored")

    stage = stage_of(traced(behave), trace=str(trace))
    with pytest.raises(IntegrityError, match=r"pool/a\.tar"):
        run(tmp_path / "w", Together(), stage)
    assert len(tables_of(tmp_path / "w")) == 5
    assert leftovers(tmp_path / "w") == []
    assert run(tmp_path / "w", Together(), stage).stages["square"].funnel == Funnel(30, 15, {"odd": 15})
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 0: 2}


@pytest.mark.slow
def test_ray_hands_over_all_that_came_while_the_driver_was_busy(
    ray_executor: RayExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        import os

        if inputs["dies"]:
            os._exit(1)
        return PartResult((), None, {})

    wait, failure, batches = ray_executor._wait, ray_executor._failure, []

    def late(streams: list[Any]) -> list[Any]:
        if len(streams) == 10:
            ray_executor._ray.wait(streams, num_returns=10)
        return wait(streams)

    def slow(job: Job, error: Exception) -> Any:
        assert batches, "a lost worker is asked about after the results beside it are handed over"
        return failure(job, error)

    monkeypatch.setattr(ray_executor, "_wait", late)
    monkeypatch.setattr(ray_executor, "_failure", slow)
    monkeypatch.setattr(ray_executor, "_most_in_flight", 10)
    monkeypatch.setattr(ray_executor, "_follow_cluster", lambda: None)
    for came in ray_executor.run(work, jobs_of([{"dies": number == 4} for number in range(10)])):
        results = sorted(done.job.key for done in came if done.error is None)
        batches.append(results)
    assert batches[0] == [str(number) for number in range(10) if number != 4]
    assert not any(batches[1:])
