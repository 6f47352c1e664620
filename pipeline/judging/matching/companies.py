"""Companies: rows that pairs connect, and which of their duplicates stays. SQL over the tables of a scratch database.

Hashes are cut into companies so that no pair leads from one company to another. Each company then decides alone which
of its rows stay, and decides as all rows together would. A hash that no pair names and no other row shares is in no
company: its row stays. 9 of 10 rows are like that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.judging.matching.groups import choose_kept, choose_of_groups

MORE_DETAIL = 1.02  # a larger copy was blown up when a smaller picture has this many times its detail
SAME_SIZE = 1.02  # pictures whose pixels differ by less were stored at one size, but for rounding
# What each word of PREFER (pipeline/config.py) compares: columns, the larger value first, and what is said of the row
# that has it.
# Ties go to the next column, then to the next word, and at last to the sample id. No column depends on our own encoder:
# a picture that we encoded anew has more bytes than one that is stored as it came, and looks worse.
PREFERENCES = {
    "licence": {"known_licence": "its licence is stated"},
    "priority": {"priority": "its source has a higher priority"},
    "taxon": {"names_a_taxon": "it names a taxon"},  # such a picture belongs to the expert's domain, whatever its size
    "pixels": {
        "num_pixels": "it has more pixels",
        "not_blown_up": "it was not blown up",
        "in_colour": "it is in colour",
        "is_lossy": "the other one is a lossless copy",
        "as_downloaded": "it is stored as it was downloaded",
        "has_camera": "its EXIF names the camera",
        "num_bytes": "it has more bytes as downloaded",
    },
    "caption": {"num_words": "its caption has more words"},
}
BY_ID = "it has the lower sample id"
COMPANIES = pa.schema([("look", pa.uint64()), ("company", pa.int32())])
RIVALS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("company", pa.int32()),
        ("look", pa.uint64()),
        ("image_id", pa.string()),
        ("pixels_sha256", pa.string()),
        ("competes", pa.bool_()),  # no rule dropped it
        ("domain", pa.string()),
        ("licence_id", pa.string()),
        ("known_licence", pa.bool_()),
        ("licence_family", pa.string()),
        ("taxon", pa.string()),
        ("lineage", pa.list_(pa.string())),  # names of its ranks
        ("class", pa.string()),
        ("folder", pa.string()),  # the name of its folder, where folders are classes
        ("num_words", pa.int64()),
        ("priority", pa.int64()),
        ("num_pixels", pa.int64()),  # as downloaded
        ("num_stored_pixels", pa.int64()),
        ("num_stored_bytes", pa.int64()),
        ("num_bytes", pa.int64()),  # as downloaded
        ("in_colour", pa.bool_()),
        ("is_lossy", pa.bool_()),
        ("as_downloaded", pa.bool_()),  # the coded pixels are stored as they came
        ("has_camera", pa.bool_()),
        ("detail_px", pa.int64()),  # null where it was not measured
        ("text", pa.string()),  # text and is_caption only where captions of duplicates are kept
        ("is_caption", pa.bool_()),
    ]
)
"""Rows that one company decides over: those that compete, or say whether another was blown up."""
DUPLICATES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("other_sample_id", pa.string()),  # the row that stays in its place
        ("distance", pa.uint8()),
        ("reason", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("kept_because", pa.string()),  # what the other row is better by
        ("kept_in", pa.string()),  # the domain of the other row, where it is another one
    ]
)


# ---- which company


def find_companies(sql: Any, num: int) -> None:
    """Make `companies` (COMPANIES): each hash that is in a company, with the number of that company, below `num`.

    The lowest hash that chains of pairs lead to says which company it is. Reads `shown` (look, a row a picture) and
    `edges` (look_a, look_b).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sql.execute(
        "CREATE TABLE in_company AS SELECT look FROM shown GROUP BY look HAVING count(*) > 1 "
        "UNION SELECT look_a FROM edges UNION SELECT look_b FROM edges"
    )
    edges = sql.sql("SELECT look_a, look_b FROM edges WHERE look_a <> look_b").fetchnumpy()
    looks, ends = np.unique(np.concatenate([edges["look_a"], edges["look_b"]]), return_inverse=True)
    one, other = ends.reshape(2, -1)
    graph = coo_array((np.ones(len(one), np.bool_), (one, other)), (len(looks), len(looks)))
    num_groups, group = connected_components(graph, directed=False)
    lowest = np.empty(num_groups, np.uint64)
    lowest[group[::-1]] = looks[::-1]  # of several writes the last stays
    sql.register("connected", pa.table({"look": looks, "label": lowest[group]}))
    sql.execute(
        f"CREATE VIEW companies AS SELECT look, (coalesce(label, look) % {num})::INTEGER AS company FROM in_company "
        "LEFT JOIN connected USING (look)"
    )


# ---- who stays

