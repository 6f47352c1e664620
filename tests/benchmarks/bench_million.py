"""One build of N pictures, made and broken: what it takes by stage, what it finds, and whether kills change a byte.

    python tests/benchmarks/bench_million.py all FOLDER --photos PHOTOS --num 10000     # all steps, in this order
    python tests/benchmarks/bench_million.py page > tests/benchmarks/results/million.md

| step | does | disk in FOLDER at 1 M |
|---|---|---|
| make | N photos of about 8 kB, from those of PHOTOS, in one file with an index; lists, evaluation set | 8 GB |
| peer | img2dataset's download alone, in an environment of its own; what it wrote goes | 8 + 20 GB |
| build | one config, one command, undisturbed; figures by stage; the release is hashed | 8 + 20 GB |
| check | every row, verify --deep, takedown, diff, another ratio, browse; then the work folder goes | at most 29 GB |
| disturbed | the same build on another disk, killed --kills times, once with no room; the same bytes? | 8 + 20 GB |

From 300,000 pictures on `check` deletes the packed file, and `disturbed` makes it again. `serve` answers for builds
that you start by hand. Every step adds a line to --results. The exit code is 1 where a row ended otherwise, a planted
copy was not found or a byte differs. tests/benchmarks/million/ has the parts; rows.py says what is planted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from million import breaking, checking, page, peer, web  # noqa: E402
from million.make import make, write_config  # noqa: E402
from million.watching import PLANTMIX, ROOT, Usage, disk_mb, done  # noqa: E402

_RESULTS = Path(__file__).parent / "results/million.jsonl"
_LARGE = 300_000
_RATIO = {"plant": 10, "general": 3}
_BYTES_OF_A_PICTURE = 40_000  # of the disk of a disturbed build, with room to spare


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["all", "make", "serve", "peer", "build", "check", "disturbed", "page"])
    parser.add_argument("folder", type=Path, nargs="?", help="where everything lies; of one N and seed")
    parser.add_argument("--photos", type=Path, help="JPEG photos, searched recursively")
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=18400, help="the first of 32, a port a host")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--without-peer", action="store_true", help="all steps but peer")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="JSON lines")
    args = parser.parse_args()
    if args.step == "page":
        print(page.written(args.results))
        return 0
    if args.folder is None:
        parser.error("name a FOLDER")
    folder = args.folder.resolve()
    if args.step in ("all", "make") and args.photos is None:
        parser.error("name a folder of photos: --photos")
    if args.step == "serve":
        asyncio.run(web.serve(folder))
    steps = [args.step] if args.step != "all" else ["make", "peer", "build", "check", "disturbed"]
    wrong: list[str] = []
    for step in steps:
        if step == "make":
            started, before = time.monotonic(), os.times()
            settings = make(folder, args.photos.resolve(), args.num, args.seed, args.port)
            cpu_seconds = sum(os.times()[:4]) - sum(before[:4])
            figures = {"seconds": round(time.monotonic() - started, 2), "cpu_seconds": round(cpu_seconds, 2)}
            tell(
                folder,
                args.results,
                step,
                settings,
                {**figures, "packed_mb": round(settings["num_bytes"] / 1e6, 1)},
                [],
            )
        elif not (args.without_peer and step == "peer"):
            settings = json.loads((folder / "settings.json").read_text())
            figures, complaints = _STEPS[step](folder, settings, args.kills)
            tell(folder, args.results, step, settings, figures, complaints)
            wrong += complaints
    for line in wrong:
        print(f"not as it should be: {line}", file=sys.stderr)
    return 1 if wrong else 0


def run_peer(folder: Path, settings: dict[str, Any], _: int) -> tuple[dict[str, Any], list[str]]:
    with web.serving(folder) as server:
        figures = peer.download(folder)
        return {**figures, "server": server.stats()}, []


def run_build(folder: Path, settings: dict[str, Any], _: int) -> tuple[dict[str, Any], list[str]]:
    """The undisturbed build; its hashes stay in FOLDER for the disturbed one, which also takes its moments from it."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    config = write_config(folder, work, "million", _RATIO)
    with web.serving(folder) as server:
        ended = done([*PLANTMIX, "build", str(config)], work=work, log=folder / "build")
        asked = server.stats()
    release = checking.release_of(work)
    (folder / "release.json").write_text(json.dumps(release))
    (folder / "steps.json").write_text(json.dumps({name: usage.seconds for name, usage in ended.steps.items()}))
    stages: dict[str, Usage] = {}
    for name, usage in ended.steps.items():
        stage = stages.setdefault(name.split()[0], Usage())
        stage.seconds += usage.seconds
        stage.cpu_seconds += usage.cpu_seconds
        stage.peak_mib = max(stage.peak_mib, usage.peak_mib)
        stage.disk_mb = usage.disk_mb or stage.disk_mb
    figures = {
        **ended.whole.as_json(),
        "packed_mb": round(settings["num_bytes"] / 1e6, 1),
        "release": release["release"], "sha256": release["sha256"], "num_files": release["num_files"],
        "release_mb": round(disk_mb(checking.newest_release(work)), 1),
        "server": asked,
        "stages": {name: usage.as_json() for name, usage in stages.items()},
        "steps": {name: usage.as_json() for name, usage in ended.steps.items()},
    }  # fmt: skip
    return figures, []


