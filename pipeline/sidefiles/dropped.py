"""What a build dropped, and what came of each taxon: the sections of a report that only a work folder can fill.

Reads the catalogue's views and the pool. The same work folder gives the same sections. Writes nothing. A sealed release
holds none of these pictures: its rules refused them.
"""

from __future__ import annotations

import json
from typing import Any

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.tables import TAXON_RANKS
from pipeline.fetching.tally import Given
from pipeline.sidefiles.near_thresholds import near_thresholds
from pipeline.sidefiles.thumbnails import read_thumbnail
from pipeline.store.pool import PoolReader

EXAMPLES = 7
MOST_REASONS = 40
MOST_ROWS = 15

_ENDINGS = """
    CREATE TEMP TABLE endings AS
    SELECT sample_id, d.stage, d.reason, d.value, concat_ws(', because ', d.threshold, d.kept_because) AS threshold
    FROM decisions d WHERE keep IS FALSE
    UNION ALL
    SELECT sample_id, 'mix', 'left_out_by_ratio', NULL, NULL FROM decisions
    WHERE keep AND EXISTS (FROM draws) AND sample_id NOT IN (SELECT sample_id FROM draws)
"""
_REASONS = f"""
    SELECT stage, reason, count(*) AS num, arg_min(sample_id, md5('shown ' || sample_id), {EXAMPLES}) AS ids
    FROM endings GROUP BY ALL ORDER BY num DESC, stage, reason LIMIT {MOST_REASONS}
"""
_EXAMPLES = """
    SELECT e.sample_id, e.value, e.threshold, c.domain, c.source, coalesce(c.url, c.locator, '') AS place,
        coalesce(nullif(t.text, ''), c.caption, '') AS text
    FROM endings e JOIN candidates c USING (sample_id) LEFT JOIN captions t USING (sample_id)
    WHERE e.sample_id IN (SELECT unnest($1::VARCHAR[])) ORDER BY e.sample_id
"""
_REJECTS = f"""
    SELECT 'ingest' AS stage, reason, count(*) AS num,
        arg_min({{'place': coalesce(url, record_key, ''), 'value': value, 'source': source}}, row_number, {EXAMPLES})
            AS rows
    FROM rejects GROUP BY ALL ORDER BY num DESC, reason LIMIT {MOST_REASONS}
"""
_HOSTS = f"""
    SELECT host, count(*) AS asked, count(*) FILTER (outcome = 'ok') AS came FROM facts WHERE host IS NOT NULL
    GROUP BY ALL ORDER BY asked DESC, host LIMIT {MOST_ROWS}
"""
_LANGUAGES = f"""
    SELECT coalesce(language, '(not told)') AS language, count(*) AS measured, count(*) FILTER (keep) AS kept
    FROM captions LEFT JOIN decisions USING (sample_id) GROUP BY ALL ORDER BY measured DESC, language LIMIT {MOST_ROWS}
"""


def collect_dropped(work_dir: str) -> dict[str, Any] | None:
    """A gallery for each reason, and tables of before and after; None when nothing was decided yet.

    Raises: ConfigError when there is no catalogue; RunError while a build holds it.
    """
    with open_reader(work_dir) as sql, PoolReader(work_dir) as pool:
        if not sql.execute("SELECT 1 FROM decisions LIMIT 1").fetchall():
            return None
        sql.execute(_ENDINGS)
        reasons = rows_of(sql, _REASONS)
        ids = [sample_id for row in reasons for sample_id in row["ids"]]
        examples = {row["sample_id"]: row for row in rows_of(sql, _EXAMPLES, [ids])}
        for row in reasons:
            row["examples"] = [
                {**examples[sample_id], "jpg": read_thumbnail(sql, pool, sample_id)} for sample_id in row.pop("ids")
            ]
        rejects = [
            {
                **row,
                "examples": [{"sample_id": None, "text": "", "jpg": None, "domain": "", **one} for one in row["rows"]],
            }
            for row in rows_of(sql, _REJECTS)
        ]
        return {
            "reasons": [*rejects, *reasons],
            "scores": _scores(sql, pool),
            "taxa": _taxa(sql),
            "hosts": rows_of(sql, _HOSTS),
            "given": _given(sql),
            "languages": rows_of(sql, _LANGUAGES),
        }


def _scores(sql: Any, pool: PoolReader) -> list[dict[str, Any]]:
    """The pictures nearest to each threshold, as the pool has them."""
    entries = near_thresholds(sql)
    for entry in entries:
        for number, (name, rows) in enumerate(entry["sides"]):
            entry["sides"][number] = (
                name,
                [(score, sample_id, read_thumbnail(sql, pool, sample_id)) for sample_id, score in rows],
            )
    return entries


def _given(sql: Any) -> list[dict[str, Any]]:
    """The yield of each host in all sessions that downloaded into this folder, the most answers first."""
    sessions: dict[tuple[str, str], Given] = {}
    for (notes,) in sql.execute("SELECT notes FROM parts WHERE stage = 'fetch' AND step = 'download'").fetchall():
        for host, figures in json.loads(notes).get("hosts", {}).items():
            longest = sessions.setdefault((host, figures["session"]), figures)
            if figures["answers"] + figures["refusals"] > longest["answers"] + longest["refusals"]:
                sessions[host, figures["session"]] = figures
    rows: dict[str, dict[str, Any]] = {}
    for (host, _), figures in sorted(sessions.items()):
        pace = figures["adaptive"] or {"fastest": 0.0, "slow_downs": 0}
        row = rows.setdefault(host, {"host": host, "answers": 0, "refusals": 0, "paused": 0.0, "per_second": 0.0,
                                     "fastest": 0.0, "slow_downs": 0, "adaptive": False})  # fmt: skip
        row["answers"] += figures["answers"]
        row["refusals"] += figures["refusals"]
        row["paused"] += figures["paused_seconds"]
        row["slow_downs"] += pace["slow_downs"]
        row["per_second"] = max(row["per_second"], figures["per_second"])
        row["fastest"] = max(row["fastest"], pace["fastest"])
        row["adaptive"] = row["adaptive"] or figures["adaptive"] is not None
    return sorted(rows.values(), key=lambda row: (-row["answers"], row["host"]))[:MOST_ROWS]


def _taxa(sql: Any) -> dict[str, Any] | None:
    """The most frequent names of the highest rank with several: their candidates, downloaded, kept and drawn rows."""
    counted = ", ".join(f"approx_count_distinct(taxon_{rank})" for rank in TAXON_RANKS)
    num_names = dict(zip(TAXON_RANKS, sql.execute(f"SELECT {counted} FROM candidates").fetchall()[0], strict=True))
    rank = next((rank for rank in TAXON_RANKS if num_names[rank] > 1), None)
    if rank is None:
        return None
    rows = rows_of(
        sql,
        f"SELECT taxon_{rank} AS name, count(*) AS candidates, count(*) FILTER (outcome = 'ok') AS downloaded, "
        "count(*) FILTER (keep) AS kept, count(w.sample_id) AS drawn FROM candidates c "
        "LEFT JOIN facts f USING (sample_id) LEFT JOIN decisions d USING (sample_id) "
        "LEFT JOIN (SELECT DISTINCT sample_id FROM draws) w USING (sample_id) "
        f"WHERE taxon_{rank} IS NOT NULL GROUP BY ALL ORDER BY candidates DESC, name LIMIT {MOST_ROWS}",
    )
    return {"rank": rank, "rows": rows}
