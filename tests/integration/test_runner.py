"""The runner over small real stages: the same tables inline and with Ray, skips, retries, lost workers, bounds."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.catalog import Catalog, Funnel, StageRecord
from manifests.errors import ConfigError, IntegrityError, PartError, RetryableError, RunError
from manifests.reader import open_reader, read_status
from pipeline.config import BuildConfig
from pipeline.runner import Done, InlineExecutor, RayExecutor, Runner, check_order, check_writable, find_stage
from pipeline.work import BuildContext, Part, PartResult, Stage, Step, fingerprint, write_table

NUM_WORKERS = 2
SCHEMA = pa.schema([("number", pa.int64()), ("square", pa.int64())])

Behave = Callable[[dict[str, Any]], None]


# Work functions are made inside functions, so that Ray carries them by value: a worker cannot import a test.


def square_work(behave: Behave | None = None) -> Callable[[dict[str, Any]], PartResult]:
    """Work that squares the numbers of its part and drops the odd ones, after `behave` had its way."""
    schema = SCHEMA

    def work(payload: dict[str, Any]) -> PartResult:
        if behave is not None:
            behave(payload)
        numbers = [number for number in payload["numbers"] if number % 2 == 0]
        rows = pa.table({"number": numbers, "square": [number * number for number in numbers]}, schema=schema)
        file = write_table(payload["workdir"], "squares", f"tables/{payload['stem']}.parquet", rows, schema)
        dropped = len(payload["numbers"]) - len(numbers)
        return PartResult(
            (file,), Funnel(len(payload["numbers"]), len(numbers), {"odd": dropped}), {"pid": os.getpid()}
        )

    return work


def stage_of(
    work: Callable[[dict[str, Any]], PartResult],
    num_parts: int = 6,
    name: str = "square",
    recipe: Any = 0,
    trace: str = "",
) -> Stage:
    """A stage of parts of five numbers each; `trace` is a folder where parts leave a file a try."""

    def plan(context: BuildContext) -> Sequence[Part]:
        return [
            Part(
                fingerprint({"name": name, "number": number}),
                {
                    "numbers": list(range(5 * number, 5 * number + 5)),
                    "stem": f"{name}-{number:03d}",
                    "place": number,
                    "trace": trace,
                    **context.execution(),
                },
                num_rows=5,
            )
            for number in range(num_parts)
        ]

    def conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
        funnels = [part.funnel for part in context.own_parts("work") if part.funnel]
        return sum(funnels, Funnel(0, 0)), {"num_parts": len(funnels)}

    identity = {"recipe": recipe, "num_parts": num_parts}
    return Stage(name, "test", lambda _: identity, (Step("work", plan, work),), conclude)


def config_of(workdir: Path, executor: str = "inline", **run: Any) -> BuildConfig:
    return BuildConfig.model_validate(
        {
            "name": "demo",
            "work_dir": str(workdir),
            "sources": [
                {"name": "a", "domain": "plant", "table": "a.csv", "columns": {"url": "url", "caption": "caption"}}
            ],
            "mix": {"ratio": {"plant": 1}},
            "run": {"executor": executor, "num_workers": NUM_WORKERS, "max_attempts": 3, **run},
        }
    )


class SharedRay:
    """One Ray of the module lent to many runs: a run must not shut it down."""

    def __init__(self, executor: RayExecutor) -> None:
        self._executor = executor

    def run(self, work: Any, parts: Sequence[Part]) -> Iterator[Done]:
        return self._executor.run(work, parts)

    def share(self, make: Callable[[], Any]) -> Any:
        return self._executor.share(make)

    def close(self) -> None:
        """Kept for the next test."""


@pytest.fixture(scope="module")
def ray_executor() -> Iterator[RayExecutor]:
    executor = RayExecutor(NUM_WORKERS, None)
    yield executor
    executor.close()


@pytest.fixture(params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Any:
    if request.param == "inline":
        return InlineExecutor()
    return SharedRay(request.getfixturevalue("ray_executor"))


def run(workdir: Path, executor: Any, *flow: Stage, catalog: Catalog | None = None, **options: Any) -> Any:
    """One build over `workdir` with a given executor."""
    between = {name: options.pop(name) for name in ("first", "last") if name in options}

    def build(opened: Catalog) -> Any:
        runner = Runner(config_of(workdir, **options), flow, opened)
        runner._executor = executor
        return runner.run(**between)

    if catalog is not None:
        return build(catalog)
    with Catalog.open(str(workdir)) as opened:
        return build(opened)


def tables_of(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workdir / "tables").glob("*"))}


def leftovers(workdir: Path) -> list[str]:
    return [path.name for path in workdir.rglob("*") if ".tmp-" in path.name or path.name == "scratch"]


def leave_trace(payload: dict[str, Any]) -> int:
    """Leave one more file for this try; the number of tries before."""
    from pathlib import Path

    place = payload["place"]
    before = len(list(Path(payload["trace"]).glob(f"{place}-*")))
    Path(payload["trace"], f"{place}-{before}").touch()
    return before


def tries(trace: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in trace.iterdir():
        place = int(path.name.partition("-")[0])
        found[place] = found.get(place, 0) + 1
    return found


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    folder = tmp_path / "trace"
    folder.mkdir()
    return folder


def traced(behave: Callable[[dict[str, Any], int], None] | None = None) -> Callable[[dict[str, Any]], PartResult]:
    """Squares that note every try; `behave(payload, tries before)` may fail."""
    note = by_value(leave_trace)

    def both(payload: dict[str, Any]) -> None:
        before = note(payload)
        if behave is not None:
            behave(payload, before)

    return square_work(both)


def by_value(function: Any) -> Any:
    """A copy of a function that Ray pickles by value: a worker cannot import this file."""
    import types

    copy = types.FunctionType(function.__code__, dict(function.__globals__), function.__name__)
    copy.__module__ = "__main__"
    return copy


# ---- the same, whoever runs it


def test_inline_and_ray_write_identical_tables(tmp_path: Path, ray_executor: RayExecutor) -> None:
    reports = {}
    for name, executor in (("inline", InlineExecutor()), ("ray", SharedRay(ray_executor))):
        reports[name] = run(tmp_path / name, executor, stage_of(square_work(), 12))
    assert tables_of(tmp_path / "inline") == tables_of(tmp_path / "ray")
    assert len(tables_of(tmp_path / "ray")) == 12
    version = reports["ray"].stages["square"].fingerprint
    expected = StageRecord("square", version, Funnel(60, 30, {"odd": 30}), {"num_parts": 12})
    assert reports["inline"].stages == reports["ray"].stages == {"square": expected}
    for name in reports:
        assert leftovers(tmp_path / name) == []
        with open_reader(str(tmp_path / name)) as connection:
            keys = connection.execute("SELECT path, num_rows FROM files ORDER BY path").fetchall()
        assert len(keys) == 12
    with open_reader(str(tmp_path / "ray")) as connection:
        pids = {row[0] for row in connection.execute("SELECT notes->>'pid' FROM parts").fetchall()}
    assert str(os.getpid()) not in pids


def test_order_of_completion_changes_nothing(tmp_path: Path) -> None:
    class Backwards(InlineExecutor):
        def run(self, work: Any, parts: Sequence[Part]) -> Iterator[Done]:
            return super().run(work, list(reversed(parts)))

    found = {}
    for name, executor in (("forth", InlineExecutor()), ("back", Backwards())):
        report = run(tmp_path / name, executor, stage_of(square_work(), 7))
        with Catalog.open(str(tmp_path / name)) as catalog:
            parts = catalog.parts_of(report.stages["square"].fingerprint)
            found[name] = (report.stages, [(part.key, part.files, part.funnel) for part in parts])
    assert found["forth"] == found["back"]
    assert tables_of(tmp_path / "forth") == tables_of(tmp_path / "back")


# ---- what is done stays done


def test_a_second_build_does_nothing(tmp_path: Path, trace: Path) -> None:
    stage = stage_of(traced(), trace=str(trace))
    assert run(tmp_path / "w", InlineExecutor(), stage).redone == ("square",)
    report = run(tmp_path / "w", InlineExecutor(), stage)
    assert report.redone == ()
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})
    assert tries(trace) == dict.fromkeys(range(6), 1)


def test_committed_parts_are_skipped_by_the_next_build(tmp_path: Path, trace: Path, executor: Any) -> None:
    """Killed in the middle, or a version whose parts are shared: only what is missing is done."""
    run(tmp_path / "w", executor, stage_of(traced(), 4, trace=str(trace)))
    report = run(tmp_path / "w", executor, stage_of(traced(), 6, recipe=1, trace=str(trace)))
    assert tries(trace) == dict.fromkeys(range(6), 1)
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})


def test_a_lost_file_has_its_part_done_again(tmp_path: Path, trace: Path) -> None:
    stage = stage_of(traced(), trace=str(trace))
    run(tmp_path / "w", InlineExecutor(), stage)
    before = tables_of(tmp_path / "w")
    (tmp_path / "w" / "tables" / "square-003.parquet").unlink()
    assert run(tmp_path / "w", InlineExecutor(), stage).redone == ("square",)
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 3: 2}
    assert tables_of(tmp_path / "w") == before


def test_only_what_follows_a_change_is_done_again(tmp_path: Path) -> None:
    def flow(recipe: int) -> list[Stage]:
        first, second = stage_of(square_work(), name="first"), stage_of(square_work(), name="second", recipe=recipe)
        third = stage_of(square_work(), name="third")
        third = Stage(
            "third", "", lambda context: {"on": context.sealed["second"].fingerprint}, third.steps, third.conclude
        )
        return [first, second, third]

    assert run(tmp_path, InlineExecutor(), *flow(0)).redone == ("first", "second", "third")
    assert run(tmp_path, InlineExecutor(), *flow(1)).redone == ("second", "third")
    assert run(tmp_path, InlineExecutor(), *flow(0)).redone == ()  # back to what is sealed already


def test_first_and_last(tmp_path: Path) -> None:
    flow = [stage_of(square_work(), name=name) for name in ("first", "second", "third")]
    with pytest.raises(ConfigError, match="--from: the stage 'first' before it is not done yet"):
        run(tmp_path, InlineExecutor(), *flow, first="second")
    assert run(tmp_path, InlineExecutor(), *flow, last="second").redone == ("first", "second")
    assert run(tmp_path, InlineExecutor(), *flow, first="third").redone == ("third",)
    with pytest.raises(ConfigError, match="no stage 'fourth'; the flow is first, second, third"):
        find_stage(flow, "fourth", "--to")
    with pytest.raises(ConfigError, match="--from third lies behind --to first; the flow is first, second, third"):
        check_order(flow, "third", "first")
    for span in (("first", "third"), ("second", "second"), (None, "first"), ("third", None)):
        check_order(flow, *span)


def test_a_fresh_stage_is_what_a_later_build_will_find(tmp_path: Path) -> None:
    """Reasons of no row and Python's tuples would else get into a release or not, as the build was killed or not."""

    def work(payload: dict[str, Any]) -> PartResult:
        return PartResult((), Funnel(5, 5, {"odd": 0}))

    stage = stage_of(work)
    stage = Stage(stage.name, "", stage.identity, stage.steps, lambda c: (stage_funnel(c), {"z": (1, 2), "a": 1}))
    fresh, reused = (run(tmp_path, InlineExecutor(), stage).stages["square"] for _ in range(2))
    assert fresh == reused
    assert fresh.funnel.reasons == {}
    assert list(fresh.notes) == list(reused.notes)


