"""Which near hashes are pairs of pictures, as they are or mirrored."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from pipeline.matching.mirrors import HASHES, make_pairs

A, B, C = 0x0F0F_3C3C_5A5A_9966, 0x1234_5678_9ABC_DEF0, 0xFEDC_BA98_7654_3210


def pairs_of(
    pictures: list[tuple[int, int | None]], found: list[tuple[int, int]], mirrors: dict[int, int] | None = None
) -> set[tuple[int, int, int, bool]]:
    """Pairs within 4 bits of pictures (hash and that of the mirror image); `mirrors` by the number of the picture."""
    of_hash = pa.array([one for one, _ in pictures], pa.uint64())
    of_mirror = pa.array([other for _, other in pictures], pa.uint64())
    names = [f"picture {number}" for number in range(len(pictures))]
    columns = {"outcome": ["ok"] * len(pictures), "pixels_sha256": names}
    measured = mirrors or {}
    with duckdb.connect() as sql:
        sql.register("facts", pa.table({**columns, "phash": of_hash, "phash_mirrored": of_mirror}))
        of_older = {"pixels_sha256": pa.array([names[number] for number in measured], pa.string())}
        sql.register("mirrors", pa.table({**of_older, "phash_mirrored": pa.array(measured.values(), pa.uint64())}))
        left, right = (pa.array([sorted(pair)[at] for pair in found], pa.uint64()) for at in (0, 1))
        apart = pa.array([(one ^ other).bit_count() for one, other in found], pa.uint8())
        sql.register("near", pa.table({"hash_a": left, "hash_b": right, "distance": apart}))
        sql.execute(HASHES)
        make_pairs(sql)
        return set(sql.execute("SELECT phash_a, phash_b, distance, mirrored FROM pairs").fetchall())


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


def test_pictures_of_earlier_versions_are_measured_elsewhere() -> None:
    assert pairs_of([(A, None), (B, C)], [], {0: B}) == {(A, B, 0, True)}
