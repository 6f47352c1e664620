"""`ray job submit`, as configs/recipes/cluster/jobs.md shows it: a job is stopped, and the next one goes on."""

from __future__ import annotations

import os
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import PLANTMIX, ROOT, hash_tree, list_source, loopback, write_small_config
from environments import environment
from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer
from ray_nodes import ENVIRONMENT, Cluster
from waiting import be_slow, look_again

from pipeline.cli import main

(CLUSTER_EXTRA,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cluster"]
NUM = 80
PART = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(takes_jobs=True, python=environment("cluster", [CLUSTER_EXTRA], on_ours=True)) as cluster:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        cluster.start(env={"PYTHONPATH": path, "RAY_JOB_STOP_WAIT_TIME_S": "120"})
        yield cluster


def ray_job(cluster: Cluster, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    verb, *rest = command
    return subprocess.run(
        [cluster.python, "-m", "ray.scripts.scripts", "job", verb, "--address", cluster.jobs, *rest],
        env=os.environ | ENVIRONMENT,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


def num_asked(web: MisbehavingServer) -> int:
    return sum(request.path.startswith("/p/") for request in web.log)


def write_config(folder: Path, web: MisbehavingServer, work_dir: str, **run: str) -> Path:
    source = list_source(folder, [f"http://127.0.0.1:{web.port}/p/{number}" for number in range(NUM)])
    fetch = loopback(threads=1, robots_txt=False, limits={"connections": 1})
    run = {"executor": "ray", "fetch_part_size": PART, **run}
    return write_small_config(folder, source, name="build", work_dir=work_dir, fetch=fetch, run=run)


@pytest.mark.slow
def test_a_stopped_job_is_taken_up_by_the_next_one(cluster: Cluster, tmp_path: Path) -> None:
    seconds = lambda: 0.3 if num_asked(web) < 3 * PART else 1.0  # noqa: E731 - what is in flight may end within 3 s

    def answer(sock: Any, request: Any) -> None:
        be_slow(seconds())
        send_picture(sock, encode(pixels(seed=int(request.path.rpartition("/")[2]))))

    with MisbehavingServer(extra={"p": answer}) as web:
        config = write_config(tmp_path, web, str(tmp_path / "work"))
        begun = ray_job(
            cluster, "submit", "--no-wait", "--submission-id", "first", "--", *PLANTMIX, "build", str(config)
        )
        assert begun.returncode == 0, begun.stderr
        until = time.monotonic() + 500
        while num_asked(web) < 3 * PART:
            assert time.monotonic() < until, ray_job(cluster, "logs", "first").stdout
            look_again(0.1)
        assert ray_job(cluster, "stop", "first").returncode == 0
        said = ray_job(cluster, "logs", "first").stdout
        assert "plantmix: stopped; what is committed stays, run the same command to go on" in said
        assert num_asked(web) < NUM

        seconds = lambda: 0.0  # noqa: E731
        done = ray_job(cluster, "submit", "--", *PLANTMIX, "build", str(config))
        assert done.returncode == 0, done.stdout
        assert f"ray: joining {cluster.address}" in done.stdout, "RAY_ADDRESS, which the job server sets"
        assert f"fetch: done, {NUM} of {NUM} kept" in done.stdout
        assert num_asked(web) == NUM, "no picture is asked for twice"
        undisturbed = tmp_path / "inline"
        undisturbed.mkdir()
        config = write_config(undisturbed, web, str(undisturbed / "work"), executor="inline")
        assert main(["build", str(config)]) == 0
    assert hash_tree(tmp_path / "work/releases") == hash_tree(undisturbed / "work/releases")


@pytest.mark.slow
def test_a_work_folder_that_would_go_with_the_job_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """As it was found: the job succeeded, and its release lay in a copy that Ray may delete."""
    with MisbehavingServer() as web:
        write_config(tmp_path, web, "work")
        done = ray_job(cluster, "submit", "--working-dir", ".", "--", *PLANTMIX, "build", "build.yaml", cwd=tmp_path)
    assert done.returncode == 1
    assert "work_dir work: this is the copy of a folder that `ray job submit --working-dir` makes" in done.stdout
    assert not web.log
