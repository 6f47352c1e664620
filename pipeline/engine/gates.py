"""A handle on the object that all workers of a step talk to: the gate of the hosts, in another process.

Knows no stage; what a method gives is what the object gives.
"""

from __future__ import annotations

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from manifests.errors import RetryableError

_GATE_WAIT_SECONDS = 60.0  # a new actor was up 1 to 3 s after the old one was killed, on a busy 2-core machine


class GateHandle(ABC):
    """The methods of a gate that driver and workers call (pipeline.fetching.hosts.HostGate)."""

    exchange_interval_seconds = 0.02  # one round trip to an actor took 1.2 ms on a 2-core machine, to a process 0.1 ms

    def exchange(self, reports: Any, asked: Any, part: str = "") -> Any:
        """Send reports and ask for permissions."""
        return self._call("exchange", reports, asked, part)

    def check_in(self, part: str, tally: Any, ended: bool = False) -> bool:
        """Say how far a part is; True when it should store what it has and end."""
        return bool(self._call("check_in", part, tally, ended))

    def progress(self) -> Any:
        """Sum what all parts have done so far, and what the hosts gave."""
        return self._call("progress")

    def request_stop(self) -> None:
        """Ask all parts to store what they have and end."""
        self._call("request_stop")

    @abstractmethod
    def _call(self, method: str, *arguments: Any) -> Any:
        """Call the object's method."""


class Keeper:
    """Holds the object inside an actor of Ray. An actor that replaces a lost one says so to the object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        ray: Any = importlib.import_module("ray")
        self._thing = make()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._thing.start_over()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the object's method."""
        return getattr(self._thing, method)(*arguments)


class ActorGate(GateHandle):
    """A gate inside an actor. Every method waits while Ray replaces a lost actor.

    Raises: RetryableError when no actor takes its place; the part is then tried again.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, method: str, *arguments: Any) -> Any:
        ray: Any = importlib.import_module("ray")
        until = time.monotonic() + _GATE_WAIT_SECONDS
        while True:
            try:
                # `ray.get` would lend the CPU of a part that waits to one more part, in one more process
                return self._actor.call.remote(method, *arguments).future().result()
            except ray.exceptions.RayActorError as error:
                if time.monotonic() > until:
                    raise RetryableError(f"the host gate is gone ({type(error).__name__})") from None
            time.sleep(0.2)
