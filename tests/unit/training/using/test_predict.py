"""`dalip predict` on a trained model: answers, bad pictures, every form in and out."""

from __future__ import annotations

import csv
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import release_writer
import torch
from command_server import CommandServer
from release_writer import LABELS
from training_runs import predict_rows
from waiting import wait_until

from manifests.stores.stamps import to_keep
from training.cli import main
from training.using import pieces
from training.using.labels import read_labels
from training.using.pictures import Encoded, Listing, list_pictures

NUM_DRAWN = 20  # of each label
NUM_MANY = 1500  # in pieces of 256: a kill behind the first must not come behind the last


def _calibrated(release_folder: Path) -> list[str]:
    return ["--calibrate", str(release_folder), "--field", "extra.category", "--template", "a {}"]


def test_a_trained_model_answers_better_than_chance(
    run_folder: Path, labels: Path, release_folder: Path, tmp_path: Path
) -> None:
    """On many pictures: of twelve, this small model got 3 on one processor, and 4 or more on others."""
    for colour in release_writer.COLOURS:
        (tmp_path / "many" / colour).mkdir(parents=True)
        for shape in release_writer.SHAPES:
            for number in range(NUM_DRAWN):
                picture = release_writer.draw_picture(colour, shape, seed=2000 + number)
                (tmp_path / "many" / colour / f"{shape} {number}.jpg").write_bytes(picture)
    rows = predict_rows(
        tmp_path / "a.parquet",
        tmp_path / "many",
        "--model",
        run_folder,
        "--labels",
        labels,
        *_calibrated(release_folder),
    )
    right = [row["answer"] == row["picture"].rpartition(" ")[0].replace("/", " ") for row in rows]
    assert len(right) == 12 * NUM_DRAWN
    assert sum(right) > 3 * NUM_DRAWN, f"{sum(right)}: chance is {NUM_DRAWN}, with a standard error of 4.3"


