"""`dalip proxies`: many small runs over a list of mixtures, and a table of their losses for the planner.

Reads one stratified release, a config and a list of runs, as `plantmix plan design` writes it. Writes a folder for each
run (what `dalip train` leaves, and proxy.json), the decoded pictures that all runs share, runs.csv and, when the config
names a work folder, the rows of its catalogue's table `proxy_runs`. Only this process writes the table and the
catalogue, after every run. Finished runs are kept, an interrupted one goes on from its checkpoint. Gives up with
ConfigError before any run on a list that does not fit the release. A failed run does not stop the others.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manifests.errors import ConfigError, PlantMixError, RunError, words_of
from manifests.services.child import end_with_parent
from manifests.stores.storage import is_remote, join, make_folder, publish_bytes, publish_json
from training.config import TrainSettings, identity_values
from training.data import loader
from training.data.decoded import decode_shard, open_decoded, prepare_decoded
from training.data.shards import SamplePool, open_pool
from training.proxies.runs import ProxyRun, ProxySettings, check_runs, read_runs, run_settings
from training.record import checkpoint
from training.record.run_folder import inspect_run
from training.run.stopping import StoppedError

RESULT_FILE = "proxy.json"
CONSOLE_FILE = "console.log"  # what a run prints while it trains
TABLE_FILE = "runs.csv"
DECODED_FOLDER = "decoded"
_MIN_HELDOUT = 2  # pairs of a domain without which it has no contrastive loss
_DECODING_SECONDS = 3600.0  # the longest that a task of an array waits while another one decodes
_MIN_DECODED_APART = 5000  # pictures: they take about as long to decode as processes to start (5 to 10 s, 2026-11)

PrintLine = Callable[[str], None]
StartTasks = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[tuple[int, Any]]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of `run_proxies`: results in the order of the list, and each failed run with its message."""

    results: list[dict[str, Any]]
    num_reused: int
    failed: dict[str, str]
    table: Path


@dataclass(frozen=True)
class ProxyTask:
    """One run, as it goes to the process that does it."""

    settings: TrainSettings
    run: ProxyRun
    model_size: str
    decoded: Path | None
    decoded_side_px: int | None


def run_proxies(
    settings: ProxySettings, print_line: PrintLine = print, *, ray_address: str | None = None, task: int | None = None
) -> Outcome:
    """Do every run of the list that is not done yet, and print a line for each.

    With `task` only the run of that number, while others may do other ones. It leaves the table to a command without.

    Runs go to processes of this machine, or, with a `ray_address` ("local" starts a Ray here), to a Ray cluster.

    Raises: ConfigError before anything is written; StoppedError on a signal, when the run at work has saved its
    checkpoint; RunError when the catalogue cannot be written at the end.
    """
    if ray_address is not None and settings.compute.num_threads is None:
        # This machine's number of cores says nothing about the cluster's; with a thread a run none stays idle.
        settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"num_threads": 1})})
    runs = read_runs(settings)
    _check_catalogue(settings)
    release = loader.open_releases(settings.release)[0]
    pool, heldout = open_pool([release], settings.data.split), open_pool([release], str(settings.eval.split))
    if settings.data.check_shards:
        loader.check_shards([release], settings.data.split, str(settings.eval.split))
    check_runs(runs, pool, settings)
    _check_heldout(heldout, runs)
    folder = Path(settings.output_dir)
    if task is not None:
        if not 1 <= task <= len(runs):
            raise ConfigError(f"--task {task}: the list has {len(runs)} runs, the first is 1")
        runs = [runs[task - 1]]
    for run in runs:  # a folder of another config stops the command before the first run
        finished_result(settings, run, release.fingerprint)
    with ExitStack() as stack:
        stack.enter_context(checkpoint.lock_folder(folder, _DECODING_SECONDS if task else 0.0))
        start = _choose_start(settings, ray_address)
        decoded = _decode(settings, pool, folder, start, print_line)
        if task is not None:
            stack.close()  # from here on it writes into the run's own folder, which has a lock of its own
        finished = {run.run: finished_result(settings, run, release.fingerprint) for run in runs}
        done = {name: result for name, result in finished.items() if result is not None}
        todo = [run for run in runs if run.run not in done]
        table = _ResultTable(settings, list(done.values()), len(todo), writes=task is None)
        size = settings.model_size or Path(settings.model.architecture).stem
        tasks = [ProxyTask(run_settings(settings, run), run, size, decoded, settings.decoded_side_px) for run in todo]
        failed: dict[str, str] = {}
        for number, result in start(run_one, tasks):
            name = todo[number].run
            if isinstance(result, StoppedError):
                raise result
            if isinstance(result, PlantMixError):
                failed[name] = str(result)
                print_line(f"{name}: failed: {result}")
            else:
                done[name] = result
                print_line(table.add(result))
        table.close()
    results = [done[run.run] for run in runs if run.run in done]
    return Outcome(results, len(runs) - len(todo), failed, folder / TABLE_FILE)