# A picture is blown up when a near copy of fewer pixels holds more of the picture. It counts as no larger than that
# copy. Where the copy is smaller as stored too, the detail of both was measured. Where both were made smaller to one
# size, our encoder tells: of two pictures of one size it makes more bytes for the one that holds more. Of 270 copies of
# photos of 200 px, blown up 1.25 to 2 times and stored at 128 px, the original had more bytes than 258, and more than
# each of 60 copies that were reduced to 0.6 and 0.8.
_BLOWN_UP = f"""
    CREATE TABLE pictures AS SELECT DISTINCT look, num_pixels, num_stored_pixels, detail_px,
        CASE WHEN NOT as_downloaded THEN num_stored_bytes END AS num_bytes_anew, pixels_sha256 FROM rivals;
    CREATE VIEW near AS SELECT look_a AS look, look_b AS other FROM pairs
        UNION ALL SELECT look_b, look_a FROM pairs UNION ALL SELECT DISTINCT look, look FROM rivals;
    CREATE TABLE sizes AS SELECT look, num_pixels, num_stored_pixels, max(detail_px) AS detail_px,
        max(num_bytes_anew) AS num_bytes_anew FROM pictures GROUP BY ALL;
    CREATE TABLE blown_up AS SELECT p.pixels_sha256, p.num_pixels, min(s.num_pixels) AS num_true_pixels
        FROM pictures p JOIN near USING (look) JOIN sizes s ON s.look = near.other AND s.num_pixels < p.num_pixels
        AND CASE WHEN s.num_stored_pixels * {SAME_SIZE} < p.num_stored_pixels
            THEN s.detail_px > {MORE_DETAIL} * p.detail_px ELSE s.num_bytes_anew > p.num_bytes_anew END GROUP BY ALL
"""
_COMPETING = """
    CREATE TABLE competing AS SELECT r.* REPLACE (coalesce(b.num_true_pixels, r.num_pixels) AS num_pixels),
        b.num_true_pixels IS NULL AS not_blown_up, r.taxon IS NOT NULL AS names_a_taxon
    FROM rivals r LEFT JOIN blown_up b USING (pixels_sha256, num_pixels) WHERE competes
"""
# equal bytes and equal pixels have equal looks
_DUPLICATES = """
    CREATE TABLE duplicates AS SELECT d.sample_id, other_sample_id, d.distance,
        CASE WHEN a.image_id = b.image_id OR a.pixels_sha256 = b.pixels_sha256
            THEN 'exact_duplicate' ELSE 'near_duplicate' END AS reason,
        CASE WHEN a.image_id = b.image_id THEN 'same bytes' WHEN a.pixels_sha256 = b.pixels_sha256
            THEN 'same pixels' ELSE if(p.mirrored, 'mirrored, ', '') || 'pHash distance ' || d.distance END AS value,
        'of ' || other_sample_id AS threshold,
        {better} AS kept_because, nullif(b.domain, a.domain) AS kept_in
    FROM dropped_rows d JOIN competing a ON a.sample_id = d.sample_id JOIN competing b ON b.sample_id = other_sample_id
    LEFT JOIN pairs p ON look_a = least(a.look, b.look) AND look_b = greatest(a.look, b.look)
"""


def view_competing(sql: Any) -> None:
    """Make the table `competing`: rows of `rivals` that no rule dropped; a blown-up one counts as its original.

    Reads `rivals` (RIVALS) and `pairs` (tables.PAIRS), both of one company or of several. Makes the view `near`, too:
    looks that are copies, each beside itself.
    """
    sql.execute(_BLOWN_UP)
    sql.execute(_COMPETING)


def judge_duplicates(sql: Any, prefer: Sequence[str]) -> None:
    """Make the table `duplicates` (DUPLICATES): rows of `competing` that another one replaces. Reads `pairs`, too."""
    rows = sql.sql(
        f"SELECT sample_id, look, row_number() OVER (ORDER BY {_order(prefer)}, sample_id) AS place "
        "FROM competing ORDER BY sample_id"
    ).to_arrow_table()
    pairs = sql.sql("SELECT look_a, look_b, distance FROM pairs").to_arrow_table()
    look = rows["look"].to_numpy().astype(np.uint64)
    representative, distance = choose_representatives(look, rows["place"].to_numpy().astype(np.int64), pairs)
    dropped = np.flatnonzero(representative != np.arange(len(representative)))
    ids = rows["sample_id"].combine_chunks()
    duplicates = {
        "sample_id": ids.take(pa.array(dropped)),
        "other_sample_id": ids.take(pa.array(representative[dropped])),
        "distance": pa.array(distance[dropped], pa.uint8()),
    }
    sql.register("dropped_rows", pa.table(duplicates))
    sql.execute(_DUPLICATES.format(better=_better(prefer)))


def _order(prefer: Sequence[str]) -> str:
    """Return SQL for the order of `competing`, the best first, but for ties."""
    return ", ".join(f"{column} DESC NULLS LAST" for word in prefer for column in PREFERENCES[word])


def _better(prefer: Sequence[str]) -> str:
    """Return SQL for why row `b` comes before row `a` in that order."""
    steps = (step for word in prefer for step in PREFERENCES[word].items())
    cases = " ".join(f"WHEN a.{column} IS DISTINCT FROM b.{column} THEN '{why}'" for column, why in steps)
    return f"CASE {cases} ELSE '{BY_ID}' END"