def stage_funnel(context: BuildContext) -> Funnel:
    return sum((part.funnel for part in context.own_parts("work") if part.funnel), Funnel(0, 0))


# ---- errors are policies


def test_a_passing_fault_is_tried_again(tmp_path: Path, trace: Path, executor: Any) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:

        if payload["place"] == 2 and before < 2:
            raise RetryableError("the network had a moment")

    report = run(tmp_path / "w", executor, stage_of(traced(behave), trace=str(trace)))
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 2: 3}
    assert report.stages["square"].funnel.num_in == 30
    with open_reader(str(tmp_path / "w")) as connection:
        rows = connection.execute("SELECT max(attempts), sum(attempts) FROM parts").fetchall()
    assert rows == [(3, 8)]


def test_a_fault_that_stays_fails_its_part_and_keeps_the_others(tmp_path: Path, trace: Path, executor: Any) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:
        from manifests.errors import PartError

        if payload["place"] == 1:
            raise RetryableError("the network never comes back")
        if payload["place"] == 4:
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
    def behave(payload: dict[str, Any]) -> None:
        if payload["place"] == 3:
            {}["no such key"]

    with pytest.raises(PartError, match=r"1 of 6 parts failed.*KeyError: 'no such key' \(test_runner.py, line \d+\)"):
        run(tmp_path, executor, stage_of(square_work(behave)))
    assert len(tables_of(tmp_path)) == 5


