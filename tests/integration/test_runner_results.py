"""The runner over small real stages: the same tables inline and with Ray, what is done stays done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
from sealed import flip_byte
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader, read_status
from manifests.contract.records import Funnel, StageRecord
from manifests.errors import ConfigError, DamageError, PartError
from manifests.stores import storage
from pipeline.answers.preflight import check_writable
from pipeline.commands.build import check_span
from pipeline.engine.checking import ContentChecks
from pipeline.engine.executing import Asked, Done, InlineExecutor, Job, never
from pipeline.engine.inputs import Inputs
from pipeline.engine.on_ray import RayExecutor
from pipeline.engine.work import Execution, PartResult, Stage, StageRun, Step
from pipeline.store.files import Files, files_of

# ---- the same, whoever runs it


@pytest.mark.slow
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
        def run(
            self, work: Any, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
        ) -> Iterator[Sequence[Done]]:
            return super().run(work, list(reversed(jobs)), gpus)

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
    squares = pq.read_table(tmp_path / "w/tables/square/square-001.parquet").to_pylist()
    assert squares == [{"number": 6, "square": 36}, {"number": 8, "square": 64}]


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_lost_file_has_its_part_done_again(tmp_path: Path, trace: Path, is_cut: bool) -> None:
    stage = stage_of(traced(), trace=str(trace))
    run(tmp_path / "w", InlineExecutor(), stage)
    before = tables_of(tmp_path / "w")
    lost = tmp_path / "w/tables/square/square-003.parquet"
    lost.write_bytes(b"cut") if is_cut else lost.unlink()
    assert run(tmp_path / "w", InlineExecutor(), stage).redone == ("square",)
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 3: 2}
    assert tables_of(tmp_path / "w") == before


def two_stages(recipe: int = 0, *, trace: str, from_outside: bool = False) -> list[Stage]:
    """A stage that reads the squares of another one through its inputs."""
    first = stage_of(traced(), name="first", trace=trace)
    first = replace(first, steps=(replace(first.steps[0], from_outside=from_outside),))
    second = stage_of(square_work(), name="second")
    return [first, replace(second, inputs=lambda context: {"recipe": recipe, "on": context.files("first", "squares")})]


def test_a_flipped_bit_in_a_table_has_its_part_done_again_where_it_is_read(
    tmp_path: Path, trace: Path, caplog: pytest.LogCaptureFixture
) -> None:
    executor = InlineExecutor()
    run(tmp_path / "w", executor, *two_stages(trace=str(trace)))
    before = tables_of(tmp_path / "w")
    flip_byte(tmp_path / "w/tables/first/first-003.parquet")
    assert run(tmp_path / "w", executor, *two_stages(trace=str(trace))).redone == ()  # nothing reads it
    assert run(tmp_path / "w", executor, *two_stages(1, trace=str(trace))).redone == ("first", "second")
    assert tries(trace) == {**dict.fromkeys(range(6), 1), 3: 2}
    assert tables_of(tmp_path / "w") == before
    said = [record.message for record in caplog.records if "made again" in record.message]
    assert said == ["tables/first/first-003.parquet: not what was recorded; made again, where this build needs it"]


def test_a_damaged_part_that_no_stage_can_make_stops_the_build(tmp_path: Path, trace: Path) -> None:
    executor = InlineExecutor()
    run(tmp_path / "w", executor, *two_stages(trace=str(trace), from_outside=True))
    flip_byte(tmp_path / "w/tables/first/first-003.parquet")
    with pytest.raises(DamageError, match=r"tables/first/first-003\.parquet: not what was recorded.*`plantmix repair"):
        run(tmp_path / "w", executor, *two_stages(1, trace=str(trace), from_outside=True))
    assert tries(trace) == dict.fromkeys(range(6), 1)


def test_a_file_is_read_once_a_build(tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = InlineExecutor()
    run(tmp_path, executor, *two_stages(trace=str(trace)))
    checks, read = ContentChecks(str(tmp_path)), []
    hash_file = storage.hash_file
    monkeypatch.setattr(storage, "hash_file", lambda path: read.append(path) or hash_file(path))
    path = str(tmp_path / "tables/first/first-000.parquet")
    files = files_of([(path, hash_file(path).sha256)])
    assert checks.require(files) is checks.require(files)
    assert read == [path]
    os.utime(path, (1, 1))
    checks.require(files)
    assert read == [path, path]


def test_only_what_follows_a_change_is_done_again(tmp_path: Path) -> None:
    def flow(recipe: int) -> list[Stage]:
        first, second = stage_of(square_work(), name="first"), stage_of(square_work(), name="second", recipe=recipe)
        third = stage_of(square_work(), name="third")
        third = replace(third, inputs=lambda context: {"on": context.sealed["second"].fingerprint})
        return [first, second, third]

    assert run(tmp_path, InlineExecutor(), *flow(0)).redone == ("first", "second", "third")
    assert run(tmp_path, InlineExecutor(), *flow(1)).redone == ("second", "third")
    assert run(tmp_path, InlineExecutor(), *flow(0)).redone == ()  # back to what is sealed already


def test_the_way_back_to_an_older_version_forgets_what_lies_after_it(tmp_path: Path) -> None:
    """Else status and query would show later stages of the newer one beside the older."""

    def flow(recipe: int) -> list[Stage]:
        first, second = stage_of(square_work(), name="first", recipe=recipe), stage_of(square_work(), name="second")
        return [first, replace(second, inputs=lambda context: {"on": context.sealed["first"].fingerprint})]

    def shown() -> list[str]:
        return sorted(read_status(str(tmp_path))["stages"])

    run(tmp_path, InlineExecutor(), *flow(0))
    run(tmp_path, InlineExecutor(), *flow(1))
    assert shown() == ["first", "second"]
    run(tmp_path, InlineExecutor(), *flow(1), last="first")
    assert shown() == ["first", "second"], "the same version: what lies after it still belongs to it"
    run(tmp_path, InlineExecutor(), *flow(0), last="first")
    assert shown() == ["first"]
    assert run(tmp_path, InlineExecutor(), *flow(0)).redone == ()
    assert shown() == ["first", "second"]


def test_first_and_last(tmp_path: Path) -> None:
    flow = [stage_of(square_work(), name=name) for name in ("first", "second", "third")]
    with pytest.raises(ConfigError, match="the stage 'first' is not done yet"):
        run(tmp_path, InlineExecutor(), *flow, first="second")
    assert run(tmp_path, InlineExecutor(), *flow, last="second").redone == ("first", "second")
    assert run(tmp_path, InlineExecutor(), *flow, first="third").redone == ("third",)
    with pytest.raises(ConfigError, match="no stage 'fourth'; the flow is first, second, third"):
        check_span(flow, None, "fourth")
    with pytest.raises(ConfigError, match="--from third comes after --to first; the flow is first, second, third"):
        check_span(flow, "third", "first")
    for span in (("first", "third"), ("second", "second"), (None, "first"), ("third", None)):
        check_span(flow, *span)


def test_a_fresh_stage_is_what_a_later_build_will_find(tmp_path: Path) -> None:
    """Reasons of no row and Python's tuples would else get into a release or not, as the build was killed or not."""

    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((), Funnel(5, 5, {"odd": 0}))

    stage = stage_of(work)
    stage = replace(stage, conclude=lambda _, run: (stage_funnel(run), {"z": (1, 2), "a": 1}))
    fresh, reused = (run(tmp_path, InlineExecutor(), stage).stages["square"] for _ in range(2))
    assert fresh == reused
    assert fresh.funnel.reasons == {}
    assert list(fresh.notes) == list(reused.notes)


