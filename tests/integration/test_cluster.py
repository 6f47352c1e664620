"""Real Ray clusters as users meet them: each way of failing is one line, and nodes may come and go."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from building import folder_source, write_small_config
from command_server import Command, CommandServer
from environments import lacks
from ray_nodes import ENVIRONMENT, Cluster
from release_writer import draw_picture
from waiting import wait_until

from manifests.errors import ConfigError
from manifests.services.local_ray import join_cluster

ROOT = Path(__file__).resolve().parents[2]
NUM = 8


def build(
    commands: CommandServer, folder: Path, address: str, env: Mapping[str, str | None] | None = None, **run: Any
) -> Command:
    """The real command, over pictures in `folder`, from `folder` and with relative paths."""
    write_config(folder, address, **run)
    return plantmix(commands, folder, "build", env=env)


def plantmix(
    commands: CommandServer, folder: Path, *arguments: str, env: Mapping[str, str | None] | None = None
) -> Command:
    command = commands.start("plantmix", *arguments, "config.yaml", folder=folder, environment=environment(env))
    command.wait(1500)
    return command


def environment(more: Mapping[str, str | None] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given = kept | ENVIRONMENT | {"PYTHONPATH": str(ROOT)} | dict(more or {})
    return {name: value for name, value in given.items() if value is not None}


def write_config(folder: Path, address: str | None, **run: Any) -> None:
    pictures = folder / "pictures"
    if not pictures.exists():
        pictures.mkdir(parents=True)
        for number in range(NUM):
            (pictures / f"{number}.jpg").write_bytes(draw_picture("red", "circle", number))
            (pictures / f"{number}.txt").write_text(f"plant number {number} in the field")
    source = folder_source("pictures")
    source["folder"]["captions"] = "text_file"
    spread = {"executor": "ray", "ray": {"address": address}, "fetch_part_size": 2} if address else {}
    write_small_config(folder, source, name="config", work_dir="work", run=spread | run)


def said(done: Command) -> str:
    return "".join(done.said())


# ---- addresses


@pytest.mark.parametrize("kind", ["silent", "web server"])
@pytest.mark.slow
def test_a_port_that_is_no_ray_is_named_at_once(kind: str) -> None:
    """As it was found: more than 400 seconds without a word."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        port = silent.getsockname()[1]
        web = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        port, expected = (
            (port, "no Ray cluster answers there: timed out")
            if kind == "silent"
            else (web.server_address[1], "what answers there is not Ray; the port of a cluster is 6379")
        )
        started = time.monotonic()
        try:
            with pytest.raises(ConfigError, match=rf"^run.ray.address 127.0.0.1:{port}: {expected}"):
                join_cluster(None, "run.ray.address", f"127.0.0.1:{port}")
        finally:
            web.shutdown()
            web.server_close()
        assert time.monotonic() - started < 120