def test_a_full_disk_is_a_passing_fault(tmp_path: Path, trace: Path) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:
        if payload["place"] == 0:
            raise OSError(28, "No space left on device")

    with pytest.raises(PartError, match=r"OSError: \[Errno 28\] No space left on device"):
        run(tmp_path / "w", InlineExecutor(), stage_of(traced(behave), trace=str(trace)))
    assert tries(trace)[0] == 3


@pytest.mark.parametrize("kind", [IntegrityError, ConfigError, RunError])
def test_some_errors_stop_at_once(tmp_path: Path, trace: Path, kind: type[Exception]) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:
        if payload["place"] == 2:
            raise kind("pool/a.tar is not what was stored")

    with pytest.raises(kind, match=r"pool/a\.tar"):
        run(tmp_path / "w", InlineExecutor(), stage_of(traced(behave), trace=str(trace)))
    assert tries(trace) == {0: 1, 1: 1, 2: 1}  # none after it
    assert len(tables_of(tmp_path / "w")) == 2


def test_an_integrity_error_in_a_ray_worker_stops_the_build(tmp_path: Path, ray_executor: RayExecutor) -> None:
    def behave(payload: dict[str, Any]) -> None:
        from manifests.errors import IntegrityError

        raise IntegrityError(f"part {payload['place']} is not what was stored")

    with pytest.raises(IntegrityError, match=r"part \d+ is not what was stored"):
        run(tmp_path, SharedRay(ray_executor), stage_of(square_work(behave), 20))
    assert not (tmp_path / "tables").exists() or tables_of(tmp_path) == {}


