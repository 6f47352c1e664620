"""Take up a work folder that lies in a store, and keep the store's copy of its catalogue up to date.

In the store, below `catalog/`: `snapshot`, all rows at the last seal; `journal/`, an object for each batch of parts
that were committed since then; `status.json`; the leases. Any machine can take the catalogue up from these.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from manifests.contract.catalog_file import (
    CATALOG_FILE,
    JOURNAL_FILE,
    SNAPSHOT_FILE,
    TAKEDOWNS_FILE,
    Snapshot,
    find_snapshot,
    note_closed,
    rebuild,
)
from manifests.errors import ConfigError, RunError
from manifests.stores import storage
from manifests.stores.folder import note, notes_of, patiently, stands_for
from manifests.stores.lease import RENEWED_SECONDS, Lease
from manifests.stores.storage import read_if_there

log = logging.getLogger("plantmix.store")

JOURNAL_SECONDS = 2.0
"""What a driver machine that is lost may take with it: the parts that were committed within so long."""
STATUS_SECONDS = 10.0
_STATUS_FILE = "status.json"
_BESIDE = {_STATUS_FILE: f"catalog/{_STATUS_FILE}", TAKEDOWNS_FILE: TAKEDOWNS_FILE}
"""Small files beside the catalogue, and where they lie in the store."""
_PRESENT = (CATALOG_FILE, f"{CATALOG_FILE}.wal", SNAPSHOT_FILE, JOURNAL_FILE, _STATUS_FILE)


def take_up(address: str) -> str:
    """Bring the catalogue of a work folder in a store here, to read it; returns the local folder.

    Raises: ConfigError when there is no work folder; RunError when the store cannot be reached.
    """
    folder = stands_for(address)
    with _locked(folder) as is_ours:
        if is_ours:  # else a build of this machine is writing it, and it is up to date
            names = _names(address)
            if "snapshot" not in names:
                raise ConfigError(f"{address}: no catalogue here; give the work folder of a build")
            _bring_catalog(address, folder, names)
    return folder


def at_hand(workdir: str) -> str:
    """Return the local folder in which a work folder can be read: itself, or where it was brought out of its store.

    Raises: as `take_up`.
    """
    return take_up(workdir) if storage.is_remote(workdir) else workdir


class Session:
    """The driver's hold on a work folder in a store; `folder` is the local one."""

    def __init__(self, address: str, folder: str, lease: Lease, lock: contextlib.ExitStack) -> None:
        self._address, self.folder, self._lease, self._lock = address, folder, lease, lock
        self._sending = threading.RLock()
        self._number, self._num_sent = "", 0
        self._sent: dict[str, str] = {}  # sha256 of small files, as the store has them
        self._lost: RunError | None = None
        self._closing = threading.Event()
        self._renewed = self._status_sent = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="plantmix-store", daemon=True)

    @classmethod
    def open(cls, address: str) -> Session:
        """Take the lease, and bring the catalogue here.

        Raises: RunError when another driver holds the folder, or the store cannot be reached.
        """
        address, folder = address.rstrip("/"), stands_for(address)
        with contextlib.ExitStack() as stack:
            if not stack.enter_context(_locked(folder)):
                raise RunError(
                    f"{address}: another process of this machine is writing this work folder (a build is running "
                    "here); `plantmix status` works meanwhile"
                )
            names = _names(address)
            lease = Lease(address, names)
            patiently(address, lease.take)
            session = cls(address, folder, lease, stack.pop_all())
        try:
            _bring_catalog(address, folder, names)
        except BaseException:
            session._lease.release()
            session._lock.close()
            raise
        return session

    def check(self) -> None:
        """Raise RunError when another driver has taken the folder."""
        if self._lost is not None:
            raise self._lost

    @contextlib.contextmanager
    def new_snapshot(self) -> Iterator[None]:
        """Around the writing of a snapshot: send it afterwards. The journal before it is merged in it.

        Raises: as `patiently` and `check`.
        """
        self.check()
        with self._sending:
            yield
            content = Path(self.folder, SNAPSHOT_FILE).read_bytes()
            patiently(self._address, self._lease.renew)
            patiently(self._address, lambda: self._send("catalog/snapshot", content))
            digest = hashlib.sha256(content).hexdigest()
            note(self.folder, self._address, snapshot=digest)
            self._number, self._num_sent, has_merged = digest[:12], 0, self._num_sent > 0 or not self._number
            if has_merged:
                self._remove_journal()
            patiently(self._address, self._send_files)
        if not self._thread.ident:
            self._thread.start()

    def close(self) -> None:
        """Send what is left and give the lease back."""
        self._closing.set()
        if self._thread.ident:
            self._thread.join()
        try:
            if self._lost is None:
                with self._sending:
                    patiently(self._address, self._send_journal)
                    patiently(self._address, self._send_files)
                    patiently(self._address, self._lease.release)
        finally:
            self._lock.close()

    def _run(self) -> None:
        failing = False
        while not self._closing.wait(JOURNAL_SECONDS / 2):
            try:
                with self._sending:
                    self._send_journal()
                    if time.monotonic() > self._status_sent + STATUS_SECONDS:
                        self._send_files()
                    if time.monotonic() > self._renewed + RENEWED_SECONDS:
                        self._lease.renew()
                        self._renewed = time.monotonic()
                failing = False
            except RunError as error:
                self._lost = error
                return
            except Exception as error:  # tried again a second later, and at the next seal it ends the build
                log.log(logging.DEBUG if failing else logging.WARNING, "%s: %s", self._address, error)
                failing = True

    def _send(self, path: str, content: bytes) -> None:
        storage.publish_bytes(storage.join(self._address, path), content)

    def _send_journal(self) -> None:
        journal = Path(self.folder, JOURNAL_FILE)
        if not self._number or not journal.exists() or journal.stat().st_size <= self._num_sent:
            return
        with journal.open("rb") as stream:
            stream.seek(self._num_sent)
            content = stream.read()
        content = content[: content.rfind(b"\n") + 1]
        if content:
            self._send(f"catalog/journal/{self._number}-{self._num_sent:012d}", content)
            self._num_sent += len(content)

    def _send_files(self) -> None:
        """Send the status, and the takedown list where it is not the store's."""
        self._status_sent = time.monotonic()
        for name, path in _BESIDE.items():
            content = read_if_there(storage.join(self.folder, name))
            digest = hashlib.sha256(content or b"").hexdigest()
            if content is not None and self._sent.get(name) != digest:
                self._send(path, content)
                self._sent[name] = digest

    def _remove_journal(self) -> None:
        fs, inner = storage.filesystem(storage.join(self._address, "catalog"))
        old = [
            f"{inner}/{name}"
            for name in _names(self._address)
            if name.startswith("journal/") and self._number not in name
        ]
        with contextlib.suppress(FileNotFoundError):  # the answer to a first try was lost; others go at the next seal
            if old:
                patiently(self._address, lambda: fs.rm(old))


