"""select: decide on every candidate, with one reason a drop. Of duplicates one stays.

Reads candidates, facts, pairs and the verdicts of caption and score. Writes `decisions`, one row a candidate.

Rows that show an image of an evaluation set are dropped first, with all rows of their groups. Then takedowns, licences,
duplicates and caps (select_caps.py) decide, in this order. Only rows that passed every rule compete with their
duplicates: when a rule drops the better of two duplicates, the other one is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from manifests import tables
from manifests.records import Funnel
from manifests.takedowns import Entry, judge_takedowns, read_list
from pipeline.config import BuildConfig
from pipeline.matching import DistinctPairs, choose_kept, choose_kept_distinct
from pipeline.quotas.balance import BalanceSettings
from pipeline.runner.work import BuildContext, Execution, PartResult, Stage, Step, whole
from pipeline.stages.dedup_evaluation import FLAT_BITS, FLAT_PIXEL_STD
from pipeline.stages.select_caps import judge_caps
from pipeline.store.buckets import rows_of_bucket
from pipeline.store.files import Files
from pipeline.store.sql import copy_sorted, facet, first_half_of_md5, view_parquet, view_table
from pipeline.store.writing import PrivateFile
from pipeline.vocabulary.licences import LicenceSettings, judge_licences

PAIRS_OF_ROW = 8  # rows and pairs as arrays in the memory of one row of a bucket; each takes about 200 bytes
MORE_DETAIL = 1.02  # a larger copy was blown up when a smaller picture has this many times its detail
# What each word of dedup.prefer puts first. Ties go to the next word, and at last to the sample id.
PREFERENCES = {
    "licence": "known_licence DESC",
    "pixels": "num_pixels DESC, blown_up, num_stored_bytes DESC",
    "caption": "num_words DESC",
    "priority": "priority DESC",
}


def choose_representatives(phash: np.ndarray, priority: np.ndarray, pairs: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """For every row, the row that is kept in its place (itself when kept), and the distance of their pHashes.

    `phash` uint64 (N,), `priority` int64 (N,) a rank, lower stays; `pairs` holds phash_a, phash_b, distance of all
    different hashes within the radius (pairs with a hash that `phash` lacks are left out).
    """
    order = np.argsort(phash, kind="stable")
    hashes, starts = np.unique(phash[order], return_index=True)
    left, right = (pairs[name].to_numpy() for name in ("phash_a", "phash_b"))
    at_left, at_right = np.searchsorted(hashes, left), np.searchsorted(hashes, right)
    there = (at_left < len(hashes)) & (at_right < len(hashes))
    there[there] = (hashes[at_left[there]] == left[there]) & (hashes[at_right[there]] == right[there])
    distinct = DistinctPairs(
        num_rows=len(phash),
        radius=64,
        hashes=hashes,
        starts=np.append(starts, len(phash)).astype(np.int64),
        rows=order.astype(np.int64),
        left=at_left[there].astype(np.int64),
        right=at_right[there].astype(np.int64),
        distance=pairs["distance"].to_numpy()[there],
    )
    return choose_kept_distinct(distinct, priority)


@dataclass(frozen=True)
class Choice:
    """What decides besides the measurements: settings, and the takedown list of the work folder."""

    prefer: tuple[str, ...]
    extra_captions: int
    priority: dict[str, int]
    licences: LicenceSettings
    balance: BalanceSettings
    takedowns: tuple[Entry, ...]

    @classmethod
    def of(cls, config: BuildConfig, takedowns: Sequence[Entry]) -> Choice:
        """The choice that a configuration makes."""
        return cls(
            tuple(config.dedup.prefer),
            config.dedup.extra_captions,
            {source.name: source.priority for source in config.sources},
            config.select.licences,
            config.select.balance,
            tuple(takedowns),
        )


@dataclass(frozen=True)
class SelectInputs:
    """All that select reads: the measurements, and what decides over them."""

    choice: Choice
    candidates: Files
    facts: Files
    captions: Files
    pairs: Files
    details: Files
    leaks: Files
    semantic_pairs: Files
    caption_verdicts: Files
    score_verdicts: Files


def decide(inputs: SelectInputs, run: Execution[None]) -> PartResult:
    """Decisions over every candidate."""
    choice = inputs.choice
    with run.scratch() as sql:
        for name in ("candidates", "facts", "captions", "caption_verdicts", "pairs"):
            view_parquet(sql, name, getattr(inputs, name).paths)
        view_table(sql, "score_verdicts", inputs.score_verdicts, tables.VERDICTS)
        view_table(sql, "leaks", inputs.leaks, tables.LEAKS)
        view_table(sql, "details", inputs.details, tables.DETAILS)
        _gather(sql, choice.priority)
        _drop_leaks(sql)
        judge_takedowns(sql, choice.takedowns)
        _judge_licences(sql, choice.licences)
        _judge_duplicates(sql, choice.prefer, run.memory_gb)
        if inputs.semantic_pairs:
            _judge_semantic(sql, inputs.semantic_pairs.paths, choice.prefer)
        sql.execute("CREATE VIEW left_over AS FROM contenders ANTI JOIN duplicates USING (sample_id)")
        balance = judge_caps(sql, choice.balance, "left_over")
        sql.execute(_DROPPED)
        decisions = copy_sorted(
            sql,
            _DECISIONS,
            "sample_id",
            run.writer("decisions", f"tables/select/{run.stem}.parquet", tables.DECISIONS),
        )
        extra = (_keep_captions(sql, choice.extra_captions, run),) if choice.extra_captions else ()
        view_parquet(sql, "decisions", [decisions.temp])
        reasons = dict(
            sql.execute("SELECT reason, count(*) FROM decisions WHERE stage = 'select' GROUP BY 1").fetchall()
        )
        kept: dict[str, dict[str, int]] = {}
        for domain, source, num in sql.execute(
            "SELECT domain, source, count(*) FROM passed ANTI JOIN dropped USING (sample_id) GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            kept.setdefault(domain, {})[source] = num
        domains = {domain: sum(sources.values()) for domain, sources in kept.items()}
        num_in = sql.execute("SELECT count(*) FROM passed").fetchall()[0][0]
        content = facet(sql, tables.DECISIONS.names, "decisions")
    notes = {"domains": domains, "sources": kept, "balance": balance, "content": content}
    return PartResult((decisions, *extra), Funnel(num_in, sum(domains.values()), reasons), notes)


# what select drops: leaks, takedowns, licences, duplicates, caps, in this order; each row at most once
_DROPPED = """
    CREATE TABLE dropped AS
    SELECT sample_id, reason, value, threshold, via_sample_id AS other_sample_id, distance, evaluation_set,
        evaluation_member FROM leak_verdicts
    UNION ALL BY NAME SELECT sample_id, 'takedown' AS reason, value, threshold FROM taken
        SEMI JOIN alive USING (sample_id)
    UNION ALL BY NAME FROM licence_drops
    UNION ALL BY NAME FROM duplicates
    UNION ALL BY NAME SELECT sample_id, reason, value, threshold FROM cap_verdicts
