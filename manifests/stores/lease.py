"""The lease on a work folder in a store: one driver holds it, whatever machine it runs on.

The leases of a folder are numbered objects, and the newest counts. A driver takes the next number with a conditional
request. When two drivers find the folder free, exactly one wins. It renews its lease while it lives.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import uuid
from pathlib import Path
from typing import Any

from manifests.errors import RunError
from manifests.stores import storage
from manifests.stores.storage import read_if_there

RENEWED_SECONDS = 60.0
STALE_SECONDS = 300.0


class Lease:
    """The next lease of a folder, which this process holds once it has taken it."""

    def __init__(self, address: str, names: list[str]) -> None:
        """For the work folder at `address`; `names` are the objects in its folder `catalog`."""
        self._address, self._token = address, uuid.uuid4().hex
        self._older = {_number(name) for name in names} - {0}
        self.number = max(self._older, default=0) + 1

    def take(self) -> None:
        """Take it. After a fault of the store call it again: the first call may have succeeded without an answer.

        Raises: RunError when another driver holds the folder, or takes it at the same moment.
        """
        if self._older:
            _refuse_held(self._address, self.number - 1)
        path = _path(self._address, self.number)
        fs, inner = storage.filesystem(path)
        try:
            fs.pipe_file(inner, self._content(), mode="create")
        except FileExistsError:
            if _read(path).get("token") != self._token:
                raise RunError(
                    f"{self._address}: another driver has just taken this work folder; run one build at a time"
                ) from None
        for number in self._older:
            storage.remove_if_there(_path(self._address, number))

    def renew(self) -> None:
        """Say that this driver lives.

        Raises: RunError when another driver has taken the folder meanwhile.
        """
        names = storage.sizes_below(storage.join(self._address, "catalog"))
        if max(map(_number, names), default=0) != self.number:
            raise RunError(
                f"{self._address}: another driver took this work folder, because this one gave no sign of life for "
                f"{STALE_SECONDS / 60:.0f} minutes, or its lease was deleted; what it committed until then stays"
            )
        storage.publish_bytes(_path(self._address, self.number), self._content())

    def release(self) -> None:
        """Leave the folder to the next driver."""
        storage.publish_bytes(_path(self._address, self.number), self._content(is_released=True))

    def _content(self, is_released: bool = False) -> bytes:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content = {
            "host": this_host(),
            "pid": os.getpid(),
            "token": self._token,
            "renewed_at": now,
            "is_released": is_released,
        }
        return json.dumps(content).encode()


def _refuse_held(address: str, number: int) -> None:
    path = _path(address, number)
    held = _read(path)
    if not held:
        return
    age = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(held["renewed_at"])).total_seconds()
    is_dead = held["host"] == this_host() and not Path(f"/proc/{held['pid']}").exists()
    if held["is_released"] or is_dead or age > STALE_SECONDS:
        return
    raise RunError(
        f"{address}: another driver holds this work folder ({held['host']}, process {held['pid']}, last sign of life "
        f"{age:.0f} s ago). If it was killed, its lease ends by itself in {STALE_SECONDS - age:.0f} s; if you are sure "
        f"that it does not run, delete {path} and run the same command again"
    )


def _read(path: str) -> dict[str, Any]:
    """Return the content of a lease; nothing when it is not there any more."""
    return dict(json.loads(read_if_there(path) or b"{}"))


def this_host() -> str:
    """Name this machine or container and its start: process ids of another one mean nothing here."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{boot.read_text().strip()[:8]}/{processes.readlink()}"


def _path(address: str, number: int) -> str:
    return storage.join(address, "catalog", f"lease-{number:06d}.json")


def _number(name: str) -> int:
    return int(name[6:12]) if name.startswith("lease-") and name[6:12].isdigit() else 0
