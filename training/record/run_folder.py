"""The place where a training writes its run: what it holds, and the few things that a training does to it.

    RUN/config.json                  the settings, as `dalip eval RUN` reads them
    RUN/run.json                     all that shapes the weights, what is drawn of which release, releases before
    RUN/log.jsonl                    what happened, a JSON object a line (RUN/tensorboard, RUN/wandb if wanted)
    RUN/checkpoints/step-00000100.pt the newest few checkpoints
    RUN/model.pt                     the final weights
    RUN/summary.json                 written last: the run is finished

A run lies in a folder. Where `output_dir` is an address in a store, that folder is a copy (`training.record.remote`),
and only this module knows: a training works in the folder, and what it writes is uploaded. Gives up with ConfigError
when the place belongs to another run, another config or another release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from manifests.contract.settings import Settings, differences, sections_in
from manifests.errors import ConfigError, IntegrityError
from manifests.masking import hide_in
from manifests.stores import storage
from training.config import SETTINGS_FILE, TrainSettings, identity_values
from training.record import checkpoint, run_files
from training.record.checkpoint import read_json
from training.record.log import LOG_FILE, cut_log
from training.record.remote import RemoteRun
from training.record.run_files import CHECKPOINT_FOLDER, MODEL_FILE, RUN_FILE, SUMMARY_FILE, list_checkpoints

_NOT_SETTINGS = ("code", "pretrained_sha256", "releases")  # which `identity_values` adds
_FIXED = ("data.batch_size:",)  # not even --allow-changed may change it


@dataclass(frozen=True)
class RunState:
    """The state of a run's folder for a config: nothing, a checkpoint to go on from, or a finished run."""

    kind: Literal["new", "resume", "finished"]
    checkpoint: Path | None = None
    changed: tuple[str, ...] = ()
    damaged: tuple[Path, ...] = ()  # newer checkpoints that are not whole


