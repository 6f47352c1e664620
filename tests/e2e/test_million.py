"""The tool that makes and breaks one large build, at a few hundred pictures: it ends well, and sees what is wrong."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from building import ROOT

sys.path.append(str(ROOT / "tests/benchmarks"))

from million.breaking import draw_moments
from million.page import written
from million.rows import CHANGES, HOSTS, KIND_OF_PORT, plan_rows

SCRIPT = ROOT / "tests/benchmarks/bench_million.py"


def free_ports(num: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    for first in range(21_000, 32_000, num):
        with ExitStack() as opened:
            try:
                for port in range(first, first + num):
                    opened.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise AssertionError("no ports are free")


@pytest.mark.slow
def test_a_build_is_made_checked_and_broken(tmp_path: Path) -> None:
    folder, results = tmp_path / "made", tmp_path / "results.jsonl"
    command = [sys.executable, str(SCRIPT), "all", str(folder), "--photos", str(ROOT / "tests/photos"), "--num", "300"]
    command += ["--port", str(free_ports(len(KIND_OF_PORT))), "--kills", "3", "--without-peer"]
    done = subprocess.run(
        [*command, "--results", str(results)], capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = {line["step"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert list(told) == ["make", "build", "check", "disturbed"]
    judged = told["check"]["outcomes"]
    assert sum(judged["verdicts"].values()) == 300
    assert judged["verdicts"].keys() <= {"as predicted", "unplanned"}
    assert judged["recall"].keys() >= {f"copy {change}" for change in CHANGES}
    assert told["disturbed"]["sha256"] == told["build"]["sha256"]
    assert told["disturbed"]["num_killed"] > 0
    if told["disturbed"]["full_disk"]:
        assert any("disk is full" in life.get("said", "") for life in told["disturbed"]["lives"])
    known = {"start", "ingest", "fetch", "dedup", "caption", "score", "select", "mix", "pack", "between"}
    assert {"fetch"} <= told["build"]["stages"].keys() <= known, "stages that end between two samples are not seen"
    assert "| whole | " in written(results)


def test_the_page_is_that_of_the_results() -> None:
    results = ROOT / "tests/benchmarks/results"
    assert (results / "million.md").read_text() == written(results / "million.jsonl") + "\n"


def test_every_row_is_predicted_by_what_is_written_down() -> None:
    rows = plan_rows(20_000, 3)
    ends = rows.expected()
    for host in HOSTS:
        of_kind = np.array([kind == host.kind for kind in KIND_OF_PORT])[rows.port]
        assert of_kind.mean() == pytest.approx(host.share, abs=0.01)
        assert rows.is_faulty[of_kind].mean() == pytest.approx(host.fault_share, abs=0.08)
        if host.outcome != "ok":
            assert set(ends[of_kind & rows.is_faulty]) == {host.outcome}
    copies = np.flatnonzero(rows.role == "copy")
    assert (rows.role[rows.other[copies]] == "original").all()
    assert (rows.other[rows.other[copies]] == copies).all()
    assert rows.is_owned.sum() == 22
    assert rows.other[rows.role == "leak"].min() >= 20_000


def test_moments_follow_the_seed_and_the_time_that_steps_took() -> None:
    steps = {"start": 3.0, "ingest read": 1.0, "fetch download": 90.0, "pack write": 9.0}
    moments = draw_moments(steps, 200, seed=1)
    assert moments == draw_moments(steps, 200, seed=1) != draw_moments(steps, 200, seed=2)
    assert [moment.is_full_disk for moment in moments].count(True) == 1
    in_fetch = [moment for moment in moments if moment.step == "fetch download"]
    assert 0.8 < len(in_fetch) / 201 < 0.98
    assert sum(moment.seconds for moment in in_fetch) < 90, "a step goes on where it was killed"
