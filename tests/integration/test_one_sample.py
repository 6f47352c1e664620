"""What a picture file and a sample of a tar are: one answer of sources, `data.shards`, evaluation sets, `predict`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_tars import PictureModel, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tars import tar_of
from training_runs import run_once, tiny_values

from manifests.contract.settings import parse_settings
from manifests.errors import ConfigError, RunError
from manifests.samples.braces import expand
from manifests.samples.endings import PICTURES, not_read
from manifests.samples.tars import samples_in
from pipeline.answers.folders import look_below
from pipeline.releases.export import braces
from pipeline.sources.files import find_files
from pipeline.sources.reading import check_source, read_rows
from pipeline.sources.settings import SourceSettings
from training.data import loader
from training.data.sampling import BatchPlan
from training.data.settings import DataSettings
from training.data.shards import SamplePool, open_pool
from training.evaluation.set_layouts import open_eval_set
from training.record.log import read_log
from training.using.pictures import list_pictures

FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF", "heic": None}


def encoded(number: int, ending: str) -> bytes:
    """A picture of a number in the format of an ending; of one that nobody here encodes, only its signature."""
    kind = FORMATS.get(ending, ending.upper())
    if kind is None:
        return b"\0\0\0\x18ftypheic" + bytes(12)
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(number))).save(stream, kind)
    return stream.getvalue()


def odd_tar(folder: Path) -> Path:
    """Repeated members, several pictures, pictures of every ending, one without a picture, and texts that are none."""
    members = [
        ("a.jpg", picture(0)), ("a.txt", b"first a"), ("a.jpg", picture(1)), ("a.txt", b"second a"),
        ("b.png", encoded(2, "png")), ("b.jpeg", encoded(3, "jpeg")), ("b.txt", b"b"),
        ("c.txt", b"no picture"),
        ("d.avif", encoded(4, "avif")), ("d.txt", b" \n\xc2\xa0"), ("d.json", b'{"caption": "d of the json"}'),
        ("./e/e.JP2", encoded(5, "jp2")), ("./e/e.txt", b"\xef\xbb\xbfe"),
        ("__meta__.x__", b"belongs to no sample"),
        ("f.heic", encoded(6, "heic")), ("f.txt", b"f"),
    ]  # fmt: skip
    path = folder / "odd.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members))
    return path


def rows_of(path: str) -> tuple[dict[str, tuple[str, int]], list[tuple[str, str]]]:
    """Of a source of tars: the caption and the length of the picture by key, the first of a key; what was lost."""
    values = {"name": "x", "domain": "x", "webdataset": {"path": path}}
    source = parse_settings(values, SourceSettings, "test")
    check_source(source)
    rows: dict[str, tuple[str, int]] = {}
    lost: list[tuple[str, str]] = []
    for batch in read_rows(source, lambda: pytest.fail("tars need no join")):
        for row in batch.rows.to_pylist():
            if row["record_key"] in rows:
                lost.append((row["record_key"], row["caption"]))
            rows.setdefault(row["record_key"], (row["caption"], int(row["locator"].rpartition("+")[2])))
        lost += [(row["record_key"], row["reason"]) for row in batch.lost.to_pylist()]
    return rows, lost


def pool_of(path: Path, **values: Any) -> tuple[DataSettings, SamplePool]:
    data = DataSettings(shards=str(path), cache_dir=str(path.parent / "cache"), num_workers=0, **values)
    return data, open_pool(loader.open_sources(None, data, "train"), "train")


def samples_of(path: Path, **values: Any) -> list[tuple[str, str, int]]:
    """Key, text and length of the picture of each sample of `data.shards`."""
    data, pool = pool_of(path, **values)
    read = loader.ShardReader(pool, data.cache).read(range(len(pool)), with_texts=True)
    return [(key, text.decode(), len(image)) for key, (image, text, _) in
            zip(pool.table["key"].to_pylist(), read, strict=True)]  # fmt: skip


def test_every_reader_of_a_tar_sees_the_same_samples(tmp_path: Path) -> None:
    path = odd_tar(tmp_path)
    rows, lost = rows_of(str(path))
    expected = [
        ("a", "first a", len(picture(0))),
        ("a", "second a", len(picture(1))),
        ("b", "b", len(encoded(3, "jpeg"))),
        ("d", "d of the json", len(encoded(4, "avif"))),
        ("e/e", "e", len(encoded(5, "jp2"))),
        ("f", "f", len(encoded(6, "heic"))),
    ]
    assert samples_of(path, text={"use": "draw", "members": ["txt", "json:caption"]}) == expected
    assert [(key.removeprefix("odd/"), *row) for key, row in rows.items()] == [expected[0], *expected[2:]]
    assert lost == [("odd/a", "second a"), ("odd/c", "no_image")]
    _, pool = pool_of(path, text={"members": ["txt"]})
    assert pool.table["key"].to_pylist() == ["a", "a", "b", "e/e", "f"], "the blank text of d is none"
    assert [note.partition(": ")[2] for note in pool.notes] == [
        "1 samples without a picture are left out: odd.tar/c",
        "1 samples without a text (txt) are left out: odd.tar/d",
    ]
    names = ["a.jpg", "a.jpg", "b.jpeg", "d.avif", "e/e.jp2", "f.heic"]
    assert list_pictures([str(path)]).table["name"].to_pylist() == [f"odd.tar/{name}" for name in names]


def test_a_build_gives_every_repeated_member_an_outcome(tmp_path: Path) -> None:
    from building import run_here, write_small_config

    from manifests.contract.reader import open_reader

    source = {"name": "x", "domain": "plant", "defaults": {"licence": "CC0-1.0"},
              "webdataset": {"path": str(odd_tar(tmp_path))}}  # fmt: skip
    done = run_here(
        "build", write_small_config(tmp_path, source, name="odd", work_dir=str(tmp_path / "w")), "--to", "fetch"
    )
    assert done.returncode == 0, done.stderr
    with open_reader(str(tmp_path / "w")) as sql:
        rejects = sql.execute("SELECT record_key, reason FROM rejects ORDER BY ALL").fetchall()
        facts = sql.execute("SELECT record_key, outcome FROM facts JOIN candidates USING (sample_id)").fetchall()
    assert rejects == [("odd/a", "duplicate_record"), ("odd/c", "no_image")]
    decoded = {key: outcome for key, outcome in facts if outcome == "ok"}
    assert {key.removeprefix("odd/") for key in decoded} == {"a", "b", "d", "e/e"}
    assert dict(facts)["odd/f"] in ("unsupported_image", "corrupt_image"), (
        "a picture that is not decoded has an outcome"
    )


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Two classes, one of them of endings that not every tool reads; and files that are no pictures."""
    for number, ending in enumerate(("jpg", "tif", "avif", "jp2", "webp", "bmp")):
        folder = tmp_path / "set" / ("oak" if number % 2 else "ash")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.{ending}").write_bytes(encoded(number, ending))
    (tmp_path / "set/oak/x.ppm").write_bytes(b"P6 1 1 255\n\0\0\0")
    (tmp_path / "set/oak/x.txt").write_text("a text beside a picture")
    return tmp_path / "set"


