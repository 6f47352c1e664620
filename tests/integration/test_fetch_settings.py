"""A changed setting is followed: what it decided is asked again, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import list_source, write_small_config
from misbehaving.answers import encode, send, send_picture
from misbehaving.numbered import NumberedPictures
from PIL import Image

from manifests.contract.reader import open_reader
from pipeline.cli import main

SIZES = [(48, 48), (20, 20), (95, 36), (64, 64), (40, 60), (300, 300)]


class Web(NumberedPictures):
    """Pictures of known sizes; number 3 is opted out, number 4 lies where robots.txt forbids."""

    def __init__(self) -> None:
        super().__init__(robots=lambda sock, _: send(sock, body=b"User-agent: *\nDisallow: /p/4\n"))
        noise = np.random.default_rng(0).integers(0, 256, (6, 300, 300, 3), dtype=np.uint8)
        self.bodies = [
            encode(Image.fromarray(noise[number, :height, :width]), quality=90)
            for number, (width, height) in enumerate(SIZES)
        ]

    def answer(self, sock: Any, number: int) -> None:
        send_picture(sock, self.bodies[number], headers=[("X-Robots-Tag", "noai")] if number == 3 else [])


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as made:
        yield made


def build(folder: Path, web: Web, network: dict[str, Any], image: dict[str, Any]) -> list[int]:
    """Build as far as the facts; gives the pictures that were asked for it."""
    folder.mkdir(exist_ok=True)
    source = list_source(folder, web.urls(len(SIZES)))
    limits = {"requests_per_second": None, "connections": 4}
    fetch = {"network": {"threads": 4, "limits": limits, **network}, "image": image}
    config = write_small_config(folder, source, fetch=fetch, run={"fetch_part_size": 4})
    web.newly_asked()
    # the preflight refuses a list whose first rows are all refused; a longer one may hold some that it did not see
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.commands.build.check_config", lambda *_: [])
        assert main(["build", str(config), "--to", "fetch"]) == 0
    return sorted(web.newly_asked().elements())


def facts_of(work: Path) -> list[tuple[Any, ...]]:
    """What is known of each picture, apart from where it lies in the pool."""
    with open_reader(str(work)) as connection:
        return connection.sql(
            'SELECT record_key, f.* EXCLUDE (pool_file, "offset") FROM facts f JOIN candidates USING (sample_id) '
            "ORDER BY record_key"
        ).fetchall()


def outcomes(folder: Path) -> list[str]:
    with open_reader(str(folder / "work")) as connection:
        rows = connection.sql("SELECT outcome FROM facts JOIN candidates USING (sample_id) ORDER BY record_key")
        return [row[0] for row in rows.fetchall()]


STRICT = [
    *("ok", "image_too_small", "aspect_too_extreme", "opted_out", "robots_disallowed", "body_too_large"),
]


@pytest.mark.slow
def test_each_setting_is_followed_and_nothing_else_is_asked(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert build(folder, web, {}, {}) == []
    assert set(outcomes(folder)) == {"refused_target"}
    network: dict[str, Any] = {"allow_private_addresses": True}
    image: dict[str, Any] = {"max_aspect_ratio": 2.5, "max_body_bytes": 40_000}
    assert build(folder, web, network, image) == [0, 1, 2, 3, 5]
    assert outcomes(folder) == STRICT
    assert build(folder, web, network, image) == []
    capsys.readouterr()
    assert main(["retry", str(folder / "work")]) == 0
    said = capsys.readouterr().out
    assert "nothing to retry: of 6 rows none failed for a reason that may pass" in said
    assert (
        "  1 opted_out: was decided by the configuration: change fetch.network.x_robots_directives or "
        "fetch.network.consent_signals or fetch.network.user_agent and run `plantmix build`, which asks again\n"
    ) in said
    for section, key, value, asked in (
        (image, "min_side_px", 16, 1),
        (network, "x_robots_directives", [], 3),
        (network, "robots_txt", False, 4),
        (image, "max_aspect_ratio", 20, 2),
        (image, "max_body_bytes", 1_000_000, 5),
    ):
        section[key] = value
        assert build(folder, web, network, image) == [asked], key
        assert outcomes(folder)[asked] == "ok"
    assert build(folder, web, {**network, "threads": 2, "retries": 5}, image) == []
