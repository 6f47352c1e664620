"""The takedown list of a work folder: what must not come into any later build.

WORKDIR/takedowns.jsonl has one JSON object on each line: `by` (url, owner, id), `value`, `reason`. `plantmix takedown`
adds to it. People may write it by hand and copy it to another work folder. A line that cannot be read is a ConfigError.
Addresses, owners and ids are compared as `manifests/names` compares them, not letter by letter.

Lines with `by: picture` are written by PlantMix alone. They hold the hashes of a picture that an entry named, so that
its copies are known wherever they come from, also when nothing knows the picture itself any more.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract.catalog_file import CATALOG_FILE, TAKEDOWNS_FILE
from manifests.contract.copies import FLAT_BITS, FLAT_PIXEL_STD, MIDDLE_RADIUS, near_pairs
from manifests.contract.reader import open_reader
from manifests.contract.release import Release
from manifests.errors import ConfigError, PlantMixError, RunError, words_of
from manifests.masking import hide_secrets
from manifests.names.addresses import address_key
from manifests.names.equal import name_key, spellings_of
from manifests.stores import storage
from manifests.stores.storage import read_if_there

KINDS = ("url", "owner", "id")
PICTURE = "picture"
WHEN_GONE = (
    f"restore {TAKEDOWNS_FILE} from a backup, or write it again from the takedowns in each release.json; an empty "
    "file says that nothing was taken down"
)


@dataclass(frozen=True, order=True)
class Entry:
    """One thing that must stay out: an address, an owner, or a sample id or image sha256.

    The texts hold no secrets of addresses, as in all tables. An address with a secret ends in `#` and a short hash of
    the whole, as ingest names it, so that it is told from other addresses that look alike without theirs.
    """

    by: str
    value: str
    reason: str = "not stated"

    def __post_init__(self) -> None:
        shown = hide_secrets(self.value)
        if self.by == "url" and shown != self.value:
            shown = f"{shown.strip()}#{hashlib.sha256(self.value.strip().encode()).hexdigest()[:8]}"
        object.__setattr__(self, "value", shown)
        object.__setattr__(self, "reason", hide_secrets(self.reason))

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two entries that mean the same."""
        return self.by, name_key(self.value) if self.by == "owner" else self.value.strip()

    @property
    def is_of_secret(self) -> bool:
        """True for an address that hides a secret: only the table of whole addresses knows its rows."""
        return self.by == "url" and _OF_SECRET.search(self.value) is not None


@dataclass(frozen=True, order=True)
class Picture:
    """A picture that was taken down, and what its copies are known by: hashes as hex digits, empty where not known.

    A picture of nearly one colour has no pHash here: its copies are those of the same pixels.
    """

    image_id: str
    reason: str
    pixels_sha256: str = ""
    phash: str = ""
    phash_mirrored: str = ""
    middle_hash: str = ""
    middle_mirrored: str = ""
    addresses: tuple[str, ...] = ()
    """Where it was downloaded from: not asked again, since its hashes are known."""

    @classmethod
    def of_fact(cls, fact: Mapping[str, Any], reason: str, addresses: Iterable[str] = ()) -> Picture:
        """Return the identity of a picture from a row of facts; a row of a samples table says less."""
        phash, pixel_std = fact["phash"], fact.get("pixel_std")
        tells = phash.bit_count() > FLAT_BITS and not (pixel_std is not None and pixel_std < FLAT_PIXEL_STD)
        hashes = {name: fact.get(name) for name in _HASHES} if tells else {}
        shown = {name: f"{value:016x}" for name, value in hashes.items() if value is not None}
        pixels = fact.get("pixels_sha256") or ""
        return cls(fact["image_id"], reason, pixels, **shown, addresses=tuple(sorted(addresses)))

    def identity(self) -> dict[str, str]:
        """Return what decides over pictures: where it was downloaded from does not."""
        return {name: value for name, value in asdict(self).items() if name != "addresses"}

    @property
    def turns(self) -> list[tuple[np.uint64, np.uint64 | None]]:
        """pHash and hash of the middle, None where not known, of the picture and of its mirror image."""
        hashes = [[getattr(self, name) for name in turn] for turn in _TURNS]
        return [
            (np.uint64(int(whole, 16)), np.uint64(int(middle, 16)) if middle else None)
            for whole, middle in hashes
            if whole
        ]


_OF_SECRET = re.compile(r"\*\*\*.*#[0-9a-f]{8}$")
_TURNS = (("phash", "middle_hash"), ("phash_mirrored", "middle_mirrored"))
_HASHES = tuple(name for turn in _TURNS for name in turn)


