"""The state of a page, as its address holds it: words, taxon, chosen facet values, place. All links come from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from pipeline.browse.index import Facet, as_id

MAX_CHARS = 500  # of the words asked for
MAX_WORDS = 12
MAX_VALUES = 20  # chosen of one facet


@dataclass(frozen=True)
class Filters:
    """A choice of images, and the page of them that is shown."""

    words: str = ""
    taxon: str = ""
    shows: str = ""  # what a picture shows, in words for a trained model
    like: str = ""  # or an image to compare with: its sample id
    chosen: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    after: str = ""  # show what follows this sample id
    before: str = ""  # or what comes before it

    @classmethod
    def read(cls, query: Any, facets: Sequence[Facet]) -> Filters:
        """From the query of an address; unknown names are ignored."""
        chosen = {
            facet.name: tuple(dict.fromkeys(query.getlist(facet.name)))[:MAX_VALUES]
            for facet in facets
            if facet.name in query
        }
        shows, like = query.get("shows", "").strip()[:MAX_CHARS], query.get("like", "")
        places = {name: query.get(name, "") for name in ("after", "before")}
        return cls(
            query.get("q", "").strip()[:MAX_CHARS],
            query.get("taxon", "").strip()[:MAX_CHARS],
            shows,
            "" if shows or not as_id(like) else like,
            chosen,
            **{name: value for name, value in places.items() if as_id(value)},
        )

    @property
    def any(self) -> bool:
        """Return whether anything is asked for at all."""
        return bool(self.words or self.taxon or self.chosen or self.ranked)

    @property
    def ranked(self) -> bool:
        """Return whether images are sought with a trained model, the most alike first."""
        return bool(self.shows or self.like)

    def link(self, **changes: Any) -> str:
        """Address of the grid with these filters, some changed: the first page, unless `changes` name another."""
        changed = replace(self, **{"after": "", "before": "", **changes})
        pairs = [("q", changed.words), ("taxon", changed.taxon), ("shows", changed.shows), ("like", changed.like)]
        pairs += [("after", changed.after), ("before", changed.before)]
        pairs = [(name, value) for name, value in pairs if value]
        pairs += [(name, value) for name, values in sorted(changed.chosen.items()) for value in values]
        return "/?" + urlencode(pairs) if pairs else "/"

    def toggled(self, facet: str, value: str) -> str:
        """Address with a facet value chosen, or no longer chosen."""
        values = self.chosen.get(facet, ())
        values = tuple(one for one in values if one != value) if value in values else (*values, value)
        chosen = {name: kept for name, kept in {**self.chosen, facet: values}.items() if kept}
        return self.link(chosen=chosen)

    @property
    def searched_words(self) -> tuple[str, ...]:
        """The words that must all stand somewhere in the caption."""
        return tuple(dict.fromkeys(self.words.lower().split()[:MAX_WORDS]))
