"""A folder of many things as sources: its tars, pictures, tables and archives, each as what it is.

For `init`. What lies there becomes a source, or is named with the reason why it is none. Reads names, heads, and the
tables that name pictures. Of a folder in a store the first names are looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from itertools import islice
from pathlib import PurePosixPath
from posixpath import commonpath, dirname
from posixpath import join as posixjoin

from manifests.errors import ConfigError
from manifests.samples.endings import OTHER_TARS, TARS, is_picture, is_tar, stem_of_tar
from manifests.stores import storage
from pipeline.answers.places import keys_of, list_place, look_at, what_it_is
from pipeline.sources.files import MAX_LISTED, WORKBOOK_CURE, WORKBOOKS, is_lock, is_table, walk_files
from pipeline.sources.folder_names import BY_FOLDER, guess_with_table, guess_without_table, name_folders
from pipeline.sources.kinds import Listing, Place
from pipeline.sources.settings import KINDS, SourceSettings
from pipeline.sources.tables.formats import is_list_of_addresses

_TEST_SET = re.compile(
    r"(?i)(?:.*[-_ .])?(?:test|eval|evaluation|benchmark|held-?out)(?:[-_ .]?(?:set|data|images|pictures))?"
)
_OF_SET = r"(?:20\d\d)?(?:[-_ .]?(?:set|data|images|pictures))?"
_SPLIT = re.compile(rf"(?i)(?:.*[-_ .])?(?:val|valid|validation|dev|hold-?out){_OF_SET}")
_TRAIN = re.compile(rf"(?i)(?:.*[-_ .])?train(?:ing)?{_OF_SET}")
_THUMBS, _THUMB = re.compile(r"(?i)_?thumb(?:nail)?s?"), re.compile(r"(?i)[-_.]thumb(?:nail)?$")
_NO_SOURCE = {
    "weights of a model": (".pt", ".pth", ".ckpt", ".safetensors", ".onnx", ".h5", ".pkl"),
    "compressed; unpack it, since pictures are read in place": (*OTHER_TARS, ".7z"),
    f"a workbook that is not read; {WORKBOOK_CURE}": WORKBOOKS,
}
_NUMBERS = re.compile(r"\d+(?:-of-\d+)?(?=[^/]*\.parquet$)")
_BEHIND_NAME = re.compile(r"(?:[-_.](?:\d+(?:-of-\d+)?|\*.*))?(?:\.\w+)+$")  # of a split: numbers and endings
_SHOWN_FILES = 5
_MANY_FILES = 50  # more tables in one folder are files of one; more texts beside no picture are not opened


@dataclass
class Found:
    """The findings at a path: sources; tables that may hold texts for them, else what each is; what is no source."""

    places: list[Place] = field(default_factory=list)
    tables: dict[str, Place | ConfigError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, guess: Callable[[], Place | None]) -> bool:
        """Add a source of a kind, where there is one, or why what is there cannot be read."""
        try:
            guessed = guess()
        except ConfigError as error:
            self.notes.append(str(error))
            return False
        if guessed is not None:
            guessed.kind = kind or guessed.kind
            self.places.append(guessed)
        return guessed is not None


def look_below(path: str) -> Found:
    """Every source at a path. Raises: ConfigError for a place that cannot be one, as `look_at`."""
    listing = list_place(path)
    if listing.form != "folder":
        return Found([look_at(path)])
    found = _Folder(path).part()
    if not found.places and not found.tables:
        raise ConfigError("; ".join([f"{path}{what_it_is(listing)}", *found.notes]))
    return found


class _Folder:
    """The files below a folder, by the folder that holds them. What is found is taken out of them."""

    def __init__(self, path: str) -> None:
        self.path, self.found = path, Found()
        self.files: dict[str, list[str]] = {}
        self.apart: set[str] = set()  # folders with pictures that are not for a source of the pictures around them
        names = (name for name, size in walk_files(path) if size is not None and not is_lock(name))
        for name in islice(names, MAX_LISTED) if storage.is_remote(path) else names:
            folder, _, file = name.rpartition("/")
            self.files.setdefault(folder, []).append(file)
        pictures = ((folder, file) for folder, some in self.files.items() for file in some if is_picture(file))
        self.stems = {_stem(file) for folder, file in pictures if not _thumbs_in(folder)}

    def part(self) -> Found:
        """Decide what becomes of each file."""
        self._take_archives()
        self._set_tests_apart()
        tables = self._take(lambda _, file: is_table(file))
        self._take_tars(tables)
        self._take_parquet(tables)
        self._take_tables(tables)
        self._take_pictures()
        self._name_others()
        return self.found

    def _at(self, *parts: str) -> str:
        return storage.join(self.path, *[part for part in parts if part]) if any(parts) else self.path

    def _take(self, wanted: Callable[[str, str], bool]) -> dict[str, list[str]]:
        """Take out files by their folder and their name."""
        taken, left = dict[str, list[str]](), dict[str, list[str]]()
        for folder, some in self.files.items():
            for file in some:
                (taken if wanted(folder, file) else left).setdefault(folder, []).append(file)
        self.files = left
        return taken

    def _take_below(self, top: str) -> dict[str, list[str]]:
        """Take out a folder with all that is below it."""
        return self._take(lambda folder, _: top in _way_to(folder))

    def _take_archives(self) -> None:
        """Folders and zips that are a source as a whole."""
        whole = (name for name, kind in KINDS.items() if kind.takes_folders)
        kinds = sorted(whole, key=lambda kind: (KINDS[kind].init_order, kind))
        for folder in sorted(self.files):
            listing = Listing(self._at(folder), "folder", self.files.get(folder, []))
            if any(self.found.add(kind, partial(KINDS[kind].guess, listing)) for kind in kinds):
                self._take_below(folder)
        zips = self._take(lambda _, file: file.lower().endswith(".zip") and not is_table(file))
        for path in (self._at(folder, file) for folder, some in sorted(zips.items()) for file in some):
            self.found.add("", partial(look_at, path))

    def _set_tests_apart(self) -> None:
        """Leave out test sets, by the names of their folders: nothing of them may be trained on."""
        beside: dict[str, set[str]] = {}
        for top in {top for folder in self.files for top in _way_to(folder)}:
            beside.setdefault(dirname(top), set()).add(PurePosixPath(top).name)
        tops = (posixjoin(parent, name) for parent, names in beside.items() for name in names if _is_test(name, names))
        for top in sorted(tops):
            taken = self._take_below(top)
            files = [file for some in taken.values() for file in some]
            if num := sum(is_picture(file) or is_tar(file) for file in files):
                self.apart |= taken.keys()
                self._set_apart(self._at(top), f"{num:,} pictures or tars")

    def _take_tars(self, tables: dict[str, list[str]]) -> None:
        """Add a source for the highest folder that holds tars and no pictures, else for the tars of a folder itself.

        Tables that a downloader left beside its tars are part of them.
        """
        with_pictures = [folder for folder, some in self.files.items() if any(map(is_picture, some))]
        no_tars = {top for folder in (*with_pictures, *self.apart) for top in _way_to(folder)}
        places = dict[tuple[str, str], list[str]]()
        for folder, some in self._take(lambda _, file: is_tar(file)).items():
            self._name_splits(folder, some)
            stems = {stem_of_tar(file) for file in some}
            tables[folder] = [name for name in tables.get(folder, ()) if re.split(r"[._]", name)[0] not in stems]
            top = next((parent for parent in _way_to(folder) if parent not in no_tars), None)
            for file in some:
                ending = next(ending for ending in TARS if file.lower().endswith(ending))
                places.setdefault((folder, f"*{ending}") if top is None else (top, ""), []).append(file)
        for (folder, pattern), some in sorted(places.items()):
            listing = Listing(self._at(folder, pattern), "pattern" if pattern else "folder", some)
            self.found.add("webdataset", partial(KINDS["webdataset"].guess, listing))

    def _take_parquet(self, tables: dict[str, list[str]]) -> None:
        """Add a source for each split of Parquet files with pictures. Files of a split differ in numbers alone."""
        for folder, some in sorted(tables.items()):
            splits: dict[str, list[str]] = {}
            for file in some:
                splits.setdefault(_NUMBERS.sub("*", file), []).append(file)
            for pattern, files in splits.items():
                path = self._at(folder, pattern if len(files) > 1 else files[0])
                kind = KINDS["parquet"]
                if not self.found.add("parquet", partial(kind.guess, Listing(path, "pattern", files))):
                    continue
                tables[folder] = [file for file in tables[folder] if file not in files]
                if _is_test(_BEHIND_NAME.sub("", pattern), (_BEHIND_NAME.sub("", name) for name in splits)):
                    self.found.places.pop()
                    self._set_apart(path, f"{len(files):,} Parquet files")

    def _set_apart(self, path: str, what: str) -> None:
        self.found.notes.append(
            f"{path}: {what}, a test set by its name; write `--evaluation {path}` to keep them out of the training "
            "data, or name it in --domain to train on it"
        )

    def _name_splits(self, folder: str, files: Sequence[str]) -> None:
        """Name tars and tables of test sets that lie among others: these are read with them."""
        names = {file: _BEHIND_NAME.sub("", file) for file in files}
        if tests := sorted(file for file, name in names.items() if _is_test(name, names.values())):
            self.found.notes.append(
                f"{self._at(folder, tests[0])}: {len(tests):,} files in its folder are a test set by name, and are "
                "read with the files beside them; move them elsewhere to keep them out of the training data"
            )

    def _take_tables(self, tables: Mapping[str, Sequence[str]]) -> None:
        """Tables that name pictures, tables of addresses, and those that may hold texts for pictures."""
        named: set[str] = set()
        for folder, some in sorted(tables.items()):
            self._name_splits(folder, some)
            others: list[str] = []
            for path in (self._at(folder, file) for file in some):
                guess = partial(guess_with_table, path, self._near(folder))
                if len(some) <= _MANY_FILES and self.found.add("folder", guess):
                    reader = SourceSettings(name="x", domain="x", **keys_of(self.found.places[-1])).reader
                    named.update(storage.join(reader.path, name) for name in reader.picture_files())
                else:
                    others.append(path)
            for ending, num in Counter(PurePosixPath(file).suffix for file in some).items():
                of_ending = [path for path in others if path.endswith(ending)]
                self._look_at_tables(self._at(folder, f"*{ending}"), of_ending, len(of_ending) == num)
        for folder, some in self.files.items():
            pictures = {file: self._at(folder, file) for file in some if is_picture(file)}
            if named.isdisjoint(pictures.values()):
                continue
            self.apart.add(folder)
            self.files[folder] = [file for file in some if file not in pictures]
            if num := len({*pictures.values()} - named):
                self.found.notes.append(f"{self._at(folder)}: {num:,} of its pictures, which no row of a table names")

    def _look_at_tables(self, pattern: str, paths: Sequence[str], are_all: bool) -> None:
        """Tables of one ending that name no pictures: where all are read alike they are files of one table."""
        looked_at: dict[str, Place | ConfigError] = {}
        for path in paths if len(paths) <= _MANY_FILES else [pattern]:
            try:
                looked_at[path] = look_at(path)
            except ConfigError as error:
                looked_at[path] = error
        columns = [seen.settings.get("columns") if isinstance(seen, Place) else None for seen in looked_at.values()]
        if are_all and len(columns) > 1 and columns[0] is not None and columns.count(columns[0]) == len(columns):
            looked_at = {pattern: look_at(pattern)}
        self.found.tables |= looked_at

    def _near(self, folder: str) -> list[str]:
        """Where the pictures of a table may lie: in its own folder, then in those that share most of its path."""
        others = sorted(self.files, key=lambda other: (-len(commonpath([other, folder])), other))
        near = [folder, *others[:_MANY_FILES]] if not storage.is_remote(self.path) else [folder]
        return [self._at(path) for path in near]

    def _take_pictures(self) -> None:
        """Add a source for all folders whose pictures are named in one way.

        Thumbnails of other pictures are left out.
        """
        thumbs = self._take_thumbnails()
        names = [f"{folder}/{file}".removeprefix("/") for folder, some in self.files.items() for file in some]
        namings = name_folders(names)
        for naming in dict.fromkeys(namings.values()):
            group = {folder for folder, others in namings.items() if others == naming}
            by_name = naming in BY_FOLDER
            base = commonpath([dirname(member) if by_name else member for member in group])
            inside = [name.removeprefix(f"{base}/") for name in names if name.rpartition("/")[0] in group]
            guess = guess_without_table(Listing(self._at(base), "folder", inside))
            exclude = _globs(base, group, {*namings, *self.apart} - group)
            exclude += [glob for glob, folders in thumbs.items() if any(base in _way_to(low) for low in folders)]
            if exclude:
                guess.settings["exclude"] = exclude
            guess.kind = "folder"
            self.found.places.append(guess)

    def _take_thumbnails(self) -> dict[str, set[str]]:
        """Take out small copies where each has its picture: the folders of each glob that names them."""
        copies: dict[str, set[tuple[str, str]]] = {}
        for folder, some in self.files.items():
            for file in filter(is_picture, some):
                if inner := _thumbs_in(folder):
                    copies.setdefault(f"**/{escape(inner)}/**", set()).add((folder, file))
                elif mark := _THUMB.search(_stem(file)):
                    copies.setdefault(f"**/*{escape(mark[0])}.*", set()).add((folder, file))
        thumbs: dict[str, set[str]] = {}
        for glob, files in sorted(copies.items()):
            if all(_THUMB.sub("", _stem(file)) in self.stems for _, file in files):
                thumbs[glob] = {folder for folder, _ in files}
                self.found.notes.append(f"{self._at(glob)}: {len(files):,} thumbnails of other pictures")
                for folder in thumbs[glob]:
                    self.files[folder] = [file for file in self.files[folder] if (folder, file) not in files]
        return thumbs

    def _name_others(self) -> None:
        """Name the files that are neither a source nor beside a picture."""
        others: dict[str, list[str]] = {}
        for folder, some in sorted(self.files.items()):
            stems = {_stem(file) for file in some if is_picture(file)}
            files = [file for file in some if not is_picture(file) and _stem(file) not in stems]
            for file in files:
                path, lowered = self._at(folder, file), file.lower()
                if lowered.endswith(".txt") and len(files) <= _MANY_FILES and is_list_of_addresses(path):
                    self.found.add("", partial(look_at, path))
                    continue
                why = next((why for why, endings in _NO_SOURCE.items() if lowered.endswith(endings)), "not read")
                others.setdefault(why, []).append(path)
        for why, paths in others.items():
            more = f" and {len(paths) - _SHOWN_FILES:,} more" if len(paths) > _SHOWN_FILES else ""
            self.found.notes.append(f"{', '.join(paths[:_SHOWN_FILES])}{more}: {why}")


def _stem(file: str) -> str:
    return file.rpartition(".")[0]


def _is_test(name: str, beside: Iterable[str]) -> bool:
    """Return whether a name is that of a test set, or of a split that is not trained on where `train` is beside it."""
    return bool(_TEST_SET.fullmatch(name) or (_SPLIT.fullmatch(name) and any(map(_TRAIN.fullmatch, beside))))


def _thumbs_in(folder: str) -> str | None:
    """Return the part of a path that says that small copies lie there."""
    return next((part for part in folder.split("/") if _THUMBS.fullmatch(part)), None)


def _way_to(folder: str) -> list[str]:
    """Return the folders from the top to a folder, with both."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:number]) for number in range(len(parts) + 1)]


def _globs(base: str, group: Collection[str], others: Collection[str]) -> list[str]:
    """Globs below a folder that take in the other folders and none of a group."""
    kept = {above for folder in group for above in _way_to(folder)}
    globs = set()
    for folder in (other for other in others if base in _way_to(other)):
        top = next((parent for parent in _way_to(folder) if base in _way_to(parent) and parent not in kept), None)
        inner = (folder if top is None else top).removeprefix(base).removeprefix("/")
        globs.add("/".join([*([escape(inner)] if inner else []), "*" if top is None else "**"]))
    return sorted(globs)
