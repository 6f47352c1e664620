"""First steps of pack: gather everything the shards need, put it in shard order, and cut it into shards.

Reads draws, candidates, facts and captions. `gather` joins them by sample, a bucket a part. `arrange` sorts what was
gathered, a range of ranks a part, and writes tables with one row group a shard. A mixed release has one group of shards
a split. A stratified release has one group for each domain of the training split.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.contract import tables
from manifests.contract.reader import literals
from manifests.errors import IntegrityError
from manifests.names.sql import identifier
from manifests.stores.folder import bring_missing
from pipeline.engine.inputs import Inputs
from pipeline.engine.work import Execution, PartResult
from pipeline.judging.captions.settings import TextSettings
from pipeline.judging.captions.texts import EXTRA_CAPTION, choose_texts, member_of, members_of, prefers_captions
from pipeline.stages.pack import record
from pipeline.store.buckets import WHOLE
from pipeline.store.sql import add_empty, empty_columns, read_up_to
from pipeline.store.tar import BLOCK_BYTES

_TEXTS = pa.map_(pa.string(), pa.string())
_RANK_COLUMNS = tuple(f"taxon_{rank}" for rank in tables.TAXON_RANKS)
# What a shard needs of a sample, one row a drawn copy in shard order.
ARRANGED = pa.schema(
    [
        *tables.DRAWS,
        pa.field("txt", pa.string()),
        pa.field("txt_type", pa.string()),
        pa.field("texts", _TEXTS),
        *[tables.MARKS.field(name) for name in record.MARK_COLUMNS],
        *[tables.CAPTIONS.field(name) for name in record.CAPTION_COLUMNS],
        *[tables.FACTS.field(name) for name in (*record.FACT_COLUMNS, "pool_file", "offset", "length")],
        *[tables.CANDIDATES.field(name) for name in record.CANDIDATE_COLUMNS],
    ]
)
BATCH_ROWS = 10_000
GATHERED_GROUP_ROWS = 10_000
_JSON_BYTES = 620  # a json member's names, quotes, hashes and sizes, without its other values
_JSON_COLUMNS = (
    "domain", "source", "record_key", "url", "caption", "taxon_scientific_name", "taxon_vernacular_name", "licence_id",
    "creator", "rights_holder", "reference_url", "extra", "taxon_derived", "marks", *_RANK_COLUMNS,
)  # fmt: skip
GATHERED = ARRANGED.append(pa.field("tar_bytes", pa.int64()))
"""`tar_bytes` is about what a sample takes in a shard, without the headers of its extra text members, which all samples
have alike; 0 where only the number of samples decides where one ends.

A gathered table lacks the columns in which no sample of the build has a value.
"""
ALWAYS_GATHERED = pa.schema([*tables.DRAWS, GATHERED.field("txt"), GATHERED.field("tar_bytes")])
_JOINED = {
    "candidates": record.CANDIDATE_COLUMNS,
    "facts": (*record.FACT_COLUMNS, "pool_file", "offset", "length"),
    "captions": ("text", "text_source", *record.CAPTION_COLUMNS),
}
_OWNERS = {"creator": "file_creator", "rights_holder": "file_rights"}
_NUMBERED = "CREATE TABLE drawn AS SELECT sample_id FROM draws WHERE copy = 0"  # a sample's number is its rowid
_DRAWS = "SELECT d.*, n.rowid AS number FROM draws d JOIN drawn n USING (sample_id) ORDER BY d.split = 'train', d.rank"
_OF_DRAWN = "SELECT n.rowid AS number, {columns} FROM {table} JOIN drawn n USING (sample_id)"
# `texts` become members of a shard, from `choosable` its `txt` is chosen. Others stay here: all texts of all samples
# took a third of the CPU of gather and arrange.
_TEXTS_OF_CAPTIONS = """
    CREATE VIEW captions AS SELECT c.* EXCLUDE (texts), {choosable} AS choosable,
        if(x.more IS NULL, {members}, map_concat({members}, x.more)) AS texts,
        if(c.taxon_derived IS NULL, NULL, map_from_entries(list_filter(map_entries(c.taxon_ranks),
            lambda e: list_contains(string_split(c.taxon_derived, ' '), e.key)))) AS derived
    FROM all_captions c LEFT JOIN extra_texts x USING (sample_id)
