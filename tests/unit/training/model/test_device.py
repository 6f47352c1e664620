"""Where a network runs, and what it asks of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

CYCLES = """
import resource, sys
import torch
from training.model.device import pick_device

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.ones(1 << 20) for _ in range(16)]  # 64 MiB
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
pick_device("cpu")
faults()
print(before, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_cpu_faults_no_memory_in_twice() -> None:
    done = subprocess.run([sys.executable, "-c", CYCLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 10