"""

# one row a candidate; only the dropped rows, which are few, are joined
_DECISIONS = """
    SELECT f.sample_id,
        f.outcome = 'ok' AND v.sample_id IS NULL AND s.sample_id IS NULL AND d.sample_id IS NULL AS keep,
        CASE WHEN f.outcome <> 'ok' THEN 'fetch' WHEN v.sample_id IS NOT NULL THEN 'caption'
            WHEN s.sample_id IS NOT NULL THEN 'score' WHEN d.sample_id IS NOT NULL THEN 'select' END AS stage,
        CASE WHEN f.outcome <> 'ok' THEN f.outcome ELSE coalesce(v.reason, s.reason, d.reason) END AS reason,
        CASE WHEN f.outcome <> 'ok' THEN f.detail WHEN v.sample_id IS NOT NULL THEN v.value
            WHEN s.sample_id IS NOT NULL THEN s.value ELSE d.value END AS value,
        CASE WHEN f.outcome <> 'ok' THEN NULL WHEN v.sample_id IS NOT NULL THEN v.threshold
            WHEN s.sample_id IS NOT NULL THEN s.threshold ELSE d.threshold END AS threshold,
        d.other_sample_id, d.distance, d.evaluation_set, d.evaluation_member
    FROM facts f
    LEFT JOIN (FROM caption_verdicts WHERE NOT keep) v USING (sample_id)
    LEFT JOIN (FROM score_verdicts WHERE NOT keep) s USING (sample_id)
    LEFT JOIN dropped d USING (sample_id)
