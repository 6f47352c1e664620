"""A Ray of one's own answers on the loopback only: whoever reaches a port of Ray can run code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

# Ray replaces `_node_ip_address=127.0.0.1` by the machine's address (resolve_ip_for_localhost, Ray 2.60). With this
# variable at 0, read when ray is imported, its node has the address 127.0.0.1, and every port binds there.
_NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


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