def test_a_folder_has_the_same_pictures_for_all(class_folders: Path) -> None:
    names = sorted(f"{path.parent.name}/{path.name}" for path in class_folders.rglob("*.*") if path.stem != "x")
    opened = open_eval_set(str(class_folders), "test")
    assert sorted(item.name for item in opened.items) == names
    assert opened.notes == ("1 files are not read as pictures (1 .ppm)",)
    listing = list_pictures([str(class_folders)])
    assert listing.table["name"].to_pylist() == names
    assert listing.notes == (f"{class_folders}: 1 files are not read as pictures (1 .ppm)",)
    each = list_pictures([str(class_folders / name) for name in names])
    assert [each.read(row) for row in range(len(each))] == [listing.read(row) for row in range(len(listing))]
    (found,) = look_below(str(class_folders)).places
    assert found.words.startswith("6 pictures in a folder")
    table = class_folders / "metadata.csv"
    table.write_text("filepath,class\n" + "".join(f"{name},{name.partition('/')[0]}\n" for name in names))
    assert sorted(item.name for item in open_eval_set(str(class_folders), "test").items) == names
    table.write_text(table.read_text() + f"{names[0]},oak\n")
    with pytest.raises(
        ConfigError, match="1 pictures stand in several rows, and would count several times; first: ash/0"
    ):
        open_eval_set(str(class_folders), "test")