"""
_IS_CAPTION = "c.text_source = 'caption'"
_WITHOUT_CAPTION = f"SELECT 1 FROM all_captions c WHERE NOT {_IS_CAPTION} LIMIT 1"
_EXTRA_TEXTS = f"""
    CREATE TABLE extra_texts AS
    SELECT sample_id, map(list(name ORDER BY name), list(text ORDER BY name)) AS more
    FROM (SELECT sample_id, text, coalesce(name, '{EXTRA_CAPTION}' || place) AS name FROM extra_captions)
    WHERE name <> 'caption' GROUP BY sample_id
"""  # the joined text that is called caption is that of its sample
_EXTRA = tables.EXTRA_CAPTIONS.append(tables.JOINED_TEXTS.field("name"))
_TAKEN_ROWS = 10_000
_SAMPLE_BYTES = 300  # what all tables have of a sample, at least where it has three hashes, a URL and a caption


@dataclass(frozen=True)
class ShardGroup:
    """Shards that are numbered and shuffled together; `domain` is None where they hold all domains."""

    split: str
    domain: str | None = None

    @property
    def table(self) -> str:
        """Name of the group's table of arranged samples."""
        return f"arranged_{self.split}" + (f"_{self.domain}" if self.domain else "")

    @property
    def where(self) -> str:
        """SQL that holds for rows of this group."""
        return f"split = {literals([self.split])}" + (f" AND domain = {literals([self.domain])}" if self.domain else "")


@dataclass(frozen=True)
class PlaceRange:
    """Ranks from `first` up to `stop`, which is not part of it; None where a group begins or ends."""

    first: int | None = None
    stop: int | None = None

    @property
    def where(self) -> str:
        """SQL that holds for rows of this range."""
        first, stop = (f"rank {sign} {rank}" for sign, rank in ((">=", self.first), ("<", self.stop)))
        return " AND ".join([first] * (self.first is not None) + [stop] * (self.stop is not None)) or "true"


def shard_groups(kind: str, splits: Iterable[str], domains: Sequence[str]) -> list[ShardGroup]:
    """Return the groups of a release in the order they are written; `domains` are those that training samples have."""
    groups: list[ShardGroup] = []
    for split in sorted(splits, reverse=True):
        stratified = kind == "stratified" and split == "train"
        groups += [ShardGroup(split, domain) for domain in sorted(domains)] if stratified else [ShardGroup(split)]
    return groups