def each_once(pictures: Iterable[Picture]) -> list[Picture]:
    """Return each image once, sorted: of several lines the one that knows most hashes, and the addresses of all."""
    best: dict[str, Picture] = {}
    for picture in sorted(pictures, key=lambda one: sum(not getattr(one, name) for name in _HASHES)):
        known = best.setdefault(picture.image_id, picture)
        together = tuple(sorted({*known.addresses, *picture.addresses}))
        best[picture.image_id] = replace(known, addresses=together)
    return sorted(best.values())


def find_copies(pictures: Sequence[Picture], rows: pa.Table) -> npt.NDArray[np.int64]:
    """For each row of a table of samples or facts the number of the picture that it is a copy of; -1 for none.

    `rows` has image_id and phash, and may have middle_hash and pixels_sha256. Where a hash of the middle is not known,
    in a row or of a picture, the pHash alone decides: rather a picture too many stays out.
    """
    copy_of = np.full(len(rows), -1, np.int64)
    if not pictures:
        return copy_of
    for name in {"image_id", "pixels_sha256"}.intersection(rows.column_names):
        named = pa.array([getattr(picture, name) or None for picture in pictures], pa.string())
        place = pc.fill_null(pc.index_in(rows[name], named, skip_nulls=True), -1).to_numpy()
        copy_of = np.where(copy_of < 0, place, copy_of)
    phash = pc.fill_null(rows["phash"], 0).to_numpy()
    middle = rows["middle_hash"] if "middle_hash" in rows.column_names else pa.nulls(len(rows), pa.uint64())
    unknown, middle = pc.is_null(middle).to_numpy(zero_copy_only=False), pc.fill_null(middle, 0).to_numpy()
    tells = np.bitwise_count(phash) > FLAT_BITS
    turns = [(number, *turn) for number, picture in enumerate(pictures) for turn in picture.turns]
    numbers = np.array([turn[0] for turn in turns], np.int64)
    wholes = np.array([turn[1] for turn in turns], np.uint64)
    has_middle = np.array([turn[2] is not None for turn in turns], bool)
    middles = np.array([turn[2] or 0 for turn in turns], np.uint64)
    open_rows = np.flatnonzero(tells & (copy_of < 0))
    place, turn_at = near_pairs(phash[open_rows], wholes)
    row = open_rows[place]
    near = np.bitwise_count(middle[row] ^ middles[turn_at]) <= MIDDLE_RADIUS
    near |= unknown[row] | ~has_middle[turn_at]
    first = np.full(len(rows), len(pictures), np.int64)
    np.minimum.at(first, row[near], numbers[turn_at[near]])
    return np.where(first < len(pictures), first, copy_of)


class Takedowns(NamedTuple):
    """The list of a work folder, sorted: who asked for what, and the pictures whose hashes are known, each once."""

    entries: list[Entry]
    pictures: list[Picture]


def standing_list(workdir: str, ask: Callable[[str], Sequence[Any]]) -> Takedowns:
    """Return the takedowns that must stay out of builds. `ask` gives the rows of a query to the catalogue.

    Raises: ConfigError as `read_list`, and when a list that an earlier command read is gone.
    """
    path = storage.join(workdir, TAKEDOWNS_FILE)
    if ask(f"SELECT 1 FROM inputs WHERE path = '{TAKEDOWNS_FILE}'") and not Path(path).is_file():
        raise ConfigError(f"{path}: gone, so what must stay out is not known; {WHEN_GONE}")
    return read_list(workdir)


def require_list(workdir: str) -> None:
    """See that the list of a work folder on this machine is not lost.

    Raises: ConfigError as `standing_list`; IntegrityError for a damaged catalogue.
    """
    there = {name: Path(storage.join(workdir, name)).is_file() for name in (TAKEDOWNS_FILE, CATALOG_FILE)}
    if storage.is_remote(workdir) or there[TAKEDOWNS_FILE] or not there[CATALOG_FILE]:
        return
    with suppress(RunError), open_reader(workdir, per_sample=False) as catalog:  # a build holds it, and looks itself
        standing_list(workdir, lambda query: catalog.sql(query).fetchall())


