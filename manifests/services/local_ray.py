"""A Ray of one's own, which answers on the loopback only, because whoever reaches a port of Ray can run code; or a
running cluster.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manifests.errors import ConfigError

# Ray replaces `_node_ip_address=127.0.0.1` by the machine's address (resolve_ip_for_localhost, Ray 2.60). With this
# variable at 0, read when ray is imported, its node has the address 127.0.0.1, and every port binds there.
_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_CONNECT_SECONDS = 5.0


@contextmanager
def bound_to_loopback(address: str | None) -> Iterator[None]:
    """Import and start Ray within this; it changes nothing where the `address` of a cluster is given."""
    before = os.environ.get(_NO_CLUSTER)
    if address is None:
        os.environ[_NO_CLUSTER] = "0"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_NO_CLUSTER, None)
        else:
            os.environ[_NO_CLUSTER] = before


def join_cluster(ray: Any, option: str, address: str, **options: Any) -> None:
    """Join the running cluster at `address`, which `option` gave.

    Connects to its port first, since Ray itself would try a dead one for eight minutes, and then end the process.

    Raises: ConfigError when nothing answers there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if host and port.isdecimal():
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        ray.init(address=address, **options)
    except OSError as error:
        raise ConfigError(f"{option} {address}: no Ray cluster answers there: {error}") from None
