"""`plantmix estimate`: what a configuration would fetch, from whom, how long and how large; asks no host unless told.

Reads the sources as ingest does, into a private temporary folder that is removed after; prints, writes nothing else.
Sizes and speeds are stated assumptions; `--head N` replaces the one on size by asking N addresses for their heads.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.errors import ConfigError
from pipeline.commands.parsing import Commands, add_command
from pipeline.config import BuildConfig, read_config
from pipeline.fetching.settings import NetworkSettings
from pipeline.pictures.settings import ImageSettings
from pipeline.sources.reading import check_source, read_rows
from pipeline.sources.settings import SourceSettings
from pipeline.stages.ingest import map_rows
from pipeline.store.sql import open_scratch, view_parquet
from pipeline.store.writing import TableWriter

ASSUMED_PICTURE_BYTES = 500_000  # between a 500 px copy (some 100 kB) and a camera's original (some 3 MB)
ASSUMED_REQUEST_SECONDS = 0.5  # from asking to the last byte, over the open web
# Decode, hash, resize, encode on one core: 240 small photos (348 px) or 24 large ones (4,000 px) a second were measured
# (tests/benchmarks/results/fetch.md).
ASSUMED_PICTURES_PER_CORE_SECOND = 40
# Bytes a pixel of a stored JPEG, 4:2:0, at 256 px: 60 phone photos of groceries.
_STORED_BYTES_PER_PIXEL = ((80, 0.23), (90, 0.33), (95, 0.46), (100, 1.2))
_SIDE_RATIO = 4 / 3
_ROW_BYTES = 400  # candidates, facts, captions and decisions of one picture, zstd Parquet
SHOWN_HOSTS = 15

_COUNTED = pa.schema([(name, pa.string()) for name in ("source", "sample_id", "url", "locator", "reason")])


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `estimate` to the command line."""
    parser = add_command(
        commands,
        "estimate",
        "what a build would fetch: rows, hosts, bytes, hours at the polite rate, disk; asks no host unless told",
        "plantmix estimate configs/pipeline/plantmix-13m.yaml --head 200",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument(
        "--head", type=int, default=0, metavar="N", help="ask N of the addresses for their size, politely (none)"
    )
    parser.add_argument("--json", action="store_true", help="the same as json, with every host")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    return print_estimate(args.config, args.head, args.json)


def print_estimate(config_path: str, num_heads: int, as_json: bool) -> int:
    """Estimate a configuration and print it; returns the exit code.

    Raises: ConfigError for a wrong configuration, or when heads are asked without a contact.
    """
    if num_heads < 0:
        raise ConfigError(f"--head {num_heads}: give the number of addresses to ask, 0 for none")
    config = read_config(config_path)
    found = estimate(config, num_heads)
    print(json.dumps(found, indent=1) if as_json else "\n".join(describe(found)))
    return 0


def estimate(config: BuildConfig, num_heads: int = 0) -> dict[str, Any]:
    """All figures as plain values: sources, hosts, bytes, hours, disk, assumptions."""
    for source in config.sources:
        check_source(source)
    with tempfile.TemporaryDirectory(prefix="plantmix-estimate-") as folder:
        paths = [_count_source(source, folder, config.run.memory_gb) for source in config.sources]
        with open_scratch(folder, config.run.memory_gb) as sql:
            view_parquet(sql, "rows", paths)
            sources, hosts, local = _count(sql, config.sources)
            heads = _sample_heads(sql, config.fetch.network, num_heads) if num_heads else None
    return _figures(config, sources, host_times(hosts, config.fetch.network), local, heads)


def host_times(hosts: Sequence[tuple[str, int]], network: NetworkSettings) -> list[dict[str, Any]]:
    """Hours each host takes at its limits, longest first; hosts that share limits are one entry."""
    together: dict[str, dict[str, Any]] = {}
    for host, num_urls in hosts:
        name, limits = network.limits_of(host)
        entry = together.setdefault(
            name,
            {
                "host": name,
                "num_urls": 0,
                "requests_per_second": limits.requests_per_second,
                "connections": limits.connections,
            },
        )
        entry["num_urls"] += num_urls
    for entry in together.values():
        by_connections = entry["connections"] / ASSUMED_REQUEST_SECONDS
        rate = min(entry["requests_per_second"] or by_connections, by_connections)
        entry["hours"] = entry["num_urls"] / rate / 3600
    return sorted(together.values(), key=lambda entry: (-entry["hours"], entry["host"]))


def stored_bytes(image: ImageSettings, downloaded_bytes: float) -> float:
    """Mean bytes of a stored picture of the usual 4 : 3 shape; never more than it had."""
    if image.resize == "no":
        return downloaded_bytes
    sides = image.size_px * (_SIDE_RATIO if image.resize == "keep_ratio" else 1 / _SIDE_RATIO)
    points = [(30, 0.1), *_STORED_BYTES_PER_PIXEL]
    above = next(at for at, (quality, _) in enumerate(points) if quality >= image.jpeg_quality) or 1
    (low, few), (high, many) = points[above - 1], points[above]
    per_pixel = few + (many - few) * (image.jpeg_quality - low) / (high - low)
    return min(downloaded_bytes, image.size_px * sides * per_pixel)


# ---- counting


def _count_source(source: SourceSettings, folder: str, memory_gb: float) -> str:
    """Every row of a source, by the judgement of ingest, into a Parquet file."""
    writer = TableWriter(folder, "rows", f"{source.name}.parquet", _COUNTED)
    for batch in read_rows(source, partial(open_scratch, folder, memory_gb)):
        writer.write(map_rows(batch, source))
    return writer.close().temp


def _count(
    sql: Any, sources: Sequence[SourceSettings]
) -> tuple[list[dict[str, Any]], list[tuple[str, int]], dict[str, int]]:
    """Rows by source and reason, addresses by host, and pictures that lie here."""
    sql.execute(
        "CREATE TABLE kept AS SELECT source, sample_id, min(url) AS url, min(locator) AS locator "
        "FROM rows WHERE reason IS NULL GROUP BY source, sample_id"
    )
    totals = dict(sql.execute("SELECT source, count(*) FROM rows GROUP BY 1").fetchall())
    kept = dict(sql.execute("SELECT source, count(*) FROM kept GROUP BY 1").fetchall())
    reasons = sql.execute("SELECT source, reason, count(*) FROM rows WHERE reason IS NOT NULL GROUP BY 1, 2").fetchall()
    told = []
    for source in sources:
        dropped = {reason: num for name, reason, num in sorted(reasons) if name == source.name}
        num_rows, num_kept = totals.get(source.name, 0), kept.get(source.name, 0)
        again = num_rows - num_kept - sum(dropped.values())
        if again:
            dropped["duplicate_record"] = dropped.get("duplicate_record", 0) + again
        told.append(
            {
                "source": source.name,
                "domain": source.domain,
                "num_rows": num_rows,
                "num_pictures": num_kept,
                "reasons": dropped,
            }
        )
    sql.execute("CREATE TABLE addresses AS SELECT DISTINCT url FROM kept WHERE locator IS NULL")
    host = "lower(regexp_extract(url, '^[a-zA-Z]+://(?:[^/?#@]*@)?([^/?#]+)', 1))"
    host = f"regexp_replace({host}, '\\.?(:(80|443))?$', '')"
    hosts = sql.execute(f"SELECT {host}, count(*) FROM addresses GROUP BY 1 ORDER BY 2 DESC, 1").fetchall()
    ((num_local, num_bytes),) = sql.execute(
        "SELECT count(*), coalesce(sum(regexp_extract(locator, '[0-9]+$')::HUGEINT), 0)::BIGINT "
        "FROM kept WHERE locator IS NOT NULL"
    ).fetchall()
    return told, hosts, {"num_pictures": num_local, "num_bytes": num_bytes}


def _sample_heads(sql: Any, network: NetworkSettings, num: int) -> dict[str, Any]:
    """Sizes declared for a sample of the addresses, the same one each time."""
    from pipeline.fetching.head import ask_sizes

    urls = [row[0] for row in sql.execute("SELECT url FROM addresses ORDER BY md5(url) LIMIT ?", [num]).fetchall()]
    sizes = ask_sizes(urls, network)
    return {
        "num_asked": len(urls),
        "num_answered": len(sizes.num_bytes),
        "mean_bytes": statistics.mean(sizes.num_bytes) if sizes.num_bytes else None,
        "median_bytes": statistics.median(sizes.num_bytes) if sizes.num_bytes else None,
        "outcomes": dict(sorted(sizes.outcomes.items())),
    }


# ---- figures


def _figures(
    config: BuildConfig,
    sources: list[dict[str, Any]],
    hosts: list[dict[str, Any]],
    local: dict[str, int],
    heads: dict[str, Any] | None,
) -> dict[str, Any]:
    num_urls = sum(host["num_urls"] for host in hosts)
    mean_bytes = float((heads and heads["mean_bytes"]) or ASSUMED_PICTURE_BYTES)
    download_bytes = num_urls * mean_bytes
    num_pictures = num_urls + local["num_pictures"]
    local_mean = local["num_bytes"] / local["num_pictures"] if local["num_pictures"] else 0.0
    image = config.fetch.image
    pool_bytes = num_urls * stored_bytes(image, mean_bytes) + local["num_pictures"] * stored_bytes(image, local_mean)
    num_cores = config.run.num_workers or os.cpu_count() or 1
    work_hours = num_pictures / ASSUMED_PICTURES_PER_CORE_SECOND / num_cores / 3600
    slowest = hosts[0]["hours"] if hosts else 0.0
    place = Path(config.work_dir).absolute()
    while not place.exists():
        place = place.parent
    return {
        "sources": sources,
        "web": {"num_urls": num_urls, "num_hosts": len(hosts), "hosts": hosts},
        "local": local,
        "heads": heads,
        "bytes": {"mean_picture": mean_bytes, "download": download_bytes},
        "hours": {"slowest_host": slowest, "local_work": work_hours, "total": max(slowest, work_hours)},
        "disk": {
            "pool_bytes": pool_bytes,
            "release_bytes": pool_bytes,
            "tables_bytes": num_pictures * _ROW_BYTES,
            "needed_bytes": 2 * pool_bytes + num_pictures * _ROW_BYTES,
            "free_bytes": shutil.disk_usage(place).free,
        },
        "assumed": {
            "picture_bytes": None if heads and heads["mean_bytes"] else ASSUMED_PICTURE_BYTES,
            "request_seconds": ASSUMED_REQUEST_SECONDS,
            "pictures_per_core_second": ASSUMED_PICTURES_PER_CORE_SECOND,
            "num_cores": num_cores,
        },
    }


def describe(found: dict[str, Any]) -> list[str]:
    """An estimate as lines that a person reads."""
    return [
        *_source_lines(found["sources"]),
        "",
        *_host_lines(found["web"]),
        *_local_lines(found["local"]),
        "",
        *_size_lines(found),
        *_time_lines(found),
        *_disk_lines(found["disk"]),
    ]


def _in_bytes(num: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.3g} {unit}" if unit != "B" else f"{num:.0f} B"
        num /= 1000
    return f"{num:,.3g} TB" if num < 1000 else f"{num:,.0f} TB"


def _source_lines(sources: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'source':<20}{'domain':<14}{'rows':>14}{'pictures':>14}  left out"]
    for row in sources:
        reasons = sorted(row["reasons"].items(), key=lambda item: (-item[1], item[0]))
        left = ", ".join(f"{num:,} {reason}" for reason, num in reasons)
        counts = f"{row['num_rows']:>14,}{row['num_pictures']:>14,}"
        lines.append(f"{row['source']:<20}{row['domain']:<14}{counts}  {left}".rstrip())
    return lines


def _host_lines(web: dict[str, Any]) -> list[str]:
    if not web["num_urls"]:
        return ["no addresses on the web"]
    hosts = f"{web['num_hosts']:,} {'host' if web['num_hosts'] == 1 else 'hosts'}"
    lines = [
        f"{web['num_urls']:,} distinct addresses on {hosts}",
        f"{'host':<44}{'addresses':>14}{'requests/s':>12}{'at once':>9}{'hours':>10}",
    ]
    for host in web["hosts"][:SHOWN_HOSTS]:
        rate = f"{host['requests_per_second']:g}" if host["requests_per_second"] else "no limit"
        counts = f"{host['num_urls']:>14,}{rate:>12}{host['connections']:>9}{host['hours']:>10.2f}"
        lines.append(f"{host['host']:<44}{counts}")
    rest = web["hosts"][SHOWN_HOSTS:]
    if rest:
        lines.append(f"and {len(rest):,} more with {sum(host['num_urls'] for host in rest):,} addresses")
    return lines


def _local_lines(local: dict[str, int]) -> list[str]:
    if not local["num_pictures"]:
        return []
    size = _in_bytes(local["num_bytes"])
    return [f"{local['num_pictures']:,} pictures of {size} lie here already; no host is asked for them"]


def _size_lines(found: dict[str, Any]) -> list[str]:
    if not found["web"]["num_urls"]:
        return []
    size, heads = found["bytes"], found["heads"]
    lines = []
    if heads is not None:
        troubles = ", ".join(f"{num:,} {outcome}" for outcome, num in heads["outcomes"].items())
        lines.append(
            f"asked     {heads['num_asked']:,} addresses for their size, {heads['num_answered']:,} told it"
            + (f" (the others: {troubles})" if troubles else "")
        )
    how = "the mean of those" if found["assumed"]["picture_bytes"] is None else "assumed; --head N asks a sample"
    lines.append(f"download  {_in_bytes(size['download'])}, at {_in_bytes(size['mean_picture'])} a picture ({how})")
    return lines


def _time_lines(found: dict[str, Any]) -> list[str]:
    hours, assumed = found["hours"], found["assumed"]
    lines = []
    if found["web"]["hosts"]:
        slowest = found["web"]["hosts"][0]
        lines.append(
            f"time      slowest host {slowest['host']}: {hours['slowest_host']:.2f} h at its polite rate "
            f"(at most one request in {assumed['request_seconds']:g} s a connection, assumed)"
        )
    lines.append(
        f"{'' if lines else 'time':<10}decoding here: {hours['local_work']:.2f} h on {assumed['num_cores']} cores "
        f"(assumed {assumed['pictures_per_core_second']} pictures/s a core)"
    )
    lines.append(f"          in total {hours['total']:.2f} h: hosts are asked side by side, pictures decoded meanwhile")
    return lines


def _disk_lines(disk: dict[str, Any]) -> list[str]:
    pool, tables, free = (_in_bytes(disk[f"{name}_bytes"]) for name in ("pool", "tables", "free"))
    return [
        f"disk      {_in_bytes(disk['needed_bytes'])}: pool {pool}, as much for a release of it all, tables {tables}",
        f"          free on that disk: {free}" + (": not enough" if disk["needed_bytes"] > disk["free_bytes"] else ""),
    ]
