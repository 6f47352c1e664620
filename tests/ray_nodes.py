"""Real Ray nodes on this machine, as `ray start` starts them: several raylets, each a machine of its own to Ray."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from process_tree import below, kill
from waiting import look_again

_START_SECONDS = 600  # 25 to 50 s a node on a 2-core machine with load 25
_SMALL = ("--node-ip-address=127.0.0.1", "--object-store-memory=80000000")
# The loopback only; no token unless a test sets one; nobody is told.
ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
# A node joins others only where Ray believes in clusters, and binds to the loopback only where it does not.
START = """
import sys
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "127.0.0.1"
def patient(*arguments, get=services.get_node):  # Ray gives up after 30 s; a busy machine needs longer
    for _ in range(4):
        try:
            return get(*arguments)
        except RuntimeError:
            pass
    return get(*arguments)
services.get_node = patient
from ray.scripts.scripts import main
sys.exit(main())
"""


_FIRST_PORT = 22_000 + 1_000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
_ports = itertools.cycle(random.SystemRandom().sample(range(_FIRST_PORT, _FIRST_PORT + 1_000), 1_000))


def free_port() -> int:
    """A port for who binds it later. Of 22000 to 31999 the kernel gives none away, nor does another test worker."""
    for port in itertools.islice(_ports, 1_000):
        with suppress(OSError), socket.socket() as found:
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


class Cluster:
    """Nodes with small object stores, on the loopback. `before` is Python that runs in a node before Ray does.

    With `takes_jobs` the head takes those of `ray job submit` at the address `jobs`; its `python` then has the extra
    `cluster`.
    """

    def __init__(self, takes_jobs: bool = False, python: str | Path = sys.executable) -> None:
        self.python = str(python)
        self.address = f"127.0.0.1:{free_port()}"
        self.jobs = f"http://127.0.0.1:{free_port()}" if takes_jobs else ""
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        num_cpus: int = 1,
        before: str = "",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        hidden: Sequence[Path] = (),
    ) -> subprocess.Popen[bytes]:
        """One more node; the first is the head. It is up when this returns.

        In the place of the `hidden` folders it sees empty ones of its own, as where a shared disk is not mounted.
        """
        mounts = "".join(f"mount -t tmpfs none '{path}' && " for path in hidden)
        python = ["unshare", "--mount", "sh", "-c", f'{mounts} exec "$0" "$@"'] if hidden else []
        python += [self.python, "-c", before + "\n" + START]
        where = (
            ["--head", "--port", self.address.rpartition(":")[2], f"--include-dashboard={bool(self.jobs)}"]
            if not self.nodes
            else ["--address", self.address]
        )
        if not self.nodes:
            where += ["--temp-dir", self._folder.name]
            where += ["--dashboard-host=127.0.0.1", "--dashboard-port", self.jobs.rpartition(":")[2] or "8265"]
        log = Path(self._folder.name, f"node-{len(self.nodes)}.txt")
        with log.open("wb") as out:
            node = subprocess.Popen(
                [*python, "start", "--block", f"--num-cpus={num_cpus}", *where, *_SMALL],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
                env=os.environ | ENVIRONMENT | (env or {}),
            )
        self.nodes.append(node)
        until = time.monotonic() + _START_SECONDS
        while b"--block" not in log.read_bytes():
            assert node.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            look_again(0.1)
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """As when the power fails: no process of the node says goodbye."""
        kill([node.pid, *below(node.pid)])
        node.wait(600)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)
        self._folder.cleanup()
