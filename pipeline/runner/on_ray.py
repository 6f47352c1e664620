"""Parts as Ray tasks, or in Ray actors where a step holds a model. The only module of the pipeline that imports ray."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from manifests.errors import ConfigError, PartError, RetryableError, RunError
from manifests.local_ray import bound_to_loopback
from pipeline.runner.executing import Asked, Done, Job, Work, do_job, never

log = logging.getLogger("plantmix.runner")

_TICK_SECONDS = 0.5  # how long the driver waits at most before it looks whether it shall stop
_SILENT_SECONDS = 20.0  # a Ray that answers no connection for so long is gone; after 60 s Ray ends the driver itself
_LOOK_SECONDS = 5.0  # how often the driver looks whether Ray answers, while no part ends
_GATE_WAIT_SECONDS = 60.0  # a new actor was up 1 to 3 s after the old one was killed, on a busy 2-core machine


def _check_answers(address: str) -> None:
    """See that something listens at HOST:PORT. Ray itself would try for eight minutes, and then end the process.

    Raises: ConfigError.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LOOK_SECONDS).close()
    except OSError as error:
        raise ConfigError(f"run.ray_address {address}: no Ray cluster answers there: {error}") from None


class RayExecutor:
    """Runs parts as Ray tasks, with few in flight, so that 13 M rows never queue up at once.

    A local Ray has as many CPUs as workers, and answers on the loopback only. Two parts a worker are submitted, so that
    no worker waits for the driver. A cluster may have more CPUs than `num_workers`. There only `num_workers` parts are
    submitted at a time.
    """

    def __init__(self, num_workers: int | None, address: str | None) -> None:
        self._gone = False
        started = time.monotonic()
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address:
            _check_answers(address)
            options["address"] = address
        else:
            options |= {"num_cpus": num_workers or os.cpu_count() or 1, "include_dashboard": False}
        log.info("ray: %s", f"joining {address}" if address else "starting")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with bound_to_loopback(address):
            ray: Any = importlib.import_module("ray")  # Any: its stubs know neither options nor resources
            try:
                ray.init(**options)
            except ConnectionError as error:
                raise ConfigError(f"run.ray_address {address}: no Ray cluster answers there: {error}") from None
            except Exception as error:  # Ray raises a bare one when its processes are not up after a minute
                raise RunError(
                    f"Ray did not start: {' '.join(str(error).split()):.300}. A busy machine may be too slow for it: "
                    "run the same command again, or set `run: {executor: inline}`, which needs no Ray"
                ) from None
        self._ray = ray
        # through a client connection (ray://) the cluster is only seen by its proxy, and has no such address
        through_proxy = address is not None and address.startswith("ray://")
        self._gcs = "" if through_proxy else str(ray.get_runtime_context().gcs_address)
        workers = num_workers or int(ray.cluster_resources().get("CPU", 1))
        self._most_in_flight = workers if address and num_workers else 2 * workers
        self._looked = self._answered = time.monotonic()
        log.info("ray: %d workers, up in %.1f s", workers, time.monotonic() - started)
        self._num_workers = workers
        self._remote = ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(do_job)

    def run(
        self, work: Work, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Done]:
        """Yield the results of every job as they come."""
        waiting = list(reversed(jobs))
        in_flight: dict[Any, tuple[Job, Any]] = {}  # by the stream of its results
        failed: set[Any] = set()  # streams whose error is reported; Ray may end such a stream with a second error
        actors = self._start_actors(len(jobs), gpus) if gpus is not None else []
        # a slot takes one job at a time; an actor has two, so that it never waits for the driver
        slots = [actor.do.options(num_returns="streaming") for actor in actors] * 2
        slots = slots or [self._remote] * self._most_in_flight
        while waiting or in_flight:
            if stopping():
                waiting.clear()
            while waiting and slots:
                job, slot = waiting.pop(), slots.pop(0)
                in_flight[slot.remote(work, job)] = (job, slot)
            ready, _ = self._ray.wait(list(in_flight), timeout=_TICK_SECONDS) if in_flight else ([], [])
            if not ready:
                self._check_alive(_SILENT_SECONDS)
            for stream in ready:
                job, slot = in_flight[stream]
                try:
                    yield self._ray.get(next(stream))
                except StopIteration:
                    del in_flight[stream]
                    failed.discard(stream)
                    slots.append(slot)
                except self._ray.exceptions.RayError as error:
                    done = Done(job, None, self._failure(job, error), 0.0)
                    if stream not in failed:
                        failed.add(stream)
                        yield done

    def _start_actors(self, num_jobs: int, gpus: float) -> list[Any]:
        """Workers that live from part to part. Ray restarts a worker that was lost.

        Raises: ConfigError when the cluster has too few GPUs for one.
        """
        most = self._num_workers
        if gpus:
            there = float(self._ray.cluster_resources().get("GPU", 0))
            most = min(most, int(there / gpus))
            if not most:
                raise ConfigError(f"a worker needs {gpus:g} GPU and Ray sees {there:g}; set the device to cpu")
        kind = self._ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=-1)(_Worker)
        return [kind.remote() for _ in range(max(1, min(most, num_jobs)))]

    def _failure(self, job: Job, error: Exception) -> PartError | RetryableError:
        """What Ray's error means for the part.

        Raises: RunError when Ray itself is gone, not only a worker.
        """
        if isinstance(error, self._ray.exceptions.RayTaskError):  # raised by Ray before or after the work
            return PartError(f"{job.key}: {error.cause}")
        self._check_alive(0.0)
        return RetryableError(f"a worker was lost ({type(error).__name__}: {str(error).splitlines()[0]})")

    def _check_alive(self, patience: float) -> None:
        """Look whether Ray answers, now and then; at once where no `patience` is left.

        Raises: RunError when nothing has answered for more than `patience` seconds. Otherwise Ray would end this
            process with a message of its own.
        """
        if not self._gcs or time.monotonic() < self._looked + min(patience, _LOOK_SECONDS):
            return
        self._looked = time.monotonic()
        host, _, port = self._gcs.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            self._answered = time.monotonic()
        except OSError as error:
            if time.monotonic() < self._answered + patience:
                return
            self._gone = True
            raise RunError(
                f"Ray at {self._gcs} is gone ({error.strerror or error}); what is committed stays, run the same "
                "command again to go on"
            ) from None

    def share(self, make: Callable[[], Any]) -> Any:
        """Make the object inside an actor and give a proxy for the methods that workers and driver call."""
        keeper = self._ray.remote(_Keeper).options(num_cpus=0, max_concurrency=16, max_restarts=-1)
        actor = keeper.remote(make)
        return ActorGate(actor)

    def close(self) -> None:
        """Shut the driver's connection (and a local Ray) down."""
        if not self._gone:  # shutting down a lost Ray would end this process
            self._ray.shutdown()


