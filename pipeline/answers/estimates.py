"""The work that a configuration means: what is fetched, from whom, how long it takes and how large it is.

Reads the sources as ingest does, into a private temporary folder that is removed afterwards. Sizes and speeds are
stated assumptions; where heads are asked, their mean size takes the place of the assumed one.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.contract.catalog import Catalog
from manifests.contract.reader import literals, open_reader
from manifests.contract.session import at_hand
from manifests.errors import ConfigError, RunError
from manifests.services import scheduling
from manifests.stores import storage
from manifests.stores.stamps import look
from pipeline.answers.preflight import nearest_folder
from pipeline.config import BuildConfig
from pipeline.engine.on_ray import count_cpus
from pipeline.fetching.hosts import MOST_TIMES
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import NetworkSettings
from pipeline.judging.vocabulary.licences import LicenceSettings, normalise_licence, unread_statements
from pipeline.sources.files import split_locator
from pipeline.sources.kinds import FirstRows
from pipeline.sources.reading import ask, check_source, complete
from pipeline.sources.rows import Batch
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.keyed import describe_join, fault_of
from pipeline.sources.tars import front_to_back
from pipeline.sources.tars.samples import StoredTars
from pipeline.stages.fetch.rounds import addresses_to_fetch, view_fetched
from pipeline.stages.fetch.stage import fetched_before
from pipeline.stages.ingest.stage import ADDRESS, map_rows
from pipeline.store.sql import open_scratch, view_parquet
from pipeline.store.writing import TableWriter

ASSUMED_PICTURE_BYTES = 500_000  # between a 500 px copy (some 100 kB) and a camera's original (some 3 MB)
ASSUMED_REQUEST_SECONDS = 0.5  # from asking to the last byte, over the open web
# Decode, hash, resize, encode on one core: photos of 256 to 4,000 px and 19 to 946 kB took 1.5 to 18 ms, which this
# meets within 2 ms (AMD EPYC, 2026-12-01); all of a build of 1 M photos of 8 kB took 1.8 ms (results/million.md)
_PICTURE_SECONDS, _BYTE_SECONDS = 0.0025, 17e-9
# Bytes a pixel of a stored JPEG, 4:2:0, at 256 px: 60 phone photos of groceries.
_STORED_BYTES_PER_PIXEL = {30: 0.1, 80: 0.23, 90: 0.33, 95: 0.46, 100: 1.2}  # by JPEG quality; 30 is a guess
_SIDE_RATIO = 4 / 3
_ROW_BYTES = 1_700  # all tables of the work folder, a candidate: 2 M synthetic ones, each drawn 1.4 times (2026-11-27)
_SAMPLE_BYTES = 3_700  # of a release beside the picture: text, facts and the blocks of a tar (results/million.md)

UNREAD_LISTED = 10  # licence texts of a source that cannot be read
_COUNTED_COLUMNS = ("source", "sample_id", "url", "asked_url", "locator", "reason", "licence", "licence_url")
_COUNTED = pa.schema([(name, pa.string()) for name in _COUNTED_COLUMNS])


def estimate(config: BuildConfig, num_heads: int = 0) -> dict[str, Any]:
    """All figures as plain values: sources, hosts, bytes, hours, disk, assumptions."""
    for source in config.sources:
        if not source.reader.waits_for():
            check_source(source)
    with tempfile.TemporaryDirectory(prefix="plantmix-estimate-") as folder:
        scratch = partial(open_scratch, folder, config.run.memory_gb)
        joins: list[dict[str, Any]] = []
        read = [_read_source(source, folder, scratch, joins) for source in config.sources]
        paths = [path for path, _ in read]
        tars = {source.name: of_tars for source, (_, of_tars) in zip(config.sources, read, strict=True) if of_tars}
        with scratch() as sql, _work_folder(config) as catalog:
            view_parquet(sql, "rows", paths)
            sources = _count_rows(sql, config.sources, tars)
            for source, entry in zip(config.sources, sources, strict=True):
                entry |= _count_licences(sql, source, tars, config.select.licences)
            view_fetched(sql, fetched_before(config, catalog) if catalog else (), config.fetch.network.consent)
            hosts = host_times(_count_addresses(sql), config.fetch.network)
            asked_again = _count_asked_again(sql)
            local = _count_local(sql, tars)
            heads = _ask_heads(sql, config.fetch.network, num_heads) if num_heads else None
    figures = _figures(config, sources, hosts, local, heads, asked_again)
    return figures | {"tars": _sum_of(tars.values()), "joins": joins}


def host_times(hosts: Sequence[tuple[str, int]], network: NetworkSettings) -> list[dict[str, Any]]:
    """Hours each host takes at its limits, longest first; hosts that share limits are one entry.

    `fewest_hours` are those of an adaptive host that bears the most that its rate may grow to.
    """
    entries: dict[str, dict[str, Any]] = {}
    for host, num_urls in hosts:
        name, limits = network.limits_of(host)
        entry = entries.setdefault(
            name,
            {
                "host": name,
                "num_urls": 0,
                "requests_per_second": limits.requests_per_second,
                "connections": limits.connections,
                "adaptive": limits.adaptive,
            },
        )
        entry["num_urls"] += num_urls
    for entry in entries.values():
        by_connections = entry["connections"] / ASSUMED_REQUEST_SECONDS
        rate = min(entry["requests_per_second"] or by_connections, by_connections)
        entry["hours"] = entry["num_urls"] / rate / 3600
        entry["fewest_hours"] = entry["hours"] / (MOST_TIMES if entry["adaptive"] else 1)
    return sorted(entries.values(), key=lambda entry: (-entry["hours"], entry["host"]))


def stored_bytes(image: ImageSettings, downloaded_bytes: float) -> float:
    """Mean bytes of a stored picture of the usual 4 : 3 shape; never more than it had."""
    if image.resize == "no":
        return downloaded_bytes
    other_side_px = image.size_px * (_SIDE_RATIO if image.resize == "keep_ratio" else 1 / _SIDE_RATIO)
    per_pixel = np.interp(image.jpeg_quality, [*_STORED_BYTES_PER_PIXEL], [*_STORED_BYTES_PER_PIXEL.values()])
    return min(downloaded_bytes, image.size_px * other_side_px * float(per_pixel))


def decode_seconds(picture_bytes: float) -> float:
    """CPU seconds that a picture of so many bytes takes: decode, hash, resize, encode."""
    return _PICTURE_SECONDS + _BYTE_SECONDS * picture_bytes


# ---- counting


@dataclass(frozen=True)
class _Tars:
    """Tars that are read once, and how many times the samples that were looked at they hold, by their bytes."""

    num_tars: int
    num_bytes: int
    times: float
    num_requests: int
    """To a store; none for tars of this machine."""


def _read_source(
    source: SourceSettings, folder: str, scratch: Callable[[], Any], joins: list[dict[str, Any]]
) -> tuple[str, _Tars | None]:
    """Write every row of a source, judged as ingest does, to a Parquet file, and return its path.

    The first tar stands for tars that are read once. A source that still waits for its data has no rows. `joins` gets
    words on each table of fields.
    """

    def tell(counts: dict[str, Any]) -> None:
        fault = None if rows.is_part else fault_of(source.join[counts["entry"] - 1], counts)
        joins.append({"source": source.name, "words": describe_join(counts, rows.is_part), "fault": fault})

    def passing(batches: Iterator[Batch], tars: StoredTars) -> Iterator[Batch]:
        for batch in batches:
            for locator in batch.rows["locator"].to_pylist():
                name, *at = split_locator(locator)
                passed[name] = tars.end_of(*at)
            yield batch

    writer = TableWriter(folder, "rows", f"{source.name}.parquet", _COUNTED)
    stored, passed = source.reader.tars(), dict[str, int]()
    if source.reader.waits_for():
        rows = FirstRows(iter(()))
    else:
        rows = source.reader.first_rows(scratch) if stored else FirstRows(source.reader.rows(scratch))
    batches = rows.batches if stored is None else passing(rows.batches, stored)
    for batch in complete(source, batches, scratch, tell):
        writer.write(map_rows(batch, source))
    path = writer.close().temp
    if stored is None or not (rows.is_part or storage.is_remote(source.reader.path)):
        return path, None
    sizes = {
        name: ask(source, partial(look, storage.join(stored.root, name), now=True))[1] or 0 for name in stored.names
    }
    num_passed = sum([sizes[name] for name in list(passed)[:-1]] + list(passed.values())[-1:])
    times = sum(sizes.values()) / max(1, num_passed) if rows.is_part else 1.0
    num_ranges = sum(-(-size // front_to_back.RANGE_BYTES) + 1 for size in sizes.values())
    return path, _Tars(len(sizes), sum(sizes.values()), times, num_ranges if storage.is_remote(stored.root) else 0)


def _sum_of(tars: Collection[_Tars]) -> dict[str, int]:
    names = ("num_tars", "num_bytes", "num_requests")
    return {name: sum(getattr(listed, name) for listed in tars) for name in names}


def _count_rows(sql: Any, sources: Sequence[SourceSettings], tars: Mapping[str, _Tars]) -> list[dict[str, Any]]:
    """Rows of each source: pictures, and what is left out by reason. Makes the table `kept`, one row a picture."""
    sql.execute(
        "CREATE TABLE kept AS SELECT source, sample_id, min(coalesce(asked_url, url)) AS asked, "
        f"min({ADDRESS}) AS address, min(locator) AS locator FROM rows WHERE reason IS NULL GROUP BY source, sample_id"
    )
    totals = dict(sql.execute("SELECT source, count(*) FROM rows GROUP BY 1").fetchall())
    kept = dict(sql.execute("SELECT source, count(*) FROM kept GROUP BY 1").fetchall())
    left_out = sql.execute(
        "SELECT source, reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    entries = []
    for source in sources:
        reasons = {reason: num for name, reason, num in left_out if name == source.name}
        num_rows, num_kept = totals.get(source.name, 0), kept.get(source.name, 0)
        if repeated := num_rows - num_kept - sum(reasons.values()):
            reasons["duplicate_record"] = reasons.get("duplicate_record", 0) + repeated
        times = tars[source.name].times if source.name in tars else 1
        reasons = {reason: round(times * num) for reason, num in reasons.items()}
        counts = {"num_rows": round(times * num_rows), "num_pictures": round(times * num_kept), "reasons": reasons}
        entries.append({"source": source.name, "domain": source.domain, **counts, "is_part": times != 1})
    return entries


def _count_licences(
    sql: Any, source: SourceSettings, tars: Mapping[str, _Tars], policy: LicenceSettings
) -> dict[str, list[dict[str, Any]]]:
    """Return the licences of a source and its commonest unread texts.

    Each licence has its id, its pictures and whether the policy lets it pass. The commonest text comes first.
    """
    query = (
        "SELECT licence, licence_url, count(*) AS num FROM rows "
        f"WHERE reason IS NULL AND source = {literals([source.name])} GROUP BY ALL ORDER BY ALL"
    )
    stated = sql.sql(query).to_arrow_table()
    times = tars[source.name].times if source.name in tars else 1
    counts: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for text, url, num in zip(*(stated[name].to_pylist() for name in ("licence", "licence_url", "num")), strict=True):
        counts[normalise_licence(text, url, source.licences)] += round(times * num)
        unread.update(dict.fromkeys(unread_statements(text, url, source.licences), round(times * num)))
    return {
        "licences": [
            {"licence": licence, "num_pictures": num, "allowed": policy.allows(licence)}
            for licence, num in counts.most_common()
        ],
        "unread_licences": [{"text": text, "num_pictures": num} for text, num in unread.most_common(UNREAD_LISTED)],
    }


def _count_addresses(sql: Any) -> list[tuple[str, int]]:
    """Addresses of each host that are to be asked. Makes the table `addresses`."""
    sql.execute("CREATE VIEW candidates AS FROM kept")
    sql.execute(f"CREATE TABLE addresses AS {addresses_to_fetch(None)}")
    host = "lower(regexp_extract(url, '^[a-zA-Z]+://(?:[^/?#@]*@)?([^/?#]+)', 1))"
    host = f"regexp_replace({host}, '\\.?(:(80|443))?$', '')"
    counted = sql.execute(f"SELECT {host}, count(*) FROM addresses GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
    return list(counted)


def _count_asked_again(sql: Any) -> dict[str, int]:
    """Return how many addresses the work folder already holds, and how many of them are asked once more for signals."""
    (counts,) = sql.execute(
        "SELECT (SELECT count(DISTINCT asked) FROM kept WHERE locator IS NULL) - count(*) FILTER (NOT is_stored), "
        "count(*) FILTER (is_stored) FROM addresses"
    ).fetchall()
    return dict(zip(("num_held", "num_again"), counts, strict=True))


@contextmanager
def _work_folder(config: BuildConfig) -> Iterator[Catalog | None]:
    """Open the catalogue of the work folder for reading, or return None where there is none or a build writes it."""
    try:
        connection = open_reader(config.work_dir, per_sample=False)
    except (ConfigError, RunError):
        yield None
        return
    with closing(connection):
        yield Catalog(connection, at_hand(config.work_dir))


def _count_local(sql: Any, tars: Mapping[str, _Tars]) -> dict[str, int]:
    """Pictures that lie in files of sources, and their bytes."""
    rows = sql.execute(
        "SELECT source, count(*), sum(regexp_extract(locator, '[0-9]+$')::HUGEINT)::BIGINT "
        "FROM kept WHERE locator IS NOT NULL GROUP BY 1"
    ).fetchall()
    scaled = [(tars[name].times if name in tars else 1, *counts) for name, *counts in rows]
    return {
        "num_pictures": sum(round(times * num) for times, num, _ in scaled),
        "num_bytes": sum(round(times * num_bytes) for times, _, num_bytes in scaled),
    }


def _ask_heads(sql: Any, network: NetworkSettings, num: int) -> dict[str, Any]:
    """Sizes that hosts state for a sample of the addresses, the same sample each time."""
    from pipeline.answers.sizes import ask_sizes

    query = "SELECT url FROM addresses ORDER BY md5(url) LIMIT ?"
    urls = [url for (url,) in sql.execute(query, [num]).fetchall()]
    sizes, outcomes = ask_sizes(urls, network)
    return {
        "num_asked": len(urls),
        "num_answered": len(sizes),
        "mean_bytes": statistics.mean(sizes) if sizes else None,
        "median_bytes": statistics.median(sizes) if sizes else None,
        "outcomes": dict(sorted(outcomes.items())),
    }


# ---- figures


def _figures(
    config: BuildConfig,
    sources: list[dict[str, Any]],
    hosts: list[dict[str, Any]],
    local: dict[str, int],
    heads: dict[str, Any] | None,
    asked_again: dict[str, int],
) -> dict[str, Any]:
    num_urls = sum(host["num_urls"] for host in hosts)
    mean_bytes = float((heads and heads["mean_bytes"]) or ASSUMED_PICTURE_BYTES)
    num_local, image = local["num_pictures"], config.fetch.image
    num_pictures = num_urls + num_local
    local_mean = local["num_bytes"] / num_local if num_local else 0.0
    pool_bytes = num_urls * stored_bytes(image, mean_bytes) + num_local * stored_bytes(image, local_mean)
    on_ray = config.run.executor == "ray"
    num_cores = config.run.num_workers or (count_cpus(config.run.ray) if on_ray else scheduling.num_cores())
    work_seconds = num_urls * decode_seconds(mean_bytes) + num_local * decode_seconds(local_mean)
    work_hours = work_seconds / num_cores / 3600
    release_bytes = pool_bytes + num_pictures * _SAMPLE_BYTES
    slowest = hosts[0]["hours"] if hosts else 0.0
    return {
        "sources": sources,
        "web": {"num_urls": num_urls, "num_hosts": len(hosts), "hosts": hosts, **asked_again},
        "local": local,
        "heads": heads,
        "bytes": {"mean_picture": mean_bytes, "download": num_urls * mean_bytes},
        "hours": {
            "slowest_host": slowest,
            "local_work": work_hours,
            "total": max(slowest, work_hours),
            "decided_by": hosts[0]["host"] if slowest > work_hours else "decoding",
        },
        "disk": {
            "pool_bytes": pool_bytes,
            "release_bytes": release_bytes,
            "tables_bytes": num_pictures * _ROW_BYTES,
            "needed_bytes": pool_bytes + release_bytes + num_pictures * _ROW_BYTES,
            "in_store": storage.is_remote(config.work_dir),
            "free_bytes": shutil.disk_usage(nearest_folder(config.work_dir)).free,
        },
        "assumed": {
            "picture_bytes": None if heads and heads["mean_bytes"] else ASSUMED_PICTURE_BYTES,
            "request_seconds": ASSUMED_REQUEST_SECONDS,
            "pictures_per_core_second": round(
                num_pictures / work_seconds if num_pictures else 1 / decode_seconds(mean_bytes)
            ),
            "num_cores": num_cores,
        },
    }
