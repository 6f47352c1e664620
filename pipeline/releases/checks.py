"""Checks of a release, alone and against the catalogue that it came from (`plantmix verify`).

The fast check reads the record, the small files and samples.parquet by column, and no shard: a release of a terabyte
takes as long as its tables do. The deep check reads every byte and decodes every image. Faults are lines that a person
reads. Writes nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.contract import tables
from manifests.contract.reader import open_reader
from manifests.contract.release import RECORD_FILE, SPLIT_FOLDERS, WHEN_DAMAGED, Release
from manifests.errors import ConfigError, IntegrityError, RunError
from manifests.services.child import end_with_parent
from manifests.services.scheduling import num_cores
from manifests.stores import storage
from manifests.stores.folder import bring_missing
from pipeline.releases.cutting import iter_samples
from pipeline.releases.opening import open_sql, read_json, samples_path, view_samples, work_folder_of
from pipeline.sidefiles.citation import counts_of, write_counts
from pipeline.store.files import Files
from pipeline.store.sql import view_parquet, view_table

MAX_SHOWN = 10
_IMAGES_OF_A_PROCESS = 10_000  # eight seconds of work; to start a process takes one


@dataclass(frozen=True)
class Comparison:
    """Faults of a release against its catalogue, or why it was not compared."""

    faults: Sequence[str] = ()
    why_not: str | None = None


@dataclass(frozen=True)
class Checked:
    """The amounts looked at in a release without a fault."""

    num_files: int
    num_shards: int
    num_images: int  # decoded; 0 without `deep`
    why_not_compared: str | None  # with the catalogue


def check_release(release: Release, deep: bool) -> Checked:
    """Check a release.

    Fast: every file's size, the sha256 of all but the shards, and that record, samples table and small files agree.
    Deep: also the sha256 of every shard, every member of it against samples.parquet (the image decodes; its pHash, its
    sha256, its text), and in a work folder release.json and samples.parquet against the catalogue of the build that
    packed it.

    Raises: ConfigError with what is wrong: what was given is not a whole release.
    """
    workdir = work_folder_of(release) if deep else None
    faults = [*release.wrong_hashes(shards=deep), *release.unknown_files()]
    faults += inconsistencies(release) if not faults else []
    num_images, compared = 0, Comparison(why_not="it is in no work folder")
    if deep and not faults:
        for num_read, found in _read_shards(release):
            num_images, faults = num_images + num_read, faults + found
        if workdir is not None:
            compared = differences_from_catalogue(release, workdir)
            faults += compared.faults
    faults = [*(changes_since_sealed(release, workdir) if workdir is not None else ()), *faults]
    if faults:
        shown = "\n  ".join(faults[:MAX_SHOWN])
        more = f"\n  and {len(faults) - MAX_SHOWN:,} more" if len(faults) > MAX_SHOWN else ""
        raise ConfigError(f"{release.path}: {len(faults):,} faults:\n  {shown}{more}\n{WHEN_DAMAGED}")
    num_shards = sum(len(release.shards(split)) for split in release.splits)
    return Checked(len(release.record["files"]), num_shards, num_images, compared.why_not)


def inconsistencies(release: Release) -> Iterator[str]:
    """Faults between record, small files and samples table."""
    with open_sql() as sql:
        view_samples(sql, release)
        num_by_shard: dict[tuple[str, str], dict[str, int]] = {}
        for split, shard, domain, num in sql.execute(
            "SELECT split, shard, domain, count(*) FROM samples GROUP BY ALL ORDER BY ALL"
        ).fetchall():
            num_by_shard.setdefault((split, shard), {})[domain] = num
        yield from _wrong_counts(release, num_by_shard)
        yield from _wrong_side_files(release, sql)
        yield from _still_there(release, sql)


def _wrong_counts(release: Release, num_by_shard: dict[tuple[str, str], dict[str, int]]) -> Iterator[str]:
    record = release.record
    for split in release.splits:
        shards = record["splits"][split]["shards"]
        in_shards = sum(shard["num_samples"] for shard in shards)
        in_table = sum(sum(counts.values()) for (of_split, _), counts in num_by_shard.items() if of_split == split)
        if not record["splits"][split]["num_samples"] == in_shards == in_table:
            yield (
                f"split {split}: the record says {record['splits'][split]['num_samples']:,} samples, its shards "
                f"{in_shards:,}, samples.parquet {in_table:,}"
            )
        for shard in shards:
            counts = num_by_shard.pop((split, shard["shard"]), {})
            if counts != shard["domains"] or sum(counts.values()) != shard["num_samples"]:
                yield f"{shard['shard']}: the record says {shard['domains']}, samples.parquet {counts}"
            if release.kind == "stratified" and split == "train" and len(shard["domains"]) != 1:
                yield f"{shard['shard']}: {len(shard['domains'])} domains in a shard of a stratified release"
    for _, shard in num_by_shard:
        yield f"{shard}: named in samples.parquet, not in the record"
    counts = {domain: num for domain, num in record["counts"]["domains"].items() if num}
    if counts != _train_counts(release):
        yield f"counts: the record says {counts} training samples by domain, not what its shards hold"
    for stage, funnel in record["counts"]["stages"].items():
        if funnel["in"] != funnel["kept"] + sum(funnel["reasons"].values()):
            yield f"stage {stage}: {funnel['in']:,} in, but {funnel['kept']:,} kept and the drops do not add up"


def _wrong_side_files(release: Release, sql: Any) -> Iterator[str]:
    splits = release.record["splits"]
    sizes = {shard["shard"]: shard["num_samples"] for split in splits.values() for shard in split["shards"]}
    for split in release.splits:
        folder = SPLIT_FOLDERS[split]
        if read_json(release, f"{folder}/sizes.json") != sizes:
            yield f"{folder}/sizes.json: not the samples of every shard of the release, by name"
        listed = [(row["url"], row["nsamples"]) for row in read_json(release, f"{folder}/wids.json")["shardlist"]]
        if listed != [(shard["shard"], shard["num_samples"]) for shard in splits[split]["shards"]]:
            yield f"{folder}/wids.json: not the shards of the split and their samples"
    drawn = {row["domain"]: row["num_drawn"] for row in read_json(release, "mixture.json")["domains"]}
    if {domain: num for domain, num in drawn.items() if num} != _train_counts(release):
        yield f"mixture.json: says {drawn} were drawn, the shards hold {_train_counts(release)}"
    view_parquet(sql, "attribution", [storage.join(release.path, "attribution.parquet")])
    (row,) = sql.execute(
        "SELECT count(*) FILTER (a.sample_id IS NULL), count(*) FILTER (s.sample_id IS NULL) "
        "FROM (SELECT sample_id FROM samples WHERE copy = 0) s FULL JOIN attribution a USING (sample_id)"
    ).fetchall()
    if row != (0, 0):
        yield f"attribution.parquet: {row[0]:,} images are missing in it, {row[1]:,} are none of the release"
    for table in counts_of(release.record, sql):
        if storage.read_if_there(storage.join(release.path, table["file"])) != write_counts(table):
            yield f"{table['file']}: not the images of samples.parquet by {table['by']}"


def _train_counts(release: Release) -> dict[str, int]:
    return release.num_by_domain() if "train" in release.splits else {}


def _still_there(release: Release, sql: Any) -> Iterator[str]:
    gone = [image["image_id"] for entry in release.record.get("takedowns", []) for image in entry["images"]]
    if gone:
        rows = sql.execute(
            "SELECT DISTINCT sample_id FROM samples WHERE list_contains($1, image_id) ORDER BY 1", [gone]
        ).fetchall()
        for (sample_id,) in rows:
            yield f"{sample_id}: was taken down, but is in samples.parquet"


def changes_since_sealed(release: Release, workdir: str) -> Iterator[str]:
    """Yield a fault where release.json is not the one that the catalogue of its work folder knows.

    Raises: what `open_reader` raises.
    """
    with open_reader(workdir, per_sample=False) as sql:
        sealed = sql.execute("SELECT record_sha256 FROM releases WHERE name = $1", [release.name]).fetchall()
    sha256 = storage.hash_file(storage.join(release.path, RECORD_FILE)).sha256
    if sealed and sealed[0][0] != sha256:
        yield f"{RECORD_FILE} is not the one that the catalogue knows"


def differences_from_catalogue(release: Release, workdir: str) -> Comparison:
    """Compare samples with what the catalogue of the work folder measured, in the build that packed the release.

    pHash, stored hash and licence must be the catalogue's, and the text one that it holds for the sample. That build
    need not be the last one: tables of earlier builds stay in the work folder.

    Raises: what `open_reader` raises.
    """
    with open_reader(workdir, per_sample=False) as catalogue, open_sql() as sql:
        packed = catalogue.execute(
            "SELECT identity FROM stages WHERE stage = 'pack' AND fingerprint = $1 "
            "AND EXISTS (FROM releases WHERE name = $2)",
            [release.origin, release.name],
        ).fetchall()
        if not packed:
            return Comparison(why_not="the catalogue of this work folder does not know this release")
        identity = json.loads(packed[0][0])
        with_joined = "SELECT DISTINCT json_extract_string(notes, '$.joined_texts') FROM stages WHERE stage = 'caption'"
        joined = {content for (content,) in catalogue.execute(with_joined).fetchall()} & set(identity["extra_captions"])
        packed_from = (
            ("fetch", "facts", "content", identity["facts"]),
            ("caption", "captions", "content", identity["captions"]),
            ("caption", "joined_texts", "joined_texts", joined),
        )
        for stage, table, note, contents in packed_from:
            paths = [_paths_with_content(catalogue, workdir, stage, table, note, content) for content in contents]
            if not all(paths):
                return Comparison(why_not=f"the {table} that it was packed from are no longer in the work folder")
            files = Files(tuple(itertools.chain.from_iterable(paths)))
            view_table(sql, f"packed_{table}", files, tables.JOINED_TEXTS)  # without joined texts an empty one
        view_parquet(sql, "packed", [samples_path(release)])
        rows = sql.sql(_COMPARED).fetchall()
    others = [(f"{shard}/{key}", ", ".join(itertools.compress(_PARTS, flags))) for shard, key, *flags in rows]
    return Comparison([f"{sample}: not as in the catalogue: {parts}" for sample, parts in others])


def _paths_with_content(sql: Any, workdir: str, stage: str, table: str, note: str, content: str) -> list[str]:
    """Files of a table of the version of a stage that noted this content; none where they are no longer there."""
    versions = sql.execute(
        "SELECT fingerprint, list(f.path ORDER BY sp.step, sp.position) FROM stages s "
        "JOIN stage_parts sp USING (fingerprint) JOIN files f USING (part_key) "
        "WHERE s.stage = $1 AND s.sealed_at IS NOT NULL AND json_extract_string(s.notes, '$.' || $4) = $2 "
        "AND f.table_name = $3 GROUP BY ALL ORDER BY 1",
        [stage, content, table, note],
    ).fetchall()
    for _, files in versions:
        paths = [storage.join(workdir, file) for file in files]
        with contextlib.suppress(IntegrityError):  # a table that is gone
            bring_missing(paths)
        if all(Path(path).is_file() for path in paths):
            return paths
    return []


_PARTS = ("pHash", "stored image", "licence", "text")
_COMPARED = """
    SELECT * FROM (
        SELECT p.shard, p.key, f.phash IS DISTINCT FROM p.phash AS phash,
            f.stored_sha256 IS DISTINCT FROM p.stored_sha256 AS image,
            t.licence_id IS DISTINCT FROM p.licence_id AS licence,
            NOT coalesce(p.text = coalesce(t.text, '') OR list_contains(map_values(t.texts), p.text)
                OR (p.text = '' AND p.text_type IS NULL) OR list_contains(j.texts, p.text), false) AS text
        FROM packed p LEFT JOIN packed_facts f USING (sample_id) LEFT JOIN packed_captions t USING (sample_id)
        LEFT JOIN (
            SELECT sample_id, list(text) AS texts FROM packed_joined_texts WHERE name IS NOT NULL GROUP BY sample_id
        ) j USING (sample_id)
    ) WHERE phash OR image OR licence OR text ORDER BY shard, key
