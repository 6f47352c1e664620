"""Texts of another table, joined to the pictures of a source by its key, its URL or a column that it keeps.

Reads the table and the candidates of the source. DuckDB joins them on disk, so memory does not grow with either. A key
that stands on several rows of the table gives its pictures several texts, in the order of the rows. Pure but for a
private folder. What could not be joined is counted, and `fault_of` says when the counts make no sense.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, model_validator

from manifests.contract.reader import rows_of
from manifests.contract.settings import ConfigPath, Settings
from manifests.contract.tables import JOINED_TEXTS, REJECTS
from manifests.errors import ConfigError
from pipeline.sources.rows import first_texts, hold_objects, without_secrets
from pipeline.sources.table import SheetOfTable, TableReader, first_values
from pipeline.sources.tables.columns import ColumnGuess, guess_caption
from pipeline.sources.tables.joining import StagedTable, text, view_staged
from pipeline.store.files import Files
from pipeline.store.sql import view_parquet, view_table

_MOST_ROWS = 200_000  # that `guess_join` reads: of 10 M rows in any order these hold 20 of the first 1,000 pictures
_WITH_TAR = "join by record_key where the table has the tar too, as TAR/KEY"
MAX_TEXTS = 100  # of one key: a column that tells pictures apart has fewer, and the join stays small
_OF_SAMPLES = ("record_key", "extra.__key__", "extra.json.key", "extra.parquet.key")
"""What `on` may say that names a picture. In tars it may name several: then a text is for nobody knows which."""
_LOST = ("without_key", "without_text", "malformed", "differ_in_blanks_from_another_key")

_NO_FILES = Files()
_JOINED = ("sample_id", "source", "entry", "row_number", "kind", "text")
JOINED = pa.schema([JOINED_TEXTS.field(name) for name in _JOINED])  # the text as given
_SHARED = """
    SELECT count(*) AS num_sharing, min(left(key, 80)) AS shared_key FROM pictures SEMI JOIN shared USING (key)
"""
_COUNTS = """
    SELECT count(*) AS num_rows, count(*) FILTER (coalesce(key, '') = '') AS without_key,
        count(*) FILTER (coalesce(trim(text), '') = '') AS without_text,
        min(left(nullif(key, ''), 80), 3) AS keys_of_rows,
        (SELECT min(left(nullif(key, ''), 80), 3) FROM pictures) AS keys_of_pictures,
        (SELECT count(*) FROM pictures) AS num_pictures,
        (SELECT count(*) FROM pictures SEMI JOIN (SELECT DISTINCT key FROM usable) USING (key)) AS num_joined,
        (SELECT max({'num': n, 'key': left(key, 80)}) FROM (
            SELECT key, count(*) AS n FROM usable SEMI JOIN (SELECT DISTINCT key FROM pictures) USING (key) GROUP BY key
        )) AS most
    FROM texts