def cut_shards(sizes: NDArray[np.int64], max_samples: int | None, max_bytes: int | None) -> list[int]:
    """Return how many samples each shard holds.

    A shard ends before it passes a limit; a larger sample gets its own shard.

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


def estimate_bytes(rows: pa.Table) -> NDArray[np.int64]:
    """Bytes that each arranged sample takes in a tar, within one block or so, without headers of extra text members."""

    def blocks(num_bytes: Any) -> Any:
        return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES

    def padded(num_bytes: Any) -> Any:
        return BLOCK_BYTES + blocks(num_bytes)

    def length(column: str) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = pc.fill_null(pc.binary_length(rows[column]), 0).to_numpy().astype(np.int64)
        return lengths

    total: NDArray[np.int64] = padded(rows["length"].to_numpy().astype(np.int64)) + padded(length("txt"))
    total += padded(np.sum([length(column) for column in _JSON_COLUMNS], axis=0) + _JSON_BYTES)
    texts = rows["texts"].to_pylist() if members_of(rows["texts"]) else ()
    for number, pairs in enumerate(texts):
        total[number] += sum(blocks(len(text.encode())) for _, text in pairs or ())
    return total


def gather(inputs: Inputs, run: Execution[None], texts: TextSettings, by_bytes: bool) -> PartResult:
    """Join all that a shard needs of the samples of a bucket, and choose their texts; the notes name its members."""
    columns = {name: list(names) for name, names in _JOINED.items()}
    with run.scratch() as sql:
        for name, names in columns.items():
            empty = empty_columns(sql, inputs[name].paths) - {"text", "text_source"}
            columns[name] = [column for column in names if column not in empty]
    if inputs["marks"]:
        columns["facts"] += record.MARK_COLUMNS
    if texts.members or inputs["extra_captions"]:
        columns["captions"].append("texts")
    kept = {column for names in columns.values() for column in names}
    every = (*_JOINED.values(), ("texts",), record.MARK_COLUMNS)
    unread = {name for names in every for name in names if name not in kept}
    without = unread.difference(column for column, of_file in _OWNERS.items() if of_file in kept)
    if "taxon_derived" in kept:
        columns["captions"].append("derived")
        without = without.difference(_RANK_COLUMNS)
    # row groups are small, because a part of `arrange` reads those that hold its ranks
    schema = pa.schema([field for field in GATHERED if field.name not in without])
    writer = run.writer("gathered", run.stem, GATHERED_GROUP_ROWS, schema)
    members = {member_of(name) for name in texts.members}
    for joined in _join(inputs, texts, columns, run):
        rows = _with_owners(_with_derived(add_empty(joined, GATHERED, unread)))
        choosable = rows["choosable"] if "choosable" in rows.column_names else pa.nulls(rows.num_rows, _TEXTS)
        captions = rows.select(["sample_id", "text", "text_source", "domain", "source"])
        chosen = choose_texts(captions.append_column("texts", choosable), texts)
        # no text was chosen: such a sample gets an empty txt member
        rows = rows.append_column("txt", pc.fill_null(chosen["txt"], ""))
        rows = rows.append_column("txt_type", chosen["txt_type"])
        sizes = estimate_bytes(rows) if by_bytes else np.zeros(rows.num_rows, np.int64)
        members |= members_of(rows["texts"])
        writer.write(rows.append_column("tar_bytes", pa.array(sizes)))
    return PartResult((writer.close(),), None, {"members": sorted(members)})


def _with_derived(rows: pa.Table) -> pa.Table:
    """Return the taxa with empty ranks filled from the name or the backbone (`derived`)."""
    if "derived" not in rows.column_names:
        return rows
    for name in _RANK_COLUMNS:
        ranks = pc.map_lookup(rows["derived"].combine_chunks(), name.removeprefix("taxon_"), "first")
        rows = rows.set_column(rows.column_names.index(name), name, pc.coalesce(ranks, rows[name].combine_chunks()))
    return rows.drop_columns("derived")


def _with_owners(rows: pa.Table) -> pa.Table:
    """Creator and rights holder: as the source states them, else as the file of the picture says."""
    for column, of_file in _OWNERS.items():
        stated, of_files = (
            pc.if_else(pc.equal(pc.utf8_trim_whitespace(owners), ""), None, owners)
            for owners in (rows[column].combine_chunks(), rows[of_file].combine_chunks())
        )
        rows = rows.set_column(rows.column_names.index(column), column, pc.coalesce(stated, of_files))
    return rows


def _join(
    inputs: Inputs, texts: TextSettings, columns: Mapping[str, Sequence[str]], run: Execution[None]
) -> Iterator[pa.Table]:
    """Draws in the order of the shuffle, with columns that other tables have of their samples.

    DuckDB finds the rows, then they are taken column by column. In one query it would write whole rows down for each
    join, and once more to sort them. Of a bucket that does not fit the memory, the quarters follow each other, each in
    the order of the shuffle.
    """
    most_bytes = min(int(run.memory_gb * 1e9 / 3), 2**31 - 1)  # two copies in memory; Arrow's texts end at 2 GiB
    waiting = [inputs.bucket or WHOLE]
    while waiting:
        bucket = waiting.pop()
        with run.scratch() as sql:
            some = replace(inputs, bucket=bucket)
            read = _read(sql, some, texts, columns, most_bytes if bucket.quarters else None)
        if read is None:
            waiting += reversed(bucket.quarters)
        else:
            yield from _take(read[0], read[1:])
        del read  # before more is read


def _read(
    sql: Any, inputs: Inputs, texts: TextSettings, columns: Mapping[str, Sequence[str]], most_bytes: int | None
) -> list[pa.Table] | None:
    """Return the draws of a bucket in shuffled order, then each other table's rows for its samples, one a draw.

    `number` says which sample a row is of. None when all takes more than `most_bytes`.

    Raises: IntegrityError when a table has not one row of each drawn sample.
    """
    inputs.view(sql, "draws", "candidates", "marks", facts="measured", captions="all_captions")
    facts, more = "m.*", ""
    if inputs["marks"]:
        facts, more = "m.*, k.* EXCLUDE (sample_id)", "LEFT JOIN marks k USING (sample_id)"
    sql.execute(f"CREATE VIEW facts AS SELECT {facts} FROM measured m {more}")
    columns = {**columns, "captions": [*columns["captions"], *_view_captions(sql, inputs, texts)]}
    sql.execute(_NUMBERED)
    ((num_drawn,),) = sql.execute("SELECT count(*) FROM drawn").fetchall()
    queries = {
        name: _OF_DRAWN.format(columns=", ".join(f"{name}.{identifier(column)}" for column in names), table=name)
        for name, names in columns.items()
    }
    if most_bytes is not None and num_drawn * _SAMPLE_BYTES > most_bytes:
        return None  # before anything is read in vain
    read: list[pa.Table] = []
    for name, query in {"draws": _DRAWS, **queries}.items():
        rows = read_up_to(sql, query, most_bytes and most_bytes - sum(table.nbytes for table in read))
        if rows is None:
            return None
        if name != "draws" and rows.num_rows != num_drawn:
            raise IntegrityError(
                f"{inputs['draws'].paths[0]}: {num_drawn:,} samples of a part are drawn, but {name} has "
                f"{rows.num_rows:,} of them; run `plantmix verify` on the work folder"
            )
        read.append(rows)
    return read


def _view_captions(sql: Any, inputs: Inputs, texts: TextSettings) -> list[str]:
    """`captions`: those of a bucket with the texts that their samples need; returns columns that they need besides."""
    extra, rows = inputs["extra_captions"], "FROM extra_columns"
    sql.register("extra_columns", _EXTRA.empty_table())
    if extra:  # captions of duplicates, and joined texts: tables with unlike columns
        bring_missing(extra.paths)
        scan = f"FROM read_parquet([{literals(extra.paths)}], union_by_name = true)"
        rows += f" UNION ALL BY NAME SELECT * {scan} WHERE {(inputs.bucket or WHOLE).where}"
    sql.execute(f"CREATE VIEW extra_captions AS {rows}")
    sql.execute(_EXTRA_TEXTS)
    picked = f"map_from_entries(list_filter(map_entries(c.texts), lambda e: e.key IN ({literals(texts.members)})))"
    sql.execute(
        _TEXTS_OF_CAPTIONS.format(
            members=picked if texts.members else "MAP([]::VARCHAR[], []::VARCHAR[])",
            choosable=f"if({_IS_CAPTION}, NULL, c.texts)"
            if prefers_captions(texts)
            else "if(x.more IS NULL, c.texts, map_concat(c.texts, x.more))",
        )
    )
    return ["choosable"] if not prefers_captions(texts) or sql.execute(_WITHOUT_CAPTION).fetchall() else []


def _take(draws: pa.Table, others: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """Draws with the columns that other tables have of the sample of the same number, in the order of the draws."""
    numbers = draws["number"].to_numpy()
    sources = []
    for table in others:
        places = np.full(table.num_rows, -1, np.int32)
        places[table["number"].to_numpy()] = np.arange(table.num_rows, dtype=np.int32)
        # of one array, texts are taken in half the time that pieces of a column need
        arrays = {name: table[name].combine_chunks() for name in table.column_names if name != "number"}
        sources.append((places, arrays))
    for start in range(0, len(numbers), _TAKEN_ROWS):
        part = slice(start, start + _TAKEN_ROWS)
        rows = {name: draws[name][part] for name in tables.DRAWS.names}
        for places, arrays in sources:
            taken = pa.array(places[numbers[part]])
            rows |= {name: array.take(taken) for name, array in arrays.items()}
        yield pa.table(rows)


def arrange(
    inputs: Inputs,
    run: Execution[None],
    group: ShardGroup,
    places: PlaceRange,
    max_samples: int | None,
    max_bytes: int | None,
    members: tuple[str, ...],
) -> PartResult:
    """Put gathered rows in shard order, one row group a shard; the notes say how many samples each holds.

    The rows are a range of places in the shuffle of a group, whole shards. `members` are the file names of the extra
    text members that every sample of the release has.
    """
    name = f"{run.stem}-{group.table.removeprefix('arranged_')}"
    writer = run.writer("arranged", name, BATCH_ROWS)  # a row group is a shard
    counts = []
    with run.views(inputs) as sql:
        batches = sql.sql(f"FROM gathered WHERE {group.where} AND {places.where} ORDER BY rank")
        for shard in _shards_of(batches.to_arrow_reader(BATCH_ROWS), max_samples, max_bytes, len(members)):
            writer.write_group(shard)
            counts.append(shard.num_rows)
    file = replace(writer.close(), table=group.table)
    return PartResult((file,), None, {"shards": {group.table: counts}, "members": members})


def _shards_of(
    batches: Iterable[pa.RecordBatch], max_samples: int | None, max_bytes: int | None, num_members: int
) -> Iterator[pa.Table]:
    """Gathered rows, one table a shard; the borders do not depend on how the rows come in batches."""
    waiting = GATHERED.empty_table()
    for batch in batches:
        rows = add_empty(pa.Table.from_batches([batch]), GATHERED, set(GATHERED.names) - set(batch.schema.names))
        waiting = pa.concat_tables([waiting, rows.select(GATHERED.names).cast(GATHERED)])
        closed = 0
        sizes = waiting["tar_bytes"].to_numpy() + BLOCK_BYTES * num_members
        for num in cut_shards(sizes, max_samples, max_bytes)[:-1]:  # the last may still grow
            yield waiting.slice(closed, num).select(ARRANGED.names)
            closed += num
        waiting = waiting.slice(closed)
    if waiting.num_rows:
        yield waiting.select(ARRANGED.names)


def plan_ranges(
    sql: Any, group: ShardGroup, max_samples: int | None, max_bytes: int | None, num_members: int, most_rows: int
) -> list[PlaceRange]:
    """Ranges of ranks that hold whole shards of a group and about `most_rows` rows, over a view `gathered`."""
    ((num_rows,),) = sql.execute(f"SELECT count(*) FROM gathered WHERE {group.where}").fetchall()
    if num_rows <= most_rows:
        return [PlaceRange()]
    if max_bytes is None and group.domain is None:  # the ranks of a split are 0, 1, 2, ...
        ranks, sizes = np.arange(num_rows), np.zeros(num_rows, np.int64)
    else:
        rows = sql.sql(f"SELECT rank, tar_bytes FROM gathered WHERE {group.where} ORDER BY rank").to_arrow_table()
        ranks, sizes = rows["rank"].to_numpy(), rows["tar_bytes"].to_numpy() + BLOCK_BYTES * num_members
    ends = np.cumsum(cut_shards(sizes, max_samples, max_bytes))
    last = np.flatnonzero(np.diff(np.append((ends - 1) // most_rows, -1)))  # the last shard of each range
    borders = [None, *(int(ranks[end]) for end in ends[last][:-1]), None]
    return [PlaceRange(first, stop) for first, stop in itertools.pairwise(borders)]
