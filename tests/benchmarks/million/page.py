"""The page of results: seconds, CPU, peak memory and disk by stage and size, and how they grow between sizes.

Of each step and size the newest line counts.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_HEAD = """# Builds of up to a million pictures

{measured}

Made by `python tests/benchmarks/bench_million.py page` from [million.jsonl](million.jsonl); the script says what each
step does. Distinct photos of about 8 kB, blended from real ones, on 32 hosts of the loopback; 3 % planted copies, 1 %
leaks, hosts with faults. Seconds depend on what else the machine did (`load`); CPU and memory less. Memory is the sum
of Pss over all processes of the build, and the growth `n^x` is that from the size before."""


def written(results: Path) -> str:
    """The page, of a file of JSON lines."""
    newest: dict[tuple[str, int], dict[str, Any]] = {}
    measured = ""
    for line in results.read_text().splitlines():
        told = json.loads(line)
        code = "pipeline, manifests, tests/benchmarks/million, tests/benchmarks/bench_million.py"
        measured = f"Measured: {told['commit']}, {told['date']}, {told['machine']}. Code: {code}."
        newest[told["step"], told["num"]] = told
    of_step = {
        step: {num: told for (name, num), told in sorted(newest.items()) if name == step}
        for step in ("build", "check", "disturbed", "peer")
    }
    parts = [_HEAD.format(measured=measured), _runs(newest)]
    parts += [_stages(of_step["build"], level) for level in ("stages", "steps")]
    parts += [_found(of_step["check"]), _commands(of_step["check"]), _broken(of_step["disturbed"])]
    parts.append(_peers(of_step["build"], of_step["peer"]))
    return "\n\n".join(part for part in parts if part)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _growth(values: dict[int, float]) -> list[str]:
    """A value for each size, with the exponent from the size before."""
    shown: list[str] = []
    before: tuple[int, float] | None = None
    for num, value in values.items():
        text = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
        if before is not None and min(value, before[1]) > 0:
            text += f" (n^{math.log(value / before[1]) / math.log(num / before[0]):.2f})"
        shown.append(text)
        before = num, value
    return shown


def _runs(newest: dict[tuple[str, int], dict[str, Any]]) -> str:
    rows = [
        [
            f"{step}, {num:,}", told["date"], told["commit"], told["machine"], str(told["load"]),
            "; ".join(told["complaints"]) or "as it should be",
        ]
        for (step, num), told in sorted(newest.items(), key=lambda item: (item[0][1], item[0][0]))
    ]  # fmt: skip
    return "## Runs\n\n" + _table(["step, pictures", "date", "commit", "machine", "load", "ended"], rows)


def _stages(builds: dict[int, dict[str, Any]], level: str) -> str:
    if not builds:
        return ""
    names = list(dict.fromkeys(name for told in builds.values() for name in told[level] if name != "between"))
    parts = []
    measures = (
        ("CPU seconds", "cpu_seconds"), ("seconds", "seconds"), ("peak memory, MiB", "peak_mib"),
        *([("disk of the work folder behind it, MB", "disk_mb")] if level == "stages" else []),
    )  # fmt: skip
    for title, key in measures:
        rows = []
        for name in [*names, "whole"]:
            of_size = {num: told if name == "whole" else told[level].get(name, {}) for num, told in builds.items()}
            values = {num: float(told[key]) for num, told in of_size.items() if key in told}
            if values and (level == "stages" or max(values.values()) >= 2):
                row = dict(zip(values, _growth(values), strict=True))
                rows.append([name, *(row.get(num, "") for num in builds)])
        parts.append(f"## Build by {level[:-1]}: {title}\n\n" + _table([level[:-1], *(f"{n:,}" for n in builds)], rows))
    return "\n\n".join(parts)


def _found(checks: dict[int, dict[str, Any]]) -> str:
    if not checks:
        return ""
    rows = []
    for num, told in checks.items():
        judged = told["outcomes"]
        found = ", ".join(f"{kind} {found} of {of}" for kind, (found, of) in judged["recall"].items())
        verdicts = judged["verdicts"]
        rows.append([
            f"{num:,}", found, f"{verdicts.get('unplanned', 0):,}", f"{verdicts.get('wrong', 0):,}",
            f"{verdicts.get('as predicted', 0):,}",
        ])  # fmt: skip
    head = ["pictures", "planted ones found", "taken for a copy unplanned", "ended otherwise", "as predicted"]
    return "## What was found\n\n" + _table(head, rows)


def _commands(checks: dict[int, dict[str, Any]]) -> str:
    if not checks:
        return ""
    names = list(dict.fromkeys(name for told in checks.values() for name in told["commands"]))
    rows = []
    for name in names:
        for title, key in (("CPU s", "cpu_seconds"), ("s", "seconds"), ("MiB", "peak_mib")):
            of_size = {num: told["commands"].get(name, {}) for num, told in checks.items()}
            values = {num: float(told[key]) for num, told in of_size.items() if key in told}
            row = dict(zip(values, _growth(values), strict=True))
            rows.append([f"{name}, {title}", *(row.get(num, "") for num in checks)])
    pages = {num: told["commands"]["browse"]["pages"] for num, told in checks.items()}
    rows += [
        [f"browse: {name}, s", *(f"{of_size.get(name, 0):.2f}" for of_size in pages.values())]
        for name in next(iter(pages.values()))
    ]
    return "## Commands on the finished build\n\n" + _table(["command", *(f"{n:,}" for n in checks)], rows)


def _broken(disturbed: dict[int, dict[str, Any]]) -> str:
    if not disturbed:
        return ""
    rows = [
        [
            f"{num:,}", str(told["num_killed"]),
            next((life["said"] for life in told["lives"] if "said" in life), "none"),
            f"{told['seconds']:,.0f}", f"{told['cpu_seconds']:,.0f}", told["sha256"][:12],
            "yes" if not told["complaints"] else "no",
        ]
        for num, told in disturbed.items()
    ]  # fmt: skip
    head = ["pictures", "kills", "on the full disk it said", "seconds", "CPU seconds", "release", "the same bytes"]
    return "## Killed and taken up\n\n" + _table(head, rows)


def _peers(builds: dict[int, dict[str, Any]], peers: dict[int, dict[str, Any]]) -> str:
    rows = []
    for num, told in peers.items():
        for name, one in (("img2dataset, download alone", told), ("PlantMix, whole build", builds.get(num))):
            if one:
                server = one["server"]
                rows.append([
                    f"{num:,}: {name}", f"{one['seconds']:,.0f}", f"{one['cpu_seconds']:,.0f}",
                    f"{one['peak_mib']:,.0f}", f"{one['disk_mb']:,.0f}", f"{server['requests']:,}",
                    f"{server['cpu_seconds']:,.0f}",
                ])  # fmt: skip
    if not rows:
        return ""
    head = ["pictures", "seconds", "CPU seconds", "peak MiB", "disk MB", "requests", "CPU of the server"]
    title = f"## Beside img2dataset {next(iter(peers.values()))['version']}"
    return "\n\n".join([title, *_in_words(builds.get(1_000_000), peers.get(1_000_000)), _table(head, rows)])


def _in_words(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> list[str]:
    """Return the sentence that README quotes, if a million was built and downloaded."""
    if not ours or not theirs:
        return []
    clock, cpu = (ours[key] / theirs[key] for key in ("seconds", "cpu_seconds"))
    words = " It is not faster." if clock >= 1 else ""
    return [
        "*Said more plainly, 2026-12-03:* with one run each, our whole build of a million takes "
        f"{clock:.2f} times as long as img2dataset's download alone, and {cpu:.2f} times its CPU.{words}"
    ]
