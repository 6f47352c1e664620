"""The program inside a worker of on_processes.py: it does the parts that the driver sends, one after another.

It ends when the driver does, however that ends: the driver's end of the connection is then closed.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from manifests.errors import PartError
from manifests.services.arrow import without_pandas
from manifests.services.scheduling import STOP_SIGNALS
from pipeline.engine.executing import do_job
from pipeline.engine.gates import GateHandle

_calling = threading.Lock()
_calls: Connection[Any, Any] | None = None  # to the objects that the driver shares; None in the driver


class Shared(GateHandle):
    """A handle on an object of the driver. In the driver it is called at once, in a worker over the connection."""

    def __init__(self, number: int, thing: Any) -> None:
        self._number, self._thing = number, thing

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (self._number, None)

    def _call(self, method: str, *arguments: Any) -> Any:
        if _calls is None:
            return getattr(self._thing, method)(*arguments)
        with _calling:
            _calls.send((self._number, method, arguments))
            answer, error = _calls.recv()
        if error is not None:
            raise error
        return answer


def serve(results_fd: int, calls_fd: int) -> None:
    """Do every part that comes, until the driver has gone.

    Sends a triple (result, error, seconds) for each result. What is about the whole part, or an error, ends the part:
    nothing of it is sent after that. Where a part ends without, None is sent.
    """
    global _calls
    for number in STOP_SIGNALS:  # a scheduler sends them to all processes of a job: it is the driver that asks to stop
        signal.signal(number, lambda *_: None)  # SIG_IGN would be inherited by programs that a part starts
    without_pandas()
    _calls = Connection(calls_fd)
    connection: Connection[Any, Any] = Connection(results_fd)
    sent: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(connection, sent), daemon=True).start()
    while True:
        try:
            work, job = pickle.loads(sent.get())
            ended = False
            for done in do_job(work, job):
                if not ended:
                    connection.send((done.result, done.error, done.seconds))
                    ended = done.result is None or not done.result.is_piece
            if not ended:
                connection.send(None)
        except Exception as error:  # what cannot be pickled here or there: a defect, and the next part may be well
            told = PartError(f"{type(error).__name__}: {error}; a part or its result could not be sent")
            connection.send((None, told, 0.0))


def _receive(connection: Connection[Any, Any], sent: queue.SimpleQueue[bytes]) -> None:
    """Take in what the driver sends. Leaves at once when it has gone: nobody would publish what this part makes."""
    try:
        while True:
            sent.put(connection.recv_bytes())
    except (EOFError, OSError):
        os._exit(0)