def _names(address: str) -> list[str]:
    """Names of the objects of a folder's catalogue."""
    return patiently(address, lambda: list(storage.sizes_below(storage.join(address, "catalog"))))


def _bring_catalog(address: str, folder: str, names: list[str]) -> None:
    """Make the local catalogue what the store says, unless it is the very one that was last sent from here."""

    def read(path: str) -> bytes | None:
        return read_if_there(storage.join(address, path))

    snapshot = read("catalog/snapshot") if "snapshot" in names else None
    digest = hashlib.sha256(snapshot).hexdigest() if snapshot is not None else None
    batches = sorted(name for name in names if digest and name.startswith(f"journal/{digest[:12]}-"))
    notes = notes_of(folder)
    # a driver's own folder notes no batches: it knows all that was sent from it
    is_current = notes.get("snapshot") == digest and notes.get("batches") in (None, len(batches))
    if digest is None or not is_current or not Path(folder, CATALOG_FILE).exists():
        before = find_snapshot(folder)
        for name in _PRESENT:
            Path(folder, name).unlink(missing_ok=True)
        note(folder, address)
        now = None
        if snapshot is not None:
            storage.publish_bytes(storage.join(folder, SNAPSHOT_FILE), snapshot)
            storage.publish_bytes(
                storage.join(folder, JOURNAL_FILE), b"".join(read(f"catalog/{name}") or b"" for name in batches)
            )
            now = rebuild(folder)
            note_closed(folder)
            note(folder, address, snapshot=digest, batches=len(batches))
        _drop_other_tables(folder, before, now)
    for name, path in _BESIDE.items():
        content = read(path) if name == TAKEDOWNS_FILE or name in names else None
        if content is None:
            Path(folder, name).unlink(missing_ok=True)
        elif content != read_if_there(storage.join(folder, name)):
            storage.publish_bytes(storage.join(folder, name), content)


def _drop_other_tables(folder: str, before: Snapshot | None, now: Snapshot | None) -> None:
    """Remove tables that may not be the catalogue's: a part that was done again has files of the same names."""
    hashes_before, hashes_now = (
        {row["path"]: row["sha256"] for row in state.tables.get("files", ())} if state else {}
        for state in (before, now)
    )
    for path in Path(folder, "tables").rglob("*.parquet"):
        name = str(path.relative_to(folder))
        if name not in hashes_before or hashes_before[name] != hashes_now.get(name):
            path.unlink()


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Lock the local folder, and tell whether this process is the only one of this machine that holds it."""
    storage.make_folder(folder)
    with Path(folder, "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
