"""A preview of the draw: how much the mixture of a configuration takes from each pool.

Reads what select kept in the work folder. Gives up with ConfigError where the takedown list or a setting of select has
changed since.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from manifests.contract.reader import open_reader, paths_of_current, sealed_version
from manifests.contract.session import at_hand
from manifests.contract.takedowns import standing_list
from manifests.errors import ConfigError
from pipeline.config import BuildConfig
from pipeline.engine.inputs import identity_of
from pipeline.stages.mix import describe_quotas, plan_mixture, read_target
from pipeline.stages.select.stage import Choice
from pipeline.store.sql import count_within


@dataclass(frozen=True)
class Planned:
    """A mixture that was not drawn: a row a domain, kept samples that it leaves out, and words that date the pools."""

    rows: Sequence[dict[str, Any]]
    num_left_out: int
    pools_as_of: str


def plan(config: BuildConfig) -> Planned:
    """Plan what the mixture of a configuration would draw.

    Raises: ConfigError when this is not selected yet, or when the pools cannot give the mixture.
    """
    kept, as_of = _read_kept(config)
    target = read_target(config.mix, config.domains)
    rows = describe_quotas(*plan_mixture(config.mix, target, kept, config.pack.kind))
    selected = sum(num for sources in kept.values() for num in sources.values())
    used = sum(row["num_heldout"] + min(row["num_drawn"], row["num_available"]) for row in rows)
    return Planned(rows, selected - used, as_of)


def _read_kept(config: BuildConfig) -> tuple[dict[str, dict[str, int]], str]:
    """Return selected samples, domain -> source -> number, and words that say as of when.

    Raises: ConfigError when nothing is selected yet, or with other takedowns or settings.
    """
    workdir = at_hand(config.work_dir)
    with open_reader(workdir) as connection:
        version = sealed_version(connection, "select")
        if version is None:
            raise ConfigError(
                f"{workdir}: nothing is selected here yet; run `plantmix build CONFIG --to select` first, "
                "then look at the mixture"
            )
        sealed_at = version["sealed_at"]
        standing = standing_list(workdir, lambda query: connection.sql(query).fetchall())
        choice = Choice.of(config, standing, paths_of_current(connection, workdir)["ingest", "secrets"])
        if json.loads(json.dumps(identity_of(choice))) != version["identity"].get("choice"):
            raise ConfigError(
                f"{workdir}: takedowns or settings of select have changed since it ran ({sealed_at:%Y-%m-%d %H:%M} "
                "UTC); run `plantmix build CONFIG --to select` first, then look at the mixture"
            )
        kept = count_within(
            connection,
            "SELECT domain, source, count(*) FROM decisions JOIN candidates USING (sample_id) WHERE keep "
            "GROUP BY ALL ORDER BY ALL",
        )
    return kept, f"pools as select left them at {sealed_at:%Y-%m-%d %H:%M} UTC"
