"""Run tests again where numbers are rounded in another way: by other kernels, on two threads.

    python .ci/other_rounding.py [pytest's own arguments] FOLDER...

A sum of floats depends on the order of its terms. Each kernel of OpenBLAS (in NumPy and SciPy) and of MKL (in torch)
has an order of its own, and the processor decides which kernel runs. This script finds out which kernels run here,
selects others by environment variables, proves that the numbers change, and runs pytest. `make test` ran them with the
kernels of this processor, on one thread.

Exits with pytest's code, or with 2 where no other kernel of OpenBLAS can be had.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from typing import Any

# The nearest to today's processors first. A kernel that this processor cannot run dies in the probe and is passed over.
OPENBLAS_KERNELS = {
    "x86_64": ("Haswell", "Sandybridge", "Nehalem", "Prescott"),
    "aarch64": ("NEOVERSEN1", "CORTEXA57", "ARMV8"),
}
THREADS = "2"

PROBE = """
import hashlib, json
import numpy as np, scipy.linalg, threadpoolctl, torch

def digest(value):
    return hashlib.sha256(np.asarray(value).tobytes()).hexdigest()

one, two = np.random.default_rng(0).normal(size=(2, 97, 97))
tensor = torch.from_numpy(one).float()
print(json.dumps({
    "openblas": sorted({lib["architecture"] for lib in threadpoolctl.threadpool_info() if "openblas" in lib["prefix"]}),
    "simd": np.show_config(mode="dicts")["SIMD Extensions"].get("found", []),
    "numpy": digest(one @ two),
    "scipy": digest(scipy.linalg.solve(one, two)),
    "torch": digest(tensor @ tensor),
}))
"""


def probe(changes: dict[str, str]) -> dict[str, Any] | None:
    """Return the chosen kernels and digests of what they compute; None where they cannot run on this processor."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env={**os.environ, **changes}, stdout=subprocess.PIPE, text=True, check=False
    )
    found: dict[str, Any] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def find_other_kernels() -> dict[str, str] | None:
    """Return environment variables that change what NumPy and SciPy compute; None where there are none."""
    here = probe({})
    if here is None:
        return None
    for kernel in OPENBLAS_KERNELS.get(platform.machine(), ()):
        changes = {"OPENBLAS_CORETYPE": kernel, "MKL_CBWR": "COMPATIBLE"}
        if here["simd"]:  # NumPy's own loops, as those of exp and log
            changes["NPY_DISABLE_CPU_FEATURES"] = " ".join(here["simd"])
        there = probe(changes)
        if there and here["numpy"] != there["numpy"] and here["scipy"] != there["scipy"]:
            print(f"other rounding: OpenBLAS {here['openblas']} -> {there['openblas']}")
            print(f"other rounding: NumPy's own loops {here['simd']} -> {there['simd']}")
            print(f"other rounding: numbers of NumPy and SciPy changed, of torch: {here['torch'] != there['torch']}")
            return changes
    return None


def main(arguments: list[str]) -> int:
    """Find other kernels and run pytest under them; return the exit code."""
    changes = find_other_kernels()
    if changes is None:
        print("other rounding: no other kernel of OpenBLAS runs here; are NumPy and SciPy the wheels?", file=sys.stderr)
        return 2
    changes |= {"OPENBLAS_NUM_THREADS": THREADS, "OMP_NUM_THREADS": THREADS}
    print("other rounding:", " ".join(f"{name}='{value}'" for name, value in changes.items()), flush=True)
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], env={**os.environ, **changes}, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