def run_check(folder: Path, settings: dict[str, Any], _: int) -> tuple[dict[str, Any], list[str]]:
    figures, complaints = checking.check(folder, folder / "work", settings["num"] >= _LARGE)
    shutil.rmtree(folder / "work")
    return figures, complaints


def run_disturbed(folder: Path, settings: dict[str, Any], kills: int) -> tuple[dict[str, Any], list[str]]:
    make(folder, Path(settings["photos"]), settings["num"], settings["seed"], settings["first_port"])
    steps = json.loads((folder / "steps.json").read_text())
    moments = breaking.draw_moments(steps, kills, settings["seed"])
    order = [name for name in steps if name not in ("start", "between")]
    with (
        breaking.small_disk(folder, settings["num"] * _BYTES_OF_A_PICTURE + 500_000_000) as disk,
        web.serving(folder) as server,
    ):
        work = (disk or folder) / "disturbed"
        shutil.rmtree(work, ignore_errors=True)
        figures = breaking.disturb(write_config(folder, work, "million", _RATIO), work, moments, order, disk)
        release, undisturbed = checking.release_of(work), json.loads((folder / "release.json").read_text())
        figures |= {"release": release["release"], "sha256": release["sha256"], "server": server.stats()}
        left = [str(path.relative_to(work)) for path in work.rglob("*.tmp-*")]
        shutil.rmtree(work)
    names = {**release["files"], **undisturbed["files"]}
    other = [name for name in sorted(names) if release["files"].get(name) != undisturbed["files"].get(name)]
    complaints = [f"{len(other)} files of the disturbed release differ: {', '.join(other[:5])}"] if other else []
    complaints += [f"private files are left: {', '.join(left[:5])}"] if left else []
    return figures, complaints


_STEPS = {"peer": run_peer, "build": run_build, "check": run_check, "disturbed": run_disturbed}


def tell(
    folder: Path, results: Path, step: str, settings: dict[str, Any], figures: dict[str, Any], complaints: list[str]
) -> None:
    """Add a line to the results, in which no path of this machine stands."""
    model = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0].lstrip("\t: ")
    asked = ["git", "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    line = {
        "step": step, "num": settings["num"], "seed": settings["seed"], "date": date.today().isoformat(),
        "commit": commit.stdout.strip(), "machine": f"{model or platform.machine()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1), **figures, "complaints": complaints,
    }  # fmt: skip
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as stream:
        stream.write(json.dumps(line).replace(str(folder), "FOLDER") + "\n")
    shown = {name: value for name, value in line.items() if name not in ("steps", "stages", "files", "lives")}
    print(json.dumps(shown, indent=1), flush=True)


if __name__ == "__main__":
    sys.exit(main())