def read_list(workdir: str) -> Takedowns:
    """Return the list of a work folder; empty where there is none.

    Raises: ConfigError that names the first line that is not an entry.
    """
    path = storage.join(workdir, TAKEDOWNS_FILE)
    lines: set[Entry | Picture] = set()
    # not splitlines(): json writes U+2028, U+2029 and U+0085 within a text as they are
    for number, line in enumerate((read_if_there(path) or b"").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            lines.add(_parse(json.loads(line.decode())))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{path}, line {number}: not an entry of a takedown list; each line is a JSON object in UTF-8 with "
                f"'by' ({', '.join(KINDS)}), 'value' and 'reason'"
            ) from None
    pictures = sorted(line for line in lines if isinstance(line, Picture))
    return Takedowns(sorted(line for line in lines if isinstance(line, Entry)), each_once(pictures))


def _parse(line: dict[str, Any]) -> Entry | Picture:
    """One line of the list. Raises: ValueError and the like when it is none."""
    by, value, reason = line.pop("by"), line.pop("value"), line.pop("reason", "not stated")
    if not all(isinstance(text, str) and text for text in (by, value, reason)):
        raise ValueError
    if by != PICTURE:
        KINDS.index(by)
        return Entry(by, value, reason)
    addresses = tuple(line.pop("addresses", ()))
    if not all(isinstance(text, str) for text in (*addresses, *line.values())):
        raise ValueError
    picture = Picture(value, reason, **line, addresses=addresses)
    for name in _HASHES:
        int(getattr(picture, name) or "0", 16)
    return picture


