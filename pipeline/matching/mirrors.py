"""Make pairs of pictures from near hashes: both as they are, or one mirrored. SQL over a scratch database.

One search looks at the hashes of pictures and of mirror images together. So it finds three kinds of pairs: two
pictures, a picture and a mirror image, and two mirror images. The first two count.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.matching.search import Hashes, distinct_of

# The pHash of a picture of nearly one colour tells nothing: many such pictures share one. The pHash of a few lines on
# one colour has hardly a set bit. Photos of groceries have 32 set bits of 64. The comment above `_LIKENESS` in
# select_contenders.py says what becomes of such pictures.
FLAT_BITS = 4  # set bits of a pHash
HASHES = """
    CREATE TABLE hashes AS SELECT phash, phash_mirrored FROM facts WHERE outcome = 'ok' AND phash_mirrored IS NOT NULL
        UNION ALL SELECT f.phash, m.phash_mirrored FROM facts f JOIN mirrors m USING (pixels_sha256)
        WHERE outcome = 'ok' AND f.phash_mirrored IS NULL
"""
"""The two hashes of each picture of the build; `mirrors` has those of pictures whose facts lack the second one."""
_TELLING = " AND ".join(f"bit_count({name}::HUGEINT) > {FLAT_BITS}" for name in ("phash", "phash_mirrored"))
# Few hashes are near another one, and only these are joined: `touched`.
_PAIRS = f"""
    CREATE TABLE touched AS SELECT hash_a AS hash FROM near UNION SELECT hash_b FROM near
        UNION SELECT phash_mirrored FROM hashes SEMI JOIN (SELECT phash AS other FROM hashes) ON phash_mirrored = other;
    CREATE TABLE pictures AS SELECT DISTINCT phash FROM hashes SEMI JOIN touched ON phash = hash;
    CREATE TABLE turned AS SELECT DISTINCT phash_mirrored AS hash, phash FROM hashes SEMI JOIN touched
        ON phash_mirrored = hash WHERE {_TELLING};
    CREATE TABLE direct AS SELECT hash_a AS phash_a, hash_b AS phash_b, distance FROM near
        WHERE hash_a IN (FROM pictures) AND hash_b IN (FROM pictures);
    CREATE TABLE mirrored AS
        SELECT least(one, other) AS phash_a, greatest(one, other) AS phash_b, min(distance) AS distance FROM (
        SELECT hash_a AS one, phash AS other, distance FROM near JOIN turned ON hash_b = hash
        UNION ALL SELECT hash_b, phash, distance FROM near JOIN turned ON hash_a = hash
        UNION ALL SELECT hash, phash, 0 FROM turned)
        WHERE one <> other AND one IN (FROM pictures) GROUP BY 1, 2;
    CREATE VIEW pairs AS SELECT *, false AS mirrored FROM direct
        UNION ALL SELECT *, true FROM mirrored ANTI JOIN direct USING (phash_a, phash_b)
"""


def distinct_hashes(sql: Any) -> tuple[Hashes, int]:
    """The different hashes of pictures and of mirror images that tell something; and how many are hashes of pictures.

    Reads `hashes`. Sorted here: DuckDB's UNION takes three times the CPU seconds.
    """
    columns = sql.sql("SELECT phash, phash_mirrored FROM hashes").fetchnumpy()
    pictures, mirrored = distinct_of(columns.pop("phash")), columns.pop("phash_mirrored")
    return distinct_of(pictures, mirrored[np.bitwise_count(mirrored) > FLAT_BITS]), len(pictures)


def make_pairs(sql: Any) -> None:
    """Make the view `pairs` (tables.PAIRS), not sorted.

    Reads `hashes`, and `near`: the pairs of those within the radius (hash_a, hash_b, distance). A pair that is near as
    it is does not count as mirrored.
    """
    sql.execute(_PAIRS)
