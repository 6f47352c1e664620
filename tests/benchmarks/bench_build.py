"""A whole build beside img2dataset's download alone: the same photos from one loopback server, in turn, several rounds.

    python tests/benchmarks/bench_build.py PHOTO_FOLDER [--num 20000] [--rounds 3] [--executor ray processes inline]

Ours is `plantmix build` from URLs to a sealed release: download, decode, resize, store, hash, find duplicates, judge
captions, select, mix, write shards. Theirs is the `img2dataset` command with the same size, quality and number of
processes, which ends at its tar files. Both start from nothing and are measured with all their processes. Both find
the bytecode of their modules, as installed programs do: pip compiled theirs, and ours is compiled before the rounds.

The photos of the folder become `--num` different ones: each is turned in four ways, whole and without its left third.
So neither exact nor near duplicates are dropped, which a mirrored copy would be. Prints a Markdown table: wall seconds,
CPU seconds of the process tree (without the server) and the ratio of the medians.
Measures, asserts nothing but that both sides stored every photo.
"""

from __future__ import annotations

import argparse
import compileall
import csv
import ctypes
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_fetch import serve
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from process_tree import below  # noqa: E402

_POLL_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36  # processes whose parent ends become ours, and are still counted. Source: prctl(2)


def photos_of(paths: list[Path], num: int) -> Iterator[bytes]:
    """`num` different JPEGs: every photo as it is, then turned in three ways, then all four without the left third."""
    turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    for number in range(num):
        turn, path = number // len(paths), paths[number % len(paths)]
        if turn == 0:
            yield path.read_bytes()
            continue
        with Image.open(path) as image:
            how, stream = turns[turn % 4], io.BytesIO()
            part = image if turn < 4 else image.crop((image.width // 3, 0, image.width, image.height))
            turned = part if how is None else part.transpose(how)
            turned.save(stream, "JPEG", qtables=image.quantization, subsampling="4:2:0")
            yield stream.getvalue()


def write_photos(photos: Path, num: int, folder: Path) -> list[str]:
    """The names of the photos, written into the folder that is served."""
    paths = sorted(photos.rglob("*.jpg"))
    if len(paths) * 8 < num:
        raise SystemExit(f"{photos} holds {len(paths)} photos, {num} need at least {-(-num // 8)}")
    names = [f"{number:06d}.jpg" for number in range(num)]
    for name, body in zip(names, photos_of(paths, num), strict=True):
        (folder / name).write_bytes(body)
    return names


def config_of(listing: Path, work: Path, executor: str, processes: int, threads: int) -> dict[str, Any]:
    """A build of all photos with the defaults, but for the limits that spare other people's servers."""
    return {
        "name": "bench",
        "work_dir": str(work),
        "sources": [
            {
                "name": "photos",
                "domain": "plant",
                "table": str(listing),
                "columns": {"url": "url", "caption": "caption"},
                "defaults": {"licence": "CC0-1.0"},
            }
        ],
        "fetch": {
            "network": {
                "threads": threads,
                "allow_private_addresses": ["127.0.0.1"],
                "hosts": [{"pattern": "127.0.0.1", "requests_per_second": None, "connections": threads}],
            }
        },
        "mix": {"ratio": {"plant": 1}},
        "run": {"executor": executor, "num_workers": processes},
    }


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall seconds of a command, and CPU seconds of all processes that it started, whoever their parent is by now."""
    spent: dict[int, float] = {}
    server = set(below(os.getpid()))
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_SECONDS):
            for pid in below(os.getpid()).keys() - server:
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                spent[pid] = max(spent.get(pid, 0.0), (int(fields[11]) + int(fields[12])) / _TICKS)

    watching = threading.Thread(target=watch)
    watching.start()
    started = time.perf_counter()
    with (folder / "log").open("w") as log:
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, cwd=folder)
    seconds = time.perf_counter() - started
    ended.set()
    watching.join()
    if process.returncode:
        end_of_log = (folder / "log").read_text()[-3000:]
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{end_of_log}")
    return seconds, sum(spent.values())


def ours(listing: Path, folder: Path, executor: str, processes: int, threads: int) -> tuple[int, float, float]:
    """Pictures in the release, wall and CPU seconds."""
    path = folder / "build.json"  # json is YAML too
    path.write_text(json.dumps(config_of(listing, folder / "work", executor, processes, threads)))
    command = [sys.executable, "-m", "pipeline.cli", "build", str(path)]
    seconds, cpu = measure(command, folder)
    status = json.loads((folder / "work/status.json").read_text())
    return status["stages"]["fetch"]["kept"], seconds, cpu


def theirs(listing: Path, folder: Path, processes: int, threads: int) -> tuple[int, float, float]:
    """Pictures stored, wall and CPU seconds."""
    options = {
        "url_list": listing,
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_format": "webdataset",
        "output_folder": folder / "out",
        "image_size": 256,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": 95,
        "processes_count": processes,
        "thread_count": threads,
        "number_sample_per_shard": 1000,
    }
    command = [str(Path(sys.executable).with_name("img2dataset"))]
    command += [f"--{name}={value}" for name, value in options.items()]
    seconds, cpu = measure(command, folder)
    stats = [json.loads(path.read_text()) for path in (folder / "out").glob("*_stats.json")]
    return sum(each["successes"] for each in stats), seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with JPEG photos, searched recursively")
    parser.add_argument("--num", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=16, help="requests at a time of each process")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument(
        "--executor", nargs="+", default=["ray", "processes", "inline"], choices=["ray", "processes", "inline"]
    )
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for package in ("manifests", "pipeline"):
        compileall.compile_dir(Path(__file__).parents[2] / package, quiet=1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "web").mkdir()
        names = write_photos(options.photos, options.num, root / "web")
        ports: Any = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(str(root / "web"), ports), daemon=True)
        server.start()
        port = ports.get()
        listing = root / "photos.csv"
        with listing.open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["url", "caption"])
            table.writerows([f"http://127.0.0.1:{port}/{name}", f"a photo of number {name[:6]}"] for name in names)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {options.num} photos, "
            f"{options.processes} processes of {options.threads} requests, {options.rounds} rounds in turn\n",
            flush=True,
        )
        found: dict[str, list[tuple[float, float]]] = {}
        for number in range(options.rounds):
            for name in ["img2dataset", *(f"PlantMix, {executor}" for executor in options.executor)]:
                with tempfile.TemporaryDirectory(dir=root) as folder:
                    engine, _, executor = name.partition(", ")
                    how = (options.processes, options.threads)
                    if engine == "img2dataset":
                        num, seconds, cpu = theirs(listing, Path(folder), *how)
                    else:
                        num, seconds, cpu = ours(listing, Path(folder), executor, *how)
                if num != options.num:
                    raise SystemExit(f"{name} stored {num} of {options.num} photos")
                found.setdefault(name, []).append((seconds, cpu))
                load = os.getloadavg()[0]
                print(f"round {number + 1}: {name}: {seconds:.1f} s, CPU {cpu:.1f} s, load {load:.1f}", flush=True)
        print("\n| program | wall s, median (all) | CPU s, median | CPU ms a photo | wall of theirs / ours |")
        print("|---|---|---|---|---|")
        reference = statistics.median(seconds for seconds, _ in found["img2dataset"])
        for name, runs in found.items():
            seconds, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
            every = ", ".join(f"{seconds:.1f}" for seconds, _ in runs)
            print(
                f"| {name} | {seconds:.1f} ({every}) | {cpu:.1f} | {1000 * cpu / options.num:.2f} | "
                f"{reference / seconds:.2f}x |"
            )
        server.terminate()


if __name__ == "__main__":
    main()
