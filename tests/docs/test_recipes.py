"""Every recipe under configs/recipes runs as its page says, over a small web on the loopback that the test makes.

The pages' blocks run as they stand. Of the configs only this is changed: hosts on this machine may be asked, without
politeness, and parts run in one process.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT
from darwin_core import gbif_files, write_zip
from misbehaving import object_store
from PIL import Image
from shell_blocks import blocks_of, copy_configs, run_block, write_yaml

from manifests.release import Release
from pipeline.demo.server import serving

RECIPES = sorted(path.name for path in (ROOT / "configs/recipes").iterdir())
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def words_of(photo: Path) -> str:
    return f"A photo of {photo.stem.replace('-', ' ')}"


def pictures() -> Iterator[tuple[Path, int, bytes]]:
    """60 pictures that are not alike: each photo in four turns."""
    for number, turn in enumerate(TURNS):
        for photo in PHOTOS:
            image = Image.open(photo)
            stream = io.BytesIO()
            (image if turn is None else image.transpose(turn)).save(stream, "JPEG", quality=90)
            yield photo, number, stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def serve_all(data: Path, address: str) -> list[tuple[str, str]]:
    """All pictures on the web: address and caption of each."""
    rows = []
    for photo, turn, body in pictures():
        put(data / f"web/{turn}/{photo.name}", body)
        rows.append((f"{address}/web/{turn}/{photo.name}", f"{words_of(photo)}, turn {turn}"))
    return rows


def write_list(path: Path, head: list[str], rows: list[list[str]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([head, *rows])


def own_pictures(data: Path, address: str) -> None:
    rows = serve_all(data, address)
    lines = [[str(number), url, caption] for number, (url, caption) in enumerate(rows[:30])]
    write_list(data / "own/fruit.csv", ["Nr", "Bildadresse", "Beschreibung"], lines, ";")
    for photo, turn, body in list(pictures())[30:]:
        put(data / f"own/pictures/{photo.stem}/{turn}.jpg", body)
    put(data / "own/test/a.jpg", next(pictures())[2])


def gbif(data: Path, address: str) -> None:
    families = ("Rosaceae", "Fagaceae", "Pinaceae")
    licence = "http://creativecommons.org/licenses/by/4.0/legalcode"
    occurrences, media = [], []
    for number, (url, _) in enumerate(serve_all(data, address)):
        family = families[number % 3]
        occurrences.append(
            {
                "gbifID": str(number),
                "kingdom": "Animalia" if number == 59 else "Plantae",
                "family": family,
                "genus": family[:-4] + "a",
                "scientificName": f"{family[:-4]}a alba L.",
                "species": f"{family[:-4]}a alba",
                "basisOfRecord": "HUMAN_OBSERVATION",
            }
        )
        media.append({"gbifID": str(number), "type": "StillImage", "identifier": url, "license": licence})
    (data / "gbif").mkdir(parents=True)
    write_zip(data / "gbif/archive.zip", gbif_files(occurrences, media))


def plus(data: Path, address: str) -> None:
    rows = serve_all(data, address)
    write_list(data / "plus/plants.csv", ["url", "caption", "licence"], [[*row, "CC0-1.0"] for row in rows[:20]])
    (data / "plus/old").mkdir(parents=True)
    beside = []
    with tarfile.open(data / "plus/old/00000.tar", "w") as tar:
        for number, (photo, turn, body) in enumerate(list(pictures())[18:]):
            key, url = f"00000{number:04d}", f"{address}/old/{number}.jpg"
            row = {"key": key, "url": url, "caption": f"{words_of(photo)}, old {turn}", "status": "success"}
            beside.append(row)
            for ending, content in (
                ("jpg", body),
                ("txt", row["caption"].encode()),
                ("json", json.dumps(row).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    pq.write_table(pa.Table.from_pylist(beside), data / "plus/old/00000.parquet")


def plan(data: Path, address: str) -> None:
    shares = np.repeat(np.linspace(0.1, 0.9, 9), 2)
    noise = np.random.default_rng(0).normal(0, 0.004, (2, len(shares)))
    plant, general = 2 + 0.8 * np.exp(-3 * shares) + noise[0], 2.5 + 0.9 * np.exp(-3 * (1 - shares)) + noise[1]
    rows = [[f"{value:.4f}" for value in row] for row in zip(shares, 1 - shares, plant, general, strict=True)]
    write_list(data / "plan/runs.csv", ["mix_plant", "mix_general", "loss_plant", "loss_general"], rows)
    for photo, turn, body in pictures():
        put(data / f"plan/{'plants' if turn else 'general'}/{photo.stem}/{turn}.jpg", body)


def weeks(data: Path, address: str) -> None:
    rows = [[*row, "CC-BY-4.0"] for row in serve_all(data, address)]
    rows.append([f"{address}/gone.jpg", "A photo that is gone", "CC-BY-4.0"])
    write_list(data / "weeks/list.csv", ["url", "caption", "licence"], rows)


def cluster(data: Path, address: str) -> None:
    rows = [[*row, "CC-BY-4.0"] for row in serve_all(data, address)]
    write_list(data / "cluster/list.csv", ["url", "caption", "licence"], rows[:30])


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """An object store with pictures in s3://bucket/plants; gives the environment in which clients find it."""
    with object_store.serving() as store:
        fs = fsspec.filesystem("s3", **store.options)
        for photo, turn, body in list(pictures())[30:]:
            fs.pipe_file(f"{object_store.BUCKET}/plants/{turn}-{photo.stem}.jpg", body)
            words = f"{words_of(photo)}, turned {turn} times"
            fs.pipe_file(f"{object_store.BUCKET}/plants/{turn}-{photo.stem}.txt", words.encode())
        yield store.environment()


DATA: dict[str, Callable[[Path, str], None]] = {
    "your-own-pictures": own_pictures,
    "gbif-to-model": gbif,
    "plants-plus-what-you-have": plus,
    "planning-a-ratio": plan,
    "two-week-download": weeks,
    "cluster": cluster,
}


def allow_loopback(path: Path) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["run"] = values.get("run", {}) | {"executor": "inline"}
    limits = {"requests_per_second": None, "connections": 8}
    network = values.setdefault("fetch", {}).setdefault("network", {})
    network |= {"allow_private_addresses": True, "robots_txt": False, "limits": limits}
    write_yaml(path, values)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_its_page_says(name: str, tmp_path: Path) -> None:
    copy_configs(tmp_path)
    page = f"configs/recipes/{name}/README.md"
    with serving(tmp_path / "data") as server, bucket() if name == "cluster" else nullcontext({}) as store:
        DATA[name](tmp_path / "data", f"http://127.0.0.1:{server.port}")
        allow_loopback(tmp_path / f"configs/recipes/{name}/build.yaml")
        for block in blocks_of(page):
            more = dict(store)
            if "$URL" in block.commands:
                more["URL"] = (
                    Release.open(str(tmp_path / "data/weeks/build")).samples("train", ["url"])["url"][0].as_py()
                )
            done = run_block(block, tmp_path, more)
            assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_wholly_tested(name: str) -> None:
    page = f"configs/recipes/{name}/README.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert text.count("```") == 2 * len(blocks) > 0
    assert not any(block.reason for block in blocks)
    assert len(text.splitlines()) < 75