"""


# A pHash has 32 of its 64 bits set, those above the median. The pHash of a flat picture, or of a few faint lines, has
# hardly any bit set, so that unlike pictures lie within a few bits of each other. Flat pictures therefore count as the
# same only when their pixels are the same: 64 bits of the hash of their pixels replace their pHash.
_LIKENESS = f"""
    CREATE VIEW likeness AS SELECT * REPLACE (
        CASE WHEN bit_count(phash::HUGEINT) <= {FLAT_BITS} OR pixel_std < {FLAT_PIXEL_STD}
        THEN {first_half_of_md5("pixels_sha256")} ELSE phash END AS phash) FROM facts;
    CREATE VIEW telling_pairs AS FROM pairs WHERE bit_count(phash_a::HUGEINT) > {FLAT_BITS}
        AND bit_count(phash_b::HUGEINT) > {FLAT_BITS}
"""


# A picture is blown up when a near copy of fewer pixels holds more detail. It counts as no larger than that copy.
_BLOWN_UP = f"""
    CREATE VIEW pictures AS SELECT DISTINCT pixels_sha256, phash, stored_width_px::BIGINT * stored_height_px AS
        num_pixels, detail_px FROM likeness JOIN details USING (pixels_sha256) WHERE outcome = 'ok';
    CREATE VIEW near AS SELECT phash_a AS phash, phash_b AS other FROM telling_pairs
        UNION ALL SELECT phash_b, phash_a FROM telling_pairs UNION ALL SELECT DISTINCT phash, phash FROM pictures;
    CREATE TABLE sizes AS SELECT phash, num_pixels, max(detail_px) AS detail_px FROM pictures GROUP BY ALL;
    CREATE TABLE blown_up AS SELECT p.pixels_sha256, min(s.num_pixels) AS num_true_pixels
        FROM pictures p JOIN near USING (phash) JOIN sizes s ON s.phash = near.other
        AND s.num_pixels < p.num_pixels AND s.detail_px > {MORE_DETAIL} * p.detail_px GROUP BY ALL
"""


def _gather(sql: Any, priority: Mapping[str, int]) -> None:
    """`passed`: rows that passed the rules of caption and score."""
    sql.execute(_LIKENESS)
    sql.execute(_BLOWN_UP)
    sql.register("sources", pa.table({"source": list(priority), "priority": list(priority.values())}))
    sql.execute(
        "CREATE TABLE passed AS SELECT f.sample_id, c.source, c.domain, f.phash, t.licence_id, t.num_words, "
        "p.priority, coalesce(b.num_true_pixels, f.stored_width_px::BIGINT * f.stored_height_px) AS num_pixels, "
        "b.num_true_pixels IS NOT NULL AS blown_up, f.length AS num_stored_bytes "
        "FROM likeness f LEFT JOIN blown_up b USING (pixels_sha256) JOIN candidates c USING (sample_id) "
        "JOIN captions t USING (sample_id) "
        "ANTI JOIN (FROM caption_verdicts WHERE NOT keep) v ON v.sample_id = f.sample_id "
        "ANTI JOIN (FROM score_verdicts WHERE NOT keep) s ON s.sample_id = f.sample_id "
        "JOIN sources p USING (source) WHERE f.outcome = 'ok'"
    )


def _drop_leaks(sql: Any) -> None:
    """`leak_verdicts`: rows that show an image of an evaluation set, or are of one group with such a row.

    `alive` are the others that passed. A row that a rule has dropped leaks into its group too.
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
        "FROM passed p JOIN candidates c USING (sample_id) JOIN (SELECT DISTINCT ON (source, group_id) o.source, "
        "o.group_id, k.* FROM leaks k JOIN candidates o USING (sample_id) WHERE o.group_id IS NOT NULL "
        "ORDER BY source, group_id, sample_id, evaluation_set, evaluation_member) l "
        "ON l.source = c.source AND l.group_id = c.group_id ANTI JOIN leak_verdicts v ON v.sample_id = p.sample_id"
    )
    sql.execute("CREATE VIEW alive AS FROM passed ANTI JOIN leak_verdicts USING (sample_id)")


