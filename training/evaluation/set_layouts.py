"""The layouts of evaluation sets on disk: pictures with classes or captions.

Reads three layouts and knows each by what is in the folder. clip_benchmark's webdataset: `classnames.txt`,
`SPLIT/*.tar` with an image and a `.cls` or `.txt` member, `zeroshot_classification_templates.txt`, `dataset_type.txt`.
A table beside the pictures, as BioCLIP's sets: `metadata.csv` with `filepath` and `class`, or ranks. Class folders of
pictures. Holds only the index; pictures are read later. Reads only regular files within the folder. Writes nothing.
Gives up with ConfigError on any other folder, and on one with links or pipes among its files.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from manifests.contract.outcomes import Outcome
from manifests.errors import ConfigError, RunError
from manifests.pictures.bounds import MOST_FILE_BYTES
from manifests.samples.endings import PICTURES, is_picture, not_read, plain_tars
from manifests.samples.tars import samples_in
from manifests.services.untrusted import BrokenTarError
from manifests.stores.inside import why_not_inside
from training.data import loader
from training.data.images import CorruptSample, View
from training.evaluation.class_names import Taxon, class_text, taxon_of, taxon_of_folder

_CLASS_NAMES, _TEMPLATES, _KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
_TABLE = "metadata.csv"
_CLASS_COLUMNS = ("class", "label", "class_name")
_MAX_TEXT_BYTES = 64 << 20  # of a text file of a set, which is read whole
_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "heldout")


@dataclass(frozen=True)
class Item:
    """Where one picture is: a file, or a part of a tar."""

    name: str
    path: str
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        """Return the bytes of the picture.

        Raises: OSError; CorruptSample for a file that is too large, and for a pipe or a device.
        """
        if not stat.S_ISREG(Path(self.path).stat().st_mode):  # a pipe would be waited for, and /dev/zero has no end
            raise CorruptSample("is no regular file")
        with Path(self.path).open("rb") as stream:
            if self.length is None and os.fstat(stream.fileno()).st_size > MOST_FILE_BYTES:
                raise CorruptSample(f"{Outcome.BODY_TOO_LARGE}: more than {MOST_FILE_BYTES:,} bytes")
            stream.seek(self.offset)
            return stream.read(self.length)


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set. Each item has a class number (`classification`) or captions (`retrieval`)."""

    kind: Literal["classification", "retrieval"]
    items: tuple[Item, ...]
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()  # as written in a prompt
    taxa: tuple[Taxon | None, ...] = ()
    templates: tuple[str, ...] = ()  # the set's own; each has one {}
    captions: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()  # what was left out

    def fingerprint(self) -> str:
        """Identity of its content: classes, captions, answers, and the bytes of every picture that can be read."""
        words = (self.kind, self.labels, self.classes, self.taxa, self.templates, self.captions)
        digest = hashlib.sha256(repr(words).encode())
        for item in self.items:
            with suppress(CorruptSample, OSError):  # an evaluation names it
                digest.update(hashlib.sha256(item.read()).digest())
        return digest.hexdigest()


