"""What a part took is the system's again when it ends, though a worker does one part after another."""

from __future__ import annotations

import subprocess
import sys

import pytest
from building import ROOT

LEAVES_HOLES = """
import sys
from running import jobs_of
from pipeline.engine import executing
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import PartResult

executing._LONG_SECONDS = float(sys.argv[1])
kept = []

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024

def work(inputs, run):
    blocks = [bytes(16_000) for _ in range(12_000)]
    kept.append(blocks[::200])  # every 3 MB something stays, so the heap cannot shrink from its end
    return PartResult(())

(job,) = jobs_of([Inputs()])
before = resident()
list(executing.do_job(work, job))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's, and resident memory is read from /proc")
def test_holes_between_what_stays_are_given_back() -> None:
    held = {}
    for seconds in (0.0, 1000.0):
        words = [sys.executable, "-c", LEAVES_HOLES, str(seconds)]
        done = subprocess.run(
            words, cwd=ROOT / "tests", env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        held[seconds] = int(done.stdout)
    assert held[1000.0] > 150, "the part leaves no holes, so this shows nothing"
    assert held[0.0] < 40
