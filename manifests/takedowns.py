"""The takedown list of a work folder: what must not come into any later build.

WORKDIR/takedowns.jsonl has one JSON object on each line: `by` (url, owner, id), `value`, `reason`. `plantmix takedown`
adds to it. People may write it by hand and copy it to another work folder. A line that cannot be read is a ConfigError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests import storage
from manifests.catalog_file import TAKEDOWNS_FILE
from manifests.errors import ConfigError
from manifests.masking import hide_secrets
from manifests.release import Release
from manifests.remote.patience import read_if_there

KINDS = ("url", "owner", "id")
WHEN_GONE = (
    f"restore {TAKEDOWNS_FILE} from a backup, or write it again from the takedowns in each release.json; an empty "
    "file says that nothing was taken down"
)


@dataclass(frozen=True, order=True)
class Entry:
    """One thing that must stay out: an address, an owner, or a sample id or image sha256.

    The texts hold no secrets of addresses, as in all tables.
    """

    by: str
    value: str
    reason: str = "not stated"

    def __post_init__(self) -> None:
        for name in ("value", "reason"):
            text = getattr(self, name)
            if isinstance(text, str):  # a list written by hand may hold anything; `read_list` checks it
                object.__setattr__(self, name, hide_secrets(text))

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two entries that mean the same. Owners in the lower case of the tables, where Python's has two more
        rules: for the last sigma of a word and for the dotted I."""
        return self.by, pc.utf8_lower(self.value.strip()).as_py() if self.by == "owner" else self.value


def standing_entries(workdir: str, ask: Callable[[str], Sequence[Any]]) -> list[Entry]:
    """What must stay out of builds. `ask` gives the rows of a query to the catalogue.

    Raises: ConfigError as `read_list`, and when a list that an earlier command read is gone.
    """
    path = storage.join(workdir, TAKEDOWNS_FILE)
    if ask(f"SELECT 1 FROM inputs WHERE path = '{TAKEDOWNS_FILE}'") and not Path(path).is_file():
        raise ConfigError(f"{path}: gone, so what must stay out is not known; {WHEN_GONE}")
    return read_list(workdir)


def read_list(workdir: str) -> list[Entry]:
    """The entries of a work folder, sorted; none when there is no list.

    Raises: ConfigError that names the first line that is not an entry.
    """
    path = storage.join(workdir, TAKEDOWNS_FILE)
    content = read_if_there(path)
    if content is None:
        return []
    entries = set()
    # not splitlines(): json writes U+2028, U+2029 and U+0085 within a text as they are
    for number, line in enumerate(content.decode("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            entry = Entry(values["by"], values["value"], values.get("reason", "not stated"))
        except (ValueError, KeyError, TypeError, AttributeError):
            entry = None
        if entry is None or entry.by not in KINDS or not all(isinstance(v, str) and v for v in asdict(entry).values()):
            raise ConfigError(
                f"{path}, line {number}: not an entry of a takedown list; each line is a JSON object with 'by' "
                f"({', '.join(KINDS)}), 'value' and 'reason'"
            )
        entries.add(entry)
    return sorted(entries)


def add_entries(workdir: str, entries: Sequence[Entry]) -> None:
    """Add to the list of a work folder."""
    before = read_list(workdir)
    listed = {(entry.by, entry.value) for entry in before}
    new = [entry for entry in dict.fromkeys(entries) if (entry.by, entry.value) not in listed]
    if new:
        lines = [json.dumps(asdict(entry), ensure_ascii=False) for entry in [*before, *new]]
        storage.publish_bytes(storage.join(workdir, TAKEDOWNS_FILE), ("\n".join(lines) + "\n").encode())


_COLUMNS = {  # by -> columns of samples.parquet that an entry's key is compared with
    "url": ("url", "reference_url"),
    "owner": ("rights_holder", "creator"),
    "id": ("sample_id", "image_id", "stored_sha256"),
}


def taken_down_since(release: Release, workdir: str) -> str | None:
    """What to tell someone who takes a release that holds images which the list of its work folder names.

    None where it holds none.

    Raises: ConfigError as `read_list`; IntegrityError for a samples table that is not as it was sealed.
    """
    entries = read_list(workdir)
    if not entries:
        return None
    named = pc.scalar(False)
    for by, columns in _COLUMNS.items():
        keys = pa.array([entry.key[1] for entry in entries if entry.by == by], pa.string())
        for column in columns:
            value = pc.field(column)
            named |= (pc.utf8_lower(pc.utf8_trim_whitespace(value)) if by == "owner" else value).isin(keys)
    images = release.samples(columns=["url", "sample_id"], where=named & (pc.field("copy") == 0)).sort_by("sample_id")
    if not images.num_rows:
        return None
    first = images.slice(0, 1).to_pylist()[0]
    return (
        f"{release.path}: holds {images.num_rows:,} images that were taken down since, first: {first['url']}; "
        f"take a version without them: `plantmix takedown {release.path} --id {first['sample_id']}` writes one"
    )


# ---- in the tables of a build

_LIST = pa.schema([("by", pa.string()), ("key", pa.string()), ("value", pa.string()), ("reason", pa.string())])
_KEYS = {  # by -> (table, column) pairs that an entry's key is compared with
    "url": (("candidates", "url"), ("candidates", "reference_url"), ("facts", "final_url")),
    "owner": (("candidates", "lower(trim(rights_holder))"), ("candidates", "lower(trim(creator))")),
    "id": (("candidates", "sample_id"), ("facts", "image_id"), ("facts", "stored_sha256")),
}


def judge_takedowns(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `taken`: rows of candidates and facts that an entry names, with the entry as value and reason."""
    find_named(sql, entries)
    sql.execute(
        "CREATE TABLE taken AS SELECT sample_id, any_value(phash) AS phash, any_value(image_id) AS image_id, "
        "any_value(pixels_sha256) AS pixels_sha256, min(n.by || ' ' || value) AS value, "
        "arg_min(reason, n.by || ' ' || value) AS threshold "
        "FROM named n JOIN facts USING (sample_id) WHERE outcome = 'ok' GROUP BY sample_id"
    )


def find_named(sql: Any, entries: Sequence[Entry]) -> None:
    """Make the table `named`: sample_id and entry for each row of candidates and facts that an entry names."""
    rows = [{"by": entry.by, "key": entry.key[1], "value": entry.value, "reason": entry.reason} for entry in entries]
    sql.register("takedown_list", pa.Table.from_pylist(rows, schema=_LIST))
    matches = " UNION ALL ".join(
        f"SELECT t.sample_id, l.by, l.key, l.value, l.reason FROM {table} t JOIN takedown_list l ON l.key = {column} "
        f"WHERE l.by = '{by}'"
        for by, columns in _KEYS.items()
        for table, column in columns
    )
    nothing = "SELECT NULL::VARCHAR AS sample_id, * FROM takedown_list"  # an empty list reads no table
    sql.execute(f"CREATE TABLE named AS {matches if rows else nothing}")
