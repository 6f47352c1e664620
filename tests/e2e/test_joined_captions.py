"""Captions of another table, joined by key, address or a kept column: from the table to shards, and to the trainer."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import done, release_of, run_here, write_small_config
from sealed import lend
from walk.web import picture

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader, rows_of
from pipeline.releases.cutting import iter_samples

NUM = 12


def refused(*arguments: str | Path) -> str:
    """What a command says that must refuse: one line, no traceback."""
    ended = run_here(*arguments)
    assert ended.returncode == 2, ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    return ended.stderr


def write_pictures(folder: Path) -> None:
    """Real pictures with a table beside them: a key, a uuid, and for every third one no caption."""
    (folder / "pics").mkdir(parents=True)
    with (folder / "pics/list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "id", "uuid", "caption", "taxon"])
        for n in range(NUM):
            (folder / f"pics/{n}.jpg").write_bytes(picture(n, "jpg"))
            caption = "" if n % 3 == 0 else f"a plant in the garden, number {n}"
            writer.writerow([f"{n}.jpg", 100 + n, f"u-{n}", caption, "Quercus robur" if n % 2 else ""])


def write_tables(folder: Path) -> None:
    """Captions by a whole number, of 0 to 8, two of each even one; traits by the uuid; a row without key or text."""
    ids = [*range(100, 109), *range(100, 109, 2), None, 111, 999]
    texts = [f"a model saw leaf {n} there" for n in range(9)] + [f"and a stem {n} as well" for n in range(0, 9, 2)]
    texts += ["a text without a key", " ", "a text of no picture"]
    pq.write_table(pa.table({"id": pa.array(ids, pa.int64()), "caption": texts}), folder / "captions.parquet")
    traits = [{"uuid": f"u-{n}", "words": f"it has {n + 2} petals of blue colour"} for n in range(NUM)]
    traits += [{"uuid": "u-1", "words": "IMG_0042.jpg"}, {"uuid": "u-1", "words": "it has 3 petals of blue colour"}]
    (folder / "traits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traits))


def entry(table: Path, on: Any, text: str, kind: str) -> dict[str, Any]:
    return {"join": str(table), "on": on, "text": text, "kind": kind}


def source(folder: Path) -> dict[str, Any]:
    columns = {"file": "file", "record_key": "id", "caption": "caption", "taxon_scientific_name": "taxon"}
    return {
        "name": "ours",
        "domain": "plant",
        "folder": {
            "path": str(folder / "pics"), "table": "list.csv",
            "columns": {**columns, "extra": ["uuid"]},
        },
        "defaults": {"licence": "CC0-1.0"},
        "captions": [
            entry(folder / "captions.parquet", {"record_key": "id"}, "caption", "caption"),
            entry(folder / "traits.jsonl", "extra.uuid", "words", "trait"),
        ],
    }  # fmt: skip


def write_config(folder: Path, **sections: Any) -> Path:
    config = write_small_config(folder, source(folder), **sections)
    config.write_text(config.read_text().replace("'on':", "on:"))  # as people write it, and YAML reads it as true
    return config


def members(release: Path) -> dict[str, dict[str, str]]:
    """The texts of every sample in the shards, by the key of its picture."""
    texts: dict[str, dict[str, str]] = {}
    for shard in sorted(release.glob("*/*.tar")):
        for _, named in iter_samples(str(shard)):
            content = {name: value.decode() for name, value in named if name != "jpg"}
            texts[json.loads(content.pop("json"))["record_key"]] = content
    return texts


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joined")
    write_pictures(folder)
    write_tables(folder)
    said = done("build", write_config(folder))
    (folder / "said").write_text(said)
    return folder


def test_texts_of_each_kind_stand_in_the_shards(built: Path) -> None:
    texts = members(release_of(built / "work"))
    assert len(texts) == NUM
    for n in range(NUM):
        members_of = texts[str(100 + n)]
        own = f"a plant in the garden, number {n}"
        joined = [f"a model saw leaf {n} there"] * (n < 9) + [f"and a stem {n} as well"] * (n < 9 and n % 2 == 0)
        if n % 3:
            expected = {"txt": own}
            first = 2
        else:
            expected, first = {"txt": joined[0] if joined else "Quercus robur."}, 2
            joined = joined[1:]
        expected |= {f"caption_{first + place}.txt": text for place, text in enumerate(joined)}
        expected |= {"trait.txt": f"it has {n + 2} petals of blue colour"}
        assert members_of == dict.fromkeys(("caption_2.txt", "caption_3.txt"), "") | expected, n


def lives(work: Path, key: str) -> list[dict[str, Any]]:
    with open_reader(str(work)) as connection:
        query = "SELECT j.* FROM joined_texts j JOIN candidates USING (sample_id) WHERE record_key = $1 ORDER BY ALL"
        return rows_of(connection, query, [key])


def test_each_text_is_judged_and_a_dropped_one_leaves_the_picture(built: Path) -> None:
    """Picture 1 has three traits in the table: one is a file name, one stands there twice."""
    texts = {row["row_number"]: row for row in lives(built / "work", "101") if row["kind"] == "trait"}
    assert {number: (row["name"], row["reason"]) for number, row in texts.items()} == {
        1: ("trait", None),
        12: (None, "looks_like_a_filename"),
        13: (None, "same_text"),
    }
    said = done("explain", built / "work", "101")
    assert "text      trait: 'it has 3 petals of blue colour'" in said
    assert "row 2 of the table of captions 2 of ours" in said
    assert "row 13 of the table of captions 2 of ours; DROPPED: looks_like_a_filename" in said
    assert "select    kept" in said


def test_the_share_without_a_partner_is_said_everywhere(built: Path) -> None:
    words = "captions 1 of ours (caption): 3 of 12 pictures (25.0%) have no partner among 17 rows"
    assert words in (built / "said").read_text()
    assert "rows left out: 1 without key, 1 without text" in (built / "said").read_text()
    release = release_of(built / "work")
    record = json.loads((release / "release.json").read_text())
    assert [row["num_joined"] for row in record["counts"]["stages"]["ingest"]["captions"]] == [9, 12]
    page = (release / "report.html").read_text()
    assert "Joined texts, caption: 3 of 12 pictures of ours have no partner among 17 rows" in page
    assert "`trait.txt`" in (release / "README.md").read_text()
    assert str(built) not in json.dumps(record), "a release holds no path"


def test_a_kind_can_be_the_text_and_a_wrong_one_is_named(built: Path, tmp_path: Path) -> None:
    folder = lend(built, tmp_path / "lent")
    text = {"choices": [{"any_of": ["trait"]}], "members": ["sci"]}
    done("build", write_config(folder, caption={"text": text}))
    texts = members(release_of(folder / "work"))
    assert {content["txt"] for content in texts.values()} == {
        f"it has {n + 2} petals of blue colour" for n in range(NUM)
    }
    assert {row["text_type"] for row in pq.read_table(release_of(folder / "work") / "samples.parquet").to_pylist()} == {
        "trait"
    }
    assert "its text (trait): 'it has 3 petals of blue colour'" in done("explain", folder / "work", "101")
    assert "licence and text of each equal the catalogue" in done("verify", folder / "work", "--deep")
    (table,) = (folder / "work/tables/caption").glob("joined_texts-*.parquet")
    table.rename(tmp_path / "away")
    said = done("verify", release_of(folder / "work"), "--deep")
    assert "not compared with a catalogue: the joined_texts that it was packed from are no longer" in said
    (tmp_path / "away").rename(table)
    (release_of(folder / "work") / "samples.parquet").unlink()
    assert "select    kept" in done("explain", folder / "work", "101")
    wrong = {"choices": [{"any_of": ["traits"]}]}
    said = refused("build", write_config(folder, caption={"text": wrong}))
    assert "no text is called 'traits'; there are caption, scientific, " in said


def test_a_changed_table_redoes_the_join_alone_and_diff_names_the_texts(built: Path, tmp_path: Path) -> None:
    folder = lend(built, tmp_path / "lent")
    config = write_config(folder)
    work = folder / "work"
    done("build", config)  # the same tables in another place
    first = release_of(work)
    assert first.name == release_of(built / "work").name
    parts = "SELECT stage, step, count(*) AS num FROM parts GROUP BY ALL"
    with open_reader(str(work)) as connection:
        before = {(row["stage"], row["step"]): row["num"] for row in rows_of(connection, parts)}
    rows = [json.loads(line) for line in (folder / "traits.jsonl").read_text().splitlines()]
    rows[3]["words"] = "it has thorns"
    (folder / "traits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = done("build", config)
    assert "fetch: reused" in said
    with open_reader(str(work)) as connection:
        after = {(row["stage"], row["step"]): row["num"] for row in rows_of(connection, parts)}
    more = {place: num - before[place] for place, num in after.items() if num != before[place]}
    assert more[("ingest", "join")] == 1
    assert more[("caption", "measure")] == 1
    assert not {place for place in more if place[0] in ("fetch", "dedup")} | {("ingest", "read")} & more.keys()
    second = release_of(work)
    assert members(second)["103"]["trait.txt"] == "it has thorns"
    assert "other joined texts: trait of 1 images" in done("diff", first, second)
    changed = json.loads(done("diff", first, second, "--json"))
    assert changed["texts"] == [{"name": "trait", "images": 1}]
    assert sum(row["text"] for row in changed["domains"]) == 1
    assert "other joined texts" not in done("diff", second, second)


def test_repair_names_a_table_that_is_away_and_mends_with_it(built: Path, tmp_path: Path) -> None:
    folder = lend(built, tmp_path / "lent")
    done("build", write_config(folder))
    with open_reader(str(folder / "work")) as connection:
        (joined,) = rows_of(connection, "SELECT path FROM files WHERE table_name = 'joined' ORDER BY path LIMIT 1")
    Path(folder, "work", joined["path"]).unlink()
    (folder / "captions.parquet").rename(folder / "away.parquet")
    ended = run_here("repair", folder / "work")
    assert ended.returncode == 1
    assert f"sources.ours.captions[1]: {folder}/captions.parquet: no such table" in ended.stdout
    (folder / "away.parquet").rename(folder / "captions.parquet")
    done("repair", folder / "work")
    assert "as recorded" in done("verify", folder / "work", "--deep")


KILLED = """
import os, signal, sys
from pipeline.cli import main
from pipeline.stages.ingest import stage as ingest
join = ingest.join_captions

