"""mix: set evaluation samples aside, then draw each domain's share in a seeded, stable order.

Reads decisions and candidates. Writes `draws`: one row a drawn sample and copy, with its place in the global
shuffle. A sample's place in the draw is a hash of seed and id, so another ratio or more data moves few samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests import tables
from manifests.catalog import Funnel
from manifests.errors import ConfigError
from pipeline.allocation import Quota, allocate
from pipeline.config import MixSettings
from pipeline.stages.sql import copy_sorted, facet, open_scratch, view_parquet
from pipeline.work import BuildContext, Part, PartResult, Stage, Step, TableWriter, fingerprint

VERSION = 2


def read_ratio(settings: MixSettings, domains: Sequence[str]) -> dict[str, float]:
    """The weights of the config, or of the mixture file it names.

    Raises: ConfigError when the file is missing, is no mixture, or does not fit the domains.
    """
    if settings.ratio is not None:
        return dict(settings.ratio)
    path = Path(str(settings.mixture))
    try:
        mixture = json.loads(path.read_text(encoding="utf-8"))
        ratio = {str(domain): float(share) for domain, share in mixture["ratio"].items()}
    except OSError as error:
        raise ConfigError(f"mix.mixture: {path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"mix.mixture: {path} is not a mixture file; it needs a 'ratio' of domain to share, "
            "as `plantmix plan choose` writes it"
        ) from None
    unknown = [domain for domain in ratio if domain not in domains]
    missing = [domain for domain in domains if domain not in ratio]
    shares = list(ratio.values())
    if unknown or missing or not sum(shares) > 0 or not all(0 <= share < float("inf") for share in shares):
        raise ConfigError(
            f"mix.mixture: {path} gives shares for {', '.join(ratio)}; the sources have {', '.join(domains)}"
        )
    return ratio


def plan_quotas(
    settings: MixSettings, ratio: Mapping[str, float], kept: Mapping[str, int], kind: str = "mixed"
) -> list[Quota]:
    """Quotas after the held-out samples are set aside; `kept` counts the selected samples of each domain.

    A stratified release takes every pool whole, once: the ratio is what its readers are told to draw.

    Raises: ConfigError when a pool is too small for the hold-out or for its share.
    """
    heldout = settings.heldout.num_samples
    for domain, num in heldout.items():
        if num > kept.get(domain, 0):
            raise ConfigError(
                f"mix.heldout: {num:,} samples of '{domain}' are to be set aside, only {kept.get(domain, 0):,} were "
                "kept; ask for fewer"
            )
    epochs = settings.max_epochs
    caps = {domain: epochs.get(domain, 1.0) if isinstance(epochs, dict) else epochs for domain in ratio}
    available = {domain: kept.get(domain, 0) - heldout.get(domain, 0) for domain in ratio}
    if kind == "stratified":
        weight = sum(ratio.values())
        return [Quota(domain, ratio[domain] / weight, available[domain], available[domain]) for domain in ratio]
    return allocate(ratio, available, caps, settings.num_samples)


def draw(payload: dict[str, Any]) -> PartResult:
    """Draw the quotas; whole rounds first, then the rest from the front of the order, so repeats spread evenly."""
    seed = int(payload["seed"])
    path = f"tables/mix/{payload['stem']}.parquet"
    with open_scratch(payload) as sql:
        view_parquet(sql, "candidates", payload["candidates"])
        view_parquet(sql, "decisions", payload["decisions"])
        sql.execute("CREATE TABLE quotas (domain VARCHAR, num_samples BIGINT, num_heldout BIGINT)")
        sql.executemany("INSERT INTO quotas VALUES (?, ?, ?)", payload["quotas"])
        sql.execute(
            "CREATE TABLE kept AS SELECT sample_id, domain, row_number() OVER "
            f"(PARTITION BY domain ORDER BY md5('heldout {seed} ' || sample_id), sample_id) AS aside "
            "FROM decisions JOIN candidates USING (sample_id) WHERE keep"
        )
        sql.execute(
            "CREATE TABLE pool AS SELECT k.sample_id, k.domain, q.num_samples, row_number() OVER "
            f"(PARTITION BY k.domain ORDER BY md5('draw {seed} ' || sample_id), sample_id) - 1 AS place, "
            "count(*) OVER (PARTITION BY k.domain) AS num FROM kept k JOIN quotas q USING (domain) "
            "WHERE aside > num_heldout"
        )
        sql.execute(
            "CREATE TABLE drawn AS SELECT sample_id, unnest(range(num_samples // num + "
            "(place < num_samples % num)::BIGINT))::INTEGER AS copy, domain, 'train' AS split FROM pool "
            "UNION ALL SELECT sample_id, 0, domain, 'heldout' FROM kept JOIN quotas USING (domain) "
            "WHERE aside <= num_heldout"
        )
        draws = copy_sorted(
            sql,
            "SELECT *, row_number() OVER (PARTITION BY split ORDER BY "
            f"md5('shuffle {seed} ' || copy || ' ' || sample_id), sample_id, copy) - 1 AS rank FROM drawn",
            "split DESC, rank",
            TableWriter(payload["workdir"], "draws", path, tables.DRAWS),
        )
        num_in = sql.execute("SELECT count(*) FROM kept").fetchall()[0][0]
        num_kept = sql.execute("SELECT count(DISTINCT sample_id) FROM drawn").fetchall()[0][0]
        view_parquet(sql, "draws", [draws.temp])
        splits = dict(sql.execute("SELECT split, count(*) FROM draws GROUP BY 1 ORDER BY 1").fetchall())
        content = facet(sql, tables.DRAWS.names, "draws")
    reasons = {"left_out_by_ratio": num_in - num_kept}
    return PartResult((draws,), Funnel(num_in, num_kept, reasons), {"splits": splits, "content": content})


def _ratio(context: BuildContext) -> dict[str, float]:
    return read_ratio(context.config.mix, context.config.domains)


def _quotas(context: BuildContext) -> list[Quota]:
    kept = context.sealed["select"].notes["domains"]
    return plan_quotas(context.config.mix, _ratio(context), kept, context.config.pack.kind)


def _identity(context: BuildContext) -> dict[str, Any]:
    return {
        "version": VERSION,
        "mixture": describe_mixture(context),  # the same counts drawn for another target are another statement
        "decisions": context.sealed["select"].notes["content"],
        "candidates": context.content("ingest", "candidates"),
    }


def _plan(context: BuildContext) -> Sequence[Part]:
    key = fingerprint({"stage": context.fingerprint})
    heldout = context.config.mix.heldout.num_samples
    payload = {
        "candidates": context.files("ingest", "candidates"),
        "decisions": context.files("select", "decisions"),
        "quotas": [(quota.domain, quota.num_samples, heldout.get(quota.domain, 0)) for quota in _quotas(context)],
        "seed": context.config.mix.seed,
        "stem": key[:16],
        **context.execution(),
    }
    return [Part(key, payload)]


def _conclude(context: BuildContext) -> tuple[Funnel, dict[str, Any]]:
    (part,) = context.own_parts("draw")
    assert part.funnel is not None
    return part.funnel, {**part.notes, "mixture": describe_mixture(context)}


def describe_mixture(context: BuildContext) -> dict[str, Any]:
    """What `mixture.json` of a release says: target and realised shares, pools, epochs, and the law if one was used."""
    quotas = _quotas(context)
    total = sum(quota.num_samples for quota in quotas)
    heldout = context.config.mix.heldout.num_samples
    domains = [
        {
            "domain": quota.domain,
            "target_share": quota.share,
            "realised_share": quota.num_samples / total if total else 0.0,
            "num_available": quota.num_available,
            "num_drawn": quota.num_samples,
            "num_epochs": round(quota.num_epochs, 6),
            "num_heldout": heldout.get(quota.domain, 0),
        }
        for quota in quotas
    ]
    law = context.config.mix.mixture
    evidence = json.loads(Path(law).read_text(encoding="utf-8")) if law else None
    return {"num_samples": total, "seed": context.config.mix.seed, "domains": domains, "law": evidence}


def _settle(context: BuildContext) -> None:
    mixture = context.sealed["mix"].notes["mixture"]
    context.catalog.record_mix(context.fingerprint, mixture["domains"])
    if mixture["law"] is not None:
        text = json.dumps(mixture["law"], sort_keys=True)
        context.catalog.record_law(fingerprint(mixture["law"]), text)


STAGE = Stage(
    name="mix",
    about="set evaluation samples aside, draw each domain's share",
    identity=_identity,
    steps=(Step("draw", _plan, draw),),
    conclude=_conclude,
    settle=_settle,
)
