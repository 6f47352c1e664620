"""Copies that contradict each other, in their licence or in their label. SQL over tables.

Nobody can tell which of two statements about one picture is true. Where copies, or rows of one address, state an
allowed licence and a forbidden one, none of them is used (`find_contradicted`). Of copies with different labels one
stays, by the order of all duplicates; or none, if the settings say so (`drop_other_labels`). `find_conflicts` lists
what contradicts the one that stays. A row without a licence or label contradicts nothing.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from manifests.contract import tables
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
    UNION ALL SELECT sample_id, 4, 'near copy', look::VARCHAR FROM shown
"""


# Only few rows state a forbidden licence, so the search for rows of the same picture begins with them.
_CONTRADICTED = """
    CREATE TABLE refused_itself AS SELECT how, key, min(sample_id) AS other,
        arg_min(licence_id, sample_id) AS licence_id
        FROM shown_by JOIN stated USING (sample_id) WHERE NOT keep GROUP BY how, key;
    CREATE VIEW near_refused AS SELECT how, near_key AS key, other, licence_id FROM refused_itself JOIN (
        SELECT look_a::VARCHAR AS key, look_b::VARCHAR AS near_key FROM pairs
        UNION ALL SELECT look_b::VARCHAR, look_a::VARCHAR FROM pairs) USING (key) WHERE how = 'near copy';
    CREATE TABLE refused AS SELECT how, key, min(other) AS other, arg_min(licence_id, other) AS licence_id
        FROM (FROM refused_itself UNION ALL FROM near_refused) GROUP BY how, key;
    CREATE TABLE contradicted AS SELECT DISTINCT ON (sample_id) sample_id, false AS keep,
        'conflicting_licence' AS reason, a.licence_id || ' here, ' || r.licence_id || ' there' AS value,
        'one licence for the ' || how AS threshold, other AS other_sample_id
        FROM shown_by s JOIN refused r USING (how, key) JOIN stated a USING (sample_id) WHERE a.keep
        ORDER BY sample_id, place
"""


def find_contradicted(sql: Any) -> None:
    """Make the table `contradicted` (CONTRADICTED): allowed rows whose picture has a forbidden licence too.

    The forbidden licence may be that of another row of the same picture, or of a copy.
    Rows that failed, or that a rule dropped, count as statements too. Reads `captions`, `licence_kinds`, `candidates`,
    `measured_facts`, `shown` and `pairs`.
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


# Rows of one look with the same label are compared once.
_OTHER_LABELS = f"""
    CREATE TABLE labels AS SELECT look, taxon, lineage, class, folder, min(sample_id) AS sample_id FROM competing
        GROUP BY ALL;
    CREATE TABLE contradicted_labels AS SELECT s.look, s.taxon, s.lineage, s.class, s.folder,
        min(r.sample_id) AS other_sample_id, arg_min(coalesce(r.taxon, r.folder), r.sample_id) AS other_label
        FROM labels s JOIN near USING (look) JOIN labels r ON r.look = near.other WHERE {_OTHER_LABEL} GROUP BY ALL;
    CREATE TABLE conflicting_labels AS SELECT c.sample_id, other_sample_id, NULL::UTINYINT AS distance,
        'conflicting_label' AS reason, coalesce(c.taxon, c.folder) || ' here, ' || other_label || ' there' AS value,
        'one label for copies' AS threshold, NULL::VARCHAR AS kept_because, NULL::VARCHAR AS kept_in
        FROM competing c JOIN contradicted_labels l ON c.look = l.look AND c.taxon IS NOT DISTINCT FROM l.taxon
        AND c.lineage IS NOT DISTINCT FROM l.lineage AND c.class IS NOT DISTINCT FROM l.class
        AND c.folder IS NOT DISTINCT FROM l.folder;
    DELETE FROM competing WHERE sample_id IN (SELECT sample_id FROM conflicting_labels);
"""


def drop_other_labels(sql: Any) -> None:
    """Move the rows of `competing` that have a copy there with another label to `conflicting_labels` (DUPLICATES).

    Also reads `near` (companies.py).
    """
    sql.execute(_OTHER_LABELS)


_SAME = "s.image_id = r.image_id AS same_bytes, s.pixels_sha256 = r.pixels_sha256 AS same_pixels"
_BESIDE = "FROM beside JOIN rivals s ON s.sample_id = stays JOIN rivals r ON r.sample_id = other"
_CONFLICTS = f"""
    CREATE TABLE beside AS SELECT DISTINCT s.sample_id AS stays, r.sample_id AS other
        FROM competing s ANTI JOIN duplicates d ON d.sample_id = s.sample_id
        JOIN near USING (look) JOIN rivals r ON r.look = near.other WHERE r.sample_id <> s.sample_id;
    CREATE TABLE conflicts AS SELECT *,
        CASE WHEN same_bytes THEN 'same bytes' WHEN same_pixels THEN 'same pixels' ELSE 'near copy' END AS matched
    FROM (
        SELECT s.sample_id, r.sample_id AS other_sample_id, 'licence' AS about, s.licence_id AS value,
            r.licence_id AS other_value, {_SAME} {_BESIDE}
        WHERE s.licence_family <> r.licence_family AND r.competes
        UNION ALL SELECT s.sample_id, r.sample_id, 'label', coalesce(s.taxon, s.folder), coalesce(r.taxon, r.folder),
            {_SAME} {_BESIDE} WHERE r.competes AND ({_OTHER_LABEL})
    ) QUALIFY row_number() OVER (PARTITION BY sample_id, about
        ORDER BY same_bytes DESC, same_pixels DESC, other_sample_id) <= {MOST_OF_ONE}
"""


def find_conflicts(sql: Any) -> None:
    """Make the table `conflicts` (CONFLICTS): each row that stays, with copies that state another licence or label.

    Reads `rivals`, `near`, `competing` and `duplicates` (companies.py).
    """
    sql.execute(_CONFLICTS)
