"""Threads between network and writer: each takes a finished download and measures its picture.

Pillow lets other threads run while it decodes, resizes and encodes, so two such threads keep two cores busy beside the
one that writes. Reads from a Scheduler, writes nothing. A programming error in a thread is raised in the caller.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from dataclasses import replace

from manifests.contract.outcomes import Outcome
from pipeline.fetching import settings as bounds
from pipeline.fetching.consent.statements import PICTURE
from pipeline.fetching.pictures.consent import counting
from pipeline.fetching.pictures.image import Rejected, StoredImage, measure_image
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import FetchSettings
from pipeline.fetching.visits import Download

_TICK_SECONDS = 0.25
_MAX_MEASURED = 64  # measured pictures that wait for the writer, which is by far the fastest of all


Measured = tuple[int, Download | None, StoredImage | Rejected | None]
"""Number of a row; its download, None when it was not asked; and, where bytes came, what they measure."""


class Decoders:
    """Measures the pictures of one part; iterate `results` once."""

    def __init__(self, downloads: Scheduler, settings: FetchSettings) -> None:
        self._downloads = downloads
        self._image = settings.image
        self._consent_signals = settings.network.consent_signals
        self._measured: queue.Queue[Measured | BaseException] = queue.Queue(_MAX_MEASURED)
        self._num_left = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def results(self, num: int) -> Generator[Measured | None]:
        """Every row once, in the order they end; None whenever nothing has ended for a moment.

        Raises: whatever a thread raised.
        """
        self._num_left = num
        threads = [threading.Thread(target=self._run, daemon=True, name="decode") for _ in range(bounds.DECODE_THREADS)]
        for thread in threads:
            thread.start()
        try:
            while num:
                try:
                    item = self._measured.get(timeout=_TICK_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(item, BaseException):
                    raise item
                num -= 1
                yield item
        finally:
            self._stop.set()
            while not self._measured.empty():  # lets threads that wait for room end
                self._measured.get_nowait()

    def _run(self) -> None:
        try:
            while self._claim():
                self._measured.put(self._measure())
        except BaseException as error:  # a defect of ours: raised in the caller, who would wait for ever
            self._measured.put(error)

    def _claim(self) -> bool:
        with self._lock:
            self._num_left -= 1
            return self._num_left >= 0 and not self._stop.is_set()

    def _measure(self) -> Measured:
        row, download = self._downloads.take()
        if download is None or download.outcome is not Outcome.OK:
            return row, download, None
        result = measure_image(download.body, self._image)
        heard = dict(download.said)
        if isinstance(result, StoredImage):
            heard[PICTURE] = [result.detail] if result.detail else []
        if isinstance(result, StoredImage) and result.detail and counting(result.detail, self._consent_signals):
            result = Rejected(Outcome.OPTED_OUT, result.detail, result.original)
        self._downloads.release(download)
        return row, replace(download, body=b"", said=heard), result
