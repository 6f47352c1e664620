"""A preview of the caption rules of a configuration, on a sample of its candidates.

The sample comes from the work folder where its build had the same sources, with what is known of the pictures. Else it
comes from the first rows of each source as it streams. Texts of other tables are joined to the sample
anew. Names, archives and joins are staged in a temporary folder that is removed afterwards.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.reader import open_reader
from manifests.errors import ConfigError, PlantMixError
from pipeline.config import BuildConfig
from pipeline.judging.captions.joined import MEASURED_TEXTS, measure_texts, number_texts
from pipeline.judging.captions.preview import preview_captions
from pipeline.judging.captions.verdicts import judge_captions
from pipeline.judging.vocabulary.backbone import check_backbone, names_to_resolve, resolve_names
from pipeline.sources.reading import check_source, complete, none_usable
from pipeline.sources.rows import Batch, Scratch
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tables.captions import join_captions
from pipeline.sources.tables.joining import staging
from pipeline.sources.tables.keyed import describe_join
from pipeline.stages.ingest.stage import map_rows
from pipeline.store.sql import open_scratch

MAX_SCANNED_ROWS = 200_000  # of each source, when they are streamed
BESIDES = {"num_same_text": pa.int64(), "width_px": pa.int32(), "height_px": pa.int32()}


_OF_EACH = """
    SELECT t.*, j.num_same_text, c.domain, c.width_px, c.height_px
    FROM texts t JOIN joined j USING (sample_id, entry, row_number) JOIN drawn c USING (sample_id)
