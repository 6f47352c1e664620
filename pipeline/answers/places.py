"""What lies at a place that a user names, as the settings of a source, with words on how they were guessed.

Looks at names, heads and the first rows. Asks nothing over the network, and writes nothing.
Raises ConfigError, with the cure, for what cannot be a source.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from manifests import storage
from manifests.errors import ConfigError
from pipeline.answers.columns import ColumnGuess, guess_columns, left_out, plain
from pipeline.sources import table
from pipeline.sources.archive import read_archive
from pipeline.sources.files import (
    MAX_LISTED,
    TABLE_NAME,
    WORKBOOK,
    WORKBOOK_CURE,
    find_files,
    kind_of_place,
    reading,
    walk_files,
    where_it_looked,
    zip_fault,
)
from pipeline.sources.settings import IMAGE_SUFFIXES, ColumnMap, Origin, SourceSettings

SAMPLED_ROWS = 500
_SHARD_MEMBERS = 60
_EOL_COLUMN = "EOL content ID"
_INATURALIST = ("photos.", "observations.", "taxa.", "observers.")
_NO_WORDS = frozenset(
    {"", "train", "val", "valid", "validation", "test", "images", "image", "img", "pictures", "photos"}
)
_PICTURES = tuple(f".{suffix}" for suffix in IMAGE_SUFFIXES)
_LICENCE_TERMS = ("license", "UsageTerms", "WebStatement", "rights")


@dataclass
class Place:
    """A source as its YAML says it: settings of one origin, and what the user should know of them.

    `comments` holds words for single settings, keyed by the setting's name. `missing` says what only the user can add,
    `left_out` why a column of the table is not read.
    """

    kind: str
    settings: dict[str, Any]
    found: str
    comments: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    on_web: bool = True
    states_licence: bool = True
    has_taxa: bool = False


def look_at(path: str) -> Place:
    """What lies at a path or behind a glob.

    Raises: ConfigError that says what it is instead, and what to do.
    """
    if re.search(r"[*?\[{]", path):
        suffix = path.lower()
        return _shards(path) if suffix.endswith(".tar") else _table(path)
    fs, inner = storage.filesystem(path)
    if not fs.exists(inner):
        raise ConfigError(f"{path}: nothing is there{where_it_looked(path)}")
    if fs.isdir(inner):
        return _folder_of(path, [name for name, _ in islice(walk_files(path), MAX_LISTED)])
    name = path.lower()
    if name.endswith(".tar"):
        return _shards(path)
    if name.endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2")):
        raise ConfigError(f"{path}: a compressed tar; unpack it, since pictures are read in place")
    if name.endswith(".zip") and not TABLE_NAME.search(name):
        return _zip(path)
    if name.endswith(WORKBOOK):
        raise ConfigError(f"{path} is an Excel workbook; {WORKBOOK_CURE}")
    if name.endswith(_PICTURES):
        raise ConfigError(f"{path}: one picture; name its folder")
    return _table(path)


def _zip(path: str) -> Place:
    import zipfile

    fs, inner = storage.filesystem(path)
    try:
        with fs.open(inner, "rb") as stream, zipfile.ZipFile(stream) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except zipfile.BadZipFile:
        raise ConfigError(f"{path} {zip_fault(path)}") from None
    if any(name.rpartition("/")[2] == "meta.xml" for name in names):
        return _archive(path)
    if len(names) == 1 and TABLE_NAME.search(names[0].lower()):
        raise ConfigError(f"{path}: a zip of one table; name it {names[0]}.zip, or unpack it")
    what = "pictures" if any(name.lower().endswith(_PICTURES) for name in names) else f"{len(names)} files"
    raise ConfigError(f"{path}: a zip of {what}, without a meta.xml; unpack it and name the folder")


def _folder_of(path: str, names: Sequence[str]) -> Place:
    lowered = [name.lower() for name in names]
    if any(name.rpartition("/")[2] == "meta.xml" for name in lowered):
        return _archive(path)
    if all(any(name.startswith(start) for name in lowered) for start in _INATURALIST):
        return _inaturalist(path)
    if any(name.endswith(".tar") for name in lowered):
        return _shards(path)
    pictures = [name for name in names if name.lower().endswith(_PICTURES)]
    tables = [name for name in names if "/" not in name and TABLE_NAME.search(name.lower())]
    if pictures:
        return _pictures(path, pictures, set(names), tables)
    if tables:
        return _table(path)
    seen = sorted({PurePosixPath(name).suffix or name for name in names})
    raise ConfigError(
        f"{path}: holds no pictures, tables, tars or archives (its files end in {', '.join(seen[:8]) or 'nothing'})"
    )


# ---- one kind of place each


def _archive(path: str) -> Place:
    archive = read_archive(path, path)
    terms = {term for data in archive.extensions for term in data.fields}
    place = Place("dwca", {"path": path}, "Darwin Core Archive (sure: it has a meta.xml)", has_taxa=True)
    place.states_licence = bool(terms.intersection(_LICENCE_TERMS))
    place.comments["path"] = "add `where: {kingdom: [Plantae], licence: [CC0-1.0, CC-BY]}` to take a part of it"
    return place


def _inaturalist(path: str) -> Place:
    found = "iNaturalist's open data (sure: photos, observations, taxa and observers are there)"
    place = Place("inaturalist", {"path": path}, found, has_taxa=True)
    place.comments["path"] = "add `where: {kingdom: [Plantae]}` to take a part of it; research grade alone is taken"
    return place


def _shards(path: str) -> Place:
    files = find_files(path, path, ".tar")
    first = files.path(files.names[0])
    endings, keys = _shard_members(first)
    columns = _shard_columns(first)
    place = Place("webdataset", {"path": path}, f"webdataset tars, {len(files.names):,} of them", on_web=False)
    made = " with img2dataset's Parquet beside them" if {"key", "status", "url"} <= set(columns) else ""
    place.found += f"{made} (sure: the first one was opened)"
    fields = {"url": "json.url"} if "url" in keys else {}
    for caption in [name for name, there in (("txt", "txt" in endings), ("json.caption", "caption" in keys)) if there]:
        fields.setdefault("caption", caption)
    licence = _licence_field(keys, columns)
    if "caption" not in fields:
        place.missing.append(f"captions of {path}: its samples have neither a .txt nor a json key `caption`")
    if licence and "caption" in fields:
        place.settings["fields"] = fields | {"licence": licence}
        place.comments["licence"] = "likely, from its name"
    place.states_licence = licence is not None
    return place


def _shard_members(path: str) -> tuple[set[str], set[str]]:
    """Extensions of the first members of a tar, and keys of the first json in it."""
    endings: set[str] = set()
    keys: set[str] = set()
    fs, inner = storage.filesystem(path)
    with reading(path, path, "as a tar"), fs.open(inner, "rb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in islice(tar, _SHARD_MEMBERS):
                    ending = member.name.rpartition("/")[2].partition(".")[2].lower()
                    endings.add(ending)
                    if ending == "json" and not keys and member.size < 1 << 20:
                        body = tar.extractfile(member)
                        value = json.loads(body.read()) if body is not None else {}
                        keys = set(value) if isinstance(value, dict) else set()
        except (tarfile.TarError, RecursionError) as error:
            raise ConfigError(f"{path} cannot be read as a tar: {error}; if it is compressed, unpack it") from None
    return endings, keys


def _shard_columns(path: str) -> list[str]:
    parquet = path.removesuffix(".tar") + ".parquet"
    fs, inner = storage.filesystem(parquet)
    if not fs.exists(inner):
        return []
    with reading(parquet, parquet, "as parquet"), fs.open(inner, "rb") as stream:
        return list(pq.read_schema(stream).names)


def _licence_field(keys: set[str], columns: Sequence[str]) -> str | None:
    wanted = ("licence", "license", "licensename", "rights")
    for prefix, names in (("json", sorted(keys)), ("parquet", columns)):
        for name in names:
            if plain(name) in wanted:
                return f"{prefix}.{name}"
    return None


def _pictures(path: str, pictures: Sequence[str], names: set[str], tables: Sequence[str]) -> Place:
    for name in tables:
        place = _pictures_with_table(path, name)
        if place is not None:
            return place
    more = " or more" if len(names) >= MAX_LISTED else ""
    place = Place("folder", {"path": path}, f"{len(pictures):,}{more} pictures in a folder (sure)", on_web=False)
    place.states_licence = False
    beside = sum(name.rpartition(".")[0] + ".txt" in names for name in pictures)
    folders = {PurePosixPath(name).parent.name for name in pictures}
    telling = {name for name in folders if name.lower() not in _NO_WORDS and re.search(r"[^\W\d_]{2,}", name)}
    if beside >= len(pictures) / 2:
        place.settings["captions"] = "text_file"
        place.comments["captions"] = f"sure: {beside:,} of {len(pictures):,} looked at have a NAME.txt beside them"
    elif telling:
        place.settings["captions"] = "folder_name"
        place.comments["captions"] = f"likely: names of folders, as {', '.join(sorted(telling)[:3])}"
        if all(re.fullmatch(r"[A-Z][a-z-]+[ _][a-z-]{3,}(?:[ _].*)?", name) for name in telling):
            place.settings["folder_name_is"] = "scientific_name"
            place.comments["folder_name_is"] = "likely: they look like genus and species"
            place.has_taxa = True
    else:
        place.settings["captions"] = "none"
        place.missing.append(
            f"captions of {path}: no text file, no table and no telling folder names are there; "
            "add `defaults: {caption: ...}` or NAME.txt files"
        )
    return place


def _pictures_with_table(path: str, name: str) -> Place | None:
    """A folder whose table names its pictures; None where the table is about something else."""
    try:
        guesses, count, others = _read_columns(storage.join(path, name))
    except ConfigError:
        return None
    if "file" not in guesses:
        return None
    settings = {"path": path, "table": name, "columns": {f: g.column for f, g in guesses.items()}}
    place = Place("folder", settings, f"pictures in a folder, named by {name} (sure: {count})", on_web=False)
    place.left_out = others
    return _with_guesses(place, guesses, path)


def _table(path: str) -> Place:
    kind = kind_of_place(path) if not re.search(r"[*?\[]", path) else None
    if kind in ("folder", "webdataset"):
        raise ConfigError(f"{path}: no table")
    guesses, count, others = _read_columns(path)
    if not guesses:
        return Place("eol", {"path": path}, "EOL's media manifest (sure: its columns)")
    if "file" in guesses:
        raise ConfigError(
            f"{path}: its column '{guesses['file'].column}' names files; name the folder of the pictures, "
            "with the table in it, instead of the table"
        )
    columns = {field: guess.column for field, guess in guesses.items()}
    place = Place("table", {"table": path, "columns": columns}, f"table of addresses (sure: {count})", left_out=others)
    return _with_guesses(place, guesses, path)


def _with_guesses(place: Place, guesses: dict[str, ColumnGuess], path: str) -> Place:
    columns = place.settings["columns"]
    place.comments |= {field: f"{guess.trust}, from {guess.why}" for field, guess in guesses.items()}
    place.states_licence = "licence" in guesses or "licence_url" in guesses
    place.has_taxa = any(field.startswith("taxon_") for field in guesses)
    if "caption" not in guesses:
        columns["caption"] = []
        place.comments["caption"] = "none was found; the names of the taxa stand in" if place.has_taxa else "none found"
        if not place.has_taxa:
            place.missing.append(f"captions of {path}: no column of words was found; set `columns.caption`")
    return place


def _read_columns(path: str) -> tuple[dict[str, ColumnGuess], str, dict[str, str]]:
    """Guesses for the table at `path`, from its header and first rows, words on them, and the columns left out.

    There are none for EOL's manifest.
    """
    heads = Origin(name="init", table=path, columns=ColumnMap(url="", caption=[]))
    file = table.list_files(heads)[0]
    try:
        names = table.read_columns(file, heads)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("sources.init: ")) from None
    if _EOL_COLUMN in names:
        return {}, "", {}
    named = [name for name in names if name]
    whole = Origin(name="init", table=file, columns=ColumnMap(url=named[0], caption=[], extra=named[1:]))
    values: dict[str, list[str]] = {name: [] for name in named}
    for batch in islice(table.read_batches(whole), 1):
        for name in named:
            some = batch.rows[name].slice(0, SAMPLED_ROWS).to_pylist()
            values[name] = [value for value in some if value and value.strip()]
    try:
        guesses = guess_columns(named, values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return (
        guesses,
        f"{len(named)} columns{_how_written(file)}, the first rows were read",
        left_out(named, values, guesses),
    )


def _how_written(file: str) -> str:
    """How a csv is delimited and encoded, where it is not with commas in UTF-8."""
    kind = PurePosixPath(TABLE_NAME.sub(r".\1", file.lower())).suffix.lstrip(".")
    if kind not in ("csv", "tsv"):
        return ""
    dialect = table.dialect_of(file, kind)
    mark = {",": "", ";": "semicolons", "\t": "tabs", "|": "pipes"}.get(dialect.delimiter, dialect.delimiter)
    words = [f"separated by {mark}"] * bool(mark) + [f"in {dialect.encoding}"] * (dialect.encoding != "utf-8")
    return f" {' '.join(words)}" if words else ""


def as_source(name: str, domain: str, place: Place) -> SourceSettings:
    """The place as settings, checked."""
    values = place.settings if place.kind == "table" else {place.kind: place.settings}
    return SourceSettings(name=name, domain=domain, **values)