def run_one(task: ProxyTask) -> dict[str, Any] | PlantMixError:
    """One run in its process: train (or go on), measure, write proxy.json.

    An error comes back as a value, so that it keeps its class and message between processes. The traceback of any other
    exception (out of device memory, say) goes into the run's console.log.
    """
    folder = Path(task.settings.output_dir)
    make_folder(str(folder))
    console = folder / CONSOLE_FILE
    try:
        return _train_and_measure(task, console)
    except PlantMixError as error:
        return error
    except Exception as error:  # one failed run does not stop the others
        with console.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
        return RunError(f"{words_of(error)}; more in {console}")


def _train_and_measure(task: ProxyTask, console: Path) -> dict[str, Any]:
    from training.evaluation.encoding import evaluation_device
    from training.evaluation.evaluate import domain_losses
    from training.evaluation.trained_model import load_run_model
    from training.run.loop import train

    settings, folder = task.settings, Path(task.settings.output_dir)
    releases = loader.open_releases(settings.release or ())
    pool = open_pool(releases, settings.data.split)
    if task.decoded is not None:
        pool = open_decoded(pool, task.decoded)
    with console.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        summary, _ = train(settings, pool=pool)
        model = load_run_model(settings, folder).model.to(evaluation_device(settings))
        figures = domain_losses(model, open_pool(releases, str(settings.eval.split)), settings)
    result = {
        "run": task.run.run,
        "seed": settings.seed,
        "model_size": task.model_size,
        "step": summary["steps"],
        "samples_seen": summary["samples_seen"],
        "mixture": task.run.mixture,
        "losses": {name: figure for name, figure in figures.items() if name != "all"},
        "epochs": count_epochs(pool, settings, summary["samples_seen"]),
        "validation": _validation(settings, releases[0].fingerprint),
        "decoded_side_px": task.decoded_side_px,
        "seconds": round(summary["seconds"], 1),
    }
    publish_json(folder / RESULT_FILE, result)
    return result


def count_epochs(pool: SamplePool, settings: TrainSettings, samples_seen: int) -> dict[str, float]:
    """Return how often a run saw a sample of each domain on average: what it drew, over what its (cut) pool holds."""
    order = loader.build_order(pool, settings.data, settings.release, settings.seed)
    domains = np.asarray(pool.table["domain"])
    held = Counter(domains[np.concatenate([part.rows for part in order.strata])].tolist())
    seen = Counter(domains[order.rows(0, samples_seen)].tolist())
    return {name: (seen[name] / held[name] if held[name] else 0.0) for name in sorted(pool.domains)}


