"""Which rows a build of N pictures gets, and how each of them must end. Everything follows from N and the seed.

A row is a picture of one of two domains at an address of one host. Some hosts have a fault, which a written share of
their rows meets. A few rows are planted: copies of other pictures, leaks of an evaluation set, rows without a caption,
under a forbidden licence, of an owner who will ask for a takedown, without an address. Pure: numbers in, arrays out.

The evaluation set has the pictures N to N + `num_evaluation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

SLOW_SECONDS = 0.2  # of a slow host, before each answer
MOOD_SECONDS = 30  # a moody host refuses everybody for one second of so many


class Host(NamedTuple):
    """Hosts of one kind: how many, their share of all rows, and the share of their rows that meets the fault."""

    kind: str
    num: int
    share: float
    fault_share: float
    outcome: str
    """How a row ends that meets the fault."""


HOSTS = (
    Host("plain", 24, 0.85, 0.0, "ok"),
    Host("slow", 2, 0.04, 1.0, "ok"),
    Host("gone", 2, 0.03, 0.5, "http_404"),
    Host("page", 1, 0.02, 0.5, "not_an_image"),  # HTML, under the name and the type of a picture
    Host("busy", 1, 0.02, 0.02, "ok"),  # 429 with Retry-After, the first time that the row is asked for
    Host("moody", 1, 0.02, 0.0, "ok"),  # 503 with Retry-After, by the clock
    Host("cut", 1, 0.02, 0.5, "body_truncated"),  # half a body, every time
)
KIND_OF_PORT = tuple(host.kind for host in HOSTS for _ in range(host.num))
"""A host is a port: to the gate of a build, 127.0.0.1:18400 and 127.0.0.1:18401 are two hosts."""

CHANGES = ("reencoded", "resized", "mirrored")  # how a copy differs; a leak may also be the same bytes
PLANT_SHARE = 10 / 13
COPY_SHARE, LEAK_SHARE = 0.03, 0.01
NO_CAPTION_SHARE, FORBIDDEN_SHARE, NO_ADDRESS_SHARE, OWNER_SHARE = 0.01, 0.01, 0.001, 0.001
OWNER, OTHERS, FORBIDDEN = "A. Owner who asks", "Many Photographers", "all rights reserved"
DUPLICATES = ("near_duplicate", "exact_duplicate")


@dataclass(frozen=True)
class Rows:
    """One value a row; `num` rows, and behind them nothing for the pictures of the evaluation set."""

    seed: int
    num: int
    is_plant: np.ndarray
    port: np.ndarray  # number of the host, a place in KIND_OF_PORT
    is_faulty: np.ndarray
    role: np.ndarray  # text: plain, copy, original, leak, no_caption, forbidden, no_address
    change: np.ndarray  # text of copies and leaks, else empty
    other: np.ndarray  # of a copy its original, of a leak the picture of the evaluation set, of an original its copy
    is_owned: np.ndarray  # by OWNER

    @property
    def num_evaluation(self) -> int:
        """Pictures of the evaluation set."""
        return 500 if self.num >= 10_000 else max(5, self.num // 20)

    def key(self, number: int) -> str:
        """The source's own key of a row."""
        return f"record-{number:07d}"

    def expected(self) -> np.ndarray:
        """How each row must end: `keep`, a reason, or `one_of_two` for a picture and its copy."""
        outcomes = np.array([host.outcome for host in HOSTS for _ in range(host.num)])[self.port]
        ends = np.where(self.is_faulty, outcomes, "ok").astype("U24")
        ends[ends == "ok"] = "keep"
        for role, end in (
            ("copy", "one_of_two"), ("original", "one_of_two"), ("leak", "eval_leak"), ("no_address", "missing_url"),
            ("forbidden", "licence"),
        ):  # fmt: skip
            ends[self.role == role] = end
        # a plant with a taxon gets a sentence in place of a caption
        ends[(self.role == "no_caption") & ~self.is_plant] = "empty_caption"
        return ends


