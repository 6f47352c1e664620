"""`init` on Parquet with columns of bytes: they are no text; where they are the pictures, it is a source of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import done, run_here

JPEG = b"\xff\xd8\xff\xe0 not text"


@pytest.mark.parametrize("picture", [JPEG, {"bytes": JPEG, "path": "a.jpg"}], ids=["bytes", "as datasets has them"])
def test_pictures_inside_a_table_are_a_source(tmp_path: Path, picture: object) -> None:
    table = pa.table({"digest": [b"\xff\xfe"], "photo": [picture], "text": ["a rose in the garden"]})
    pq.write_table(table, tmp_path / "pictures.parquet")
    done("init", "--domain", f"plant={tmp_path}/pictures.parquet", "--out", tmp_path / "my.yaml")
    (source,) = yaml.safe_load((tmp_path / "my.yaml").read_text())["sources"]
    assert source["parquet"]["columns"] == {"image": "photo", "caption": "text"}


def test_bytes_that_are_no_pictures_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"\xff\xfe"], "text": ["a rose"]}), tmp_path / "list.parquet")
    ended = run_here("init", "--domain", f"plant={tmp_path}/list.parquet", "--out", tmp_path / "my.yaml")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "image holds bytes that are no pictures" in ended.stderr
    assert not (tmp_path / "my.yaml").exists()


def test_other_columns_of_bytes_are_left_out_and_text_without_its_mark_is_text(tmp_path: Path) -> None:
    rows = {
        "url": pa.array([b"https://a.example/1.jpg", b"https://a.example/2.jpg"], pa.binary()),
        "caption": ["a rose in the garden", "an oak"],
        "digest": pa.array([b"\xff\xfe", b"\x80\x81"], pa.binary()),
    }
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    done("init", "--domain", f"plant={tmp_path}/list.parquet", "--out", tmp_path / "my.yaml")
    (source,) = yaml.safe_load((tmp_path / "my.yaml").read_text())["sources"]
    assert source["columns"] == {"url": "url", "caption": "caption"}
