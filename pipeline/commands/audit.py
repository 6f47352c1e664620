"""`plantmix audit`: was a test set in the training data of a model? By tables alone; no picture is fetched.

Reads tables as sources do, and compares addresses, ids and hashes in DuckDB: it holds the test set, and the catalogue
streams past its keys.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.errors import ConfigError
from manifests.names.sql import identifier
from pipeline.answers.tables import aligned, print_lines
from pipeline.commands import Commands, add_command

if TYPE_CHECKING:
    import pyarrow as pa

ADDRESSES = ("url", "sourceurl", "imageurl", "identifier", "accessuri")
SAME = ("treeoflifeid", "uuid", "sha256", "md5")  # each names one thing in any table
CLASSES = ("label", "species", "scientificname", "category")
MEMORY_GB = 1.5
UNKNOWN = "not compared"  # stands in `leak` for a row that names no picture
_BATCHES = 10  # of a reader, compared at once
_NUMBERED = "(SELECT row_number() OVER () AS audited, * FROM {})"
_NO_VALUES = "('', '-', '?', 'na', 'n/a', '#n/a', 'nan', 'nil', 'none', 'null', 'unknown', 'missing')"
_ID = r"regexp_replace(lower(text), '^([0-9]+)\.0+$', '\1')"  # tables of numbers write an id as 4011234567.0


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `audit` to the command line."""
    parser = add_command(
        commands,
        "audit",
        "find the rows of a test set that were in the training data of a model",
        "plantmix audit test.csv --against catalog.parquet --out audited.csv",
        reads="two tables, as sources may have them, with columns such as url, uuid, sha256",
        writes="CSV: the rows of TEST; `leak` says what is the same in CATALOGUE, is empty for a clean row, and "
        "`not compared` for one without an address or id",
    )
    parser.add_argument("test", metavar="TEST", help="table of the test set")
    parser.add_argument("--against", metavar="CATALOGUE", required=True, help="table, or 'DIR/*.parquet'")
    parser.add_argument("--out", metavar="CSV", required=True, help="what is written")
    parser.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    from manifests.contract.release import require_output
    from manifests.stores.storage import write_file
    from pipeline.store.sql import open_scratch

    require_output(args.out, lambda content: content.startswith(b"leak,"))
    with tempfile.TemporaryDirectory(prefix="plantmix-audit-") as folder, open_scratch(folder, MEMORY_GB) as sql:
        lines = audit(sql, args.test, args.against)
        sql.sql("FROM audited").write_csv(f"{folder}/audited.csv")
        write_file(args.out, Path(folder, "audited.csv").read_bytes())
    print_lines(lines)
    return 0


def audit(sql: Any, test: str, catalogue: str) -> list[str]:
    """Fill the table `audited`, the rows of the test set with a column `leak`; gives what a person reads of it.

    Raises: ConfigError for a table that cannot be read, and for two tables that share no column.
    """
    import pyarrow as pa

    from pipeline.sources.reading import files_of_table
    from pipeline.sources.rows import in_batches
    from pipeline.sources.settings import KINDS

    ids = list(dict.fromkeys((*(name for kind in KINDS.values() for name in kind.ids), *SAME)))
    kinds = dict.fromkeys(ADDRESSES, "address") | {name: name for name in ids}
    tested = files_of_table(test, "audit")
    theirs = files_of_table(catalogue, "audit", lambda name: plain(name) in kinds)
    both = {kinds[plain(name)] for table in theirs for name in table.columns}
    both &= {kinds[plain(name)] for table in tested for name in table.columns if plain(name) in kinds}
    if not both:
        known = ", ".join(kinds)
        raise ConfigError(f"audit: {test} and {catalogue} share no column of {known} (case and _ do not count)")
    kinds = {name: kind for name, kind in kinds.items() if kind in both}
    no_rows = pa.table({name: pa.array([], pa.string()) for table in tested for name in table.columns})
    batches = [raw for table in tested for raw in table.batches()]
    rows = pa.concat_tables([no_rows, *(raw.rows for raw in batches)], promote_options="default")
    sql.register("rows", rows)
    sql.register("trimmed", _trimmed(rows))
    sql.execute(f"CREATE TABLE test AS FROM {_NUMBERED.format('rows')}")
    ours = [row[0] for row in sql.execute("DESCRIBE test").fetchall()[1:]]
    of_test = _keys(_NUMBERED.format("trimmed"), ours, kinds, "audited, ")
    sql.execute(f"CREATE TABLE keys AS FROM ({of_test}) WHERE key IS NOT NULL")
    sql.execute("CREATE TABLE leaks (audited BIGINT, leak VARCHAR)")
    unread = {test: sum(len(raw.malformed) for raw in batches), catalogue: 0}
    for table in theirs:
        for some in in_batches(table.batches(), _BATCHES):
            sql.register("part", _trimmed(pa.concat_tables([raw.rows for raw in some])))
            if of_part := _keys("part", table.columns, kinds):
                sql.execute(f"INSERT INTO leaks SELECT audited, leak FROM ({of_part}) JOIN keys USING (leak, key)")
            unread[catalogue] += sum(len(raw.malformed) for raw in some)
    sql.execute(
        f"CREATE TABLE audited AS SELECT coalesce(l.leak, if(audited IN (SELECT audited FROM keys), '', '{UNKNOWN}')) "
        "AS leak, test.* EXCLUDE audited FROM test LEFT JOIN "
        "(SELECT audited, string_agg(DISTINCT leak, ', ' ORDER BY leak) AS leak FROM leaks GROUP BY ALL) l "
        "USING (audited) ORDER BY audited"
    )
    is_leak = f"leak NOT IN ('', '{UNKNOWN}')"
    counts = f"SELECT {{}}, count(*), count(*) FILTER ({is_leak}) FROM audited GROUP BY 1 ORDER BY 3 DESC, 1"
    leaks = sql.execute(counts.format("leak")).fetchall()
    column = next((identifier(name) for known in CLASSES for name in ours if plain(name) == known), "'all'")
    num, leaked = (sum(row[at] for row in leaks) for at in (1, 2))
    num_unknown = sum(row[1] for row in leaks if row[0] == UNKNOWN)
    names = ", ".join(dict.fromkeys(kinds.values()))
    return [
        f"{leaked:,} of {num:,} rows of {test} are in {catalogue}",
        f"compared by {names}; copies under other names are not found",
        *([f"{num_unknown:,} rows could not be compared: they state none of {names}"] if num_unknown else []),
        *(f"{num:,} rows of {path} cannot be read, and were not compared" for path, num in unread.items() if num),
        *aligned(("leak", ">rows"), [row[:2] for row in leaks if row[2]]),
        *aligned(("class", ">rows", ">leaks"), sql.execute(counts.format(column)).fetchall()),
    ]


def plain(name: str) -> str:
    """Return the name of a column in small letters without `_`."""
    return name.lower().replace("_", "")


def _trimmed(rows: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.table([pc.utf8_trim_whitespace(column) for column in rows.columns], rows.column_names)


def _keys(table: str, columns: Sequence[str], kinds: Mapping[str, str], number: str = "") -> str:
    """Return SQL of one row a value that names a picture: its kind and its normal form."""
    from manifests.names.addresses import address_key

    return " UNION ALL ".join(
        f"SELECT {number}'{kind}' AS leak, {address_key('text') if kind == 'address' else _ID} AS key "
        f"FROM (SELECT {number}{identifier(name)} AS text FROM {table}) WHERE lower(text) NOT IN {_NO_VALUES}"
        for name in columns
        if (kind := kinds.get(plain(name)))
    )
