"""The scripts of configs/recipes/slurm on two nodes of a real Slurm: stopped in each way, they lose nothing.

What they end with is what undisturbed runs end with, to the bit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT, done, hash_tree, list_source
from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer
from process_tree import below, is_running, kill
from ray_nodes import ENVIRONMENT
from shell_blocks import copy_configs, environment_of, write_yaml
from slurm_nodes import Job, Slurm, put_programs_into, require_slurm
from training_runs import assert_same_run
from waiting import be_slow, look_again, wait_until

from training.cli import main
from training.record.log import read_log

RECIPE = "configs/recipes/slurm"
NUM, PART = 120, 4
# What the recipe's page says of stopping; JOB is a job's number.
REQUEUE, TELL, CANCEL = COMMANDS = ("scontrol requeue JOB", "scancel --batch --signal=USR1 JOB", "scancel JOB")
SLOW_TASK = """
import time
from pathlib import Path
from training.tasks.contrastive import SumOfSimilarities

class Slow(SumOfSimilarities):
    def __call__(self, features, columns):
        time.sleep(Path({flag!r}).exists())
        return super().__call__(features, columns)
"""

# In the place of `ray`: it hears no signal, and neither does its child, which writes into the folder without end.
STUBBORN_RAY = r"""#!/bin/bash
trap '' TERM
for word; do case $word in --temp-dir=*) folder=${word#*=} ;; esac; done
mkdir -p "$folder"
setsid bash -c 'for ((i = 0; ; i++)); do : >"$0/$((i % 1000))"; done' "$folder" 2>/dev/null &
until [ -e "$folder/99" ]; do sleep 0.01; done
echo started >started
while :; do sleep 1; done
"""

pytestmark = pytest.mark.slow


class Web:
    """Pictures on the loopback, each after a moment that a test sets."""

    def __init__(self) -> None:
        self.server = MisbehavingServer(extra={"p": self._answer})
        self.seconds = 0.0

    def _answer(self, sock: Any, request: Any) -> None:
        be_slow(self.seconds)
        send_picture(sock, encode(pixels(seed=int(request.path.rpartition("/")[2]))))

    def asked(self) -> Counter[str]:
        return Counter(request.path for request in self.server.log if request.path.startswith("/p/"))


class Clone:
    """A clone with its programs, and data for the recipe; jobs are sent from here."""

    def __init__(self, folder: Path, slurm: Slurm, web: Web) -> None:
        self.folder, self.slurm, self.data = folder, slurm, folder / "data/slurm"
        folder.mkdir(exist_ok=True)
        copy_configs(folder)
        put_programs_into(folder)
        self.data.mkdir(parents=True)
        for first, name in enumerate(("plants", "general")):
            numbers = range(first * NUM // 2, (first + 1) * NUM // 2)
            list_source(self.data, [f"http://127.0.0.1:{web.server.port}/p/{n}" for n in numbers], name)
        limits = {"requests_per_second": None, "connections": 1}
        network = {"allow_private_addresses": True, "robots_txt": False, "threads": 1, "limits": limits}
        self.change("build", fetch={"network": network}, run={"fetch_part_size": PART})
        self.environment = environment_of(folder, ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"} | slurm.environment)

    def change(self, config: str, to: str | None = None, **sections: Any) -> str:
        """Change sections of a config of the recipe; gives its path below the clone. `to` names a changed copy."""
        path = self.folder / RECIPE / f"{config}.yaml"
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        write_yaml(path.with_stem(to or config), values)
        return f"{RECIPE}/{to or config}.yaml"

    def submit(self, script: str, *options: str, config: str = "") -> Job:
        words = ["sbatch", "--parsable", *options, f"{RECIPE}/{script}.sbatch", *([config] if config else [])]
        number = self.slurm.ask(*words, folder=self.folder, environment=self.environment).strip()
        assert number.isdigit(), number
        return Job(self.slurm, number, self.folder / f"slurm-{number}.out")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    require_slurm()
    with Slurm() as started:
        yield started


@pytest.fixture(scope="module")
def served() -> Iterator[Web]:
    made = Web()
    with made.server:
        yield made


@pytest.fixture(scope="module")
def built(slurm: Slurm, served: Web, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of an undisturbed build, in one process."""
    clone = Clone(tmp_path_factory.mktemp("undisturbed"), slurm, served)
    done("build", clone.folder / clone.change("build", run={"executor": "inline"}))
    return clone.data / "build"


@pytest.fixture
def web(served: Web, built: Path) -> Web:
    """The web, of which nobody has asked anything yet."""
    served.server.log.clear()
    served.seconds = 0.0
    return served


@pytest.fixture
def clone(slurm: Slurm, web: Web, tmp_path: Path) -> Clone:
    return Clone(tmp_path, slurm, web)


@pytest.fixture
def slow(clone: Clone, built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trainings on the undisturbed release save nothing unasked; while this file is there, a step lasts a while."""
    flag = clone.folder / "slow"
    (clone.folder / "slow_task.py").write_text(SLOW_TASK.format(flag=str(flag)))
    monkeypatch.syspath_prepend(str(clone.folder))
    shutil.copytree(built, clone.data / "build")
    for config in ("proxies", "training"):
        clone.change(
            config,
            loss={"form": "slow_task:Slow"},
            schedule={"steps": 150, "warmup_steps": 5},
            checkpoint={"every_steps": 1000},
            compute={"device": "cpu", "num_threads": 1},
            log={"every_steps": 1},
        )
    flag.touch()
    return flag


def more_than(job: Job, count: Any, num: int) -> None:
    """Wait until a count has grown by so many, while the job lasts."""
    before = count()
    job.until(lambda: count() >= before + num)


def num_steps(run: Path) -> int:
    return max((line["step"] for line in read_log(run / "log.jsonl", "step")), default=0) if run.exists() else 0


def test_the_page_names_the_commands_that_are_tried_here() -> None:
    page = (ROOT / RECIPE / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`((?:scancel|scontrol) [^`]*JOB)`", page)) == set(COMMANDS)


def test_a_build_is_stopped_in_each_way_and_goes_on(clone: Clone, web: Web, built: Path) -> None:
    num_asked = lambda: len(web.asked())  # noqa: E731
    job = clone.submit("build")
    for stop in (lambda: job.disturb(REQUEUE), job.reach_limit, lambda: job.disturb(CANCEL)):
        web.seconds = 0.3
        more_than(job, num_asked, 8)
        web.seconds = 4.0  # Slurm looks at time limits every half a minute; a build waits for what it asked
        if stop == job.reach_limit:
            before = web.asked()
            stop()
            assert "plantmix: stopped; what is committed stays, run the same command to go on" in job.said()
            assert "the time limit is near: back into the queue" in job.said()
            twice = [path for path, times in web.asked().items() if times > max(1, before[path])]
            assert not twice, "it was asked to keep what it has"
        else:
            stop()
    assert job.end() == "CANCELLED"
    assert num_asked() < NUM
    web.seconds = 0.0
    again = clone.submit("build")
    assert again.end() == "COMPLETED", again.said()
    assert hash_tree(clone.data / "build/releases") == hash_tree(built / "releases")
    for each in (job, again):
        each.leaves_nothing()


def test_a_node_that_hears_no_signal_leaves_nothing(tmp_path: Path) -> None:
    """Of a busy machine's Ray some process writes on after it was told to end; Slurm tells more than once."""
    copy_configs(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/ray").write_text(STUBBORN_RAY, encoding="utf-8")
    (tmp_path / ".venv/bin/ray").chmod(0o755)
    number = f"test{os.getpid()}"
    environment = os.environ | {"SLURM_JOB_ID": number, "SLURM_NODEID": "0", "SLURM_CPUS_PER_TASK": "1"}
    command = ["bash", f"{RECIPE}/ray_node.sh", "127.0.0.1:1"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True) as node:
        wait_until((tmp_path / "started").exists, node)
        ray = below(node.pid)
        until = time.monotonic() + 600
        while node.poll() is None and time.monotonic() < until:
            os.killpg(node.pid, signal.SIGTERM)
            look_again(0.002)
        left = [command for pid, command in ray.items() if is_running(pid)]
        kill([node.pid, *ray])
    assert len(ray) >= 2
    assert not left
    assert not Path(f"/tmp/ray-{number}-0").exists()


def test_two_builds_on_one_node_do_not_meet(clone: Clone, slurm: Slurm, web: Web, built: Path, tmp_path: Path) -> None:
    web.seconds = 0.3
    other = Clone(tmp_path / "other", slurm, web)
    jobs = [place.submit("build", "--nodes=1", "--nodelist=one") for place in (clone, other)]
    for job in jobs:
        job.until(lambda job=job: re.search(r"fetch download: [1-9]\d* of", job.said()))
    first, second = jobs
    assert second.processes()
    first.disturb(CANCEL)
    assert first.end() == "CANCELLED"
    first.leaves_nothing()
    web.seconds = 0.0
    assert second.end() == "COMPLETED", second.said()
    second.leaves_nothing()
    assert hash_tree(other.data / "build/releases") == hash_tree(built / "releases")


def test_an_array_is_stopped_in_each_way_and_goes_on(clone: Clone, slow: Path) -> None:
    """Its tasks start at once on one folder, which none has prepared."""
    done("plan", "design", "--domains", "plant,general", "--budget", "3", "--out", clone.data / "design.csv")
    array = clone.submit("proxies", "--array=1-3", config=clone.change("proxies"))
    tasks = [array.task(number) for number in (1, 2, 3)]
    runs = [clone.data / f"proxies/runs/proxy-0{number}" for number in (1, 2, 3)]
    for task, run in zip(tasks, runs, strict=True):
        task.until(lambda run=run: num_steps(run) > 3)
    requeued, cancelled, limited = tasks  # the last has the array's own number
    requeued.disturb(REQUEUE)
    cancelled.disturb(CANCEL)
    assert cancelled.end() == "CANCELLED"
    limited.reach_limit()
    assert "the time limit is near: back into the queue" in limited.said()
    for run in runs:
        stopped = re.findall(r"stopped by a signal after step (\d+) of 150, a checkpoint is saved", all_said(clone))
        (saved,) = (run / "checkpoints").glob("step-*.pt")
        assert int(saved.stem[5:]) in map(int, stopped)
    slow.unlink()
    again = clone.submit("proxies", "--array=2").task(2)
    for task in (limited, requeued, again):
        assert task.end() == "COMPLETED", task.said()
    assert [task.field("Restarts") for task in (requeued, limited)] == ["1", "1"], "none took the whole array back"
    whole = clone.change("proxies", to="whole", output_dir="../../../data/slurm/whole", catalogue=None)
    assert main(["proxies", str(clone.folder / whole)]) == 0
    assert main(["proxies", str(clone.folder / RECIPE / "proxies.yaml")]) == 0
    for run in runs:
        assert len(read_log(run / "log.jsonl", "resume")) == 1
        assert_same_run(str(run), str(clone.data / "whole/runs" / run.name))
    assert (clone.data / "proxies/runs.csv").read_text() == (clone.data / "whole/runs.csv").read_text()


def all_said(clone: Clone) -> str:
    return "".join(path.read_text() for path in clone.folder.glob("slurm-*.out"))


def test_a_training_is_stopped_in_each_way_and_goes_on(clone: Clone, slow: Path) -> None:
    run = clone.data / "run"
    job = clone.submit("training")

    def requeue() -> None:
        """Slurm itself says SIGTERM twice where a node is slow to answer."""
        job.slurm.ask("scancel", "--signal=TERM", job.number)
        job.disturb(REQUEUE)

    stops = (requeue, job.reach_limit, lambda: job.disturb(CANCEL))
    for stop in stops:
        more_than(job, lambda: num_steps(run), 4)
        stop()
    assert job.end() == "CANCELLED"
    job.leaves_nothing()
    stopped = re.findall(r"stopped by a signal after step (\d+) of 150, a checkpoint is saved", job.said())
    slow.unlink()
    again = clone.submit("training")
    assert again.end() == "COMPLETED", again.said()
    assert len(stopped) == 2 * len(stops), job.said()
    assert [str(line["step"]) for line in read_log(run / "log.jsonl", "resume")] == stopped[::2], "of two processes"
    whole = clone.submit(
        "training", config=clone.change("training", to="whole", output_dir="../../../data/slurm/whole")
    )
    assert whole.end() == "COMPLETED", whole.said()
    assert_same_run(str(run), str(clone.data / "whole"))


def test_a_job_that_fails_stays_failed(clone: Clone) -> None:
    """A mistake of the user's is no reason to go into the queue again."""
    job = clone.submit("proxies", "--array=4", config="no.yaml").task(4)
    assert job.end() == "FAILED"
    assert job.field("ExitCode") == "2:0"
    assert "dalip: error: no.yaml" in job.said()
    assert job.field("Restarts") == "0"


def test_a_job_that_slurm_does_not_take_back_says_so(clone: Clone, slow: Path) -> None:
    done("plan", "design", "--domains", "plant,general", "--budget", "3", "--out", clone.data / "design.csv")
    job = clone.submit("proxies", "--array=1", "--no-requeue").task(1)
    job.until(lambda: num_steps(clone.data / "proxies/runs/proxy-01") > 3)
    job.slurm.ask(*TELL.replace("JOB", job.number).split())
    assert job.end() == "FAILED"
    assert "Slurm did not take the job back; submit it again to go on" in job.said()
    assert list((clone.data / "proxies/runs/proxy-01/checkpoints").glob("step-*.pt"))