def test_an_evaluation_leaves_no_sample_of_a_tar_out(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("ash\noak\n")
    whole = [(f"{n}.{part}", content) for n, ending in enumerate(PICTURES)
             for part, content in ((ending, encoded(n, ending)), ("cls", b"1"))]  # fmt: skip
    (folder / "test/0.tar").write_bytes(tar_of(whole))
    assert len(open_eval_set(str(folder), "test").items) == len(PICTURES)
    (folder / "test/1.tar").write_bytes(tar_of([("x.jpg", picture(0)), ("y.cls", b"0")]))
    with pytest.raises(
        ConfigError, match=r"2 of 13 samples in 2 tars are not whole; first: 1.tar/x has no .cls member"
    ):
        open_eval_set(str(folder), "test")


# ---- texts that are none


def test_one_broken_json_costs_one_sample(tmp_path: Path) -> None:
    texts = [b'{"caption": "good"}', b'{"caption": null}', b'{"caption": " "}', b"[" * 100_000,
             b'{"caption": "\\ud800"}', b"{", b'{"\\ud800": "x", "caption": "odd key"}']  # fmt: skip
    members = [(f"{n}.{part}", content) for n, text in enumerate(texts)
               for part, content in (("jpg", picture(n)), ("json", text))]  # fmt: skip
    path = tmp_path / "json.tar"
    path.write_bytes(tar_of(members))
    values = {"text": {"members": ["json:caption"]}, "batch_size": 2, "epoch_samples": 10}
    data, pool = pool_of(path, **values)
    assert pool.table["key"].to_pylist() == ["0", "3", "4", "5", "6"]
    assert [note.partition(": ")[2] for note in pool.notes] == [
        "2 samples without a text (json:caption) are left out: json.tar/1, json.tar/2"
    ]
    order = loader.build_order(pool, data, None, seed=3)
    batches = range(order.epoch_size // data.batch_size)
    made = loader.train_loader(pool, order, BatchPlan(2, 1, 0), batches, data, PictureModel, pin=False)
    drawn, reasons = set[str](), dict[str, str]()
    for batch in loader.iterate(made):
        drawn |= {bytes(row.tolist()).rstrip(b"\0").decode() for row in batch.tokens}
        reasons |= {pool.table["key"][row].as_py(): reason for row, reason in batch.corrupt}
    assert drawn == {"good", "odd key"}
    assert reasons["3"] == "its json cannot be read: lists and objects are nested more than 64 deep"
    assert "surrogates not allowed" in reasons["4"]
    assert reasons["5"].startswith("its json cannot be read: ")
    assert pool_of(path, **values)[1].notes == pool.notes, "the index that was kept"


def test_further_texts_of_a_kind_are_drawn(tmp_path: Path) -> None:
    members = [(f"{n}.{part}", content) for n in range(4) for part, content in
               (("jpg", picture(n)), ("trait.txt", b"one"), ("trait_2.txt", b"two"), ("txt", b""))]  # fmt: skip
    members += [("9.jpg", picture(9)), ("9.trait_2.txt", b"alone")]
    path = tmp_path / "traits.tar"
    path.write_bytes(tar_of(members))
    data, pool = pool_of(path, text={"use": "draw", "members": ["trait"]})
    made = loader.SampleDataset(
        pool, lambda _: __import__("torch").zeros(3, 1, 1), PictureModel.tokenizer, data.text, 0
    )
    tokens = [made.load([(position, row) for row in range(len(pool))]).tokens for position in range(20)]
    drawn = {bytes(row.tolist()).rstrip(b"\0") for batch in tokens for row in batch}
    assert drawn == {b"one", b"two", b"alone"}


def test_the_end_of_a_run_names_the_cure_for_shards(tmp_path: Path) -> None:
    members = [(f"{n:02d}.{part}", content) for n in range(40) for part, content in
               (("jpg", b"no picture"), ("json", json.dumps({"caption": "x"}).encode()))]  # fmt: skip
    (tmp_path / "bad.tar").write_bytes(tar_of(members))
    values = tiny_values(tmp_path, model={"preset": "clip"}, schedule={"steps": 2}, eval={"split": None},
                         data={"shards": str(tmp_path / "bad.tar"), "text": {"members": ["json:caption"]}})  # fmt: skip
    with pytest.raises(
        RunError, match=r"samples in a row are broken.*; mend or leave out these samples of data.shards"
    ):
        run_once(values)
    assert not read_log(tmp_path / "run/log.jsonl", "step")


# ---- braces and places


def _runs() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 120), min_size=1, max_size=12, unique=True).map(sorted)


