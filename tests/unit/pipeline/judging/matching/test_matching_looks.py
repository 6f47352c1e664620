"""Which near hashes are pairs of pictures, as they are or mirrored, and which looks are near those that are asked."""

from __future__ import annotations

from typing import Any

import duckdb
import pyarrow as pa
from hashed_pairs import look_of

from manifests.contract.copies import MIDDLE_RADIUS
from pipeline.judging.matching.looks import distinct_hashes, find_near_looks, make_pairs, view_shown

A, B, C = 0x0F0F_3C3C_5A5A_9966, 0x1234_5678_9ABC_DEF0, 0xFEDC_BA98_7654_3210
OTHER = (1 << (MIDDLE_RADIUS + 1)) - 1  # a middle that is not near 0
NAMES = ("phash", "phash_mirrored", "middle_hash", "middle_mirrored")


def show(sql: Any, pictures: list[tuple[int, ...]]) -> None:
    """Facts of pictures: hashes by NAMES."""
    rows = [dict(zip(NAMES, [*hashes, *[0] * (4 - len(hashes))], strict=True)) for hashes in pictures]
    facts = [
        row | {"outcome": "ok", "pixels_sha256": f"picture {number}", "pixel_std": 50.0}
        for number, row in enumerate(rows)
    ]
    types = {name: pa.uint64() for name in NAMES}
    schema = pa.schema(
        [*types.items(), ("outcome", pa.string()), ("pixels_sha256", pa.string()), ("pixel_std", pa.float32())]
    )
    sql.register("facts", pa.Table.from_pylist(facts, schema))
    view_shown(sql)


def pairs_of(pictures: list[tuple[int, ...]], found: list[tuple[int, int]]) -> set[tuple[int, int, int, bool]]:
    """Pairs within 4 bits, the lower pHash first; `found` are pairs of near hashes."""
    with duckdb.connect() as sql:
        show(sql, pictures)
        shared = distinct_hashes(sql)[1].tolist()
        ends = [sorted(pair) for pair in found] + [[hash_, hash_] for hash_ in shared]
        left, right = (pa.array([pair[at] for pair in ends], pa.uint64()) for at in (0, 1))
        apart = pa.array([(one ^ other).bit_count() for one, other in ends], pa.uint8())
        sql.register("near", pa.table({"hash_a": left, "hash_b": right, "distance": apart}))
        make_pairs(sql)
        rows = sql.execute("SELECT look_a < look_b, phash_a, phash_b, distance, mirrored FROM pairs").fetchall()
    assert all(row[0] for row in rows)
    assert len(set(rows)) == len(rows)
    return {(*sorted(row[1:3]), *row[3:]) for row in rows}


def test_an_exact_mirror_image_has_distance_0() -> None:
    assert pairs_of([(A, B), (B, A)], []) == {(A, B, 0, True)}


def test_the_nearer_of_two_hashes_counts() -> None:
    assert pairs_of([(A, B), (B ^ 1, A ^ 7)], [(B, B ^ 1), (A, A ^ 7)]) == {(A, B ^ 1, 1, True)}


def test_a_pair_that_is_near_as_it_is_is_not_mirrored() -> None:
    assert pairs_of([(A, A ^ 2), (A ^ 7, A)], [(A, A ^ 7), (A, A ^ 2)]) == {(A ^ 7, A, 3, False)}


def test_two_mirror_images_are_no_pair() -> None:
    assert pairs_of([(A, B), (C, B ^ 1)], [(B, B ^ 1)]) == set()


def test_a_symmetric_picture_is_no_pair_with_itself() -> None:
    assert pairs_of([(A, A), (A, A ^ 1)], [(A, A ^ 1)]) == set()


def test_a_hash_with_hardly_a_bit_is_nobodys_mirror_image() -> None:
    assert pairs_of([(A, 7), (7, A)], []) == set()
    assert pairs_of([(A, 0x1F), (0x1F, A)], []) == {(0x1F, A, 0, True)}


def test_sheets_of_one_layout_are_no_pair() -> None:
    assert pairs_of([(A, B, 0, 0), (A ^ 1, C, OTHER, 0)], [(A, A ^ 1)]) == set()
    assert pairs_of([(A, B, 0, 0), (A ^ 1, C, OTHER ^ 1, 0)], [(A, A ^ 1)]) == {(A, A ^ 1, 1, False)}
    assert pairs_of([(A, B, OTHER, 0), (B, C, 0, OTHER)], []) == {(A, B, 0, True)}, "of the mirror image its own middle"
    assert pairs_of([(A, B, 0, OTHER), (B, C, 0, 0)], []) == set()


def test_pictures_of_one_phash_are_pairs_where_their_middles_are_near() -> None:
    assert pairs_of([(A, B, 0, 0), (A, B, 1, 0), (A, C, OTHER << 8, 0)], []) == {(A, A, 0, False)}


def test_what_is_asked_is_found_by_both_hashes() -> None:
    with duckdb.connect() as sql:
        show(sql, [(A, B, 0, 0), (A ^ 1, C, OTHER, 0), (7, 7, 0, 0)])
        asked = {"hash": pa.array([A, A ^ 3, A], pa.uint64()), "middle": pa.array([0, None, OTHER ^ 1], pa.uint64())}
        sql.register("asked", pa.table({**asked, "name": ["a", "b", "c"]}))
        find_near_looks(sql, 4)
        rows = set(sql.execute("SELECT look, name, distance FROM near_looks").fetchall())
    first, second = look_of(A), look_of(A ^ 1, OTHER)
    assert rows == {(first, "a", 0), (first, "b", 2), (second, "b", 1), (first, "c", 0), (second, "c", 1)}
