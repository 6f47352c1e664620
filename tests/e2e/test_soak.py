"""A work folder killed some ten times in its life; benchmarks/bench_soak.py kills hundreds of times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from soaking import PROCESSES, RAY, Launcher, Life, Soil


@pytest.fixture(scope="module")
def soil(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soil]:
    with Soil(tmp_path_factory.mktemp("soil") / "web").growing() as made:
        yield made


@pytest.mark.slow
def test_whole_lives_are_killed_and_end_alike(soil: Soil, tmp_path: Path) -> None:
    rng = random.Random(5)
    with Launcher() as launcher:
        undisturbed = Life(soil, launcher, tmp_path / "undisturbed", rng, {})
        expected = undisturbed.live(lambda: 0)
        assert undisturbed.num_excess == 0
        killed = Life(soil, launcher, tmp_path / "killed", rng, undisturbed.durations)
        assert killed.live(lambda: 2, {PROCESSES: 0.4, RAY: 0.2}) == expected
        assert len(killed.harms) >= 5, "most kills must hit a running command"
        killed.check_whole()
