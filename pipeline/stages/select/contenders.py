"""First steps of select: which rows contend, and which of those a duplicate replaces.

Rules judge each row for itself. Rows that show an image of an evaluation set are dropped first, with all rows of their
groups. Then takedowns and licences decide.

`relate` finds what a row has to do with rows of other buckets, `contend` picks the rows of a bucket that are in company
and passed every rule, and `judge_duplicates` decides which of them stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.contract.copies import FLAT_PIXEL_STD
from manifests.contract.takedowns import Entry, Picture
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import Execution, PartResult
from pipeline.judging.matching import companies
from pipeline.judging.matching.conflicts import (
    drop_other_labels,
    find_conflicts,
    find_contradicted,
)
from pipeline.judging.matching.looks import view_shown
from pipeline.judging.matching.taken import judge_taken
from pipeline.judging.vocabulary.licences import UNKNOWN, LicenceSettings, family_of, judge_licences
from pipeline.store.files import Files

MOST_UNMET = 10  # entries of the takedown list that name nothing, by their words

LEAK_GROUPS = pa.schema(
    [
        ("source", pa.string()),
        ("group_id", pa.string()),
        ("sample_id", pa.string()),  # the leak
        ("evaluation_set", pa.string()),
        ("evaluation_member", pa.string()),
    ]
)
"""Groups of a source that hold a leak: one row a group."""


# ---- rules

OF_ROWS = (
    *("facts", "candidates", "captions", "caption_verdicts", "score_verdicts", "leaks"),
    *("taken", "contradicted"),  # what earlier steps found of a row in rows of other buckets
)
"""Tables of which `judge_rules` reads a bucket."""


def judge_rules(sql: Any, licences: LicenceSettings, more: Sequence[str] = ()) -> None:
    """Make `contenders`: rows that nothing but a duplicate or a cap can drop, with `more` columns of captions.

    Makes `passed`, too: rows that passed caption and score. What became of the others of those lies in `leak_verdicts`,
    `taken` and `rule_drops`, a reason each. Reads views of OF_ROWS and `leak_groups`.
    """
    sql.execute(_PASSED.format(captions=", ".join(["licence_id", *more])))
    _drop_leaks(sql)
    judge_kinds(sql, licences)
    sql.execute(_RULE_DROPS)
    sql.execute(
        "CREATE VIEW contenders AS FROM alive ANTI JOIN rule_drops USING (sample_id) ANTI JOIN taken USING (sample_id)"
    )


# The first rule that fails is the reason. A picture of one colour shows nothing, whatever its licence or its copies.
_RULE_DROPS = f"""
    CREATE VIEW left_by_takedowns AS FROM alive ANTI JOIN taken USING (sample_id);
    CREATE TABLE rule_drops AS SELECT DISTINCT ON (sample_id) * EXCLUDE (place) FROM (
        SELECT 1 AS place, sample_id, k.reason, k.value, k.threshold, NULL AS other_sample_id
        FROM left_by_takedowns a JOIN licence_kinds k ON k.licence_id IS NOT DISTINCT FROM a.licence_id WHERE NOT k.keep
        UNION ALL SELECT 2, sample_id, 'flat_picture', printf('%.1f', pixel_std),
            '>= {FLAT_PIXEL_STD:g} (spread of light)', NULL FROM left_by_takedowns JOIN facts USING (sample_id)
            WHERE pixel_std < {FLAT_PIXEL_STD} AND colour_std < {FLAT_PIXEL_STD}
        UNION ALL SELECT 3, sample_id, reason, value, threshold, other_sample_id
            FROM contradicted SEMI JOIN left_by_takedowns USING (sample_id)
    ) ORDER BY sample_id, place
"""


_PASSED = """
    CREATE TABLE passed AS SELECT f.sample_id, c.source, c.domain, c.group_id, t.* EXCLUDE (sample_id)
    FROM facts f JOIN candidates c USING (sample_id) JOIN (SELECT sample_id, {captions} FROM captions) t
    USING (sample_id)
    ANTI JOIN (FROM caption_verdicts WHERE NOT keep) v ON v.sample_id = f.sample_id
    ANTI JOIN (FROM score_verdicts WHERE NOT keep) s ON s.sample_id = f.sample_id
    WHERE f.outcome = 'ok'
