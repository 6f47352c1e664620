"""`plantmix audit`: was a test set in the training data of a model? By tables alone; no picture is fetched.

Compares addresses, ids and hashes in DuckDB: it holds the keys of the test set, and the catalogue streams past them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from manifests.contract.reader import literals
from manifests.errors import ConfigError
from pipeline.answers.tables import aligned, print_lines
from pipeline.commands import Commands, add_command

ADDRESSES = ("url", "sourceurl", "imageurl", "identifier", "accessuri")
SAME = ("treeoflifeid", "uuid", "sha256", "md5")  # each names one thing in any table
CLASSES = ("label", "species", "scientificname", "category")
MEMORY_GB = 1.5


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `audit` to the command line."""
    parser = add_command(
        commands,
        "audit",
        "find the rows of a test set that were in the training data of a model",
        "plantmix audit test.csv --against catalog.parquet --out audited.csv",
        reads="two tables, csv or Parquet, with columns such as url, uuid, sha256",
        writes="CSV: the rows of TEST; `leak` says what is the same in CATALOGUE, and is empty for a clean row",
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
    from manifests.names.addresses import address_key
    from pipeline.sources.settings import KINDS

    names = list(dict.fromkeys((*(name for kind in KINDS.values() for name in kind.ids), *SAME)))
    (ours, our_table), (theirs, their_table) = _open(sql, test), _open(sql, catalogue)
    both = [(a, b) for a in ADDRESSES for b in ADDRESSES if a in ours and b in theirs]
    pairs = [("address", address_key(ours[a]), address_key(theirs[b])) for a, b in both]
    same = [name for name in names if name in ours and name in theirs]
    pairs += [(name, f"nullif(lower({ours[name]}), '')", f"nullif(lower({theirs[name]}), '')") for name in same]
    if not pairs:
        known = ", ".join((*ADDRESSES, *names))
        raise ConfigError(f"audit: {test} and {catalogue} share no column of {known} (case and _ do not count)")
    sql.execute(f"CREATE TABLE test AS SELECT row_number() OVER () AS audited, * FROM {our_table}")
    sql.execute("CREATE TABLE leaks (audited BIGINT, leak VARCHAR)")
    for leak, our_key, their_key in pairs:
        sql.execute(
            f"INSERT INTO leaks SELECT DISTINCT audited, '{leak}' FROM (SELECT {their_key} AS key FROM {their_table}) "
            f"JOIN (SELECT audited, {our_key} AS key FROM test) USING (key)"
        )
    sql.execute(
        "CREATE TABLE audited AS SELECT coalesce(l.leak, '') AS leak, test.* EXCLUDE audited FROM test LEFT JOIN "
        "(SELECT audited, string_agg(DISTINCT leak, ', ' ORDER BY leak) AS leak FROM leaks GROUP BY ALL) l "
        "USING (audited) ORDER BY audited"
    )
    counts = "SELECT {}, count(*), count(*) FILTER (leak <> '') FROM audited GROUP BY 1 ORDER BY 3 DESC, 1"
    leaks = sql.execute(counts.format("leak")).fetchall()
    column = next((ours[name] for name in CLASSES if name in ours), "'all'")
    num, leaked = (sum(row[at] for row in leaks) for at in (1, 2))
    return [
        f"{leaked:,} of {num:,} rows of {test} are in {catalogue}",
        f"compared by {', '.join(dict.fromkeys(pair[0] for pair in pairs))}; copies under other names are not found",
        *aligned(("leak", ">rows"), [row[:2] for row in leaks if row[2]]),
        *aligned(("class", ">rows", ">leaks"), sql.execute(counts.format(column)).fetchall()),
    ]


def _open(sql: Any, path: str) -> tuple[dict[str, str], str]:
    """Columns of a table as SQL texts, by their names in small letters without `_`; and the table."""
    import duckdb

    parquet = path.lower().endswith((".parquet", ".pq"))
    table = f"read_parquet({literals([path])})" if parquet else f"read_csv({literals([path])}, all_varchar = true)"
    try:
        names = [row[0] for row in sql.execute(f"DESCRIBE FROM {table}").fetchall()]
    except duckdb.Error as error:
        raise ConfigError(f"audit: {path} cannot be read: {str(error).splitlines()[0]}") from None
    return {name.lower().replace("_", ""): '"' + name.replace('"', '""') + '"::VARCHAR' for name in names}, table
