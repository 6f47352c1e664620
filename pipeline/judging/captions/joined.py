"""Texts that a source joins to its pictures: measured as captions of theirs, then named.

Reads joined texts (JOINED of `sources/tables/captions.py`) beside candidates. The first text of kind `caption` is the
caption of a picture whose source gives none, or only the name of a file or a placeholder. Kept texts are named by their
kind, further ones with a number, in the order of `captions` and of the rows of its tables. A text that stands twice on
a picture in one kind is kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.contract.tables import CAPTIONS, JOINED_TEXTS, VERDICTS
from pipeline.judging.captions.measure import measure_captions
from pipeline.judging.captions.patterns import FILENAME, PLACEHOLDER

_OF_THE_TAXON = {"sample_id", "texts", "taxon_ranks", "taxon_derived", "taxon_given", "taxon_matched", "taxon_id"}
MEASURED_TEXTS = pa.schema(
    [
        *(field for field in JOINED_TEXTS if field.name in ("sample_id", "kind", "source", "entry", "row_number")),
        ("is_caption", pa.bool_()),  # it stands in for the caption that the source does not give
        *(field for field in CAPTIONS if field.name not in _OF_THE_TAXON),
    ]
)
ROWS_AT_ONCE = 20_000  # whose texts are held as Python's; 100,000 take 235 MB more
_PLACED = """
    CREATE TABLE placed AS SELECT j.*, r.row, r.is_bare AND kind = 'caption' AND row_number() OVER (
        PARTITION BY sample_id, kind ORDER BY entry, j.row_number
    ) = 1 AS is_caption FROM joined j JOIN rows r USING (sample_id)
"""
# a text has one row in `judged_texts`; `again` are those that stand on the picture before
_NAMED = """
    WITH first_ones AS (
        SELECT *, reason IS NULL AND row_number() OVER (
            PARTITION BY sample_id, kind, text, reason ORDER BY entry, row_number
        ) > 1 AS again FROM judged_texts
    ), counted AS (
        SELECT * REPLACE (if(again, 'same_text', reason) AS reason),
            count(*) FILTER (reason IS NULL AND NOT again) OVER of_kind AS num_kept,
            kind = 'caption' AND NOT bool_or(is_caption) OVER (PARTITION BY sample_id, kind) AS has_source_caption
        FROM first_ones WINDOW of_kind AS (PARTITION BY sample_id, kind ORDER BY entry, row_number)
    ), numbered AS (
        SELECT * EXCLUDE (num_kept, has_source_caption),
            if(has_source_caption, num_kept + 1, num_kept) AS number  -- the caption of the source is the first one
        FROM counted
    )
    SELECT *, if(reason IS NULL, kind || if(number = 1, '', '_' || number), NULL) AS name FROM numbered
"""


def measure_texts(
    sql: Any, candidates: pa.Table, names: pa.Table | None, write: Callable[[pa.Table], None]
) -> pa.Table:
    """Write the measured texts of candidates, from the view `joined`; returns the candidates with captions filled in.

    A joined text is measured beside the taxon of its picture; `names` as in `measure_captions`.
    """
    caption = pc.utf8_trim_whitespace(pc.fill_null(candidates["caption"], ""))
    names_a_file = pc.match_substring_regex(caption, FILENAME)
    is_placeholder = pc.match_substring_regex(pc.utf8_lower(caption), PLACEHOLDER)
    is_bare = pc.or_(pc.equal(caption, ""), pc.or_(names_a_file, is_placeholder))
    rows = pa.array(range(candidates.num_rows), pa.int64())
    sql.register("rows", pa.table([candidates["sample_id"], rows, is_bare], ["sample_id", "row", "is_bare"]))
    sql.execute(_PLACED)
    for batch in sql.sql("FROM placed ORDER BY row, entry, row_number").to_arrow_reader(ROWS_AT_ONCE):
        texts = pa.Table.from_batches([batch])
        measured = measure_captions(_with_captions(candidates.take(texts["row"]), texts["text"]), names)
        columns = {name: texts[name] for name in MEASURED_TEXTS.names if name in texts.column_names}
        columns |= {name: measured[name] for name in MEASURED_TEXTS.names if name in measured.column_names}
        write(pa.table(columns))
    filled = sql.sql("SELECT p.text FROM rows r LEFT JOIN placed p ON p.row = r.row AND p.is_caption ORDER BY r.row")
    return _with_captions(candidates, pc.coalesce(filled.to_arrow_table()["text"], candidates["caption"]))


def _with_captions(candidates: pa.Table, captions: pa.ChunkedArray) -> pa.Table:
    return candidates.set_column(candidates.column_names.index("caption"), "caption", captions)


def number_texts(sql: Any, judged: Iterable[tuple[pa.Table, pa.Table]]) -> str:
    """Return SQL of the rows of JOINED_TEXTS, from measured texts with their verdicts.

    A text that is empty is dropped too.
    """
    schema = pa.schema([*MEASURED_TEXTS, *(VERDICTS.field(name) for name in ("reason", "value", "threshold"))])
    sql.register("no_texts", schema.empty_table())
    sql.execute("CREATE TABLE judged_texts AS FROM no_texts")
    for rows, verdicts in judged:
        is_text = pc.equal(rows["text_source"], "caption")  # else it came out empty: the taxon's sentence stands there
        empty = pc.if_else(is_text, pa.scalar(None, pa.string()), "empty_text")
        columns = {name: rows[name] for name in MEASURED_TEXTS.names}
        columns |= {name: verdicts[name] for name in ("value", "threshold")}
        columns |= {"text": pc.if_else(is_text, rows["text"], ""), "reason": pc.coalesce(verdicts["reason"], empty)}
        sql.register("some_texts", pa.table(columns).select(schema.names).cast(schema))
        sql.execute("INSERT INTO judged_texts FROM some_texts")
    return _NAMED