"""


def find_leak_groups(sql: Any) -> None:
    """Make the table `leak_groups` (LEAK_GROUPS) of all `leaks` and `candidates`.

    A row that a rule has dropped leaks into its group too.
    """
    sql.execute(
        "CREATE TABLE leak_groups AS SELECT DISTINCT ON (source, group_id) o.source, o.group_id, k.sample_id, "
        "evaluation_set, evaluation_member FROM leaks k JOIN candidates o USING (sample_id) "
        "WHERE o.group_id IS NOT NULL ORDER BY source, group_id, k.sample_id, evaluation_set, evaluation_member"
    )


def _drop_leaks(sql: Any) -> None:
    """`leak_verdicts`: rows that show an image of an evaluation set, or are of one group with such a row.

    `alive` are the others that passed.
    """
    sql.execute(
        "CREATE TABLE leak_verdicts AS SELECT DISTINCT ON (sample_id) sample_id, 'eval_leak' AS reason, "
        "CASE matched WHEN 'bytes' THEN 'same bytes' WHEN 'pixels' THEN 'same pixels' WHEN 'near' THEN "
        "'pHash distance ' || distance WHEN 'mirrored' THEN 'pHash distance ' || distance || ' to the mirror image' "
        "WHEN 'duplicate' THEN 'pHash distance ' || distance || ' to the leak ' || via_sample_id "
        "ELSE 'same ' || matched END AS value, 'in ' || evaluation_set || ': ' || evaluation_member AS threshold, "
        "distance, via_sample_id, evaluation_set, evaluation_member FROM leaks SEMI JOIN passed USING (sample_id) "
        "ORDER BY sample_id, via_sample_id IS NOT NULL, distance NULLS FIRST, evaluation_set"
    )
    sql.execute(
        "INSERT INTO leak_verdicts BY NAME SELECT p.sample_id, 'eval_leak' AS reason, "
        "'one group with the leak ' || l.sample_id AS value, 'in ' || evaluation_set || ': ' || evaluation_member "
        "AS threshold, l.sample_id AS via_sample_id, evaluation_set, evaluation_member "
        "FROM passed p JOIN leak_groups l USING (source, group_id) "
        "ANTI JOIN leak_verdicts v ON v.sample_id = p.sample_id"
    )
    sql.execute("CREATE VIEW alive AS FROM passed ANTI JOIN leak_verdicts USING (sample_id)")


def judge_kinds(sql: Any, settings: LicenceSettings) -> None:
    """Make `licence_kinds`: the verdict on each licence_id of `captions`, and its family where it is stated."""
    kinds = sql.sql("SELECT DISTINCT licence_id FROM captions ORDER BY 1").to_arrow_table()
    judged = judge_licences(kinds.append_column("sample_id", kinds["licence_id"]), settings)
    families = [None if code in (None, UNKNOWN) else family_of(code) for code in kinds["licence_id"].to_pylist()]
    columns = {"licence_id": kinds["licence_id"], "family": pa.array(families, pa.string())}
    sql.register("licence_kinds", pa.table(columns | {name: judged[name] for name in judged.column_names[1:]}))


# ---- what must stay out


def find_taken(
    inputs: Inputs, run: Execution[None], entries: tuple[Entry, ...], pictures: tuple[Picture, ...], radius: int
) -> PartResult:
    """Return the rows that stay out, and the pictures of the list with those that an entry was found to name.

    `radius` says how near the pHash of a copy is.
    """
    with run.views(inputs) as sql:
        view_shown(sql)
        judge_taken(sql, entries, pictures, radius)
        taken = run.save(sql, "taken", "FROM taken", "sample_id")
        held = run.save(sql, "taken_pictures", "FROM pictures", "image_id")
        met = set(sql.execute('SELECT DISTINCT "by", key FROM named').fetchall())
    unmet = [f"{entry.by} {entry.value}" for entry in entries if entry.key not in met]
    more = [f"and {len(unmet) - MOST_UNMET:,} more"] if len(unmet) > MOST_UNMET else []
    return PartResult((taken, held), notes={"unmet": unmet[:MOST_UNMET] + more})


def pictures_found(files: Files) -> tuple[Picture, ...]:
    """Return the pictures that `find_taken` found."""
    rows = (row for path in files.paths for row in pq.read_table(path).to_pylist())
    return tuple(sorted(Picture(**row | {"addresses": tuple(row["addresses"])}) for row in rows))


# ---- what rows have to do with each other


_SEMANTIC_EDGES = """
    CREATE TABLE meant AS SELECT DISTINCT pixels_sha256, look FROM shown SEMI JOIN
        (SELECT unnest([pixels_a, pixels_b]) AS pixels_sha256 FROM semantic_pairs) USING (pixels_sha256);
    CREATE TABLE semantic_edges AS SELECT a.look AS look_a, b.look AS look_b FROM semantic_pairs
        JOIN meant a ON a.pixels_sha256 = pixels_a JOIN meant b ON b.pixels_sha256 = pixels_b
