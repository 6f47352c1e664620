"""The look of a picture, and pairs of looks: both pictures as they are, or one mirrored. SQL over a scratch database.

A look is the pHash and the hash of the middle, as one number. Pictures of one look are copies, and so are those whose
hashes are near (manifests/contract/copies.py). A flat picture, whose hashes say nothing, has a look of its pixels.

One search goes over the pHashes of pictures and of mirror images together. So it finds three kinds of pairs: two
pictures, a picture and a mirror image, and two mirror images. The first two count, where the middles are near too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from manifests.contract.copies import FLAT_BITS, FLAT_PIXEL_STD, near_middles
from pipeline.judging.matching.cross import cross_pairs
from pipeline.judging.matching.search import Hashes, distinct_of

_TELLS = f"bit_count(phash::HUGEINT) > {FLAT_BITS} AND (pixel_std IS NULL OR pixel_std >= {FLAT_PIXEL_STD})"
# A product with an odd number, modulo 2**64. The chance that two of 13 M looks share one is 1 in 200,000. DuckDB takes
# 10 ns for one, a twentieth of what a digest takes.
_OF_HASHES = f"((phash::UHUGEINT * {0x9E3779B97F4A7C15} + middle_hash) & {2**64 - 1}::UHUGEINT)::UBIGINT"
# `md5_number_upper` gives the same for four times the CPU (DuckDB 2).
_OF_PIXELS = f"(md5_number(pixels_sha256) & {2**64 - 1}::UHUGEINT)::UBIGINT"
_SHOWN = f"""
    CREATE VIEW shown AS SELECT *, {_TELLS} AS tells, CASE WHEN tells THEN {_OF_HASHES} ELSE {_OF_PIXELS} END AS look
    FROM {{facts}} WHERE outcome = 'ok'
"""


def view_shown(sql: Any, facts: str = "facts") -> None:
    """Make the view `shown`: facts of each picture with its `look`, and whether its hashes tell something.

    Reads facts by their name.
    """
    sql.execute(_SHOWN.format(facts=facts))


def distinct_hashes(sql: Any) -> tuple[Hashes, Hashes, int]:
    """Return the different pHashes of pictures and of mirror images that tell something.

    Those that pictures of several looks
    share; and how many are pHashes of pictures.

    Reads `shown`. Sorted here: DuckDB's UNION takes three times the CPU seconds.
    """
    columns = sql.sql("SELECT phash, phash_mirrored, look FROM shown WHERE tells").fetchnumpy()
    phash, look = columns.pop("phash"), columns.pop("look")
    order = np.argsort(phash)
    phash, look = phash[order], look[order]
    shared = distinct_of(phash[1:][(phash[1:] == phash[:-1]) & (look[1:] != look[:-1])])
    del order, look
    pictures, mirrored = distinct_of(phash), columns.pop("phash_mirrored")
    return distinct_of(pictures, mirrored[np.bitwise_count(mirrored) > FLAT_BITS]), shared, len(pictures)


# Few hashes are near another one, and only these are joined: `touched`.
_PAIRS = f"""
    CREATE TABLE touched AS SELECT hash_a AS hash FROM near UNION SELECT hash_b FROM near
        UNION SELECT phash_mirrored FROM shown SEMI JOIN (SELECT phash AS other FROM shown WHERE tells)
        ON phash_mirrored = other WHERE tells AND bit_count(phash_mirrored::HUGEINT) > {FLAT_BITS};
    CREATE TABLE pictures AS SELECT DISTINCT look, phash, middle_hash FROM shown SEMI JOIN touched ON phash = hash
        WHERE tells;
    CREATE TABLE turned AS SELECT DISTINCT look, phash, phash_mirrored AS hash, middle_mirrored FROM shown
        SEMI JOIN touched ON phash_mirrored = hash WHERE tells AND bit_count(phash_mirrored::HUGEINT) > {FLAT_BITS};
    CREATE TABLE direct AS SELECT least(a.look, b.look) AS look_a, greatest(a.look, b.look) AS look_b,
        if(a.look < b.look, a.phash, b.phash) AS phash_a, if(a.look < b.look, b.phash, a.phash) AS phash_b, distance
        FROM near JOIN pictures a ON a.phash = hash_a JOIN pictures b ON b.phash = hash_b
        WHERE if(hash_a = hash_b, a.look < b.look, true) AND {near_middles("a.middle_hash", "b.middle_hash")};
    CREATE TABLE mirrored AS
        SELECT least(p.look, t.look) AS look_a, greatest(p.look, t.look) AS look_b,
            any_value(if(p.look < t.look, p.phash, t.phash)) AS phash_a,
            any_value(if(p.look < t.look, t.phash, p.phash)) AS phash_b, min(distance) AS distance
        FROM (SELECT hash_a AS one, hash_b AS hash, distance FROM near
            UNION ALL SELECT hash_b, hash_a, distance FROM near UNION ALL SELECT DISTINCT hash, hash, 0 FROM turned)
        JOIN turned t USING (hash) JOIN pictures p ON p.phash = one
        WHERE p.look <> t.look AND {near_middles("p.middle_hash", "t.middle_mirrored")} GROUP BY 1, 2;
    CREATE VIEW pairs AS SELECT *, false AS mirrored FROM direct
        UNION ALL SELECT *, true FROM mirrored ANTI JOIN direct USING (look_a, look_b)
"""


def make_pairs(sql: Any) -> None:
    """Make the view `pairs` (tables.PAIRS), not sorted.

    Reads `shown`, and `near`: pairs of pHashes within the radius (hash_a, hash_b, distance), each shared one beside
    itself. A pair that is near as it is does not count as mirrored.
    """
    sql.execute(_PAIRS)


_NEAR_LOOKS = f"""
    CREATE OR REPLACE TABLE near_looks AS SELECT look, a.*, distance
    FROM (SELECT DISTINCT look, phash, middle_hash FROM shown SEMI JOIN found USING (phash) WHERE tells)
    JOIN found USING (phash) JOIN asked a USING (hash)
    WHERE middle IS NULL OR {near_middles("middle_hash", "middle")}
"""


def find_near_looks(sql: Any, radius: int) -> None:
    """Make the table `near_looks`: each look of `shown` that is near one of `asked`, with that row.

    The distance is that of the pHashes.
    `asked` has `hash`, a pHash that tells something, and `middle`; where that is null the pHash alone decides.
    """
    hashes = sql.sql("SELECT DISTINCT phash FROM shown WHERE tells").fetchnumpy()["phash"]
    near, asked = cross_pairs(hashes, sql.sql("SELECT hash FROM asked").fetchnumpy()["hash"], radius)
    sql.register("found", pa.table({"phash": near, "hash": asked, "distance": np.bitwise_count(near ^ asked)}))
    sql.execute(_NEAR_LOOKS)
    sql.unregister("found")
