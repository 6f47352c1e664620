"""Equality of names and texts: one answer for captions, labels, columns, and for whoever compares owners.

Tables come from many keyboards. One name is written with composed or decomposed letters, in capitals, with a final
sigma, with a dotted I, with a blank that is no space. Such spellings are equal. Names that share words, as "Müller, J."
and "Müller" do, are alike: people decide whether they are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

_WORD = re.compile(r"\w+")


def name_key(name: str) -> str:
    """Return the same text for all spellings of a name or text.

    Source: Unicode's NFKC_Casefold, and one letter for i, dotted or not, as Turkish capitals need it.
    """
    if name.isascii():  # what follows gives the same, in 15 times as long
        return " ".join(name.lower().split())
    folded = unicodedata.normalize("NFD", name)
    for _ in range(2):  # a folded letter may fold again, as in mathematical capitals
        folded = unicodedata.normalize("NFKC", folded.casefold())
    visible = "".join(letter for letter in folded if letter.isascii() or unicodedata.category(letter) != "Cf")
    return " ".join(visible.replace("i\u0307", "i").replace("\u0131", "i").split())


def plain(name: str) -> str:
    """Return a column's name without case and signs."""
    return re.sub(r"[\W_]+", "", name.casefold())


def spellings_of(keys: Iterable[str], names: Iterable[str | None]) -> dict[str, set[str]]:
    """Return the keys of each of `names` that has one of `keys`.

    A name may be a list, parted by `;`, as Exif writes several authors: each of them counts.
    """
    wanted = set(keys)
    spelled = {name: wanted.intersection(map(name_key, {name, *name.split(";")})) for name in names if name}
    return {name: found for name, found in spelled.items() if found}


def names_like(name: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Those of `counts` that share a word with `name` and contradict none, not being equal to it; most counts first.

    Accents do not count here, and an initial stands for a word that begins with it.
    """
    words, met = _words(name), spellings_of([name_key(name)], counts)
    like = {other: num for other, num in counts.items() if other not in met and _may_be_one(words, _words(other))}
    return dict(sorted(like.items(), key=lambda row: (-row[1], row[0])))


def _words(name: str) -> list[str]:
    letters = unicodedata.normalize("NFD", name_key(name))
    return _WORD.findall("".join(letter for letter in letters if not unicodedata.combining(letter)))


def _may_be_one(some: list[str], others: list[str]) -> bool:
    fewer, more = sorted((some, others), key=len)
    shared = {word for word in fewer if len(word) > 1} & set(more)
    return bool(shared) and all(any(_fit(word, other) for other in more) for word in fewer)


def _fit(word: str, other: str) -> bool:
    return word == other or (min(len(word), len(other)) == 1 and word[0] == other[0])