def test_counts_that_do_not_add_up_are_never_committed(tmp_path: Path) -> None:
    def work(payload: dict[str, Any]) -> PartResult:
        return PartResult((), Funnel(5, 3, {"odd": 1}))

    with pytest.raises(IntegrityError, match="square work: 5 rows came in, but 3 kept \\+ 1 dropped do not add up"):
        run(tmp_path, InlineExecutor(), stage_of(work))
    with open_reader(str(tmp_path)) as connection:
        assert connection.execute("SELECT count(*) FROM parts").fetchall() == [(0,)]


def test_a_stop_in_the_middle_keeps_what_is_committed(tmp_path: Path, trace: Path) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:
        if payload["place"] == 3 and before == 0:
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


# ---- Ray


@pytest.mark.parametrize("way", ["exit", "kill"])
def test_a_worker_that_dies_is_replaced(tmp_path: Path, trace: Path, ray_executor: RayExecutor, way: str) -> None:
    kill = int(signal.SIGKILL)

    def behave(payload: dict[str, Any], before: int) -> None:
        import os

        if payload["place"] == 1 and before == 0:
            if payload["way"] == "exit":
                os._exit(7)
            os.kill(os.getpid(), kill)

    work = traced(behave)

    def with_way(payload: dict[str, Any]) -> PartResult:
        return work({**payload, "way": way})

    report = run(tmp_path / "w", SharedRay(ray_executor), stage_of(with_way, trace=str(trace)))
    assert report.stages["square"].funnel == Funnel(30, 15, {"odd": 15})
    assert tries(trace)[1] == 2
    run(tmp_path / "inline", InlineExecutor(), stage_of(square_work()))
    assert tables_of(tmp_path / "w") == tables_of(tmp_path / "inline")