@pytest.mark.parametrize("by_environment", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_rays_client_is_refused_before_it_is_asked(
    by_environment: bool, commands: CommandServer, tmp_path: Path
) -> None:
    """It was named as an address to give, but Ray 2.60 refuses the streams in which parts give their results there."""
    write_config(tmp_path, None if by_environment else "ray://127.0.0.1:9", executor="ray")
    done = plantmix(commands, tmp_path, "build", env={"RAY_ADDRESS": "ray://127.0.0.1:9"} if by_environment else {})
    assert done.returncode == 2, said(done)
    (line,) = [line for line in said(done).splitlines() if "ray://127.0.0.1:9" in line and "joining" not in line]
    assert line.startswith(
        f"plantmix: error: {'RAY_ADDRESS' if by_environment else 'run.ray.address'} ray://127.0.0.1:9: "
    )
    assert "`ray job submit`" in line
    assert "Traceback" not in said(done)


# ---- a head that wants a token, of another version


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """A cluster that wants a token, and says that it is of another version."""
    with Cluster() as cluster:
        cluster.start(
            before="import ray; ray.__version__ = '2.59.0'",
            env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test-" + "a" * 32},
        )
        yield cluster


@pytest.mark.slow
def test_a_cluster_that_wants_a_token_is_named_in_one_line(
    guarded: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    done = build(commands, tmp_path, guarded.address, {"HOME": str(tmp_path)})
    assert done.returncode == 2
    (line,) = [line for line in said(done).splitlines() if "run.ray.address" in line]
    assert "the cluster needs its token, and this machine has none or another" in line
    assert "RAY_AUTH_TOKEN_PATH" in line
    assert "InvalidAuthToken" not in said(done), "no noise of Ray's own"


@pytest.mark.slow
def test_the_token_of_the_account_opens_it_and_another_version_is_one_line(
    guarded: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of-this-test-" + "a" * 32)
    write_config(tmp_path, None, executor="ray")
    env = {"HOME": str(tmp_path), "RAY_ADDRESS": guarded.address, "RAY_AUTH_MODE": None}
    done = plantmix(commands, tmp_path, "build", env=env)
    assert done.returncode == 2, said(done)
    assert f"RAY_ADDRESS {guarded.address}: the cluster runs Ray 2.59.0 on Python" in said(done)
    assert "Traceback" not in said(done)


# ---- nodes that lack something, that join, and that are lost


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, as large clusters have it. The tests below start and lose its nodes, in their order."""
    with Cluster() as cluster:
        cluster.start(num_cpus=0)
        yield cluster


@pytest.mark.slow
def test_a_cluster_without_cpus_is_named(cluster: Cluster, commands: CommandServer, tmp_path: Path) -> None:
    done = build(commands, tmp_path, cluster.address)
    assert done.returncode == 2, said(done)
    lacks = f"Ray at {cluster.address}: none of its 1 nodes has what one part needs (1 CPU); start a worker"
    assert lacks in said(done)


@pytest.mark.slow
def test_a_node_without_disk_packages_or_versions_is_named_before_work(
    cluster: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    write_config(tmp_path, cluster.address)
    (tmp_path / "work").mkdir()
    other = tmp_path / "other"
    (other / "pillow-10.0.0.dist-info").mkdir(parents=True)
    (other / "pillow-10.0.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 10.0.0\n")
    (other / "sitecustomize.py").write_text("import sys\nsys.modules['manifests'] = None\n")  # as if not installed
    hidden = tmp_path / "work"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        lacks("the right to mounts of its own (unshare --mount)")
    node = cluster.start(env={"PYTHONPATH": str(other)}, hidden=(hidden, tmp_path / "pictures"))
    try:
        done = build(commands, tmp_path, cluster.address)
    finally:
        cluster.kill(node)
    assert done.returncode == 2, said(done)
    assert "nodes of the Ray cluster that cannot do this build:" in said(done)
    assert "other versions: PlantMix missing (here " in said(done)
    assert "pillow 10.0.0 (here " in said(done)
    assert f"work_dir {hidden}: it is not there, or another folder of that name; mount one shared disk" in said(done)
    assert "sources.ours pictures: here a folder, there an empty folder; mount one shared disk" in said(done)
    assert not list(hidden.glob(".node-check*"))
    assert not list(hidden.glob("tables/*")), "no work was done"


@pytest.mark.slow
def test_a_build_with_relative_paths_on_a_node_in_another_folder_equals_inline(
    cluster: Cluster, commands: CommandServer, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cluster.start(num_cpus=3, cwd=elsewhere)
    done = build(commands, tmp_path / "ray", cluster.address)
    assert done.returncode == 0, said(done)
    assert json.loads(plantmix(commands, tmp_path / "ray", "estimate", "--json").said()[0])["assumed"]["num_cores"] == 3
    write_config(tmp_path / "inline", None)
    inline = build(commands, tmp_path / "inline", "")
    assert inline.returncode == 0, said(inline)
    releases = [next((tmp_path / name / "work/releases").glob("config-*")) for name in ("ray", "inline")]
    assert releases[0].name == releases[1].name
    differing = shutil.which("diff")
    assert differing
    assert subprocess.run([differing, "-r", *map(str, releases)], check=False).returncode == 0


@pytest.mark.slow
def test_nodes_that_join_are_used_and_lost_ones_cost_no_try(cluster: Cluster, tmp_path: Path) -> None:
    """One try a part is allowed. A node joins in the middle, and the first one is killed with parts on it."""
    first = next((node for node in cluster.nodes[1:] if node.poll() is None), None) or cluster.start()
    write_config(tmp_path, cluster.address)
    (tmp_path / "job.py").write_text(_WAITING_STAGE)
    driver = subprocess.Popen(
        [sys.executable, "job.py"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: list(tmp_path.glob("ran-*")), driver)
        cluster.start()
        wait_until(lambda: len({seen.read_text() for seen in tmp_path.glob("ran-*")}) == 2, driver)
        cluster.kill(first)
        (tmp_path / "go-on").touch()
        out, _ = driver.communicate(timeout=1500)
    finally:
        driver.kill()
    assert driver.returncode == 0
    assert "12 of 12 kept, at most 1 try" in out
    assert len(list(tmp_path.glob("ran-*"))) > 12, "some parts were begun twice"


_WAITING_STAGE = """
import sys, time
from pathlib import Path
from manifests.contract.catalog import Catalog
from manifests.contract.records import Funnel
from pipeline.config import read_config
from pipeline.engine.runner import Runner
from pipeline.engine.work import Part, PartResult, Stage, Step

def work(number, run):
    import os, ray, time, uuid
    from pathlib import Path
    Path(f"ran-{uuid.uuid4().hex}").write_text(ray.get_runtime_context().get_node_id())
    while not Path("go-on").exists():
        time.sleep(0.2)
    return PartResult((), Funnel(1, 1), {})

def conclude(inputs, run):
    return sum((part.funnel for part in run.parts("work")), Funnel(0, 0)), {}

config = read_config("config.yaml")
config = config.model_copy(update={"run": config.run.model_copy(update={"max_attempts": 1})})
step = Step("work", work, plan=lambda inputs, run: [Part({'number': number}) for number in range(12)])
stage = Stage("long", "test", lambda context: {"num": 12}, (step,), conclude)
with Catalog.open(config.work_dir) as catalog:
    sealed = Runner(config, [stage], catalog).run().stages["long"]
    tries = max(part.attempts for part in catalog.parts_of(sealed.fingerprint))
print(f"{sealed.funnel.num_kept} of {sealed.funnel.num_in} kept, at most {tries} try")
"""
