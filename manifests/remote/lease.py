"""The lease on a work folder in a store: one driver holds it, whatever machine it runs on.

The leases of a folder are numbered objects, and the newest counts. A driver takes the next number with a conditional
request, so of two drivers that find the folder free one wins. It renews its lease while it lives.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any

from manifests import storage
from manifests.errors import RunError

RENEWED_SECONDS = 60.0
STALE_SECONDS = 300.0


class Lease:
    """A lease that this process holds."""

    def __init__(self, address: str, number: int) -> None:
        self._address, self.number = address, number

    @classmethod
    def take(cls, address: str, names: list[str]) -> Lease:
        """Take the lease of the folder at `address`; `names` are those of the objects in its folder `catalog`.

        Raises: RunError when another driver holds it, or takes it at the same moment.
        """
        newest = max((_number(name) for name in names), default=0)
        if newest:
            _refuse_held(address, newest)
        lease = cls(address, newest + 1)
        fs, inner = storage.filesystem(_path(address, lease.number))
        try:
            fs.pipe_file(inner, _content(is_released=False), mode="create")
        except FileExistsError:
            raise RunError(
                f"{address}: another driver has just taken this work folder; run one build at a time"
            ) from None
        for number in {_number(name) for name in names} - {0}:
            storage.remove_if_there(_path(address, number))
        return lease

    def renew(self) -> None:
        """Say that this driver lives.

        Raises: RunError when another driver has taken the folder meanwhile.
        """
        self._check_held()
        storage.publish_bytes(_path(self._address, self.number), _content(is_released=False))

    def release(self) -> None:
        """Leave the folder to the next driver."""
        storage.publish_bytes(_path(self._address, self.number), _content(is_released=True))

    def _check_held(self) -> None:
        """Raises: RunError when there is a newer lease, or this one was removed for it."""
        fs, inner = storage.filesystem(storage.join(self._address, "catalog"))
        fs.invalidate_cache()
        if max(map(_number, fs.ls(inner, detail=False)), default=0) != self.number:
            raise RunError(
                f"{self._address}: another driver took this work folder, because this one gave no sign of life for "
                f"{STALE_SECONDS / 60:.0f} minutes, or its lease was deleted; what it committed until then stays"
            )


def _refuse_held(address: str, number: int) -> None:
    path = _path(address, number)
    fs, inner = storage.filesystem(path)
    held: dict[str, Any] = json.loads(fs.cat_file(inner, start=0, end=4096))
    age = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(held["renewed_at"])).total_seconds()
    is_dead = held["host"] == _host() and not Path(f"/proc/{held['pid']}").exists()
    if held["is_released"] or is_dead or age > STALE_SECONDS:
        return
    raise RunError(
        f"{address}: another driver holds this work folder ({held['host']}, process {held['pid']}, last sign of life "
        f"{age:.0f} s ago). If it was killed, its lease ends by itself in {STALE_SECONDS - age:.0f} s; if you are sure "
        f"that it does not run, delete {path} and run the same command again"
    )


def _host() -> str:
    """This machine or container since it was started: the process numbers of another one mean nothing here."""
    boot, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{boot.read_text().strip()[:8]}/{processes.readlink()}"


def _path(address: str, number: int) -> str:
    return storage.join(address, "catalog", f"lease-{number:06d}.json")


def _number(name: str) -> int:
    base = name.rpartition("/")[2]
    return int(base[6:12]) if base.startswith("lease-") and base[6:12].isdigit() else 0


def _content(is_released: bool) -> bytes:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return json.dumps({"host": _host(), "pid": os.getpid(), "renewed_at": now, "is_released": is_released}).encode()
