"""A Darwin Core Archive, zipped or unpacked: what its description (meta.xml) says, and streams of its files.

Reads meta.xml, and holds nothing of the data files. Raises ConfigError for an archive without a description, for files
that are described but missing, and for a description that no text file can fit.
Source: Darwin Core text guide, https://dwc.tdwg.org/text/
"""

from __future__ import annotations

import codecs
import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from manifests.errors import ConfigError
from manifests.samples.tars import MAX_TEXT_BYTES
from manifests.services.untrusted import check_packing
from manifests.stores import storage
from manifests.stores.inside import why_not_inside
from pipeline.sources.files import reading, sizes_in_zip, walk_files, where_it_looked, zip_fault
from pipeline.sources.limits import MAX_COLUMNS
from pipeline.sources.tables.delimited import Dialect

META_FILE = "meta.xml"
_NAMESPACE = "{http://rs.tdwg.org/dwc/text/}"
_ENCODINGS = re.compile(
    r"utf-?(7|8|8-sig|16|16-[bl]e|32|32-[bl]e)|ascii|latin-?1|iso8859-\d+|cp\d+|mac-\w+|koi8-\w|gb\w+|big5\w*|hz|johab"
    r"|euc_\w+|shift_jis\w*|iso2022_\w+|tis-?620|kz1048|ptcp154"
)
"""Names of the character sets among Python's codecs; others pack bytes, or write addresses and escapes."""
_ESCAPES = {r"\t": "\t", r"\n": "\n", r"\r": "\r", r"\\": "\\"}


@dataclass(frozen=True)
class Term:
    """One term of a file: its place in each row (None: not in the file), and the value that replaces an empty one."""

    index: int | None
    default: str | None


@dataclass(frozen=True)
class DataFile:
    """Core or extension: where its rows lie, how they are written, and which column holds what.

    `fields` is keyed by the term's short name; `id_index` is the place of the key that joins core and extension.
    """

    row_type: str
    locations: tuple[str, ...]
    dialect: Dialect
    header_lines: int
    id_index: int
    fields: dict[str, Term]


@dataclass(frozen=True)
class Archive:
    """An archive at `path`; `prefix` is the folder within it that holds meta.xml."""

    path: str
    prefix: str
    is_zip: bool
    core: DataFile
    extensions: tuple[DataFile, ...]

    def extension(self, *row_types: str) -> DataFile | None:
        """Return the first extension of one of the types, in the order in which they are asked for."""
        by_type = {data.row_type: data for data in reversed(self.extensions)}
        return next((by_type[row_type] for row_type in row_types if row_type in by_type), None)

    def open(self, location: str) -> AbstractContextManager[Any]:
        """Return a stream of one data file's bytes."""
        return _open(self.path, self.is_zip, self.prefix + location)

    def paths(self) -> list[str]:
        """Files that its content depends on: the zip, or meta.xml and the described files."""
        if self.is_zip:
            return [self.path]
        locations = [location for data in (self.core, *self.extensions) for location in data.locations]
        return [storage.join(self.path, self.prefix + name) for name in (META_FILE, *locations)]


def read_archive(path: str, where: str) -> Archive:
    """Find an archive and read its description; extensions whose files are missing are left out.

    Raises: ConfigError.
    """
    if not storage.exists(path):
        raise ConfigError(
            f"{where}: {path}: no such archive; give the zip as downloaded, or the folder it was unpacked to"
            f"{where_it_looked(path)}"
        )
    is_zip = not storage.is_folder(path)
    with reading(f"{where}: {path}", path):
        try:
            sizes = sizes_in_zip(path) if is_zip else dict(walk_files(path))
        except zipfile.BadZipFile:
            raise ConfigError(f"{where}: {path} {zip_fault(path)}; an archive is a zip or a folder") from None
    metas = sorted((name for name in sizes if name.rpartition("/")[2] == META_FILE), key=lambda name: name.count("/"))
    if not metas:
        raise ConfigError(
            f"{where}: {path} has no {META_FILE}, so it is no Darwin Core Archive; "
            "for a plain table of URLs use `table`"
        )
    if not is_zip and (why_not := why_not_inside(path, metas[0])) is not None:
        raise ConfigError(f"{where}: {path}: {metas[0]} {why_not}; put the file itself there")
    what = f"{where}: {path}: {META_FILE}"
    with reading(what, path), _open(path, is_zip, metas[0]) as stream:
        core, extensions = parse_meta(stream.read(MAX_TEXT_BYTES + 1), what)
    prefix = metas[0].removesuffix(META_FILE)
    there = {name.removeprefix(prefix) for name in sizes}
    for location in (location for data in (core, *extensions) for location in data.locations if location in there):
        why_not = None if is_zip else why_not_inside(path, prefix + location)
        if why_not is not None:
            raise ConfigError(f"{where}: {path}: {prefix}{location} {why_not}; put the file itself there")
    if is_zip:
        described = {prefix + name for data in (core, *extensions) for name in data.locations}
        with reading(f"{where}: {path}", path):
            check_packing(storage.size_of(path), sum(sizes.get(name) or 0 for name in described))
    missing = [location for location in core.locations if location not in there]
    if missing:
        raise ConfigError(f"{where}: {path} does not hold {missing[0]}, which its {META_FILE} describes")
    return Archive(path, prefix, is_zip, core, tuple(data for data in extensions if there.issuperset(data.locations)))


