"""A Ray that we start is reached from this machine alone, as is every process that it starts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Sockets that listen, of this process and all below it, from /proc: address as hex, state 0A is LISTEN.
_LISTENING = r"""
import json, os, pathlib, re

def below(pid):
    found = {pid}
    while True:
        more = set()
        for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
            try:
                text = stat.read_text()
            except OSError:
                continue
            if int(text.rpartition(")")[2].split()[1]) in found:
                more.add(int(stat.parent.name))
        if more <= found:
            return found
        found |= more

def listening():
    inodes = set()
    for pid in below(os.getpid()):
        for fd in pathlib.Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(fd)))
            except OSError:
                continue
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    return sorted({row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes})
"""
_PIPELINE = """
from pipeline.engine.on_ray import RayExecutor
executor = RayExecutor(2)
ray = executor._ray
ray.get([ray.remote(num_cpus=1)(below).remote(1) for _ in range(4)])
print(json.dumps(listening()))
executor.close()
"""
_TRAINING = """
from manifests.services.local_ray import ray_environment
with ray_environment(None):
    import ray
from training.proxies.on_ray import _running_ray
with _running_ray(ray, None, 2):
    ray.get([ray.remote(num_cpus=1)(below).remote(1) for _ in range(4)])
    print(json.dumps(listening()))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.slow
@pytest.mark.parametrize("program", [_PIPELINE, _TRAINING], ids=["pipeline", "training"])
def test_a_local_ray_listens_on_the_loopback_only(program: str) -> None:
    """As it was found: six ports on every interface, and whoever reaches one runs code."""
    done = subprocess.run(
        [sys.executable, "-c", _LISTENING + program], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    found = set(json.loads(done.stdout.splitlines()[-1]))
    assert found, "Ray listens somewhere, or this test sees nothing"
    assert found <= LOOPBACK
