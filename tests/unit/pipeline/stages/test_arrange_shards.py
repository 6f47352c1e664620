"""Where shards end: by count, by bytes, by both; and which groups a release has."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from manifests.contract.tables import TAXON_RANKS
from pipeline.stages.pack import record
from pipeline.stages.pack.arrange import ARRANGED, ShardGroup, cut_shards, estimate_bytes, shard_groups
from pipeline.store.tar import BLOCK_BYTES


def test_groups_by_kind() -> None:
    assert shard_groups("mixed", {"train": 5, "heldout": 2}, ["plant", "general"]) == [
        ShardGroup("train"),
        ShardGroup("heldout"),
    ]
    assert shard_groups("stratified", {"heldout": 2, "train": 5}, ["plant", "general"]) == [
        ShardGroup("train", "general"),
        ShardGroup("train", "plant"),
        ShardGroup("heldout"),
    ]


def test_names_of_shards() -> None:
    assert record.shard_name("demo", "train", 3) == "demo-000003.tar"
    assert record.shard_name("demo", "train", 3, "plant") == "demo-plant-000003.tar"
    assert record.shard_name("demo", "heldout", 0) == "demo-heldout-000000.tar"


def test_a_shard_ends_by_count_or_by_bytes() -> None:
    sizes = np.array([30, 30, 50, 200, 10, 10])
    assert cut_shards(sizes, 4, None) == [4, 2]
    assert cut_shards(sizes, None, 100) == [2, 1, 1, 2]  # the one of 200 bytes stands alone
    assert cut_shards(sizes, 1, 100) == [1] * 6
    assert cut_shards(sizes, None, 110) == [3, 1, 2]
    assert cut_shards(sizes[:0], 4, 100) == []


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 20) | st.none(), st.integers(1, 700) | st.none())
def test_shards_hold_all_and_pass_no_limit(sizes: list[int], max_samples: int | None, max_bytes: int | None) -> None:
    counts = cut_shards(np.array(sizes, np.int64), max_samples, max_bytes)
    assert sum(counts) == len(sizes)
    start = 0
    for num in counts:
        shard, following = sizes[start : start + num], sizes[start + num : start + num + 1]
        assert max_samples is None or num <= max_samples
        assert max_bytes is None or sum(shard) <= max_bytes or num == 1
        full = num == max_samples or (max_bytes is not None and following and sum(shard) + following[0] > max_bytes)
        assert full or not following
        start += num


def row(**values: Any) -> dict[str, Any]:
    return {
        **dict.fromkeys(ARRANGED.names),
        "copy": 0, "sample_id": "5" * 32, "domain": "plant", "source": "gbif", "record_key": "http://a.example/1",
        "url": "http://a.example/pictures/1.jpg", "txt": "", "texts": [], "length": 1, "phash": 7,
        "image_id": "a" * 64, "width_px": 900, "height_px": 700, "stored_width_px": 300, "stored_height_px": 200,
        **values,
    }  # fmt: skip


def test_the_estimate_is_the_size_within_a_block_or_two() -> None:
    rows = [
        row(length=1),
        row(length=512, txt="a" * 513, caption="a" * 513),
        row(length=24_001, txt="Quercus robur – eine Eiche", caption="x", extra='{"k": "v"}', creator="A. Name"),
        row(length=9, texts=[("sci", "y" * 600)], taxon_genus="Quercus", taxon_species="robur"),
    ]
    table = pa.Table.from_pylist([{**each, "txt_type": "caption"} for each in rows], schema=ARRANGED)
    estimates = estimate_bytes(table).tolist()
    jsons = record.sample_jsons(table, ["5" * 32] * len(rows))
    for given_row, estimate, described in zip(rows, estimates, jsons, strict=True):
        lengths = [given_row["length"], len(given_row["txt"].encode()), len(described)]
        lengths += [len(text.encode()) for _, text in given_row["texts"]]
        blocks = sum(-(-length // BLOCK_BYTES) for length in lengths) + 3  # headers of jpg, txt, json
        assert abs(estimate - BLOCK_BYTES * blocks) <= 1024


def encoded(values: dict[str, Any], key: str) -> bytes:
    """The json member of one sample as json's own encoder writes it."""
    named = ("sample_id", "domain", "source", "record_key", "url", "caption", "creator", "rights_holder",
             "reference_url", "extra", "licence_id", "taxon_scientific_name", "taxon_vernacular_name",
             "taxon_derived", "marks", *(f"taxon_{rank}" for rank in TAXON_RANKS))  # fmt: skip
    told = {
        **{name: values[name] or "" for name in named},
        "key": key,
        "uid": values["sample_id"],
        "text_type": values["txt_type"] or "",
        "sha256": values["image_id"],
        "width": values["stored_width_px"],
        "height": values["stored_height_px"],
        "original_width": values["width_px"],
        "original_height": values["height_px"],
        "phash": f"{values['phash']:016x}",
    }
    return json.dumps(told, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


ANY_TEXT = (
    st.none() | st.text(max_size=20) | st.sampled_from(['"', "\\", "a\nb", "\x00\x1f\x7f", "{}", "\u2028 Rösli 花"])
)


@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT, ANY_TEXT, st.integers(0, 2**64 - 1)), min_size=1, max_size=8))
def test_json_members_are_what_an_encoder_writes(
    given_rows: list[tuple[str | None, str | None, str | None, int]],
) -> None:
    rows = [
        row(caption=one, extra=two, taxon_genus=three, licence_id=three, phash=phash, txt_type="caption")
        for one, two, three, phash in given_rows
    ]
    keys = [f"key_{number}" for number in range(len(rows))]
    told = record.sample_jsons(pa.Table.from_pylist(rows, schema=ARRANGED), keys)
    assert told == [encoded(each, key) for each, key in zip(rows, keys, strict=True)]