@contextmanager
def _open(path: str, is_zip: bool, name: str) -> Iterator[Any]:
    with storage.open_file(path if is_zip else storage.join(path, name)) as stream:
        if not is_zip:
            yield stream
            return
        with zipfile.ZipFile(stream) as archive, archive.open(name) as member:
            yield member


def parse_meta(content: bytes, what: str) -> tuple[DataFile, tuple[DataFile, ...]]:
    """Core and extensions out of a description; `what` names it in messages.

    Raises: ConfigError.
    """
    if len(content) > MAX_TEXT_BYTES:
        raise ConfigError(f"{what} has more than {MAX_TEXT_BYTES:,} bytes")
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ConfigError(f"{what} is not valid XML: {error}") from None
    for element in root.iter():  # some archives leave the name space out
        element.tag = element.tag.removeprefix(_NAMESPACE)
    core = root.find("core")
    if core is None:
        raise ConfigError(f"{what} describes no core")
    return _data_file(core, "id", what), tuple(_data_file(part, "coreid", what) for part in root.findall("extension"))


def _data_file(element: ElementTree.Element, id_tag: str, what: str) -> DataFile:
    row_type = element.get("rowType", "")
    locations = tuple((part.text or "").strip() for part in element.findall("files/location"))
    if not locations or not all(locations):
        raise ConfigError(f"{what}: {row_type or element.tag} names no file")
    if len(set(locations)) < len(locations):
        raise ConfigError(f"{what}: {row_type or element.tag} names a file twice; name each of its files once")
    key = element.find(id_tag)
    fields: dict[str, Term] = {}
    for part in element.findall("field"):
        index, address = part.get("index"), part.get("term", "")
        name = address.rstrip("/#").replace("#", "/").rpartition("/")[2].strip()
        term = Term(_number(index, f"{what}: index of {name}") if index is not None else None, part.get("default"))
        fields.setdefault(name, term)
    return DataFile(
        row_type,
        locations,
        _dialect(element, f"{what}: {locations[0]}"),
        _number(element.get("ignoreHeaderLines") or "0", f"{what}: ignoreHeaderLines"),
        _number(key.get("index") or "0", f"{what}: index of {id_tag}") if key is not None else 0,
        fields,
    )


def _dialect(element: ElementTree.Element, what: str) -> Dialect:
    delimiter = _plain(element.get("fieldsTerminatedBy"), ",")
    quote = _plain(element.get("fieldsEnclosedBy"), '"')
    if len(delimiter.encode()) != 1 or len(quote.encode()) > 1:
        raise ConfigError(
            f"{what}: fields must be separated by one byte and enclosed by at most one, not {delimiter!r} and {quote!r}"
        )
    encoding = element.get("encoding") or "utf-8"
    try:
        is_charset = bool(_ENCODINGS.fullmatch(codecs.lookup(encoding).name))
    except (LookupError, ValueError):  # a ValueError at a name with a zero byte
        is_charset = False
    if not is_charset:
        raise ConfigError(f"{what}: no such encoding: {encoding:.100}")
    return Dialect(delimiter, quote or None, encoding, _plain(element.get("linesTerminatedBy"), "\n") or "\n")


def _plain(attribute: str | None, default: str) -> str:
    """Return an attribute with its escapes undone; XML itself turns a real tab in an attribute into a space."""
    if attribute is None:
        return default
    for escape, plain in _ESCAPES.items():
        attribute = attribute.replace(escape, plain)
    return attribute


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise ConfigError(f"{what}: '{text:.100}' is not a whole number")
    if int(text) >= MAX_COLUMNS:
        raise ConfigError(f"{what} is {int(text):,}, and only {MAX_COLUMNS:,} are read")
    return int(text)
