"""Taxa, languages and hosts before and after: the section of a report that only a work folder can fill.

Reads the catalogue's views. The same work folder gives the same section. Writes nothing. No dropped picture is shown: a
report may be mailed, and `plantmix browse` shows them.
"""

from __future__ import annotations

import json
from typing import Any

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.tables import TAXON_RANKS
from pipeline.fetching.tally import Given

MOST_ROWS = 15

_HOSTS = f"""
    SELECT host, count(*) AS asked, count(*) FILTER (outcome = 'ok') AS came FROM facts WHERE host IS NOT NULL
    GROUP BY ALL ORDER BY asked DESC, host LIMIT {MOST_ROWS}
"""
_LANGUAGES = f"""
    SELECT coalesce(language, '(not told)') AS language, count(*) AS measured, count(*) FILTER (keep) AS kept
    FROM captions LEFT JOIN decisions USING (sample_id) GROUP BY ALL ORDER BY measured DESC, language LIMIT {MOST_ROWS}
"""


def collect_dropped(work_dir: str) -> dict[str, Any] | None:
    """Return tables of before and after; None when nothing was decided yet.

    Raises: ConfigError when there is no catalogue; what `open_reader` raises.
    """
    with open_reader(work_dir) as sql:
        if not sql.execute("SELECT 1 FROM decisions LIMIT 1").fetchall():
            return None
        return {
            "taxa": _taxa(sql),
            "hosts": rows_of(sql, _HOSTS),
            "given": _given(sql),
            "languages": rows_of(sql, _LANGUAGES),
        }


def _given(sql: Any) -> list[dict[str, Any]]:
    """Return the yield of each host in all sessions that downloaded into this folder, the most answers first."""
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
    """Return the most frequent names of the highest rank with several.

    Their candidates, downloaded, kept and drawn rows.
    """
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