def _judge_licences(sql: Any, settings: LicenceSettings) -> None:
    """`licence_drops`, and `contenders`: rows that nothing but a duplicate or a cap can drop."""
    kinds = sql.sql("SELECT DISTINCT licence_id FROM alive ORDER BY 1").to_arrow_table()
    judged = judge_licences(kinds.append_column("sample_id", kinds["licence_id"]), settings)
    sql.register("licence_kinds", judged.append_column("licence_id", kinds["licence_id"]))
    sql.execute(
        "CREATE TABLE licence_drops AS SELECT a.sample_id, k.reason, k.value, k.threshold FROM alive a "
        "JOIN licence_kinds k ON k.licence_id IS NOT DISTINCT FROM a.licence_id "
        "ANTI JOIN taken t ON t.sample_id = a.sample_id WHERE NOT k.keep"
    )
    sql.execute(
        "CREATE VIEW contenders AS FROM alive ANTI JOIN licence_drops USING (sample_id) "
        "ANTI JOIN taken USING (sample_id)"
    )


def _judge_duplicates(sql: Any, prefer: Sequence[str], memory_gb: float) -> None:
    """`duplicates`: rows that another row replaces. A row that was taken down wins, so that its copies go with it."""
    order = ", ".join([*(PREFERENCES[word] for word in prefer), "sample_id"])
    sql.execute(
        "CREATE VIEW competing AS SELECT *, licence_id NOT IN ('unknown', 'conflicting') AS known_licence, "
        "false AS taken FROM contenders UNION ALL BY NAME SELECT sample_id, l.phash, true AS taken "
        "FROM taken JOIN likeness l USING (sample_id)"
    )
    sql.execute(  # a row without another one near it stays: 9 of 10 rows never leave DuckDB
        "CREATE TABLE in_company AS SELECT phash FROM competing GROUP BY phash HAVING count(*) > 1 "
        "UNION SELECT phash_a FROM telling_pairs UNION SELECT phash_b FROM telling_pairs"
    )
    sql.execute(
        f"CREATE TABLE ranked AS SELECT sample_id, phash, row_number() OVER (ORDER BY taken DESC, {order}) AS place "
        "FROM competing SEMI JOIN in_company USING (phash)"
    )
    sql.execute("CREATE TABLE dropped_rows (sample_id VARCHAR, other_sample_id VARCHAR, distance UTINYINT)")
    for rows, pairs in _companies(sql, PAIRS_OF_ROW * rows_of_bucket(memory_gb)):
        phash = rows["phash"].to_numpy().astype(np.uint64)
        representative, distance = choose_representatives(phash, rows["place"].to_numpy().astype(np.int64), pairs)
        dropped = np.flatnonzero(representative != np.arange(len(representative)))
        ids = rows["sample_id"].combine_chunks()
        sql.register(
            "newly_dropped",
            pa.table(
                {
                    "sample_id": ids.take(pa.array(dropped)),
                    "other_sample_id": ids.take(pa.array(representative[dropped])),
                    "distance": pa.array(distance[dropped], pa.uint8()),
                }
            ),
        )
        sql.execute("INSERT INTO dropped_rows FROM newly_dropped")
    sql.execute(  # equal bytes and equal pixels have equal pHashes
        "CREATE TABLE alike AS SELECT sample_id, image_id, pixels_sha256 FROM facts SEMI JOIN "
        "(SELECT unnest([sample_id, other_sample_id]) AS sample_id FROM dropped_rows WHERE distance = 0) "
        "USING (sample_id)"
    )
    sql.execute(
        "CREATE TABLE duplicates AS SELECT d.sample_id, other_sample_id, distance, "
        "CASE WHEN other_sample_id IN (SELECT sample_id FROM taken) THEN 'takedown' "
        "WHEN a.image_id = b.image_id OR a.pixels_sha256 = b.pixels_sha256 THEN 'exact_duplicate' "
        "ELSE 'near_duplicate' END AS reason, "
        "CASE WHEN a.image_id = b.image_id THEN 'same bytes' WHEN a.pixels_sha256 = b.pixels_sha256 "
        "THEN 'same pixels' ELSE 'pHash distance ' || distance END AS value, 'of ' || other_sample_id AS threshold "
        "FROM dropped_rows d LEFT JOIN alike a ON a.sample_id = d.sample_id "
        "LEFT JOIN alike b ON b.sample_id = d.other_sample_id ANTI JOIN taken t ON t.sample_id = d.sample_id"
    )