"""


def relate(inputs: Inputs, run: Execution[None], licences: LicenceSettings, num_companies: int) -> PartResult:
    """So many companies of looks, groups that leak, and rows that contradict each other.

    One pass over narrow columns: what is related lies in any bucket.
    """
    with run.views(inputs, facts="measured_facts") as sql:
        view_shown(sql, "measured_facts")
        sql.execute(_SEMANTIC_EDGES)
        sql.execute("CREATE VIEW edges AS SELECT look_a, look_b FROM pairs UNION ALL FROM semantic_edges")
        companies.find_companies(sql, num_companies)
        find_leak_groups(sql)
        of_companies = run.save(sql, "companies", "FROM companies", "look")
        groups = run.save(sql, "leak_groups", "FROM leak_groups", "source, group_id")
        judge_kinds(sql, licences)
        find_contradicted(sql)
        contradicted = run.save(sql, "contradicted", "FROM contradicted", "sample_id")
    return PartResult((of_companies, groups, contradicted), None, {"num_companies": num_companies})


# ---- rows in company


# A JPEG that needs neither turning nor another size is stored as it came, but for its metadata. One with a profile of
# other colours is encoded anew all the same, and then has more bytes.
_GREY_COLOUR_STD = 3  # sepia has about 2, photos of groceries 12 and more
_IN_COMPANY = f"""
    CREATE TABLE facts AS SELECT sample_id, outcome, look, company, image_id, stored_sha256, pixels_sha256,
        width_px::BIGINT * height_px AS num_pixels, stored_width_px::BIGINT * stored_height_px AS num_stored_pixels,
        length AS num_stored_bytes, num_bytes, has_camera, colour_std >= {_GREY_COLOUR_STD} AS in_colour,
        coalesce(format NOT IN ('PNG', 'GIF', 'BMP', 'TIFF', 'PPM', 'TGA'), true) AS is_lossy,
        coalesce(stored_sha256 = image_id OR (format = 'JPEG' AND mode IN ('RGB', 'L') AND exif_orientation = 1
            AND stored_width_px = width_px AND stored_height_px = height_px AND length <= num_bytes), false)
            AS as_downloaded, pixel_std, colour_std
    FROM shown JOIN companies USING (look)
"""
_RIVALS = """
    SELECT f.* EXCLUDE (outcome, stored_sha256), k.sample_id IS NOT NULL AS competes, c.domain, t.licence_id,
        k.licence_id NOT IN ('unknown', 'conflicting') AS known_licence,
        l.family AS licence_family, t.taxon_name AS taxon,
        map_values(t.taxon_ranks) AS lineage, t.taxon_ranks['class'] AS class, CASE WHEN p.is_class_folder
            THEN nullif(coalesce(c.caption, c.taxon_vernacular_name, c.taxon_scientific_name), '') END AS folder,
        k.num_words, p.priority, d.detail_px, {texts}
    FROM facts f LEFT JOIN contenders k USING (sample_id)
    JOIN candidates c ON c.sample_id = f.sample_id JOIN captions t ON t.sample_id = f.sample_id
    LEFT JOIN licence_kinds l ON l.licence_id = t.licence_id
    LEFT JOIN details d ON d.pixels_sha256 = f.pixels_sha256 LEFT JOIN sources p ON p.source = k.source
    WHERE k.sample_id IS NOT NULL OR d.pixels_sha256 IS NOT NULL
"""
_TEXTS = "k.text, k.text_source = 'caption' AS is_caption"
_NO_TEXTS = "NULL AS text, NULL AS is_caption"


def contend(
    inputs: Inputs,
    run: Execution[None],
    licences: LicenceSettings,
    priority: dict[str, int],
    class_folders: tuple[str, ...],
    with_texts: bool,
) -> PartResult:
    """Rows of a bucket that are in company, and what decides which of them stays.

    `class_folders` names the sources whose folders are classes.
    """
    with run.views(inputs, facts="measured_facts") as sql:
        is_class_folder = [name in class_folders for name in priority]
        sources = {"source": list(priority), "priority": list(priority.values())}
        sql.register("sources", pa.table({**sources, "is_class_folder": is_class_folder}))
        view_shown(sql, "measured_facts")
        sql.execute(_IN_COMPANY)
        judge_rules(sql, licences, ("num_words", *(("text", "text_source") if with_texts else ())))
        query = _RIVALS.format(texts=_TEXTS if with_texts else _NO_TEXTS)
        rivals = run.save(sql, "rivals", query, "company, sample_id")
    return PartResult((rivals,))


def judge_duplicates(
    inputs: Inputs,
    run: Execution[None],
    prefer: tuple[str, ...],
    extra_captions: int,
    other_labels: str,
    company: int,
) -> PartResult:
    """Rows of a company that another one replaces, what copies say otherwise, and captions that they leave to it."""
    with run.scratch() as sql:
        inputs.view(sql, "semantic_pairs", rivals="rivals_of_all", pairs="pairs_of_all")
        sql.execute(f"CREATE TABLE rivals AS FROM rivals_of_all WHERE company = {company}")
        sql.execute("CREATE TABLE pairs AS FROM pairs_of_all SEMI JOIN rivals ON look_a = look")
        companies.view_competing(sql)
        if other_labels == "drop":
            drop_other_labels(sql)
        else:
            sql.register("conflicting_labels", companies.DUPLICATES.empty_table())
        companies.judge_duplicates(sql, prefer)
        find_conflicts(sql)
        if inputs["semantic_pairs"]:
            companies.judge_semantic(sql, prefer)
        dropped = "FROM duplicates UNION ALL BY NAME FROM conflicting_labels"
        files = [run.save(sql, "duplicates", dropped, "sample_id")]
        files.append(run.save(sql, "conflicts", "FROM conflicts", "sample_id, about, matched, other_sample_id"))
        if extra_captions:
            left_captions = companies.captions_of_duplicates(extra_captions)
            files.append(run.save(sql, "left_captions", left_captions, "sample_id, place"))
    return PartResult(tuple(files))