def open_eval_set(path: str, split: str) -> EvalSet:
    """Index the evaluation set in a folder.

    Raises: ConfigError for an unknown layout, a missing split, or files that contradict one another.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(f"{path}: no such folder of an evaluation set")
    split_folder = folder / split if (folder / split).is_dir() else folder
    tars = sorted(map(Path, plain_tars(map(str, split_folder.glob("*.t*")))), key=_by_number)
    if tars:
        return _open_tars(folder, tars)
    if (folder / _TABLE).is_file():
        return _open_table(folder, split)
    if split_folder == folder and (splits := _splits_in(folder)):
        raise ConfigError(f"{path}: has no split '{split}'; it has {', '.join(splits)}: name one of them as split")
    if any(child.is_dir() for child in split_folder.iterdir()):
        return _open_class_folders(split_folder)
    raise ConfigError(
        f"{path}: no evaluation set here; expected {split}/*.tar (webdataset as clip_benchmark has it), "
        f"{_TABLE} beside pictures, or one folder of pictures for each class"
    )


def _splits_in(folder: Path) -> list[str]:
    """Folders that are splits, not classes: named like one, with tars or further folders in them."""
    return [
        child.name
        for child in sorted(folder.iterdir())
        if child.is_dir()
        and child.name.lower() in _SPLIT_NAMES
        and any(inner.is_dir() or inner.suffix == ".tar" for inner in child.iterdir())
    ]


def load_pictures(items: Sequence[Item], view: View, batch_size: int, num_workers: int) -> Iterator[Tensor]:
    """Batches of views, uint8 (B, 3, H, W), in the order of the items.

    Raises: RunError for a picture that cannot be read; an evaluation leaves nothing out.
    """
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    yield from loader.each_batch(_Pictures(view), batches, num_workers)


class _Pictures(loader.BatchDataset):
    def __init__(self, view: View) -> None:
        self.view = view

    def load(self, places: list[Item]) -> Tensor:
        views = []
        for item in places:
            try:
                views.append(self.view(item.read()))
            except (CorruptSample, OSError) as error:
                raise RunError(f"{item.name}: broken picture in an evaluation set: {error}") from None
        return torch.stack(views)


def _open_tars(folder: Path, tars: list[Path]) -> EvalSet:
    _require_regular(tars[0].parent, [path.name for path in tars])
    kind = (_lines(folder / _KIND) or ["classification"])[0].lower()
    if kind not in ("classification", "retrieval"):
        raise ConfigError(f"{folder}: {_KIND} says '{kind}'; only classification and retrieval can be read")
    answer_ending = "cls" if kind == "classification" else "txt"
    halves: list[str] = []
    pairs = [pair for path in tars for pair in _tar_items(path, answer_ending, halves)]
    if halves or not pairs:
        first = f"; first: {halves[0]}. Take them out, or give what they lack" if halves else ""
        num = len(pairs) + len(halves)
        raise ConfigError(f"{folder}: {len(halves):,} of {num:,} samples in {len(tars):,} tars are not whole{first}")
    items = tuple(item for item, _ in pairs)
    if kind == "retrieval":
        return EvalSet("retrieval", items, captions=tuple(_captions(answer, item) for item, answer in pairs))
    classes = _class_names(folder / _CLASS_NAMES)
    labels = tuple(_class_number(answer, item, len(classes)) for item, answer in pairs)
    templates = tuple(line.replace("{c}", "{}") for line in _lines(folder / _TEMPLATES))
    return EvalSet("classification", items, labels, tuple(classes), (None,) * len(classes), templates)


def _class_names(path: Path) -> list[str]:
    """One name a line. The number of a class is that of its line, so only the last lines may be empty."""
    text = _text_inside(path).rstrip() if path.is_file() else ""
    names = [line.strip() for line in _split_lines(text)] if text else []
    if not names:
        raise ConfigError(f"{path.parent}: no {path.name} (one class name a line) beside the tars")
    if "" in names:
        raise ConfigError(f"{path}: line {names.index('') + 1} is empty; each line names a class, by its number")
    return names


def _tar_items(path: Path, answer_ending: str, halves: list[str]) -> Iterator[tuple[Item, bytes]]:
    """Picture and answer of every sample of a tar; into `halves` goes what others lack.

    Raises: ConfigError for a tar that is damaged, and for a member that must not be read.
    """
    key = ""
    with path.open("rb") as stream:
        try:
            for sample in samples_in(stream, (answer_ending,)):
                key, ending, answer = sample.key, sample.picture(), sample.texts.get(answer_ending)
                for bad, fault in sample.faults.items():
                    raise ConfigError(f"{path}: {key}.{bad} {fault}; take the sample out or take a whole copy")
                if ending is not None and answer is not None:
                    yield Item(f"{path.name}/{key}.{ending}", str(path), *sample.pictures[ending]), answer
                elif ending is not None or answer is not None:
                    lacking = f".{answer_ending} member" if ending else f"picture ({', '.join(PICTURES)})"
                    halves.append(f"{path.name}/{key} has no {lacking}")
        except BrokenTarError as error:
            raise ConfigError(
                f"{path}: the tar is damaged or cut short after {key or 'its start'} ({error}); take a whole copy"
            ) from None


def _captions(answer: bytes, item: Item) -> tuple[str, ...]:
    try:
        captions = tuple(line for line in _split_lines(answer.decode("utf-8-sig")) if line.strip())
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{item.name}: its .txt member is not UTF-8 (byte {error.start}): convert it or take the sample out"
        ) from None
    if not captions:
        raise ConfigError(f"{item.name}: its .txt member holds no caption: take the sample out")
    return captions


def _class_number(answer: bytes, item: Item, num_classes: int) -> int:
    try:
        number = int(answer.decode("ascii").strip())
    except ValueError:
        raise ConfigError(f"{item.name}: its .cls member is no class number: {answer[:40]!r}") from None
    if not 0 <= number < num_classes:
        raise ConfigError(
            f"{item.name}: class {number}, but {_CLASS_NAMES} has {num_classes} lines (0 to {num_classes - 1})"
        )
    return number


def _open_table(folder: Path, split: str) -> EvalSet:
    """Pictures by the rows of a table; only the split's rows where it has a column `split`."""
    path = folder / _TABLE
    names, cells = csv_rows(path, _text_inside(path))
    rows = list(enumerate(cells, start=2))  # the header is row 1
    if not rows or "filepath" not in names:
        raise ConfigError(f"{path}: needs a column 'filepath' and rows")
    if "split" in names:
        there = sorted({row["split"] or "" for _, row in rows})
        rows = [(number, row) for number, row in rows if row["split"] == split]
        if not rows:
            raise ConfigError(f"{path}: no row of split '{split}'; its column has {', '.join(there)}: name one of them")
    column = next((name for name in _CLASS_COLUMNS if name in names), None)
    taxa = [taxon_of(row) for _, row in rows]
    if column is None and all(taxon is None for taxon in taxa):
        raise ConfigError(
            f"{path}: needs a column 'class', or the ranks kingdom to species, which give each picture's class"
        )
    classes, items = [], []
    for (number, row), taxon in zip(rows, taxa, strict=True):
        name = row[column] if column is not None else taxon.taxonomic if taxon is not None else ""
        for cell, what in ((row["filepath"], "filepath"), (name, column or "kingdom to species")):
            if not cell:
                raise ConfigError(f"{path}: row {number} has no {what}: fill the cell or remove the row")
        items.append(Item(row["filepath"], str(folder / row["filepath"])))
        classes.append(name)
    names_of_items = [item.name for item in items]
    if twice := [name for name, num in Counter(names_of_items).items() if num > 1]:
        raise ConfigError(
            f"{path}: {len(twice):,} pictures stand in several rows, and would count several times; first: {twice[0]}. "
            "Keep one row of each"
        )
    if missing := [name for name in names_of_items if why_not_inside(folder, name) == "is not there"]:
        raise ConfigError(f"{path}: {len(missing):,} of its {len(items):,} pictures are not there; first: {missing[0]}")
    _require_regular(folder, names_of_items)
    return _classification(tuple(items), classes, taxa, as_words=False)


