"""A Slurm of a test's own: two nodes on this machine, on the loopback, that know nothing of the system's.

Debian's slurmd takes `-N NAME`, so one machine holds two. Cgroups are left out: they need a system that is ours.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from building import ROOT
from environments import lacks
from process_tree import kill
from ray_nodes import START, free_port
from waiting import look_again

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
INSTALL = "apt-get install munge slurmctld slurmd slurm-client"
_WAIT_SECONDS = 600.0  # a busy machine starts a Ray of two nodes in two minutes
# Of a job that goes on, many words are said, some for a moment: SIGNALING, COMPLETING, REQUEUED.
_ENDED = ("CANCELLED", "COMPLETED", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
_CONFIG = """\
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=60
MessageTimeout=100
MinJobAge=36000
SchedulerParameters=sched_interval=1,batch_sched_delay=0,requeue_delay=1
NodeName=one NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[1]} CPUs=8
NodeName=two NodeAddr=127.0.0.1 NodeHostname={host} Port={ports[2]} CPUs=8
PartitionName=work Nodes=one,two Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm() -> None:
    """Skip where Slurm is not installed; Debian puts its daemons where not everybody's PATH looks."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        lacks(f"Slurm ({', '.join(missing)}); on Debian and Ubuntu: {INSTALL}")


class Slurm:
    """Daemons of this account, with config, key and state in a folder that goes with them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.defpath}:/usr/sbin:/sbin"}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Slurm:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _start(self) -> None:
        folder, user = self.folder, self.ask("id", "--user", "--name").strip()
        folder.chmod(0o711)  # munge wants its socket to be within reach
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        host, ports = socket.gethostname().partition(".")[0], [free_port() for _ in range(3)]
        # the recipe's ports and folders follow from a job's number: two Slurms on a machine must have others
        first_job = ports[0] % 6_000 * 10_000 + ports[0] % 97 * 100 + 1
        values = {"folder": folder, "user": user, "host": host, "ports": ports, "first_job": first_job}
        (folder / "slurm.conf").write_text(_CONFIG.format(**values))
        files = {"key": "munge.key", "socket": "munge.socket", "pid": "munge.pid", "seed": "seed", "log": "munge.log"}
        named = {"key": "key-file", "socket": "socket", "pid": "pid-file", "seed": "seed-file", "log": "log-file"}
        self._daemon("munged", "--foreground", *(f"--{named[name]}={folder / file}" for name, file in files.items()))
        self.wait(lambda: (folder / "munge.socket").exists())
        self._daemon("slurmctld", "-D")
        for node in ("one", "two"):
            self._daemon("slurmd", "-D", "-N", node)
        self.wait(lambda: self.ask("sinfo", "--noheader", "--Node", "--format=%t").split() == ["idle", "idle"])

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"out-{len(self._daemons)}-{command[0]}.txt").open("wb") as out:
            self._daemons.append(
                subprocess.Popen(
                    command, env={**os.environ, **self.environment}, stdout=out, stderr=out, start_new_session=True
                )
            )

    def _end(self) -> None:
        """End jobs, then the daemons, by their ids: a test that failed has left some."""
        self.ask("scancel", "--state=RUNNING,PENDING", "--me")
        daemons = {daemon.pid for daemon in self._daemons}
        kill([pid for pid in _pids() if str(self.folder).encode() in _read(pid, "environ") and pid not in daemons])
        until = time.monotonic() + _WAIT_SECONDS
        while self.ask("squeue", "--noheader").strip() and time.monotonic() < until:
            look_again(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(600)
        self._folder.cleanup()

    def ask(self, *command: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
        """What a command of Slurm's prints, also as an error."""
        done = subprocess.run(
            command,
            cwd=folder,
            env={**(environment or os.environ), **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    def wait(self, happens: Callable[[], object], told: Callable[[], str] = str) -> None:
        """Until `happens()`; a daemon must not end before. `told` says more of what went wrong."""
        until = time.monotonic() + _WAIT_SECONDS
        while not happens():
            for daemon in self._daemons:
                assert daemon.poll() is None, (daemon.args, self._logs())
            assert time.monotonic() < until, f"{told()}\n{self._logs()}"
            look_again(0.1)

    def _logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.folder.glob("out-*")))

    def processes_of(self, job: str) -> dict[int, bytes]:
        """Processes of a job, wherever they are: they carry its number in their environment."""
        mark = f"\0SLURM_JOB_ID={job}\0".encode()
        found = {pid: _read(pid, "cmdline") for pid in _pids() if mark in b"\0" + _read(pid, "environ")}
        ours = str(self.folder).encode()
        return {pid: command for pid, command in found.items() if ours in _read(pid, "environ") and command}


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has ended
        return b""


class Job:
    """A job, or a task of an array (`ARRAY_TASK`), as Slurm knows it."""

    def __init__(self, slurm: Slurm, number: str, log: Path) -> None:
        self.slurm, self.number, self.log = slurm, number, log

    def field(self, name: str) -> str:
        text = ""

        def answered() -> bool:
            nonlocal text
            text = self.slurm.ask("scontrol", "show", "job", self.number, "--oneliner")
            return text.startswith("JobId=")

        self.slurm.wait(answered, lambda: text)  # a busy machine's may not answer at once
        return next((word.partition("=")[2] for word in text.split() if word.startswith(f"{name}=")), "")

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ended(self) -> bool:
        return self.field("JobState") in _ENDED

    def task(self, number: int) -> Job:
        """A task of this array."""
        name = f"{self.number}_{number}"
        return Job(self.slurm, name, self.log.with_name(f"slurm-{name}.out"))

    def processes(self) -> dict[int, bytes]:
        """Its processes, wherever they are, with their command lines."""
        return self.slurm.processes_of(self.field("JobId") or self.number)

    def left_over(self) -> dict[int, bytes] | set[str]:
        """What it has left: processes, else folders of its Ray."""
        return self.processes() or {str(path) for path in Path("/tmp").glob(f"ray-{self.number}-*")}

    def leaves_nothing(self) -> None:
        """Until nothing of it is left: Slurm calls a job ended before its last process has gone."""
        self.slurm.wait(lambda: not self.left_over(), lambda: f"left over: {self.left_over()}")

    def until(self, happens: Callable[[], object]) -> None:
        """Until that, or the job's end, which is a failure."""
        self.slurm.wait(lambda: happens() or self.ended(), self.said)
        assert happens(), (self.field("JobState"), self.said())

    def end(self) -> str:
        """The state that it ends with."""
        self.slurm.wait(self.ended, self.said)
        return self.field("JobState")

    def disturb(self, command: str) -> None:
        """Give a command about it, such as `scancel JOB`; of one that takes it back, wait until it is in the queue."""
        restarts = self.field("Restarts")
        said = self.slurm.ask(*command.replace("JOB", self.number).split())
        assert not said, said
        if command != "scancel JOB":
            self.slurm.wait(lambda: self.field("Restarts") != restarts or self.ended(), self.said)
            assert self.field("Restarts") == str(int(restarts) + 1), (self.field("JobState"), self.said())

    def reach_limit(self) -> None:
        """Bring its time limit near, and set it far again when the job is back in the queue."""
        days_or_hours, minutes, _ = self.field("RunTime").rsplit(":", 2)
        assert days_or_hours == "00"
        self.disturb(f"scontrol update JobId=JOB TimeLimit={int(minutes) + 2}")
        self.slurm.ask("scontrol", "update", f"JobId={self.number}", "TimeLimit=720")


def put_programs_into(clone: Path) -> None:
    """The programs that the scripts call, as real processes below Slurm's: signals and kills must reach them.

    Its Ray is on the loopback, as `ray_nodes` starts it.
    """
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / "loopback_ray.py").write_text(START, encoding="utf-8")
    calls = {
        "plantmix": "-m pipeline.cli",
        "dalip": "-m training.cli",
        "ray": clone / "loopback_ray.py",
    }
    for name, call in calls.items():
        script = clone / ".venv/bin" / name
        script.write_text(
            f'#!/bin/sh\nexport PYTHONPATH={ROOT}:$PYTHONPATH\nexec {sys.executable} {call} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)
