"""The settings of a source: exactly one origin, how its columns map, and what fills the gaps.

Every reader in this folder takes an `Origin`; `SourceSettings` adds the domain. Other lists of images that these
readers read (a set for evaluation) derive from `Origin` too. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from manifests.settings import NAME_PATTERN, ConfigPath, Settings
from pipeline.vocabulary.licences import LicenceSettings

Given = TypeVar("Given")
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
TableFormat = Literal["auto", "parquet", "csv", "tsv", "json", "jsonl"]
Terms = Annotated[list[str], Field(min_length=1)]


def _as_texts(where: Any) -> Any:
    """Lists of values as texts; a single value is a list of one."""
    if not isinstance(where, dict):
        return where
    found: dict[Any, list[str]] = {}
    for term, values in where.items():
        listed = values if isinstance(values, list) else [values]
        if any(isinstance(value, bool) for value in listed):
            raise ValueError(f"{term}: YAML reads NO, yes, true as truth values; put the value in quotes")
        if term == "licence":
            LicenceSettings(allow=tuple(str(value) for value in listed))  # its error names the right spelling
        found[term] = [str(value) for value in listed]
    return found


def given(setting: Given | None) -> Given:
    """A setting that is there, because the origin was checked to have it."""
    assert setting is not None
    return setting


WhereTerms = Annotated[dict[str, Terms], BeforeValidator(_as_texts)]

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "tif", "tiff", "bmp", "avif", "heic", "jp2")


class RowFields(Settings):
    """Fields of the contract that any source may fill: from a column that it names, or with one value for all rows."""

    taxon_kingdom: str | None = None
    """The kingdom of the taxon."""
    taxon_phylum: str | None = None
    """The phylum of the taxon."""
    taxon_class: str | None = None
    """The class of the taxon."""
    taxon_order: str | None = None
    """The order of the taxon."""
    taxon_family: str | None = None
    """The family of the taxon."""
    taxon_genus: str | None = None
    """The genus of the taxon."""
    taxon_species: str | None = None
    """The species of the taxon."""
    taxon_scientific_name: str | None = None
    """The scientific name, with or without authors."""
    taxon_vernacular_name: str | None = None
    """The common name."""
    licence: str | None = None
    """Name or address of the licence; many spellings are understood."""
    licence_url: str | None = None
    """Address of the licence."""
    rights_holder: str | None = None
    """Who owns the picture."""
    creator: str | None = None
    """Who made the picture."""
    reference_url: str | None = None
    """The page that shows the picture."""


PLAIN_COLUMNS = tuple(RowFields.model_fields)
CONTRACT_COLUMNS = ("record_key", "group_id", "url", "locator", "caption", *PLAIN_COLUMNS, "extra")


class RowColumns(RowFields):
    """Which column (or field) of a source fills which column of the contract; `extra` holds any others."""

    record_key: str | None = Field(None, description="the source's own key")
    group: str | None = Field(None, description="what pictures of one thing share; it is kept together")
    caption: str | list[str] | None = Field(None, description="one column, or several joined with a space")
    extra: list[str] = Field(default_factory=list, description="columns kept as json beside the sample")

    def names(self) -> list[str]:
        """Every column that is mapped, each once; the column of the address comes first."""
        values = self.model_dump()
        found: list[str] = []
        for name in sorted(values, key=lambda name: name not in ("file", "url")):
            found.extend([values[name]] if isinstance(values[name], str) else values[name] or [])
        return list(dict.fromkeys(found))


class ColumnMap(RowColumns):
    """Columns of a table of URLs; the URL is the key when `record_key` is absent."""

    url: str
    """The column of the addresses."""
    caption: str | list[str] = Field(description="one column, or several joined with a space")


class FileColumns(RowColumns):
    """Columns of a table beside a folder of pictures; the file's path is the key when `record_key` is absent."""

    file: str = Field(description="path of the picture, relative to the folder")
    url: str | None = Field(None, description="where the picture came from; it is never requested")


class ShardFields(RowColumns):
    """Fields of a webdataset sample.

    A text member goes by its extension (`txt`, `scientific_name.txt`), a key of the json member by `json.KEY`, a
    column of the shard's own Parquet file by `parquet.COLUMN`, and `__key__` is the webdataset key.
    """

    url: str | None = Field(None, description="where the picture came from; it is never requested")


class FolderSettings(Settings):
    """Pictures in a folder and its sub-folders."""

    path: ConfigPath
    """The folder."""
    captions: Literal["folder_name", "text_file", "none"] | None = Field(
        None, description="folder_name: of the innermost folder; text_file: NAME.txt beside NAME.jpg; not with a table"
    )
    folder_name_is: Literal["caption", "scientific_name", "vernacular_name"] = "caption"
    """What a folder's name says: a caption, or the name of a taxon."""
    suffixes: tuple[str, ...] = Field(IMAGE_SUFFIXES, description="which files are pictures")
    table: str | None = Field(None, description="table of the pictures, relative to the folder or an address")
    format: TableFormat = "auto"
    """Of the table; auto: by its ending."""
    columns: FileColumns | None = None

    @model_validator(mode="after")
    def _one_way(self) -> FolderSettings:
        if (self.table is None) != (self.columns is None):
            raise ValueError("table and columns go together")
        if self.table is not None and self.captions is not None:
            raise ValueError("captions come from the table's columns, or by `captions`, not both")
        if self.folder_name_is != "caption" and self.captions != "folder_name":
            raise ValueError("folder_name_is needs captions: folder_name")
        return self

    @property
    def folders_are_classes(self) -> bool:
        """Whether the name of its folder says what a picture shows."""
        return self.table is None and self.captions in (None, "folder_name")