"""


@dataclass(frozen=True)
class Sample:
    """Drawn candidates, the values that rules may ask for besides, and words on where the candidates come from.

    `texts` are those that other tables join to them, with what the rules say, and `joins` words on each table.
    """

    candidates: pa.Table
    besides: dict[str, pa.Array]
    origin: str
    texts: pa.Table | None = None
    joins: tuple[str, ...] = ()


def preview(config: BuildConfig, num: int) -> dict[str, Any]:
    """Return the report of captions/preview.py on `num` candidates, the same ones each time, and where they come from.

    Raises: ConfigError when a source cannot be read, or gives no rows.
    """
    backbone = config.caption.backbone
    check_backbone(backbone)
    with tempfile.TemporaryDirectory(prefix="plantmix-preview-") as scratch:
        sample = _from_work_dir(config, num) or _from_sources(config, num, scratch)
        names = None
        if backbone is not None:
            names = resolve_names(names_to_resolve(sample.candidates), backbone, scratch, config.run.memory_gb)
        if any(source.captions for source in config.sources):
            sample = _with_texts(config, sample, names, scratch)
    report = preview_captions(sample.candidates, sample.besides, config.caption, names, sample.texts)
    return {"name": config.name, "origin": sample.origin, "joins": list(sample.joins), **report}


def _from_work_dir(config: BuildConfig, num: int) -> Sample | None:
    """None when nothing is ingested there, or it was ingested by other source settings."""
    try:
        connection = open_reader(config.work_dir)
    except PlantMixError:
        return None
    with connection:
        identities = connection.execute(
            "SELECT identity FROM stages JOIN current_stages USING (fingerprint) WHERE current_stages.stage = 'ingest'"
        ).fetchall()
        (total,) = connection.execute("SELECT count(*) FROM candidates").fetchall()[0]
        if not identities or not total:
            return None
        ingested = [source["source"] for source in json.loads(identities[0][0])["sources"]]
        if ingested != json.loads(json.dumps([source.identity() for source in config.sources])):
            return None
        (fetched,) = connection.execute("SELECT count(*) FROM facts").fetchall()[0]
        drawn = f"SELECT * FROM candidates ORDER BY md5(sample_id) LIMIT {num}"
        # repeats by the caption as given, over all candidates: close to what the stage counts over clean texts
        rows = connection.sql(
            f"WITH drawn AS MATERIALIZED ({drawn}), same AS (SELECT caption, count(*) AS num FROM candidates "
            "WHERE caption IN (SELECT caption FROM drawn) GROUP BY caption) "
            "SELECT d.*, same.num AS num_same_text, f.width_px, f.height_px "
            "FROM drawn d LEFT JOIN facts f USING (sample_id) LEFT JOIN same USING (caption) ORDER BY d.sample_id"
        ).to_arrow_table()
    pictures = " and their fetched pictures" if fetched else ""
    origin = f"the {total:,} candidates{pictures} in {config.work_dir}"
    return Sample(rows.select(tables.CANDIDATES.names).cast(tables.CANDIDATES), _besides(rows), origin)


def _from_sources(config: BuildConfig, num: int, scratch: str) -> Sample:
    read: list[pa.Table] = []
    cut: list[str] = []
    joins: list[str] = []
    reasons: Counter[str] = Counter()
    new_scratch = partial(open_scratch, scratch, config.run.memory_gb)

    def tell(counts: dict[str, Any]) -> None:
        joins.append(describe_join(counts, is_part=counts["source"] in cut))

    for source in config.sources:
        check_source(source)
        some = _first_batches(source, new_scratch, cut)
        for batch in complete(source, some, new_scratch, tell):
            mapped = map_rows(batch, source)
            read.append(mapped.filter(mapped["reason"].is_null()).select(tables.CANDIDATES.names))
            reasons.update(mapped["reason"].drop_null().to_pylist())
    rows = pa.concat_tables(read).cast(tables.CANDIDATES).combine_chunks() if read else tables.CANDIDATES.empty_table()
    if not rows.num_rows:
        raise ConfigError(none_usable(reasons.total(), reasons))
    first = "" if not cut else f" (the first {MAX_SCANNED_ROWS:,} of each source are read)"
    origin = f"{rows.num_rows:,} rows of the sources{first}; no picture is fetched yet"
    same = pc.value_counts(rows["caption"].combine_chunks())
    drawn = rows.take(np.sort(np.random.default_rng(0).permutation(rows.num_rows)[:num]))
    row_of = pc.index_in(drawn["caption"].combine_chunks(), value_set=same.field("values"))
    counted = drawn.append_column("num_same_text", same.field("counts").take(row_of))
    return Sample(drawn, _besides(counted), origin, joins=tuple(joins))


def _first_batches(source: SourceSettings, scratch: Scratch, cut: list[str]) -> Iterator[Batch]:
    """Yield the first rows of a source; `cut` gets its name where it has more."""
    scanned = 0
    for batch in source.reader.rows(scratch):
        yield batch
        scanned += batch.rows.num_rows + batch.lost.num_rows
        if scanned >= MAX_SCANNED_ROWS:
            cut.append(source.name)
            return


def _besides(rows: pa.Table) -> dict[str, pa.Array]:
    """Return the values that rules may ask for besides the candidates; nulls where a value is not known."""
    return {
        name: rows[name].combine_chunks().cast(kind) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
        for name, kind in BESIDES.items()
    }


def _with_texts(config: BuildConfig, sample: Sample, names: pa.Table | None, scratch: str) -> Sample:
    """Return the sample with the texts of other tables, some of which replace missing captions."""
    joined, joins = [], list(sample.joins)
    new_scratch = partial(open_scratch, scratch, config.run.memory_gb)
    for source in config.sources:
        of_source = sample.candidates.filter(pc.equal(sample.candidates["source"], source.name))
        pq.write_table(of_source, path := f"{scratch}/{source.name}.parquet")
        for entry, captions in enumerate(source.captions, 1):
            with staging(new_scratch) as (sql, folder):
                query, counts = join_captions(sql, folder, [path], source.name, entry, captions)
                repeated = "SELECT text, count(*) AS num_same_text FROM usable GROUP BY text"
                joined.append(sql.sql(f"FROM ({query}) JOIN ({repeated}) USING (text)").to_arrow_table())
            joins.append(describe_join(counts))
    with new_scratch() as sql:
        sql.register("joined", pa.concat_tables(joined))
        measured: list[pa.Table] = []
        candidates = measure_texts(sql, sample.candidates, names, measured.append)
        drawn = {name: candidates[name] for name in ("sample_id", "domain")}
        sql.register("drawn", pa.table(drawn | sample.besides))
        texts = [rows.select(MEASURED_TEXTS.names).cast(MEASURED_TEXTS) for rows in measured]
        sql.register("texts", pa.concat_tables([MEASURED_TEXTS.empty_table(), *texts]))
        rows = sql.sql(_OF_EACH).to_arrow_table()
        judged = sql.sql(number_texts(sql, [(rows, judge_captions(rows, config.caption))])).to_arrow_table()
    filled = rows.filter(rows["is_caption"]).combine_chunks()
    row_of = pc.index_in(candidates["sample_id"].combine_chunks(), value_set=filled["sample_id"].combine_chunks())
    same = pc.coalesce(filled["num_same_text"].combine_chunks().take(row_of), sample.besides["num_same_text"])
    return replace(
        sample,
        candidates=candidates,
        besides=sample.besides | {"num_same_text": same},
        texts=judged,
        joins=tuple(joins),
    )
