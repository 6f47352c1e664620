"""The step of ingest that reads tars of a store, and compressed ones, once, front to back, in pieces.

A piece is committed as it comes. It holds samples that lie side by side: rows of SAMPLES (sources/tars/samples.py),
from which ingest makes candidates, and pool and facts as fetch makes them of local pictures, which fetch takes over. So
a tar of any size needs the memory and the disk of one piece beside what is kept, and a build that was killed goes on
behind the last piece. A compressed tar is unpacked up to there again, and nothing of it is measured again.
Parquet files with pictures are read in the same way: read "tar" as any file in which samples lie.

The content of a tar is known when its last piece is there (`learn`). A stamp of the file only says whether it must be
read: other stamps begin another reading, whose pictures are hashed, and none is decoded; if the content is the same,
nothing else runs. A tar that changes while it is read fails its part.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.contract.outcomes import Outcome
from manifests.contract.records import LOOKED, PartRecord
from manifests.masking import hide_secrets
from manifests.samples.unpacking import UNKNOWN_END, packing_of
from manifests.services.untrusted import BrokenTarError
from manifests.stores import storage
from manifests.stores.stamps import look
from pipeline.engine.work import BuildContext, Execution, Part, PartResult, StageRun
from pipeline.fetching.part import PartWriter
from pipeline.fetching.pictures.image import Rejected, StoredImage, measure_image
from pipeline.fetching.pictures.settings import ImageSettings
from pipeline.fetching.settings import DECODE_THREADS
from pipeline.sources.files import address_of
from pipeline.sources.reading import ask, places_of
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tars.samples import SAMPLES, PassedSample, StoredTars, content_of, row_of
from pipeline.stages.fetch import local as fetch_local
from pipeline.store.files import Files

log = logging.getLogger("plantmix.ingest")

PIECE_BYTES = 128 << 20
"""Of a tar, in a piece: what a killed build reads again at most."""
UNREAD = ""
"""Stands for the content of a tar that nobody has read to its end."""
_LOOKED_AT_A_TIME = 8
_IDS_AT_A_TIME = 8


@dataclass(frozen=True)
class TarInputs:
    """A stretch of a tar, from the header at `start` on; it ends where a sample begins at `stop`, or with the tar.

    Of a compressed tar these are bytes of the plain one. `reading` counts the versions of the tar that a work folder
    has seen. Without `image` no picture is decoded.
    """

    source: SourceSettings
    tar: str
    reading: int
    start: int
    stop: int | None
    image: ImageSettings | None


@dataclass(frozen=True)
class TarsHow:
    """Storage of pictures, the most samples of a piece, and the stamp and size of each tar by its place."""

    image: ImageSettings
    piece_samples: int
    seen: Mapping[str, tuple[str | None, int]]


@dataclass(frozen=True)
class _Reading:
    """The pieces that the catalogue has of one tar in its present version."""

    number: int
    pieces: tuple[PartRecord, ...]
    is_first: bool
    """No other version was read to its end: its pictures are decoded."""

    def gaps(self) -> Iterator[tuple[int, int | None]]:
        """Yield the spans that are still to be read: from, and up to; None for the end of the tar."""
        position = 0
        for piece in self.pieces:
            if piece.notes["start"] > position:
                yield position, piece.notes["start"]
            position = piece.notes["stop"]
        if not self.pieces or not self.pieces[-1].notes["ends"]:
            yield position, None


def read(inputs: TarInputs, run: Execution[TarsHow]) -> Iterator[PartResult]:
    """Read a stretch; a piece whenever there is enough for one."""
    tars = inputs.source.reader.tars()
    assert tars is not None
    address = _place(inputs.source, inputs.tar)
    stamp, num_bytes = run.how.seen[address]
    packing = packing_of(inputs.tar)
    end_of_tar = UNKNOWN_END if packing else num_bytes
    before = [path for path in run.pieces if "/samples-" in path]  # of earlier tries
    stops = [pc.max(pq.read_table(path, columns=["stop"])["stop"]).as_py() for path in before]
    start, stop = max(stops, default=inputs.start), inputs.stop or end_of_tar
    if start >= stop:
        return
    path = storage.join(tars.root, inputs.tar)
    begins = 0 if packing else start
    passing = tars.passing(path, stamp, num_bytes, start, run.how.image.max_body_bytes)
    with passing as (file, samples), _Pieces(inputs, tars, run, len(before)) as pieces:

        def reached(end: int) -> int:
            return file.tell() if packing else min(end, num_bytes)

        def done(end: int, broken: str | None = None) -> PartResult:
            file.require_unchanged()
            notes = {"place": address, "stamp": stamp, "reading": inputs.reading, "start": start, "stop": end}
            made = pieces.finish(notes | {"ends": end == end_of_tar, "broken": broken})
            return replace(made, weight=_in_mb(reached(end) - begins))

        broken = None
        try:
            for passed in samples:
                end = pieces.add(passed, end_of_tar)
                is_full = end - start >= PIECE_BYTES or len(pieces.rows) >= run.how.piece_samples
                if end == stop != end_of_tar or (passed.sample.begins < end != end_of_tar and is_full):
                    yield done(end)
                    start, begins = end, reached(end)
                    if end == stop:
                        return
        except BrokenTarError as error:
            broken = str(error)
            pieces.rows.append({"source": inputs.source.name, "tar": inputs.tar, "stop": end_of_tar, "broken": broken})
        yield done(end_of_tar, broken)


class _Pieces(AbstractContextManager["_Pieces"]):
    """Makes parts of samples that lie side by side, one part after another."""

    def __init__(self, inputs: TarInputs, tars: StoredTars, run: Execution[TarsHow], number: int) -> None:
        self._inputs, self._tars, self._run = inputs, tars, run
        self._threads = ThreadPoolExecutor(DECODE_THREADS)
        self._begin(number)

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._writer.discard()

    def _begin(self, number: int) -> None:
        self._number, self._name = number, f"{self._run.stem}-{number}"
        self._pool = fetch_local.new_pool_file(replace(self._run, stem=self._name))
        self._writer = PartWriter(self._pool)
        self._decoding: deque[tuple[str, Future[StoredImage | Rejected]]] = deque()
        self._addresses: dict[str, str] = {}
        self._waiting: list[tuple[PassedSample, dict[str, Any]]] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, passed: PassedSample, end_of_tar: int) -> int:
        """Keep a sample, and have its picture measured; gives where the next one begins, or the end of the tar."""
        row = row_of(self._inputs.source.name, self._inputs.tar, passed, self._tars.suffixes)
        row["stop"] = end = passed.sample.stop or end_of_tar
        self.rows.append(row)
        if row["ending"] is not None and self._inputs.image is not None:
            self._waiting.append((passed, row))
        if len(self._waiting) == _IDS_AT_A_TIME:
            self._measure(self._inputs.image)
        return end

    def _measure(self, image: ImageSettings | None) -> None:
        """Have the pictures that wait measured; the ids of several samples cost little more than one."""
        waiting, self._waiting = self._waiting, []
        keys = [self._tars.key_of(self._inputs.tar, passed.sample) for passed, _ in waiting]
        ids = self._inputs.source.ids_of([key or "" for key in keys]).to_pylist() if waiting else []
        for (passed, row), key, sample_id in zip(waiting, keys, ids, strict=True):
            if image is None or key is None or sample_id in self._addresses:
                continue  # without a key, or a duplicate record
            self._addresses[sample_id] = address_of(row["locator"], row["sha256"])
            if passed.body is None:
                detail = f"{passed.sample.pictures[row['ending']][1]} bytes, allowed {image.max_body_bytes}"
                self._writer.add(sample_id, {"outcome": Outcome.BODY_TOO_LARGE.value, "detail": detail, "attempts": 1})
                continue
            self._decoding.append((sample_id, self._threads.submit(measure_image, passed.body, image)))
            self._collect(2 * DECODE_THREADS)

    def _collect(self, most: int) -> None:
        while len(self._decoding) > most:
            sample_id, measured = self._decoding.popleft()
            self._writer.add(sample_id, {"outcome": Outcome.OK.value, "attempts": 1}, measured.result())

    def finish(self, notes: Mapping[str, Any]) -> PartResult:
        """Return the files of the piece."""
        self._measure(self._inputs.image)
        self._collect(0)
        inputs, run = self._inputs, self._run
        stored_as = fetch_local.stored_as(inputs.image) if inputs.image else None
        notes = {**notes, "round": 0, "stored_as": stored_as}
        made = fetch_local.finish(self._writer.finish(), self._addresses, notes, self._pool, self._name, run, True)
        rows = pa.Table.from_pylist(self.rows, SAMPLES)
        samples = run.write("samples", rows, f"samples-{self._name}")
        self._begin(self._number + 1)
        return replace(made, files=(*made.files, samples))


# ---- which tars, and what is known of them


def look_at_tars(source: SourceSettings, context: BuildContext) -> dict[str, tuple[str | None, int]]:
    """Stamp and size of the tars of a source that are read in this way, by name.

    A tar whose hash an earlier version took, and that has not changed since, is read as it was then.
    """
    tars = source.reader.tars()
    if tars is None:
        return {}
    paths = [storage.join(tars.root, name) for name in tars.names]
    with ThreadPoolExecutor(_LOOKED_AT_A_TIME) as threads:
        seen = list(threads.map(lambda path: ask(source, partial(look, path, now=True)), paths))
    hashed = context.catalog.stamps.is_hashed
    return {
        name: (stamp, num_bytes or 0)
        for name, path, (stamp, num_bytes) in zip(tars.names, paths, seen, strict=True)
        if not hashed(hide_secrets(path), stamp)
    }


def hashes_of_tars(source: SourceSettings, context: BuildContext) -> dict[str, str]:
    """Return the content of these tars by path; UNREAD where the one that is there now was never read to its end."""
    seen, tars = look_at_tars(source, context), source.reader.tars()
    if tars is None or not seen:
        return {}
    paths = [storage.join(tars.root, name) for name in seen]
    looked = pa.table([places_of(source, list(seen)), paths, [stamp for stamp, _ in seen.values()]], schema=LOOKED)
    stored = context.catalog.stamps.stored(looked)
    paths, shas = stored["path"].to_pylist(), stored["sha256"].to_pylist()
    return {path: sha256 or UNREAD for path, sha256 in zip(paths, shas, strict=True)}


def how_to_read(context: BuildContext) -> TarsHow:
    """For the step of a build."""
    config = context.config
    seen = {
        _place(source, name): mark for source in config.sources for name, mark in look_at_tars(source, context).items()
    }
    return TarsHow(config.fetch.image, config.run.fetch_part_size, seen)


def plan(sources: Sequence[SourceSettings], run: StageRun[TarsHow]) -> list[Part[TarInputs]]:
    """Plan the parts of the tars, as they are now, that no piece holds."""
    parts: list[Part[TarInputs]] = []
    for source, name, reading in _readings(sources, run):
        num_bytes = run.how.seen[_place(source, name)][1]
        image = run.how.image if reading.is_first else None
        for start, stop in reading.gaps():
            inputs = TarInputs(source, name, reading.number, start, stop, image)
            if packing_of(name) and start:
                log.info(
                    "ingest: %s: a compressed tar cannot be entered midway, so its first %s MB are unpacked again; "
                    "none of their pictures is measured again",
                    *(name, f"{_in_mb(start):,}"),
                )
            num_read = num_bytes if packing_of(name) else (stop or num_bytes) - start
            parts.append(Part(inputs, _members(source), _in_mb(num_read)))
    return parts


def pieces_of(sources: Sequence[SourceSettings], run: StageRun[TarsHow]) -> list[PartRecord]:
    """Return the committed pieces of the tars as they are now."""
    return [piece for _, _, reading in _readings(sources, run) for piece in reading.pieces]


def samples_of(source: SourceSettings, run: StageRun[Any]) -> Files:
    """Return the samples of the tars of a source that this build has read, in their order."""
    return run.files_of([piece for pieces in _by_tar(source, run).values() for piece in pieces], "samples")


def learn(source: SourceSettings, run: StageRun[Any]) -> dict[str, str]:
    """Return the content of the tars that were read, by path; it is kept beside their stamps."""
    tars, learnt = source.reader.tars(), dict[str, str]()
    for name, pieces in _by_tar(source, run).items():
        assert tars is not None
        files = run.files_of(pieces, "samples")
        learnt[storage.join(tars.root, name)] = content = content_of(files.paths)
        columns = {"place": [_place(source, name)], "stamp": [pieces[0].notes["stamp"]], "sha256": [content]}
        run.catalog.stamps.keep(pa.table({key: pa.array(value, pa.string()) for key, value in columns.items()}))
    return learnt


def _readings(
    sources: Sequence[SourceSettings], run: StageRun[TarsHow]
) -> Iterator[tuple[SourceSettings, str, _Reading]]:
    every: dict[str, list[PartRecord]] = {}
    for piece in run.catalog.parts_like("ingest", "tars"):
        every.setdefault(piece.notes["place"], []).append(piece)
    for source in sources:
        usable = {piece.key for piece in run.made_of("tars", _members(source))}
        for name in tars.names if (tars := source.reader.tars()) else ():
            address = _place(source, name)
            if address in run.how.seen:
                yield source, name, _reading_of(every.get(address, []), usable, run.how.seen[address][0])


def _reading_of(every: Sequence[PartRecord], usable: set[str], stamp: str | None) -> _Reading:
    def number_of(piece: PartRecord) -> int:
        return int(piece.notes["reading"])

    mine = [piece for piece in every if piece.key in usable and stamp is not None and piece.notes["stamp"] == stamp]
    number = max(map(number_of, mine), default=1 + max(map(number_of, every), default=-1))
    pieces = sorted((p for p in mine if number_of(p) == number), key=lambda piece: piece.notes["start"])
    is_first = not any(piece.notes["ends"] for piece in every if number_of(piece) < number)
    return _Reading(number, tuple(pieces), is_first)


def _by_tar(source: SourceSettings, run: StageRun[Any]) -> dict[str, list[PartRecord]]:
    """Return the pieces of this build by the name of their tar, in its order."""
    tars = source.reader.tars()
    by_place: dict[str, list[PartRecord]] = {}
    for piece in run.parts("tars") if tars else ():
        by_place.setdefault(piece.notes["place"], []).append(piece)
    return {
        name: sorted(by_place[address], key=lambda piece: piece.notes["start"])
        for name in (tars.names if tars else ())
        if (address := _place(source, name)) in by_place
    }


def _members(source: SourceSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    tars = source.reader.tars()
    return ask(source, lambda: tars.members) if tars else ((), ())


def _place(source: SourceSettings, name: str) -> str:
    return str(places_of(source, [name])[0])


def _in_mb(num_bytes: int) -> int:
    return max(1, num_bytes // 1_000_000)
