"""Pictures whose scores lie nearest to the threshold of a rule, on both sides of it, for people to judge.

Reads the catalogue's views. A scorer without a fixed threshold shows both ends of its scores. The same work folder
gives the same pictures. Writes nothing.
"""

from __future__ import annotations

from typing import Any

from manifests.contract.reader import literals, sealed_version

EXAMPLES = 8  # on each side


def near_thresholds(sql: Any) -> list[dict[str, Any]]:
    """One entry a rule, and one a scorer that no rule judges: `title` and `sides` (title, [(id, score)])."""
    version = sealed_version(sql, "score")
    recorded = version["identity"].get("rules") or () if version else ()
    rules = [{name: value for name, value in rule.items() if value is not None} for rule in recorded]
    entries = []
    for (scorer,) in sql.execute("SELECT DISTINCT scorer FROM scores ORDER BY 1").fetchall():
        of_scorer = [rule for rule in rules if rule.get("scorer", "clip") == scorer]
        entries += [_entry(sql, scorer, rule) for rule in of_scorer or [{}]]
    return entries


def _entry(sql: Any, scorer: str, rule: dict[str, Any]) -> dict[str, Any]:
    limits = [f"{name} {rule[name]:g}" for name in ("min_score", "max_score", "min_quantile") if name in rule]
    domains = rule.get("domains")
    words = [
        rule.get("action", "drop") if rule else "no rule",
        *limits,
        *([f"in {', '.join(domains)}"] if domains else []),
    ]
    rows = f"SELECT sample_id, score FROM scores JOIN candidates USING (sample_id) WHERE scorer = {literals([scorer])}"
    rows += f" AND domain IN ({literals(domains)})" if domains else ""
    if "min_score" in rule or "max_score" in rule:  # the threshold itself passes
        below, at = ("<", rule["min_score"]) if "min_score" in rule else ("<=", rule["max_score"])
        sides = {
            "just below": f"score {below} {at} ORDER BY score DESC",
            "just above": f"NOT score {below} {at} ORDER BY score",
        }
    else:
        sides = {"lowest": "true ORDER BY score", "highest": "true ORDER BY score DESC"}
    queries = {side: f"{rows} AND {which}, sample_id LIMIT {EXAMPLES}" for side, which in sides.items()}
    pictures = [(side, sql.execute(query).fetchall()) for side, query in queries.items()]
    return {"title": f"{scorer}: {', '.join(words)}", "sides": pictures}
