"""Messages between the driver and the running parts of a step: how far each part is, and whether to stop.

One `Board` serves all workers of a step. The driver holds it, or an actor holds it for a cluster. Pure state.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

from manifests.contract.outcomes import Outcome

_NUM_WORST = 5
# a host that sent a sound picture has not failed
_SOUND = frozenset(
    {
        Outcome.OK,
        Outcome.TOO_MANY_PIXELS,
        Outcome.TOO_COSTLY,
        Outcome.IMAGE_TOO_SMALL,
        Outcome.ASPECT_TOO_EXTREME,
    }
)


class Given(TypedDict):
    """The yield of a host while one gate watched it."""

    session: str  # of the gate: figures of one session replace each other, those of two add up
    answers: int
    refusals: int  # answers 429 and 503
    paused_seconds: float  # in all, for its refusals
    per_second: float  # answers, from the first to the last
    adaptive: AdaptiveGiven | None


class AdaptiveGiven(TypedDict):
    """The measured pace of an adaptive host."""

    rate: float  # requests a second now
    fastest: float  # of the fastest calm window
    slow_downs: int


def describe_given(figures: Given) -> str:
    """Return the words of `plantmix status`."""
    words = f"{figures['answers']:,} answers"
    if figures["refusals"]:
        words += f", {figures['refusals']:,} refusals (paused {figures['paused_seconds']:,.0f} s)"
    if pace := figures["adaptive"]:
        words += (
            f", {pace['rate']:.2g} requests/s now, {pace['fastest']:.2g} at most, {pace['slow_downs']:,} slow-downs"
        )
    return words


@dataclass
class Tally:
    """Rows that have ended: how they ended, and on which hosts they failed."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Rows by host that brought no sound picture."""
    given: dict[str, Given] = field(default_factory=dict)
    """What the hosts that answered most gave; only the gate fills it in."""

    def add(self, outcome: str, host: str | None) -> None:
        """Count one row."""
        self.outcomes[outcome] += 1
        if outcome not in _SOUND and host:
            self.failures[host] += 1

    def update(self, others: Iterable[Tally]) -> None:
        """Count what others have counted."""
        for other in others:
            self.outcomes.update(other.outcomes)
            self.failures.update(other.failures)

    @property
    def num_rows(self) -> int:
        """Rows that have ended."""
        return self.outcomes.total()

    @property
    def worst_hosts(self) -> dict[str, int]:
        """The hosts on which most rows failed, with the number of those rows."""
        return dict(self.failures.most_common(_NUM_WORST))


class Board:
    """Where parts say how far they are, and where the driver says that it wants to stop; safe for threads."""

    def __init__(self) -> None:
        self._of_part: dict[str, Tally] = {}
        self._of_ended = Tally()
        self._stopping = False
        self._board_lock = threading.Lock()

    def check_in(self, part: str, tally: Tally, ended: bool = False) -> bool:
        """Say how far a part is; returns True when it should store what it has and end."""
        with self._board_lock:
            self._of_part[part] = tally
            if ended:
                self._of_ended.update([self._of_part.pop(part)])
            return self._stopping

    def progress(self) -> Tally:
        """Sum what all parts have done so far."""
        with self._board_lock:
            total = Tally()
            total.update([self._of_ended, *self._of_part.values()])
            return total

    def request_stop(self) -> None:
        """Ask all parts to store what they have and end."""
        self._stopping = True
