"""Which labels lie within a group: a taxon at any rank, or a checklist of names.

Names are equal as `manifests/names` has it, with their authors or without. A label is also found by a name that its
source gave, and by a subspecies or cultivar of it. A checklist is a text with a name a line, or a table (csv, tsv or
xlsx) with a column of scientific names. Writes nothing. Gives up with ConfigError on a name that no label has or that
means several taxa, on a file without names, and on a group of fewer than two labels.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.names.equal import name_key, plain
from manifests.names.scientific import NAME_COLUMNS, parse_name
from manifests.names.species import species_of, taxon_keys
from manifests.services.workbook import MAX_BOOK_BYTES, open_sheet
from training.evaluation.class_names import Taxon
from training.evaluation.set_layouts import csv_rows, read_text

logger = logging.getLogger(__name__)

LABEL_COLUMNS = ("label", "class", "class_name", "name")
_WORKBOOKS, _DELIMITED = (".xlsx", ".xlsm"), (".csv", ".tsv")
_SHOWN = 3  # of the names that no label has
_ALIKE = 0.8  # of two spellings, as for the keys of a config
_Meaning = tuple[str, str, str]  # kingdom, rank, name


class Within(NamedTuple):
    """The labels within a group, by their numbers; what the group is called; and what falls outside, in words."""

    numbers: list[int]
    group: str
    notes: list[str]


def choose_within(
    within: str | Sequence[str],
    names: Sequence[str],
    taxa: Sequence[Taxon | None],
    rank: str | None,
    setting: str,
    given: Sequence[Sequence[str]] = (),
) -> Within:
    """Return the labels of these names, taxa and rank that lie within a taxon, a file of names, or some names.

    `given` are further names of each label, `setting` is what asked, in messages. A checklist may hold higher taxa: one
    of them takes all its labels, unless the checklist also names some of these.

    Raises: ConfigError.
    """
    group, listed = names_within(within)
    index = _Index(names, taxa, rank, given)
    matches = {name: index.find(name, setting) for name in listed}
    chosen = set[int]()
    for labels in sorted(matches.values(), key=len):
        if len(labels) == 1 or chosen.isdisjoint(labels):
            chosen |= labels
    unknown = [name for name, labels in matches.items() if not labels]
    if unknown and listed == [within]:
        cure = "" if index.has_ranks else "; the labels have no higher ranks: name a checklist, or take taxa with ranks"
        name = index.beside_nearest(unknown[0])
        raise ConfigError(f"{setting}: no label is {name}, or lies in a taxon of that name{cure}")
    num, left_out = len(names), len(names) - len(chosen)
    notes = [f"within {group}: {len(chosen):,} of {num:,} labels, the other {left_out:,} are left out"]
    if unknown:
        first = ", ".join(map(index.beside_nearest, unknown[:_SHOWN]))
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        of_all = f"{len(unknown):,} of the {len(listed):,} names of {group}"
        notes.append(f"{of_all} are not among the labels: {first}{more}")
    if len(chosen) < 2:
        words = f"{len(chosen)} of the {num:,} labels lie within {group}, two or more are needed to tell pictures apart"
        raise ConfigError("; ".join([f"{setting}: {words}", *notes[1:]]))
    return Within(sorted(chosen), group, notes)


def names_within(within: str | Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of a group, and its names, each once: of a taxon its own, of a file those that it lists.

    Raises: ConfigError for a file that is not there, cannot be read, or lists no names.
    """
    if not isinstance(within, str):
        return "the checklist", _distinct(within)
    path, forms = Path(within), "a name a line, or a table with a column such as scientificName"
    if path.is_file():
        if names := _distinct(_read_checklist(path)):
            return path.name, names
        raise ConfigError(f"{within}: lists no names; {forms}")
    if os.sep in within or path.suffix.lower() in (*_WORKBOOKS, *_DELIMITED, ".txt"):
        raise ConfigError(f"{within}: no such checklist; {forms}")
    return within, [within]


def names_of_lines(path: str | Path, text: str) -> list[str]:
    """Return a name a line; the first line is left out where it is the name of such a column."""
    names = [line.strip() for line in re.split(r"\r\n?|\n", text) if line.strip()]
    headers = {*map(plain, LABEL_COLUMNS), "labels", "classes", "scientificname", *TAXON_RANKS}
    if names and plain(names[0]) in headers:
        logger.warning("%s: the first line, '%s', is taken for a header and is no label", path, names.pop(0))
    return names


