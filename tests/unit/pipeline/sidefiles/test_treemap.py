from __future__ import annotations

import pytest

from pipeline.sidefiles.treemap import WHOLE, Tile, cut_into_tiles


@pytest.mark.parametrize("sizes", [[1.0], [6.0, 6.0, 4.0, 3.0, 2.0, 2.0, 1.0], [1000.0, *[1.0] * 50], [5.0, 1.0, 90.0]])
@pytest.mark.parametrize("aspect", [0.5, 1.0, 3.0])
def test_tiles_have_the_areas_and_cover_the_whole(sizes: list[float], aspect: float) -> None:
    tiles = cut_into_tiles(sizes, aspect=aspect)
    for size, tile in zip(sizes, tiles, strict=True):
        assert tile.width * tile.height == pytest.approx(10_000 * size / sum(sizes))
        assert tile.x >= -1e-9
        assert tile.y >= -1e-9
        assert tile.x + tile.width <= 100 + 1e-6
        assert tile.y + tile.height <= 100 + 1e-6
    for at, one in enumerate(tiles):
        for other in tiles[:at]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            up = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert min(across, up) < 1e-6, "no two lie over each other"


def test_the_example_of_the_paper_is_cut_as_there() -> None:
    tiles = cut_into_tiles([6, 6, 4, 3, 2, 2, 1], Tile(0, 0, 6, 4))
    assert [(round(tile.width, 2), round(tile.height, 2)) for tile in tiles[:4]] == [
        (3.0, 2.0), (3.0, 2.0), (1.71, 2.33), (1.29, 2.33),
    ]  # fmt: skip


def test_nothing_is_cut_into_nothing() -> None:
    assert cut_into_tiles([]) == []
    assert cut_into_tiles([3]) == [WHOLE]
