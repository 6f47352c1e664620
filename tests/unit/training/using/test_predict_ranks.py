"""`dalip predict` up the ranks and within a group: probabilities, calibration, names that nobody has."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import release_writer
from release_writer import LABELS
from training_runs import predict_rows

from manifests.errors import ConfigError
from training.api import load, predict, read_taxa
from training.cli import main


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
    rows = predict_rows(tmp_path / "all.parquet", *given, "--top", 12)
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
        for row in predict_rows(tmp_path / f"{threshold}.parquet", *given, "--threshold", threshold):
            if row["probability_1"] >= threshold:
                assert row["answer_rank"] == "species"
            elif row["genus_probability"] >= threshold:
                assert (row["answer"], row["answer_rank"]) == (row["genus"], "genus")
            else:
                assert (row["answer"], row["answer_rank"]) == ("Plantae", "kingdom")
    genera = predict_rows(tmp_path / "genus.parquet", *given, "--rank", "genus")
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
    every = predict_rows(tmp_path / "all.parquet", *given)
    capsys.readouterr()
    circles = predict_rows(tmp_path / "circles.parquet", *given, "--within", "circle", "--threshold", 0.999)
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
    rows = predict_rows(out, *given, "--within", listed)
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


def test_labels_of_a_csv_bring_their_ranks(run_folder: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "labels.csv"
    lines = [f"{label},{label.split()[1]},common {label}" for label in LABELS]
    table.write_text("species,genus,common_name\n" + "\n".join(lines) + "\n")
    given = (pictures / "red", "--model", run_folder, "--labels", table, "--text", "common")
    rows = predict_rows(tmp_path / "a.parquet", *given)
    assert {row["genus"] for row in rows} <= set(release_writer.SHAPES)
    table.write_text("species\nred circle\nred circle\n")
    assert main(["predict", *map(str, given), "--out", str(tmp_path / "b.csv")]) == 2
    assert "1 labels are given twice; first: 'red circle'" in capsys.readouterr().err
