"""The panels of a choice, drawn from the values of a mixture file."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from manifests.drawing.panels import draw_png, draw_svg
from pipeline.planning.search import shares_grid
from pipeline.sidefiles.mixture_panels import cautions_of, panels_of


def make_mixture(num_domains: int) -> dict[str, Any]:
    domains = [f"domain{at}" for at in range(num_domains)]
    grid = shares_grid(num_domains)
    runs = np.random.default_rng(0).dirichlet(np.ones(num_domains), 12)
    losses = {name: 1.0 + np.exp(-2 * grid[:, at]) for at, name in enumerate(domains[:2])}
    return {
        "ratio": dict.fromkeys(domains, 1 / num_domains),
        "interval": {name: [0.8 / num_domains, 1.2 / num_domains] for name in domains},
        "predicted": {name: {"loss": 1.5, "low": 1.4, "high": 1.6} for name in losses},
        "trade_off": {
            "between": domains[:2],
            "points": [
                {
                    "ratio": {domains[0]: share},
                    "losses": {domains[0]: {"loss": 2 - share}, domains[1]: {"loss": 1 + share**2}},
                }
                for share in (0.1, 0.4, 0.9)
            ],
        },
        "drawn": {
            "runs": {"shares": runs.tolist(), "losses": {name: [1.7] * 11 + [None] for name in losses}},
            "grid": grid.tolist(),
            "losses": {
                name: {"loss": values.tolist(), "low": (values - 0.1).tolist(), "high": (values + 0.1).tolist()}
                for name, values in losses.items()
            },
        },
        "gains": [
            {"over": "best run tried", "ratio": {}, "nats": 0.02, "interval": [-0.1, 0.14]},
            {"over": "equal shares", "ratio": {}, "nats": 0.3, "interval": [0.2, 0.4]},
        ],
        "warnings": ["at the edge", "DO NOT TRUST the law", "at the edge"],
    }


@pytest.mark.parametrize("num_domains", [2, 3, 4])
def test_a_file_that_sorts_the_domains_is_drawn_as_the_choice_was(num_domains: int) -> None:
    text = json.dumps(make_mixture(num_domains))
    for at in range(num_domains):
        text = text.replace(f"domain{at}", "dcba"[at])  # the first domain is the last by name
    mixture = json.loads(text)
    mixture["drawn"]["domains"] = list(mixture["ratio"])
    mixture["ratio"]["d"] += 0.1
    mixture["ratio"]["c"] -= 0.1
    for part, name in ((mixture["drawn"], "losses"), (mixture["drawn"]["runs"], "losses"), (mixture, "predicted")):
        part[name] = dict(sorted(part[name].items()))  # losses may change places, domains may not
    read_back = json.loads(json.dumps(mixture, sort_keys=True))
    now, later = ({panel.title: draw_svg(panel) for panel in panels_of(values)} for values in (mixture, read_back))
    assert now == later


@pytest.mark.parametrize(
    ("num_domains", "titles"),
    [
        (2, ["loss of domain0", "loss of domain1", "trade-off", "chosen shares", "gain of the choice"]),
        (3, ["loss of domain0", "loss of domain1", "trade-off", "chosen shares", "gain of the choice"]),
        (4, ["losses: runs and prediction", "trade-off", "chosen shares", "gain of the choice"]),
    ],
)
def test_every_panel_is_drawn(num_domains: int, titles: list[str]) -> None:
    panels = panels_of(make_mixture(num_domains))
    assert [panel.title for panel in panels] == titles
    drawn = [draw_svg(panel) for panel in panels]
    assert all(f">{title}<" in svg.replace("\n", "") for title, svg in zip(titles, drawn, strict=True))
    assert draw_png(panels)[:4] == b"\x89PNG"
    assert "at the chosen shares 1.500" in panels[0].alt or num_domains == 4


def test_runs_are_dots_that_the_band_does_not_hide() -> None:
    svg = draw_svg(panels_of(make_mixture(2))[0])
    assert len(re.findall(r"<use [^>]*>", svg)) >= 11, "a dot for each run that has the loss"
    band, dots = svg.index("fill-opacity: 0.22"), svg.rindex("<use ")
    assert band < dots, "what comes later lies on top"


def test_shares_are_named_along_the_frontier() -> None:
    svg = draw_svg(next(panel for panel in panels_of(make_mixture(2)) if panel.title == "trade-off"))
    for words in ("10% domain0", "40% domain0", "90% domain0", "best that can be had", "chosen"):
        assert words in svg


def test_a_file_without_drawn_values_still_shows_what_it_has() -> None:
    mixture = make_mixture(2)
    del mixture["drawn"]
    assert [panel.title for panel in panels_of(mixture)] == ["trade-off", "chosen shares", "gain of the choice"]


def test_gains_are_drawn_and_told_in_words() -> None:
    panel = panels_of(make_mixture(2))[-1]
    assert "over the best run tried 0.020, 90 % interval -0.100 to 0.140" in panel.alt
    svg = draw_svg(panel)
    assert "best run tried" in svg
    assert "equal shares" in svg


def test_each_warning_is_said_once_the_gravest_first() -> None:
    assert cautions_of(make_mixture(2)) == ["DO NOT TRUST the law", "at the edge"]


def test_a_grid_holds_all_shares_that_a_plane_can_show() -> None:
    assert shares_grid(4).shape == (0, 4)
    for num_domains in (2, 3):
        grid = shares_grid(num_domains)
        assert np.allclose(grid.sum(axis=1), 1)
        assert len(np.unique(grid.round(9), axis=0)) == len(grid)
