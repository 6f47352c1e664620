"""Evaluation sets from outside: layouts, what is refused, one whole run."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from manifests.errors import ConfigError, RunError
from training.cli import main
from training.config import EvalSetSettings
from training.data.images import to_tensor
from training.evaluation.outside_sets import open_sets
from training.evaluation.set_layouts import load_pictures, open_eval_set


def _webp(jpg: bytes) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(jpg)).save(stream, "WEBP")
    return stream.getvalue()


def write_tars(
    folder: Path, samples: list[Any], classes: list[str], *, per_tar: int = 7, captions: bool = False
) -> Path:
    """clip_benchmark's layout; every third picture a WebP, `.cls` without line end as its own builder writes it."""
    place = folder / "test"
    place.mkdir(parents=True)
    for number, start in enumerate(range(0, len(samples), per_tar)):
        with tarfile.open(place / f"{number}.tar", "w") as tar:
            for i, sample in enumerate(samples[start : start + per_tar], start):
                image = ("webp", _webp(sample.jpg)) if i % 3 == 0 else ("jpg", sample.jpg)
                answer = ("cls", str(classes.index(sample.category)).encode())
                if captions:
                    answer = ("txt", f"{sample.text}\none more {sample.text}".encode())
                for ending, content in (image, answer):
                    info = tarfile.TarInfo(f"s{i:07d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (place / "nshards.txt").write_text(f"{number + 1}\n")
    (folder / "classnames.txt").write_text("\n".join(classes) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return folder


def write_folders(folder: Path, samples: list[Any]) -> Path:
    for sample in samples:
        place = folder / "test" / sample.category.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
    return folder


def write_table(folder: Path, samples: list[Any]) -> Path:
    """As BioCLIP's sets: ranks and a common name in metadata.csv; the shape stands for the species."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for sample in samples:
        colour, shape = sample.category.split()
        (folder / "images" / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
        rows.append({"filepath": f"images/{sample.record_key}.jpg", "kingdom": "Forma", "genus": colour,
                     "species": shape, "common_name": f"{colour} {shape} thing"})  # fmt: skip
    with (folder / "metadata.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_three_layouts_give_the_same_pictures_and_labels(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(30, 0)
    classes = sorted({sample.category for sample in samples})
    tars = open_eval_set(str(write_tars(tmp_path / "tars", samples, classes)), "test")
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
        with pytest.raises(RunError, match=rf"^{found.items[7].name}: broken picture in an evaluation set: Unident"):
            list(load_pictures(found.items, EvalView(PreprocessCfg(size=32)), 5, workers))


def _spoil(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder


def test_a_folder_that_is_no_evaluation_set_is_refused(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(12, 0)
    classes = sorted({sample.category for sample in samples})
    for name, change, words in (
        ("none", lambda f: f / "nowhere", "no such folder"),
        ("short", lambda f: _spoil(f, "classnames.txt", "one\ntwo\n"), r"class \d+, but classnames.txt has 2 lines"),
        ("unnamed", lambda f: _spoil(f, "classnames.txt", ""), "no classnames.txt"),
        ("kind", lambda f: _spoil(f, "dataset_type.txt", "multilabel"), "says 'multilabel'"),
        ("captions", lambda f: _spoil(f, "dataset_type.txt", "retrieval"), r"no image in them that has a \.txt member"),
    ):
        folder = change(write_tars(tmp_path / name, samples, classes))
        with pytest.raises(ConfigError, match=words):
            open_eval_set(str(folder), "test")
    damaged = write_tars(tmp_path / "damaged", samples, classes)
    (damaged / "test" / "1.tar").write_bytes((damaged / "test" / "1.tar").read_bytes().replace(b".cls\0", b".abc\0"))
    (damaged / "test" / "0.tar").write_bytes((damaged / "test" / "0.tar").read_bytes()[:9000])
    for name in ("0.tar", "1.tar"):
        with pytest.raises(ConfigError, match=rf"{name}: the tar is damaged or cut short"):
            open_eval_set(str(damaged), "test")
        (damaged / "test" / name).unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no evaluation set here; wanted test/"):
        open_eval_set(str(tmp_path / "empty"), "test")
    with pytest.raises(ConfigError, match="has one class, 'red_circle'"):
        open_eval_set(str(write_folders(tmp_path / "one", samples[:1])), "test")
    (tmp_path / "table").mkdir()
    with pytest.raises(ConfigError, match="needs a column 'class', or the ranks"):
        open_eval_set(str(_spoil(tmp_path / "table", "metadata.csv", "filepath,size\na.jpg,3\n")), "test")


def test_the_wanted_split_is_taken_and_no_other(writer: ModuleType, tmp_path: Path) -> None:
    """By folder, by tars, by a column; a set that has other splits is not read whole."""
    samples = writer.drawn_samples(24, 0)
    classes = sorted({sample.category for sample in samples})
    for name, some in (("train", samples[:12]), ("val", samples[12:])):
        for sample in some:
            place = tmp_path / "folders" / name / sample.category
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{sample.record_key}.jpg").write_bytes(sample.jpg)
    write_tars(tmp_path / "tars", samples, classes)
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
    classes = sorted({sample.category for sample in samples})
    for folder, name in (
        (write_tars(tmp_path / "tars", samples, classes), "classnames.txt"),
        (write_table(tmp_path / "table", samples), "metadata.csv"),
    ):
        plain = open_eval_set(str(folder), "test")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
        assert open_eval_set(str(folder), "test") == plain


@pytest.mark.parametrize(
    ("layout", "name", "change", "words"),
    [
        ("table", "metadata.csv", lambda b: b.replace(b"thing", b"Ros\xe9", 1), r"metadata.csv: line 2 is not UTF-8"),
        ("table", "metadata.csv", lambda b: b"filepath,class\r\n,red\r\n", r"row 1 has no filepath: fill the cell"),
        ("table", "metadata.csv", lambda b: b"class,filepath\na,images/0.jpg\nb\n", r"row 2 has no filepath"),
        ("table", "metadata.csv", lambda b: b"filepath,class\nimages/0.jpg,a\nimages/1.jpg\n", r"row 2 has no class"),
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
    classes = sorted({sample.category for sample in samples})
    if layout == "table":
        folder = write_table(tmp_path / "set", samples)
    else:
        folder = write_tars(tmp_path / "set", samples, classes, captions=layout == "captions")
    if layout == "captions":
        (folder / "dataset_type.txt").write_text("retrieval")
        with tarfile.open(folder / name, "w") as tar:
            for ending, content in (("jpg", samples[0].jpg), ("txt", change)):
                info = tarfile.TarInfo(f"z.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(ConfigError, match=words):
        open_sets([EvalSetSettings(name="a", path=str(folder))])


@pytest.mark.parametrize("template", ["{x} {}", "{0} {}", "{} {}", "a", "{", "{:3}", "{!r}"])
def test_a_template_with_another_field_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"each template needs one \{\} for the class name, and no other field"):
        EvalSetSettings(name="a", path="p", templates=(template,))
    assert EvalSetSettings(name="a", path="p", templates=("50% {} {{}}",)).templates == ("50% {} {{}}",)


def test_a_run_is_judged_on_sets_of_every_layout(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Zero-shot, few-shot, retrieval, group means, JSON and plot; above chance where it learned."""
    samples = writer.drawn_samples(107, 120)[107:]
    classes = sorted({sample.category for sample in samples})
    write_tars(tmp_path / "tars", samples, classes)
    write_folders(tmp_path / "folders", samples)
    write_table(tmp_path / "table", samples)
    pairs = write_tars(tmp_path / "pairs", samples[:12], classes, captions=True)
    (pairs / "dataset_type.txt").write_text("retrieval")
    config["schedule"] = {"steps": 120, "warmup_steps": 10}
    config["data"] |= {"batch_size": 24}
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(config))
    assert main(["train", str(run)]) == 0
    wanted = {
        "split": None,
        "few_shot": {"shots": [1, 3], "seeds": 3},
        "bootstrap_rounds": 100,
        "sets": [
            {"name": "tars", "path": str(tmp_path / "tars"), "group": "general"},
            {"name": "folders", "path": str(tmp_path / "folders"), "group": "general", "templates": ["a {}"]},
            {"name": "table", "path": str(tmp_path / "table"), "group": "plant", "text": "scientific",
             "templates": ["a {}"]},
            {"name": "pairs", "path": str(pairs)},
        ],
    }  # fmt: skip
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(wanted))
    capsys.readouterr()
    assert main(["eval", config["output_dir"], "--settings", str(tmp_path / "eval.yaml")]) == 0
    out = capsys.readouterr().out
    result = json.loads(Path(out.splitlines()[-1].removeprefix("figures: ")).read_text())
    assert "tars: 120 pictures, 12 classes" in out
    for item in result["sets"][:3]:
        assert set(item["zero_shot"]) == {"f", "z", "both"}
        top1 = item["zero_shot"]["both"]["top1"]
        assert top1["trials"] == 120
        assert top1["low"] > 2 * top1["chance"]
        assert item["few_shot"]["f"]["3"]["low"] > item["few_shot"]["f"]["3"]["chance"]
    # the same pictures and prompts: the layout only changes their order, by which rounding may move a near tie
    folders, table = result["sets"][1]["zero_shot"]["f"]["top1"], result["sets"][2]["zero_shot"]["f"]["top1"]
    assert abs(folders["hits"] - table["hits"]) <= 1
    assert result["groups"]["general"]["both"]["sets"] == 2
    assert set(result["groups"]) == {"general", "plant", "all sets"}
    assert result["sets"][3]["retrieval"]["f"]["text_to_image_r1"]["trials"] == 24
    with Image.open(Path(config["output_dir"]) / "eval" / "sets.png") as plot:
        assert plot.width > 600
        assert len(plot.convert("RGB").getcolors(1 << 20) or []) > 10
    written = tmp_path / "run" / "eval" / "sets.json"
    other = tmp_path / "other" / "eval" / "sets.json"
    other.parent.mkdir(parents=True)
    shutil.copy(written, other)
    page = tmp_path / "compared.html"
    assert main(["plot", str(written), str(other), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg ") == 5, "a panel for each set, and one for the means"
    for words in ("run, f", "other, both", "chance", "zero-shot top1", "3-shot", "text to image r1", "all sets"):
        assert words in text
    assert main(["plot", str(written), str(written), "--out", str(page)]) == 2
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"split": None}, "nothing to evaluate on"),
        ({"sets": [{"name": "a", "path": "nowhere"}]}, "nowhere: no such folder"),
        ({"sets": [{"name": "a", "path": "."}, {"name": "a", "path": "."}]}, "the name 'a' is given twice"),
        ({"sets": [{"name": "a", "path": "FOLDERS", "text": "common"}]}, "text common needs taxa"),
        ({"few_shots": 1}, "unknown key 'few_shots'; did you mean 'few_shot'?"),
        ({"sets": [{"name": "a", "path": ".", "templates": ["a"]}]}, "each template needs one {}"),
    ],
)
def test_wrong_evaluation_settings_are_one_line_and_write_nothing(
    wanted: dict[str, Any], words: str, config: dict[str, Any], tmp_path: Path, writer: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folders = write_folders(tmp_path / "folders", writer.drawn_samples(12, 0))
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(config | {"schedule": {"steps": 1}}))
    assert main(["train", str(run)]) == 0
    text = yaml.safe_dump(wanted).replace("FOLDERS", str(folders))
    (tmp_path / "eval.yaml").write_text(text)
    capsys.readouterr()
    assert main(["eval", str(run), "--settings", str(tmp_path / "eval.yaml")]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (Path(config["output_dir"]) / "eval").exists()


@pytest.mark.parametrize("part", ["clip.visual.proj", "clip.text_projection", "clip.logit_scale"])
def test_a_model_of_nans_has_no_score(
    part: str, config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of figure says of which set how many vectors are broken, and writes nothing."""
    samples = writer.drawn_samples(24, 0)
    classes = sorted({sample.category for sample in samples})
    pairs = write_tars(tmp_path / "pairs", samples, classes, captions=True)
    (pairs / "dataset_type.txt").write_text("retrieval")
    write_folders(tmp_path / "folders", samples)
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(config | {"schedule": {"steps": 1}}))
    assert main(["train", str(run)]) == 0
    weights = Path(config["output_dir"]) / "model.pt"
    content = torch.load(weights, weights_only=True)
    content["state_dict"][part].fill_(float("nan"))
    torch.save(content, weights)
    sets = [{"name": name, "path": str(tmp_path / name)} for name in ("folders", "pairs")]
    side = "picture features" if "visual" in part else "class features"
    texts = "picture features" if "visual" in part else "caption features"
    wanted = [({}, "held-out samples")]
    if part != "clip.logit_scale":  # the scale is in the loss alone
        wanted += [
            ({"split": None, "sets": sets[:1]}, f"eval.sets 'folders', {side} (f): "),
            ({"split": None, "sets": sets[1:]}, f"eval.sets 'pairs', {texts} (f): "),
        ]
    for values, words in wanted:
        (tmp_path / "eval.yaml").write_text(yaml.safe_dump(values))
        capsys.readouterr()
        assert main(["eval", str(run), "--settings", str(tmp_path / "eval.yaml")]) == 1
        error = capsys.readouterr().err
        assert words in error
        assert "are not finite" in error
    assert not (Path(config["output_dir"]) / "eval").exists()


def test_classes_of_one_name_are_named(
    config: dict[str, Any], tmp_path: Path, writer: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = writer.drawn_samples(24, 0)
    classes = sorted({sample.category for sample in samples})
    folder = write_tars(tmp_path / "set", samples, classes)
    (folder / "classnames.txt").write_text("\n".join(["missile", classes[1], "missile", *classes[3:]]) + "\n")
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(config | {"schedule": {"steps": 1}}))
    assert main(["train", str(run)]) == 0
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump({"split": None, "sets": [{"name": "a", "path": str(folder)}]}))
    capsys.readouterr()
    assert main(["eval", str(run), "--settings", str(tmp_path / "eval.yaml"), "--out", str(tmp_path / "r.json")]) == 0
    assert "note: a: classes share a name: 'missile' (2 classes)" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["sets"][0]["shared_names"] == {"missile": [0, 2]}


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


@pytest.mark.parametrize("name", ["metadata.csv", "test/0.tar", "classnames.txt", "test/red_circle/0.jpg"])
def test_no_layout_follows_a_link(writer: ModuleType, tmp_path: Path, name: str) -> None:
    samples = writer.drawn_samples(8, 0)
    classes = sorted({sample.category for sample in samples})
    if name == "metadata.csv":
        folder = write_table(tmp_path / "set", samples)
    elif name.endswith(".jpg"):
        folder = write_folders(tmp_path / "set", samples)
    else:
        folder = write_tars(tmp_path / "set", samples, classes)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"1 of \d files are not read.* first: .*{Path(name).name} is a link"):
        open_eval_set(str(folder), "test")


def test_odd_line_breaks_within_a_class_name_move_no_other_class(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(8, 0)
    classes = sorted({sample.category for sample in samples})
    folder = write_tars(tmp_path / "set", samples, classes)
    names = [f"{classes[0]}\u2028again", *classes[1:]]
    (folder / "classnames.txt").write_text("\r\n".join(names) + "\r\n", newline="")
    assert open_eval_set(str(folder), "test").classes == tuple(names)


@pytest.mark.parametrize("kind", ["sparse", "negative", "huge", "link", "a .cls of 2 MB"])
def test_an_odd_member_of_a_tar_is_named(writer: ModuleType, tmp_path: Path, kind: str) -> None:
    samples = writer.drawn_samples(4, 0)
    folder = write_tars(tmp_path / "set", samples, sorted({sample.category for sample in samples}))
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


def test_a_dangling_link_among_the_tars_is_named(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(4, 0)
    folder = write_tars(tmp_path / "set", samples, sorted({sample.category for sample in samples}))
    (folder / "test" / "1.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(ConfigError, match=r"1\.tar is a link"):
        open_eval_set(str(folder), "test")
