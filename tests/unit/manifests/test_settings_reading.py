"""Every mistake in a YAML file is one readable line that names the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from manifests.contract.settings import ConfigPath, NameOrPath, Settings, parse_settings, read_settings
from manifests.errors import ConfigError


class Leaf(Settings):
    radius: int = Field(3, ge=0)
    colour: str = "green"


class Branch(Settings):
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = Field(default_factory=list)
    by_name: dict[str, Leaf] = Field(default_factory=dict)


class Tree(Settings):
    name: str
    branch: Branch = Branch()
    height: float | None = None


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_values_and_defaults(tmp_path: Path) -> None:
    tree = read_settings(written(tmp_path, "name: oak\nbranch: {leaves: [{radius: 7}]}\n"), Tree)
    assert tree.branch.leaves[0].radius == 7
    assert tree.branch.leaf.colour == "green"
    with pytest.raises(ValueError, match="frozen"):
        tree.name = "elm"


@pytest.mark.parametrize(
    ("text", "place", "near"),
    [
        ("name: oak\nhieght: 2", "hieght", "height"),
        ("name: oak\nbranch: {laef: {}}", "branch.laef", "leaf"),
        ("name: oak\nbranch: {leaf: {radus: 1}}", "branch.leaf.radus", "radius"),
        ("name: oak\nbranch: {leaves: [{}, {color: red}]}", "branch.leaves.1.color", "colour"),
        ("name: oak\nbranch: {by_name: {left: {colr: red}}}", "branch.by_name.left.colr", "colour"),
    ],
)
def test_unknown_key_names_the_nearest_one(tmp_path: Path, text: str, place: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(written(tmp_path, text), Tree)
    assert f"unknown key '{place}'; did you mean '{near}'?" in str(caught.value)
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_a_key_at_the_wrong_place_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'radius'; 'radius' is a key of branch\.leaf or branch\.leaves"):
        read_settings(written(tmp_path, "name: oak\nradius: 1"), Tree)


def test_unknown_key_without_a_near_one_lists_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'branch\.leaf\.xyz' \(known here: colour, radius\)"):
        read_settings(written(tmp_path, "name: oak\nbranch: {leaf: {xyz: 1}}"), Tree)


def test_all_mistakes_come_at_once_one_a_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(written(tmp_path, "branch: {leaf: {radius: -1, colour: 5}}\nheigth: 1"), Tree)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("4 mistakes:")
    assert len(lines) == 5
    assert "missing key 'name'" in str(caught.value)
    assert "'branch.leaf.radius': Input should be greater than or equal to 0 (given: -1)" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\nname: b\n", 2, "name"),
        ("name: a\nbranch:\n  leaf:\n    radius: 1\n    radius: 2\n", 5, "radius"),
        ("name: a\nbranch:\n  leaves:\n    - {radius: 1, radius: 1}\n", 4, "radius"),
    ],
)
def test_key_given_twice_is_refused_with_its_line(tmp_path: Path, text: str, line: int, key: str) -> None:
    with pytest.raises(ConfigError, match=f"line {line}: the key '{key}' is given twice"):
        read_settings(written(tmp_path, text), Tree)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [oak", "not valid YAML at line 1, column 11: expected ',' or ']', but got '<stream end>': name: [oak"),
        (
            "name: oak\n\tbranch: 1",
            "that cannot start any token; indent with spaces, not with a tab: branch: 1",
        ),
        ("name: oak\n branch: 1", "not valid YAML at line 2, column 8: mapping values are not allowed here: branch: 1"),
        ("name: 2024-13-45", "not valid YAML"),  # looks like a date, is none: ValueError inside yaml
        ("name: !!python/object:os.system x", "not valid YAML"),
        ("[a, b]: c", "line 1: a list or mapping cannot be a key"),
        ("", "expected a mapping of settings, found NoneType"),
        ("- name: oak", "expected a mapping of settings, found list"),
        ("just words", "expected a mapping of settings, found str"),
        ("1: 2\nname: oak", "'1'"),
        ("name: " + "[" * 5000 + "]" * 5000, "is nested too deeply to be read"),
    ],
)
def test_what_is_no_settings_file_is_said_plainly(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_settings(written(tmp_path, text), Tree)
    assert says in str(caught.value)
    assert str(tmp_path / "run.yaml") in str(caught.value)


def test_missing_folder_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        read_settings(tmp_path / "absent.yaml", Tree)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path, Tree)
    with pytest.raises(ConfigError, match=r"/dev/zero: is no config file: it has more than 16,777,216 bytes"):
        read_settings("/dev/zero", Tree)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings(tmp_path / "binary.yaml", Tree)


class Places(Settings):
    work: ConfigPath
    weights: NameOrPath = "openai"


def test_a_path_begins_at_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "own.pt").touch()
    file = folder / "run.yaml"
    for text, work, weights in (
        ("work: ../data/x", f"{tmp_path}/data/x", "openai"),
        ("work: lists/*.csv\nweights: own.pt", f"{folder}/lists/*.csv", f"{folder}/own.pt"),
        ("work: s3://bucket/x\nweights: /w.pt", "s3://bucket/x", "/w.pt"),
        ("work: ~/x", str(Path.home() / "x"), "openai"),
        (
            "work: a.parquet::../b/*.parquet::/c.parquet",
            f"{folder}/a.parquet::{tmp_path}/b/*.parquet::/c.parquet",
            "openai",
        ),
        ("work: /c.parquet::b.parquet", f"/c.parquet::{folder}/b.parquet", "openai"),
    ):
        file.write_text(text)
        read = read_settings(file, Places)
        assert (read.work, read.weights) == (work, weights)
    monkeypatch.chdir(tmp_path)
    file.write_text("work: ../data/x")
    assert read_settings("configs/run.yaml", Places).work == "data/x"
    assert parse_settings({"work": "data/x"}, Places, where="a catalogue").work == "data/x"


@pytest.mark.parametrize("text", ["work: data", "work: data/*.csv", "work: x\nweights: data"])
def test_what_lies_below_the_current_folder_alone_is_refused_with_both_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "configs/run.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"configs/data\S* is not there, but data\S* in the .* is; .*write \.\./data"):
        read_settings("configs/run.yaml", Places)
    (tmp_path / "configs/data").mkdir()  # where both are there, the config's own counts
    assert "configs/data" in str(read_settings("configs/run.yaml", Places))


def test_parse_names_its_origin() -> None:
    with pytest.raises(ConfigError, match=r"^the command line: missing key 'name'$"):
        parse_settings({}, Tree, where="the command line")


def test_keys_that_another_version_kept_are_left_out_and_in_a_file_they_are_errors(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"height": 2, "trunk": 1, "name": "x", "branch": {
        "leaf": {"depth": 5}, "leaves": [{"radius": 1, "veins": None}], "by_name": {"oak": {"depth": 4}},
    }}  # fmt: skip
    tree = parse_settings(kept, Tree, where="w", is_kept=True)
    leaves = {"leaves": [Leaf(radius=1)], "by_name": {"oak": Leaf()}}
    assert tree == Tree(name="x", height=2, branch=Branch(**leaves)) == Tree.of_record(kept)
    with pytest.raises(ConfigError, match=r"'height': .*given: 'tall'"):
        parse_settings(kept | {"height": "tall"}, Tree, where="w", is_kept=True)
    with pytest.raises(ConfigError, match=r"unknown key 'branch\.leaf\.depth' \(known here: colour, radius\)"):
        read_settings(written(tmp_path, "name: x\nbranch: {leaf: {depth: 5}}"), Tree)
