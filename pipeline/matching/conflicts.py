"""Copies that contradict each other: in what licence they state, or in what they are said to show. SQL over tables.

Nobody can tell which of two statements about one picture is true. Rows of one address, or of the same bytes or pixels,
may state an allowed licence and one that is not allowed: then none of them is used (`find_contradicted`). Of near
copies, and of copies with other labels, one still stays, by the order of all duplicates. What contradicts it is listed
(`find_conflicts`).
A row that states nothing contradicts nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from manifests import tables
from manifests.masking import MASK

CONTRADICTED = tables.VERDICTS.append(pa.field("other_sample_id", pa.string()))
CONFLICTS = pa.schema([("sample_id", pa.string()), *tables.CONFLICT])
MOST_OF_ONE = 4  # conflicts of one image that are listed, of licences and of labels


# An address with a masked secret may stand for several pictures.
_SHOWN_BY = f"""
    CREATE VIEW shown_by AS
    SELECT sample_id, 1 AS place, 'same address' AS how, url AS key FROM candidates
        WHERE url IS NOT NULL AND NOT contains(url, '{MASK}')
    UNION ALL SELECT sample_id, 2, 'same bytes', image_id FROM measured_facts
        WHERE image_id IS NOT NULL
    UNION ALL SELECT sample_id, 3, 'same pixels', pixels_sha256 FROM measured_facts
        WHERE pixels_sha256 IS NOT NULL
"""


# The rows of one picture are found over the few that state a licence which is not allowed.
_CONTRADICTED = """
    CREATE TABLE refused AS SELECT how, key, min(sample_id) AS other, arg_min(licence_id, sample_id) AS licence_id
        FROM shown_by JOIN stated USING (sample_id) WHERE NOT keep GROUP BY how, key;
    CREATE TABLE contradicted AS SELECT DISTINCT ON (sample_id) sample_id, false AS keep,
        'conflicting_licence' AS reason, a.licence_id || ' here, ' || r.licence_id || ' there' AS value,
        'one licence for the ' || how AS threshold, other AS other_sample_id
        FROM shown_by s JOIN refused r USING (how, key) JOIN stated a USING (sample_id) WHERE a.keep
        ORDER BY sample_id, place
"""


def find_contradicted(sql: Any) -> None:
    """Make the table `contradicted` (CONTRADICTED): rows of an allowed licence, while a row of the same picture states
    one that is not allowed.

    Rows that failed or that a rule dropped state their licence too. Reads `captions`, `licence_kinds`, `candidates` and
    `measured_facts`.
    """
    if not sql.execute("SELECT 1 FROM licence_kinds WHERE family IS NOT NULL AND NOT keep").fetchall():
        sql.register("contradicted", CONTRADICTED.empty_table())
        return
    sql.execute(_SHOWN_BY)
    sql.execute(
        "CREATE VIEW stated AS SELECT sample_id, licence_id, keep FROM captions JOIN licence_kinds USING (licence_id) "
        "WHERE family IS NOT NULL"
    )
    sql.execute(_CONTRADICTED)


# `s` stays. Its licence is contradicted by one of another family, its label by a name that is none of its ranks, or by
# another class.
_OTHER_LABEL = """
    (s.taxon <> r.taxon AND NOT coalesce(list_contains(r.lineage, s.taxon) OR list_contains(s.lineage, r.taxon), false))
    OR s.class <> r.class OR ((s.taxon IS NULL OR r.taxon IS NULL) AND s.folder <> r.folder)
"""


_SAME = "s.image_id = r.image_id AS same_bytes, s.pixels_sha256 = r.pixels_sha256 AS same_pixels"
_BESIDE = "FROM beside JOIN rivals s ON s.sample_id = stays JOIN rivals r ON r.sample_id = other"
_CONFLICTS = f"""
    CREATE TABLE beside AS SELECT DISTINCT s.sample_id AS stays, r.sample_id AS other
        FROM competing s ANTI JOIN duplicates d ON d.sample_id = s.sample_id
        JOIN near USING (phash) JOIN rivals r ON r.phash = near.other WHERE NOT s.taken AND r.sample_id <> s.sample_id;
    CREATE TABLE conflicts AS SELECT *,
        CASE WHEN same_bytes THEN 'same bytes' WHEN same_pixels THEN 'same pixels' ELSE 'near copy' END AS matched
    FROM (
        SELECT s.sample_id, r.sample_id AS other_sample_id, 'licence' AS about, s.licence_id AS value,
            r.licence_id AS other_value, {_SAME} {_BESIDE}
        WHERE s.licence_family <> r.licence_family AND (r.competes OR r.is_refused)
        UNION ALL SELECT s.sample_id, r.sample_id, 'label', coalesce(s.taxon, s.folder), coalesce(r.taxon, r.folder),
            {_SAME} {_BESIDE} WHERE r.competes AND ({_OTHER_LABEL})
    ) QUALIFY row_number() OVER (PARTITION BY sample_id, about
        ORDER BY same_bytes DESC, same_pixels DESC, other_sample_id) <= {MOST_OF_ONE}
"""


def find_conflicts(sql: Any) -> None:
    """Make the table `conflicts` (CONFLICTS): rows that stay, with what their copies say otherwise.

    Reads `rivals`, `near`, `competing` and `duplicates` (companies.py).
    """
    sql.execute(_CONFLICTS)
