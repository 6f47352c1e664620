"""`dalip proxies`: many small runs over a list of mixtures, and a table of their losses for the planner.

Reads one stratified release, a list of runs (`plantmix plan design` writes one) and a config; writes a folder a run
(what `dalip train` leaves, and proxy.json), decoded pictures that all runs share, runs.csv, and, when the config names
a work folder, the rows of its catalogue's table `proxy_runs`. This process alone commits, after every run. Finished
runs are kept, an interrupted one goes on from its checkpoint. Gives up with ConfigError before any run on a list that
does not fit the release; one failed run does not stop the others (exit code 1 at the end).
"""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError, PlantMixError, RunError
from manifests.storage import join, make_folder, publish_bytes
from training.config import TrainSettings
from training.data import loader
from training.data.decoded import decode_shard, open_decoded, prepare_decoded
from training.data.shards import SamplePool, open_pool
from training.proxies.pool import each_result
from training.proxies.runs import ProxyRun, ProxySettings, check_runs, read_runs, run_settings
from training.record import checkpoint
from training.run.stopping import StoppedError

RESULT_FILE = "proxy.json"
CONSOLE_FILE = "console.log"  # what a run says while it trains
TABLE_FILE = "runs.csv"
DECODED_FOLDER = "decoded"
_MIN_HELDOUT = 2  # pairs of a domain without which it has no contrastive loss


@dataclass(frozen=True)
class Outcome:
    """What a call of `run_proxies` did: results in the order of the list, and the runs that failed with their words."""

    results: list[dict[str, Any]]
    num_reused: int
    failed: dict[str, str]
    table: Path


def run_proxies(settings: ProxySettings, say: Any = print, *, ray_address: str | None = None) -> Outcome:
    """Do every run of the list that is not done yet; `say` takes one line a finished run.

    Runs go to processes of this machine, or, with a `ray_address` ("local" starts a Ray here), to a Ray cluster.

    Raises: ConfigError before anything is written; StoppedError on a signal, when the run at work has saved its
    checkpoint; RunError when the catalogue cannot be written at the end.
    """
    if ray_address is not None and settings.compute.num_threads is None:
        # The cores of this machine say nothing of a cluster's; many runs with a thread each leave none idle.
        settings = settings.model_copy(update={"compute": settings.compute.model_copy(update={"num_threads": 1})})
    runs = read_runs(settings)
    _check_catalogue(settings)
    release = loader.open_releases(settings.release)[0]
    pool, heldout = open_pool([release], settings.data.split), open_pool([release], settings.heldout_split)
    check_runs(runs, pool, settings)
    _check_heldout(heldout, runs)
    folder = Path(settings.output_dir)
    for run in runs:  # a folder of another config is said before the first run begins
        result_of(settings, run)
    with checkpoint.hold_folder(folder):
        start = _starter(settings, ray_address)
        decoded = _decode(settings, pool, folder, start, say)
        done = {run.run: found for run in runs if (found := result_of(settings, run)) is not None}
        books = _Books(settings, len(runs), say)
        books.enter(list(done.values()))
        todo = [run for run in runs if run.run not in done]
        tasks = [
            {"settings": run_settings(settings, run).model_dump(mode="json"), "run": run.model_dump(mode="json"),
             "model_size": settings.size_label, "decoded": decoded, "decoded_side_px": settings.decoded_side_px}
            for run in todo
        ]  # fmt: skip
        failed: dict[str, str] = {}
        for number, result in start(run_one, tasks):
            if isinstance(result, StoppedError):
                raise result
            if isinstance(result, PlantMixError):
                failed[todo[number].run] = str(result)
                say(f"{todo[number].run}: failed: {result}")
            else:
                done[todo[number].run] = result
                books.enter([result])
                say(books.line(result))
        books.close()
    results = [done[run.run] for run in runs if run.run in done]
    return Outcome(results, len(runs) - len(todo), failed, folder / TABLE_FILE)


def run_one(task: dict[str, Any]) -> dict[str, Any] | PlantMixError:
    """One run in its process: train (or go on), measure, write proxy.json.

    An error comes back as a value, so that it keeps its class and its words on the way between processes; of one that
    is not ours (memory of a device, say) the traceback is in the run's console.log.
    """
    folder = Path(task["settings"]["output_dir"])
    make_folder(str(folder))
    console = folder / CONSOLE_FILE
    try:
        return _run_one(task, console)
    except PlantMixError as error:
        return error
    except Exception as error:  # one failed run does not stop the others
        with console.open("a", encoding="utf-8") as stream:
            traceback.print_exc(file=stream)
        return RunError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; more in {console}")