"""


def _read_shards(release: Release) -> Iterator[tuple[int, list[str]]]:
    """(images read, faults) of every shard, in their order; many are read by as many processes as there are cores.

    Raises: RunError when one of them was killed.
    """
    shards = ((shard, release.shard_path(split, shard), rows) for split, shard, rows in release.iter_shards())
    num_images = sum(release.num_samples(split) for split in release.splits)
    num_processes = min(num_cores(), num_images // _IMAGES_OF_A_PROCESS)
    if num_processes < 2:
        yield from itertools.starmap(_read_shard, shards)
        return
    pool = ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"), _start_process)
    waiting: deque[Future[tuple[int, list[str]]]] = deque()
    try:
        for shard in shards:
            waiting.append(pool.submit(_read_shard, *shard))
            if len(waiting) > 2 * num_processes:
                yield waiting.popleft().result()
        yield from (read.result() for read in waiting)
    except BrokenProcessPool:
        raise RunError("a process that reads shards was killed (out of memory?); run the same command again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Ctrl-C is for the process that started this one, which ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _read_shard(shard: str, path: str, rows: pa.Table) -> tuple[int, list[str]]:
    num_read, faults = 0, list[str]()
    waiting = {row["key"]: row for row in rows.to_pylist()}
    for num_read, (key, members) in enumerate(iter_samples(path), 1):  # noqa: B007  # the last one is how many
        row = waiting.pop(key, None)
        fault = f"{shard}: {key} is not in samples.parquet" if row is None else _fault_of(row, dict(members))
        faults += [fault] if fault else []
    return num_read, faults + [f"{shard}: {key} of samples.parquet is not in the shard" for key in waiting]


def _fault_of(row: Mapping[str, Any], members: Mapping[str, bytes]) -> str | None:
    import imagehash

    from manifests.pictures.opening import open_stored

    where = f"{row['shard']}/{row['key']}"
    image = members.get("jpg", b"")
    blurred = row.get("packed_sha256")  # releases of before have no such column
    if hashlib.sha256(image).hexdigest() != (blurred or row["stored_sha256"]):
        return f"{where}: the image is not the one recorded"
    try:
        with open_stored(image) as opened:
            opened.load()
            phash = int(str(imagehash.phash(opened)), 16)
            size = opened.size
    except (OSError, ValueError) as error:
        return f"{where}: the image does not decode: {error}"
    if phash != row["phash"] and not blurred:
        return f"{where}: pHash {phash:016x}, recorded {row['phash']:016x}"
    if size != (row["stored_width_px"], row["stored_height_px"]):
        return f"{where}: {size[0]} x {size[1]} pixels, recorded {row['stored_width_px']} x {row['stored_height_px']}"
    if members.get("txt", b"").decode("utf-8", "replace") != row["text"]:
        return f"{where}: the text is not the one recorded"
    return None
