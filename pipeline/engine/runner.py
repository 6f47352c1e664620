"""Run FLOW: plan parts, skip committed ones, run the others, publish their files, commit them, seal the stage.

Workers (Ray tasks, processes, or this process: `run.executor`) write private files and return small records. Only this
driver renames files into place and commits them: the parts, or pieces of some, that are there at a time in one
transaction. When it is killed, what is committed stays, and the next build does the rest. When it is asked to stop, the
parts of fetch store what they have first.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from manifests.contract.catalog import Catalog
from manifests.contract.records import PartFile, PartRecord, StageRecord, fingerprint
from manifests.errors import (
    ConfigError,
    DamageError,
    IntegrityError,
    LostNodeError,
    PartError,
    RetryableError,
    RunError,
    describe_paths,
)
from manifests.stores import stamps, storage
from manifests.stores.folder import patiently, remove_from
from pipeline.config import BuildConfig
from pipeline.engine.checking import ContentChecks
from pipeline.engine.executing import Done, Job, give_memory_back
from pipeline.engine.executors import Executor, start_executor
from pipeline.engine.inputs import within
from pipeline.engine.kept_config import keep_config
from pipeline.engine.on_ray import address_of
from pipeline.engine.progress import Progress, Watch
from pipeline.engine.stopping import StopRequests
from pipeline.engine.work import BuildContext, Execution, Stage, StageRun, Step
from pipeline.store.files import Files, RowGroup

log = logging.getLogger("plantmix.runner")

_STATUS_SECONDS = 0.5
_MOST_LOST_NODES = 20  # a part that took so many machines with it is taken for the reason


@dataclass(frozen=True)
class BuildReport:
    """The result of a build: each stage is done or reused, and the place of the release."""

    stages: dict[str, StageRecord]
    redone: tuple[str, ...]
    release: str | None
    seconds: float


class Runner:
    """One build over one work folder."""

    def __init__(
        self,
        config: BuildConfig,
        flow: Sequence[Stage[Any]],
        catalog: Catalog,
        stop: StopRequests | None = None,
        after_stage: Callable[[BuildContext, str, bool], None] | None = None,
    ) -> None:
        """`after_stage` is called with each stage that is up to date, and whether it is new; it may raise."""
        self._after_stage = after_stage
        self._config, self._flow, self._catalog = config, flow, catalog
        self._stop = stop or StopRequests()
        self._publishing = threading.Lock()
        self._executor: Executor | None = None
        self._checks = ContentChecks(catalog.workdir)
        self._context = BuildContext(config, catalog.workdir, catalog, require=self._checks.require)
        self._made_again: frozenset[str] = frozenset()  # stages that this command may do again, and no other
        self._forgotten: set[str] = set()
        self._status_failed, self._status_at = False, -_STATUS_SECONDS
        self._shared_scratch: dict[str, str] = {}  # scratch files in the store, and their stamps

    def run(self, first: str | None = None, last: str | None = None, as_sealed: Collection[str] = ()) -> BuildReport:
        """Bring every stage up to date, in order, from `first` on and up to `last` (both included).

        The stages `as_sealed` stay as the last build sealed them; their sources are not looked at.

        Raises: PartError when parts failed for good (all others are committed); IntegrityError; ConfigError of a plan,
            or when a stage before `first` is not done yet.
        """
        started = time.monotonic()
        names = [stage.name for stage in self._flow]
        begin = names.index(first) if first else 0
        end = names.index(last) if last else len(names) - 1
        self._made_again = frozenset(names[begin : end + 1]).difference(as_sealed)
        redone: dict[str, None] = {}
        index = 0
        with self._working():
            while index < len(self._flow):
                stage = self._flow[index]
                if stage.name in as_sealed:
                    version = self._catalog.find_current(stage.name)
                    self._context.sealed[stage.name] = self._sealed_or_refuse(stage.name, version)
                    index += 1
                    continue
                try:
                    new = self._bring_up_to_date(stage, names[index + 1 :], must_be_done=index < begin)
                except DamageError as error:
                    self._forget(error)
                    index = 0
                    continue
                if new:
                    redone[stage.name] = None
                if self._after_stage is not None:
                    self._after_stage(self._context, stage.name, new)
                index += 1
                if stage.name == last:
                    break
            keep_config(self._catalog, self._config)
            is_whole = index == len(self._flow)
            release = self._catalog.find_release(self._context.fingerprint) if is_whole else None
        return BuildReport(dict(self._context.sealed), tuple(redone), release, time.monotonic() - started)

    def redo(self, name: str, change: Callable[[BuildContext, StageRecord], bool]) -> tuple[StageRecord, StageRecord]:
        """Bring one stage to another version, on top of the stages that the last build sealed before it.

        Returns the old and the new version. `change` gets the old one and alters what the stage's inputs are made from.
        When it returns false, nothing is done.

        Raises: ConfigError when the stage, or one before it, is not done with this configuration; else as `run`.
        """
        names = [stage.name for stage in self._flow]
        context, index = self._context, names.index(name)
        with self._working():
            for stage in self._flow[:index]:
                context.sealed[stage.name] = self._sealed_or_refuse(stage.name, self._catalog.find_current(stage.name))
            stage = self._flow[index]
            before = self._sealed_or_refuse(name, stage.fingerprint(stage.inputs(context)))
            if not change(context, before):
                return before, before
            self._bring_up_to_date(stage, ())  # what was decided stays until the next build
            return before, context.sealed[name]

    def _sealed_or_refuse(self, stage: str, version: str | None) -> StageRecord:
        sealed = self._catalog.find_sealed(version) if version else None
        if sealed is None:
            raise ConfigError(
                f"{self._catalog.workdir}: the stage '{stage}' is not done yet with the configuration of the last "
                "build, or files of its sources have changed since; run `plantmix build` with it first"
            )
        return sealed

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Before work: clear what a killed run left, drop lost parts that are made again. After: tidy, report."""
        _clear_scratch(self._catalog.workdir)
        self._drop_lost_parts()
        try:
            yield
        finally:
            if self._executor is not None:
                self._executor.close()
            _clear_scratch(self._catalog.workdir)
            for name in self._shared_scratch:
                with contextlib.suppress(Exception):  # the next build writes over it
                    remove_from(self._catalog.workdir, name)
            self._publish_status(running=None)

    def _drop_lost_parts(self) -> None:
        try:
            lost = self._catalog.drop_lost_parts(self._made_again)
        except DamageError as error:
            self._forget(error)
            lost = self._catalog.drop_lost_parts(self._made_again)
        for name, num in lost.items():
            log.warning("%s: %d parts lost their files; where this build needs them they are done again", name, num)

    def _forget(self, damage: DamageError) -> None:
        """Un-commit the parts of damaged files, so that they are done again.

        Raises: the error itself when a part holds what no stage can give again, is damaged for the second time, or
            is of a stage that this command does not do again.
        """
        outside = {(stage.name, step.name) for stage in self._flow for step in stage.steps if step.from_outside}
        parts = self._catalog.parts_with(damage.paths)
        keys = {part.key for part in parts}
        fixed = any((part.stage, part.step) in outside or part.stage not in self._made_again for part in parts)
        if not keys or keys & self._forgotten or fixed:
            raise damage
        self._forgotten |= keys
        self._catalog.forget_parts(keys)
        log.warning("%s: not what was recorded; made again, where this build needs it", describe_paths(damage.paths))

    # ---- one stage

    def _bring_up_to_date(self, stage: Stage[Any], after: Sequence[str], must_be_done: bool = False) -> bool:
        """Seal the current version of a stage; false when it was sealed already.

        Raises: ConfigError when it was not, and `must_be_done`; else as `run`.
        """
        context = self._context
        inputs = stage.inputs(context)
        context.fingerprint = stage.fingerprint(inputs)
        sealed = self._catalog.find_sealed(context.fingerprint)
        if sealed is None and must_be_done:
            raise ConfigError(
                f"the stage '{stage.name}' is not done yet with this configuration; run `plantmix build` with it from "
                "the start: what is done is reused"
            )
        is_current = self._catalog.find_current(stage.name) == context.fingerprint
        if sealed is None or not is_current:
            keep_config(self._catalog, self._config)
            self._catalog.open_stage(stage.name, context.fingerprint, stage.identity(inputs))
        if not is_current:  # the later stages belong to another version
            self._catalog.forget_current(after)
        if sealed is not None:
            return self._conclude(stage, sealed, is_new=False)
        for files in within(inputs, Files):
            self._checks.require(files)
        for step in stage.steps:
            self._run_step(stage, step, inputs)
            if step.learns is not None:
                inputs = step.learns(inputs, self._stage_run(stage, None))
                before, context.fingerprint = context.fingerprint, stage.fingerprint(inputs)
                sealed = self._catalog.find_sealed(context.fingerprint)
                if before != context.fingerprint and sealed is not None:  # other files of the same content
                    self._catalog.open_stage(stage.name, context.fingerprint, stage.identity(inputs))
                    return self._conclude(stage, sealed, is_new=False)
                self._catalog.name_anew(stage.name, before, context.fingerprint, stage.identity(inputs))
        run = self._stage_run(stage, None)
        funnel, notes = stage.conclude(inputs, run) if stage.conclude else run.result(stage.steps[-1].name)
        record = self._catalog.seal_stage(StageRecord(stage.name, context.fingerprint, funnel, notes))
        return self._conclude(stage, record, is_new=True)

    def _conclude(self, stage: Stage[Any], sealed: StageRecord, is_new: bool) -> bool:
        self._context.sealed[stage.name] = sealed
        if stage.settle is not None:
            stage.settle(self._context)
        log.info("%s: %s, %s", stage.name, "done" if is_new else "reused", _describe(sealed))
        return is_new

    def _stage_run(self, stage: Stage[Any], how: Any) -> StageRun[Any]:
        context, run = self._context, self._config.run
        return StageRun(stage, context.fingerprint, self._catalog, run, how, context.fetch_round, self._checks.require)

    def _run_step(self, stage: Stage[Any], step: Step[Any, Any], inputs: Any) -> None:
        context, shared = self._context, None
        progress = Progress(f"{stage.name} {step.name}", step.unit)

        def look() -> None:
            if shared is not None and step.reports:
                progress.report(shared.progress())
                if self._stop.asked():
                    shared.request_stop()

        self._publish_status(progress.snapshot())
        with contextlib.ExitStack() as around:
            around.enter_context(Watch(progress, self._config.run.progress_seconds, look, self._publish_status))
            began = time.monotonic()
            run = self._stage_run(stage, step.how(context) if step.how else None)
            planned = step.parts(inputs, run)
            give_memory_back(began)
            keys = [stage.key_of(step, part) for part in planned]
            kept = list(step.committed(inputs, run)) if step.committed else []
            committed = self._catalog.find_parts(keys)
            links = [(position, key) for position, key in enumerate(keys) if key in committed]
            links += [(len(keys) + extra, part.key) for extra, part in enumerate(kept)]
            self._catalog.link_parts(context.fingerprint, step.name, links)
            new = [(index, key) for index, key in enumerate(keys) if key not in committed]
            if not new:
                return
            shared = self._ready_executor().share(step.shared(context)) if step.shared else None
            todo, places = [], {key: index for index, key in new}
            for index, key in new:
                part = planned[index]
                self._share_scratch(part.inputs, execution := run.execution(step, key[:16], shared))
                todo.append(Job(key, part, execution))
            after = itertools.count(len(keys) + len(kept))  # places of pieces, which no plan knows

            def place_of(job: Job, is_piece: bool) -> int:
                return next(after) if is_piece else places[job.key]

            if step.reports:
                around.enter_context(self._stop.finishing_first())
            progress.begin(sum(job.num_rows for job in todo))
            failures = self._run_jobs(stage, step, todo, place_of, progress)
        if self._stop.asked():
            raise KeyboardInterrupt
        if failures:
            raise PartError(
                f"{stage.name}: {len(failures)} of {len(planned)} parts failed, the others are kept; first: "
                f"{failures[0]}. Mend the cause and run the same command again"
            )

    def _share_scratch(self, inputs: Any, execution: Execution[Any]) -> None:
        """Put scratch files whose row groups a part reads where another machine can read them."""
        run = self._config.run
        if not execution.store or run.executor != "ray" or not address_of(run.ray):
            return
        for path in {group.path for group in within(inputs, RowGroup)}:
            name = path.removeprefix(f"{execution.workdir}/")
            stamp = stamps.of_disk(Path(path).stat())
            if name.startswith("scratch/") and self._shared_scratch.get(name) != stamp:
                patiently(execution.store, partial(storage.upload, path, storage.join(execution.store, name)))
                self._shared_scratch[name] = stamp

    def _run_jobs(
        self,
        stage: Stage[Any],
        step: Step[Any, Any],
        jobs: Sequence[Job],
        place_of: Callable[[Job, bool], int],
        progress: Progress,
    ) -> list[str]:
        """Run jobs and commit what they give, some of them again after a passing fault; returns why others failed."""
        failures: list[str] = []
        gpus = step.gpus(self._context) if step.gpus else None
        attempts = {job.key: 1 for job in jobs}
        losses = {job.key: 0 for job in jobs}
        pieces: dict[str, list[str]] = {job.key: [] for job in jobs}
        whole: set[str] = set()  # parts that are committed: a worker may be lost between its last result and its end
        todo = list(jobs)
        while todo and not self._stop.asked():
            again: list[Job] = []
            for came in self._ready_executor().run(step.work, todo, gpus, self._stop.asked):
                came = [done for done in came if done.job.key not in whole]
                self._commit(stage, step, came, place_of, attempts)
                for done in came:
                    job, result = done.job, done.result
                    if result is not None:
                        if result.is_piece:
                            tables = (file.path for file in result.files if file.table != "pool")
                            pieces[job.key] += [storage.join(self._catalog.workdir, path) for path in tables]
                        else:
                            whole.add(job.key)
                        if not step.reports:
                            progress.advance(job.num_rows if result.weight is None else result.weight, result.funnel)
                    elif (
                        lost := isinstance(done.error, LostNodeError) and losses[job.key] < _MOST_LOST_NODES
                    ) or self._goes_again(done, attempts[job.key]):
                        (losses if lost else attempts)[job.key] += 1
                        if lost:
                            log.warning("%s; its part is done again", done.error)
                        again.append(replace(job, execution=replace(job.execution, pieces=tuple(pieces[job.key]))))
                    else:
                        failures.append(f"{done.error}")
            todo = again
            if todo:
                tries = max(attempts[job.key] for job in todo)
                if tries > 1:
                    self._stop.wait(self._config.run.retry_wait_seconds * 3 ** (tries - 2))
        return failures

    def _goes_again(self, done: Done, attempts: int) -> bool:
        error = done.error
        if isinstance(error, (IntegrityError, ConfigError, RunError)):
            raise error
        if isinstance(error, RetryableError) and attempts < self._config.run.max_attempts:
            log.warning(
                "a part failed for a passing reason, try %d of %d: %s", attempts, self._config.run.max_attempts, error
            )
            return True
        log.error("a part failed: %s", error)
        return False

    def _commit(
        self,
        stage: Stage[Any],
        step: Step[Any, Any],
        came: Sequence[Done],
        place_of: Callable[[Job, bool], int],
        attempts: Mapping[str, int],
    ) -> None:
        """Publish the files of parts, or of pieces of them, then state in one transaction that they exist."""
        parts: dict[int, PartRecord] = {}
        private: list[tuple[str, str]] = []
        for done in came:
            job, result = done.job, done.result
            if result is None:
                continue
            if result.funnel is not None:
                result.funnel.check(f"{stage.name} {step.name}")
            files = tuple(PartFile(f.table, f.path, f.num_rows, f.num_bytes, f.sha256) for f in result.files)
            key = job.key
            if result.is_piece:  # the part's own key stands for all of its rows
                key = fingerprint({"part": key, "piece": [file.sha256 for file in files]})
            parts[place_of(job, result.is_piece)] = PartRecord(
                key,
                stage.name,
                step.name,
                step.reuse_key(job.part.reuse),
                files,
                result.funnel,
                result.notes,
                done.seconds,
                attempts[job.key],
            )
            private += [(file.temp, storage.join(self._catalog.workdir, file.path)) for file in result.files]
        # a file without a private name was published by the worker, into a store
        storage.publish_all((temp, path) for temp, path in private if temp)
        for _, path in private:
            self._checks.trust(path)
        self._catalog.commit_parts(self._context.fingerprint, parts)

    def _ready_executor(self) -> Executor:
        """Start the executor only when there is work: a build with nothing to do never starts Ray."""
        if self._executor is None:
            self._executor = start_executor(self._config, self._catalog.workdir)
            self._stop.take_back_signals()
        return self._executor

    def _publish_status(self, running: dict[str, Any] | None) -> None:
        """Write status.json; while something is running twice a second, though steps of a small build are shorter."""
        with self._publishing:
            if running and time.monotonic() - self._status_at < _STATUS_SECONDS:
                return
            self._status_at = time.monotonic()
            try:
                self._catalog.publish_status(
                    {"name": self._config.name, "running": running, "pid": os.getpid() if running else None}
                )
            except OSError as error:  # a full disk: the next part says so, and only figures are missing until then
                log.log(logging.DEBUG if self._status_failed else logging.WARNING, "status.json: %s", error)
                self._status_failed = True


def _describe(stage: StageRecord) -> str:
    funnel = stage.funnel
    text = f"{funnel.num_kept:,} of {funnel.num_in:,} kept"
    dropped = [f"{num:,} {reason}" for reason, num in sorted(funnel.reasons.items(), key=lambda x: -x[1]) if num]
    return text + (f", dropped: {', '.join(dropped)}" if dropped else "")


def _clear_scratch(workdir: str) -> None:
    """Remove what a killed build left behind; the open catalogue proves that no other build is running here."""
    storage.sweep(workdir)
    shutil.rmtree(storage.join(workdir, "scratch"), ignore_errors=True)
