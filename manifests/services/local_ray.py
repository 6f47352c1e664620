"""Start a Ray of our own, or join a running cluster.

Ours answers on the loopback alone: whoever reaches a port of Ray can run code.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, words_of

# Ray replaces `_node_ip_address=127.0.0.1` by the machine's address (resolve_ip_for_localhost, Ray 2.60). With this
# variable at 0, read when ray is imported, its node has the address 127.0.0.1, and every port binds there.
_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_CONNECT_SECONDS = 5.0  # for a connection, and for the first answer
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""What a client of HTTP/2 says first, with empty settings (RFC 9113, 3.4); Ray's server answers with its own."""
_SHORT_TRIES = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "5"}


@contextmanager
def ray_environment(address: str | None) -> Iterator[None]:
    """Import ray, and start or join one, within this.

    A Ray of one's own is bound to the loopback. The cluster at `address` is tried a few times, with the token of this
    account where it has one: by itself Ray 2.60 uses that only for clusters that it starts or finds.

    Ray's workers look for modules first in the folder where Ray was started or joined, whatever PYTHONSAFEPATH says. A
    package `pipeline` there would hide ours. So that folder is the root here, and PYTHONPATH is made absolute.
    """
    if address is None:
        changed = {_NO_CLUSTER: "0"}
    else:
        tokens = map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
        has_token = any(tokens) or Path("~/.ray/auth_token").expanduser().is_file()
        variables = _SHORT_TRIES | ({"RAY_AUTH_MODE": "token"} if has_token else {})
        changed = {name: value for name, value in variables.items() if name not in os.environ}
    if paths := os.environ.get("PYTHONPATH"):
        changed["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, paths.split(os.pathsep)))
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        with chdir(os.sep):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def join_cluster(ray: Any, option: str, address: str, **options: Any) -> None:
    """Join the running cluster at `address`, which `option` gave. Every failure becomes one line.

    Raises: ConfigError when none answers, or it does not let this machine in.
    """
    named = f"{option} {address}"
    _check_answers(address, named)
    noise: list[str] = []
    try:
        with _catching_stderr(noise):
            ray.init(address=address, **options)
    except (OSError, ValueError) as error:
        if "InvalidAuthToken" not in noise[0]:
            raise ConfigError(f"{named}: no Ray cluster answers there: {error}") from None
        raise ConfigError(
            f"{named}: the cluster needs its token, and this machine has none or another; copy ~/.ray/auth_token from "
            "its head, or set RAY_AUTH_TOKEN_PATH, here and on every node"
        ) from None
    except RuntimeError as error:
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if len(versions) != 2:
            raise ConfigError(f"{named}: Ray does not start: {words_of(error)}") from None
        (ray_there, python_there), (ray_here, python_here) = versions
        raise ConfigError(
            f"{named}: the cluster runs Ray {ray_there} on Python {python_there}, this machine Ray {ray_here} on "
            f"Python {python_here}; install the same versions on every node"
        ) from None
    except ray.exceptions.AuthenticationError:
        raise ConfigError(f"{named}: RAY_AUTH_MODE is token, but no token is here; set RAY_AUTH_TOKEN_PATH") from None


@contextmanager
def _catching_stderr(caught: list[str]) -> Iterator[None]:
    """Append what is written to stderr meanwhile: Ray's C++ side repeats there why it cannot connect."""
    with tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            caught.append(file.read().decode(errors="replace"))


def _check_answers(address: str, named: str) -> None:
    """See that HTTP/2 is spoken at HOST:PORT, where the address has this form. Ray itself would try for eight minutes.

    Raises: ConfigError.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as connection:
            connection.settimeout(_CONNECT_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise ConfigError(f"{named}: no Ray cluster answers there: {error}") from None
    if answer[3:4] != b"\x04":  # a frame of settings
        raise ConfigError(
            f"{named}: what answers there is not Ray; the port of a cluster is 6379 unless its head was "
            "started with another --port (ray://: 10001)"
        )
