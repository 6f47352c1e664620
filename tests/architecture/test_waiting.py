"""No test sleeps: it waits for an event, or says by a name of `waiting` why time must go by."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
MEASURES = "benchmarks/"  # how long something takes is what they are for
MAY_SLEEP = {
    "waiting.py": "it is where the waits are",
    "architecture/test_waiting.py": "what is planted below",
    "architecture/test_one_store.py": "a line that is read, not run",
    # programs of other processes, whose path may lack the tests
    "integration/test_cluster.py": "parts that wait for a file of the driver, on a node of Ray",
    "integration/test_parquet_with_pictures.py": "a build that is slow, so that it is killed amid its pictures",
    "integration/test_runner_ray.py": "slow parts of a driver of its own",
    "integration/test_slurm.py": "slow steps of a training below Slurm",
}


def sleeps_in(text: str) -> Iterator[str]:
    """Calls and imports of a `sleep`, and strings of Python that call one."""
    for node in ast.walk(ast.parse(text)):
        called = node.func if isinstance(node, ast.Call) else None
        is_named = isinstance(called, ast.Name) and called.id == "sleep"
        if is_named or (isinstance(node, ast.Attribute) and node.attr == "sleep"):
            yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"line {node.lineno}: import {each.name}" for each in node.names if each.name == "sleep")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "sleep(" in node.value:
            yield f"line {node.lineno}: a program"


def test_no_test_sleeps() -> None:
    paths = {str(path.relative_to(TESTS)): path for path in TESTS.rglob("*.py")}
    found = {name: list(sleeps_in(path.read_text(encoding="utf-8"))) for name, path in paths.items()}
    found = {name: sleeps for name, sleeps in found.items() if sleeps and not name.startswith(MEASURES)}
    assert {name: sleeps for name, sleeps in found.items() if name not in MAY_SLEEP} == {}, "use tests/waiting.py"
    assert set(found) == set(MAY_SLEEP), "what no longer sleeps leaves the list"


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(1)",
        "def slow():\n    import time\n    time.sleep(seconds)",
        "from time import sleep",
        "from time import sleep as wait",
        "sleep(0.1)",
        "async def wait():\n    await asyncio.sleep(0)",
        "act = lambda: clock.sleep(1) or 3",
        "Thread(target=time.sleep, args=(9,))",
        "PROGRAM = 'import time\\ntime.sleep(9)'",
        "code = f'time.sleep({seconds})'",
    ],
)
def test_a_planted_sleep_is_seen(line: str) -> None:
    assert list(sleeps_in(line))


@pytest.mark.parametrize("line", ["wait_until(done)", "'it may sleep'", "gate.wait(600)", "import time\ntime.time()"])
def test_what_is_no_sleep_is_none(line: str) -> None:
    assert not list(sleeps_in(line))