def test_a_worker_that_always_dies_fails_its_part(
    tmp_path: Path, trace: Path, ray_executor: RayExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(payload: dict[str, Any], before: int) -> None:
        import os

        if payload["place"] == 0:
            os._exit(1)

    with (
        caplog.at_level(logging.WARNING, "plantmix.runner"),
        pytest.raises(PartError, match=r"1 of 3 parts failed.*a worker was lost \(WorkerCrashedError"),
    ):
        run(tmp_path / "w", SharedRay(ray_executor), stage_of(traced(behave), 3, trace=str(trace)), max_attempts=2)
    assert tries(trace) == {0: 2, 1: 1, 2: 1}
    assert "try 1 of 2" in caplog.text


def test_never_more_than_two_parts_a_worker_are_in_flight(tmp_path: Path, ray_executor: RayExecutor) -> None:
    sent: list[str] = []
    most = 0

    class Counting:
        """Ray's remote function, and a note of what was handed in."""

        def __init__(self, remote: Any) -> None:
            self._remote = remote

        def remote(self, work: Any, part: Part) -> Any:
            sent.append(part.key)
            return self._remote.remote(work, part)

    def work(payload: dict[str, Any]) -> PartResult:
        return PartResult((), None, {"place": payload})

    executor, original = ray_executor, ray_executor._remote
    executor._remote = Counting(original)
    try:
        ended = 0
        for done in executor.run(work, [Part(str(number), {}) for number in range(30)]):
            assert done.error is None
            most = max(most, len(sent) - ended)
            ended += 1
    finally:
        executor._remote = original
    assert ended == 30
    assert sorted(sent, key=int) == [str(number) for number in range(30)]
    assert most == 2 * NUM_WORKERS


def test_workers_share_one_object(ray_executor: RayExecutor, executor: Any) -> None:
    class Counter:
        def __init__(self) -> None:
            self.num = 0

        def exchange(self, reports: int, wanted: Any) -> int:
            self.num += reports
            return self.num

    shared = executor.share(Counter)

    def work(payload: dict[str, Any]) -> PartResult:
        return PartResult((), None, {"seen": payload["shared"].exchange(1, None)})

    parts = [Part(str(number), {"shared": shared}) for number in range(8)]
    seen = [done.result.notes["seen"] for done in executor.run(work, parts)]
    assert sorted(seen) == list(range(1, 9))


def test_ray_is_not_started_when_there_is_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = stage_of(square_work())
    run(tmp_path, InlineExecutor(), stage)

    def never(*_: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipeline.runner.RayExecutor", never)
    with Catalog.open(str(tmp_path)) as catalog:
        assert Runner(config_of(tmp_path, "ray"), [stage], catalog).run().redone == ()


# ---- status and places


def test_status_follows_the_run(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def behave(payload: dict[str, Any]) -> None:
        status = tmp_path / "status.json"
        seen.append(read_status(str(tmp_path)) if status.exists() else {})

    run(tmp_path, InlineExecutor(), stage_of(square_work(behave)))
    running = seen[-1]["running"]
    assert (running["step"], running["done"], running["total"]) == ("square work", 25, 30)
    assert running["reasons"] == {"odd": 12}
    assert seen[-1]["pid"] == os.getpid()
    last = read_status(str(tmp_path))
    assert last["running"] is None
    assert last["stages"]["square"]["reasons"] == {"odd": 15}


def test_places_where_no_work_folder_can_be(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "folder"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_writable(str(tmp_path / "file" / "work"))
    with pytest.raises(ConfigError, match="must be a local folder"):
        check_writable("s3://bucket/work")


def test_tables_hold_what_was_computed(tmp_path: Path, executor: Any) -> None:
    run(tmp_path, executor, stage_of(square_work(), 2))
    assert pq.read_table(tmp_path / "tables" / "square-001.parquet").to_pylist() == [
        {"number": 6, "square": 36},
        {"number": 8, "square": 64},
    ]
