"""`plantmix` and `dalip` as forks of one process, so that only the first of each imports for seconds.

A command has arguments, a folder, an environment, streams, a session of its own and an end. What a library reads of
the environment while it is imported is the server's.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from process_tree import below, kill

MODULES = {  # what takes long to import
    "plantmix": ("pipeline.flow", "pipeline.commands.build", "scipy.fft"),
    "dalip": ("open_clip", "training.run.loop", "training.evaluation.evaluate", "matplotlib.backends.backend_agg"),
}
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({place!r})
    command = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(server, [command.encode()], [0, 1, 2])
    server.recv(9)
    code = int(server.recv(9))
    sys.exit(code if code >= 0 else 128 - code)
"""


class Command:
    """A command that was started; what tests need of `subprocess.Popen`. It must be waited for."""

    def __init__(
        self, place: str, name: str, arguments: list[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self.args = [name, *arguments]
        self.returncode: int | None = None
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._texts: list[str] | None = None
        self._lock = threading.Lock()  # a thread of a server may kill it while its test waits for it
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server.connect(place)
        command = json.dumps([name, arguments, str(folder), dict(environment)]).encode()
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), *(stream.fileno() for stream in self._streams)]
            socket.send_fds(self._server, [command], streams)
        self.pid = int(self._server.recv(9))
        _running.append(self)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return code

    def communicate(self, timeout: float = 600) -> tuple[str, str]:
        """What it said on both streams, when it has ended."""
        self.wait(timeout)
        out, err = self.said()
        return out, err

    def said(self) -> list[str]:
        """What it has said on both streams until now."""
        return self._texts or [os.pread(s.fileno(), os.fstat(s.fileno()).st_size, 0).decode() for s in self._streams]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended in between
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    self._end()
        return self.returncode

    def _end(self) -> None:
        self._texts = self.said()
        self.returncode = int(self._server.recv(9))
        for opened in (self._server, *self._streams):
            opened.close()
        _running.remove(self)


_running: list[Command] = []


def end_all() -> None:
    """Kill what still runs, and what that has started: a test that failed has left it."""
    while _running:
        kill([*below(_running[0].pid), _running[0].pid])
        _running[0].wait(500)


class CommandServer:
    """Where commands are asked for."""

    def __init__(self, place: str) -> None:
        self._place = place

    def put_into(self, clone: Path) -> None:
        """Both commands as scripts in `clone`/.venv/bin."""
        (clone / ".venv/bin").mkdir(parents=True)
        for name in MODULES:
            script = clone / ".venv/bin" / name
            script.write_text(CLIENT.format(python=sys.executable, place=self._place, name=name), encoding="utf-8")
            script.chmod(0o755)

    def start(
        self,
        name: str,
        *arguments: str | Path,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        **variables: str,
    ) -> Command:
        """A command in a folder and an environment, which are those of this process, with `variables`."""
        there = dict(os.environ if environment is None else environment) | variables
        return Command(self._place, name, [str(argument) for argument in arguments], folder or Path.cwd(), there)


@contextmanager
def serving_commands(environment: Mapping[str, str]) -> Iterator[CommandServer]:
    """A server of commands, which works while the context lasts."""
    place = f"\0plantmix-{uuid.uuid4().hex}"
    with subprocess.Popen(
        [sys.executable, __file__, place[1:]], env=dict(environment), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n"
            yield CommandServer(place)
        finally:
            server.kill()


def serve(place: str) -> None:
    from patient_ray import be_patient
    from PIL import Image

    from manifests.services.arrow import without_pandas

    be_patient()

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{place}")
        listener.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            message, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
            command = json.loads(message)
            for module in MODULES[command[0]]:
                importlib.import_module(module)
            Image.init()  # 50 modules of formats
            without_pandas()
            gc.freeze()  # else each fork walks through all of it, and copies it, to end: 2 s
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _wait_for(client, *command, streams)
            client.close()
            for stream in streams:
                os.close(stream)


def _wait_for(
    client: socket.socket, name: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> None:
    """Run the command in one more fork; tell the client its process, and when all of it is over how that ended."""
    if child := os.fork():
        client.send(str(child).encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.send(str(code).encode())
        os._exit(0)
    client.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    _run(name, arguments)


def _run(name: str, arguments: list[str]) -> NoReturn:
    from pipeline.cli import main as plantmix
    from training.cli import main as dalip

    if "triton" in sys.modules:
        gc.unfreeze()  # at the end it calls leaked what nobody collected
    sys.argv = [name, *arguments]
    sys.exit({"plantmix": plantmix, "dalip": dalip}[name](arguments))


if __name__ == "__main__":
    serve(sys.argv[1])
