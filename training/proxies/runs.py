"""The config of `dalip proxies` and its list of runs, read and checked.

Reads a YAML config, and a csv as `plantmix plan design` writes it: run, seed, mix_DOMAIN and, where pools are cut,
samples_seen and pool_DOMAIN. Writes nothing. Gives up with ConfigError that names the row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from manifests.contract.settings import ConfigPath, Settings, parse_settings, read_settings
from manifests.errors import ConfigError
from manifests.services.scheduling import num_cores
from manifests.stores.storage import is_remote
from training.config import TrainSettings
from training.data.settings import DataSettings
from training.data.shards import SamplePool, cut_pools
from training.evaluation.set_layouts import csv_rows, read_text

RUNS_FOLDER = "runs"
_SHARE_ROUNDING = 0.0005  # of a share written with three decimals; as the planner reads tables
_DECODED_OVER_VIEW = 1.5  # shorter side of a shared picture over the model's: a crop of half its area is large enough


class ProxyRun(Settings):
    """One small run: its mixture and seed and, where the list says so, its length and the sizes of its pools."""

    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Its name, also of its folder."""
    seed: int = Field(default=0, ge=0)
    """Added to `seed` of the config."""
    mixture: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]] = Field(min_length=2)
    """Share of each domain; they sum to 1."""
    samples_seen: int | None = Field(default=None, ge=1)
    """Length of the run; null: as `schedule` says."""
    pool_samples: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Samples of each domain that the run may see; null: all."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> ProxyRun:
        total = sum(self.mixture.values())
        if abs(total - 1.0) > _SHARE_ROUNDING * len(self.mixture) + 1e-9:
            raise ValueError(f"the shares of {self.run} sum to {total:.6g}; they must sum to 1")
        return self