class RunFolder:
    """The place of the run of a config; `folder` is on this machine."""

    def __init__(
        self,
        settings: TrainSettings,
        fingerprints: Sequence[str] = (),
        *,
        resume: bool = True,
        allow_changed: bool = False,
    ) -> None:
        """`fingerprints` are those of its releases. Nothing is looked at yet.

        `resume` False trains anew, in place of what is there. `allow_changed` goes on from what has another identity.
        """
        self.settings, self._fingerprints = settings, tuple(fingerprints)
        self._resume, self._allow_changed = resume, allow_changed
        self.place, self._keep = settings.output_dir, settings.checkpoint.keep
        is_remote = storage.is_remote(self.place)
        self._store = RemoteRun(self.place, settings.data.cache_dir) if is_remote else None
        self.folder = self._store.folder if self._store is not None else Path(self.place)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that shapes the weights.

        Raises: ConfigError for an unknown architecture.
        """
        return identity_values(self.settings, self._fingerprints)

    def take_up(self) -> None:
        """Bring the folder up to date with the store, for a run that goes on.

        Raises: RetryableError when the store does not answer.
        """
        if self._store is not None and self._resume:
            self._store.take_up()

    def inspect(self) -> RunState:
        """Find out what is there for this run; reads only.

        Raises: ConfigError, IntegrityError when it cannot be trained here.
        """
        run_files.require_place(self.place)
        if not self._resume:
            return RunState("new")
        return inspect_run(
            self.folder, self.identity, allow_changed=self._allow_changed, is_copy=self._store is not None
        )

    def inspect_bytes(self) -> RunState:
        """As `inspect`, with the newest checkpoint that is whole: reads every byte of it, and of the damaged ones.

        Raises: as `inspect`; IntegrityError when none is whole.
        """
        state = self.inspect()
        if state.checkpoint is None:
            return state
        checkpoints = list_checkpoints(self.folder)
        for number, path in reversed(list(enumerate(checkpoints))):
            if checkpoint.is_whole(path):
                return replace(state, checkpoint=path, damaged=tuple(checkpoints[number + 1 :]))
        raise IntegrityError(
            f"{checkpoints[-1]}: damaged, as every checkpoint of the run ({len(checkpoints)}): it cannot go on; "
            "--no-resume trains anew in its place"
        )

    def offer(self) -> None:
        """Let the other machines have the newest checkpoint of this one."""
        if self._store is not None:
            self._store.push(self._keep)

    def load(self, path: Path) -> dict[str, Any]:
        """Return a checkpoint of this name, which another machine may have chosen."""
        return checkpoint.load_checkpoint(path if self._store is None else self._store.take_checkpoint(path))

    def prepare(self, state: RunState, step: int, drawn: Sequence[dict[str, Any]] = ()) -> str | None:
        """Write what a run has before its first step; on a resume, cut the log back to the checkpoint's `step`.

        `drawn` are the shares that it draws of its releases and domains. Returns what the log has lost, if anything.

        Raises: ConfigError where the store has no such place; RetryableError when it does not answer.
        """
        folder, is_new, lost = self.folder, state.kind == "new", None
        before = {} if is_new else read_json(folder / RUN_FILE)
        run = checkpoint.digest_of(self.identity) if is_new else checkpoint.run_id(folder)
        seen = {*before.get("earlier_releases", ()), *before.get("identity", self.identity)["releases"]["fingerprints"]}
        # First of all: it says that the folder is a run's. What a kill leaves of an older run is of another id.
        record = {"identity": self.identity, "run": run, "earlier_releases": sorted(seen - {*self._fingerprints})}
        storage.publish_json(folder / RUN_FILE, record | {"drawn": list(drawn)})
        if is_new:
            run_files.clear_run(folder)
        storage.make_folder(str(folder / CHECKPOINT_FOLDER))
        for path in (*folder.iterdir(), *(folder / CHECKPOINT_FOLDER).iterdir()):
            if storage.is_private(path.name) and path.is_file():
                path.unlink()
        if not is_new:
            for path in state.damaged:  # so that no reader of the folder takes them for the newest
                path.unlink()
            (folder / SUMMARY_FILE).unlink(missing_ok=True)  # of a run whose weights are gone
            lost = cut_log(folder / LOG_FILE, step)
        values = self.settings.model_dump(mode="json")
        values["data"]["shards"] = hide_in(values["data"]["shards"])
        storage.publish_json(folder / SETTINGS_FILE, values)
        if self._store is not None:
            self._store.begin(anew=is_new)
        return lost

    def close(self) -> None:
        """Wait for the upload that is under way, whatever ended the training; called after its log is closed."""
        if self._store is not None:
            self._store.close(self._keep)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write a checkpoint, remove all but the newest few, and begin to upload it.

        Raises: RunError when it cannot be written, or uploads have failed too often.
        """
        checkpoint.save_checkpoint(self.folder, step, content, self._keep)
        if self._store is not None:
            self._store.save(self._keep)

    def finish(self, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the summary, which marks a finished run, and upload the run. None: of a run that is finished.

        Raises: RunError when the store does not take it; IntegrityError for a damaged summary.
        """
        if summary is not None:
            storage.publish_json(self.folder / SUMMARY_FILE, summary)
        if self._store is not None:
            self._store.finish(self._keep)
        return self.summary()

    def summary(self) -> dict[str, Any]:
        """Return the summary of a finished run.

        Raises: IntegrityError when it is damaged.
        """
        return checkpoint.read_summary(self.folder)


def inspect_run(
    folder: Path, identity: dict[str, Any], *, allow_changed: bool = False, is_copy: bool = False
) -> RunState:
    """Inspect `folder` for a run of this identity; reads only. The copy of a run in a store may lack its weights.

    A finished run whose weights are gone goes on from its last checkpoint, which makes them again.

    Raises: ConfigError when it holds another run's checkpoints or result; IntegrityError for damaged weights.
    """
    checkpoints = list_checkpoints(folder)
    finished = (folder / SUMMARY_FILE).exists()
    if not checkpoints and not finished:
        if (folder / MODEL_FILE).exists():
            raise ConfigError(
                f"{folder}: holds {MODEL_FILE} but neither {SUMMARY_FILE} nor a checkpoint: nothing says whose "
                "weights they are; move it away, choose another --output, or --no-resume to train anew in its place"
            )
        return RunState("new")
    stored = read_json(folder / RUN_FILE).get("identity")
    if not isinstance(stored, dict):
        raise checkpoint.damaged(folder / RUN_FILE, "holds no identity")
    stored = _of_today(stored, TrainSettings)
    changed = tuple(differences(_by_content(stored, identity), _by_content(identity, stored)))
    fixed = [text for text in changed if text.startswith(_FIXED)]
    if changed and not (allow_changed and checkpoints and not finished):
        what = "a finished run" if finished else "checkpoints"
        raise ConfigError(
            f"{folder}: holds {what} of another config or release ({'; '.join(changed[:3])}); choose another --output, "
            "or --no-resume to train anew in its place"
            + ("" if finished or fixed else ", or --allow-changed to go on from its checkpoint")
        )
    if finished and (is_copy or (folder / MODEL_FILE).exists()):
        if not is_copy:
            checkpoint.check_model(folder)
        return RunState("finished")
    if not checkpoints:
        raise IntegrityError(
            f"{folder}: finished, but {MODEL_FILE} and every checkpoint are gone; --no-resume trains anew"
        )
    if fixed:
        raise ConfigError(
            f"{folder}: a resume cannot change {'; '.join(fixed)}: steps are counted in batches, so the samples to "
            "come and the schedule would differ. Set it back, or choose another --output"
        )
    return RunState("resume", checkpoints[-1], changed)


def _of_today(stored: dict[str, Any], model: type[Settings]) -> dict[str, Any]:
    """Return the record of a run on `model`, without settings that are gone since."""
    values = {}
    for name, value in stored.items():
        if name in model.model_fields:
            sections = sections_in(model.model_fields[name].annotation)
            values[name] = _of_today(value, sections[0]) if sections and isinstance(value, dict) else value
        elif name in _NOT_SETTINGS:
            values[name] = value
    return values


def _by_content(identity: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without the name of the weights that the run began with, where both know what they held.

    An earlier version recorded the name alone, and the file may be gone since.
    """
    models = [identified.get("model") or {} for identified in (identity, other)]
    left_out = "pretrained" if all("pretrained_sha256" in model for model in models) else "pretrained_sha256"
    return identity | {"model": {key: value for key, value in models[0].items() if key != left_out}}