def join_once(*inputs):
    made = join(*inputs)
    if inputs[5].kind == "trait":
        os.kill(os.getpid(), signal.SIGKILL)
    return made

ingest.join_captions = join_once
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_workers_and_a_kill_amid_the_join_change_no_byte(built: Path, tmp_path: Path) -> None:
    """The same folder of pictures, killed in its second join; then in two processes, in several buckets."""
    folder = tmp_path / "again"
    write_pictures(folder)
    write_tables(folder)
    killed = subprocess.run([sys.executable, "-c", KILLED, "build", str(write_config(folder))], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Catalog.open(str(folder / "work")) as catalog:
        (first,) = [part.key for part in catalog.parts_like("ingest", "join")]
    run = {"executor": "processes", "num_workers": 2, "memory_gb": 0.000008}
    done("build", write_config(folder, run=run))
    with Catalog.open(str(folder / "work")) as catalog:
        joins = [part.key for part in catalog.parts_like("ingest", "join")]
    assert len(joins) == 2
    assert first in joins
    assert not list(folder.glob("work/**/staged-*")), "nothing is left of the join that was killed"
    ours, theirs = release_of(folder / "work"), release_of(built / "work")
    assert ours.name == theirs.name
    for path in sorted(theirs.rglob("*.*")):
        assert (ours / path.relative_to(theirs)).read_bytes() == path.read_bytes(), path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"on": "extra.uid"}, "the source keeps no column 'uid' (it keeps uuid)"),
        ({"on": "uuid"}, "a source has no 'uuid'; write record_key, url, or extra.NAME"),
        ({"text": "word"}, "has no column 'word' (did you mean 'words'?); it has uuid, words"),
        ({"kind": "Trait 1"}, "'Trait 1' is no kind of text"),
        ({"join": "traits.parquet"}, "no such table"),
        (
            {"on": {"record_key": "uuid"}},
            "none of 12 pictures has a text: record_key of the source ('100', '101', '102') and uuid",
        ),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_pictures(tmp_path)
    write_tables(tmp_path)
    ours = source(tmp_path)
    ours["captions"] = [ours["captions"][1] | change]
    said = refused("build", write_small_config(tmp_path, ours), "--to", "ingest")
    assert words in said
    assert len(said.strip().splitlines()) <= 2, said


