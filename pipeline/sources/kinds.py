"""Kinds of sources, and the protocol that each kind follows.

A kind is one class in one file: `Reader` says what it must and what it may do. It stands behind an entry point of the
group `plantmix.sources`, whose name is the key of the kind in a config. The kinds of this package are listed here; any
installed package may bring others. Files of kinds import this module and `rows`, never `settings` or `reading`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, get_args

import pyarrow as pa

from manifests.contract.settings import ConfigPath, Settings
from pipeline.sources.files import LocalReader
from pipeline.sources.rows import ROWS, Batch, RowColumns, Scratch, make_batch
from pipeline.sources.tars.samples import KeptSamples, StoredTars

SettingsT = TypeVar("SettingsT", bound=Settings)

GROUP = "plantmix.sources"
BUILT_IN = tuple(
    EntryPoint(name, f"pipeline.sources.{reader}", GROUP)
    for name, reader in (
        ("table", "table:TableReader"),
        ("webdataset", "webdataset:WebdatasetReader"),
        ("folder", "folder:FolderReader"),
        ("parquet", "parquet:ParquetReader"),
    )
)
HEAD_ROWS = 1000


@dataclass(frozen=True)
class FirstRows:
    """Rows enough to see what a build would meet.

    `has_captions` is false where they would cost a join or a request each. `is_part` says that more rows follow the
    last batch, whatever it holds.
    """

    batches: Iterator[Batch]
    has_captions: bool = True
    is_part: bool = False

    @classmethod
    def of_addresses(cls, urls: Sequence[str | None], licences: Sequence[str | None]) -> FirstRows:
        """Rows of a source that is joined, by their addresses and licences alone; a list may be empty."""
        named = {"record_key": urls, "url": urls, "licence": licences}
        columns = {name: pa.array(values[:HEAD_ROWS], pa.string()) for name, values in named.items() if values}
        num_rows = max((len(column) for column in columns.values()), default=0)
        return cls(iter([make_batch(columns, range(num_rows))]), has_captions=False, is_part=True)


@dataclass(frozen=True)
class Listing:
    """The content of a path that a user names. `names` are the files in a folder or a zip, else the path alone."""

    path: str
    form: Literal["file", "folder", "zip", "pattern"]
    names: Sequence[str]

    def ends(self, *endings: str) -> list[str]:
        """Return the names with one of these endings, whatever their case."""
        return [name for name in self.names if name.lower().endswith(endings)]


@dataclass
class Place:
    """A source as its YAML says it: settings of its kind, and `words` on how they were guessed.

    `comments` holds words for single settings, keyed by the setting's name. `missing` says what only the user can add,
    `left_out` why a column of the table is not read. `could_keep` names what `extra` of the key `mapping` may hold, and
    `fields` are read where that key is absent. `captions` are tables of texts, `join` tables of fields.
    """

    settings: dict[str, Any]
    words: str
    comments: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    states_licence: bool = True
    has_taxa: bool = False
    mapping: str = "columns"
    fields: dict[str, Any] = field(default_factory=dict)
    could_keep: Sequence[str] = ()
    captions: list[dict[str, Any]] = field(default_factory=list)
    join: list[dict[str, Any]] = field(default_factory=list)
    kind: str = ""
    """The name of the kind that took the place; `init` sets it."""


class Reader(ABC, Generic[SettingsT]):
    """A kind of source. An instance reads one source: `settings` are its own, `where` names it in messages.

    `check`, `digest` and `rows` are all that a kind needs; what else is here has an answer that fits most kinds.
    """

    settings_type: ClassVar[type[Settings]]
    """What stands under the key of the kind in a config."""
    is_flat: ClassVar[bool] = False
    """The settings are keys of the source itself."""
    on_disk: ClassVar[bool] = False
    """Pictures are read in place, below `root`; otherwise they are addresses on the web."""
    in_shards: ClassVar[bool] = False
    """A file holds many samples, and two files may use one name for theirs."""
    takes_folders: ClassVar[bool] = True
    """`init` gives it a folder as a whole; otherwise other sources may lie there too."""
    init_order: ClassVar[int] = 0
    """`init` asks kinds with a smaller number first."""
    caption_cures: ClassVar[tuple[str, ...]] = ("columns: {caption: COLUMN}", "defaults: {caption: TEXT}")
    """Lines of YAML that give captions to rows without one."""
    ids: ClassVar[tuple[str, ...]] = ()
    """Columns, in small letters without `_`, whose values name one thing in every table: `audit` compares them."""
    version: ClassVar[str] = ""
    """Raised when the same input gives other rows; a changed file of a kind outside this package counts by itself."""

    def __init__(self, settings: SettingsT, where: str) -> None:
        self.settings, self.where = settings, where

    @classmethod
    def check_keys(cls, keys: Any, chosen: str) -> None:
        """Check flat settings among the `keys` of a source, of which `chosen` is the kind. Raises: ValueError."""

    @property
    def path(self) -> str:
        """The path that the source names: a file, a folder, or a pattern; local or an fsspec address."""
        return str(getattr(self.settings, "path", ""))

    # ---- what every kind must do

    @abstractmethod
    def check(self) -> None:
        """Check that the source is there, and is what the settings say of it, by the heads of its files.

        Raises: ConfigError that begins with `where`, and says what is wrong, what is there, and what to do.
        """

    @abstractmethod
    def digest(self, hash_file: Callable[[str], str]) -> list[str]:
        """Hashes of all that the rows depend on: the same for the same content in any folder, whatever its times."""

    @abstractmethod
    def rows(self, scratch: Scratch) -> Iterator[Batch]:
        """Every row in a fixed order, in batches of bounded size. A row that cannot be used is `lost`, for a reason."""

    # ---- pictures on the disk

    def root(self) -> str:
        """Return the folder that locators are relative to; asked only where `on_disk`."""
        return self.path

    def pictures(self) -> LocalReader:
        """Open pictures by their locators; called only where `on_disk`."""
        return LocalReader(self.root())

    def picture_files(self) -> list[str]:
        """Names, below the root, of pictures that lie in files of their own."""
        return []

    def text_files(self) -> list[str]:
        """Names, below the root, of texts that the rows depend on and `digest` leaves out."""
        return []

    def remarks(self) -> list[str]:
        """Tell what a user should know before a build, with the cure: files not read, likely mistakes of settings."""
        return []

    @property
    def folders_are_classes(self) -> bool:
        """Return whether the name of its folder says what a picture shows."""
        return False

    # ---- tars in a store, and Parquet files with pictures

    kept_samples: KeptSamples | None = None
    """What `rows` takes the samples of tars from, where a build has read them before."""

    def tars(self) -> StoredTars | None:
        """Files whose samples `rows` takes from `kept_samples`: a build reads each once, in pieces."""
        return None

    # ---- what a build is told and records

    def mapping(self) -> RowColumns | None:
        """Return how the settings map what the source has to the columns of its rows.

        None where the kind knows by itself.
        """
        return None

    def fills(self) -> set[str]:
        """Return the columns of ROWS, but for `extra`, that some row may have a value in."""
        mapping = self.mapping()
        return (mapping.fills() | {"record_key", "url"} if mapping else set(ROWS.names)) - {"locator", "extra"}

    def extra_names(self) -> list[str]:
        """Keys of the json in the column `extra` of the rows."""
        return list(getattr(self.mapping() or self.settings, "extra", ()))

    def identity(self) -> dict[str, Any]:
        """Return the settings that the rows depend on; holds no path of a machine."""
        values = self.settings.model_dump(mode="json", exclude_none=True)
        return values | {name: None for name in path_keys(type(self.settings)) if values.get(name)}

    def recipe(self) -> dict[str, Any]:
        """Return the identity as a release records it; may tell more, and no path either."""
        return self.identity()

    def cites(self) -> dict[str, Any] | None:
        """Return the statement of a release on where the rows came from."""
        return None

    def counts(self) -> dict[str, str] | None:
        """Return a file `file` of the release that counts its pictures `by` a key of their `extra`.

        `about` says what for.
        """
        return None

    # ---- before a build

    def first_rows(self, scratch: Scratch) -> FirstRows:
        """Return the first rows, where those of `rows` would take a while."""
        return FirstRows(self.rows(scratch))

    def most_rows(self) -> int | None:
        """Return the most pictures that there can be, where that is cheap to know."""
        return None

    @classmethod
    def guess(cls, listing: Listing) -> Place | None:
        """Guess settings of this kind for a path; None where it is of another kind.

        Raises: ConfigError, with the cure, for what is of this kind and cannot be read.
        """
        return None

    # ---- data that must be brought first

    def in_work_folder(self, name: str, work_dir: str) -> SettingsT:
        """Return the settings, with the place where the source `name` keeps what it brings."""
        return self.settings

    def waits_for(self) -> str | None:
        """Name what is not there yet and `prepare` would bring; a build brings it before the first stage."""
        return None

    def lacks(self, environment: Mapping[str, str]) -> str | None:
        """Name what the user must still give before `prepare` can work."""
        return None

    @classmethod
    def prepare(cls, sources: Sequence[Self], user_agent: str, environment: Mapping[str, str]) -> None:
        """Bring what these sources wait for.

        Raises: ConfigError for what is refused; RunError where it does not come.
        """


def path_keys(model: type[Settings]) -> list[str]:
    """Return the keys whose values are paths of this machine."""
    (mark,) = get_args(ConfigPath)[1:]
    return [
        name
        for name, setting in model.model_fields.items()
        if mark in setting.metadata or any(mark in get_args(part)[1:] for part in get_args(setting.annotation))
    ]


@cache
def all_kinds() -> tuple[dict[str, type[Reader[Any]]], dict[str, str]]:
    """Return the kinds by their key, those of this package first, and why others that are installed cannot be used."""
    kinds: dict[str, type[Reader[Any]]] = {point.name: point.load() for point in BUILT_IN}
    faults: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        what = f"the kind of source `{point.name}` ({point.value})"
        if point.name in kinds:
            faults[point.name] = f"{what} has the name of another kind; rename it, or uninstall its package"
            continue
        try:
            kind = point.load()
        except Exception as error:  # another package's module may raise anything
            faults[point.name] = (
                f"{what} cannot be loaded: {' '.join(str(error).split())}; mend or uninstall its package"
            )
            continue
        if isinstance(kind, type) and issubclass(kind, Reader) and hasattr(kind, "settings_type"):
            kinds[point.name] = kind
        else:
            faults[point.name] = f"{what} is no Reader of pipeline.sources.kinds with a settings_type"
    return kinds, faults