def plan_rows(num: int, seed: int) -> Rows:
    """The rows of a build of `num` pictures."""
    rng = np.random.default_rng([seed, num])
    is_plant = rng.random(num) < PLANT_SHARE
    first = np.cumsum([0, *(host.num for host in HOSTS)])
    kind = rng.choice(len(HOSTS), num, p=[host.share for host in HOSTS])
    port = first[kind] + rng.integers(0, np.array([host.num for host in HOSTS])[kind])
    is_faulty = rng.random(num) < np.array([host.fault_share for host in HOSTS])[kind]
    fails = is_faulty & (np.array([host.outcome for host in HOSTS])[kind] != "ok")
    role, change = np.full(num, "plain", "U12"), np.full(num, "", "U12")
    other, is_owned = np.full(num, -1), np.zeros(num, bool)
    free = rng.permutation(np.flatnonzero(~fails))
    taken = 0

    def take(share: float, least: int = 1) -> np.ndarray:
        nonlocal taken
        some = free[taken : taken + max(least, round(share * num))]
        taken += len(some)
        return some

    copies, originals, leaks = take(COPY_SHARE, 6), take(COPY_SHARE, 6), take(LEAK_SHARE, 8)
    role[copies], role[originals], role[leaks] = "copy", "original", "leak"
    change[copies] = np.resize(CHANGES, len(copies))
    change[leaks] = np.resize(("same bytes", *CHANGES), len(leaks))
    other[copies], other[originals] = originals, copies
    for name, share in (
        ("no_caption", NO_CAPTION_SHARE), ("forbidden", FORBIDDEN_SHARE), ("no_address", NO_ADDRESS_SHARE)
    ):  # fmt: skip
        role[take(share)] = name
    owned = take(OWNER_SHARE, 10)
    is_owned[owned] = True
    is_owned[originals[: max(1, len(owned) // 10)]] = True  # their copies belong to others, and must go with them
    rows = Rows(seed, num, is_plant, port, is_faulty, role, change, other, is_owned)
    other[leaks] = num + rng.integers(0, rows.num_evaluation, len(leaks))
    return rows


def caption(number: int, names: tuple[str, str]) -> str:
    """A text that no other row has, of what two photos show."""
    one, two = (name.replace("-", " ") for name in names)
    places = ("on a shelf in the shop", "on the kitchen table", "in a basket at the market", "beside the window")
    return f"A photo of {one} next to {two} {places[number % 4]}, taken on day {number}"


TAXA = (
    "Malus domestica", "Persea americana", "Musa acuminata", "Actinidia deliciosa", "Citrus limon", "Citrus reticulata",
    "Mangifera indica", "Cucumis melo", "Prunus persica", "Citrus paradisi", "Passiflora edulis", "Pyrus communis",
    "Ananas comosus", "Prunus domestica", "Punica granatum", "Asparagus officinalis", "Solanum melongena",
    "Brassica oleracea", "Daucus carota", "Cucumis sativus", "Allium sativum", "Zingiber officinale", "Allium porrum",
    "Allium cepa", "Capsicum annuum", "Solanum tuberosum", "Beta vulgaris", "Solanum lycopersicum", "Cucurbita pepo",
)  # fmt: skip


def as_table(rows: Rows, offsets: np.ndarray, lengths: np.ndarray) -> Any:
    """The index of the packed file and the prediction, a row a picture."""
    import pyarrow as pa

    return pa.table({
        "number": np.arange(rows.num),
        "key": [rows.key(number) for number in range(rows.num)],
        "domain": np.where(rows.is_plant, "plant", "general"),
        "host": np.array(KIND_OF_PORT)[rows.port],
        "port": rows.port,
        "is_faulty": rows.is_faulty,
        "role": rows.role,
        "change": rows.change,
        "other": rows.other,
        "is_owned": rows.is_owned,
        "expected": rows.expected(),
        "offset": offsets[: rows.num],
        "length": lengths[: rows.num],
    })  # fmt: skip