def _read_checklist(path: Path) -> list[str]:
    if path.suffix.lower() not in (*_WORKBOOKS, *_DELIMITED):
        return names_of_lines(path, read_text(path))
    if path.suffix.lower() in _WORKBOOKS:
        try:
            with path.open("rb") as stream:
                sheet = open_sheet(stream.read(MAX_BOOK_BYTES + 1))
            columns = sheet.columns
            rows = [dict(zip(columns, texts, strict=True)) for _, texts in sheet.rows(columns)]
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None
    else:
        text = read_text(path)
        header = text.partition("\n")[0]
        header_names, rows = csv_rows(path, text, max(",;\t", key=header.count))
        columns = list(header_names)
    named = {plain(name): name for name in reversed(columns)}
    usual = (*NAME_COLUMNS, *reversed(TAXON_RANKS), *map(plain, LABEL_COLUMNS))
    column = next((name for name in usual if name in named), None)
    if column is None:
        has = ", ".join(columns)
        raise ConfigError(f"{path}: has no column of scientific names, such as scientificName; it has {has}")
    values = [row[named[column]] or "" for row in rows]
    if column == "species" and "genus" in named:  # which may hold the epithet alone
        genera = pa.array([row[named["genus"]] for row in rows], pa.string())
        values = [name or "" for name in species_of(genera, pa.array(values, pa.string())).to_pylist()]
    return values


def _distinct(names: Sequence[str]) -> list[str]:
    spelled = dict[str, str]()
    for name in names:
        spelled.setdefault(name_key(name), name.strip())
    return [name for key, name in spelled.items() if key]


class _Index:
    """The names of labels and of the taxa that they lie in."""

    def __init__(
        self, names: Sequence[str], taxa: Sequence[Taxon | None], rank: str | None, given: Sequence[Sequence[str]]
    ) -> None:
        columns = {name: [taxon.ranks[i] if taxon else "" for taxon in taxa] for i, name in enumerate(TAXON_RANKS)}
        self.has_ranks = any(any(values) for name, values in columns.items() if name != rank)
        binomials = species_of(*(pa.array(columns[name], pa.string()) for name in ("genus", "species")))
        columns["species"] = [name or "" for name in binomials.to_pylist()]
        self._labels = defaultdict[_Meaning, set[int]](set)
        self._meanings = defaultdict[str, dict[_Meaning, None]](dict)
        self._spelled = dict[str, str]()
        self._given = defaultdict[str, set[int]](set)
        kingdoms = columns["kingdom"]
        for of_rank, values in (*columns.items(), (rank or "label", names)):
            self._spelled |= {name_key(name): name for name in reversed(values) if name}
            keys = [(name_key(kingdom), name_key(name)) for kingdom, name in zip(kingdoms, values, strict=True)]
            for number, (kingdom, name) in enumerate(taxon_keys(keys)):
                if name:
                    self._add((kingdom if of_rank != "kingdom" else "", of_rank, name), number)
        for number, name in enumerate(names):
            for text in (name, *(given[number] if given else ())):
                for key in map(name_key, (text, parse_name(text).canonical)):
                    self._given[key].add(number)

    def _add(self, meaning: _Meaning, number: int) -> None:
        kingdom, rank, name = meaning
        self._labels[meaning].add(number)
        for key in (name, f"{rank}:{name}", f"{kingdom}:{name}", f"{kingdom}:{rank}:{name}"):
            self._meanings[key][meaning] = None

    def find(self, name: str, setting: str) -> set[int]:
        """Return the numbers of the labels of a name or within a taxon of it; none where it is unknown.

        Raises: ConfigError for a name that means several taxa.
        """
        parsed = parse_name(name)
        for key in filter(None, map(name_key, (name, parsed.canonical, parsed.binomial))):
            meanings = list(self._meanings.get(key, ()))
            if len(meanings) > 1:
                choices = [":".join(self._spelled.get(part, part) for part in meaning if part) for meaning in meanings]
                raise ConfigError(f"{setting}: '{name}' means {len(meanings)} taxa; write one of {', '.join(choices)}")
            if meanings or key in self._given:
                return self._labels[meanings[0]] if meanings else self._given[key]
        return set()

    def beside_nearest(self, name: str) -> str:
        """Return a name that is unknown, beside the one that is spelled most like it."""
        near = difflib.get_close_matches(name_key(name), self._spelled, n=1, cutoff=_ALIKE)
        return f"'{name}'" + (f" (nearest: '{self._spelled[near[0]]}')" if near else "")