def test_bad_pictures_are_rows(
    run_folder: Path, pictures: Path, labels: Path, release_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    rows = predict_rows(
        tmp_path / "a.parquet", pictures, "--model", run_folder, "--labels", labels, *_calibrated(release_folder)
    )
    printed = capsys.readouterr().out
    assert "calibrated on 36 held-out pictures" in printed
    assert "written:" in printed
    assert "16 rows, 4 of them with an error; 12 labels" in printed
    bad = {row["picture"]: row["error"] for row in rows if row["error"]}
    assert set(bad) == {"cut.jpg", "empty.png", "gone.jpg", "page.jpg"}
    assert "is not there" in bad["gone.jpg"]
    assert "not_an_image: HTML" in bad["page.jpg"]
    assert all(row["answer"] is None and row["probability_1"] is None for row in rows if row["error"])
    good = [row for row in rows if not row["error"]]
    assert all(row["probability_1"] >= row["probability_2"] >= row["probability_5"] for row in good)


def test_every_form_of_output_holds_the_same(run_folder: Path, pictures: Path, labels: Path, tmp_path: Path) -> None:
    given = (pictures, "--model", run_folder, "--labels", labels, "--top", 2)
    rows = predict_rows(tmp_path / "a.parquet", *given)
    assert main(["predict", *map(str, given), "--out", str(tmp_path / "a.csv")]) == 0
    with (tmp_path / "a.csv").open() as stream:
        from_csv = list(csv.DictReader(stream))
    assert [row["answer"] or None for row in from_csv] == [row["answer"] for row in rows]
    for one, other in zip(from_csv, rows, strict=True):
        assert (float(one["probability_2"]) if one["probability_2"] else None) == pytest.approx(other["probability_2"])


def test_tables_shards_and_releases_are_read(
    run_folder: Path, pictures: Path, labels: Path, release_folder: Path, tmp_path: Path
) -> None:
    """The same pictures by every way in get the same answers."""
    model = ("--model", run_folder, "--labels", labels)
    by_folder = predict_rows(tmp_path / "folder.parquet", pictures / "red", *model)
    table = tmp_path / "list.csv"
    paths = [str(pictures / "red" / row["picture"]) for row in by_folder]
    table.write_text("filepath,note\n" + "".join(f"{path},x\n" for path in [*paths, str(tmp_path / "no.jpg")]))
    by_table = predict_rows(tmp_path / "table.parquet", table, *model)
    assert [row["answer"] for row in by_table] == [*(row["answer"] for row in by_folder), None]
    assert by_table[-1]["error"] == "is not there"
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for path in paths:
            tar.add(path, Path(path).name)
    by_shard = predict_rows(tmp_path / "shard.parquet", tmp_path / "s.tar", *model)
    assert [row["picture"] for row in by_shard] == [f"s.tar/{row['picture']}" for row in by_folder]
    assert [row["probability_1"] for row in by_shard] == [row["probability_1"] for row in by_folder]
    damaged = tmp_path / "d.tar"
    with tarfile.open(tmp_path / "s.tar") as tar:
        third = tar.getmembers()[2].offset_data
    damaged.write_bytes((tmp_path / "s.tar").read_bytes()[: third + 100])
    by_damaged = predict_rows(tmp_path / "damaged.parquet", damaged, *model)
    assert "the shard is damaged" in by_damaged[-1]["error"]
    assert by_damaged[0]["answer"] == by_folder[0]["answer"]
    samples = pq.read_table(release_folder / "releases" / "toy-0001" / "samples.parquet")
    for name, place in (("release", release_folder / "releases" / "toy-0001"), ("work", release_folder)):
        by_release = predict_rows(tmp_path / f"{name}.parquet", place, *model)
        assert sorted(row["picture"] for row in by_release) == sorted(samples["sample_id"].to_pylist()), name


def test_a_release_is_named_as_for_every_command(release_folder: Path, tmp_path: Path) -> None:
    """Its folder, its name without a version, its work folder, and all three in a store."""
    work = shutil.copytree(release_folder, tmp_path / "work")
    (work / "releases/toy.LATEST").write_text("toy-0001\n")
    fsspec.filesystem("memory").put(str(work), "/named/work", recursive=True)
    names = set()
    for place in ("releases/toy-0001", "releases/toy", "."):
        for folder in (str(work), "memory://named/work"):
            listing = list_pictures([f"{folder}/{place}".removesuffix("/.")])
            names.add(tuple(listing.table["name"].to_pylist()))
            assert listing.read(0)[:2] == b"\xff\xd8"
    assert len(names) == 1


def test_without_enough_held_out_pictures_it_says_that_nothing_is_calibrated(
    run_folder: Path, pictures: Path, labels: Path, tmp_path: Path, capsys: Any
) -> None:
    given = (pictures / "red", "--model", run_folder, "--labels", labels)
    for num_heldout, words in (
        (0, "has no held-out split"),
        (4, "4 held-out pictures of"),
        (None, "no release is named"),
    ):
        more: list[Any] = []
        if num_heldout is not None:
            folder = tmp_path / f"held-{num_heldout}"
            release_writer.write_release(folder, release_writer.drawn_samples(20, num_heldout))
            more = ["--calibrate", folder, "--field", "extra.category"]
        predict_rows(tmp_path / f"{num_heldout}.parquet", *given, *more)
        printed = capsys.readouterr().out
        assert "not calibrated, the scale" in printed
        assert words in printed


def test_below_the_threshold_it_is_not_sure(run_folder: Path, pictures: Path, labels: Path, tmp_path: Path) -> None:
    rows = predict_rows(
        tmp_path / "a.parquet", pictures / "red", "--model", run_folder, "--labels", labels, "--threshold", 1.0
    )
    assert {(row["answer"], row["answer_rank"]) for row in rows} == {("not sure", None)}


def test_a_photo_that_lies_on_its_side_is_turned_as_its_exif_says(
    run_folder: Path, labels: Path, tmp_path: Path
) -> None:
    from PIL import Image

    folder = tmp_path / "sides"
    folder.mkdir()
    picture = Image.radial_gradient("L").crop((0, 0, 120, 200)).convert("RGB")
    picture.save(folder / "a-upright.png")
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate clockwise to view
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "b-turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "c-lying.png")
    rows = predict_rows(tmp_path / "a.parquet", folder, "--model", run_folder, "--labels", labels, "--top", 12)
    values = [[row[f"probability_{i}"] for i in range(1, 13)] for row in rows]
    assert values[0] == values[1]
    assert not np.allclose(values[0], values[2], atol=1e-5)
    assert len(list_pictures([str(folder)])) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name"), [("predict", "killed.csv"), ("embed", "killed.parquet")], ids=["predict", "embed"]
)
def test_a_killed_predict_or_embed_asks_only_for_what_is_missing_and_ends_the_same_to_the_byte(
    command: str,
    name: str,
    commands: CommandServer,
    run_folder: Path,
    pictures: Path,
    labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(NUM_MANY):
        source = pictures / "red" / f"{release_writer.SHAPES[number % 3]}.jpg"
        shutil.copy(source if number % 100 else pictures / "page.jpg", many / f"{number:05d}.jpg")
    given = [command, str(many), "--model", str(run_folder)]
    given += ["--labels", str(labels)] if command == "predict" else []
    whole, out = tmp_path / f"whole{Path(name).suffix}", tmp_path / name
    assert main([*given, "--out", str(whole)]) == 0
    process = commands.start("dalip", *given, "--out", out)
    pieces = out.with_name(f"{name}.pieces")
    wait_until(lambda: _num_noted(pieces), process)
    process.kill()
    process.wait(500)
    assert not out.exists(), "it was killed before its end"
    num_done = _num_noted(pieces)
    assert num_done < NUM_MANY / 256
    capsys.readouterr()
    assert main([*given, "--out", str(out)]) == 0
    assert f"{256 * num_done:,} of {NUM_MANY:,} were done before" in capsys.readouterr().err
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("killed*")) == [name, f"{name}.made.json"]


