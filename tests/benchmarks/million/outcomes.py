"""How the rows of a finished build ended, beside how they had to end.

Three findings are counted apart: a planted copy or leak that was not found (recall by kind), a picture that was taken
for a copy though nobody planted it (`unplanned`), and any other row that ended otherwise (`wrong`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests.contract.reader import open_reader
from million.rows import DUPLICATES

_ENDS = """
    CREATE TABLE ends AS
    WITH ended AS (
        SELECT c.record_key AS key, coalesce(d.reason, 'keep') AS ended, o.record_key AS instead
        FROM candidates c JOIN decisions d USING (sample_id)
        LEFT JOIN candidates o ON o.sample_id = d.other_sample_id
        UNION ALL SELECT record_key, reason, NULL FROM rejects)
    SELECT r.*, e.ended, e.instead, p.key AS partner, q.ended AS partner_ended, q.instead AS partner_instead
    FROM read_parquet('{rows}') r LEFT JOIN ended e USING (key)
    LEFT JOIN read_parquet('{rows}') p ON r.role IN ('copy', 'original') AND p.number = r.other
    LEFT JOIN ended q ON q.key = p.key
"""
# of two that are one picture, one stays and the other one names it
_PAIR = """(
    (ended = 'keep' AND partner_ended IN {duplicates} AND partner_instead = key)
    OR (partner_ended = 'keep' AND ended IN {duplicates} AND instead = partner))"""
_VERDICTS = f"""
    CREATE TABLE judged AS SELECT *, CASE
        WHEN expected = ended OR (expected = 'one_of_two' AND {_PAIR}) THEN 'as predicted'
        WHEN expected IN ('keep', 'one_of_two') AND (
            (ended IN {{duplicates}} AND instead IS DISTINCT FROM partner)
            OR (partner_ended IN {{duplicates}} AND partner_instead IS DISTINCT FROM key)
            OR 'eval_leak' IN (ended, partner_ended)) THEN 'unplanned'
        WHEN role IN ('copy', 'original') AND ended = 'keep' AND partner_ended = 'keep' THEN 'not found'
        ELSE 'wrong' END AS verdict
    FROM ends
"""


def judge(folder: Path, work: Path) -> dict[str, Any]:
    """Counts by verdict, recall by kind, and the first rows that ended otherwise."""
    with open_reader(str(work)) as sql:
        sql.execute(_ENDS.format(rows=folder / "rows.parquet"))
        sql.execute(_VERDICTS.format(duplicates=DUPLICATES))
        verdicts = dict(sql.sql("SELECT verdict, count(*) FROM judged GROUP BY 1 ORDER BY 1").fetchall())
        recall = {
            f"{role} {change}": [found, num]
            for role, change, found, num in sql.sql(
                "SELECT role, change, count(*) FILTER (ended = 'eval_leak' OR (role = 'copy' AND verdict NOT IN "
                "('not found', 'wrong'))), count(*) FROM judged WHERE change <> '' GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        }
        kept = dict(
            sql.sql(
                "SELECT change, count(*) FILTER (ended = 'keep') FROM judged WHERE role = 'copy' GROUP BY 1"
            ).fetchall()
        )
        shown = "SELECT key, host, role, change, expected, ended, instead, partner_ended FROM judged WHERE verdict = "
        odd = {
            verdict: sql.sql(f"{shown}'{verdict}' ORDER BY number LIMIT 20").fetchall()
            for verdict in ("not found", "unplanned", "wrong")
            if verdict in verdicts
        }
        drawn = {
            f"{domain} {split}": num
            for domain, split, num in sql.sql(
                "SELECT domain, split, count(*) FROM draws GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        }
        ended = dict(sql.sql("SELECT ended, count(*) FROM judged GROUP BY 1 ORDER BY 2 DESC").fetchall())
        attempts = sql.sql("SELECT sum(attempts), max(attempts) FROM facts").fetchall()[0]
    is_in_ratio = abs(3 * drawn.get("plant train", 0) - 10 * drawn.get("general train", 0)) <= 13
    return {
        "verdicts": verdicts, "recall": recall, "copies_that_stayed": kept, "ended": ended, "drawn": drawn,
        "is_in_ratio": is_in_ratio, "attempts": list(attempts), "odd": odd,
    }  # fmt: skip


def complaints(judged: dict[str, Any]) -> list[str]:
    """What is a finding: rows that ended otherwise, copies that were not found."""
    lines = [
        f"{judged['verdicts'][verdict]} rows: {verdict}, such as {judged['odd'][verdict][:3]}"
        for verdict in ("wrong", "not found")
        if verdict in judged["verdicts"]
    ]
    lines += [f"{kind}: {found} of {num} found" for kind, (found, num) in judged["recall"].items() if found < num]
    return lines + ([] if judged["is_in_ratio"] else [f"the ratio is not 10 : 3: {judged['drawn']}"])


def still_there(folder: Path, release: Path) -> tuple[int, int]:
    """Of the pictures of the owner who asked, and of their copies: how many a release holds, and how many there are."""
    rows = pq.read_table(folder / "rows.parquet", columns=["key", "role", "other", "is_owned"])
    keys = rows["key"].to_pylist()
    owned = [number for number, is_owned in enumerate(rows["is_owned"].to_pylist()) if is_owned]
    others = [rows["other"][number].as_py() for number in owned if rows["role"][number].as_py() == "original"]
    gone = {keys[number] for number in [*owned, *others]}
    held = pq.read_table(release / "samples.parquet", columns=["record_key"])["record_key"].to_pylist()
    return len(gone.intersection(held)), len(gone)
