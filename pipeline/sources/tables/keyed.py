"""Rows of another table found for the rows of a source by a key: keys first, values by row number after.

The table is staged on disk. DuckDB pairs the numbers of its rows with those of the source; that is narrow, so it fits
where the values would not. Who needs values takes them by row number from `partners`. It spills to disk, and memory
does not grow with either side: 13 M rows by a table of 10 M with ten columns took 3.9 GB at a limit of 4, and 79 s of
CPU (2026-12-01). Pure but for a private folder. What finds no partner is counted, and `fault_of` says
when the counts make no sense.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from manifests.contract.reader import rows_of
from manifests.contract.settings import Settings
from manifests.masking import hide_secrets
from manifests.names.sql import json_text
from pipeline.sources.table import SheetOfTable, TableReader
from pipeline.sources.tables.joining import StagedTable, view_staged

_WITH_TAR = "join by record_key where the table has the tar too, as TAR/KEY"
MAX_TEXTS = 100  # of one key: a column that tells pictures apart has fewer, and the join stays small
KEYS_OF_SAMPLES = ("record_key", "extra.__key__", "extra.json.key", "extra.parquet.key")
"""What `on` may say that names a picture. In tars it may name several: then a row is for nobody knows which."""
_LOST = ("without_key", "without_text", "malformed", "differ_in_blanks_from_another_key")
# blanks do not count, but where the table has the key without them too
_USABLE = """
    CREATE OR REPLACE TABLE shared AS {shared};
    CREATE OR REPLACE TABLE others AS SELECT DISTINCT key FROM partners SEMI JOIN
        (FROM partners WHERE spelt IS NOT NULL) USING (key) WHERE spelt IS NULL;
    CREATE OR REPLACE VIEW usable AS SELECT * FROM partners WHERE key <> '' AND {is_usable}
        AND key NOT IN (FROM shared) AND (spelt IS NULL OR key NOT IN (FROM others));
    CREATE OR REPLACE TABLE repeated AS
        SELECT key, count(*) AS num, min(n) AS first FROM usable GROUP BY key HAVING count(*) > 1;
"""
_COUNTS = """
    SELECT count(*) AS num_rows, count(*) FILTER (coalesce(key, '') = '') AS without_key,
        count(*) FILTER (NOT {is_usable}) AS without_text,
        min(left(nullif(key, ''), 80), 3) AS keys_of_rows,
        (SELECT min(left(nullif(key, ''), 80), 3) FROM pictures) AS keys_of_pictures,
        (SELECT count(*) FROM pictures) AS num_pictures,
        (SELECT count(DISTINCT id) FROM pairs) AS num_joined
    FROM partners
"""
_MOST = "SELECT max({'num': num, 'key': left(key, 80)}) AS most FROM pictures JOIN repeated USING (key)"
_SHARED = """
    SELECT count(*) AS num_sharing, min(left(key, 80)) AS shared_key FROM pictures SEMI JOIN shared USING (key)
"""


class JoinedTable(Settings):
    """A table whose rows belong to the pictures of a source."""

    on: Annotated[dict[str, str], Field(min_length=1, max_length=1)]
    """What tells which picture a row is for: `record_key`, `url`, or `extra.NAME` of a column that the source keeps.
    The column of the table has the same name (NAME); else write `{extra.NAME: COLUMN}`."""
    sheet: SheetOfTable = None
    """Of a workbook: as for a table of addresses."""

    section: ClassVar[str]
    """Its key in a source, as messages name it."""
    gives: ClassVar[str]
    """What a picture gets of it."""

    @model_validator(mode="before")
    @classmethod
    def _as_pair(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {
            "on" if key is True else key: value for key, value in values.items()
        }  # YAML reads the key `on` as true
        on = values.get("on")
        return values | ({"on": {on: on.removeprefix("extra.")}} if isinstance(on, str) else {})

    @model_validator(mode="after")
    def _names_a_key(self) -> JoinedTable:
        if self.key not in ("record_key", "url") and not re.match(r"extra\..", self.key):
            raise ValueError(f"on: a source has no '{self.key}'; write record_key, url, or extra.NAME")
        return self

    @property
    @abstractmethod
    def path(self) -> str:
        """The table: a file, a folder of them, or a glob."""

    @property
    @abstractmethod
    def values(self) -> list[str]:
        """The columns of the table that are read besides its key."""

    @property
    def key(self) -> str:
        """The source's side of `on`."""
        return next(iter(self.on))

    @property
    def column(self) -> str:
        """The column of the table that must equal it."""
        return self.on[self.key]

    @property
    def extra_name(self) -> str | None:
        """The column that the source must keep, where it is joined by one."""
        return self.key.removeprefix("extra.") if self.key.startswith("extra.") else None

    def sql_of_key(self) -> str:
        """Return SQL of the source's side, in rows of the contract."""
        return f"trim({self.key})" if self.extra_name is None else f"trim({sql_of_extra(self.extra_name)})"

    def reader(self, where: str) -> TableReader:
        """Return a reader of the table; `where` names it in messages."""
        return TableReader.of(where, self.path, [self.column, *self.values], sheet=self.sheet)


def sql_of_extra(name: str) -> str:
    """Return SQL of a value in the json of the column `extra`."""
    return json_text("extra", name)


