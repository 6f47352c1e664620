"""Parts as Ray tasks, or in Ray actors where a step holds a model. The only module of the pipeline that imports ray."""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, LostNodeError, PartError, PlantMixError, RetryableError, RunError
from manifests.masking import hide_secrets
from manifests.services.arrow import without_pandas
from manifests.services.local_ray import join_cluster, ray_environment
from manifests.services.scheduling import num_cores
from manifests.stores import storage
from manifests.stores.folder import patiently, store_of
from pipeline.config import RaySettings
from pipeline.engine import node_check
from pipeline.engine.executing import Asked, Done, Job, do_job, never
from pipeline.engine.gates import ActorGate, Keeper
from pipeline.engine.work import Work

log = logging.getLogger("plantmix.runner")

_TICK_SECONDS = 0.5  # how long the driver waits at most before it looks whether it shall stop
_SILENT_SECONDS = 20.0  # a Ray that answers no connection for so long is gone; after 60 s Ray ends the driver itself
_LOOK_SECONDS = 5.0  # how often the driver looks whether Ray answers, while no part ends
_NODE_SECONDS = 90.0  # how long a node may take to start a worker and look; 5 s on a 2-core machine with load 25
_NODE_LOSS_SECONDS = 10.0  # a killed raylet was known to be dead 2 to 4 s after its actors


_LOCAL = RaySettings()
_CLIENT_SCHEME = "ray://"  # its streams of results are not supported. Source: ray-project/ray, issue 43357