class ProxySettings(TrainSettings):
    """A training config that all runs share, and the list of runs."""

    release: ConfigPath
    """A stratified release."""
    runs: ConfigPath | tuple[ProxyRun, ...]
    """A csv of `plantmix plan design`, or the list itself."""
    catalogue: ConfigPath | None = None
    """Work folder of the build whose catalogue takes the results."""
    model_size: str | None = None
    """Label in the table; null: name of the architecture."""
    num_processes: int = Field(default=1, ge=1)
    """Runs at the same time on this machine."""
    decode_once: bool = True
    """Decode and shrink the pictures once, for all runs."""

    @field_validator("output_dir")
    @classmethod
    def _writes_to_a_disk(cls, folder: str) -> str:
        if is_remote(folder):
            raise ValueError(
                f"{folder}: proxy runs are written to a local folder, or with --launcher ray to a shared disk; name "
                "one, and copy it to the store afterwards. `release` and `catalogue` may lie in a store"
            )
        return folder

    @field_validator("data")
    @classmethod
    def _of_the_release(cls, data: DataSettings) -> DataSettings:
        if data.shards:
            raise ValueError(
                "shards: proxy runs need a held-out split without near copies of what they train on, which only a "
                "stratified release has; build one of these tars (a source `webdataset`), and take data.shards out"
            )
        return data

    @field_validator("runs")
    @classmethod
    def _reads_a_local_list(cls, runs: Any) -> Any:
        if isinstance(runs, str) and is_remote(runs):
            raise ValueError(f"{runs}: the list of runs is a local file; copy it here, and name the copy")
        return runs

    @model_validator(mode="after")
    def _mixture_is_in_the_list(self) -> ProxySettings:
        if self.data.mixture is not None or self.data.pool_samples is not None:
            raise ValueError("data.mixture and data.pool_samples come from the list of runs: remove them")
        if self.eval.split is None:
            raise ValueError("eval.split is null: the losses that the planner needs are those of a held-out split")
        return self

    @property
    def threads(self) -> int:
        """Threads of one process: the machine's cores, shared among the processes."""
        return self.compute.num_threads or max(1, num_cores() // self.num_processes)

    @property
    def decoded_side_px(self) -> int | None:
        """Shorter side of the pictures that the runs share; None: every run decodes for itself."""
        if not self.decode_once:
            return None
        from training.model.architecture import architecture_config

        size = self.model.image_size_px or architecture_config(self.model.architecture)["vision_cfg"]["image_size"]
        return math.ceil(_DECODED_OVER_VIEW * (size if isinstance(size, int) else max(size)))


def read_proxy_settings(path: str, **changes: Any) -> ProxySettings:
    """Read a YAML config; each of `changes` that is not None replaces a value.

    Raises: ConfigError.
    """
    settings = read_settings(path, ProxySettings)
    stated = {name: value for name, value in changes.items() if value is not None}
    return parse_settings(settings.model_dump(mode="json") | stated, ProxySettings, where=path) if stated else settings


def run_settings(settings: ProxySettings, run: ProxyRun) -> TrainSettings:
    """Return the training config of one run. `samples_seen` of the list, where given, sets its length."""
    of_proxies = set(ProxySettings.model_fields) - set(TrainSettings.model_fields)
    values = settings.model_dump(mode="json", exclude=of_proxies)
    values["seed"] = settings.seed + run.seed
    values["output_dir"] = str(Path(settings.output_dir) / RUNS_FOLDER / run.run)
    values["data"] |= {"mixture": run.mixture, "pool_samples": run.pool_samples}
    values["compute"]["num_threads"] = settings.threads
    if run.samples_seen is not None:
        steps = max(1, round(run.samples_seen / settings.data.batch_size))
        values["schedule"] |= {"steps": steps, "epochs": None}
    return TrainSettings.model_validate(values)


def read_runs(settings: ProxySettings) -> list[ProxyRun]:
    """Return the list of runs, from the config or its csv.

    Raises: ConfigError for a file that cannot be read, a row that describes no run, or a name given twice.
    """
    runs = list(settings.runs) if not isinstance(settings.runs, str) else _read_csv(settings.runs)
    if not runs:
        raise ConfigError("runs: the list is empty; `plantmix plan design` writes one")
    for name, count in Counter(run.run for run in runs).items():
        if count > 1:
            raise ConfigError(f"runs: the name '{name}' is given {count} times; every run needs a name of its own")
    domains = {tuple(sorted(run.mixture)) for run in runs}
    if len(domains) > 1:
        raise ConfigError(
            f"runs: not all runs name the same domains: {' / '.join(', '.join(names) for names in sorted(domains))}; "
            "write 0 where a domain takes no part"
        )
    return runs


def check_runs(runs: Sequence[ProxyRun], pool: SamplePool, settings: ProxySettings) -> None:
    """Compare the list with the release before the first run.

    Raises: ConfigError for an unknown domain, or a pool larger than its domain.
    """
    named = sorted(runs[0].mixture)
    if unknown := sorted(set(named) - set(pool.domains)):
        raise ConfigError(
            f"runs: no samples of {', '.join(map(repr, unknown))} in {settings.release}; it has the domains "
            f"{', '.join(pool.domains)}"
        )
    for cut in {tuple(sorted((run.pool_samples or {}).items())) for run in runs}:
        cut_pools(pool, dict(cut))


def _read_csv(path: str) -> list[ProxyRun]:
    try:
        _, rows = csv_rows(path, read_text(Path(path)))
    except OSError as error:
        raise ConfigError(
            f"{path}: the list of runs cannot be read ({error.strerror}); make one with `plantmix plan design`"
        ) from None
    return [_from_row(row, f"{path}: row {number}") for number, row in enumerate(rows, start=2)]  # the header is row 1


def _from_row(row: Mapping[str, Any], where: str) -> ProxyRun:
    """One row of a design as a run; an empty cell counts as not given."""
    cells = {name: value for name, value in row.items() if name and value not in (None, "")}
    mixture = {name.removeprefix("mix_"): value for name, value in cells.items() if name.startswith("mix_")}
    pools = {name.removeprefix("pool_"): value for name, value in cells.items() if name.startswith("pool_")}
    values: dict[str, Any] = {name: cells[name] for name in ("run", "seed", "samples_seen") if name in cells}
    values["mixture"] = mixture
    if pools:
        values["pool_samples"] = pools
    return parse_settings(values, ProxyRun, where)
