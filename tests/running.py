"""Small real stages for tests of the runner: squares of numbers, odd ones dropped, every try leaves a trace."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.cloudpickle as pickling

from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel
from pipeline.config import BuildConfig
from pipeline.engine import inputs as reading
from pipeline.engine.executing import Asked, Done, Job, never
from pipeline.engine.runner import Runner
from pipeline.engine.work import Execution, Part, PartResult, Stage, StageRun, Step
from pipeline.store.buckets import WHOLE, Bucket
from pipeline.store.files import Files

NUM_WORKERS = 2
SCHEMA = pa.schema([("number", pa.int64()), ("square", pa.int64())])

Inputs = dict[str, Any]
Behave = Callable[[Inputs], None]
Work = Callable[[Inputs, Execution[None]], PartResult]


# Work functions are made inside functions, so that Ray carries them by value: a worker cannot import a test.


def square_work(behave: Behave | None = None) -> Work:
    """Work that squares the numbers of its part and drops the odd ones, after `behave` had its way."""
    schema = SCHEMA

    def work(inputs: Inputs, run: Execution[None]) -> PartResult:
        if behave is not None:
            behave(inputs)
        numbers = [number for number in inputs["numbers"] if number % 2 == 0]
        rows = pa.table({"number": numbers, "square": [number * number for number in numbers]}, schema=schema)
        file = run.write("squares", rows, inputs["file"])
        dropped = len(inputs["numbers"]) - len(numbers)
        return PartResult((file,), Funnel(len(inputs["numbers"]), len(numbers), {"odd": dropped}), {"pid": os.getpid()})

    return work


def stage_of(
    work: Work,
    num_parts: int = 6,
    name: str = "square",
    recipe: Any = 0,
    trace: str = "",
) -> Stage[Inputs]:
    """A stage of parts of five numbers each; `trace` is a folder where parts leave a file a try."""

    def plan(_: Inputs, run: StageRun[None]) -> Sequence[Part[Inputs]]:
        return [
            Part(
                {
                    "numbers": list(range(5 * number, 5 * number + 5)),
                    "file": f"{name}-{number:03d}",
                    "place": number,
                    "trace": trace,
                },
                num_rows=5,
            )
            for number in range(num_parts)
        ]

    def conclude(_: Inputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
        funnels = [part.funnel for part in run.parts("work") if part.funnel]
        return sum(funnels, Funnel(0, 0)), {"num_parts": len(funnels)}

    inputs = {"recipe": recipe, "num_parts": num_parts}
    step = Step("work", work, gives=("squares",), plan=plan)
    return Stage(name, "test", lambda _: inputs, (step,), conclude, tables={"squares": SCHEMA})


def execution_of(
    stage: Stage[Any], step: str, workdir: Path | str, memory_gb: float = 1.0, stem: str = "x", how: Any = None
) -> Execution[Any]:
    """How the runner would have a part of a step run."""
    (found,) = [each for each in stage.steps if each.name == step]
    gives = {table: stage.columns_of(table) for table in found.gives}
    return Execution(str(workdir), memory_gb, stem, how, stage=stage.name, gives=gives)


def do_part(
    stage: Stage[Any],
    step: str,
    workdir: Path | str,
    memory_gb: float = 1.0,
    stem: str = "x",
    how: Any = None,
    bucket: Bucket = WHOLE,
    **given: Any,
) -> PartResult:
    """The result of one part that reads what is `given`; tables that are not have no files."""
    (found,) = [each for each in stage.steps if each.name == step]
    read = {name: given.pop(name, Files()) for name in (*found.cut, *found.reads)}
    columns = {name: stage.columns_of(name) for name, files in read.items() if not files}
    inputs = reading.Inputs(read, given, bucket if found.cut else None, found.cut, columns)
    result = found.work(inputs, execution_of(stage, step, workdir, memory_gb, stem, how), **given)
    assert isinstance(result, PartResult)
    return result


def jobs_of(inputs: Sequence[Inputs], workdir: str = "", shared: Any = None) -> list[Job]:
    """Jobs as the runner hands them to an executor; their keys are their numbers."""
    return [
        Job(str(number), Part(each), Execution(workdir, 1.0, str(number), None, shared))
        for number, each in enumerate(inputs)
    ]


def one_by_one(came: Iterable[Sequence[Done]]) -> Iterator[Done]:
    """What an executor gives, each result by itself."""
    return itertools.chain.from_iterable(came)


def config_of(workdir: Path, executor: str = "inline", **run: Any) -> BuildConfig:
    return BuildConfig.model_validate(
        {
            "name": "demo",
            "work_dir": str(workdir),
            "sources": [
                {"name": "a", "domain": "plant", "table": "a.csv", "columns": {"url": "url", "caption": "caption"}}
            ],
            "mix": {"ratio": {"plant": 1}},
            "run": {
                "executor": executor,
                "num_workers": NUM_WORKERS,
                "max_attempts": 3,
                "retry_wait_seconds": 0,
                **run,
            },
        }
    )


class SharedRay:
    """One Ray of the module lent to many runs: a run must not shut it down."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def run(
        self, work: Any, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Sequence[Done]]:
        return self._executor.run(self.carried(work), jobs, gpus, stopping)

    def carried(self, work: Any) -> Any:
        """The work as it goes to a worker; Ray takes any."""
        return work

    def share(self, make: Callable[[], Any]) -> Any:
        return self._executor.share(make)

    def close(self) -> None:
        """Kept for the next test."""


class ByValue:
    """Work that is pickled with its code, as Ray pickles it: a worker cannot import a test."""

    def __init__(self, work: Any) -> None:
        self._work = work

    def __call__(self, inputs: Any, run: Execution[Any]) -> Any:
        return self._work(inputs, run)

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_value, (pickling.dumps(self._work),)


def _by_value(work: bytes) -> ByValue:
    return ByValue(pickling.loads(work))


class SharedProcesses(SharedRay):
    """Processes of the module lent to many runs."""

    def carried(self, work: Any) -> Any:
        return ByValue(work)


def run(workdir: Path, executor: Any, *flow: Stage[Any], catalog: Catalog | None = None, **options: Any) -> Any:
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
    return {path.name: path.read_bytes() for path in sorted((workdir / "tables").rglob("*.parquet"))}


def leftovers(workdir: Path) -> list[str]:
    return [path.name for path in workdir.rglob("*") if ".tmp-" in path.name or path.name == "scratch"]


def leave_trace(inputs: Inputs) -> int:
    """Leave one more file for this try; the number of tries before."""
    from pathlib import Path

    place, folder = inputs["place"], inputs["trace"]
    assert folder, "the current folder is no place for traces"
    before = len(list(Path(folder).glob(f"{place}-*")))
    Path(folder, f"{place}-{before}").touch()
    return before


def tries(trace: Path) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in trace.iterdir():
        place = int(path.name.partition("-")[0])
        found[place] = found.get(place, 0) + 1
    return found


def traced(behave: Callable[[Inputs, int], None] | None = None) -> Work:
    """Squares that note every try; `behave(inputs, tries before)` may fail."""
    note = by_value(leave_trace)

    def both(inputs: Inputs) -> None:
        before = note(inputs)
        if behave is not None:
            behave(inputs, before)

    return square_work(both)


def by_value(function: Any) -> Any:
    """A copy of a function that Ray pickles by value: a worker cannot import this file."""
    import types

    copy = types.FunctionType(function.__code__, dict(function.__globals__), function.__name__)
    copy.__module__ = "__main__"
    return copy
