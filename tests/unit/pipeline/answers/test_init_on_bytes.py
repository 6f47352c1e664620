"""`init` on Parquet with columns of bytes: they are no text; where they are the pictures, it says what to do."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import done, run_here

JPEG = b"\xff\xd8\xff\xe0 not text"


@pytest.mark.parametrize("picture", [JPEG, {"bytes": JPEG, "path": "a.jpg"}], ids=["bytes", "as datasets has them"])
def test_pictures_inside_a_table_are_one_line(tmp_path: Path, picture: object) -> None:
    pq.write_table(pa.table({"image": [picture], "text": ["a rose"]}), tmp_path / "pictures.parquet")
    ended = run_here("init", "--domain", f"plant={tmp_path}/pictures.parquet", "--out", tmp_path / "my.yaml")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "image holds bytes, and pictures inside a table are not read: write them into files or tars" in ended.stderr
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
