"""The object that all workers of a step talk to, inside Ray actors: the gate of the hosts, one or several.

Each actor holds one object. Knows no stage; what a method gives is what the object gives.
"""

from __future__ import annotations

import importlib
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from manifests.errors import RetryableError

_GATE_WAIT_SECONDS = 60.0  # a new actor was up 1 to 3 s after the old one was killed, on a busy 2-core machine


@runtime_checkable
class SplitByHost(Protocol):
    """Makes a shared object of which several may stand side by side, each for its own hosts."""

    def __call__(self) -> Any:
        """The object, new."""
        ...

    def name_of(self, host: str) -> str:
        """The name under which a host is counted; hosts of one name belong to one object."""
        ...


class Keeper:
    """Holds the shared object inside an actor. An actor that replaces a lost one says so to the object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        ray: Any = importlib.import_module("ray")
        self._thing = make()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._thing.start_over()

    def call(self, method: str, *arguments: Any) -> Any:
        """Whatever the object's method gives."""
        return getattr(self._thing, method)(*arguments)


class ActorGate:
    """A handle on the host gates of the cluster (pipeline.fetching.hosts.HostGate). Several share the hosts.

    Every method waits while Ray replaces a lost actor.

    Raises: RetryableError when no actor takes its place; the part is then tried again.
    """

    exchange_interval_seconds = 0.02  # one round trip to an actor took 1.2 ms on a 2-core machine

    def __init__(self, actors: Sequence[Any], name_of: Callable[[str], str] | None = None) -> None:
        """`name_of` gives the name under which a host is counted; without it there is one actor."""
        self._actors = actors
        self._name_of = name_of

    def exchange(self, reports: Any, asked: Any, part: str = "") -> Any:
        """Send reports and ask for permissions, in one round trip to each gate that has a host of them."""
        if len(self._actors) == 1:
            return self._call([("exchange", reports, asked, part)])[0]
        split: list[tuple[list[Any], dict[str, int]]] = [([], {}) for _ in self._actors]
        for report in reports:
            split[self._gate_of(report.host)][0].append(report)
        for host, num in asked.items():
            split[self._gate_of(host)][1][host] = num
        answers = self._call([("exchange", *each, part) if any(each) else None for each in split])
        return {host: verdict for answer in answers if answer for host, verdict in answer.items()}

    def check_in(self, part: str, tally: Any, ended: bool = False) -> bool:
        """Say how far a part is; True when it should store what it has and end."""
        return bool(self._call([("check_in", part, tally, ended)])[0])

    def progress(self) -> Any:
        """What all parts have done so far, and what the hosts gave."""
        total, *others = self._call([("progress",)] * len(self._actors))
        for other in others:
            total.given |= other.given
        return total

    def request_stop(self) -> None:
        """Ask all parts to store what they have and end."""
        self._call([("request_stop",)])

    def _gate_of(self, host: str) -> int:
        name = self._name_of(host) if self._name_of else host
        return zlib.crc32(name.encode()) % len(self._actors)

    def _call(self, calls: Sequence[tuple[Any, ...] | None]) -> list[Any]:
        """One call to each of the first gates, all at once; None asks nothing of that gate."""
        ray: Any = importlib.import_module("ray")
        until = time.monotonic() + _GATE_WAIT_SECONDS
        asked = {number: call for number, call in enumerate(calls) if call}
        answers: list[Any] = [None] * len(calls)
        while True:
            running = {number: self._actors[number].call.remote(*call) for number, call in asked.items()}
            lost = None
            for number, answer in running.items():
                try:
                    # `ray.get` would lend the CPU of a part that waits to one more part, in one more process
                    answers[number] = answer.future().result()
                    del asked[number]
                except ray.exceptions.RayActorError as error:
                    lost = error
            if not lost:
                return answers
            if time.monotonic() > until:
                raise RetryableError(f"the host gate is gone ({type(lost).__name__})") from None
            time.sleep(0.2)
