"""mix: set evaluation samples aside, then draw each domain's share in a seeded, stable order.

Reads decisions and candidates. Writes `draws`: one row a drawn sample and copy, with its place in the global
shuffle. A sample's place in the draw is a hash of seed and id, so another ratio or more data moves few samples.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.contract.records import Funnel
from manifests.errors import ConfigError
from pipeline.config import BuildConfig, MixSettings
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import BuildContext, Execution, PartResult, Stage, StageRun, Step
from pipeline.judging.quotas.allocation import Pool, Quota, allocate, allocate_by_size, apportion
from pipeline.store.files import Files
from pipeline.store.sql import count_within, first_half_of_md5

log = logging.getLogger("plantmix.mix")


@dataclass(frozen=True)
class Target:
    """The weights that are asked for, None when sizes are given; and the most samples that they were chosen for."""

    ratio: dict[str, float] | None
    most_samples: int | None = None


def read_target(settings: MixSettings, domains: Sequence[str]) -> Target:
    """Return the target in the config, or in the mixture file that it names.

    Raises: ConfigError when the file is missing, is no mixture, or does not fit the domains or the config.
    """
    if settings.mixture is None:
        return Target(dict(settings.ratio) if settings.ratio is not None else None)
    path = Path(settings.mixture)
    try:
        mixture = json.loads(path.read_text(encoding="utf-8"))
        ratio = {str(domain): float(share) for domain, share in mixture["ratio"].items()}
        most = int((mixture.get("limits") or {}).get("num_samples") or 0) or None
    except OSError as error:
        raise ConfigError(f"mix.mixture: {path} cannot be read: {error.strerror}") from None
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"mix.mixture: {path} is not a mixture file; it needs a 'ratio' of domain to share, "
            "as `plantmix plan choose` writes it"
        ) from None
    if ratio.keys() != set(domains):
        raise ConfigError(
            f"mix.mixture: {path} gives shares for {', '.join(ratio)}; the sources have {', '.join(domains)}"
        )
    wrong = [f"{domain} has {share:g}" for domain, share in ratio.items() if not 0 <= share < float("inf")]
    if wrong or not 0 < sum(ratio.values()) < float("inf"):
        which = ", ".join(wrong) or "their sum must be above 0"
        raise ConfigError(f"mix.mixture: {path} gives shares that cannot be used: {which}; a share is 0 or more")
    if most is not None and settings.num_samples is not None and settings.num_samples > most:
        raise ConfigError(
            f"mix.num_samples: {settings.num_samples:,} is more than the {most:,} samples that {path} was chosen for; "
            "leave mix.num_samples out, or choose again with these --samples"
        )
    return Target(ratio, most)


@dataclass(frozen=True)
class Stratum:
    """Samples that are drawn together: a domain, or one source of it where mix.sources gives weights."""

    domain: str
    source: str | None
    num_samples: int
    num_heldout: int


def plan_mixture(
    settings: MixSettings, target: Target, kept: Mapping[str, Mapping[str, int]], kind: str = "mixed"
) -> tuple[list[Quota], list[Stratum]]:
    """Return the samples that each domain gives after the held-out ones are set aside, and the strata they come from.

    `kept` counts the selected samples: domain -> source -> number. A stratified release takes every pool whole, once,
    unless sizes are given. The ratio then only says what its readers shall draw.

    Raises: ConfigError when a pool is too small for the hold-out or for its share.
    """
    ratio = target.ratio
    domains = list(ratio if ratio is not None else settings.by_size or {})
    heldout = {domain: _heldout(settings, domain, kept.get(domain, {})) for domain in domains}
    pools = {}
    for domain in domains:
        left = {source: num - heldout[domain].get(source, 0) for source, num in kept.get(domain, {}).items()}
        num_available = sum(left.values()) - heldout[domain].get("", 0)
        pools[domain] = Pool(num_available, settings.epochs_of(domain), settings.sources.get(domain), left)
    if settings.by_size is not None:
        quotas = allocate_by_size(settings.by_size, pools)
    elif kind == "stratified" and ratio is not None:
        weight, size = sum(ratio.values()), {domain: pool.num_available for domain, pool in pools.items()}
        quotas = [Quota(domain, ratio[domain] / weight, size[domain], size[domain]) for domain in domains]
    else:
        quotas = allocate(ratio or {}, pools, settings.num_samples, target.most_samples)
    strata = []
    for quota in quotas:
        aside = heldout[quota.domain]
        if quota.sources:
            strata += [Stratum(quota.domain, s.source, s.num_samples, aside.get(s.source, 0)) for s in quota.sources]
        else:
            strata.append(Stratum(quota.domain, None, quota.num_samples, aside.get("", 0)))
    return quotas, strata


def _heldout(settings: MixSettings, domain: str, kept: Mapping[str, int]) -> dict[str, int]:
    """Held-out samples of each source, or under "" for the whole domain where its sources are one pool."""
    there = sum(kept.values())
    num = settings.heldout.num_of(domain, there)
    if num > there:
        raise ConfigError(
            f"mix.heldout: {num:,} samples of '{domain}' are to be set aside, only {there:,} were kept; set aside "
            "fewer (`heldout: 10%` fits any number)"
        )
    if domain not in settings.sources:
        return {"": num}
    return apportion({source: num_kept / max(there, 1) for source, num_kept in kept.items()}, num) if num else {}


@dataclass(frozen=True)
class MixInputs:
    """All that mix reads. `mixture` is the description that the release carries, so another target is another input."""

    candidates: Files
    decisions: Files
    strata: tuple[Stratum, ...]
    mixture: dict[str, Any]
    seed: int


def draw(inputs: Inputs, run: Execution[None], strata: tuple[Stratum, ...], seed: int) -> PartResult:
    """Draw the strata. A pool smaller than its quota is drawn whole several times, then in part: repeats are even.

    A sample's place in an order is the first half of an md5 over seed and id, an unsigned 64-bit number; ties go by id.
    Samples of one group are set aside together or not at all.
    """
    with run.views(inputs) as sql:
        rows = [{"stratum": number, **asdict(stratum)} for number, stratum in enumerate(strata)]
        sql.register("strata", pa.Table.from_pylist(rows, schema=_STRATA))
        sql.execute(_KEPT)
        for reached in (_FIRST_UNITS, "true"):
            sql.execute(_ASIDE.format(hashed=first_half_of_md5(f"'heldout {seed} ' || unit"), reached=reached))
            if not sql.execute(_LACKING).fetchall():  # else units that come later may fill what is missing
                break
        sql.execute(_DRAWN.format(hashed=first_half_of_md5(f"'draw {seed} ' || sample_id")))
        num_in = sql.execute("SELECT count(*) FROM kept WHERE NOT gone").fetchall()[0][0]
        groups = count_within(sql, _GROUPS)
        sql.execute("DROP TABLE kept")
        ((num_train,),) = sql.execute("SELECT count(*) FROM drawn WHERE NOT heldout").fetchall()
        sql.execute("SET preserve_insertion_order = true")
        sql.execute(_SHUFFLED.format(hashed=first_half_of_md5(f"'shuffle {seed} ' || copy || ' ' || sample_id")))
        sql.execute("DROP TABLE drawn")
        drawn = _DRAWS.format(num_train=num_train)
        draws, content = run.save_digested(sql, "draws", drawn, "sample_id, copy")
        ((num_kept,),) = sql.execute("SELECT count(*) FROM draws WHERE copy = 0").fetchall()
        splits = dict(sql.execute("SELECT split, count(*) FROM draws GROUP BY 1 ORDER BY 1").fetchall())
        of_heldout = "SELECT domain, count(*) FROM draws WHERE split = 'heldout' GROUP BY 1 ORDER BY 1"
        heldout = dict(sql.execute(of_heldout).fetchall())
    notes = {"splits": splits, "content": content, "heldout": heldout, "groups": groups}
    reasons = {"left_out_by_ratio": num_in - num_kept}
    return PartResult((draws,), Funnel(num_in, num_kept, reasons), notes)


_STRATA = pa.schema(
    [
        ("domain", pa.string()),
        ("source", pa.string()),
        ("num_samples", pa.int64()),
        ("num_heldout", pa.int64()),
        ("stratum", pa.int32()),
    ]
)
# A group belongs to one source. What has no group is a unit of one sample. What was taken down keeps its place in the
# order of units: else the next one, which an earlier release trained on, would be set aside for it.
_KEPT = """
    CREATE TABLE kept AS
    SELECT c.sample_id, s.stratum, c.source || '/' || c.group_id AS group_key, NOT d.keep AS gone
    FROM decisions d JOIN candidates c USING (sample_id)
    JOIN strata s ON s.domain = c.domain AND (s.source IS NULL OR s.source = c.source)
    WHERE d.keep OR d.reason = 'takedown'
