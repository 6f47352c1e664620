"""shrink: one definition in whole numbers, and the same bytes from every instruction set of the library."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cykooz_resizer
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.fetching.pictures import shrink as room
from pipeline.fetching.pictures.shrink import shrink, shrink_array

EXTENSIONS = [name for name in ("none", "sse4_1", "avx2", "neon") if hasattr(cykooz_resizer.CpuExtensions, name)]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0, *, extreme: bool = False) -> Image.Image:
    """Noise is the hardest picture: its edges overshoot, and every rounding shows."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray((values >> 7) * 255 if extreme else values).convert(mode)


def by_definition(image: Image.Image, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    with monkeypatch.context() as patch:
        patch.setattr(room, "_FAST", False)
        return shrink(image, size)


@given(
    before=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    share=st.tuples(st.floats(0.02, 1.0), st.floats(0.02, 1.0)),
    mode=st.sampled_from(["RGB", "L"]),
    extreme=st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_library_gives_the_bytes_of_the_definition(before, share, mode, extreme, monkeypatch):
    image = noise(*before, mode, extreme=extreme)
    size = tuple(max(1, round(side * part)) for side, part in zip(before, share, strict=True))
    assert shrink(image, size).tobytes() == by_definition(image, size, monkeypatch).tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(348, 261), (256, 192), (211, 40), (64, 48), (1, 1)])
def test_same_bytes_with_every_instruction_set(mode, size, monkeypatch):
    image = noise(348, 261, mode, extreme=True)
    found = set()
    for name in EXTENSIONS:
        resizer = cykooz_resizer.Resizer()
        resizer.cpu_extensions = cykooz_resizer.CpuExtensions[name]
        if resizer.cpu_extensions.name != name:
            continue  # this processor lacks it
        monkeypatch.setattr(room._mine, "resizer", resizer, raising=False)
        found.add(shrink(image, size).tobytes())
    assert found == {by_definition(image, size, monkeypatch).tobytes()}


def test_definition_is_the_sum_of_its_weights():
    """Against a double loop over one row: each pixel of the result is a weighted sum of its neighbours."""
    row = np.random.default_rng(1).integers(0, 256, 19).astype(np.uint8)
    weights, bits = room._weights(19, 18.5, 7)
    assert np.abs(weights.sum(axis=1) / 2**bits - 1).max() < 1e-3
    expected = []
    for number in range(7):
        total = sum(int(weights[number, place]) * int(row[place]) for place in range(19))
        expected.append(min(255, max(0, (total + 2 ** (bits - 1)) // 2**bits)))
    assert shrink_array(row[None, :], (7, 1), (18.5, 1.0)).tolist() == [expected]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "CMYK", "LAB"])
@pytest.mark.parametrize("side_px", [255, 200, 129, 60, 17])
def test_stays_near_pillows_filter(mode, side_px):
    """The same filter in other whole numbers: nothing is shifted, cut off or turned."""
    small = noise(12, 9).resize((256, 200), Image.Resampling.BICUBIC)
    image = small.convert("LAB" if mode == "LAB" else mode)
    size = (side_px, max(1, side_px * 200 // 256))
    made = shrink(image, size)
    assert (made.mode, made.size) == (mode, size)
    pillows = np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), float)
    assert np.abs(np.asarray(made, float) - pillows).max() <= 3


def test_a_size_that_stays_changes_nothing():
    image = noise(60, 40, extreme=True)
    assert shrink(image, (60, 40)).tobytes() == image.tobytes()


def test_threads_do_not_disturb_each_other():
    pictures = [noise(90 + number, 80, seed=number) for number in range(24)]
    alone = [shrink(image, (40, 30)).tobytes() for image in pictures]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda image: shrink(image, (40, 30)).tobytes(), pictures * 20))
    assert together == alone * 20


def test_an_unknown_pillow_is_never_read_by_the_library(monkeypatch):
    """The library knows the memory layout of certain versions; with any other the definition serves."""
    import importlib

    import PIL

    monkeypatch.setattr(PIL, "__version__", "14.0.0")
    try:
        assert not importlib.reload(room)._FAST
    finally:
        monkeypatch.undo()
        importlib.reload(room)
    assert room._FAST
