"""First step of pack: gather everything the shards need, in shard order, and cut it into shards.

Reads draws, candidates, facts and captions. Writes one table a shard group, with one row group a shard. A mixed release
has one group a split. A stratified release has one group for each domain of the training split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests import tables
from pipeline.captions.settings import TextSettings
from pipeline.captions.texts import EXTRA_CAPTION, choose_texts, members_by_row
from pipeline.runner.work import Execution, PartResult
from pipeline.stages import pack_record as record
from pipeline.store.files import Files
from pipeline.store.sql import view_parquet, view_table
from pipeline.store.tar import BLOCK_BYTES
from pipeline.store.writing import PrivateFile

# What a shard needs of a sample, one row a drawn copy in shard order.
ARRANGED = pa.schema(
    [
        *tables.DRAWS,
        pa.field("txt", pa.string()),
        pa.field("txt_type", pa.string()),
        pa.field("texts", pa.map_(pa.string(), pa.string())),
        pa.field("licence_id", pa.string()),
        tables.CAPTIONS.field("language"),
        *[tables.FACTS.field(name) for name in (*record.FACT_COLUMNS, "pool_file", "offset", "length")],
        *[tables.CANDIDATES.field(name) for name in record.CANDIDATE_COLUMNS],
    ]
)
BATCH_ROWS = 10_000
_JSON_BYTES = 620  # a json member's names, quotes, hashes and sizes, without its other values
_JSON_COLUMNS = (
    "domain", "source", "record_key", "url", "caption", "taxon_scientific_name", "taxon_vernacular_name", "licence_id",
    "creator", "rights_holder", "reference_url", "extra", *(f"taxon_{rank}" for rank in tables.TAXON_RANKS),
)  # fmt: skip
_JOIN = """
    SELECT d.*, {candidates}, {facts}, t.text, t.licence_id, t.language,
        if(x.texts IS NULL, t.texts, map_concat(t.texts, x.texts)) AS texts
    FROM draws d JOIN candidates c USING (sample_id) JOIN facts f USING (sample_id) JOIN captions t USING (sample_id)
    LEFT JOIN extra_texts x USING (sample_id)
    WHERE d.split = $split AND ($domain IS NULL OR d.domain = $domain) ORDER BY d.rank
"""


@dataclass(frozen=True)
class ShardGroup:
    """Shards that are numbered and shuffled together; `domain` is None where they hold all domains."""

    split: str
    domain: str | None = None

    @property
    def table(self) -> str:
        """Name of the group's table of arranged samples."""
        return f"arranged_{self.split}" + (f"_{self.domain}" if self.domain else "")


def shard_groups(kind: str, splits: Iterable[str], domains: Sequence[str]) -> list[ShardGroup]:
    """The groups of a release in the order they are written; `domains` are those that training samples have."""
    groups: list[ShardGroup] = []
    for split in sorted(splits, reverse=True):
        stratified = kind == "stratified" and split == "train"
        groups += [ShardGroup(split, domain) for domain in sorted(domains)] if stratified else [ShardGroup(split)]
    return groups


def cut_shards(sizes: NDArray[np.int64], max_samples: int | None, max_bytes: int | None) -> list[int]:
    """How many samples each shard holds. A shard ends before it passes a limit; a larger sample gets its own shard.

    `sizes` are bytes a sample in shard order, shape (N,); the last shard may be short.
    """
    ends = np.cumsum(sizes)
    counts: list[int] = []
    start = 0
    while start < len(sizes):
        stop = len(sizes) if max_samples is None else min(len(sizes), start + max_samples)
        if max_bytes is not None:
            before = int(ends[start - 1]) if start else 0
            stop = min(stop, max(start + 1, int(np.searchsorted(ends, before + max_bytes, side="right"))))
        counts.append(stop - start)
        start = stop
    return counts


