"""From tars as img2dataset leaves them, with a table of captions beside them, to a release: no edit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import ROOT, done, release_of, run_here, run_inline
from foreign_tars import write_tar

NUM, WITHOUT_TEXT = 15, 5


def pictures() -> list[bytes]:
    """Photos of fruit and cartons."""
    return [path.read_bytes() for path in sorted((ROOT / "tests/photos").glob("*.jpg"))[:NUM]]


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tars with img2dataset's Parquet and _stats.json; its texts are those of file names and shops."""
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {"uid": f"{7 * n:08x}", "caption": f"IMG_{n:04d}.jpg", "url": f"https://a.example/{n}.jpg", "key": f"{n:07d}",
         "status": "success", "error_message": None, "width": 256, "height": 256}
        for n in range(NUM)
    ]  # fmt: skip
    bodies = pictures()
    for shard, some in enumerate((rows[:10], rows[10:])):
        samples = [
            (
                row["key"],
                {"jpg": bodies[int(row["key"])], "json": json.dumps(row).encode(), "txt": row["caption"].encode()},
            )
            for row in some
        ]
        write_tar(tmp_path / f"theirs/{shard:05d}.tar", samples)
        gone = {"url": "https://a.example/gone.jpg", "key": f"9{shard}", "status": "failed_to_download"}
        pq.write_table(pa.Table.from_pylist([*some, gone]), tmp_path / f"theirs/{shard:05d}.parquet")
        (tmp_path / f"theirs/{shard:05d}_stats.json").write_text(json.dumps({"count": len(some) + 1}))
    words = [None if n == WITHOUT_TEXT else f"a thing on a shelf of the shop, number {n}" for n in range(NUM)]
    table = {"id": [row["uid"] for row in rows], "page": [row["url"] for row in rows], "words": words}
    pq.write_table(pa.table(table).slice(2), tmp_path / "theirs/blip.parquet")
    return tmp_path


@pytest.mark.slow
def test_tars_and_a_table_become_a_release(theirs: Path) -> None:
    said = done("init", "--domain", "plant=theirs/", "--out", "my.yaml")
    assert "not read" not in said
    told = json.loads(done("preview", "my.yaml", "--json"))
    assert told["kept"]["num"] == NUM - 2 - 1
    done("build", "my.yaml")
    rows = pq.read_table(release_of(theirs / "data/my") / "samples.parquet").to_pylist()
    kept = set(range(2, NUM)) - {WITHOUT_TEXT}
    assert {row["text"] for row in rows} == {f"a thing on a shelf of the shop, number {n}" for n in kept}
    assert {row["url"] for row in rows} == {f"https://a.example/{n}.jpg" for n in kept}


def test_a_table_elsewhere_is_joined_by_the_address(theirs: Path) -> None:
    Path("theirs/blip.parquet").rename("words.parquet")
    table = pq.read_table("words.parquet").select(["page", "words"])
    pq.write_table(table, "words.parquet")
    Path("configs").mkdir()
    done("init", "--domain", "plant=theirs", "--captions", "words.parquet", "--out", "configs/my.yaml")
    text = Path("configs/my.yaml").read_text()
    entry = "- {join: ../words.parquet, 'on': {url: page}, text: words, kind: caption}"
    assert f"captions:\n      # sure: {NUM - 2} of the first {NUM} pictures have a row there" in text
    assert entry in text
    run_inline(Path("configs/my.yaml"))
    assert "kept" in done("build", "configs/my.yaml", "--to", "ingest")
    pq.write_table(pa.table({"id": ["a", "b"], "words": ["a rose", "a lily"]}), "other.parquet")
    ended = run_here("init", "--domain", "plant=theirs", "--captions", "other.parquet", "--out", "no.yaml")
    assert ended.returncode == 2
    assert "--captions other.parquet: no column of id, words has keys of these pictures" in ended.stderr
    Path("other.parquet").rename("theirs/other.parquet")
    said = done("init", "--domain", "plant=theirs", "--out", "yes.yaml")
    assert "- theirs/other.parquet: not read: no column holds addresses" in " ".join(said.split())
    assert "no captions: no column of id, words has keys of these pictures" in " ".join(said.split())


@pytest.mark.slow
def test_diff_tells_what_became_of_what_came_in(theirs: Path) -> None:
    """Each picture that came in is counted once: also what was left out by the ratio, and taken down since."""
    done("init", "--domain", "plant=theirs/00000.tar", "--domain", "general=theirs/00001.tar",
         "--captions", "theirs/blip.parquet", "--out", "my.yaml")  # fmt: skip
    config = Path("my.yaml").read_text().replace("    general: 1", "    general: 3")
    Path("my.yaml").write_text(config)
    run_inline(Path("my.yaml"))
    done("build", "my.yaml")
    before = json.loads(done("diff", "data/my", "--json"))
    first = release_of(theirs / "data/my")
    rows = {row["sample_id"]: row for row in pq.read_table(first / "samples.parquet").to_pylist()}
    assert before["release"] == first.name
    for name, domain, came_in in (("00000", "plant", 11), ("00001", "general", 6)):
        of_source = {row["reason"]: row for row in before["incoming"] if row["source"] == name}
        assert sum(row["images"] for row in of_source.values()) == came_in
        kept = sum(row["source"] == name for row in rows.values())
        assert of_source[None] == {"source": name, "domain": domain, "stage": None, "reason": None, "images": kept,
                                   "other_text": kept}  # fmt: skip
    dropped = {row["reason"]: row["images"] for row in before["incoming"] if row["source"] == "00000"}
    assert dropped["no_image"] == 1
    assert dropped["looks_like_a_filename"] == 3, "the texts of their own, where the table has none"
    assert dropped["left_out_by_ratio"] > 0
    done("takedown", "data/my", "--id", min(rows), "--reason", "asked")
    said = done("diff", "data/my")
    assert re.search(r"^0000[01] +(plant|general) +takedown +mix +1 +0$", said, re.MULTILINE)
    assert said.startswith(f"17 came in -> {len(rows) - 1} in my-")
    ended = run_here("diff", shutil.copytree(first, theirs / "copy"))
    assert ended.returncode == 2
    assert "only its work folder knows what came in" in ended.stderr