def stage_partners(
    sql: Any,
    folder: str,
    table: TableReader,
    names: Sequence[str],
    values: Callable[[pa.Table], Mapping[str, Any]],
    clean: Callable[[pa.ChunkedArray], pa.ChunkedArray] = lambda keys: keys,
) -> dict[str, int]:
    """Stage the view `partners` (n, key, spelt, and `names` as `values` gives them of rows); counts odd rows.

    The first column of the table is its key, which `clean` writes as the source's are. `spelt` is the key as it stands
    where blanks are around it, and null elsewhere.
    """
    num_malformed = num_trimmed = 0
    with StagedTable(folder, "partners", ("key", "spelt", *names)) as staged:
        for raw in table.batches():
            given = raw.rows[table.columns[0]]
            keys = clean(trimmed := pc.utf8_trim_whitespace(given))
            spelt = pc.if_else(pc.not_equal(given, trimmed), given, None)
            num_trimmed += len(spelt) - spelt.null_count
            staged.write(raw.numbers, {"key": keys, "spelt": spelt, **values(raw.rows)})
            num_malformed += len(raw.malformed)
    view_staged(sql, staged)
    return {"malformed": num_malformed, "trimmed": num_trimmed}


def keys_that_share(joined: JoinedTable, may_share: bool = True) -> str:
    """Return SQL of the keys of the view `pictures` that should name one picture, and name several."""
    named = may_share and joined.key in KEYS_OF_SAMPLES
    return f"SELECT key FROM pictures WHERE {named} AND key <> '' GROUP BY key HAVING count(*) > 1"


def pair_rows(sql: Any, odd: Mapping[str, int], shared: str, is_usable: str = "true", once: bool = False) -> Any:
    """Make the table `pairs` (id, n) of the views `pictures` (id, key) and `partners`; gives counts of both sides.

    `shared` is SQL of the keys that name several pictures, and so none. Rows that are not `is_usable` have no partner.
    `once`: of several rows with one key the first is the partner; else all are, up to MAX_TEXTS.
    """
    sql.execute(_USABLE.format(shared=shared, is_usable=is_usable))
    (most,) = rows_of(sql, _MOST)
    fits = once or (most["most"] or {"num": 0})["num"] <= MAX_TEXTS
    first = "LEFT JOIN repeated USING (key) WHERE first IS NULL OR first = n" if once else ""
    sql.execute(
        f"CREATE OR REPLACE TABLE pairs AS SELECT id, n FROM pictures "
        f"JOIN (SELECT key, n FROM usable {first}) USING (key) WHERE {'true' if fits else 'false'}"
    )
    (counts,) = rows_of(sql, _COUNTS.format(is_usable=is_usable))
    (of_shared,) = rows_of(sql, _SHARED)
    ((num_other,),) = sql.execute("SELECT count(spelt) FROM partners SEMI JOIN others USING (key)").fetchall()
    counts |= most | (of_shared if of_shared["num_sharing"] else {})
    counts |= {**odd, "trimmed": odd["trimmed"] - num_other, "differ_in_blanks_from_another_key": num_other}
    for name in ("keys_of_rows", "keys_of_pictures"):
        counts[name] = [hide_secrets(key) for key in counts[name] or []]
    return counts


def fault_of(joined: JoinedTable, counts: Mapping[str, Any]) -> str | None:
    """Why the counts of a join make no sense, and what to do; None where they do."""
    where, most = f"sources.{counts['source']}.{joined.section}[{counts['entry']}]", counts["most"]
    if joined.gives == "text" and most and most["num"] > MAX_TEXTS:
        return (
            f"{where}: {most['num']:,} rows of {joined.path} have the {joined.column} {most['key']!r}, and a "
            f"picture may have {MAX_TEXTS} texts; join by a column that tells pictures apart"
        )
    if counts["num_pictures"] and counts.get("num_sharing") == counts["num_pictures"]:
        return (
            f"{where}: every {joined.key} of the source names several pictures (such as {counts['shared_key']!r}), "
            f"so no {joined.gives} of {joined.path} can be joined; {_WITH_TAR}"
        )
    if counts["num_pictures"] and not counts["num_joined"]:
        ours, theirs = (", ".join(map(repr, counts[name] or ["none"])) for name in ("keys_of_pictures", "keys_of_rows"))
        return (
            f"{where}: none of {counts['num_pictures']:,} pictures has a {joined.gives}: {joined.key} of the source "
            f"({ours}) and {joined.column} of {joined.path} ({theirs}) have no value in common; name other columns in "
            "`on`"
        )
    return None


def describe_join(counts: Mapping[str, Any], is_part: bool = False) -> str:
    """Return how many pictures found no row in a table, and what of its rows could not be used.

    `is_part`: only the first pictures of the source were looked at.
    """
    num, without = counts["num_pictures"], counts["num_pictures"] - counts["num_joined"]
    lost = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in _LOST if counts.get(name)]
    name = f"captions {{}} of {{}} ({counts['kind']})" if "kind" in counts else "join {} of {}"
    of_no_picture = 0 if is_part else counts.get("num_of_no_picture", 0)
    return (
        f"{name.format(counts['entry'], counts['source'])}: {without:,} of {'the first ' * is_part}{num:,} pictures "
        f"({without / max(num, 1):.1%}) have no partner among {counts['num_rows']:,} rows"
        + (f", {of_no_picture:,} of which belong to no picture here" if of_no_picture else "")
        + (f"; {counts['trimmed']:,} keys are met without the blanks around them" if counts.get("trimmed") else "")
        + (f"; {counts['num_repeated']:,} keys stand on several rows" if counts.get("num_repeated") else "")
        + (
            f", which say different things for {counts['num_differing']:,} of them (such as "
            f"{counts['differing_key']!r}): where they do, a field stays empty, but all licences and owners count"
            if counts.get("num_differing")
            else ""
        )
        + (f"; rows left out: {', '.join(lost)}" if lost else "")
        + (
            f"; {counts['num_sharing']:,} pictures got none, since their key names several (such as "
            f"{counts['shared_key']!r}): {_WITH_TAR}"
            if counts.get("num_sharing")
            else ""
        )
    )
