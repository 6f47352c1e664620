"""A long table made in pieces: what an interruption costs is one piece, and the end is the same to the byte.

    OUT.pieces/made.json          all that the table depends on
    OUT.pieces/piece-00000000.parquet, and its sha256 (`training.data.sealed`)
    OUT.made.json                 made.json with what was found, and the sha256 of OUT
    OUT                           csv or Parquet by its ending; the pieces one after the other

Every file is published whole or not at all, OUT last; then the pieces are removed. The same command goes on after any
interruption, also after kill -9, and says so when nothing is left to do. OUT is never replaced. Gives up with
ConfigError on a place that holds something else.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from torch import Tensor

from manifests.contract.settings import differences
from manifests.errors import ConfigError, IntegrityError
from manifests.services.printable import ProgressLine, pace
from manifests.services.untrusted import read_object
from manifests.stores import storage
from training.data.sealed import SealedFiles
from training.record.checkpoint import lock_folder
from training.using.pictures import Encoded, Listing

PIECE_ROWS = 256
ENDINGS = (".csv", ".parquet")
_MADE = "made.json"
_LINE_SECONDS = 30.0  # between two lines of progress, where they do not stand on a terminal


class PiecedTable:
    """The table `out`: a row a picture, made of the pictures and of what `identity` says, and of nothing else."""

    def __init__(self, out: str, identity: dict[str, Any], pictures: Listing, schema: pa.Schema) -> None:
        """Look at the pieces that are there.

        Raises: ConfigError for an ending that is none of ENDINGS, and for a place that holds something else.
        """
        if storage.is_remote(out):
            raise ConfigError(f"{out}: the table is written to a local place; copy it to an object store afterwards")
        self.out, self.num_rows, self.schema, self._pictures = Path(out), len(pictures), schema, pictures
        if self.out.suffix.lower() not in ENDINGS:
            raise ConfigError(f"{out}: --out must end in one of {', '.join(ENDINGS)}")
        self.folder = self.out.with_name(f"{self.out.name}.pieces")
        self.record = self.out.with_name(f"{self.out.name}.{_MADE}")
        there = next((path for path in (self.record, self.folder / _MADE) if path.is_file()), None)
        read = pictures.content(_read_json(there) if there else {})
        self._stamps, sizes = read["stamps"], {"num_rows": len(pictures), "piece_rows": PIECE_ROWS}
        self.identity = json.loads(json.dumps(identity | {"pictures": read["pictures"]} | sizes))
        self.is_finished = self.out.is_file() and self._holds_the_same(self.record)
        self._holds_the_same(self.folder / _MADE)
        if self.out.exists() and not self.is_finished:
            raise ConfigError(f"{out}: is there, and was not made by this command; choose another --out or remove it")
        if self.is_finished:
            recorded = _read_json(self.record).get("sha256")  # earlier versions recorded none
            if recorded not in (None, storage.hash_file(out).sha256):
                raise IntegrityError(
                    f"{out}: was changed or cut short since it was made; move it and {self.record.name} away, then run "
                    "the same command again"
                )

    def fill(
        self,
        encode: Callable[[list[range]], Iterable[Encoded]],
        columns: Callable[[Tensor], dict[str, Any]],
        notes: dict[str, Any],
        what: str,
    ) -> dict[str, Any]:
        """Compute the pieces that are missing, and publish the table; returns what its record says.

        `encode` gives what `encode_pieces` does of each range that it is asked for, in order; `columns` makes the cells
        of good pictures of it. `notes` go into the record.

        Raises: ConfigError when another process is at it.
        """
        if self.is_finished:
            self._remove_pieces()
            return _read_json(self.record)
        storage.make_folder(str(self.folder))
        with lock_folder(self.folder):
            storage.sweep(str(self.folder))
            storage.publish_json(self.folder / _MADE, self.identity | {"stamps": self._stamps})
            pieces = [range(i, min(i + PIECE_ROWS, self.num_rows)) for i in range(0, self.num_rows, PIECE_ROWS)]
            sealed = SealedFiles(self.folder)
            missing = [rows for rows in pieces if not sealed.is_whole(_name(rows))]
            done = done_before = self.num_rows - sum(map(len, missing))
            started = time.monotonic()
            line = ProgressLine(sys.stderr, _LINE_SECONDS, last=started)
            if done_before:
                print(f"{what}: {done_before:,} of {self.num_rows:,} were done before", file=sys.stderr, flush=True)
            for rows, values, faults in encode(missing) if missing else ():
                table = _spread(self._pictures.names(rows), faults, columns(values) if len(values) else {}, self.schema)
                stream = io.BytesIO()
                pq.write_table(table, stream, compression="zstd")
                sealed.write(_name(rows), stream.getvalue())
                done += len(rows)
                rate = (done - done_before) / max(time.monotonic() - started, 1e-9)
                line.show(f"{what}: {done:,} of {self.num_rows:,}{pace(rate, (self.num_rows - done) / rate)}")
            line.end()
            temp, num_faults = self._merge(pieces)
            outcome = {"notes": notes, "num_faults": num_faults, "sha256": storage.hash_file(temp).sha256}
            storage.publish_json(self.record, self.identity | outcome | {"stamps": self._stamps})
            storage.publish(temp, str(self.out))
        self._remove_pieces()
        return _read_json(self.record)

    def _remove_pieces(self) -> None:
        for path in self.folder.glob("*"):
            if re.fullmatch(r"piece-\d+\.parquet|\w+\.json|SHA256SUMS|\.lock", path.name):
                path.unlink()
        with contextlib.suppress(OSError):  # not there, or something else lies in it
            self.folder.rmdir()

    def kept(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a small result that is computed once: kept beside the pieces, then in the notes of the record."""
        if self.is_finished:
            return dict(_read_json(self.record)["notes"][name])
        path = self.folder / f"{name}.json"
        if not path.is_file():
            content = make()
            storage.make_folder(str(self.folder))
            storage.publish_json(self.folder / _MADE, self.identity | {"stamps": self._stamps})
            storage.publish_json(path, content)
        return _read_json(path)

    def _holds_the_same(self, path: Path) -> bool:
        """Return whether the record at a path is of this table; false where there is none.

        Raises: ConfigError for the record of another one.
        """
        if not path.is_file():
            return False
        stored = _read_json(path)
        changes = differences({key: stored.get(key) for key in self.identity}, self.identity)
        if changes:
            raise ConfigError(
                f"{self.out}: was made or begun from something else ({'; '.join(changes[:3])}); choose another --out, "
                f"or remove {self.folder.name if path.parent == self.folder else self.out.name} and {path.name}"
            )
        return True

    def _merge(self, pieces: list[range]) -> tuple[str, int]:
        """All pieces as one private file, and the number of rows with an error."""
        temp, num_faults = storage.temp_path(str(self.folder / self.out.name)), 0
        is_csv = self.out.suffix.lower() == ".csv"
        make: Any = pyarrow.csv.CSVWriter if is_csv else partial(pq.ParquetWriter, compression="zstd")
        with make(temp, self.schema) as writer:
            for rows in pieces:
                try:
                    table = pq.read_table(self.folder / _name(rows))
                except (OSError, pa.ArrowInvalid) as error:
                    raise IntegrityError(f"{self.folder / _name(rows)}: cannot be read ({error}); run again") from None
                num_faults += table.num_rows - table["error"].null_count
                writer.write_table(table)
        return temp, num_faults


def _spread(names: pa.Array, faults: list[str | None], columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Return a row a picture: name, fault, and the columns of those without a fault; nulls for the others."""
    error = pa.array(faults, pa.string())
    index = pc.if_else(error.is_null(), pc.subtract(pc.cumulative_sum(error.is_null().cast(pa.int32())), 1), None)
    arrays = [names, error]
    for field in list(schema)[2:]:
        values = columns.get(field.name, [])
        array = values if isinstance(values, pa.Array) else pa.array(values, field.type)
        arrays.append(array.take(index))
    return pa.table(arrays, schema=schema)


def _name(rows: range) -> str:
    return f"piece-{rows.start // PIECE_ROWS:08d}.parquet"


def _read_json(path: Path) -> dict[str, Any]:
    return read_object(path, "remove it, and run the command again")