class _Worker:
    """Does parts, one after the other, in a process that stays: what a part loads, the next one finds."""

    def do(self, work: Work, job: Job) -> Iterator[Done]:
        yield from do_job(work, job)


class _Keeper:
    """Holds the shared object inside an actor. An actor that replaces a lost one says so to the object."""

    def __init__(self, make: Callable[[], Any]) -> None:
        ray: Any = importlib.import_module("ray")
        self._thing = make()
        if ray.get_runtime_context().was_current_actor_reconstructed:
            self._thing.start_over()

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._thing, method)(*arguments)


class ActorGate:
    """A handle on the one host gate of the cluster (pipeline.fetching.hosts.HostGate).

    Every method waits while Ray replaces a lost actor.

    Raises: RetryableError when no actor takes its place; the part is then tried again.
    """

    exchange_interval_seconds = 0.02  # one round trip to an actor took 1.2 ms on a 2-core machine

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def exchange(self, reports: Any, wanted: Any) -> Any:
        """Send reports and ask for permissions in one round trip."""
        return self._call("exchange", reports, wanted)

    def check_in(self, part: str, tally: Any, ended: bool = False) -> bool:
        """Say how far a part is; True when it should store what it has and end."""
        return bool(self._call("check_in", part, tally, ended))

    def progress(self) -> Any:
        """What all parts have done so far."""
        return self._call("progress")

    def request_stop(self) -> None:
        """Ask all parts to store what they have and end."""
        self._call("request_stop")

    def _call(self, method: str, *arguments: Any) -> Any:
        ray: Any = importlib.import_module("ray")
        until = time.monotonic() + _GATE_WAIT_SECONDS
        while True:
            try:
                return ray.get(self._actor.call.remote(method, *arguments))
            except ray.exceptions.RayActorError as error:
                if time.monotonic() > until:
                    raise RetryableError(f"the host gate is gone ({type(error).__name__})") from None
                time.sleep(0.2)