def _companies(sql: Any, most: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Rows of `ranked` and their pairs, about `most` of both at a time; no pair is between two pieces.

    Who stays is decided within rows that pairs connect, so the pieces together decide as all rows at once would.
    """
    ((num,),) = sql.execute("SELECT (SELECT count(*) FROM ranked) + (SELECT count(*) FROM telling_pairs)").fetchall()
    if num <= most:
        yield sql.sql("FROM ranked ORDER BY sample_id").to_arrow_table(), sql.sql("FROM telling_pairs").to_arrow_table()
        return
    _connect(sql)
    num_pieces = math.ceil(num / most)
    for piece in range(num_pieces):
        here = f"(SELECT phash FROM connected WHERE hash(label) % {num_pieces} = {piece})"
        yield (
            sql.sql(f"FROM ranked WHERE phash IN {here} ORDER BY sample_id").to_arrow_table(),
            sql.sql(f"FROM telling_pairs WHERE phash_a IN {here}").to_arrow_table(),
        )


def _connect(sql: Any) -> None:
    """`connected`: each hash in company with a label that is the lowest hash of all that pairs connect it to.

    Each round takes the lowest label of the neighbours, and then the label of that label, which halves long chains.
    """
    sql.execute("CREATE TABLE connected AS SELECT phash, phash AS label FROM in_company")
    while True:
        sql.execute(
            "CREATE OR REPLACE TABLE lower_labels AS SELECT phash, min(label) AS label FROM (FROM connected "
            "UNION ALL SELECT phash_a, label FROM telling_pairs JOIN connected ON phash = phash_b "
            "UNION ALL SELECT phash_b, label FROM telling_pairs JOIN connected ON phash = phash_a) GROUP BY phash"
        )
        ((num_changed,),) = sql.execute(
            "SELECT count(*) FROM connected c JOIN lower_labels l USING (phash) WHERE c.label <> l.label"
        ).fetchall()
        if not num_changed:
            return
        sql.execute(
            "CREATE OR REPLACE TABLE connected AS SELECT l.phash, other.label FROM lower_labels l "
            "JOIN lower_labels other ON other.phash = l.label"
        )


def _judge_semantic(sql: Any, files: Sequence[str], prefer: Sequence[str]) -> None:
    """More `duplicates`: among the rows that the pHashes left, images that a model sees as the same."""
    view_parquet(sql, "semantic_pairs", files)
    order = ", ".join([*(PREFERENCES[word] for word in prefer), "c.sample_id"])
    rows = sql.sql(
        f"SELECT c.sample_id, f.pixels_sha256, row_number() OVER (ORDER BY {order}) AS place "
        "FROM competing c ANTI JOIN duplicates d ON d.sample_id = c.sample_id "
        "JOIN facts f ON f.sample_id = c.sample_id SEMI JOIN (SELECT pixels_a AS pixels FROM semantic_pairs UNION "
        "SELECT pixels_b FROM semantic_pairs) p ON p.pixels = f.pixels_sha256 WHERE NOT taken ORDER BY c.sample_id"
    ).to_arrow_table()
    sql.register("left_rows", rows.append_column("row", pa.array(np.arange(len(rows)))))
    pairs = sql.sql(
        "SELECT a.row AS i, b.row AS j, cosine FROM semantic_pairs JOIN left_rows a ON a.pixels_sha256 = pixels_a "
        "JOIN left_rows b ON b.pixels_sha256 = pixels_b ORDER BY 1, 2"
    ).to_arrow_table()
    i, j, cosine = (pairs[name].to_numpy() for name in ("i", "j", "cosine"))
    # distances are whole numbers from 1 to 255, so the cosine is scaled between the threshold and 1
    apart = (1 + np.round(254 * (1 - cosine) / max(1e-6, 1 - cosine.min(initial=1.0)))).clip(1, 255).astype(np.uint8)
    representative, _ = choose_kept(len(rows), i, j, apart, rows["place"].to_numpy().astype(np.int64))
    dropped = np.flatnonzero(representative != np.arange(len(rows)))
    chosen = {"i": np.minimum(dropped, representative[dropped]), "j": np.maximum(dropped, representative[dropped])}
    sql.register("chosen_pairs", pa.table({**chosen, "dropped": dropped, "other": representative[dropped]}))
    sql.register("all_pairs", pa.table({"i": np.minimum(i, j), "j": np.maximum(i, j), "cosine": cosine}))
    sql.execute(
        "INSERT INTO duplicates BY NAME SELECT a.sample_id, b.sample_id AS other_sample_id, NULL AS distance, "
        "'semantic_duplicate' AS reason, printf('cosine %.4f', p.cosine) AS value, 'of ' || b.sample_id AS threshold "
        "FROM chosen_pairs c JOIN all_pairs p ON p.i = c.i AND p.j = c.j JOIN left_rows a ON a.row = c.dropped "
        "JOIN left_rows b ON b.row = c.other"
    )


def _keep_captions(sql: Any, most: int, run: Execution[None]) -> PrivateFile:
    """Further captions of every image that stays, taken from its dropped duplicates, the longest first."""
    return copy_sorted(
        sql,
        "SELECT *, (row_number() OVER (PARTITION BY sample_id ORDER BY num_words DESC, from_sample_id))::INTEGER "
        "AS place FROM (SELECT DISTINCT ON (d.other_sample_id, lower(t.text)) d.other_sample_id AS sample_id, t.text, "
        "t.num_words, d.sample_id AS from_sample_id FROM duplicates d JOIN captions t ON t.sample_id = d.sample_id "
        "JOIN captions k ON k.sample_id = d.other_sample_id ANTI JOIN dropped o ON o.sample_id = d.other_sample_id "
        "WHERE d.reason <> 'takedown' AND t.text_source = 'caption' AND lower(t.text) <> lower(k.text) "
        f"ORDER BY d.sample_id) QUALIFY place <= {most}",
        "sample_id, place",
        run.writer("extra_captions", f"tables/select/{run.stem}-captions.parquet", tables.EXTRA_CAPTIONS),
    )


def _inputs(context: BuildContext) -> SelectInputs:
    return SelectInputs(
        choice=Choice.of(context.config, read_list(context.workdir)),
        candidates=context.files("ingest", "candidates"),
        facts=context.facts(),
        captions=context.files("caption", "captions"),
        pairs=context.files("dedup", "pairs"),
        details=context.files("dedup", "details"),
        leaks=context.files("dedup", "leaks"),
        semantic_pairs=context.files("dedup", "semantic_pairs"),
        caption_verdicts=context.files("caption", "caption_verdicts"),
        score_verdicts=context.files("score", "score_verdicts").digested(context.sealed["score"].notes["content"]),
    )


STAGE = Stage(
    name="select",
    about="decide on every image: licence, duplicates; one reason a drop",
    inputs=_inputs,
    steps=(Step("decide", whole, decide, version=4),),
)