def add_entries(workdir: str, entries: Sequence[Entry], pictures: Sequence[Picture] = ()) -> None:
    """Add to the list of a work folder what it lacks."""
    before, held = read_list(workdir)
    listed = {(entry.by, entry.value) for entry in before}
    new = [entry for entry in dict.fromkeys(entries) if (entry.by, entry.value) not in listed]
    seen = each_once([*held, *pictures])
    if new or seen != held:
        lines = [*(asdict(entry) for entry in [*before, *new]), *(_line_of(picture) for picture in seen)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        storage.publish_bytes(storage.join(workdir, TAKEDOWNS_FILE), text.encode())


def _line_of(picture: Picture) -> dict[str, Any]:
    hashes = {name: value for name, value in asdict(picture).items() if value and name != "image_id"}
    return {"by": PICTURE, "value": picture.image_id, **hashes}


def taken_down_since(release: Release, workdir: str) -> str | None:
    """Return a warning for a reader of a release that holds images which the list of its work folder names, or copies.

    None where it holds none.

    Raises: as `images_taken_down`.
    """
    images = images_taken_down(release, workdir)
    if not images.num_rows:
        return None
    first = images.slice(0, 1).to_pylist()[0]
    cure = f"take a version without them: `plantmix takedown {release.path} --id {first['sample_id']}` writes one"
    with suppress(OSError, PlantMixError):
        newest = Release.open(storage.join(workdir, "releases", release.record["name"]))
        if newest.path != release.path and not images_taken_down(newest, workdir).num_rows:
            cure = f"take {newest.path}, which is without them"
    return (
        f"{release.path}: holds {images.num_rows:,} images that were taken down since, first: "
        f"{first['url'] or first['sample_id']}; {cure}"
    )


def say_taken_down(release: Release) -> str | None:
    """As `taken_down_since`, for who trains on a release or has trained: where it cannot be known, that is said."""
    try:
        return release.workdir and taken_down_since(release, release.workdir)
    except (OSError, PlantMixError) as error:  # others' store may show a release and nothing beside it
        return f"{release.path}: not known whether pictures of it were taken down since ({words_of(error)})"


def samples_taken_down(release: Release) -> set[str]:
    """Sample ids of what was taken down of a release: of what it holds, and of what went before it was made.

    Raises: as `images_taken_down`.
    """
    gone = {image["sample_id"] for entry in release.record.get("takedowns", ()) for image in entry["images"]}
    held = images_taken_down(release, release.workdir)["sample_id"].to_pylist() if release.workdir else []
    return gone.union(held)


def images_taken_down(release: Release, workdir: str) -> pa.Table:
    """sample_id and url of the images of a release that the list of its work folder names, and of copies; by sample id.

    Raises: ConfigError as `read_list` and `require_list`; IntegrityError for a samples table that is not as it was
        sealed.
    """
    require_list(workdir)
    entries, pictures = read_list(workdir)
    found = [pa.schema([("sample_id", pa.string()), ("url", pa.string())]).empty_table()]
    if not entries and not pictures:
        return found[0]
    columns = {"copy", "phash", "middle_hash", *(column for pairs in _KEYS.values() for _, column in pairs)}
    with duckdb.connect() as sql:
        for batch in release.iter_samples(sorted(columns)):
            rows = batch.filter(pc.equal(batch["copy"], 0))
            sql.register("candidates", rows)
            sql.register("facts", rows)
            find_named(sql, entries)
            named = pc.is_in(rows["sample_id"], sql.sql("SELECT sample_id FROM named").to_arrow_table()["sample_id"])
            taken = pc.or_(named, pa.array(find_copies(pictures, rows) >= 0))
            found.append(rows.filter(taken).select(["sample_id", "url"]))
    return pa.concat_tables(found).sort_by("sample_id")


# ---- in the tables of a build

_LIST = pa.schema(
    [(name, pa.string()) for name in ("by", "key", "value", "reason", "stated")]  # stated: as the tables spell the key
)
_KEYS = {  # by -> (table, column) pairs that an entry's key is compared with, where they are there
    "url": (("candidates", "url"), ("candidates", "reference_url"), ("facts", "final_url")),
    "owner": (
        ("candidates", "rights_holder"), ("candidates", "creator"), ("facts", "file_creator"), ("facts", "file_rights"),
    ),
    "id": (
        ("candidates", "sample_id"), ("facts", "image_id"), ("facts", "stored_sha256"), ("facts", "packed_sha256"),
    ),
}  # fmt: skip


_AS_COMPARED: dict[str, Callable[[str], str]] = {"url": address_key, "owner": "{}".format, "id": "lower({})".format}


def with_rows_of_secrets(entries: Sequence[Entry], whole_addresses: Iterable[str]) -> list[Entry]:
    """Return the entries, with the sample ids of its rows in the place of each address that hides a secret.

    `whole_addresses` are files of the table SECRETS. An address that none of them has stays as it is.
    """
    hidden = {entry.value: entry for entry in entries if entry.is_of_secret}
    rows: dict[Entry, list[Entry]] = {}
    for path in whole_addresses if hidden else ():
        table = pq.read_table(path, columns=["sample_id", "address"])
        for row in table.filter(pc.is_in(table["address"], pa.array(hidden, pa.string()))).to_pylist():
            entry = hidden[row["address"]]
            rows.setdefault(entry, []).append(Entry("id", row["sample_id"], entry.reason))
    return [one for entry in entries for one in rows.get(entry, [entry])]


def owners_in(sql: Any) -> str:
    """Return a query for sample_id and name of whoever candidates and facts name as an owner."""
    return " UNION ALL ".join(
        f"SELECT sample_id, {column} AS name FROM {table}" for table, column in _compared(sql)["owner"]
    )


def _compared(sql: Any) -> dict[str, list[tuple[str, str]]]:
    """`_KEYS` without the columns that are not there: only releases have some, and older ones lack others."""
    tables = ("candidates", "facts")
    there = {(table, row[0]) for table in tables for row in sql.execute(f"DESCRIBE {table}").fetchall()}
    return {by: [pair for pair in pairs if pair in there] for by, pairs in _KEYS.items()}


def find_named(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `named`: sample_id and entry for each row of candidates and facts that an entry names."""
    columns = "SELECT t.sample_id, l.by, l.key, l.value, l.reason"
    spellings: dict[tuple[str, str], list[str]] = {}
    if owners := [entry.key[1] for entry in entries if entry.by == "owner"]:
        names = sql.execute(f"SELECT DISTINCT name FROM ({owners_in(sql)})").fetchall()
        for name, keys in spellings_of(owners, (name for (name,) in names)).items():
            for key in keys:
                spellings.setdefault(("owner", key), []).append(name)
    rows = [
        {"by": entry.by, "key": entry.key[1], "value": entry.value, "reason": entry.reason, "stated": stated}
        for entry in entries
        for stated in (spellings.get(entry.key, ()) if entry.by == "owner" else (entry.key[1],))
        if not entry.is_of_secret
    ]
    sql.register("takedown_list", pa.Table.from_pylist(rows, schema=_LIST))
    listed = {by for by in KINDS if any(row["by"] == by for row in rows)}
    matches = [
        f"{columns} FROM {table} t JOIN takedown_list l ON {_AS_COMPARED[by]('l.stated')} = {_AS_COMPARED[by](column)} "
        f"WHERE l.by = '{by}'"
        for by, pairs in _compared(sql).items()
        for table, column in pairs
        if by in listed
    ]
    nothing = "SELECT NULL::VARCHAR AS sample_id, * EXCLUDE (stated) FROM takedown_list"  # reads no table
    sql.execute(f"CREATE OR REPLACE TABLE named AS {' UNION ALL '.join(matches) or nothing}")