def _run_one(task: dict[str, Any], console: Path) -> dict[str, Any]:
    import torch

    from training.evaluation.evaluate import domain_losses
    from training.evaluation.subject import load_run_model
    from training.run.loop import train

    settings = TrainSettings.model_validate(task["settings"])
    run = ProxyRun.model_validate(task["run"])
    folder = Path(settings.output_dir)
    releases = loader.open_releases(settings.release)
    pool = open_pool(releases, settings.data.split)
    if task["decoded"] is not None:
        pool = open_decoded(pool, Path(task["decoded"]))
    with console.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        summary, _ = train(settings, pool=pool)
        device = torch.device("cuda" if torch.cuda.is_available() and settings.compute.device != "cpu" else "cpu")
        model = load_run_model(settings, checkpoint.newest_weights(folder)).to(device)
        figures = domain_losses(model, open_pool(releases, str(settings.eval.split)), settings, device)
    result = {
        "run": run.run,
        "seed": settings.seed,
        "model_size": task["model_size"],
        "step": summary["steps"],
        "samples_seen": summary["samples_seen"],
        "mixture": run.mixture,
        "losses": {name: figure for name, figure in figures.items() if name != "all"},
        "epochs": count_epochs(pool, settings, summary["samples_seen"]),
        "validation": _validation(settings, releases[0].fingerprint),
        "decoded_side_px": task["decoded_side_px"],
        "seconds": round(summary["seconds"], 1),
    }
    publish_bytes(str(folder / RESULT_FILE), (json.dumps(result, indent=2, sort_keys=True) + "\n").encode("utf-8"))
    return result


def count_epochs(pool: SamplePool, settings: TrainSettings, samples_seen: int) -> dict[str, float]:
    """How often a sample of each domain was seen on average: what a run drew of it over what its (cut) pool holds."""
    order = loader.build_order(pool, settings.data, settings.release, settings.seed)
    held: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    domains = pool.table["domain"].to_pylist()
    whole, rest = divmod(samples_seen, order.epoch_size)
    partial = Counter(domains[row] for row in order.rows(whole * order.epoch_size, whole * order.epoch_size + rest))
    for stratum, count in zip(order.strata, order.counts, strict=True):
        name = domains[stratum.rows[0]]
        held[name] += len(stratum.rows)
        seen[name] += whole * count
    seen.update(partial)
    return {name: (seen[name] / held[name] if held[name] else 0.0) for name in sorted(pool.domains)}


def result_of(settings: ProxySettings, run: ProxyRun) -> dict[str, Any] | None:
    """The result of a run that was finished before and measured in the same way, or None.

    Raises: ConfigError when the folder holds a run of another config, list or release.
    """
    from training.config import identity_values

    own = run_settings(settings, run)
    release = loader.open_releases(own.release)[0]
    folder = Path(own.output_dir)
    state = checkpoint.inspect_run(folder, identity_values(own, [release.fingerprint]))
    path = folder / RESULT_FILE
    if state.kind != "finished" or not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if result["decoded_side_px"] != settings.decoded_side_px:
        raise ConfigError(f"{folder}: was run with another decode_once; choose another output_dir, or set it back")
    return result if result["validation"] == _validation(own, release.fingerprint) else None


def table_row(result: dict[str, Any]) -> dict[str, Any]:
    """A result as a row of the planner's table: mix_, loss_, epochs_ a domain, and how the losses were measured."""
    row = {name: result[name] for name in ("run", "model_size", "step", "seed", "samples_seen")}
    row |= {f"mix_{name}": share for name, share in sorted(result["mixture"].items())}
    row |= {f"loss_{name}": figure["value"] for name, figure in sorted(result["losses"].items())}
    row |= {f"epochs_{name}": round(value, 4) for name, value in sorted(result["epochs"].items())}
    how = result["validation"]
    return row | {"validation_release": how["release"], "validation_batch_size": how["batch_size"]}


