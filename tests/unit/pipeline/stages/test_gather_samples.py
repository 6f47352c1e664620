"""What gather joins: which columns and texts of samples, in which order, and where a bucket does not fit the memory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_groups import DUCKDB_ROW_GROUP, groups
from running import do_part

from manifests.contract import tables
from manifests.errors import IntegrityError
from pipeline.engine.work import PartResult
from pipeline.judging.captions.settings import TextChoice, TextSettings
from pipeline.stages.pack.arrange import ARRANGED, PlaceRange, ShardGroup
from pipeline.stages.pack.stage import STAGE
from pipeline.store.files import Files

SCI, EXTRA = ("sci", "Acer"), ("extra_caption_1", "more")


def write_rows(folder: Path, name: str, schema: pa.Schema, **columns: list[Any]) -> Files:
    """A table with these columns, the others null."""
    (num_rows,) = {len(column) for column in columns.values()}
    filled = {field.name: columns.get(field.name, pa.nulls(num_rows, field.type)) for field in schema}
    pq.write_table(pa.table(filled, schema=schema), folder / f"{name}.parquet")
    return Files((str(folder / f"{name}.parquet"),))


def to_gather(
    folder: Path, ranks: list[int], text: list[str], texts: list[list[tuple[str, str]]], settings: TextSettings
) -> dict[str, Any]:
    """Samples with these ranks and texts, and an extra caption for the last one."""
    num = len(ranks)
    ids = [f"{number:032x}" for number in range(num)]
    origin = ["caption" if each else "taxon" for each in text]
    return {
        "draws": write_rows(
            folder, "draws", tables.DRAWS, sample_id=ids, copy=[0] * num, split=["train"] * num, rank=ranks
        ),
        "candidates": write_rows(folder, "candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * num),
        "facts": write_rows(folder, "facts", tables.FACTS, sample_id=ids),
        "captions": write_rows(
            folder, "captions", tables.CAPTIONS, sample_id=ids, text=text, texts=texts, text_source=origin
        ),
        "extra_captions": write_rows(
            folder, "extra", tables.EXTRA_CAPTIONS, sample_id=ids[-1:], place=[1], text=["more"], from_sample_id=["f"]
        ),
        "texts": settings,
        "by_bytes": False,
    }


def arrange_all(folder: Path, gathered: str, max_samples: int | None, max_bytes: int | None) -> PartResult:
    """All that was gathered, in shards of the training split."""
    of_group: dict[str, Any] = {"group": ShardGroup("train"), "places": PlaceRange(), "members": ()}
    limits = {"max_samples": max_samples, "max_bytes": max_bytes}
    return do_part(STAGE, "arrange", folder, gathered=Files((gathered,)), **of_group, **limits)


@pytest.mark.parametrize(
    ("settings", "txt", "texts"),
    [
        (TextSettings(), ["a leaf", "S 1", "a tree"], [[], [], [EXTRA]]),
        (TextSettings(members=("sci",)), ["a leaf", "S 1", "a tree"], [[SCI], [], [SCI, EXTRA]]),
        (
            TextSettings(choices=(TextChoice(any_of=("sci",)),)),
            ["Acer", "S 1", "Acer"],
            [[], [], [EXTRA]],
        ),
    ],
)
def test_only_texts_that_a_shard_needs_are_gathered(
    tmp_path: Path, settings: TextSettings, txt: list[str], texts: list[list[tuple[str, str]]]
) -> None:
    """The second sample has no caption, the third is the only one with a caption of a dropped duplicate."""
    known = [[("sentence", "S 0"), SCI], [("sentence", "S 1"), ("com", "maple")], [SCI]]
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "", "a tree"], known, settings)
    (gathered,) = do_part(STAGE, "gather", tmp_path, **inputs).files
    rows = pq.read_table(gathered.temp).sort_by("sample_id")
    assert rows["txt"].to_pylist() == txt
    assert rows["texts"].to_pylist() == texts


def test_ranks_that_the_source_left_empty_are_filled_and_named(tmp_path: Path) -> None:
    inputs = to_gather(tmp_path, [0, 1, 2], ["a leaf", "a root", "a tree"], [[]] * 3, TextSettings())
    ids = [f"{number:032x}" for number in range(3)]
    ranks = [("genus", "Acer"), ("species", "Acer rubrum")]
    stated = write_rows(
        tmp_path, "candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * 3, taxon_genus=["Acer", None, "Acer"]
    )
    captions = write_rows(
        tmp_path, "captions", tables.CAPTIONS, sample_id=ids, text=["t"] * 3, text_source=["caption"] * 3,
        texts=[[]] * 3, taxon_ranks=[ranks, ranks, ranks], taxon_derived=["species", "genus species", None],
    )  # fmt: skip
    inputs |= {"candidates": stated, "captions": captions, "extra_captions": Files()}
    (gathered,) = do_part(STAGE, "gather", tmp_path, **inputs).files
    rows = pq.read_table(gathered.temp).sort_by("sample_id").to_pylist()
    told = [(row["taxon_genus"], row["taxon_species"], row["taxon_derived"]) for row in rows]
    assert told == [("Acer", "Acer rubrum", "species"), ("Acer", "Acer rubrum", "genus species"), ("Acer", None, None)]


@pytest.mark.parametrize("by_bytes", [False, True])
def test_columns_without_a_value_are_left_out_on_the_way_and_come_back(tmp_path: Path, by_bytes: bool) -> None:
    """No sample has a creator or a text that becomes a member, and all have a caption; one alone has a licence."""
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    ids = [f"{number:032x}" for number in range(3)]
    licences = write_rows(
        tmp_path, "candidates", tables.CANDIDATES, sample_id=ids, source=["s"] * 3, licence=[None, "CC0", None]
    )
    sizes = write_rows(tmp_path, "facts", tables.FACTS, sample_id=ids, length=[1000, 2000, 3000])
    inputs |= {"candidates": licences, "facts": sizes, "extra_captions": Files(), "by_bytes": by_bytes}
    (gathered,) = do_part(STAGE, "gather", tmp_path, **inputs).files
    there = set(pq.read_schema(gathered.temp).names)
    assert {"creator", "texts", "image_id", "language"}.isdisjoint(there)
    assert {"sample_id", "licence", "length", "txt", "txt_type", "tar_bytes"} <= there
    limits = (None, 12_000) if by_bytes else (2, None)
    (file,) = arrange_all(tmp_path, gathered.temp, *limits).files
    assert groups(file.temp) == [2, 1]
    rows = pq.read_table(file.temp)
    assert rows.schema.equals(ARRANGED)
    assert rows["txt"].to_pylist() == ["a root", "a tree", "a leaf"]
    assert rows["licence"].to_pylist() == ["CC0", None, None]
    assert rows["creator"].null_count == rows["texts"].null_count == 3


def drawn_samples(folder: Path, num: int) -> dict[str, Any]:
    """Samples with hashes for ids, a third of them drawn twice, in an order of their own; and some that are not."""
    ids = sorted(hashlib.md5(str(number).encode()).hexdigest() for number in range(num))
    draws = [(sample_id, copy) for number, sample_id in enumerate(ids[5:]) for copy in range(1 + (number % 3 == 0))]
    ranks = np.random.default_rng(1).permutation(len(draws)).tolist()
    splits = ["train" if number % 50 else "heldout" for number in range(len(draws))]
    keys, copies = zip(*draws, strict=True)
    told = {"source": ["s"] * num, "record_key": [f"key of {sample_id}" for sample_id in ids]}
    return {
        "draws": write_rows(folder, "draws", tables.DRAWS, sample_id=keys, copy=copies, split=splits, rank=ranks),
        "candidates": write_rows(folder, "candidates", tables.CANDIDATES, sample_id=ids, **told),
        "facts": write_rows(folder, "facts", tables.FACTS, sample_id=ids, image_id=[each[::-1] for each in ids]),
        "captions": write_rows(
            folder,
            "captions",
            tables.CAPTIONS,
            sample_id=ids,
            text=[f"text of {each}" * 8 for each in ids],
            text_source=["caption"] * num,
        ),
        "texts": TextSettings(),
        "by_bytes": False,
    }


@pytest.mark.parametrize(("memory_gb", "digits"), [(0.0033, 1), (0.0002, 2)])
@pytest.mark.slow
def test_a_bucket_that_does_not_fit_the_memory_is_gathered_in_quarters(
    tmp_path: Path, memory_gb: float, digits: int
) -> None:
    """The first memory would hold so many short samples, and is too small for these; the second is for a few only."""
    inputs = drawn_samples(tmp_path, 3_000)
    (whole,) = do_part(STAGE, "gather", tmp_path, stem="whole", **inputs).files
    (cut,) = do_part(STAGE, "gather", tmp_path, memory_gb, "cut", **inputs).files
    first, second = pq.read_table(whole.temp), pq.read_table(cut.temp)
    ids = first["sample_id"].to_pylist()
    assert first["record_key"].to_pylist() == [f"key of {each}" for each in ids]
    assert first["image_id"].to_pylist() == [each[::-1] for each in ids]
    assert first["txt"].to_pylist() == [f"text of {each}" * 8 for each in ids]
    order = [("split", "ascending"), ("rank", "ascending")]
    assert first.equals(first.sort_by(order))
    assert second.sort_by(order).equals(first)
    quarters = [int(each[:digits], 16) // 4 for each in second["sample_id"].to_pylist()]
    assert quarters == sorted(quarters)  # they follow each other
    for number in set(quarters):
        rows = second.filter(pa.array([each == number for each in quarters]))
        assert rows.equals(rows.sort_by(order))


def test_samples_that_no_quarter_parts_are_gathered_all_the_same(tmp_path: Path) -> None:
    """All of these ids begin with eight zeros, and a bucket has no more digits."""
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    (file,) = do_part(STAGE, "gather", tmp_path, 1e-9, **inputs).files
    assert pq.read_table(file.temp)["txt"].to_pylist() == ["a root", "a tree", "a leaf"]


@pytest.mark.parametrize("table", ["candidates", "facts", "captions"])
def test_a_drawn_sample_that_a_table_lacks_is_an_error(tmp_path: Path, table: str) -> None:
    inputs = to_gather(tmp_path, [2, 0, 1], ["a leaf", "a root", "a tree"], [[SCI]] * 3, TextSettings())
    (path,) = inputs[table].paths
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(IntegrityError, match=f"3 samples of a part are drawn, but {table} has 2 of them"):
        do_part(STAGE, "gather", tmp_path, **inputs)


def test_every_sample_of_a_large_split_is_in_the_row_group_of_its_shard(tmp_path: Path) -> None:
    """Above 122,880 samples the batches of a sorted query end where DuckDB likes, not where a shard does."""
    num_rows, size = DUCKDB_ROW_GROUP + 3_000, 1_000
    ranks = [(number * 7919) % num_rows for number in range(num_rows)]
    assert len(set(ranks)) == num_rows
    inputs = to_gather(tmp_path, ranks, [""] * num_rows, [[]] * num_rows, TextSettings())
    (gathered,) = do_part(STAGE, "gather", tmp_path, **inputs).files
    (file,) = arrange_all(tmp_path, gathered.temp, size, None).files
    assert groups(file.temp) == [size] * 125 + [num_rows - 125 * size]
    assert pq.read_table(file.temp, columns=["rank"])["rank"].to_pylist() == list(range(num_rows))
    assert set(pq.read_table(file.temp, columns=["txt"])["txt"].to_pylist()) == {""}  # no caption: an empty text
