"""The steps of fetch for pictures that lie on this machine: candidates with a locator, in the order in which they lie.

Reads candidates and, through pipeline/fetching/local.py, the files of the sources. Writes pool tars and the facts of
each part, as the download step does. Content that was measured under the same image settings is not read again, except
by `plantmix retry` where the file was missing or unreadable.

A picture is known by its content. Before fetch is named, stamps of all files are compared with the stored ones
(manifests/contract/records.py), and files that have changed are hashed. A picture that was never read is not read for
this: the step that decodes it hashes it too, and `learn` completes what was known before. Memory: the names of all
files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract import tables
from manifests.contract.records import Funnel, PartRecord
from manifests.contract.takedowns import standing_list
from manifests.stores import storage
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, StageRun, Step, files_in
from pipeline.fetching.local import read_local
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.sources.files import LocalReader
from pipeline.sources.reading import looked_at, pictures_of, places_of, root_of
from pipeline.sources.settings import Origin
from pipeline.sources.tars.samples import SAMPLES
from pipeline.stages.fetch.rounds import (
    FetchedFiles,
    FetchInputs,
    PicturesInputs,
    not_listed,
    rows_to_fetch,
    view_fetched,
)
from pipeline.store.buckets import Bucket
from pipeline.store.files import RowGroup
from pipeline.store.sql import cut_rows, facet, open_scratch, view_parquet, view_table
from pipeline.store.writing import private_pool

VERSION = 6
NOTED = pa.schema([(name, pa.string()) for name in ("place", "stamp", "sha256")])
"""What a part has read, for the build after one that was killed. No fingerprint sees it."""
ADDRESSES = pa.schema([("sample_id", pa.string()), ("address", pa.string())])
_NAME = "regexp_extract(c.locator, '^(.*)@[0-9]+[+][0-9]+$', 1, 's')"
_IS_WHOLE = "regexp_matches(c.locator, '@0[+][0-9]+$')"  # in a tar a header comes first; rows of Parquet begin at 1
_WAS_READ = "p.sample_id = c.sample_id AND starts_with(p.url, c.locator || '#')"


def read(inputs: PicturesInputs, run: Execution[dict[str, LocalReader]]) -> PartResult:
    """Measure the pictures of one part into a pool tar and a table of facts; `run.how` reads those of each source."""
    todo = inputs.rows.read()
    rows = list(zip(*(todo[name].to_pylist() for name in ("sample_id", "source", "locator", "seen")), strict=True))
    temp = new_pool_file(run)
    facts, addresses = read_local(rows, run.how, inputs.image, temp)
    result = finish(facts, addresses, {"round": inputs.round}, temp, run.stem, run)
    hashes = [addresses[sample_id].rpartition("#")[2] for sample_id in todo["sample_id"].to_pylist()]
    noted = (
        todo.select(["file", "stamp"])
        .rename_columns(NOTED.names[:2])
        .append_column("sha256", pa.array(hashes, pa.string()))
    )
    noted = noted.filter(pc.is_valid(noted["stamp"]))  # of a tar ingest knows the content
    return replace(result, files=(*result.files, run.write("stamps", noted)))


def new_pool_file(run: Execution[Any]) -> str:
    """Return a private name to write a pool file under."""
    storage.make_folder(storage.join(run.workdir, "pool"))
    return storage.temp_path(storage.join(run.workdir, f"pool/{run.stem}.tar"))


def finish(
    facts: pa.Table,
    addresses: Mapping[str, str],
    notes: Mapping[str, Any],
    temp: str,
    name: str,
    run: Execution[Any],
    is_piece: bool = False,
) -> PartResult:
    """Return the result of a part, or of a piece of one, whose files will be called `name`.

    It is the pool file, written as `temp`, and the facts with pool file, address (URL or locator) and the round that
    the notes name. To the notes come the first and the last of its ids.
    """
    names = [f"{name}.tar" if offset is not None else None for offset in facts["offset"].to_pylist()]
    facts = facts.set_column(facts.schema.get_field_index("pool_file"), "pool_file", pa.array(names, pa.string()))
    address = pa.array([addresses[sample_id] for sample_id in facts["sample_id"].to_pylist()], pa.string())
    facts = facts.append_column("url", address)
    facts = facts.append_column("round", pa.array([notes["round"]] * facts.num_rows, pa.int32()))
    table = run.write("fetched", facts, name)
    counts = {entry["values"]: entry["counts"] for entry in facts["outcome"].value_counts().to_pylist()}
    num_ok = counts.pop("ok", 0)
    pool = private_pool(f"pool/{name}.tar", temp, num_ok)
    if facts.num_rows:
        notes = {**notes, "ids": list(pc.min_max(facts["sample_id"]).as_py().values())}
    return PartResult((pool, table), Funnel(facts.num_rows, num_ok, counts), notes, is_piece)


def _plan(inputs: FetchInputs, run: StageRun[dict[str, LocalReader]]) -> Sequence[Part[PicturesInputs]]:
    """Return the rows that no part has measured, cut into parts of equal length, pictures of one file together."""
    if inputs.local is None:
        return []
    columns = "sample_id, source, locator, row_number, seen, address, file, stamp"
    pictures = standing_list(run.catalog.workdir, run.catalog.ask).pictures
    with run.scratch() as sql:
        view_parquet(sql, "rows", inputs.candidates.paths)
        view_parquet(sql, "looked", [inputs.local.path])
        sql.execute(
            "CREATE VIEW candidates AS SELECT r.*, l.place AS file, l.stamp, l.address AS seen, "
            "coalesce(l.address, r.locator) AS address FROM rows r JOIN looked l USING (sample_id)"
        )
        view_fetched(sql, [FetchedFiles(run.files_of(_measured(inputs, run), "fetched"), ())], inputs.consent)
        groups = cut_rows(
            sql,
            rows_to_fetch(run.fetch_round, columns, not_listed(sql, pictures)),
            "source, row_number",
            "sample_id || chr(31) || address",
            run.scratch_file("local-todo.parquet"),
            run.settings.fetch_part_size,
        )
    reuse = _reuse(inputs.image)
    return [Part(PicturesInputs(rows, inputs.image, (), inputs.round), reuse, num_rows) for rows, num_rows in groups]


def _reuse(image: ImageSettings) -> tuple[ImageSettings, tuple[()]]:
    return image, ()  # no setting of consent decides what is measured; parts of 0.4.0 have this name


def stored_as(image: ImageSettings) -> str:
    """Return the name of facts of local pictures that this version measures in this way."""
    return STEP.reuse_key(_reuse(image))


def _measured(inputs: FetchInputs, run: StageRun[Any]) -> Sequence[PartRecord]:
    """Also what ingest has measured of tars that it read."""
    name, made = stored_as(inputs.image), run.made_of("local", _reuse(inputs.image))
    passed = [part for part in run.catalog.parts_like("ingest", "tars") if part.notes["stored_as"] == name]
    return [part for part in [*made, *passed] if part.notes["round"] <= inputs.round]


def _readers(context: BuildContext) -> dict[str, LocalReader]:
    return {source.name: reader for source in context.config.sources if (reader := pictures_of(source)) is not None}


# ---- which content the pictures have


def look_at_candidates(context: BuildContext) -> RowGroup | None:
    """Return the address (`address_of`) of each candidate with a locator; null where nobody has read the picture yet.

    None where no source has local pictures.
    """
    origins = [source for source in context.config.sources if root_of(source) is not None]
    if not origins:
        return None
    stamps = context.catalog.stamps
    with open_scratch(context.workdir, context.config.run.memory_gb) as sql:
        view_parquet(sql, "candidates", context.files("ingest", "candidates").paths, "locator IS NOT NULL")
        sql.execute(
            f"CREATE TABLE named AS SELECT source, {_NAME} AS name, {_IS_WHOLE} AS whole FROM candidates c GROUP BY ALL"
        )
        passed = files_in(context.workdir, context.catalog.parts_of(context.sealed["ingest"].fingerprint), "samples")
        view_table(sql, "passed", context.require(passed), SAMPLES)
        sql.execute("CREATE TABLE passed_tars AS SELECT DISTINCT source, tar AS name FROM passed")
        sql.register("tars", pa.concat_tables([_tars(context, origin, sql) for origin in origins]))
        looked = pa.concat_tables([looked_at(origin, _names(sql, origin, "whole")) for origin in origins])
        sql.register("files", stamps.stored(looked))
        sql.execute("CREATE TABLE read_before AS SELECT place FROM files WHERE stored")
        sql.execute("CREATE TABLE noted (place VARCHAR, stamp VARCHAR, sha256 VARCHAR)")
        if sql.sql("FROM files WHERE NOT stored LIMIT 1").fetchall():  # of a build that was killed, or a lost catalogue
            parts = files_in(context.workdir, context.catalog.parts_like("fetch", "local"), "stamps")
            view_table(sql, "of_parts", context.require(parts), NOTED)
            sql.execute("INSERT INTO read_before SELECT DISTINCT place FROM of_parts")
            sql.execute(
                "INSERT INTO noted SELECT place, stamp, max(p.sha256) FROM of_parts p JOIN files f "
                "USING (place, stamp) WHERE NOT f.stored GROUP BY ALL HAVING min(p.sha256) = max(p.sha256)"
            )
            stamps.keep(sql.sql("FROM noted").to_arrow_table())
        changed = sql.sql(
            "FROM files SEMI JOIN read_before USING (place) ANTI JOIN noted USING (place) WHERE sha256 IS NULL"
        ).to_arrow_table()
        sql.register("hashed", stamps.hash_files(changed))
        return _written(
            context.workdir,
            "local-looked",
            sql,
            "SELECT sample_id, locator, place, f.stamp, "
            "locator || '#' || coalesce(s.sha256, t.sha256, h.sha256, n.sha256, f.sha256) AS address "
            f"FROM (SELECT sample_id, source, locator, {_place(origins)} AS place FROM candidates c) "
            "LEFT JOIN (SELECT source, locator, any_value(sha256) AS sha256 FROM passed GROUP BY ALL) s "
            "USING (source, locator) "
            "LEFT JOIN tars t USING (place) LEFT JOIN files f USING (place) LEFT JOIN hashed h USING (place) "
            "LEFT JOIN noted n USING (place)",
        )


def learn(inputs: FetchInputs, run: StageRun[Any]) -> FetchInputs:
    """Return the same inputs, with the addresses of pictures that the local step has read for the first time."""
    if inputs.local is None:
        return inputs
    with run.scratch() as sql:
        view_parquet(sql, "looked", [inputs.local.path])
        if not sql.sql("FROM looked WHERE address IS NULL LIMIT 1").fetchall():
            return inputs
        view_table(sql, "p", run.files("local", "fetched"), tables.FETCHED)
        sql.execute(
            "CREATE TABLE learnt AS SELECT c.sample_id, c.place, any_value(c.stamp) AS stamp, max(p.url) AS address "
            f"FROM looked c JOIN p ON {_WAS_READ} WHERE c.address IS NULL GROUP BY c.sample_id, c.place"
        )
        run.catalog.stamps.keep(
            sql.sql(
                "SELECT place, any_value(stamp) AS stamp, max(regexp_extract(address, '[^#]*$')) AS sha256 FROM learnt "
                "GROUP BY place HAVING min(regexp_extract(address, '[^#]*$')) = max(regexp_extract(address, '[^#]*$'))"
            ).to_arrow_table()
        )
        rows = (
            "SELECT l.* REPLACE (coalesce(l.address, n.address) AS address) "
            "FROM looked l LEFT JOIN learnt n USING (sample_id)"
        )
        return replace(inputs, local=_written(run.workdir, "local-learnt", sql, rows))


def cut_addresses(inputs: FetchInputs, run: StageRun[Any], buckets: Sequence[Bucket]) -> list[RowGroup | None]:
    """Return the addresses of local pictures, a row group a bucket."""
    if inputs.local is None:
        return [None] * len(buckets)
    path = run.scratch_file("local-cut.parquet")
    groups: list[RowGroup | None] = []
    with run.scratch() as sql:
        view_parquet(sql, "learnt", [inputs.local.path])
        with pq.ParquetWriter(path, ADDRESSES, compression="lz4") as writer:
            for number, bucket in enumerate(buckets):
                rows = f"(SELECT sample_id, address FROM learnt WHERE {bucket.where})"
                groups.append(RowGroup(path, number, facet(sql, ADDRESSES.names, rows)))
                some = sql.sql(f"FROM {rows} ORDER BY sample_id").to_arrow_table().cast(ADDRESSES)
                writer.write_table(some, row_group_size=max(1, some.num_rows))
    return groups


def _names(sql: Any, origin: Origin, which: str) -> list[str]:
    rows = sql.execute(f"SELECT name FROM named WHERE source = ? AND {which} ORDER BY name", [origin.name]).fetchall()
    return [name for (name,) in rows]


def _place(origins: Sequence[Origin]) -> str:
    """Return SQL for what `_place_of` gives, for the file that a candidate lies in."""
    (prefix,) = {origin.section for origin in origins}
    return f"'{prefix}.' || c.source || '/' || {_NAME}"


def _tars(context: BuildContext, origin: Origin, sql: Any) -> pa.Table:
    """Return the tars that hold many pictures, with the sha256 that ingest took; what it read itself is left out."""
    of_ingest = "(source, name) NOT IN (SELECT (source, name) FROM passed_tars)"
    names, root = _names(sql, origin, f"NOT whole AND {of_ingest}"), root_of(origin) or ""
    hashes = [context.catalog.input_sha256(storage.join(root, name)) for name in names]
    return pa.table({"place": places_of(origin, names), "sha256": pa.array(hashes, pa.string())})


def _written(workdir: str, name: str, sql: Any, query: str) -> RowGroup:
    """Return the rows of a query in a scratch file, which a fingerprint sees by their ids and addresses."""
    path = storage.join(workdir, "scratch", f"{name}.parquet")
    sql.execute(f"CREATE TABLE written AS FROM ({query})")
    pq.write_table(sql.sql("FROM written ORDER BY sample_id").to_arrow_table(), path, compression="lz4")
    return RowGroup(path, 0, facet(sql, ADDRESSES.names, "written"))


STEP = Step(
    "local",
    read,
    version=VERSION,
    gives=("fetched", "stamps"),
    plan=_plan,
    how=_readers,
    unit="images",
    committed=_measured,
    learns=learn,
)