def address_of(settings: RaySettings) -> str | None:
    """Return the cluster to join: the setting, or RAY_ADDRESS as `ray job submit` sets it.

    None for a Ray of this machine.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address  # Ray's own word


def _connect(settings: RaySettings, num_workers: int | None) -> Any:
    """Join the cluster that is named, or start a Ray of this machine. Returns the module ray.

    Raises: ConfigError when the cluster lets nobody in, or is to be reached through Ray's client; RunError when this
        machine is too busy for a Ray of its own.
    """
    address = address_of(settings)
    option = "run.ray.address" if settings.address else "RAY_ADDRESS"
    if address and address.startswith(_CLIENT_SCHEME):
        raise ConfigError(
            f"{option} {address}: a build cannot use Ray's client, which sends nothing of a part before the part "
            "ends; give HOST:PORT (port 6379) on a machine of the cluster's network, or run the build on the cluster "
            "with `ray job submit`"
        )
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with ray_environment(address):
        ray: Any = importlib.import_module("ray")  # Any: its stubs know neither options nor resources
        if address:
            join_cluster(ray, option, address, **options)
            return ray
        try:
            ray.init(num_cpus=num_workers or num_cores(), include_dashboard=False, **options)
        except Exception as error:  # Ray raises a bare one when its processes are not up after half a minute
            raise RunError(
                f"Ray did not start: {' '.join(str(error).split()):.300}. A busy machine may be too slow for it: "
                "run the same command again, or set `run: {executor: processes}`, which needs no Ray"
            ) from None
    return ray


def count_cpus(settings: RaySettings) -> int:
    """CPUs of the cluster that a build would join; of this machine where it would join none.

    Raises: ConfigError when the cluster lets nobody in.
    """
    if not address_of(settings):
        return num_cores()
    ray = _connect(settings, None)
    try:
        return int(ray.cluster_resources().get("CPU", 0)) or 1
    finally:
        ray.shutdown()


class RayExecutor:
    """Runs parts as Ray tasks, with few in flight, so that 13 M rows never queue up at once.

    A local Ray has as many CPUs as workers, and answers on the loopback only. Two parts a worker are submitted, so that
    no worker waits for the driver. A cluster may have more CPUs than `num_workers`. There only `num_workers` parts are
    submitted at a time; without `num_workers` their number follows the cluster as nodes come and go.
    """

    def __init__(
        self,
        num_workers: int | None,
        settings: RaySettings = _LOCAL,
        work_dir: str | None = None,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """Join the cluster that the settings or RAY_ADDRESS name, and check each of its nodes, or start a local Ray.

        `places` holds the paths that every node must see, and what each is called in messages. Without a `work_dir`
        no node is checked.

        Raises: ConfigError when the cluster does not answer, or cannot do the parts of this build.
        """
        self._gone = False
        started = time.monotonic()
        address = address_of(settings)
        self._num_asked = num_workers
        self._needs = {"CPU": settings.cpus_per_part}  # of one part, by Ray's names; memory in bytes
        if settings.part_memory_gb:
            self._needs["memory"] = settings.part_memory_gb * 1e9
        log.info("ray: %s", f"joining {address}" if address else "starting")
        ray = self._ray = _connect(settings, num_workers)
        self._gcs = str(ray.get_runtime_context().gcs_address)
        self._home = str(ray.get_runtime_context().get_node_id())
        self._looked = self._answered = time.monotonic()
        self._silence = ""
        self._address, self._work_dir, self._places = address, work_dir, places or {}
        self._nodes: dict[str, bool] = {}  # every node that was seen: is it alive?
        self._followed, self._node_lost = -math.inf, -math.inf
        try:
            self._follow_cluster()
        except PlantMixError:
            ray.shutdown()
            raise
        log.info("ray: %d workers, up in %.1f s", self._num_workers, time.monotonic() - started)
        self._remote = ray.remote(max_retries=0, num_returns="streaming", **self._resources())(_do_in_folder)

    def _resources(self) -> dict[str, Any]:
        return {{"CPU": "num_cpus"}.get(name, name): need for name, need in self._needs.items()}

    def _follow_cluster(self) -> None:
        """Count the CPUs now and then; check nodes that are new, and note when one was lost.

        Raises: ConfigError when no node is large enough for a part, or a new one cannot do what the driver does.
        """
        if time.monotonic() < self._followed + _LOOK_SECONDS:
            return
        self._followed = time.monotonic()
        if self._nodes and not (self._address and self._answers()):  # a local Ray stays as it was started
            return
        nodes = self._ray.nodes()
        alive = [node for node in nodes if node["Alive"]]
        gone = [node["NodeID"] for node in nodes if not node["Alive"] and self._nodes.get(node["NodeID"])]
        if gone:
            self._node_lost = time.monotonic()
            log.warning("ray: %d nodes were lost, %d are left", len(gone), len(alive))
        new = [node for node in alive if node["NodeID"] not in self._nodes and node["Resources"].get("CPU")]
        fitting = [
            min(int(node["Resources"].get(name, 0) / need) for name, need in self._needs.items()) for node in alive
        ]
        if not self._nodes and not any(fitting):
            needs = " and ".join(f"{need:g} {name}" for name, need in self._needs.items())
            raise ConfigError(
                f"Ray at {self._address or 'this machine'}: none of its {len(alive)} nodes has what one part needs "
                f"({needs}); start a worker (`ray start --address HOST:PORT --num-cpus N`), or lower "
                "run.ray.cpus_per_part or run.ray.part_memory_gb"
            )
        if self._address and self._work_dir and new:
            self._check_nodes(new)
        self._nodes |= {node["NodeID"]: node["Alive"] for node in nodes}
        most = max(1, sum(fitting))
        self._num_workers = self._num_asked or most
        self._most_in_flight = self._num_workers if self._address and self._num_asked else 2 * self._num_workers

    def _check_nodes(self, nodes: Sequence[Any]) -> None:
        """See that nodes have the driver's versions, its work folder and its sources.

        Raises: ConfigError with a line for each fault; RunError when the nodes joined a running build.
        """
        assert self._work_dir is not None
        work_dir = store_of(self._work_dir) or str(Path(self._work_dir).absolute())
        look = partial(self._faults_of, nodes, work_dir)
        faults = patiently(work_dir, look) if storage.is_remote(work_dir) else look()
        if faults:
            text = hide_secrets("nodes of the Ray cluster that cannot do this build:\n" + "\n".join(faults))
            raise RunError(f"{text}\nWhat is committed stays") if self._nodes else ConfigError(text)

    def _faults_of(self, nodes: Sequence[Any], work_dir: str) -> list[str]:
        """Why nodes cannot do parts of a work folder, a line each."""
        marker = storage.join(work_dir, "scratch", f"node-check-{uuid.uuid4().hex}")
        places = list(self._places)
        pickling = importlib.import_module("ray.cloudpickle")
        pickling.register_pickle_by_value(node_check)
        try:
            storage.make_parent(marker)
            storage.publish_bytes(marker, b"")
            here = node_check.look(str(Path.cwd()), marker, "-driver", places)
            look = self._ray.remote(num_cpus=0, max_retries=0)(node_check.look)
            asked = {
                look.options(scheduling_strategy=self._only_on(node["NodeID"])).remote(
                    str(Path.cwd()), marker, f"-{node['NodeID']}", places
                ): node
                for node in nodes
            }
            faults = []
            until = time.monotonic() + _NODE_SECONDS
            for answer, node in asked.items():
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                try:
                    there = self._ray.get(answer, timeout=max(0.1, until - time.monotonic()))
                    of_node = list(node_check.compare(here, there, work_dir, self._places))
                    if not of_node and not storage.exists(f"{marker}-{node['NodeID']}"):
                        of_node = ["what it writes into the work folder is not seen here; mount one shared disk there"]
                except self._ray.exceptions.GetTimeoutError:
                    of_node = [f"no worker started within {_NODE_SECONDS:g} s; see Ray's log on that node"]
                except (self._ray.exceptions.NodeDiedError, self._ray.exceptions.TaskUnschedulableError):
                    of_node = []  # it is gone already, and gets no part
                except self._ray.exceptions.RayError as error:
                    cause = str(getattr(error, "cause", None) or error).strip().splitlines()
                    of_node = [f"no worker starts there: {(cause or [type(error).__name__])[-1]}"]
                faults += [f"  {name}: {fault}" for fault in of_node]
        finally:
            pickling.unregister_pickle_by_value(node_check)
            for mark in ("", "-driver", *(f"-{node['NodeID']}" for node in nodes)):
                storage.remove_if_there(marker + mark)
        return faults

    def _only_on(self, node_id: str) -> Any:
        scheduling: Any = importlib.import_module("ray.util.scheduling_strategies")
        return scheduling.NodeAffinitySchedulingStrategy(node_id, soft=False)

    def run(
        self, work: Work, jobs: Sequence[Job], gpus: float | None = None, stopping: Asked = never
    ) -> Iterator[Sequence[Done]]:
        """Yield the results of every job as they come."""
        waiting = list(reversed(jobs))
        in_flight: dict[Any, tuple[Job, Any]] = {}  # by the stream of its results
        failed: set[Any] = set()  # streams whose error is reported; Ray may end such a stream with a second error
        actors: list[Any] = []
        slots: list[Any] = []  # of actors; each has two, so that it never waits for the driver
        folder = str(Path.cwd())
        while waiting or in_flight:
            if stopping():
                waiting.clear()
            self._follow_cluster()
            if gpus is not None and waiting:
                more = self._start_actors(len(jobs), gpus, len(actors))
                actors += more
                slots += [actor.do.options(num_returns="streaming") for actor in more] * 2
            while waiting and (slots if gpus is not None else len(in_flight) < self._most_in_flight):
                job, slot = waiting.pop(), slots.pop(0) if gpus is not None else self._remote
                in_flight[slot.remote(work, job, folder)] = (job, slot)
            came: list[Done] = []
            broken: dict[Any, Exception] = {}
            for stream in self._wait(list(in_flight)):
                job, slot = in_flight[stream]
                try:
                    came.append(self._ray.get(next(stream)))
                except StopIteration:
                    del in_flight[stream]
                    failed.discard(stream)
                    if gpus is not None:
                        slots.append(slot)
                except self._ray.exceptions.RayError as error:
                    broken[stream] = error
            yield came
            for stream, cause in broken.items():  # after the results: to tell what one means can take long, or raise
                job, _ = in_flight[stream]
                done = Done(job, None, self._failure(job, cause), 0.0)
                if stream not in failed:
                    failed.add(stream)
                    yield [done]

    def _wait(self, streams: list[Any]) -> list[Any]:
        """Those of `streams` that have something now: waits for the first one, then takes all."""
        if not streams:
            return []
        ready, _ = self._ray.wait(streams, timeout=_TICK_SECONDS)
        if not ready:
            self._check_alive(_SILENT_SECONDS)
            return []
        ready, _ = self._ray.wait(streams, num_returns=len(streams), timeout=0)
        return list(ready)

    def _start_actors(self, num_jobs: int, gpus: float, num_started: int) -> list[Any]:
        """More workers that live from part to part, where the cluster has room. Ray restarts a worker that was lost.

        Raises: ConfigError when the cluster has too few GPUs for one.
        """
        most = self._num_workers
        if gpus:
            there = float(self._ray.cluster_resources().get("GPU", 0))
            most = min(most, int(there / gpus))
            if not most:
                raise ConfigError(f"a worker needs {gpus:g} GPU and Ray sees {there:g}; set the device to cpu")
        kind = self._ray.remote(num_gpus=gpus, max_restarts=-1, **self._resources())(_Worker)
        return [kind.remote() for _ in range(max(1, min(most, num_jobs)) - num_started)]

    def _failure(self, job: Job, error: Exception) -> PartError | RetryableError:
        """Translate Ray's error for the part.

        Raises: RunError when Ray itself is gone, not only a worker.
        """
        if isinstance(error, self._ray.exceptions.RayTaskError):  # raised by Ray before or after the work
            return PartError(f"{job.key}: {error.cause}")
        self._check_alive(0.0)
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.NodeDiedError) or (
            isinstance(error, exceptions.RayActorError) and self._address and self._lost_a_node()
        ):
            return LostNodeError(f"a node was lost ({text})")
        return RetryableError(f"a worker was lost ({text})")

    def _lost_a_node(self) -> bool:
        """Return whether an actor went with its node.

        Ray tells of the actor first, and of the node some seconds later.
        """
        until = time.monotonic() + _NODE_LOSS_SECONDS
        while time.monotonic() < until:
            self._followed = -math.inf
            self._follow_cluster()
            if time.monotonic() < self._node_lost + 3 * _NODE_LOSS_SECONDS:
                return True
            time.sleep(_TICK_SECONDS)
        return False

    def _check_alive(self, patience: float) -> None:
        """Look whether Ray answers, now and then; at once where no `patience` is left.

        Raises: RunError when nothing has answered for more than `patience` seconds. Otherwise Ray would end this
            process with a message of its own.
        """
        if time.monotonic() < self._looked + min(patience, _LOOK_SECONDS):
            return
        self._looked = time.monotonic()
        if self._answers() or time.monotonic() < self._answered + patience:
            return
        self._gone = True
        raise RunError(
            f"Ray at {self._gcs} is gone ({self._silence}); what is committed stays, run the same command again to go "
            "on"
        )

    def _answers(self) -> bool:
        """Return whether Ray takes a connection now.

        A call to a Ray that is gone would hang, and then end this process.
        """
        host, _, port = self._gcs.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            self._silence = error.strerror or str(error)
            return False
        self._answered = time.monotonic()
        return True

    def share(self, make: Callable[[], Any]) -> Any:
        """Make the object inside an actor and give a proxy for the methods that workers and driver call.

        The actor stands on the driver's node: the loss of another node does not touch it.
        """
        keeper = self._ray.remote(Keeper).options(
            num_cpus=0, max_concurrency=16, max_restarts=-1, scheduling_strategy=self._only_on(self._home)
        )
        return ActorGate(keeper.remote(make))

    def close(self) -> None:
        """Shut the driver's connection (and a local Ray) down."""
        if not self._gone:  # shutting down a lost Ray would end this process
            self._ray.shutdown()


def _do_in_folder(work: Work, job: Job, folder: str) -> Iterator[Done]:
    """Run a job in the folder where the build was started, so that a relative path means the same on every node."""
    without_pandas()
    if Path(folder).is_dir():
        os.chdir(folder)
    yield from do_job(work, job)


class _Worker:
    """Does parts, one after the other, in a process that stays: what a part loads, the next one finds."""

    def do(self, work: Work, job: Job, folder: str) -> Iterator[Done]:
        yield from _do_in_folder(work, job, folder)