"""


def _check_kind(kind: str) -> str:
    if not re.fullmatch("[a-z]+(_[a-z]+)*", kind) or kind in ("txt", "extra_caption"):
        raise ValueError(f"'{kind}' is no kind of text; use small letters and _, such as caption, trait, taxon")
    return kind


class JoinedCaptions(Settings):
    """A table whose texts belong to the pictures of a source."""

    join: ConfigPath
    """The table: parquet, csv, tsv, json, jsonl or xlsx; a file, a folder of them, or a glob."""
    sheet: SheetOfTable = None
    """Of a workbook: as for a table of addresses."""
    on: Annotated[dict[str, str], Field(min_length=1, max_length=1)]
    """What tells which picture a text is for: `record_key`, `url`, or `extra.NAME` of a column that the source keeps.
    The column of the table has the same name (NAME); else write `{extra.NAME: COLUMN}`."""
    text: str
    """Column of the table that holds the texts."""
    kind: Annotated[str, AfterValidator(_check_kind)]
    """What the texts are: the name of their member in a shard. `caption` stands in where a picture has no caption; a
    text of the taxon, such as sci, is replaced where the table has one."""

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
    def _names_columns(self) -> JoinedCaptions:
        if self.key not in ("record_key", "url") and not re.match(r"extra\..", self.key):
            raise ValueError(f"on: a source has no '{self.key}'; write record_key, url, or extra.NAME")
        if self.column == self.text:
            raise ValueError(f"on and text name the same column '{self.text}'")
        return self

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

    def identity(self) -> dict[str, Any]:
        """The values that the joined texts depend on besides the two tables."""
        return self.model_dump(exclude={"join"} | ({"sheet"} if self.sheet is None else set()))

    def reader(self, where: str) -> TableReader:
        """A reader of the table; `where` names it in messages."""
        return TableReader.of(where, self.join, [self.column, self.text], sheet=self.sheet)


def join_captions(
    sql: Any,
    folder: str,
    candidates: Sequence[str],
    source: str,
    entry: int,
    captions: JoinedCaptions,
    rejects: Files = _NO_FILES,
) -> tuple[str, dict[str, Any]]:
    """SQL that gives the rows of JOINED of an entry of `captions` of a source, and counts of both sides.

    A key that should name one picture and names several gives none of them a text: those in `candidates` share it, or
    `rejects` holds others that were dropped for it.
    """
    table, num_malformed, num_trimmed = captions.reader(f"sources.{source}.captions[{entry}]"), 0, 0
    with StagedTable(folder, "texts", ("key", "spelt", "text")) as staged:
        for raw in table.batches():
            given = raw.rows[captions.column]
            keys = without_secrets(trimmed := pc.utf8_trim_whitespace(given))  # as ingest writes ours
            spelt = pc.if_else(pc.not_equal(given, trimmed), given, None)
            num_trimmed += len(spelt) - spelt.null_count
            texts = first_texts(raw.rows[captions.text])
            texts = pc.if_else(hold_objects(texts), None, texts)
            staged.write(raw.numbers, {"key": keys, "spelt": spelt, "text": without_secrets(texts)})
            num_malformed += len(raw.malformed)
    view_staged(sql, staged)
    view_parquet(sql, "candidates", candidates)
    key = captions.key
    if captions.extra_name is not None:
        path = text('$."' + captions.extra_name.replace('"', '\\"') + '"')
        key = f"trim(json_extract_string(extra, {path}))"
    sql.execute(f"CREATE VIEW pictures AS SELECT sample_id, {key} AS key FROM candidates")
    view_table(sql, "rejects", rejects, REJECTS)
    sql.execute(
        "CREATE TABLE shared AS SELECT record_key AS key FROM rejects WHERE reason = 'duplicate_record' UNION "
        f"SELECT key FROM pictures WHERE {captions.key in _OF_SAMPLES} AND key <> '' GROUP BY key HAVING count(*) > 1"
    )
    # blanks do not count, but where the table has the key without them too
    sql.execute(
        "CREATE TABLE others AS SELECT DISTINCT key FROM texts SEMI JOIN (FROM texts WHERE spelt IS NOT NULL) "
        "USING (key) WHERE spelt IS NULL; "
        "CREATE VIEW usable AS SELECT * FROM texts WHERE key <> '' AND trim(text) <> '' AND key NOT IN (FROM shared) "
        "AND (spelt IS NULL OR key NOT IN (FROM others))"
    )
    (counts,) = rows_of(sql, _COUNTS)
    (of_shared,) = rows_of(sql, _SHARED)
    counts |= of_shared if of_shared["num_sharing"] else {}
    counts = {"source": source, "entry": entry, **counts, "kind": captions.kind, "malformed": num_malformed}
    ((num_other,),) = sql.execute("SELECT count(spelt) FROM texts SEMI JOIN others USING (key)").fetchall()
    counts |= {"trimmed": num_trimmed - num_other, "differ_in_blanks_from_another_key": num_other}
    fits = "true" if (counts["most"] or {"num": 0})["num"] <= MAX_TEXTS else "false"
    query = (
        f"SELECT sample_id, {text(source)} AS source, {entry} AS entry, n AS row_number, {text(captions.kind)} AS kind,"
        f" text FROM pictures JOIN usable USING (key) WHERE {fits}"
    )
    return query, counts


def fault_of(captions: JoinedCaptions, counts: Mapping[str, Any]) -> str | None:
    """Why the counts of a join make no sense, and what to do; None where they do."""
    where, most = f"sources.{counts['source']}.captions[{counts['entry']}]", counts["most"]
    if most and most["num"] > MAX_TEXTS:
        return (
            f"{where}: {most['num']:,} rows of {captions.join} have the {captions.column} {most['key']!r}, and a "
            f"picture may have {MAX_TEXTS} texts; join by a column that tells pictures apart"
        )
    if counts["num_pictures"] and counts.get("num_sharing") == counts["num_pictures"]:
        return (
            f"{where}: every {captions.key} of the source names several pictures (such as {counts['shared_key']!r}), "
            f"so no text of {captions.join} can be joined; {_WITH_TAR}"
        )
    if counts["num_pictures"] and not counts["num_joined"]:
        ours, theirs = (", ".join(map(repr, counts[name] or ["none"])) for name in ("keys_of_pictures", "keys_of_rows"))
        return (
            f"{where}: none of {counts['num_pictures']:,} pictures has a text: {captions.key} of the source ({ours}) "
            f"and {captions.column} of {captions.join} ({theirs}) have no value in common; name other columns in `on`"
        )
    return None


def describe_join(counts: Mapping[str, Any]) -> str:
    """How many pictures found no text in a table, and what of its rows could not be used."""
    num, without = counts["num_pictures"], counts["num_pictures"] - counts["num_joined"]
    lost = [f"{counts[name]:,} {name.replace('_', ' ')}" for name in _LOST if counts.get(name)]
    return (
        f"captions {counts['entry']} of {counts['source']} ({counts['kind']}): {without:,} of {num:,} pictures "
        f"({without / max(num, 1):.1%}) have no partner among {counts['num_rows']:,} rows"
        + (f"; {counts['trimmed']:,} keys are met without the blanks around them" if counts.get("trimmed") else "")
        + (f"; rows left out: {', '.join(lost)}" if lost else "")
        + (
            f"; {counts['num_sharing']:,} pictures got none, since their key names several (such as "
            f"{counts['shared_key']!r}): {_WITH_TAR}"
            if counts.get("num_sharing")
            else ""
        )
    )


def guess_join(path: str, keys: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], str]:
    """A table as an entry of `captions`, and words on it; `keys` are what `on` may say, with values of first pictures.

    Raises: ConfigError when it holds no text, or nothing that tells these pictures apart.
    """
    _, shown = first_values(path)
    hits: dict[tuple[str, str], set[str]] = {(key, column): set() for key in keys for column in shown}
    num_rows = 0
    table = TableReader.of("captions", path, list(shown))
    table.check()
    for raw in table.batches():
        for (key, column), values in hits.items():
            texts = pc.utf8_trim_whitespace(raw.rows[column])
            values.update(texts.filter(pc.is_in(texts, value_set=pa.array(keys[key]))).to_pylist())
        num_rows += raw.rows.num_rows
        if num_rows >= _MOST_ROWS:
            break
    key, column = max(hits, key=lambda pair: len(hits[pair]), default=("", ""))
    if not (num := len(hits.get((key, column), ()))):
        has = f"no column of {', '.join(shown)} has keys of these pictures ({', '.join(keys)})"
        raise ConfigError(f"{path}: {has}, in its first {num_rows:,} rows")
    guess = guess_caption(list(shown), shown, {"key": ColumnGuess(column, "sure", "its values")})
    if guess is None:
        raise ConfigError(f"{path}: no column of {', '.join(shown)} holds texts")
    trust = "likely, since a key that several tars have joins nothing" if key in _OF_SAMPLES[1:] else "sure"
    words = f"{trust}: {num:,} of the first {len(keys[key]):,} pictures have a row there"
    entry = {"join": path, "on": {key: column}, "text": guess.column, "kind": "caption"}
    return entry, f"{words}; text from {guess.column} ({guess.trust}: {guess.why})"
