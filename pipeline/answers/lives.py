"""The life of one image, from its source row to its shard or the reason it has none, as plain values.

Reads the catalogue's views. Finds the image by sample id, URL, record key, place in a source, or shard and key.
"""

from __future__ import annotations

import re
from typing import Any

from manifests.contract.reader import rows_of
from manifests.masking import hide_secrets
from manifests.samples.endings import stem_of_tar
from pipeline.fetching.urls import BadURL, parse_url

MIN_PREFIX = 6  # hex digits of an id that are enough to look it up

# Queries about one sample: those that give one row at most, then those that may give several.
_ONE_ROW = {
    "candidates": "SELECT * FROM candidates WHERE sample_id = $1",
    "facts": "SELECT * FROM facts WHERE sample_id = $1",
    "captions": "SELECT * FROM captions WHERE sample_id = $1",
    "decisions": "SELECT * FROM decisions WHERE sample_id = $1",
    "marks": "SELECT * FROM marks WHERE sample_id = $1",
    "name": "SELECT n.* FROM captions t JOIN candidates c USING (sample_id) JOIN names n ON n.name = t.taxon_given "
    "AND n.kingdom_given IS NOT DISTINCT FROM nullif(trim(c.taxon_kingdom), '') WHERE sample_id = $1",
    "mix": "SELECT m.* FROM mixes m JOIN current_stages USING (fingerprint) JOIN candidates c USING (domain) "
    "WHERE c.sample_id = $1",
}
_MORE_ROWS = {
    "extra_captions": "SELECT * FROM extra_captions WHERE sample_id = $1 ORDER BY place",
    "joined_texts": "SELECT * FROM joined_texts WHERE sample_id = $1 ORDER BY kind, entry, row_number",
    "fetched": "SELECT f.* FROM fetched f JOIN candidates c ON f.sample_id = c.sample_id "
    "AND coalesce(starts_with(f.url, c.locator || '#'), f.url = c.url) WHERE f.sample_id = $1 ORDER BY round",
    "scores": "SELECT * FROM scores WHERE sample_id = $1",
    "draws": "SELECT * FROM draws WHERE sample_id = $1 ORDER BY copy",
    "placements": "SELECT * FROM placements WHERE sample_id = $1 ORDER BY copy",
    "stands_for": "SELECT d.sample_id, d.reason, d.distance, coalesce(c.url, c.locator) AS url FROM decisions d "
    "JOIN candidates c USING (sample_id) WHERE other_sample_id = $1 ORDER BY distance, sample_id",
}
_KEPT_INSTEAD = "SELECT s.*, c.locator FROM samples s JOIN candidates c USING (sample_id) WHERE sample_id = $1"
_RELEASE = "SELECT name, path FROM releases JOIN current_stages USING (fingerprint) WHERE stage = 'pack'"
_BY_PREFIX = (
    "SELECT sample_id FROM facts WHERE starts_with(sample_id, $1) OR starts_with(image_id, $1) ORDER BY sample_id"
)
_BY_PATH = (  # the path of a picture on disk, absolute or as in the config, ends with its path in the source
    "SELECT sample_id FROM candidates WHERE locator IS NOT NULL "
    "AND ends_with('/' || $1, '/' || regexp_replace(locator, '@[0-9]+[+][0-9]+$', '')) ORDER BY sample_id"
)
_REJECTED = "SELECT * FROM rejects WHERE $1 IN (url, record_key, value) ORDER BY ALL"
_REJECTED_BY_PATH = (  # of a missing picture or a sample of a tar: the path ends with what the row names
    "SELECT * FROM rejects WHERE url IS NULL AND (ends_with('/' || $1, '/' || nullif(record_key, '')) "
    "OR ends_with('/' || $1, '/' || nullif(value, '')) OR ends_with(record_key, '/' || $2)) ORDER BY ALL"
)
_BY_END_OF_KEY = (  # a sample of a tar by its name there, with or without the end of the path of the tar
    "SELECT sample_id FROM candidates WHERE locator IS NOT NULL AND ends_with(record_key, '/' || $1) ORDER BY sample_id"
)


def find_lives(connection: Any, what: str) -> list[dict[str, Any]]:
    """Everything that the catalogue knows of the rows that `what` names, one dict for each candidate or rejected row.

    An address may be given with its secrets or without them. `what` may be pasted from anywhere: with quotes around it,
    as the first digits of an id, as the path of a picture.
    """
    what = hide_secrets(unquoted(what))
    lives = [_life(connection, sample_id) for sample_id in _find_ids(connection, what)]
    lives += [{"reject": row} for row in rows_of(connection, _REJECTED, [what])]
    path = what.replace("\\", "/")
    return lives or [{"reject": row} for row in rows_of(connection, _REJECTED_BY_PATH, [path, _sample_key(path)])]


def unquoted(what: str) -> str:
    """Return a pasted name without the characters around it: spaces, quotes, angle brackets, a comma of csv or json."""
    return what.strip(" \t\r\n\"'`<>,;")


def _find_ids(connection: Any, what: str) -> list[str]:
    lookups = [
        ("SELECT sample_id FROM candidates WHERE sample_id = $1", what),
        ("SELECT sample_id FROM candidates WHERE url = $1 OR record_key = $1 OR locator = $1 ORDER BY sample_id", what),
        ("SELECT sample_id FROM facts WHERE final_url = $1 ORDER BY sample_id", _as_stored(what)),
        ("SELECT sample_id FROM facts WHERE $1 IN (image_id, stored_sha256) ORDER BY sample_id", what.lower()),
    ]
    if re.fullmatch(rf"[0-9a-fA-F]{{{MIN_PREFIX},64}}", what):
        lookups.append((_BY_PREFIX, what.lower()))
    if "/" in what or "\\" in what:
        lookups.append((_BY_PATH, what.replace("\\", "/")))
    for sql, value in lookups:
        if rows := rows_of(connection, sql, [value]):
            return [row["sample_id"] for row in rows]
    shard, _, key = what.rstrip("/").rpartition("/")
    placed = rows_of(
        connection,
        "SELECT DISTINCT sample_id FROM placements WHERE key = $1 AND ($2 = '' OR shard = $2 OR shard = $2 || '.tar')",
        [key.partition(".")[0], shard.rpartition("/")[2]],
    )
    return [row["sample_id"] for row in placed or rows_of(connection, _BY_END_OF_KEY, [_sample_key(what)])]


def _sample_key(path: str) -> str:
    """TAR/KEY as a row of a tar has it, of TAR.tar.gz/KEY.jpg; of a file alone its name without the ending."""
    tar, slash, file = path.rpartition("/")
    return f"{stem_of_tar(tar)}{slash}{file.partition('.')[0]}"


def _as_stored(what: str) -> str:
    """Return a URL as the column final_url holds it, in normal spelling and without secrets.

    Any other text unchanged.
    """
    try:
        return parse_url(what).shown_url
    except BadURL:
        return what


def _life(connection: Any, sample_id: str) -> dict[str, Any]:
    life: dict[str, Any] = {name: _row(connection, sql, sample_id) for name, sql in _ONE_ROW.items()}
    life |= {name: rows_of(connection, sql, [sample_id]) for name, sql in _MORE_ROWS.items()}
    other = life["decisions"] and life["decisions"]["other_sample_id"]
    life["kept_instead"] = _row(connection, _KEPT_INSTEAD, other) if other else None
    life["release"] = _row(connection, _RELEASE)
    return life


def _row(connection: Any, sql: str, *values: str) -> dict[str, Any] | None:
    return next(iter(rows_of(connection, sql, values)), None)
