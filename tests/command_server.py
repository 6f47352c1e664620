"""`plantmix` and `dalip` of shell blocks as forks of one process, so that none of them imports for seconds.

A command has arguments, a folder, an environment, streams and an end of its own. What a library reads of the
environment while it is imported is the server's.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

NAMES = ("plantmix", "dalip")
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({place!r})
    command = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)])
    socket.send_fds(server, [command.encode()], [0, 1, 2])
    sys.exit(int(server.recv(9)))
"""


@contextmanager
def serving_commands(clone: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Put both commands into `clone`/.venv/bin; they work while the context lasts."""
    place = f"\0plantmix-{uuid.uuid4().hex}"
    (clone / ".venv/bin").mkdir(parents=True)
    for name in NAMES:
        script = clone / ".venv/bin" / name
        script.write_text(CLIENT.format(python=sys.executable, place=place, name=name), encoding="utf-8")
        script.chmod(0o755)
    with subprocess.Popen(
        [sys.executable, __file__, place[1:]], env=dict(environment), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


def serve(place: str) -> None:
    for name in ("open_clip", "pipeline.flow", "training.run.loop"):
        importlib.import_module(name)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{place}")
        listener.listen()
        print("ready", flush=True)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            client, _ = listener.accept()
            command, streams, *_ = socket.recv_fds(client, 1 << 20, 3)
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                _wait_for(client, *json.loads(command), streams)
            client.close()
            for stream in streams:
                os.close(stream)


def _wait_for(
    client: socket.socket, name: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> None:
    """Run the command in one more fork, and tell the client how that ended when all of it is over."""
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        client.send(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    client.close()
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

    sys.argv = [name, *arguments]
    sys.exit({"plantmix": plantmix, "dalip": dalip}[name](arguments))


if __name__ == "__main__":
    serve(sys.argv[1])
