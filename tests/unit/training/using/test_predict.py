"""`dalip predict` on a trained model: answers, probabilities up the ranks, bad pictures, every form in and out."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tarfile
import time
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
from waiting import wait_until

from manifests.errors import ConfigError
from training.api import load, predict, read_taxa
from training.cli import main
from training.using import pieces
from training.using.labels import read_labels
from training.using.pictures import Encoded, Listing, list_pictures

NUM_DRAWN = 20  # of each label
LABELS = [f"{colour} {shape}" for colour in release_writer.COLOURS for shape in release_writer.SHAPES]


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(LABELS) + "\n")
    return path


def _predict(out: Path, *arguments: Any) -> list[dict[str, Any]]:
    assert main(["predict", *map(str, arguments), "--out", str(out), "--device", "cpu"]) == 0
    return list(pq.read_table(out).to_pylist())


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
    rows = _predict(
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
    rows = _predict(
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
    rows = _predict(tmp_path / "a.parquet", *given)
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
    by_folder = _predict(tmp_path / "folder.parquet", pictures / "red", *model)
    table = tmp_path / "list.csv"
    paths = [str(pictures / "red" / row["picture"]) for row in by_folder]
    table.write_text("filepath,note\n" + "".join(f"{path},x\n" for path in [*paths, str(tmp_path / "no.jpg")]))
    by_table = _predict(tmp_path / "table.parquet", table, *model)
    assert [row["answer"] for row in by_table] == [*(row["answer"] for row in by_folder), None]
    assert by_table[-1]["error"] == "is not there"
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for path in paths:
            tar.add(path, Path(path).name)
    by_shard = _predict(tmp_path / "shard.parquet", tmp_path / "s.tar", *model)
    assert [row["picture"] for row in by_shard] == [f"s.tar/{row['picture']}" for row in by_folder]
    assert [row["probability_1"] for row in by_shard] == [row["probability_1"] for row in by_folder]
    damaged = tmp_path / "d.tar"
    with tarfile.open(tmp_path / "s.tar") as tar:
        third = tar.getmembers()[2].offset_data
    damaged.write_bytes((tmp_path / "s.tar").read_bytes()[: third + 100])
    by_damaged = _predict(tmp_path / "damaged.parquet", damaged, *model)
    assert "the shard is damaged" in by_damaged[-1]["error"]
    assert by_damaged[0]["answer"] == by_folder[0]["answer"]
    samples = pq.read_table(release_folder / "releases" / "toy-0001" / "samples.parquet")
    for name, place in (("release", release_folder / "releases" / "toy-0001"), ("work", release_folder)):
        by_release = _predict(tmp_path / f"{name}.parquet", place, *model)
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


def _taxa_release(tmp_path: Path, num_heldout: int = 36) -> Path:
    """The shapes as a taxonomy: a species a colour and shape, a genus a shape; crosses have no genus."""
    folder = release_writer.write_release(tmp_path / "taxa", release_writer.drawn_samples(12, num_heldout))
    path = folder / "samples.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        colour, shape = json.loads(row["extra"])["category"].split()
        row |= {"taxon_species": f"{colour} {shape}", "taxon_genus": "" if shape == "cross" else shape,
                "taxon_kingdom": "Plantae"}  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path)
    record = json.loads((folder / "release.json").read_text())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    record["files"]["samples.parquet"] = {"num_bytes": path.stat().st_size, "sha256": sha256}
    (folder / "release.json").write_text(json.dumps(record))
    return folder


def test_probabilities_add_up_the_ranks_and_an_answer_climbs_until_it_is_sure(
    run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    taxa = _taxa_release(tmp_path)
    given = (pictures / "red", pictures / "blue", "--model", run_folder, "--taxa", taxa, "--template", "a {}")
    rows = _predict(tmp_path / "all.parquet", *given, "--top", 12)
    assert "calibrated on 36 held-out pictures" in capsys.readouterr().out
    for row in rows:
        shares = {row[f"label_{i}"]: row[f"probability_{i}"] for i in range(1, 13)}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        sums = {shape: sum(value for name, value in shares.items() if name.endswith(shape)) for shape in
                ("circle", "square")}  # fmt: skip
        assert row["genus_probability"] == pytest.approx(max(sums.values()), abs=1e-5)
        assert row["genus"] == max(sums, key=lambda name: sums[name])
        assert (row["kingdom"], row["kingdom_probability"]) == ("Plantae", pytest.approx(1, abs=1e-5))
        assert (row["answer"], row["answer_rank"]) == (row["label_1"], "species")
    for threshold in (0.5, 0.9):
        for row in _predict(tmp_path / f"{threshold}.parquet", *given, "--threshold", threshold):
            if row["probability_1"] >= threshold:
                assert row["answer_rank"] == "species"
            elif row["genus_probability"] >= threshold:
                assert (row["answer"], row["answer_rank"]) == (row["genus"], "genus")
            else:
                assert (row["answer"], row["answer_rank"]) == ("Plantae", "kingdom")
    genera = _predict(tmp_path / "genus.parquet", *given, "--rank", "genus")
    assert {row["label_1"] for row in genera} | {row["label_2"] for row in genera} == {"circle", "square"}


def _scale(out: Path) -> float:
    return float(json.loads(out.with_name(f"{out.name}.made.json").read_text())["notes"]["calibration"]["scale"])


def _shares(row: dict[str, Any], num: int) -> dict[str, float]:
    return {row[f"label_{i}"]: row[f"probability_{i}"] for i in range(1, num + 1)}


@pytest.mark.parametrize("num_heldout", [36, 168])
def test_within_a_group_probabilities_add_up_to_one_and_are_calibrated_on_its_pictures(
    num_heldout: int, run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    """A third of the pictures are circles: 12 of 36 are too few, and the scale is that of all labels."""
    taxa = _taxa_release(tmp_path, num_heldout)
    given = (pictures / "red", "--model", run_folder, "--taxa", taxa, "--template", "a {}", "--top", 12)
    every = _predict(tmp_path / "all.parquet", *given)
    capsys.readouterr()
    circles = _predict(tmp_path / "circles.parquet", *given, "--within", "circle", "--threshold", 0.999)
    printed = capsys.readouterr().out
    assert "within circle: 4 of 12 labels, the other 8 are left out" in printed
    is_enough = num_heldout == 168
    assert ("calibrated on 56 held-out pictures" in printed) == is_enough
    assert ("the scale is that of all labels, not of those within: 12 held-out pictures of" in printed) != is_enough
    assert ("calibrated on 36 held-out pictures" in printed) != is_enough
    scale, of_all = _scale(tmp_path / "circles.parquet"), _scale(tmp_path / "all.parquet")
    assert (scale == of_all) != is_enough
    for row, whole in zip(circles, every, strict=True):
        shares, before = _shares(row, 4), _shares(whole, 12)
        powers = {name: before[name] ** (scale / of_all) for name in shares}
        assert shares == pytest.approx({name: power / sum(powers.values()) for name, power in powers.items()}, abs=1e-4)
        assert (row["genus"], row["genus_probability"]) == ("circle", pytest.approx(1, abs=1e-5))
        assert (row["answer_rank"] == "species") == (row["probability_1"] >= 0.999)
        assert row["answer"] == (row["label_1"] if row["answer_rank"] == "species" else "circle")


def test_a_checklist_leaves_its_names_and_says_what_labels_do_not_have(
    run_folder: Path, pictures: Path, labels: Path, tmp_path: Path, capsys: Any
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("id,scientific name\n1,Red circle\n2,BLUE CROSS\n3,red cirle\n4,Fagus sylvatica\n")
    out = tmp_path / "a.parquet"
    given = (pictures / "red", "--model", run_folder, "--labels", labels)
    rows = _predict(out, *given, "--within", listed)
    assert all(set(_shares(row, 2)) == {"red circle", "blue cross"} and "label_3" not in row for row in rows)
    assert all(sum(_shares(row, 2).values()) == pytest.approx(1, abs=1e-6) for row in rows)
    printed = capsys.readouterr().out.splitlines()
    assert "within list.csv: 2 of 12 labels, the other 10 are left out" in printed
    assert "2 of the 4 names of list.csv are not among the labels: 'red cirle' (nearest: 'red circle'), " in printed[1]
    assert main(["predict", *map(str, given), "--out", str(out)]) == 2
    assert "was made or begun from something else (" in capsys.readouterr().err


def test_from_python_a_group_needs_ranks_or_names(run_folder: Path, pictures: Path, tmp_path: Path) -> None:
    model, taxa = load(run_folder), read_taxa(_taxa_release(tmp_path))
    picture = pictures / "red" / "circle.jpg"
    (every,), (circles,) = (predict(model, [picture], taxa, within=group, top=12) for group in (None, "circle"))
    total = sum(probability for label, probability in every if label.endswith("circle"))
    expected = {label: probability / total for label, probability in every if label.endswith("circle")}
    assert dict(circles) == pytest.approx(expected, abs=1e-5)
    (two,) = predict(model, [picture], LABELS, within=["red circle", "Blue Circle"])
    assert {label for label, _ in two} == {"red circle", "blue circle"}
    with pytest.raises(ConfigError, match=r"within: no label is 'circle'.*the labels have no higher ranks"):
        predict(model, [picture], LABELS, within="circle")


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
        _predict(tmp_path / f"{num_heldout}.parquet", *given, *more)
        printed = capsys.readouterr().out
        assert "not calibrated, the scale" in printed
        assert words in printed


def test_below_the_threshold_it_is_not_sure(run_folder: Path, pictures: Path, labels: Path, tmp_path: Path) -> None:
    rows = _predict(
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
    rows = _predict(tmp_path / "a.parquet", folder, "--model", run_folder, "--labels", labels, "--top", 12)
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
    for number in range(700):
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
    assert num_done < 3
    capsys.readouterr()
    assert main([*given, "--out", str(out)]) == 0
    assert f"{256 * num_done:,} of 700 were done before" in capsys.readouterr().err
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
    time.sleep(0.05)  # a stamp that is younger than a tick of the clock is not trusted
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
    time.sleep(0.05)
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


def test_labels_of_a_csv_bring_their_ranks(run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "labels.csv"
    lines = [f"{label},{label.split()[1]},common {label}" for label in LABELS]
    table.write_text("species,genus,common_name\n" + "\n".join(lines) + "\n")
    given = (pictures / "red", "--model", run_folder, "--labels", table, "--text", "common")
    rows = _predict(tmp_path / "a.parquet", *given)
    assert {row["genus"] for row in rows} <= set(release_writer.SHAPES)
    table.write_text("species\nred circle\nred circle\n")
    assert main(["predict", *map(str, given), "--out", str(tmp_path / "b.csv")]) == 2
    assert "1 labels are given twice; first: 'red circle'" in capsys.readouterr().err
