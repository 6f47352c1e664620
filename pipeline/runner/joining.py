"""Join a running Ray cluster, or start a Ray of this machine. Every way in which that fails becomes one line."""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, RunError
from manifests.services.local_ray import bound_to_loopback
from pipeline.config import RaySettings

_ANSWER_SECONDS = 5.0  # for a connection, and for the first answer
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""What a client of HTTP/2 says first, with empty settings (RFC 9113, 3.4); Ray's server answers with its own."""
_WHILE_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "5"}
"""Few and short tries; read when ray is imported."""
_TOKEN_NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def address_of(settings: RaySettings) -> str | None:
    """The cluster to join: the setting, or RAY_ADDRESS as `ray job submit` sets it; None for a Ray of this machine."""
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address  # Ray's own word


def count_cpus(settings: RaySettings) -> int:
    """CPUs of the cluster that a build would join; of this machine where it would join none.

    Raises: ConfigError as `join` does.
    """
    address = address_of(settings)
    if not address:
        return os.cpu_count() or 1
    ray = join(address, settings)
    try:
        return int(ray.cluster_resources().get("CPU", 0)) or 1
    finally:
        ray.shutdown()


def join(address: str, settings: RaySettings) -> Any:
    """Join a running cluster. Returns the module ray.

    Raises: ConfigError when none answers, or it does not let this machine in.
    """
    named = f"run.ray.address {address}" if settings.address else f"RAY_ADDRESS {address}"
    _check_answers(address, named)
    if any(map(os.environ.get, _TOKEN_NAMES)) or Path("~/.ray/auth_token").expanduser().is_file():
        # by itself Ray 2.60 uses the account's token only for clusters that it starts or finds, not for an address
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    before = {name: os.environ.get(name) for name in _WHILE_JOINING}
    os.environ.update({name: value for name, value in _WHILE_JOINING.items() if before[name] is None})
    noise: list[str] = []
    try:
        with _catching_stderr(noise):
            ray: Any = importlib.import_module("ray")  # Any: its stubs know neither options nor resources
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=settings.runtime_env or None,
            )
    except (OSError, ValueError) as error:
        if "InvalidAuthToken" not in noise[0]:
            raise ConfigError(f"{named}: no Ray cluster answers there: {error}") from None
        raise ConfigError(
            f"{named}: the cluster wants its token, and this machine has none or another; copy ~/.ray/auth_token from "
            "its head, or set RAY_AUTH_TOKEN_PATH, here and on every node"
        ) from None
    except RuntimeError as error:
        found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if len(found) != 2:
            raise ConfigError(f"{named}: Ray does not start: {' '.join(str(error).split()):.300}") from None
        (ray_there, python_there), (ray_here, python_here) = found
        raise ConfigError(
            f"{named}: the cluster runs Ray {ray_there} on Python {python_there}, this machine Ray {ray_here} on "
            f"Python {python_here}; install the same versions on every node"
        ) from None
    except Exception as error:
        if type(error).__name__ != "AuthenticationError":
            raise
        raise ConfigError(f"{named}: RAY_AUTH_MODE is token and no token is here; set RAY_AUTH_TOKEN_PATH") from None
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
    return ray


def start(num_cpus: int, settings: RaySettings) -> Any:
    """Start a Ray of this machine, on the loopback alone. Returns the module ray.

    Raises: RunError when this machine is too busy for it.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with bound_to_loopback(None):
        ray: Any = importlib.import_module("ray")
        try:
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=settings.runtime_env or None,
            )
        except Exception as error:  # Ray raises a bare one when its processes are not up after half a minute
            raise RunError(
                f"Ray did not start: {' '.join(str(error).split()):.300}. A busy machine may be too slow for it: "
                "run the same command again, or set `run: {executor: inline}`, which needs no Ray"
            ) from None
    return ray


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
    """See that HTTP/2 is spoken at HOST:PORT, where the address has this form. Ray itself would try for minutes.

    Raises: ConfigError.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            if os.environ.get("RAY_USE_TLS", "0") == "1":
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError as error:
        raise ConfigError(f"{named}: no Ray cluster answers there: {error}") from None
    if answer[3:4] != b"\x04":  # a frame of settings
        raise ConfigError(
            f"{named}: something else than Ray answers there; the port of a cluster is 6379 unless its head was "
            "started with another --port (ray://: 10001)"
        )
