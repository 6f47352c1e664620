"""The kind `parquet`: rows, columns of every type, and every broken file, as ingest reads them before a build."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from foreign_tars import picture
from picture_tables import IMAGE, NAMES, images_of, table_of, write

from manifests.errors import ConfigError
from pipeline.answers.places import look_at
from pipeline.sources.settings import SourceSettings
from pipeline.sources.tars.picture_rows import PictureFile
from pipeline.store.foreign import read_long_rows

Read = Callable[[SourceSettings], tuple[list[dict[str, Any]], list[tuple[Any, ...]]]]


def source(path: Path | str, **columns: Any) -> SourceSettings:
    return SourceSettings(name="hub", domain="plant", parquet={"path": str(path), "columns": columns})


def test_rows_of_the_hub_have_their_columns_and_the_names_of_their_classes(read: Read, tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"train-0000{number}-of-00002.parquet", table_of(range(6 * number, 6 * number + 6)))
    columns = {"caption": "caption", "taxon_scientific_name": "label", "extra": ["image.path"]}
    rows, lost = read(source(tmp_path / "train-*.parquet", **columns))
    assert lost == []
    stems = [f"train-0000{number}-of-00002" for number in range(2)]
    assert [row["record_key"] for row in rows] == [f"{stem}/{row}" for stem in stems for row in range(6)]
    assert [row["taxon_scientific_name"] for row in rows] == [NAMES[number % 3] for number in range(12)]
    assert rows[7]["caption"] == "a picture with the number 7"
    assert json.loads(rows[7]["extra"]) == {"image.path": "7.jpg"}
    assert [row["locator"].partition("+")[0] for row in rows[:2]] == [f"{stems[0]}.parquet@{n}" for n in (1, 2)]


def test_values_of_every_type_are_texts(read: Read, tmp_path: Path) -> None:
    num = 4
    columns = {
        "large": pa.array([f"large {n}" for n in range(num)], pa.large_string()),
        "coded": pa.array(["rose", "oak", "rose", None]).dictionary_encode(),
        "view": pa.array([f"view {n}" for n in range(num)], pa.string_view()),
        "raw": pa.array([b"raw", b"\xff\xfe", None, b"raw"]),
        "listed": pa.array([["a", "b"], [], None, ["c"]]),
        "number": pa.array([1, 2, None, 4], pa.int16()),
        "real": pa.array([0.5, 1, None, 2]),
        "day": pa.array([0, 1, None, 2], pa.date32()),
        "nothing": pa.nulls(num),
        "img": pa.array([picture(n) for n in range(num)], pa.large_binary()).dictionary_encode(),
    }
    write(tmp_path / "all.parquet", pa.table(columns))
    extra = [name for name in columns if name not in ("img", "raw")]
    rows, lost = read(source(tmp_path / "all.parquet", image="img", caption="raw", extra=extra))
    assert [row["record_key"] for row in rows] == ["all/0", "all/2", "all/3"]
    kept = json.loads(rows[0]["extra"])
    assert kept == {"large": "large 0", "coded": "rose", "view": "view 0", "listed": '["a", "b"]', "number": "1",
                    "real": "0.5", "day": "1970-01-01", "nothing": None}  # fmt: skip
    assert set(json.loads(rows[1]["extra"]).values()) == {"large 2", "rose", "view 2", None}
    assert rows[0]["caption"] == "raw"
    ((number, reason, key, value),) = lost
    assert (number, reason, key) == (1, "malformed_row", "all/1")
    assert value.startswith("a text is no UTF-8")


def test_a_label_without_a_name_is_no_text_and_never_a_number(read: Read, tmp_path: Path) -> None:
    table = table_of(range(3)).set_column(2, "label", pa.array([1, -1, 7], pa.int64()))
    rows, _ = read(source(write(tmp_path / "a.parquet", table), caption="label"))
    assert [row.get("caption") for row in rows] == [NAMES[1], None, None]


def test_lists_of_labels_are_lists_of_names(read: Read, tmp_path: Path) -> None:
    """A set with several labels a picture had `[1, -1]` for its names, and the caption `1`."""
    labels = pa.array([[1, -1], [], None], pa.list_(pa.int64()))
    table = table_of([0, 1, 2], label=labels)
    features = {"label": {"_type": "List", "feature": {"_type": "ClassLabel", "names": NAMES}}, "gone": {"names": []}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    rows, _ = read(source(write(tmp_path / "a.parquet", table), caption="label", extra=["label"]))
    assert [row.get("caption") or None for row in rows] == [NAMES[1], None, None]
    assert [json.loads(row["extra"])["label"] for row in rows] == [json.dumps([NAMES[1], None]), "[]", None]


@pytest.mark.parametrize(
    ("names", "captions", "expected"),
    [
        (["Malus domestica", "Citrus limon", "Pyrus communis"], True, ("caption", "classes")),
        (["Malus domestica", "Citrus limon", "Pyrus communis"], False, ([], "classes")),
        (["apple", "lemon", "pear"], False, ("classes", None)),
        (["apple", "lemon", "pear"], True, ("caption", None)),
    ],
)
def test_init_takes_classes_as_taxa_or_as_captions(
    names: list[str], captions: bool, expected: tuple[Any, str | None], tmp_path: Path
) -> None:
    """Two names with Latin endings were found before, and no column that is not called label, caption or so."""
    table = table_of(range(3)).rename_columns(["image", "caption", "classes"])
    features = {"classes": {"_type": "ClassLabel", "names": names}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path = write(tmp_path / "a.parquet", table if captions else table.drop_columns(["caption"]))
    found = look_at(str(path)).settings["columns"]
    assert (found["caption"], found.get("taxon_scientific_name")) == expected


def test_rows_without_a_picture_end_one_by_one(read: Read, tmp_path: Path) -> None:
    rows, lost = read(source(write(tmp_path / "a.parquet", table_of([0, None, 2])), caption="caption"))
    assert [row["record_key"] for row in rows] == ["a/0", "a/2"]
    assert lost == [(1, "no_image", "a/1", "image is null")]


def test_lists_of_pictures_have_one_outcome(read: Read, tmp_path: Path) -> None:
    lists = pa.array([[{"bytes": picture(0), "path": None}] * 2] * 3, pa.list_(IMAGE))
    rows, lost = read(source(write(tmp_path / "a.parquet", pa.table({"image": lists}))))
    assert rows == []
    why = "image holds lists of pictures, and a row is one picture: write a row for each picture"
    assert lost == [(number, "no_image", f"a/{number}", why) for number in range(3)]


def test_zero_rows_are_no_fault(read: Read, tmp_path: Path) -> None:
    assert read(source(write(tmp_path / "a.parquet", table_of([])), caption="caption")) == ([], [])


@pytest.mark.parametrize("is_first", [True, False])
def test_a_file_without_its_footer_is_named(is_first: bool, read: Read, tmp_path: Path) -> None:
    for number in range(2):
        path = write(tmp_path / f"{number}.parquet", table_of(range(3 * number, 3 * number + 3)))
        if is_first is (number == 0):
            path.write_bytes(path.read_bytes()[:-100])
    told = source(tmp_path, caption="caption")
    if is_first:
        with pytest.raises(
            ConfigError, match=r"0\.parquet cannot be read as Parquet: has no footer .*download it again"
        ):
            read(told)
        return
    rows, lost = read(told)
    assert len(rows) == 3
    ((_, reason, _, value),) = lost
    assert reason == "broken_shard"
    assert value.startswith("1.parquet: has no footer")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["https://a.example/1.jpg"], r"'image' holds string, no bytes of pictures; for addresses write `table:`"),
        (pa.array([{"bytes": None, "path": "1.jpg"}], IMAGE), r"image\.path names files; .*`folder: "),
        ([5], "'image' holds int64, no bytes of pictures"),
    ],
)
def test_a_column_without_bytes_is_one_line_with_the_cure(values: Any, words: str, read: Read, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", pa.table({"image": values}))
    with pytest.raises(ConfigError, match=words):
        read(source(tmp_path / "a.parquet"))


def test_a_column_that_is_not_there_is_named_with_those_that_are(read: Read, tmp_path: Path) -> None:
    write(tmp_path / "0.parquet", table_of(range(2)))
    with pytest.raises(ConfigError, match=r"has no column 'text'; it has image, caption, label, image\.path"):
        read(source(tmp_path, caption="text"))
    write(tmp_path / "1.parquet", table_of(range(2)).drop_columns(["caption"]))
    rows, lost = read(source(tmp_path, caption="caption"))
    assert len(rows) == 2
    ((_, reason, _, value),) = lost
    assert reason == "broken_shard"
    assert value.startswith("1.parquet: has no column 'caption'; it has image, label")


def test_positions_lead_back_to_their_rows(tmp_path: Path) -> None:
    tables = [table_of(range(13)), pa.table({"image": pa.nulls(4000, pa.binary())})]
    for number, table in enumerate(tables):
        path = write(tmp_path / f"{number}.parquet", table, row_group_size=(5, 1000)[number])
        with path.open("rb") as stream:
            file = PictureFile(stream)
        positions = [file.position_of(row) for row in range(table.num_rows)]
        assert positions == sorted(positions)
        assert file.position_of(table.num_rows) is None
        for row, position in enumerate(positions):
            assert file.row_at(position) == positions.index(position) <= row
        for before, after in pairwise(positions):
            if after > before:  # where a piece may end
                assert file.row_at(after) == positions.index(after) == file.row_at(before + 1)


def test_rows_are_read_from_any_row_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"image": images_of(range(23))}), row_group_size=10)
    for start in (0, 3, 9, 10, 22):
        with path.open("rb") as stream:
            read = [(first, batch) for first, batch in read_long_rows(stream, ["image"], start, 1 << 20)]
        assert [first + n for first, batch in read for n in range(batch.num_rows)] == list(range(start, 23))
        paths = [picture["path"] for _, batch in read for picture in batch["image"].to_pylist()]
        assert paths == [f"{number}.jpg" for number in range(start, 23)]