def finished_result(settings: ProxySettings, run: ProxyRun, fingerprint: str) -> dict[str, Any] | None:
    """Return the result of a run that was finished before and measured in the same way, or None.

    Raises: ConfigError when the folder holds a run of another config, list or release.
    """
    of_run = run_settings(settings, run)
    folder = Path(of_run.output_dir)
    state = inspect_run(folder, identity_values(of_run, [fingerprint]))
    path = folder / RESULT_FILE
    if state.kind != "finished" or not path.is_file():
        return None
    result = checkpoint.read_json(path)
    if result["decoded_side_px"] != settings.decoded_side_px:
        raise ConfigError(f"{folder}: was run with another decode_once; choose another output_dir, or set it back")
    return result if result["validation"] == _validation(of_run, fingerprint) else None


def table_row(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as a row of the planner's table.

    Mix_, loss_ and epochs_ of each domain, and how it was measured.
    """
    row = {name: result[name] for name in ("run", "model_size", "step", "seed", "samples_seen")}
    row |= {f"mix_{name}": share for name, share in sorted(result["mixture"].items())}
    row |= {f"loss_{name}": figure["value"] for name, figure in sorted(result["losses"].items())}
    row |= {f"epochs_{name}": round(value, 4) for name, value in sorted(result["epochs"].items())}
    how = result["validation"]
    return row | {"validation_release": how["release"], "validation_batch_size": how["batch_size"]}


class _ResultTable:
    """Keeps runs.csv and the catalogue up to date. While a build holds the catalogue, its rows wait."""

    def __init__(self, settings: ProxySettings, done_before: list[dict[str, Any]], num_todo: int, writes: bool) -> None:
        self.settings, self.writes = settings, writes
        self.results, self.num_runs = done_before, len(done_before) + num_todo
        self.num_before, self.started = len(done_before), time.monotonic()
        self.not_in_catalogue = list(done_before)
        self._write()

    def add(self, result: dict[str, Any]) -> str:
        """Record a result; returns a line that shows it and the time left."""
        self.results.append(result)
        self.not_in_catalogue.append(result)
        self._write()
        mixture = ", ".join(f"{name} {share:.3g}" for name, share in result["mixture"].items())
        losses = "  ".join(f"{name} {figure['value']:.3f}" for name, figure in sorted(result["losses"].items()))
        seconds_a_run = (time.monotonic() - self.started) / (len(self.results) - self.num_before)
        left = seconds_a_run * (self.num_runs - len(self.results))
        return (
            f"{result['run']} ({len(self.results)}/{self.num_runs})  {mixture}  loss: {losses}  "
            f"{result['seconds']:.0f} s  ETA {timedelta(seconds=round(left))}"
        )

    def close(self) -> None:
        """Raise RunError when rows are still not in the catalogue."""
        try:
            if self.writes:
                self._commit()
        except RunError as error:
            raise RunError(
                f"{len(self.not_in_catalogue)} of {len(self.results)} finished runs are not in the catalogue yet: "
                f"{error}. They are kept; run the same command again"
            ) from None

    def _write(self) -> None:
        if not self.results or not self.writes:
            return
        rows = [table_row(result) for result in sorted(self.results, key=lambda result: str(result["run"]))]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")  # all runs name the same domains
        writer.writeheader()
        writer.writerows(rows)
        publish_bytes(join(self.settings.output_dir, TABLE_FILE), text.getvalue().encode("utf-8"))
        try:
            self._commit()
        except RunError:  # a build holds the catalogue: tried again after the next run, and at the end
            return

    def _commit(self) -> None:
        if self.settings.catalogue is None or not self.not_in_catalogue:
            return
        from manifests.contract.catalog import Catalog

        study = Path(self.settings.output_dir).name
        with Catalog.open(self.settings.catalogue) as catalog:
            catalog.record_proxy_runs(study, self.not_in_catalogue)
        self.not_in_catalogue = []


def _choose_start(settings: ProxySettings, ray_address: str | None) -> StartTasks:
    """Return the function that works through tasks: in processes of this machine, or on Ray."""
    if ray_address is None:
        return lambda work, tasks: _each_result(work, tasks, settings)
    from training.proxies.on_ray import each_result_on_ray

    address = None if ray_address == "local" else ray_address
    return lambda work, tasks: each_result_on_ray(work, tasks, settings, address)


def _each_result(
    work: Callable[[Any], Any], tasks: Sequence[Any], settings: ProxySettings
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the task, result) in the order of completion, in processes that end with this one.

    They are spawned, so that none inherits torch's threads. One task at a time runs in this process.

    Raises: RunError when a process was killed; tasks that are done stay done.
    """
    num_processes = min(settings.num_processes, len(tasks))
    if num_processes <= 1:
        yield from enumerate(map(work, tasks))
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # inherited: idle threads of these processes must not spin
    spawn = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_processes, spawn, _start_process, (settings.threads,))
    try:
        numbers = {executor.submit(_work_apart, work, task): number for number, task in enumerate(tasks)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    except KeyboardInterrupt:  # SIGTERM may have come to this process alone
        for process in multiprocessing.active_children():
            process.terminate()  # the run at work saves its checkpoint
        raise
    except BrokenProcessPool:
        raise RunError(
            "a process of the runs was killed (out of memory?); what is finished is kept: run the same command again, "
            "with a smaller num_processes if memory was short"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _work_apart(work: Callable[[Any], Any], task: Any) -> Any:
    """Return a task in a process of the pool, which has the next one ready.

    One that was told to stop ends before that.
    """
    result = work(task)
    if isinstance(result, StoppedError):
        os._exit(1)
    return result


def _start_process(num_threads: int) -> None:
    """Ctrl-C is left to the run, which saves a checkpoint. When the parent is gone, this process ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    end_with_parent()


def _decode(
    settings: ProxySettings, pool: SamplePool, folder: Path, start: StartTasks, print_line: PrintLine
) -> Path | None:
    """Decode the pictures that are missing; returns their folder, or None when each run decodes for itself."""
    side_px = settings.decoded_side_px
    if side_px is None:
        return None
    target = folder / DECODED_FOLDER
    if missing := prepare_decoded(pool, target, side_px):
        started = time.monotonic()
        decode = partial(_decode_one, settings, target, side_px)
        apart = len(pool) >= _MIN_DECODED_APART
        for _, result in start(decode, missing) if apart else enumerate(map(decode, missing)):
            if isinstance(result, PlantMixError):  # on Ray
                raise result
        print_line(
            f"decoded {len(pool):,} pictures once, for all runs, in {time.monotonic() - started:.1f} s: {target}"
        )
    return target


def _decode_one(settings: ProxySettings, target: Path, side_px: int, shard: int) -> None:
    pool = open_pool(loader.open_releases(settings.release), settings.data.split)
    decode_shard(pool, target, side_px, shard, settings.data.cache)


def _check_catalogue(settings: ProxySettings) -> None:
    """Raise ConfigError for a folder without a catalogue; a mistyped name would get a new, empty one."""
    from manifests.contract.catalog_file import CATALOG_FILE
    from manifests.contract.session import take_up

    if settings.catalogue is not None and is_remote(settings.catalogue):
        take_up(settings.catalogue)
    elif settings.catalogue is not None and not Path(settings.catalogue, CATALOG_FILE).is_file():
        raise ConfigError(
            f"catalogue: {settings.catalogue} holds no {CATALOG_FILE}; name the work folder of a build, or null for "
            "the table alone"
        )


def _check_heldout(heldout: SamplePool, runs: Sequence[ProxyRun]) -> None:
    counts = Counter(heldout.table["domain"].to_pylist())
    for domain in sorted({name for run in runs for name in run.mixture}):
        if counts[domain] < _MIN_HELDOUT:
            raise ConfigError(
                f"domain '{domain}' has {counts[domain]} held-out sample(s); its validation loss needs at least "
                f"{_MIN_HELDOUT} (mix.heldout of the build): the planner has nothing to fit without it"
            )


def _validation(settings: TrainSettings, fingerprint: str) -> dict[str, Any]:
    return {"release": fingerprint, "split": settings.eval.split, "batch_size": settings.eval.batch_size}