def _open_class_folders(root: Path) -> EvalSet:
    """Pictures at any depth; the class is the name of a picture's folder. What begins with a dot is left out."""
    inner = sorted(path.relative_to(root) for path in root.rglob("*"))
    named = [path for path in inner if not any(part.startswith(".") for part in path.parts)]
    paths = [path for path in named if is_picture(path.name)]
    if not paths:
        raise ConfigError(f"{root}: no pictures ({', '.join(PICTURES)}) in its folders")
    _require_regular(root, list(map(str, paths)))
    if stray := [path.name for path in paths if len(path.parts) == 1]:
        raise ConfigError(
            f"{root}: {len(stray):,} of {len(paths):,} pictures lie beside the class folders; first: {stray[0]}. Move "
            "each into the folder of its class, or away"
        )
    names = [path.parent.name for path in paths]
    folders: dict[str, list[str]] = {}
    for folder in dict.fromkeys(path.parent for path in paths):
        folders.setdefault(folder.name, []).append(str(folder))
    if shared := [members for members in folders.values() if len(members) > 1]:
        raise ConfigError(
            f"{root}: {len(shared):,} classes have several folders of one name; first: {', '.join(shared[0])}. "
            "Put the pictures of a class into one folder, or rename those of different classes"
        )
    items = tuple(Item(str(path), str(root / path)) for path in paths)
    others = not_read(path.name for path in named if (root / path).is_file())
    opened = _classification(items, names, [taxon_of_folder(name) for name in names], as_words=True)
    return replace(opened, notes=(others,) if others else ())