@given(_runs())
def test_what_export_prints_is_read(numbers: list[int]) -> None:
    names = [f"toy-plant-{number:06d}.tar" for number in numbers]
    assert expand(braces(names)) == names


def test_a_source_takes_the_paths_that_export_prints(tmp_path: Path) -> None:
    for domain, numbers in (("plant", (0, 2, 3)), ("web", (1,))):
        for number in numbers:
            path = tmp_path / f"shards/toy-{domain}-{number:06d}.tar"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tar_of([(f"{domain}{number}.jpg", picture(number)), (f"{domain}{number}.txt", b"text")]))
    printed = f"{tmp_path}/shards/toy-plant-{{000000,{{000002..000003}}}}.tar"
    assert [*rows_of(printed)[0]] == ["toy-plant-000000/plant0", "toy-plant-000002/plant2", "toy-plant-000003/plant3"]
    both = f"{printed}::{tmp_path}/shards/toy-web-000001.tar"
    assert [*rows_of(both)[0]][-1] == "toy-web-000001/web1"
    assert len(rows_of(both)[0]) == 4
    shards = find_files(f"{printed}::{printed}", "x", ".tar")
    assert len(shards.names) == 3, "a tar named twice counts once"
    with pytest.raises(ConfigError, match=r"sources.x: .*its braces cannot be read: Unbalanced braces"):
        find_files(f"{tmp_path}/shards/{{1,2.tar", "sources.x", ".tar")
    with pytest.raises(ConfigError, match=r"1 shards are named twice"):
        pool_of(tmp_path / "shards/{toy-web-000001,../shards/toy-web-000001}.tar")


# ---- the rules, member by member


def _keys(*names: str) -> Iterator[tuple[str, set[str]]]:
    stream = io.BytesIO(tar_of([(name, b"x") for name in names]))
    return ((sample.key, sample.endings) for sample in samples_in(stream, ("txt",)))


def test_what_a_sample_is() -> None:
    assert [*_keys("a.jpg", "a.b.txt", "a.TXT")] == [("a", {"jpg", "b.txt", "txt"})]
    assert [*_keys("a.jpg", "a.JPG", "a.txt")] == [("a", {"jpg"}), ("a", {"jpg", "txt"})]
    assert [*_keys("a.cls", "a.cls")] == [("a", {"cls"}), ("a", {"cls"})], "whether a reader asks for it or not"
    assert [*_keys("a.jpg", "b.jpg", "a.txt")] == [("a", {"jpg"}), ("b", {"jpg"}), ("a", {"txt"})]
    assert [*_keys("./d.e/a.jpg", "d.e/a.txt")] == [("d.e/a", {"jpg", "txt"})]
    assert [*_keys(".hidden.txt", "none", "none.", "__a.b__", "a.txt")] == [("a", {"txt"})]


def test_what_is_no_picture_is_counted() -> None:
    assert not_read(["a.jpg", "b.HEIC", "c.txt", ".DS_Store", "d"]) is None
    assert not_read(["a.ppm", "b.PPM", "c.mp4"]) == "3 files are not read as pictures (2 .ppm, 1 .mp4)"
