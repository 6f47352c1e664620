"""What must hold of a release though a clean build may break it alike: the world knows better than any build.

The world knows which picture it made from which, which scores are no numbers, which picture a text is about, and which
rows it wrote. Each law has a name; those in OPEN of drawing.py are not asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from webdataset.tariterators import group_by_keys, tar_file_expander

from manifests.contract.reader import open_reader, rows_of
from manifests.contract.release import Release
from walk.oracle import DifferenceError, path_of
from walk.running import Ran, run
from walk.web import KIN, NUM_MOTIFS, OTHER_FORMS, motif, picture
from walk.world import TAR_TEXT, World

# ---- pictures made from one that was taken down


@cache
def _made_from() -> Mapping[str, tuple[int, bool]]:
    """By sha256 of a picture: its motif, and whether it is the whole motif in other bytes, size or direction."""
    forms = [(form, form in KIN) for form in (*KIN, *OTHER_FORMS)]
    return {
        hashlib.sha256(picture(number, form)).hexdigest(): (number, is_kin)
        for number in range(NUM_MOTIFS)
        for form, is_kin in forms
    }


def motif_of(image_id: str | None, kin_only: bool = True) -> int | None:
    """Which motif a picture was made from; None for another picture."""
    number, is_kin = _made_from().get(image_id or "", (None, False))
    return number if is_kin or not kin_only else None


def motifs_in(release: Path, kin_only: bool = True) -> set[int]:
    """The motifs that a release shows."""
    ids = pq.read_table(release / "samples.parquet", columns=["image_id"])["image_id"].to_pylist()
    return {number for image_id in ids if (number := motif_of(image_id, kin_only)) is not None}


def check_kin(release: Path, taken: Collection[int]) -> None:
    """No picture made from one that was taken down is in a release."""
    if held := sorted(motifs_in(release).intersection(taken)):
        raise DifferenceError("kin", f"{release.name} shows motifs that were taken down: {held}")


def check_goes_out(ran: Ran, release: Path, out: Path | None, taken: Collection[int], by_name: bool) -> bool:
    """A release that holds what was taken down goes out with a word about it, if at all; any other goes out whole.

    `by_name`: it holds what was named itself. Gives whether the command should have succeeded.
    """
    holds = by_name or bool(motifs_in(release).intersection(taken))
    if holds and not re.search("taken down|takedown", ran.out + ran.err):
        raise DifferenceError("goes out", f"{release.name} holds what was taken down; said: {ran.out[-300:]}{ran.err}")
    if ran.code == 0 and out is not None:
        sent = {path.name: path.read_bytes() for path in out.rglob("*.tar")}
        if sent != {path.name: path.read_bytes() for path in release.rglob("*.tar")}:
            raise DifferenceError("goes out", f"{release.name} was not sent whole: {sorted(sent)}")
    return not holds and not motifs_in(release, kin_only=False).intersection(taken)


# ---- rows that answered a retry


def check_retried(rows: Sequence[Mapping[str, Any]], of_clean: Sequence[Mapping[str, Any]], answered: set[str]) -> None:
    """An address that answered in the end has the outcome of a clean build that it answers at once."""
    expected = {row["sample_id"]: row["outcome"] for row in of_clean}
    back = [
        f"{row['url']} is {row['outcome']}, of a clean build {expected[row['sample_id']]}"
        for row in rows
        if row["url"] and path_of(row["url"]) in answered and row["outcome"] != expected.get(row["sample_id"])
    ]
    if back:
        raise DifferenceError("retried", "; ".join(back))


# ---- scores, texts, and who reads a release


@cache
def _is_unsure(number: int) -> bool:
    from own_scorer import UNSURE_BELOW, brightness_of  # which lies beside tests of scorers

    return bool(brightness_of(motif(number)) < UNSURE_BELOW)


def check_scores(release: Path, rules: Iterable[Mapping[str, Any]]) -> None:
    """What a scorer gives no number for passes no rule."""
    shown = {number for number in motifs_in(release) if _is_unsure(number)}
    if shown and any(rule["scorer"] == "unsure" for rule in rules):
        raise DifferenceError("scores", f"{release.name} holds motifs whose score is no number: {sorted(shown)}")


def check_boxes(release: Path) -> None:
    """Nothing counts as blurred by boxes that are none."""
    marks = pq.read_table(release / "samples.parquet", columns=["marks"])["marks"].to_pylist()
    if num := sum("faulty:blurred" in (each or "") for each in marks):
        raise DifferenceError("boxes", f"{release.name}: {num} pictures count as blurred by boxes that are none")


def check_readers(release: Path, with_texts: bool) -> None:
    """webdataset, our loader and (where it is installed) datasets read each sample of a release, with the same bytes.

    `with_texts`: also that a text of the table beside the tar stands with the picture that it is about.
    """
    opened = Release.open(str(release))
    for split in ("train", "heldout"):
        paths = [opened.shard_path(split, name) for name in opened.shards(split)]
        if not paths:
            continue
        columns = ["key", "image_id", "text"]
        rows = {row["key"]: row for row in opened.samples(split, columns=columns).to_pylist()}
        reading = {"webdataset": _read_by_webdataset(paths), "dalip": _read_by_dalip(opened, split)}
        reading |= {"datasets": _read_by_datasets(paths)} if find_spec("datasets") else {}
        by_reader = {name: _all_of(name, samples) for name, samples in reading.items()}
        told = Counter((key, row["text"] or "") for key, row in rows.items())
        for reader, samples in by_reader.items():
            if Counter((sample["key"], sample["txt"]) for sample in samples) != told:
                raise DifferenceError("readers", f"{release.name}/{split}: {reader} reads other samples than are told")
        pictures = {name: {each["key"]: each["jpg"] for each in samples} for name, samples in by_reader.items()}
        if len({json.dumps(each, sort_keys=True) for each in pictures.values()}) != 1:
            raise DifferenceError("readers", f"{release.name}/{split}: {', '.join(pictures)} read unlike pictures")
        for sample in by_reader["webdataset"] if with_texts else ():
            shown = motif_of(rows[sample["key"]]["image_id"], kin_only=False)
            about = {int(number) for text in sample["texts"] for number in re.findall(TAR_TEXT.format(r"(\d+)"), text)}
            if about - {shown}:
                raise DifferenceError("texts", f"{release.name}: texts about motif {sorted(about)} stand with {shown}")


def _all_of(reader: str, samples: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        return list(samples)
    except Exception as error:
        raise DifferenceError("readers", f"{reader}: {type(error).__name__}: {error}") from error


def _sample(key: str, jpg: bytes, texts: Mapping[str, str]) -> dict[str, Any]:
    return {
        "key": key, "jpg": hashlib.sha256(jpg).hexdigest(), "txt": texts.get("txt", ""), "texts": list(texts.values())
    }  # fmt: skip


def _read_by_webdataset(paths: list[str]) -> Iterator[dict[str, Any]]:
    for path in paths:
        with Path(path).open("rb") as stream:  # its own opener leaves files open
            for sample in group_by_keys(tar_file_expander([{"url": path, "stream": stream}])):
                texts = {name: value.decode() for name, value in sample.items() if name.endswith("txt")}
                yield _sample(sample["__key__"], sample["jpg"], texts)


def _read_by_dalip(release: Release, split: str) -> Iterator[dict[str, Any]]:
    from training.data.shards import ShardReader, open_pool  # loads torch

    pool = open_pool([release], split)
    keys = pool.table["key"].to_pylist()
    for key, (jpg, txt, _) in zip(keys, ShardReader(pool).read(range(len(pool)), with_texts=True), strict=True):
        yield _sample(key, jpg, {"txt": txt.decode()})


def _read_by_datasets(paths: list[str]) -> Iterator[dict[str, Any]]:
    from datasets import Image as ImageColumn
    from datasets import load_dataset

    rows = load_dataset("webdataset", data_files={"train": paths}, split="train", streaming=True)
    for row in rows.cast_column("jpg", ImageColumn(decode=False)):
        yield _sample(row["__key__"], row["jpg"]["bytes"], {"txt": row["txt"] or ""})


# ---- what init saw


def check_init(world: World, argv: Sequence[str], printed: str) -> None:
    """Each row, tar sample and picture at the places that `init` was given has an outcome in a build of its config.

    Or `init` says that the file, or a folder that it lies in, is not read.
    """
    places = [Path(place) for each in argv if each.startswith("--domain") for place in each.split("=")[2].split(",")]
    config = yaml.safe_load((world.first / "first.yaml").read_text(encoding="utf-8"))
    config |= {"work_dir": str(world.first / "work"), "run": {"executor": "inline"}}
    config.setdefault("fetch", {})["network"] = {"allow_private_addresses": True}
    path = world.first / "built.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    built = run(["--quiet", "build", str(path), "--to", "ingest"])
    if built.code != 0:
        raise DifferenceError("init", f"{argv}: its config ends so: {built.err}")
    with open_reader(str(world.first / "work")) as sql:
        columns = "source, record_key, url"
        rows = rows_of(sql, f"SELECT {columns} FROM candidates UNION ALL BY NAME SELECT {columns} FROM rejects")
    at = {source["name"]: Path(source.get("folder", {}).get("path", "/")) for source in config["sources"]}
    seen = {row["url"] for row in rows} | {str(at[row["source"]] / (row["record_key"] or "")) for row in rows}
    said = re.split(r"\n *\d+\. ", printed)  # its numbered points
    said = " ".join(point for point in said if re.search("not read|left out|not taken|not used", point))
    lost = []
    for path in sorted(path for place in places for path in (place, *place.rglob("*"))):
        names = [path.name, *(part.name for part in path.parents if world.inputs in part.parents)]
        if not any(re.search(re.escape(name) + r"(?!/?[\w.-])", said) for name in names):
            lost += [key for key in _keys_of(path, world) if key not in seen]
    if lost:
        raise DifferenceError("init", f"{argv}: no outcome for {len(lost)} rows: {lost[:5]}; it says: {said}")


def _keys_of(path: Path, world: World) -> list[str]:
    """What the rows of a file are known by in `seen` of `check_init`."""
    if path.name == "list.csv":
        return [row["url"] for row in world.rows["list"].values()]
    if path.suffix == ".tar":
        return [f"/{path.stem}/{key}" for key in world.keys_in(path)]
    return [str(path)] if path.suffix in (".jpg", ".png", ".bmp") and path.is_file() else []
