"""Evaluation sets from outside: how each layout is read, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from evaluation_sets import classes_of, write_folders, write_table, write_tars
from PIL import Image
from tars import tar_of

from manifests.errors import ConfigError, RunError
from training.config import EvalSetSettings
from training.data.images import to_tensor
from training.evaluation.outside_sets import open_sets
from training.evaluation.set_layouts import load_pictures, open_eval_set


def test_the_three_layouts_give_the_same_pictures_and_labels(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(30, 0)
    classes = classes_of(samples)
    tars = open_eval_set(str(write_tars(tmp_path / "tars", samples)), "test")
    folders = open_eval_set(str(write_folders(tmp_path / "folders", samples)), "test")
    table = open_eval_set(str(write_table(tmp_path / "table", samples)), "test")
    assert tars.classes == folders.classes == tuple(classes)
    assert tars.templates == ("a {}", "the {}")
    assert [tars.classes[label] for label in tars.labels] == [sample.category for sample in samples]
    assert len(tars.items) == len(folders.items) == len(table.items) == 30
    assert table.classes == tuple(f"Forma {name}" for name in classes)
    by_key = {item.name: folders.classes[label] for item, label in zip(folders.items, folders.labels, strict=True)}
    assert by_key["blue_square/6.jpg"] == "blue square"
    jpgs = {sample.jpg for sample in samples}
    assert {item.read() for item in folders.items} == {item.read() for item in table.items} == jpgs
    assert sum(item.read() in jpgs for item in tars.items) == 20


def test_pictures_come_in_order_from_workers(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(12, 0)
    found = open_eval_set(str(write_folders(tmp_path, samples)), "test")

    def view(content: bytes) -> torch.Tensor:
        return to_tensor(Image.open(io.BytesIO(content)).convert("RGB"))

    alone, apart = (torch.cat(list(load_pictures(found.items, view, 5, workers))) for workers in (0, 2))
    assert torch.equal(alone, apart)
    assert torch.equal(alone[3], view(found.items[3].read()))


def test_a_broken_picture_is_named(writer: ModuleType, tmp_path: Path) -> None:
    from open_clip.transform import PreprocessCfg

    from training.data.images import EvalView

    found = open_eval_set(str(write_folders(tmp_path, writer.drawn_samples(12, 0))), "test")
    Path(found.items[7].path).write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(RunError, match=rf"^{found.items[7].name}: broken picture .*: not_an_image"):
            list(load_pictures(found.items, EvalView(PreprocessCfg(size=32)), 5, workers))


def _spoil(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def test_a_folder_that_is_no_evaluation_set_is_refused(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(12, 0)
    for name, change, words in (
        ("none", lambda f: f / "nowhere", "no such folder"),
        ("short", lambda f: _spoil(f, "classnames.txt", "one\ntwo\n"), r"class \d+, but classnames.txt has 2 lines"),
        ("unnamed", lambda f: _spoil(f, "classnames.txt", ""), "no classnames.txt"),
        ("kind", lambda f: _spoil(f, "dataset_type.txt", "multilabel"), "says 'multilabel'"),
        (
            "captions",
            lambda f: _spoil(f, "dataset_type.txt", "retrieval"),
            r"12 of 12 samples in 2 tars are not whole; first: 0.tar/s0000000 has no \.txt member",
        ),
    ):
        folder = change(write_tars(tmp_path / name, samples))
        with pytest.raises(ConfigError, match=words):
            open_eval_set(str(folder), "test")
    damaged = write_tars(tmp_path / "damaged", samples)
    (damaged / "test" / "1.tar").write_bytes((damaged / "test" / "1.tar").read_bytes().replace(b".cls\0", b".abc\0"))
    (damaged / "test" / "0.tar").write_bytes((damaged / "test" / "0.tar").read_bytes()[:9000])
    for name in ("0.tar", "1.tar"):
        with pytest.raises(ConfigError, match=rf"{name}: the tar is damaged or cut short"):
            open_eval_set(str(damaged), "test")
        (damaged / "test" / name).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no evaluation set here; expected test/"):
        open_eval_set(str(tmp_path / "empty"), "test")
    with pytest.raises(ConfigError, match="has one class, 'red_circle'"):
        open_eval_set(str(write_folders(tmp_path / "one", samples[:1])), "test")
    (tmp_path / "table").mkdir()
    with pytest.raises(ConfigError, match="needs a column 'class', or the ranks"):
        open_eval_set(str(_spoil(tmp_path / "table", "metadata.csv", "filepath,size\na.jpg,3\n")), "test")


def test_the_wanted_split_is_taken_and_no_other(writer: ModuleType, tmp_path: Path) -> None:
    """By folder, by tars, by a column; a set that has other splits is not read whole."""
    samples = writer.drawn_samples(24, 0)
    for name, some in (("train", samples[:12]), ("val", samples[12:])):
        for sample in some:
            place = tmp_path / "folders" / name / sample.category
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
    write_tars(tmp_path / "tars", samples)
    table = write_table(tmp_path / "table", samples) / "metadata.csv"
    head, *rows = table.read_text().splitlines()
    parts = [f"{row},{'train' if i < 9 else 'val'}" for i, row in enumerate(rows)]
    table.write_text("\n".join([f"{head},split", *parts]))
    for name, split, words in (
        ("folders", "test", "has no split 'test'; it has train, val: name one"),
        ("tars", "val", "has no split 'val'; it has test: name one"),
        ("table", "test", "no row of split 'test'; its column has train, val: name one"),
    ):
        with pytest.raises(ConfigError, match=words):
            open_eval_set(str(tmp_path / name), split)
    assert len(open_eval_set(str(tmp_path / "folders"), "val").items) == 12
    assert len(open_eval_set(str(tmp_path / "table"), "val").items) == 15
    passengers = tmp_path / "passengers"
    for name in ("train", "bus"):  # a class that is called like a split
        (passengers / name).mkdir(parents=True)
        (passengers / name / "1.jpg").write_bytes(samples[0].jpg)
    assert open_eval_set(str(passengers), "test").classes == ("bus", "train")


def test_a_file_with_a_byte_order_mark_is_read(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(24, 0)
    for folder, name in (
        (write_tars(tmp_path / "tars", samples), "classnames.txt"),
        (write_table(tmp_path / "table", samples), "metadata.csv"),
    ):
        plain = open_eval_set(str(folder), "test")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
        assert open_eval_set(str(folder), "test") == plain


@pytest.mark.parametrize(
    ("layout", "name", "change", "words"),
    [
        ("table", "metadata.csv", lambda b: b.replace(b"thing", b"Ros\xe9", 1), r"metadata.csv: line 2 is not UTF-8"),
        ("table", "metadata.csv", lambda b: b"filepath,class\r\n,red\r\n", r"row 2 has no filepath: fill the cell"),
        ("table", "metadata.csv", lambda b: b"class,filepath\na,images/0.jpg\nb\n", r"row 3 has no filepath"),
        ("table", "metadata.csv", lambda b: b"filepath,class\nimages/0.jpg,a\nimages/1.jpg\n", r"row 3 has no class"),
        ("table", "metadata.csv", lambda b: b"filepath,class\na\0,b\n", r"1 of its 1 pictures are not there"),
        ("table", "metadata.csv", lambda b: b.replace(b"images/3", b"images/x"), r"1 of its 12 pictures are not there"),
        ("tars", "classnames.txt", lambda b: b"\xe9\n" + b, r"classnames.txt: line 1 is not UTF-8 \(byte 0xe9\)"),
        ("tars", "classnames.txt", lambda b: b.replace(b"\n", b"\n\n", 1), r"classnames.txt: line 2 is empty"),
        ("tars", "zeroshot_classification_templates.txt", lambda b: b"a {c} {y}\n",
         r"its template 'a \{\} \{y\}' needs one"),
        ("captions", "test/9.tar", b"\xe9\xe9", r"z.jpg: its .txt member is not UTF-8"),
        ("captions", "test/9.tar", b"\n", r"z.jpg: its .txt member holds no caption"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_of_a_set_is_named_by_file_and_row(
    layout: str, name: str, change: Any, words: str, writer: ModuleType, tmp_path: Path
) -> None:
    samples = writer.drawn_samples(12, 0)
    if layout == "table":
        folder = write_table(tmp_path / "set", samples)
    else:
        folder = write_tars(tmp_path / "set", samples, captions=layout == "captions")
    if layout == "captions":
        (folder / "dataset_type.txt").write_text("retrieval")
        (folder / name).write_bytes(tar_of([("z.jpg", samples[0].jpg), ("z.txt", change)]))
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ConfigError, match=words):
        open_sets([EvalSetSettings(name="a", path=str(folder))])


@pytest.mark.parametrize("template", ["{x} {}", "{0} {}", "{} {}", "a", "{", "{:3}", "{!r}"])
def test_a_template_with_another_field_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"each template needs one \{\} for the class name, and no other field"):
        EvalSetSettings(name="a", path="p", templates=(template,))
    assert EvalSetSettings(name="a", path="p", templates=("50% {} {{}}",)).templates == ("50% {} {{}}",)


@pytest.mark.parametrize(
    "path", ["../outside.jpg", "ABSOLUTE", "images/link.jpg", "door/outside.jpg", "images/pipe.jpg"]
)
def test_a_table_reads_nothing_outside_its_folder(writer: ModuleType, tmp_path: Path, path: str) -> None:
    """As it was found: a filepath of ../ or / was opened wherever it led."""
    samples = writer.drawn_samples(4, 0)
    folder = write_table(tmp_path / "set", samples)
    (tmp_path / "outside.jpg").write_bytes(samples[0].jpg)
    (folder / "images/link.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "door").symlink_to(tmp_path)
    os.mkfifo(folder / "images/pipe.jpg")
    with (folder / "metadata.csv").open("a") as stream:
        stream.write(f"{path.replace('ABSOLUTE', str(tmp_path / 'outside.jpg'))},Forma,red,circle,x\n")
    with pytest.raises(ConfigError, match="1 of 5 files are not read: only regular files"):
        open_eval_set(str(folder), "test")


@pytest.mark.parametrize(
    "name", ["metadata.csv", "test/0.tar", "test/9.tar", "classnames.txt", "test/red_circle/0.jpg"]
)
def test_no_layout_follows_a_link(writer: ModuleType, tmp_path: Path, name: str) -> None:
    """Nor one that leads nowhere, as 9.tar."""
    samples = writer.drawn_samples(8, 0)
    if name == "metadata.csv":
        folder = write_table(tmp_path / "set", samples)
    elif name.endswith(".jpg"):
        folder = write_folders(tmp_path / "set", samples)
    else:
        folder = write_tars(tmp_path / "set", samples)
    if name != "test/9.tar":
        (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"1 of \d files are not read.* first: .*{Path(name).name} is a link"):
        open_eval_set(str(folder), "test")


def test_odd_line_breaks_within_a_class_name_move_no_other_class(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(8, 0)
    classes = classes_of(samples)
    folder = write_tars(tmp_path / "set", samples)
    names = [f"{classes[0]}\u2028again", *classes[1:]]
    (folder / "classnames.txt").write_text("\r\n".join(names) + "\r\n", newline="")
    assert open_eval_set(str(folder), "test").classes == tuple(names)


@pytest.mark.parametrize("kind", ["sparse", "negative", "huge", "link", "a .cls of 2 MB"])
def test_an_odd_member_of_a_tar_is_named(writer: ModuleType, tmp_path: Path, kind: str) -> None:
    samples = writer.drawn_samples(4, 0)
    folder = write_tars(tmp_path / "set", samples)
    info = tarfile.TarInfo("s9.cls" if "cls" in kind else "s9.jpg")
    info.size = 2 << 20 if "cls" in kind else 2**40 if kind == "huge" else 0
    info.type = {"sparse": tarfile.GNUTYPE_SPARSE, "link": tarfile.SYMTYPE}.get(kind, tarfile.REGTYPE)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if kind == "negative":
        block[124:136] = b"\xff" * 11 + b"\x00"
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    path = folder / "test" / "0.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    path.write_bytes(content[:end] + block + (bytes(info.size) if "cls" in kind else b"") + bytes(1024))
    broken = kind in ("negative", "huge")
    says = r"0\.tar: the tar is damaged" if broken else r"0\.tar: s9\.(jpg|cls) (is|has) .*; take the sample out"
    with pytest.raises(ConfigError, match=says):
        open_eval_set(str(folder), "test")