def choose_representatives(look: np.ndarray, priority: np.ndarray, pairs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """For every row, the row that is kept in its place (itself when kept), and the distance of their pHashes.

    `look` uint64 (N,), `priority` int64 (N,) a rank, lower stays; `pairs` holds look_a, look_b, distance of all
    different looks that are copies (pairs with a look that `look` lacks are left out).
    """
    order = np.argsort(look, kind="stable")
    hashes, starts = np.unique(look[order], return_index=True)
    left, right = (pairs[name].to_numpy() for name in ("look_a", "look_b"))
    at_left, at_right = np.searchsorted(hashes, left), np.searchsorted(hashes, right)
    there = (at_left < len(hashes)) & (at_right < len(hashes))
    there[there] = (hashes[at_left[there]] == left[there]) & (hashes[at_right[there]] == right[there])
    return choose_of_groups(
        len(look),
        np.append(starts, len(look)),
        order,
        at_left[there],
        at_right[there],
        pairs["distance"].to_numpy()[there],
        priority,
    )


def judge_semantic(sql: Any, prefer: Sequence[str]) -> None:
    """More `duplicates`: among the rows that the pHashes left, images that a model sees as the same.

    Reads `semantic_pairs`, all of them, and what `judge_duplicates` made.
    """
    rows = sql.sql(
        f"SELECT c.sample_id, c.pixels_sha256, row_number() OVER (ORDER BY {_order(prefer)}, c.sample_id) AS place "
        "FROM competing c "
        "ANTI JOIN duplicates d ON d.sample_id = c.sample_id SEMI JOIN (SELECT pixels_a AS pixels FROM semantic_pairs "
        "UNION SELECT pixels_b FROM semantic_pairs) p ON p.pixels = c.pixels_sha256 ORDER BY c.sample_id"
    ).to_arrow_table()
    sql.register("left_rows", rows.append_column("row", pa.array(np.arange(len(rows)))))
    pairs = sql.sql(
        "SELECT a.row AS i, b.row AS j, cosine FROM semantic_pairs JOIN left_rows a ON a.pixels_sha256 = pixels_a "
        "JOIN left_rows b ON b.pixels_sha256 = pixels_b ORDER BY 1, 2"
    ).to_arrow_table()
    ((least,),) = sql.execute("SELECT coalesce(min(cosine), 1) FROM semantic_pairs").fetchall()
    i, j, cosine = (pairs[name].to_numpy() for name in ("i", "j", "cosine"))
    # distances are whole numbers from 1 to 255, so the cosine is scaled between the least of all pairs and 1
    apart = (1 + np.round(254 * (1 - cosine) / max(1e-6, 1 - least))).clip(1, 255).astype(np.uint8)
    representative, _ = choose_kept(len(rows), i, j, apart, rows["place"].to_numpy().astype(np.int64))
    dropped = np.flatnonzero(representative != np.arange(len(rows)))
    chosen = {"i": np.minimum(dropped, representative[dropped]), "j": np.maximum(dropped, representative[dropped])}
    sql.register("chosen_pairs", pa.table({**chosen, "dropped": dropped, "other": representative[dropped]}))
    sql.register("all_pairs", pa.table({"i": np.minimum(i, j), "j": np.maximum(i, j), "cosine": cosine}))
    sql.execute(
        "INSERT INTO duplicates BY NAME SELECT a.sample_id, b.sample_id AS other_sample_id, NULL AS distance, "
        "'semantic_duplicate' AS reason, printf('cosine %.4f', p.cosine) AS value, 'of ' || b.sample_id AS threshold, "
        f"{_better(prefer)} AS kept_because, nullif(b.domain, a.domain) AS kept_in "
        "FROM chosen_pairs c JOIN all_pairs p ON p.i = c.i AND p.j = c.j JOIN left_rows l ON l.row = c.dropped "
        "JOIN left_rows r ON r.row = c.other JOIN competing a ON a.sample_id = l.sample_id "
        "JOIN competing b ON b.sample_id = r.sample_id"
    )


def captions_of_duplicates(most: int) -> str:
    """Return SQL for further captions of every kept row.

    Those of its dropped duplicates, the longest first, each once.
    """
    return (
        "SELECT *, (row_number() OVER (PARTITION BY sample_id ORDER BY num_words DESC, from_sample_id))::INTEGER "
        "AS place FROM (SELECT DISTINCT ON (d.other_sample_id, lower(t.text)) d.other_sample_id AS sample_id, t.text, "
        "t.num_words, d.sample_id AS from_sample_id FROM duplicates d JOIN competing t ON t.sample_id = d.sample_id "
        "JOIN competing k ON k.sample_id = d.other_sample_id "
        "WHERE t.is_caption AND lower(t.text) <> lower(k.text) "
        f"ORDER BY d.sample_id) QUALIFY place <= {most}"
    )