class _Books:
    """Keeps runs.csv and the catalogue up to date after every run; a catalogue held by a build is tried again later."""

    def __init__(self, settings: ProxySettings, num_runs: int, say: Any) -> None:
        self.settings, self.num_runs, self.say = settings, num_runs, say
        self.results: list[dict[str, Any]] = []
        self.waiting: list[dict[str, Any]] = []
        self.started, self.num_new = time.monotonic(), -1

    def enter(self, results: list[dict[str, Any]]) -> None:
        self.results += results
        self.waiting += results
        self.num_new += 1  # the first call brings what was there before
        if self.results:
            self._write_table()
        try:
            self._commit()
        except RunError:
            return

    def close(self) -> None:
        """Raises: RunError when rows could not be committed."""
        try:
            self._commit()
        except RunError as error:
            raise RunError(
                f"{len(self.waiting)} of {len(self.results)} finished runs are not in the catalogue yet: {error}. "
                "They are kept; run the same command again"
            ) from None

    def line(self, result: dict[str, Any]) -> str:
        """One run for the person watching, with what is left."""
        from training.record.log import format_duration

        mixture = ", ".join(f"{name} {share:.3g}" for name, share in result["mixture"].items())
        losses = "  ".join(f"{name} {figure['value']:.3f}" for name, figure in sorted(result["losses"].items()))
        left = (time.monotonic() - self.started) / max(1, self.num_new) * (self.num_runs - len(self.results))
        return (
            f"{result['run']} ({len(self.results)}/{self.num_runs})  {mixture}  loss: {losses}  "
            f"{result['seconds']:.0f} s  ETA {format_duration(left)}"
        )

    def _write_table(self) -> None:
        import csv
        import io

        rows = [table_row(result) for result in sorted(self.results, key=lambda result: str(result["run"]))]
        names = list(dict.fromkeys(name for row in rows for name in row))
        order = sorted(names, key=lambda name: [name.startswith(p) for p in ("valid", "epochs_", "loss_", "mix_")])
        text = io.StringIO()
        writer = csv.DictWriter(text, order, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: row.get(name, 0 if name.startswith("mix_") else "") for name in order} for row in rows)
        publish_bytes(join(self.settings.output_dir, TABLE_FILE), text.getvalue().encode("utf-8"))

    def _commit(self) -> None:
        if self.settings.catalogue is None or not self.waiting:
            return
        from manifests.catalog import Catalog

        study = Path(self.settings.output_dir).name
        with Catalog.open(self.settings.catalogue) as catalog:
            catalog.record_proxy_runs(study, self.waiting)
        self.waiting = []


Start = Callable[[Callable[[dict[str, Any]], Any], Sequence[dict[str, Any]]], Iterator[tuple[int, Any]]]


def _starter(settings: ProxySettings, ray_address: str | None) -> Start:
    """What works through tasks: processes of this machine, or Ray."""
    if ray_address is None:
        return lambda work, tasks: each_result(work, tasks, settings.num_processes, settings.threads)
    from training.run.launcher import each_result_on_ray

    address = None if ray_address == "local" else ray_address
    return lambda work, tasks: each_result_on_ray(work, tasks, settings, address)


_WORTH_PROCESSES = 5000  # pictures: they take about as long to decode as processes to start (5 to 10 s, 2026-11)


def _decode(settings: ProxySettings, pool: SamplePool, folder: Path, start: Start, say: Any) -> str | None:
    """Decode what is missing, in the processes of the runs; returns the folder, None when nothing is decoded ahead."""
    side_px = settings.decoded_side_px
    if side_px is None:
        return None
    target = folder / DECODED_FOLDER
    missing = prepare_decoded(pool, target, side_px)
    if missing:
        started = time.monotonic()
        values = settings.model_dump(mode="json")
        tasks = [{"settings": values, "folder": str(target), "side_px": side_px, "shard": shard} for shard in missing]
        own = enumerate(map(_decode_one, tasks))
        for _, result in start(_decode_one, tasks) if len(pool) >= _WORTH_PROCESSES else own:
            if isinstance(result, PlantMixError):
                raise result
        say(f"decoded {len(pool):,} pictures once, for all runs, in {time.monotonic() - started:.1f} s: {target}")
    return str(target)


def _decode_one(task: dict[str, Any]) -> Any:
    try:
        settings = ProxySettings.model_validate(task["settings"])
        pool = open_pool(loader.open_releases(settings.release), settings.data.split)
        return decode_shard(pool, Path(task["folder"]), task["side_px"], task["shard"])
    except PlantMixError as error:
        return error


def _check_catalogue(settings: ProxySettings) -> None:
    """A mistyped folder would get a new, empty catalogue."""
    from manifests.catalog import CATALOG_FILE

    if settings.catalogue is not None and not Path(settings.catalogue, CATALOG_FILE).is_file():
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