def stage_funnel(run: StageRun[None]) -> Funnel:
    return sum((part.funnel for part in run.parts("work") if part.funnel), Funnel(0, 0))


# ---- what a step gives


def test_a_table_that_lacks_a_declared_column_is_a_fault_of_the_step(tmp_path: Path) -> None:
    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((run.write("squares", pa.table({"number": inputs["numbers"]})),))

    said = "the table squares lacks square: its step says that it gives them"
    with pytest.raises(PartError, match=said):
        run(tmp_path / "rows", InlineExecutor(), stage_of(work, 1))

    def query(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        with run.scratch() as sql:
            return PartResult((run.save(sql, "squares", "SELECT 1 AS number", "number"),))

    with pytest.raises(PartError, match=said):
        run(tmp_path / "query", InlineExecutor(), stage_of(query, 1))


def test_a_table_that_no_step_declares_is_refused(tmp_path: Path) -> None:
    def work(inputs: dict[str, Any], run: Execution[None]) -> PartResult:
        return PartResult((run.write("cubes", pa.table({"number": inputs["numbers"]})),))

    with pytest.raises(PartError, match="square: no step says that it gives the table cubes; name it in its `gives`"):
        run(tmp_path, InlineExecutor(), stage_of(work, 1))


def test_work_gets_what_its_step_declares_and_nothing_else(tmp_path: Path) -> None:
    """A table of an earlier step whole, a table cut by sample id, a value of the stage's inputs, one of the plan."""
    ids, schema = [f"{number:x}" * 32 for number in range(16)], pa.schema([("sample_id", pa.string())])
    path = str(tmp_path / "ids.parquet")
    pq.write_table(pa.table({"sample_id": ids}), path)

    @dataclass(frozen=True)
    class Given:
        ids: Files
        seed: int
        secret: str

    def first(inputs: Given, run: Execution[None]) -> PartResult:
        return PartResult((run.write("seen", pa.table({"sample_id": [inputs.secret]})),))

    def second(inputs: Inputs, run: Execution[None], seed: int, number: int, least: int = 7) -> PartResult:
        with run.scratch() as sql:
            inputs.view(sql, ids="those", absent="none")
            those, seen, none = (sql.execute(f"FROM {name}").fetchall() for name in ("those", "seen", "none"))
        assert not hasattr(inputs, "secret")
        return PartResult((), Funnel(len(those), len(those)), {"seen": [seed, number, least, seen, none]})

    def planned(inputs: Given, run: StageRun[None]) -> list[dict[str, Any]]:
        return [{"number": number} for number in range(2)]

    def stage_with(seed: int, secret: str) -> Stage[Given]:
        given = Given(files_of([(path, storage.hash_file(path).sha256)]), seed, secret)
        tables = dict.fromkeys(("seen", "absent"), schema)
        steps = (
            Step("first", first, gives=("seen",)),
            Step("second", second, reads=("seen", "absent"), cut=("ids",), plan=planned, prepares=True),
            Step("third", first, gives=("absent",), plan=lambda inputs, run: []),
        )
        return Stage("square", "", lambda _: given, steps, lambda _, run: (run.funnel("second"), {}), tables=tables)

    with Catalog.open(str(tmp_path / "w")) as catalog:
        for secret in ("a", "b"):
            sealed = run(tmp_path / "w", InlineExecutor(), stage_with(5, secret), catalog=catalog, memory_gb=1.2e-5)
            parts = catalog.parts_of(sealed.stages["square"].fingerprint, "second")
            assert sealed.stages["square"].funnel.num_in == 2 * len(ids)
            assert [part.notes["seen"] for part in parts[::3]] == [[5, at, 7, [[secret]], []] for at in range(2)]
        keys = {part.key for part in parts}
        assert len(keys) == 6  # two parts of three buckets each
        report = run(tmp_path / "w", InlineExecutor(), stage_with(6, "b"), catalog=catalog, memory_gb=1.2e-5)
        again = catalog.parts_of(report.stages["square"].fingerprint, "second")
        assert keys.isdisjoint(part.key for part in again)


# ---- status and places


def test_status_follows_the_run(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def behave(inputs: dict[str, Any]) -> None:
        def all_others_are_done() -> bool:
            seen.append(read_status(str(tmp_path)))
            return seen[-1]["running"]["done"] == 25

        if inputs["place"] == 5:
            wait_until(all_others_are_done, every_seconds=0.02)

    run(tmp_path, InlineExecutor(), stage_of(square_work(behave)))
    running = seen[-1]["running"]
    assert (running["step"], running["done"], running["total"]) == ("square work", 25, 30)
    assert running["reasons"] == {"odd": 12}
    assert seen[-1]["pid"] == os.getpid()
    last = read_status(str(tmp_path))
    assert last["running"] is None
    assert last["stages"]["square"]["reasons"] == {"odd": 15}


def test_status_is_not_written_for_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was found: three waits for the disk a part, while a second worker waited for the driver."""
    publish, written = storage.publish_bytes, []

    def noted(path: str, content: bytes) -> Any:
        written.append(path)
        return publish(path, content)

    monkeypatch.setattr(storage, "publish_bytes", noted)
    monkeypatch.setattr("pipeline.engine.progress._EARLY_LOOK_SECONDS", 3600.0)
    run(tmp_path, InlineExecutor(), stage_of(square_work(), 40))
    assert sum(path.endswith("status.json") for path in written) < 10


def test_places_where_no_work_folder_can_be(tmp_path: Path) -> None:
    check_writable(str(tmp_path / "new" / "folder"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        check_writable(str(tmp_path / "file" / "work"))
    with pytest.raises(ConfigError, match="name a folder in the bucket, for instance s3://bucket/my-build"):
        check_writable("s3://bucket")
    job = tmp_path / "ray/session/runtime_resources/working_dir_files/_ray_pkg_0123/work"
    with pytest.raises(ConfigError, match="Ray may delete it once the job is over; give an absolute path"):
        check_writable(str(job))
    with pytest.raises(ConfigError, match="web://: no such kind of address; is it misspelt"):
        check_writable("web://bucket/work")