class WebdatasetSettings(Settings):
    """Tars of an existing dataset: a file, a folder, a glob, or a brace range like {00000..00012}.tar."""

    path: ConfigPath
    """A tar, a folder of them, a glob, or a brace range."""
    suffixes: tuple[str, ...] = Field(IMAGE_SUFFIXES, description="members that are the picture; the first there is")
    fields: ShardFields | None = Field(
        None, description="absent: caption from txt, else json.caption; url from json.url; key SHARD/KEY"
    )


class DwcaSettings(Settings):
    """A Darwin Core Archive, as GBIF gives it.

    Terms of the record go by their short name (basisOfRecord, countryCode), those of the media row with `media.` in
    front (media.title), and `licence` is the licence of the picture in any spelling.
    """

    path: ConfigPath = Field(description="the zip as it came, or the folder it was unpacked to")
    caption: list[str] = Field(
        default_factory=list, description="terms, joined with a space; without any, the text is made from the taxon"
    )
    media_types: list[str] = Field(
        ["StillImage"], description="kinds of media; rows without a kind count by their format"
    )
    where: WhereTerms = Field(default_factory=dict, description="term: values of which a row must have one")
    vernacular_languages: list[str] = Field(
        ["en", "eng", "english"], description="of names in a file of their own; the first language there is"
    )
    extra: list[str] = Field(default_factory=list, description="terms kept as json beside the sample")


class GbifSettings(DwcaSettings):
    """A download that GBIF makes for us: by what the records must be, or by the key of one that is there already.

    The archive is read as `dwca` reads it. GBIF_USER, GBIF_PWD and GBIF_EMAIL of the environment say who asks.
    """

    path: ConfigPath = Field("", description="folder that keeps the archive; empty: gbif/NAME of the work folder")
    taxon: list[str | int] = Field(default_factory=list, description="names, or keys of GBIF's backbone; any of them")
    country: list[Annotated[str, Field(pattern=r"^[A-Z]{2}$")]] = Field(
        default_factory=list, description="ISO codes of two letters"
    )
    licence: list[Literal["CC0-1.0", "CC-BY-4.0", "CC-BY-NC-4.0"]] = Field(
        default_factory=list, description="of the records; that of a picture goes under `where`"
    )
    basis_of_record: list[Annotated[str, Field(pattern=r"^[A-Z_]+$")]] = Field(
        default_factory=list, description="such as HUMAN_OBSERVATION, PRESERVED_SPECIMEN"
    )
    years: tuple[int, int] | None = Field(None, description="first and last year, both included")
    refresh: str | int = Field("", description="any text, such as a date; another text asks GBIF anew")
    download: Annotated[str, Field(pattern=r"^[0-9]{7}-[0-9]{6,15}$")] | None = Field(
        None, description="key of a download that GBIF made already; the filters above do not go with it"
    )
    api: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$")] = Field(
        "https://api.gbif.org/v1", description="where GBIF answers"
    )

    @model_validator(mode="after")
    def _one_way(self) -> GbifSettings:
        filters = [name for name in ("taxon", "country", "licence", "basis_of_record", "years") if getattr(self, name)]
        if self.download and (filters or self.refresh):
            raise ValueError(f"{(filters or ['refresh'])[0]} and download: give what the records must be, or a key")
        if not self.download and not filters:
            raise ValueError("without a filter this asks for all of GBIF; give taxon, country, years, ... or download")
        if self.years and self.years[0] > self.years[1]:
            raise ValueError(f"years: {self.years[0]} is after {self.years[1]}")
        return self


class EolSettings(Settings):
    """The media manifest of the Encyclopedia of Life."""

    path: ConfigPath = Field(description="its csv files: one, a folder, or a glob")
    address: Literal["copy", "source"] = Field(
        "copy", description="EOL's full-size copy, or where the picture came from"
    )
    taxa: ConfigPath | None = Field(
        None, description="taxon.tab of EOL's Dynamic Hierarchy, for the names of the pages"
    )
    where: WhereTerms = Field(default_factory=dict, description="licence, and kingdom to species with `taxa`")


class InaturalistSettings(Settings):
    """The open data of iNaturalist: a folder with photos, observations, taxa and observers."""

    path: ConfigPath
    """The folder of its four tables."""
    size: Literal["original", "large", "medium", "small", "thumb", "square"] = Field(
        "medium", description="longest side at most: large 1024 px, medium 500, small 240, thumb 100"
    )
    quality_grade: list[str] = Field(["research"], description="grades that count; []: all")
    where: WhereTerms = Field(default_factory=dict, description="licence, kingdom to species, any column of the tables")
    extra: list[str] = Field(default_factory=list, description="columns kept as json beside the sample")


