"""The scripts of configs/recipes/slurm on two nodes of a real Slurm: stopped in mid-work in each way, they lose nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import list_source
from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer
from ray_nodes import ENVIRONMENT
from shell_blocks import copy_configs, environment_of, write_yaml
from slurm_nodes import Job, Slurm, put_programs_into, require_slurm

RECIPE = "configs/recipes/slurm"
NUM, PART = 48, 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    require_slurm()
    with Slurm() as started:
        yield started


class Web:
    """Pictures on the loopback, each after a moment that a test sets."""

    def __init__(self) -> None:
        self.server = MisbehavingServer(extra={"p": self._answer})
        self.seconds = 0.0

    def _answer(self, sock: Any, request: Any) -> None:
        time.sleep(self.seconds)
        send_picture(sock, encode(pixels(seed=int(request.path.rpartition("/")[2]))))

    def asked(self) -> Counter[str]:
        return Counter(request.path for request in self.server.log if request.path.startswith("/p/"))


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    made = Web()
    with made.server:
        yield made


class Clone:
    """A clone with its environment, and data for the recipe; jobs are sent from here."""

    def __init__(self, folder: Path, slurm: Slurm, web: Web) -> None:
        self.folder, self.slurm = folder, slurm
        copy_configs(folder)
        put_programs_into(folder)
        (folder / "data/slurm").mkdir(parents=True)
        for first, name in enumerate(("plants", "general")):
            numbers = range(first * NUM // 2, (first + 1) * NUM // 2)
            list_source(folder / "data/slurm", [f"http://127.0.0.1:{web.server.port}/p/{n}" for n in numbers], name)
        limits = {"requests_per_second": None, "connections": 1}
        network = {"allow_private_addresses": True, "threads": 1, "robots_txt": False, "limits": limits}
        self.change("build", fetch={"network": network}, run={"fetch_part_size": PART})
        self.environment = environment_of(folder, ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"} | slurm.environment)

    def change(self, config: str, **sections: Any) -> None:
        path = self.folder / RECIPE / f"{config}.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        write_yaml(path, values)

    def submit(self, script: str, *options: str) -> Job:
        number = self.slurm.ask(
            "sbatch", "--parsable", *options, f"{RECIPE}/{script}.sbatch", folder=self.folder, environment=self.environment
        ).strip()
        assert number.isdigit(), number
        return Job(self.slurm, number, self.folder / f"slurm-{number}.out")


@pytest.fixture
def clone(slurm: Slurm, web: Web, tmp_path: Path) -> Clone:
    return Clone(tmp_path, slurm, web)


def test_a_build(clone: Clone, web: Web) -> None:
    web.seconds = 0.3
    started = time.monotonic()
    job = clone.submit("build")
    job.until(lambda: len(web.asked()) > 10)
    print("first request after", time.monotonic() - started)
    job.slurm.ask("scancel", job.number)
    print(job.end())
    print(time.monotonic() - started)
    print(job.said())
    print(job.slurm.processes_of(job.number), list(Path("/tmp").glob("ray-*")))
    job = clone.submit("build")
    print(job.end())
    print(time.monotonic() - started)
    print(job.said())
    print(job.slurm.processes_of(job.number), list(Path("/tmp").glob("ray-*")))
    print(web.asked())
    assert 0