"""
# Whole units are set aside in the order of a hash while they fit. The first that does not fit stays in training, and
# later units of one sample fill what is missing, unless something was taken down.
_ASIDE = """
    CREATE OR REPLACE TABLE aside AS
    WITH units AS (
        SELECT stratum, sample_id AS unit, 1 AS num FROM kept WHERE group_key IS NULL
        UNION ALL SELECT stratum, group_key, count(*) FROM kept WHERE group_key IS NOT NULL GROUP BY ALL
    ), sizes AS (SELECT stratum, count(*) AS num_kept FROM kept GROUP BY stratum
    ), hashed AS (
        SELECT *, {hashed} AS hash FROM units JOIN strata USING (stratum) JOIN sizes USING (stratum)
        WHERE num_heldout > 0
    ), placed AS (
        SELECT stratum, unit, num, num_heldout, sum(num) OVER (PARTITION BY stratum ORDER BY hash, unit) AS reached
        FROM hashed WHERE {reached}
    ), missing AS (
        SELECT stratum, num_heldout - coalesce(max(reached) FILTER (reached <= num_heldout), 0) AS num_missing
        FROM placed GROUP BY stratum, num_heldout
    ), fillers AS (
        SELECT stratum, unit, num, num_missing, row_number() OVER (PARTITION BY stratum ORDER BY reached) AS place
        FROM placed JOIN missing USING (stratum) WHERE reached > num_heldout AND num = 1 AND num_missing > 0
            AND stratum NOT IN (SELECT stratum FROM kept WHERE gone)
    )
    SELECT stratum, unit, num FROM placed WHERE reached <= num_heldout
    UNION ALL SELECT stratum, unit, num FROM fillers WHERE place <= num_missing
