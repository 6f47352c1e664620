"""The settings of a source: its name, exactly one kind with the settings of that kind, and what fills the gaps.

`SourceSettings` adds the domain. Other lists of images (a set for evaluation) derive from `Origin` too. Pure.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, Field, create_model, model_validator

from manifests.contract.settings import NAME_PATTERN, Settings
from manifests.contract.tables import sample_ids
from manifests.masking import hide_users
from manifests.names.sql import identifier
from manifests.services.packages import code_of
from pipeline.judging.vocabulary.licences import check_meanings
from pipeline.sources.kinds import Reader, all_kinds
from pipeline.sources.rows import ROWS, RowDefaults
from pipeline.sources.table import TableReader
from pipeline.sources.tables.captions import JoinedCaptions
from pipeline.sources.tables.fields import JoinedFields
from pipeline.sources.tables.joining import WhereTerms
from pipeline.sources.tables.keyed import sql_of_extra

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
KINDS, _FAULTS = all_kinds()


class _Named(Settings):
    name: Name
    """Small letters, digits, `-` and `_`; it is the identity of the source."""


def _with_kinds() -> type[_Named]:
    """Return the model with a key a kind; flat settings are keys of their own."""
    bases: list[Any] = [kind.settings_type for kind in KINDS.values() if kind.is_flat]
    keys: dict[str, Any] = {}
    for name, kind in KINDS.items():
        if not kind.is_flat:
            about = " ".join((kind.settings_type.__doc__ or "").partition("\n\n")[0].split())
            keys[name] = (kind.settings_type | None, Field(None, description=about))
    return create_model("_WithKinds", __base__=(*bases, _Named), __module__=__name__, **keys)


if TYPE_CHECKING:
    _WithKinds = _Named
else:
    _WithKinds = _with_kinds()


class Origin(_WithKinds):
    """A named list of images that one of the kinds understands."""

    section: ClassVar[str] = "sources"
    """How messages name the part of the config."""

    defaults: RowDefaults = RowDefaults()

    @model_validator(mode="before")
    @classmethod
    def _kind_loads(cls, values: Any) -> Any:
        if broken := [fault for name, fault in _FAULTS.items() if isinstance(values, dict) and name in values]:
            raise ValueError(broken[0])
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        chosen = [name for name in KINDS if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)} (found: {' and '.join(chosen) or 'none'})")
        for kind in KINDS.values():
            kind.check_keys(self, chosen[0])
        return self

    @property
    def kind(self) -> str:
        """Which kind it is."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    @property
    def config_key(self) -> str:
        """Return how messages name it."""
        return f"{self.section}.{self.name}"

    @property
    def reader(self) -> Reader[Any]:
        """Its reader."""
        kind = KINDS[self.kind]
        return kind(self if kind.is_flat else getattr(self, self.kind), self.config_key)

    def ids_of(self, record_keys: Any) -> pa.Array:
        """Return sample ids of whole keys, in an array or a list.

        Passwords are left out: a short one could be guessed from the hash. A token may stay in.
        """
        keys = pa.chunked_array([record_keys]) if isinstance(record_keys, list) else record_keys
        texts = pc.utf8_trim_whitespace(pc.fill_null(keys, ""))
        if pc.any(pc.match_substring(texts, "@")).as_py():
            texts = pa.chunked_array([pa.array([hide_users(text) for text in texts.to_pylist()], pa.string())])
        return sample_ids(self.name, texts.cast(pa.binary()).to_pylist())

    def caption_tables(self) -> list[TableReader]:
        """Return a reader for each table of texts that is joined to it."""
        captions: tuple[JoinedCaptions, ...] = getattr(self, "captions", ())
        return [entry.reader(f"{self.config_key}.captions[{number}]") for number, entry in enumerate(captions, 1)]

    def field_tables(self) -> list[TableReader]:
        """Return a reader for each table of fields that is joined to it."""
        joins: tuple[JoinedFields, ...] = getattr(self, "join", ())
        return [joined.reader(f"{self.config_key}.join[{number}]") for number, joined in enumerate(joins, 1)]

    def in_work_folder(self, work_dir: str) -> Self:
        """Return the source with the place where it keeps what is brought for it."""
        reader = self.reader
        settings = reader.in_work_folder(self.name, work_dir)
        return self if settings is reader.settings else self.model_copy(update={self.kind: settings})

    def identity(self) -> dict[str, Any]:
        """Return the values that its rows depend on besides the bytes it reads; holds no path of a machine."""
        code = code_of(self.reader)
        return self._named(self.reader.identity()) | ({"code": code} if code else {})

    def recipe(self) -> dict[str, Any]:
        """Return the identity as a release records it; may tell more, and no path either."""
        return self.identity() | self._named(self.reader.recipe())

    def _named(self, settings: dict[str, Any]) -> dict[str, Any]:
        values = self.model_dump(mode="json", include={"name", "defaults", self.kind}, exclude_none=True)
        return values | (settings if KINDS[self.kind].is_flat else {self.kind: settings})


class OtherDomain(Settings):
    """The domain of rows whose caption does not begin with a name of these kingdoms.

    "Rosa canina in a hedge" and "Rosa blooming" begin with one. The accepted name becomes the taxon.
    """

    name: Name
    """The domain."""
    kingdoms: tuple[str, ...] = Field(min_length=1)
    """As `caption.backbone` writes them, such as Plantae."""