def test_preview_judges_joined_texts_as_a_build_does(tmp_path: Path) -> None:
    """Before the build and after it; a trait that stands on two rows is one too many here."""
    write_pictures(tmp_path)
    write_tables(tmp_path)
    text = {"choices": [{"any_of": ["trait"]}]}
    config = write_config(tmp_path, caption={"rules": [{"preset": "plant", "max_repeats": 1}], "text": text})
    before = json.loads(done("preview", config, "--json"))
    done("build", config, "--to", "caption")
    after = json.loads(done("preview", config, "--json"))
    with open_reader(str(tmp_path / "work")) as connection:
        counted = "SELECT kind, reason, count(*) AS num FROM joined_texts GROUP BY ALL"
        texts = {(row["kind"], row["reason"]): row["num"] for row in rows_of(connection, counted)}
        ((kept,),) = connection.execute("SELECT count(*) FROM caption_verdicts WHERE keep").fetchall()
    assert texts[("trait", "max_repeats")] == 2
    for report in (before, after):
        assert {(row["kind"], row["reason"]): row["num"] for row in report["texts"]} == texts
        assert report["kept"]["num"] == kept
        assert {example["text_type"] for example in report["kept"]["examples"]} <= {"trait", "caption", "sentence"}
        assert "trait" in {example["text_type"] for example in report["kept"]["examples"]}
        assert "3 of 12 pictures (25.0%) have no partner" in report["joins"][0]
    assert re.search(r"joined trait: max_repeats +2 ", done("preview", config))


