"""The configuration of the last build, as its work folder keeps it for commands that are given none.

What was set is kept and nothing else, so reading it is reading the config file again. The catalogue holds it without
secrets. Where it has some, the whole text lies in a private file beside the catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from manifests.contract.catalog import Catalog
from manifests.contract.settings import differences, parse_settings
from manifests.errors import ConfigError
from pipeline.config import BuildConfig
from pipeline.engine.work import BuildContext, Stage


def keep_config(catalog: Catalog, config: BuildConfig) -> None:
    """Keep a configuration as that of the last build."""
    catalog.record_config(dump_config(config))


def dump_config(config: BuildConfig) -> str:
    """Return the settings that were given, as JSON that `read_dumped` reads to the same value."""
    return config.model_dump_json(exclude_unset=True)


def read_dumped(text: str) -> BuildConfig:
    """Return the configuration that `dump_config` wrote, in this version or an earlier one.

    Keys that are gone are left out.

    Raises: ConfigError that names each value which this version does not read.
    """
    return parse_settings(json.loads(text), BuildConfig, "the kept configuration", is_kept=True)


def last_config(catalog: Catalog) -> BuildConfig:
    """Return the configuration of the last build in this work folder.

    Raises: ConfigError when there was none, or one that cannot be read here.
    """
    text = catalog.last_config()
    if text is None:
        raise ConfigError(f"{catalog.workdir}: no build has run here yet; run `plantmix build CONFIG` first")
    try:
        config = read_dumped(text)
    except (ValueError, ConfigError) as error:
        raise ConfigError(
            f"{catalog.workdir}: the last build ran with a configuration that this version does not read; "
            f"run `plantmix build CONFIG` once more ({error})"
        ) from None
    return config.model_copy(update={"work_dir": catalog.workdir})


@dataclass
class Comparison:
    """The first stages whose last versions a configuration makes `same`, and what makes the next one differ.

    Between them lie stages whose sources are `away`, and why they cannot be read. Their last versions are taken as they
    are. Nothing differs when all are the same, or up to where the last build stopped.
    """

    same: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    away: dict[str, str] = field(default_factory=dict)


def compare_with_last(catalog: Catalog, flow: Sequence[Stage[Any]], config: BuildConfig) -> Comparison:
    """Compare the stages of a configuration with those of the last build."""
    context, compared = BuildContext(config, catalog.workdir, catalog), Comparison()
    for stage in flow:
        current = catalog.find_current(stage.name)
        sealed = catalog.find_sealed(current) if current else None
        if sealed is None:
            break
        context.sealed[stage.name] = sealed
        try:
            inputs = stage.inputs(context)
        except (ConfigError, OSError) as error:
            at = getattr(error, "filename", None)
            compared.away[stage.name] = f"{at}: {error.strerror}" if isinstance(error, OSError) and at else str(error)
            continue
        if stage.fingerprint(inputs) != current:
            ((text,),) = catalog.ask("SELECT identity FROM stages WHERE fingerprint = ?", current)
            changes = differences(json.loads(text), json.loads(json.dumps(stage.identity(inputs))))
            compared.changes = [f"{stage.name}: {change}" for change in changes]
            break
        compared.same.append(stage.name)
    return compared