"""
# The first units in that order, about four times as many samples as are set aside. Sorting all took 0.5 of 8.2 CPU s.
_FIRST_UNITS = f"hash < {2**64} * (4.0 * num_heldout + 1000) / num_kept"
_LACKING = """
    SELECT stratum FROM strata LEFT JOIN (SELECT stratum, sum(num) AS num FROM aside GROUP BY stratum) USING (stratum)
    WHERE num_heldout > coalesce(num, 0)
"""
_DRAWN = """
    CREATE TABLE drawn AS
    WITH pool AS (
        SELECT sample_id, stratum, row_number() OVER (PARTITION BY stratum ORDER BY {hashed}, sample_id) - 1 AS place,
            count(*) OVER (PARTITION BY stratum) AS num
        FROM kept ANTI JOIN aside ON unit = coalesce(group_key, sample_id) WHERE NOT gone
    )
    SELECT sample_id, unnest(range(num_samples // num + (place < num_samples % num)::BIGINT))::INTEGER AS copy,
        stratum, false AS heldout
    FROM pool JOIN strata USING (stratum)
    UNION ALL SELECT sample_id, 0, stratum, true FROM kept SEMI JOIN aside ON unit = coalesce(group_key, sample_id)
    WHERE NOT gone
"""
# rows are in the order of the shuffle, so that their numbers tell ranks
_SHUFFLED = "CREATE TABLE shuffled AS SELECT * FROM drawn ORDER BY heldout, {hashed}, sample_id, copy"
_DRAWS = """
    SELECT sample_id, copy, domain, if(heldout, 'heldout', 'train') AS split,
        r.rowid - if(heldout, {num_train}, 0) AS rank FROM shuffled r JOIN strata USING (stratum)
"""
_GROUPS = """
    SELECT s.domain, if(d.heldout, 'heldout', 'train'), count(DISTINCT group_key)
    FROM kept k JOIN drawn d USING (sample_id) JOIN strata s ON s.stratum = k.stratum
    WHERE group_key IS NOT NULL AND copy = 0 GROUP BY ALL ORDER BY ALL
"""


def _inputs(context: BuildContext) -> MixInputs:
    config = context.config
    kept = context.sealed["select"].notes["sources"]
    quotas, strata = plan_mixture(config.mix, read_target(config.mix, config.domains), kept, config.pack.kind)
    return MixInputs(
        context.files("ingest", "candidates"),
        context.files("select", "decisions").digested(context.sealed["select"].notes["content"]),
        tuple(strata),
        describe_mixture(config, quotas, strata),
        config.mix.seed,
    )


def _conclude(inputs: MixInputs, run: StageRun[None]) -> tuple[Funnel, dict[str, Any]]:
    """Fewer samples may be held out than asked for, when every group that is left is too large for the rest."""
    funnel, notes = run.result("draw")
    heldout, groups = notes.pop("heldout"), notes.pop("groups")
    rows = []
    for row in inputs.mixture["domains"]:
        domain, num = row["domain"], heldout.get(row["domain"], 0)
        if num < row["num_heldout"]:
            log.warning(
                "mix: %s samples of '%s' are held out, not %s: the groups that are left are too large for the rest, or "
                "pictures were taken down, and none that was trained on takes their place",
                *(f"{num:,}", domain, f"{row['num_heldout']:,}"),
            )
        rows.append({**row, "num_heldout": num} | ({"num_groups": groups[domain]} if domain in groups else {}))
    return funnel, {**notes, "mixture": {**inputs.mixture, "domains": rows}}


def describe_mixture(config: BuildConfig, quotas: Sequence[Quota], strata: Sequence[Stratum]) -> dict[str, Any]:
    """Describe the mixture of a release: target and realised shares, pools, epochs, and the law if one was used."""
    law = config.mix.mixture
    rows = describe_quotas(quotas, strata)
    return {
        "kind": config.pack.kind,
        "num_samples": sum(row["num_drawn"] for row in rows),
        "seed": config.mix.seed,
        "domains": rows,
        "law": json.loads(Path(law).read_text(encoding="utf-8")) if law else None,
    }


def describe_quotas(quotas: Sequence[Quota], strata: Sequence[Stratum]) -> list[dict[str, Any]]:
    """One dict a domain; `sources` within it where weights of sources were given."""
    total = sum(quota.num_samples for quota in quotas)
    rows: list[dict[str, Any]] = []
    for quota in quotas:
        row: dict[str, Any] = {
            "domain": quota.domain,
            "target_share": quota.share,
            "realised_share": quota.num_samples / total if total else 0.0,
            "num_available": quota.num_available,
            "num_drawn": quota.num_samples,
            "num_epochs": round(quota.num_epochs, 6),
            "num_heldout": sum(stratum.num_heldout for stratum in strata if stratum.domain == quota.domain),
        }
        if quota.sources:
            row["sources"] = [
                {
                    "source": source.source,
                    "target_share": source.share,
                    "realised_share": source.num_samples / quota.num_samples if quota.num_samples else 0.0,
                    "num_available": source.num_available,
                    "num_drawn": source.num_samples,
                }
                for source in quota.sources
            ]
        rows.append(row)
    return rows


def _settle(context: BuildContext) -> None:
    mixture = context.sealed["mix"].notes["mixture"]
    rows = [
        {name: value for name, value in row.items() if name not in ("sources", "num_groups")}
        for row in mixture["domains"]
    ]
    context.catalog.record_mix(context.fingerprint, rows)


STAGE = Stage(
    name="mix",
    about="set evaluation samples aside, draw each domain's share",
    inputs=_inputs,
    steps=(  # 4: what was taken down keeps its place among the held-out
        Step("draw", draw, version=4, reads=("candidates", "decisions"), gives=("draws",)),
    ),
    conclude=_conclude,
    settle=_settle,
)
