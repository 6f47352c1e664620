"""Texts of another table, joined to the pictures of a source by its key, its URL or a column that it keeps.

Reads the table and the candidates of the source, which `keyed.py` pairs. A key that stands on several rows of the table
gives its pictures several texts, in the order of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, model_validator

from manifests.contract.settings import ConfigPath
from manifests.contract.tables import JOINED_TEXTS, REJECTS
from manifests.errors import ConfigError
from pipeline.sources.rows import first_texts, hold_objects, without_secrets
from pipeline.sources.table import TableReader, first_values
from pipeline.sources.tables.columns import ColumnGuess, guess_fields
from pipeline.sources.tables.joining import text
from pipeline.sources.tables.keyed import KEYS_OF_SAMPLES, JoinedTable, keys_that_share, pair_rows, stage_partners
from pipeline.store.files import Files
from pipeline.store.sql import view_parquet, view_table

_MOST_ROWS = 200_000  # that `guess_join` reads: of 10 M rows in any order these hold 20 of the first 1,000 pictures

_NO_FILES = Files()
_JOINED = ("sample_id", "source", "entry", "row_number", "kind", "text")
JOINED = pa.schema([JOINED_TEXTS.field(name) for name in _JOINED])  # the text as given


def _check_kind(kind: str) -> str:
    if not re.fullmatch("[a-z]+(_[a-z]+)*", kind) or kind in ("txt", "extra_caption"):
        raise ValueError(f"'{kind}' is no kind of text; use small letters and _, such as caption, trait, taxon")
    return kind


class JoinedCaptions(JoinedTable):
    """A table whose texts belong to the pictures of a source."""

    join: ConfigPath
    """The table: parquet, csv, tsv, json, jsonl or xlsx; a file, a folder of them, or a glob."""
    text: str
    """Column of the table that holds the texts."""
    kind: Annotated[str, AfterValidator(_check_kind)]
    """What the texts are: the name of their member in a shard. `caption` stands in where a picture has no caption; a
    text of the taxon, such as sci, is replaced where the table has one."""

    section: ClassVar[str] = "captions"
    gives: ClassVar[str] = "text"

    @model_validator(mode="after")
    def _names_columns(self) -> JoinedCaptions:
        if self.column == self.text:
            raise ValueError(f"on and text name the same column '{self.text}'")
        return self

    @property
    def path(self) -> str:
        """The table."""
        return self.join

    @property
    def values(self) -> list[str]:
        """The column of the texts."""
        return [self.text]

    def identity(self) -> dict[str, Any]:
        """Return the values that the joined texts depend on besides the two tables."""
        return self.model_dump(exclude={"join"} | ({"sheet"} if self.sheet is None else set()))


def join_captions(
    sql: Any,
    folder: str,
    candidates: Sequence[str],
    source: str,
    entry: int,
    captions: JoinedCaptions,
    rejects: Files = _NO_FILES,
) -> tuple[str, dict[str, Any]]:
    """Return SQL that gives the rows of JOINED of an entry of `captions` of a source, and counts of both sides.

    A key that should name one picture and names several gives none of them a text: those in `candidates` share it, or
    `rejects` holds others that were dropped for it.
    """

    def texts_of_rows(rows: pa.Table) -> dict[str, Any]:
        texts = first_texts(rows[captions.text])
        return {"text": without_secrets(pc.if_else(hold_objects(texts), None, texts))}

    table = captions.reader(f"sources.{source}.captions[{entry}]")
    odd = stage_partners(sql, folder, table, ["text"], texts_of_rows, without_secrets)  # as ingest writes our keys
    view_parquet(sql, "candidates", candidates)
    view_table(sql, "rejects", rejects, REJECTS)
    sql.execute(f"CREATE VIEW pictures AS SELECT sample_id AS id, {captions.sql_of_key()} AS key FROM candidates")
    shared = "SELECT record_key AS key FROM rejects WHERE reason = 'duplicate_record' UNION " + keys_that_share(
        captions
    )
    counts = pair_rows(sql, odd, shared, is_usable="coalesce(trim(text), '') <> ''")
    query = (
        f"SELECT id AS sample_id, {text(source)} AS source, {entry} AS entry, n AS row_number, "
        f"{text(captions.kind)} AS kind, text FROM partners JOIN pairs USING (n)"
    )
    return query, {"source": source, "entry": entry, **counts, "kind": captions.kind}


def guess_join(
    path: str, keys: Mapping[str, Sequence[str]], given: Collection[str], least: float = 0.0
) -> dict[str, tuple[Any, str]]:
    """Return a table as an entry of `captions`, of `join`, or both, each with words on it.

    `keys` are what `on` may say, with values of first pictures, of which the share `least` must stand in the table.
    Columns of a row that are `given` are not joined.

    Raises: ConfigError when it holds nothing for a picture, or nothing that tells these pictures apart.
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
    num = len(hits.get((key, column), ()))
    if not num or num < least * len(keys[key]):
        has = f"no column of {', '.join(shown)} has keys of these pictures ({', '.join(keys)})"
        raise ConfigError(f"{path}: {has}, in its first {num_rows:,} rows")
    guesses = guess_fields(list(shown), shown, {"key": ColumnGuess(column, "sure", "its values")})
    caption = guesses.pop("caption", None)
    fields = {
        name: guess.column
        for name, guess in guesses.items()
        if name not in ("key", *given) and guess.trust != "guess"  # a column of texts may look like any of them
    }
    if caption is None and not fields:
        raise ConfigError(f"{path}: no column of {', '.join(shown)} holds texts, ranks, licences or owners")
    trust = "likely, since a key that several tars have joins nothing" if key in KEYS_OF_SAMPLES[1:] else "sure"
    words, on = f"{trust}: {num:,} of the first {len(keys[key]):,} pictures have a row there", {key: column}
    found: dict[str, tuple[Any, str]] = {}
    if caption is not None and caption.trust == "guess" and fields:
        caption = None
    used = {column, *fields.values(), *([caption.column] if caption else [])}
    others = [name for name, some in shown.items() if some and name not in used]
    if fields:
        more = f"; not read: {', '.join(others)}" if others else ""
        found["join"] = {"table": path, "on": on, "columns": fields}, words + more
    if caption is not None:
        entry = {"join": path, "on": on, "text": caption.column, "kind": "caption"}
        found["captions"] = entry, f"{words}; text from {caption.column} ({caption.trust}: {caption.why})"
    return found
