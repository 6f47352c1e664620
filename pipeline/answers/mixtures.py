"""What the mixture of a configuration would draw from the pools, before anything is drawn.

Reads what select kept in the work folder. Where the takedown list or a setting of select has changed since, select
decides again, in a private folder that is removed afterwards.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from manifests.catalog import Catalog
from manifests.errors import ConfigError
from manifests.reader import open_reader, paths_of_current
from manifests.remote.session import at_hand
from manifests.takedowns import standing_entries
from pipeline.config import BuildConfig
from pipeline.runner.inputs import identity_of
from pipeline.runner.runner import Runner
from pipeline.stages import select
from pipeline.stages.mix import describe_quotas, plan_mixture, read_target
from pipeline.stages.select import Choice, SelectInputs
from pipeline.store.files import Files


@dataclass(frozen=True)
class Planned:
    """A mixture that was not drawn: a row a domain, kept samples that it leaves out, and words that date the pools."""

    rows: Sequence[dict[str, Any]]
    num_left_out: int
    pools_as_of: str


def plan(config: BuildConfig) -> Planned:
    """What the mixture of a configuration would draw.

    Raises: ConfigError when nothing is selected yet, or when the pools cannot give the mixture.
    """
    kept, as_of = _read_kept(config)
    target = read_target(config.mix, config.domains)
    rows = describe_quotas(*plan_mixture(config.mix, target, kept, config.pack.kind))
    selected = sum(num for sources in kept.values() for num in sources.values())
    used = sum(row["num_heldout"] + min(row["num_drawn"], row["num_available"]) for row in rows)
    return Planned(rows, selected - used, as_of)


def _read_kept(config: BuildConfig) -> tuple[dict[str, dict[str, int]], str]:
    """Selected samples, domain -> source -> number, and words that say as of when.

    Raises: ConfigError when nothing is selected yet.
    """
    workdir = at_hand(config.work_dir)
    with open_reader(workdir) as connection:
        sealed: Sequence[Any] = connection.sql(
            "SELECT sealed_at, identity FROM current_stages JOIN stages USING (fingerprint) "
            "WHERE stages.stage = 'select' AND sealed_at IS NOT NULL"
        ).fetchall()
        if not sealed:
            raise ConfigError(
                f"{workdir}: nothing is selected here yet; run `plantmix build CONFIG --to select` first, "
                "then look at the mixture"
            )
        ((sealed_at, identity),) = sealed
        entries = standing_entries(workdir, lambda query: connection.sql(query).fetchall())
        choice = Choice.of(config, entries)
        if json.loads(json.dumps(identity_of(choice))) == json.loads(identity).get("choice"):
            kept: dict[str, dict[str, int]] = {}
            for domain, source, num in connection.sql(
                "SELECT domain, source, count(*) FROM decisions JOIN candidates USING (sample_id) WHERE keep "
                "GROUP BY ALL ORDER BY ALL"
            ).fetchall():
                kept.setdefault(domain, {})[source] = num
            return kept, f"pools as select left them at {sealed_at:%Y-%m-%d %H:%M} UTC"
        tables = {
            table: Files(tuple(paths_of_current(connection, workdir, stage, table)))
            for stage, names in _MEASURED.items()
            for table in names
        }
    return _select_apart(config, SelectInputs(choice=choice, **tables)), (
        f"pools as select leaves them now; takedowns or settings have changed since {sealed_at:%Y-%m-%d %H:%M} UTC"
    )


def _select_apart(config: BuildConfig, inputs: SelectInputs) -> dict[str, dict[str, int]]:
    """What select keeps now, decided in a private folder."""
    inline = config.model_copy(update={"run": config.run.model_copy(update={"executor": "inline"})})
    stage = replace(select.STAGE, inputs=lambda _: inputs)
    with tempfile.TemporaryDirectory() as scratch, Catalog.open(scratch) as catalog:
        kept: dict[str, dict[str, int]] = Runner(inline, [stage], catalog).run().stages["select"].notes["sources"]
    return kept


_MEASURED = {
    "ingest": ("candidates",),
    "fetch": ("facts",),
    "caption": ("captions", "caption_verdicts"),
    "dedup": ("pairs", "leaks", "semantic_pairs", "details"),
    "score": ("score_verdicts",),
}