def estimate_bytes(rows: pa.Table, texts: TextSettings) -> NDArray[np.int64]:
    """Bytes that each arranged sample takes in a tar, headers and padding included, within one block or so."""

    def padded(num_bytes: Any) -> Any:
        return BLOCK_BYTES + -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES

    def length(column: str) -> NDArray[np.int64]:
        found: NDArray[np.int64] = pc.fill_null(pc.binary_length(rows[column]), 0).to_numpy().astype(np.int64)
        return found

    total: NDArray[np.int64] = padded(rows["length"].to_numpy().astype(np.int64)) + padded(length("txt"))
    total += padded(np.sum([length(column) for column in _JSON_COLUMNS], axis=0) + _JSON_BYTES)
    members = members_by_row(rows["texts"], texts)
    total += np.array([sum(padded(len(text.encode())) for _, text in each) for each in members], np.int64)
    return total


@dataclass(frozen=True)
class ArrangeInputs:
    """What shards are cut from. Every byte of the facts counts: they say where an image lies in the pool."""

    draws: Files
    candidates: Files
    facts: Files
    captions: Files
    extra_captions: Files
    groups: tuple[ShardGroup, ...]
    texts: TextSettings
    max_samples: int | None
    max_bytes: int | None


def arrange(inputs: ArrangeInputs, run: Execution[None]) -> PartResult:
    """Join all that a shard needs, in shard order; the notes say how many samples each shard holds."""
    columns = {
        "candidates": ", ".join(f'c."{name}"' for name in record.CANDIDATE_COLUMNS),
        "facts": ", ".join(f'f."{name}"' for name in (*record.FACT_COLUMNS, "pool_file", "offset", "length")),
    }
    files: list[PrivateFile] = []
    counts: dict[str, list[int]] = {}
    with run.scratch() as sql:
        for name in ("draws", "candidates", "facts", "captions"):
            view_parquet(sql, name, getattr(inputs, name).paths)
        _gather_extra_captions(sql, inputs.extra_captions)
        for group in inputs.groups:
            path = f"tables/pack/{run.stem}-{group.table.removeprefix('arranged_')}.parquet"
            writer = run.writer(group.table, path, ARRANGED)
            named = {"split": group.split, "domain": group.domain}
            batches = sql.sql(_JOIN.format(**columns), params=named).to_arrow_reader(BATCH_ROWS)
            counts[group.table] = []
            for shard in _shards_of(batches, inputs.texts, inputs.max_samples, inputs.max_bytes):
                writer.write_group(shard)
                counts[group.table].append(shard.num_rows)
            files.append(writer.close())
    return PartResult(tuple(files), None, {"shards": counts})


def _gather_extra_captions(sql: Any, files: Files) -> None:
    """`extra_texts`: captions that dropped duplicates left, a map a sample."""
    view_table(sql, "extra_captions", files, tables.EXTRA_CAPTIONS)
    sql.execute(
        f"CREATE TABLE extra_texts AS SELECT sample_id, map(list('{EXTRA_CAPTION}' || place ORDER BY place), "
        "list(text ORDER BY place)) AS texts FROM extra_captions GROUP BY sample_id"
    )


def _shards_of(
    batches: Iterable[pa.RecordBatch], texts: TextSettings, max_samples: int | None, max_bytes: int | None
) -> Iterator[pa.Table]:
    """Arranged rows, one table a shard; the borders do not depend on how the rows come in batches."""
    waiting = ARRANGED.empty_table()
    sizes = np.zeros(0, np.int64)
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        chosen = choose_texts(rows, texts)
        # no text was chosen: such a sample gets an empty txt member
        rows = rows.append_column("txt", pc.fill_null(chosen["txt"], ""))
        rows = rows.append_column("txt_type", chosen["txt_type"]).select(ARRANGED.names).cast(ARRANGED)
        waiting = pa.concat_tables([waiting, rows])
        if max_bytes is None:
            sizes = np.zeros(waiting.num_rows, np.int64)
        else:
            sizes = np.concatenate([sizes, estimate_bytes(rows, texts)])
        closed = 0
        for num in cut_shards(sizes, max_samples, max_bytes)[:-1]:  # the last one may still grow
            yield waiting.slice(closed, num)
            closed += num
        waiting, sizes = waiting.slice(closed), sizes[closed:]
    if waiting.num_rows:
        yield waiting