def test_a_key_that_tells_no_pictures_apart_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    ours = source(tmp_path)
    with (tmp_path / "many.tsv").open("w") as stream:
        stream.writelines(["uuid\twords\n", *(f"u-1\tit has {n} leaves\n" for n in range(101))])
    ours["captions"] = [entry(tmp_path / "many.tsv", "extra.uuid", "words", "trait")]
    said = refused("build", write_small_config(tmp_path, ours), "--to", "ingest")
    assert "101 rows of" in said
    assert "have the uuid 'u-1', and a picture may have 100 texts" in said
    said = done("estimate", write_small_config(tmp_path, source(tmp_path) | {"captions": []}))
    assert "captions would be dropped" not in said


def test_addresses_with_secrets_are_joined_without_them(tmp_path: Path) -> None:
    """The table and the source both say https://HOST/leaf.jpg?token=...; neither token is written anywhere."""
    rows = {"url": [f"https://a.example/{n}.jpg?token=secret{n}" for n in range(3)], "caption": ["", "a leaf", ""]}
    pq.write_table(pa.table(rows), tmp_path / "list.parquet")
    texts = {"url": [f" {url} " for url in rows["url"]], "caption": [f"a long caption of leaf {n}" for n in range(3)]}
    pq.write_table(pa.table(texts), tmp_path / "texts.parquet")
    listed = {
        "name": "list", "domain": "plant", "table": str(tmp_path / "list.parquet"),
        "columns": {"url": "url", "caption": "caption"}, "defaults": {"licence": "CC0-1.0"},
        "captions": [entry(tmp_path / "texts.parquet", "url", "caption", "caption")],
    }  # fmt: skip
    config = write_small_config(tmp_path, listed, fetch={"network": {"contact": "mailto:a@b.example"}})
    said = done("build", config, "--to", "ingest")
    assert "0 of 3 pictures" in said
    for path in (tmp_path / "work/tables").rglob("*.parquet"):
        if not path.stem.endswith("-secrets"):
            assert "secret1" not in str(pq.read_table(path).to_pylist())