def _classification(
    items: tuple[Item, ...], names: Sequence[str], taxa: Sequence[Taxon | None], *, as_words: bool
) -> EvalSet:
    classes = sorted(set(names))
    if len(classes) < 2:
        raise ConfigError(f"{items[0].path}: its evaluation set has one class, '{classes[0]}'; two are needed")
    number = {name: k for k, name in enumerate(classes)}
    by_class = dict(zip(names, taxa, strict=True))
    return EvalSet(
        "classification",
        items,
        tuple(number[name] for name in names),
        tuple(class_text(name, None, "asis") if as_words else name for name in classes),
        tuple(by_class[name] for name in classes),
    )


def _require_regular(folder: Path, names: Sequence[str]) -> None:
    """Raise ConfigError that counts what is no regular file below the folder, and names the first."""
    bad = [(name, why_not) for name in names if (why_not := why_not_inside(folder, name)) is not None]
    if bad:
        raise ConfigError(
            f"{folder}: {len(bad):,} of {len(names):,} files are not read: only regular files within the folder are; "
            f"first: {bad[0][0]} {bad[0][1]}. Put the files themselves there"
        )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in _split_lines(_text_inside(path)) if line.strip()]


def _split_lines(text: str) -> list[str]:
    """Lines as editors count them: U+2028, U+0085 and the like are part of a line, or classes would change numbers."""
    return re.split(r"\r\n|\r|\n", text)


def _text_inside(path: Path) -> str:
    """Return the text of a file of a set. Raises: ConfigError as `read_text` does, and for what is no regular file."""
    _require_regular(path.parent, [path.name])
    return read_text(path)


def read_text(path: Path) -> str:
    """Return a text file as UTF-8, with or without a byte order mark.

    Raises: ConfigError that names the first line that is not UTF-8, and for a file that is too large.
    """
    with path.open("rb") as stream:
        content = stream.read(_MAX_TEXT_BYTES + 1)
    if len(content) > _MAX_TEXT_BYTES:
        raise ConfigError(f"{path}: has more than {_MAX_TEXT_BYTES:,} bytes; an evaluation set's text file is smaller")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8 (byte {content[error.start]:#04x}); convert the file, for "
                          "example with: iconv -f latin1 -t utf-8") from None  # fmt: skip


def csv_rows(path: str | Path, text: str, delimiter: str = ",") -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Return the names of the columns, and the rows, of a csv.

    Raises: ConfigError that names the line that the parser cannot read, such as one with a quote that is never closed.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return reader.fieldnames or (), list(reader)
    except csv.Error as error:
        raise ConfigError(f"{path}: cannot be read as csv: {error} (line {reader.reader.line_num})") from None


def _by_number(path: Path) -> tuple[list[int], str]:
    """Sorts 10.tar after 9.tar."""
    return [int(part) for part in re.findall(r"\d+", path.stem)], path.name