def _num_noted(pieces: Path) -> int:
    """Pieces that count: a file stands there before its sha256 is noted, and a kill may fall between."""
    sums = pieces / "SHA256SUMS"
    return sums.read_text().count("  piece-") if sums.exists() else 0


def test_what_is_there_is_reused_or_refused(
    run_folder: Path, pictures: Path, labels: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "a.csv"
    given = ["predict", str(pictures), "--model", str(run_folder), "--labels", str(labels), "--out", str(out)]
    assert main(given) == 0
    before = out.stat().st_mtime_ns
    capsys.readouterr()
    assert main(given) == 0
    assert "finished before, reused" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    assert main([*given, "--threshold", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "was made or begun from something else (options.threshold: 0.0 -> 0.5)" in error
    whole = out.read_bytes()
    for content in (whole[:-20], whole.replace(b"red", b"rot", 1)):
        out.write_bytes(content)
        assert main(given) == 1
        assert (
            "a.csv: was changed or cut short since it was made; move it and a.csv.made.json" in capsys.readouterr().err
        )
        assert out.read_bytes() == content
    out.unlink()
    assert main(given) == 0
    assert out.read_bytes() == whole
    own = tmp_path / "own.csv"
    own.write_text("mine")
    assert main([*given[:-1], str(own)]) == 2
    assert "is there, and was not made by this command" in capsys.readouterr().err
    assert own.read_text() == "mine"


def _until_stamps_count(folder: Path) -> None:
    """A stamp that is younger than a tick of the clock is not trusted."""
    wait_until(lambda: all(to_keep(str(path)) for path in folder.iterdir()))


@pytest.mark.parametrize("command", ["predict", "embed"])
def test_pictures_are_known_by_their_content(
    command: str, run_folder: Path, labels: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "a.parquet"
    folder.mkdir()
    red, blue = (release_writer.draw_picture(colour, "circle", seed=1) for colour in ("red", "blue"))
    one = folder / "1.jpg"
    one.write_bytes(red.ljust(len(blue), b"\0"))
    (folder / "2.jpg").write_bytes(blue)
    given = [command, str(folder), "--model", str(run_folder), "--out", str(out)]
    given += ["--labels", str(labels)] if command == "predict" else []
    assert main(given) == 0
    before = one.stat()
    _until_stamps_count(folder)
    os.utime(folder / "2.jpg")
    assert main(given) == 0, "the content is the same"
    capsys.readouterr()
    one.write_bytes(blue.ljust(before.st_size, b"\0"))
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (one.stat().st_size, one.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert main(given) == 2
    assert "was made or begun from something else (pictures:" in capsys.readouterr().err
    out.with_name("a.parquet.made.json").unlink()
    out.unlink()
    _until_stamps_count(folder)
    assert main(given) == 0
    monkeypatch.setattr(
        "manifests.contract.records.hash_or_unreadable", lambda path: pytest.fail(f"{path} is read again")
    )
    assert main(given) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--out", "a.txt"], "--out must end in one of .csv, .parquet"),
        (["--labels", "none.txt"], "no such file of labels"),
        (["--template", "a photo"], "template 'a photo': needs one {}"),
        (["--field", "extra.category"], "give --calibrate RELEASE too"),
        (["--model", "nowhere"], "no such config file"),
        (["--within", "circle"], "--within: no label is 'circle', or lies in a taxon of that name; the labels have no"),
        (["--within", "list.csv"], "list.csv: no such checklist"),
    ],
)
def test_wrong_input_is_one_line(
    change: list[str], words: str, run_folder: Path, pictures: Path, labels: Path, tmp_path: Path, capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = ["predict", str(pictures), "--model", str(run_folder), "--labels", str(labels), "--out", "a.csv"]
    assert main([*given, *change]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]


def test_a_header_is_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "labels.txt"
    for header in ("label", "Species", "class_name"):
        file.write_text("\n".join([header, *LABELS]))
        assert list(read_labels(str(file), "species").names) == LABELS
        assert f"labels.txt: the first line, '{header}', is taken for a header" in caplog.text


def test_labels_and_paths_are_texts(tmp_path: Path) -> None:
    """As it was found: U+0085 cut a label in two, and the path 007 of a csv became 7."""
    (tmp_path / "labels.txt").write_bytes("Rosa\u0085canina\r\nBellis perennis\r\n".encode())
    assert list(read_labels(str(tmp_path / "labels.txt"), "species").names) == ["Rosa\u0085canina", "Bellis perennis"]
    (tmp_path / "007").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path,name\n007,a\n,b\n")
    listing = list_pictures([str(tmp_path / "list.csv")])
    assert listing.table["name"].to_pylist() == ["007", "row 3"]
    assert listing.table["fault"].to_pylist()[0] is None


def test_a_name_that_is_no_utf_8_is_a_row_with_a_fault(tmp_path: Path) -> None:
    for name in (b"bl\xe4tter.jpg", b"shard-\xff.tar", b"notes-\xff.txt", b"plain.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    listing = list_pictures([str(tmp_path)])
    rows = {row["name"]: row["fault"] for row in listing.table.to_pylist()}
    wrong = "its name is not UTF-8; rename it"
    assert rows == {"bl\\udce4tter.jpg": wrong, "plain.jpg": None, "shard-\\udcff.tar": wrong}


def test_a_damaged_piece_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after two pieces of three, one of which a disk has changed since; its table would still be read."""
    monkeypatch.setattr(pieces, "PIECE_ROWS", 2)
    schema, asked = pa.schema([("name", pa.string()), ("error", pa.string())]), list[range]()

    def encode(missing: list[range]) -> Iterator[Encoded]:
        for rows in missing:
            asked.append(rows)
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield rows, torch.empty(0), [None] * len(rows)

    def table() -> pieces.PiecedTable:
        listing = Listing(pa.table({"name": list("abcdef")}))
        return pieces.PiecedTable(str(tmp_path / "a.csv"), {"of": "test"}, listing, schema)

    with pytest.raises(KeyboardInterrupt):
        table().fill(encode, lambda _: {}, {}, "test")
    piece = tmp_path / "a.csv.pieces/piece-00000000.parquet"
    changed = pa.table([["x", "b"], pa.nulls(2, pa.string())], schema=schema)
    pq.write_table(changed, piece, compression="zstd")
    (tmp_path / "a.csv.pieces/notes.txt").write_text("mine")
    table().fill(encode, lambda _: {}, {}, "test")
    assert [rows.start for rows in asked] == [0, 2, 4, 0, 4]
    assert (tmp_path / "a.csv").read_text().split() == ['"name","error"', *(f'"{name}",' for name in "abcdef")]
    assert [path.name for path in (tmp_path / "a.csv.pieces").iterdir()] == ["notes.txt"]