class SourceSettings(Origin):
    """One list of images, of one domain unless `other_domain` parts them."""

    domain: Name
    """The domain of its pictures."""
    other_domain: OtherDomain | None = None
    """Where nothing but the captions tells two domains apart; needs `caption.backbone`."""
    priority: int = 0
    """Of two duplicates the one from the source with the higher priority stays."""
    join: tuple[JoinedFields, ...] = ()
    """Fields of other tables for its rows: ranks, licence, owner, whatever `columns` maps."""
    where: WhereTerms = Field(default_factory=dict)
    """By column of a row (kingdom, licence, what `extra` keeps, what `join` brings), the values of which it must have
    one; or `{not: [...]}` for all but these. A row without a value passes `not` alone."""
    captions: tuple[JoinedCaptions, ...] = ()
    """Texts of other tables for its pictures."""
    licences: Annotated[dict[str, str], AfterValidator(check_meanings)] = Field(default_factory=dict)
    """Licence texts that are not read, as `plantmix estimate` lists them, and the id that each stands for, such as
    `{"Free for all, with credit": CC-BY}`. Set it when the owner says what they mean."""

    @model_validator(mode="after")
    def _keeps_what_is_joined(self) -> Self:
        kept = self.reader.extra_names()
        for joined, there in [(entry, kept) for entry in self.join] + [(e, self.extra_names()) for e in self.captions]:
            if (name := joined.extra_name) is not None and name not in there:
                has = f"it keeps {', '.join(there)}" if there else "it keeps none"
                raise ValueError(
                    f"{joined.section}: the source keeps no column '{name}' ({has}); name it in its `extra`"
                )
        return self

    @model_validator(mode="after")
    def _has_what_is_asked(self) -> Self:
        if missing := [name for name in self.where if name not in self.where_columns()]:
            there = self.terms()
            near = difflib.get_close_matches(missing[0], there, n=1, cutoff=0.4)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(
                f"where: its rows have no '{missing[0]}'{hint}; they have {', '.join(there)}. A column of a table "
                "counts once it is mapped or named in `extra`"
            )
        return self

    @model_validator(mode="after")
    def _where_reads_licences(self) -> Self:
        """Raise ValueError where a kind's own `where` asks for licences.

        It comes before the source's texts are known.
        """
        if self.licences and "licence" in getattr(getattr(self, self.kind), "where", ()):
            raise ValueError(
                f"licences: `where` of {self.kind} does not know these texts; write `where: {{licence: [...]}}` in the "
                "source itself"
            )
        return self

    @model_validator(mode="after")
    def _parts_own_captions(self) -> Self:
        """Texts are joined to rows whose domain is known, so they cannot decide it."""
        if self.other_domain and any(captions.kind == "caption" for captions in self.captions):
            raise ValueError(
                "captions: a joined text of kind `caption` would stand in for captions that `other_domain` judges; "
                "give it another `kind`, such as long"
            )
        return self

    @property
    def domains(self) -> list[str]:
        """The domains that its rows may have."""
        return [self.domain, *([self.other_domain.name] if self.other_domain else [])]

    def extra_names(self) -> list[str]:
        """Return the names under which `extra` of its rows keeps something, its own and those of joined tables."""
        joined = (name for entry in self.join for name in entry.columns.extra)
        return list(dict.fromkeys([*self.reader.extra_names(), *joined]))

    def joined_columns(self) -> set[str]:
        """Return the columns of a row, but for `extra`, that other tables may fill."""
        return {name for entry in self.join for name in entry.columns.fills()}

    def terms(self) -> dict[str, str]:
        """Names that `where` may use, and the SQL of each in rows of the contract."""
        filled = self.reader.fills().union(self.defaults.values(), self.joined_columns())
        terms: dict[str, str] = {}
        for name in (name for name in ROWS.names if name in filled):
            column = "binomial" if name == "taxon_species" else name
            terms[name.removeprefix("taxon_").removesuffix("_id")] = f"nullif(trim({identifier(column)}), '')"
        return {name: sql_of_extra(name) for name in self.extra_names()} | terms

    def where_columns(self) -> dict[str, str]:
        """Return SQL of what `where` names; a rank may be written as in `columns`, with `taxon_` in front."""
        there = self.terms() if self.where else {}
        found = {name: there.get(name) or there.get(name.removeprefix("taxon_")) for name in self.where}
        return {name: column for name, column in found.items() if column}

    def identity(self) -> dict[str, Any]:
        """Return the identity of the origin, and the domains; the priority belongs to select."""
        other = {"other_domain": self.other_domain.model_dump(mode="json")} if self.other_domain else {}
        joined = {"join": [entry.identity() for entry in self.join]} if self.join else {}
        asked: dict[str, Any] = {"where": self.where} if self.where else {}
        asked |= {"licences": self.licences} if "licence" in self.where and self.licences else {}
        return super().identity() | {"domain": self.domain} | other | joined | asked

    def recipe(self) -> dict[str, Any]:
        """Return the recipe of the origin, with everything that the build uses."""
        joined = {"captions": [captions.identity() for captions in self.captions]} if self.captions else {}
        meant = {"licences": self.licences} if self.licences else {}
        return super().recipe() | {"priority": self.priority} | joined | meant