class RowDefaults(RowFields):
    """Values of a row where its source has none."""

    caption: str | None = None
    """For rows whose own is empty."""

    def given(self) -> dict[str, str]:
        """The values that are set."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Origin(Settings):
    """A named list of images that one of the readers understands."""

    place: ClassVar[str] = "sources"  # how messages name the part of the config

    name: Name
    """Small letters, digits, `-` and `_`; it is the identity of the source."""
    table: ConfigPath | None = Field(
        None, description="parquet, csv, tsv, json or jsonl file, a folder of them, or a glob"
    )
    format: TableFormat = "auto"
    """Of the table; auto: by its ending."""
    columns: ColumnMap | None = Field(None, description="for a table: which column holds what")
    dwca: DwcaSettings | None = None
    gbif: GbifSettings | None = None
    eol: EolSettings | None = None
    inaturalist: InaturalistSettings | None = None
    webdataset: WebdatasetSettings | None = None
    folder: FolderSettings | None = None
    defaults: RowDefaults = RowDefaults()

    @model_validator(mode="after")
    def _one_origin(self) -> Origin:
        given = [kind for kind in ORIGINS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(f"give exactly one of {', '.join(ORIGINS)} (found: {found})")
        if given == ["table"] and self.columns is None:
            raise ValueError("columns is needed with table: name at least the columns of the url and the caption")
        if given != ["table"] and (self.columns is not None or self.format != "auto"):
            raise ValueError(f"columns and format at this level belong to table, not to {given[0]}")
        return self

    @property
    def kind(self) -> str:
        """Which origin it is."""
        return next(kind for kind in ORIGINS if getattr(self, kind) is not None)

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"{self.place}.{self.name}"

    @property
    def path(self) -> str:
        """The path that it names: a file, a folder, or a pattern; local or an fsspec address."""
        settings = getattr(self, self.kind)
        return settings if isinstance(settings, str) else str(settings.path)

    def extra_names(self) -> list[str]:
        """Keys of the json in the column `extra` of its rows."""
        if self.folder is not None:
            return self.folder.columns.extra if self.folder.columns else ["folder"]
        joined = self.dwca or self.gbif or self.inaturalist
        if joined is not None:
            return joined.extra
        if self.eol is not None:
            return ["eol_page_id", "source_url"]
        if self.webdataset is not None:
            return self.webdataset.fields.extra if self.webdataset.fields else []
        return self.columns.extra if self.columns else []

    def identity(self) -> dict[str, Any]:
        """What its rows depend on besides the bytes it reads; holds no path of a machine."""
        values: dict[str, Any] = self.model_dump(
            mode="json", include={"name", "defaults", self.kind}, exclude_none=True
        )
        if self.kind == "table":
            return values | {
                "table": None,
                "format": self.format,
                "columns": self.columns and self.columns.model_dump(mode="json", exclude_none=True),
            }
        settings = values[self.kind]
        if self.kind == "gbif":
            settings = {name: value for name, value in settings.items() if name not in REQUEST_FIELDS}
        return values | {self.kind: _without_paths(settings)}

    def recipe(self) -> dict[str, Any]:
        """The identity as a release records it: with what GBIF was asked for, and without a path as well."""
        values = self.identity()
        if self.kind == "table":
            return values
        settings = getattr(self, self.kind).model_dump(mode="json", exclude_none=True)
        return values | {self.kind: _without_paths(settings)}


class NestedTable(Origin):
    """A table that is part of another origin; messages name that origin."""

    owner: str

    @property
    def where(self) -> str:
        """How messages name the origin that the table belongs to."""
        return self.owner

    @classmethod
    def of(cls, source: Origin, path: str, columns: Sequence[str], form: TableFormat = "auto") -> NestedTable:
        """The table at `path`, of which `columns` are read."""
        mapped = ColumnMap(url=columns[0], caption=[], extra=list(columns[1:]))
        return cls(name=source.name, owner=source.where, table=path, format=form, columns=mapped)


class SourceSettings(Origin):
    """One list of images of one domain."""

    domain: Name
    """The domain of its pictures."""
    priority: int = Field(0, description="of two duplicates the one from the source with the higher priority stays")

    def identity(self) -> dict[str, Any]:
        """The identity of the origin, and the domain; the priority belongs to select."""
        return super().identity() | {"domain": self.domain}

    def recipe(self) -> dict[str, Any]:
        """The recipe of the origin, with everything that the build uses."""
        return super().recipe() | {"priority": self.priority}


ORIGINS = ("table", "dwca", "gbif", "eol", "inaturalist", "webdataset", "folder")

PATH_FIELDS = ("path", "table", "taxa")
# What GBIF is asked for decides which archive comes; the rows depend on its bytes alone.
REQUEST_FIELDS = ("taxon", "country", "licence", "basis_of_record", "years", "refresh", "download", "api")


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {name: None for name in PATH_FIELDS if settings.get(name)}
