"""Labels of a prediction: a file of labels, or the taxa of a release at one rank.

Reads a text file with a label a line, a csv, or the samples of a release. Writes nothing. Gives up with ConfigError on
a file that cannot be read, a label that is given twice, and a release without taxa.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from manifests.contract.release import SAMPLES_FILE, Release
from manifests.contract.tables import TAXON_RANKS
from manifests.errors import ConfigError
from manifests.stores import storage
from training.config import ClassText, has_one_slot
from training.data.columns import TAXON_COLUMNS
from training.evaluation.class_names import Taxon, class_text, most_stated, taxon_of
from training.evaluation.encoding import prompt_templates
from training.evaluation.set_layouts import csv_rows, read_text
from training.evaluation.within import LABEL_COLUMNS, choose_within, names_of_lines

_COMMON_COLUMN, _GIVEN_COLUMN = "taxon_vernacular_name", "taxon_scientific_name"


@dataclass(frozen=True)
class Labels:
    """K labels as they stand in the output; a taxon for each where it is known, and the rank they are of."""

    names: tuple[str, ...]
    taxa: tuple[Taxon | None, ...]
    rank: str | None = None
    given: tuple[tuple[str, ...], ...] = ()  # of each label the scientific names that its samples came with, if known
    whole: Labels | None = None  # of labels within a group: all that there are

    def within(self, group: str | Sequence[str], setting: str) -> tuple[Labels, list[str]]:
        """Return the labels within a taxon or a checklist, and what falls outside, in words.

        Raises: ConfigError for a group that is unknown, or has fewer than two labels.
        """
        numbers, _, notes = choose_within(group, self.names, self.taxa, self.rank, setting, self.given)
        names = tuple(self.names[i] for i in numbers)
        return Labels(names, tuple(self.taxa[i] for i in numbers), self.rank, whole=self), notes

    def texts(self, kind: ClassText) -> list[str]:
        """Return the name of each label in a prompt."""
        return [class_text(name, taxon, kind) for name, taxon in zip(self.names, self.taxa, strict=True)]

    @property
    def fingerprint(self) -> str:
        """Identity of names, taxa and rank."""
        taxa = [None if taxon is None else [taxon.ranks, taxon.common] for taxon in self.taxa]
        return hashlib.sha256(json.dumps([self.names, taxa, self.rank]).encode("utf-8")).hexdigest()

    @property
    def ranks_above(self) -> tuple[str, ...]:
        """The ranks above that of the labels for which at least one label has a value, the nearest first."""
        if self.rank is None:
            return ()
        above = enumerate(TAXON_RANKS[: TAXON_RANKS.index(self.rank)])
        ranks = [rank for index, rank in above if any(taxon and taxon.ranks[index] for taxon in self.taxa)]
        return tuple(reversed(ranks))


def read_labels(path: str, rank: str) -> Labels:
    """Labels of a file: a text with one a line, or a csv with a column `label`, with ranks beside it where known.

    The first line of a text is no label where it is the name of such a column.
    A csv without a column of labels takes the column of the rank. With ranks, labels are of `rank`.

    Raises: ConfigError.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{path}: no such file of labels; a label a line, or a csv with a column 'label'")
    text = read_text(file)
    if file.suffix.lower() != ".csv":
        names = names_of_lines(path, text)
        return _checked(path, names, [None] * len(names), None)
    columns, rows = csv_rows(path, text)
    column = next((name for name in (*LABEL_COLUMNS, rank) if name in columns), None)
    if column is None:
        raise ConfigError(f"{path}: needs a column 'label' or '{rank}'; it has {', '.join(columns) or 'none'}")
    names = [(row[column] or "").strip() for row in rows]
    if "" in names:
        raise ConfigError(f"{path}: row {names.index('') + 2} has no {column}: fill the cell or remove the row")
    taxa = [taxon and taxon.up_to(rank) for taxon in map(taxon_of, rows)]
    has_ranks = any(taxon is not None and any(taxon.ranks) for taxon in taxa)
    return _checked(path, names, taxa, rank if has_ranks else None)


def labels_of_release(release: Release, rank: str) -> Labels:
    """Return the taxa of a release at a rank, sorted by name.

    Of each other rank and the common name, what most samples say.

    Raises: ConfigError when no sample has a value at that rank.
    """
    columns, of_rank = [*TAXON_COLUMNS, _COMMON_COLUMN], f"taxon_{rank}"
    fs, inner = storage.filesystem(storage.join(release.path, SAMPLES_FILE))
    in_file = pq.read_schema(inner, filesystem=fs).names
    there = [name for name in (*columns, _GIVEN_COLUMN) if name in in_file]
    rows = []
    if of_rank in there:
        groups = release.samples(columns=there).group_by(there).aggregate([([], "count_all")])
        rows = [row for row in groups.to_pylist() if (row[of_rank] or "").strip()]
    if not rows:
        raise ConfigError(f"{release.path}: no sample has a {rank}; choose another --rank, or give --labels FILE")
    stated = most_stated((row[of_rank].strip(), [row.get(name) for name in columns], row["count_all"]) for row in rows)
    given = defaultdict[str, set[str]](set)
    for row in rows:
        given[row[of_rank].strip()].add(row.get(_GIVEN_COLUMN) or "")
    names = sorted(stated)
    taxa = [Taxon(stated[name][:-1], stated[name][-1] if rank == "species" else "").up_to(rank) for name in names]
    labels = _checked(release.path, names, taxa, rank)
    return replace(labels, given=tuple(tuple(given[name]) for name in names))


def label_templates(templates: Sequence[str]) -> list[Callable[[str], str]]:
    """Return the templates of a prompt: texts with one {}, or the name of one of open_clip's lists.

    Raises: ConfigError.
    """
    if len(templates) == 1 and templates[0] in ("openai", "simple"):
        return prompt_templates(templates[0])
    if wrong := [template for template in templates if not has_one_slot(template)]:
        raise ConfigError(f"template '{wrong[0]}': needs one {{}} for the label, and no other field in braces")
    return prompt_templates(tuple(templates))


def _checked(where: Any, names: Sequence[str], taxa: Sequence[Taxon | None], rank: str | None) -> Labels:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"{where}: {len(twice):,} labels are given twice; first: '{twice[0]}'")
    if len(names) < 2:
        raise ConfigError(f"{where}: has {len(names)} labels; two or more are needed to tell pictures apart")
    return Labels(tuple(names), tuple(taxa), rank)
