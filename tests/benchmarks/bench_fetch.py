"""Fetching beside img2dataset: same loopback server, same photos, same output size, one run, start-up included.

    python tests/benchmarks/bench_fetch.py PHOTO_FOLDER [--num 1500] [--large 4000 --num-large 300]

Each side runs in a fresh interpreter with one process and `--threads` for requests. Ours also decodes once more,
hashes (sha256 three times, pHash), applies EXIF and ICC, keeps facts and a politeness gate. `raw` is the network and
the tar alone: bodies stored as they come, nothing decoded. Prints a Markdown table: wall seconds, images/s, images
per CPU second (a core), peak memory of the process; then the resident memory of one worker of ours part by part.
Measures, asserts nothing but that both sides stored every photo.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import json, resource, sys, time
started = time.perf_counter()
from pipeline.fetching.engine import fetch_in_pieces
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.settings import FetchSettings
urls = json.load(open(sys.argv[1]))
threads, folder = int(sys.argv[2]), sys.argv[3]
settings = FetchSettings.model_validate({"network": {"threads": threads, "allow_private_addresses": True,
    "limits": {"requests_per_second": None, "connections": threads}}})
gate = HostGate(settings.network)
rows = [(f"{n:032x}", url) for n, url in enumerate(urls)]
(piece,) = fetch_in_pieces(rows, settings, gate, lambda: folder + "/part.tar")
num = piece.facts["outcome"].to_pylist().count("ok")
print(json.dumps({"num": num, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""
OURS_RAW = """
import json, resource, sys
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.http import HttpClient
from pipeline.store.pool import PoolWriter
from pipeline.fetching.scheduler import Scheduler
from pipeline.fetching.settings import FetchSettings
urls = json.load(open(sys.argv[1]))
threads, folder = int(sys.argv[2]), sys.argv[3]
network = FetchSettings.model_validate({"network": {"threads": threads, "allow_private_addresses": True,
    "limits": {"requests_per_second": None, "connections": threads}}}).network
num = 0
with PoolWriter(folder + "/part.tar") as pool:
    with HttpClient(network) as client, Scheduler(urls, client, HostGate(network), 50_000_000) as scheduler:
        for _ in urls:
            row, download = scheduler.take()
            if download.outcome == "ok":
                pool.add(f"{row:032x}", download.body)
                num += 1
            scheduler.release(download)
    pool.finish()
print(json.dumps({"num": num, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""
OURS_PARTS = """
import json, resource, sys
from pipeline.fetching.engine import fetch_in_pieces
from pipeline.fetching.hosts import HostGate
from pipeline.fetching.settings import FetchSettings
urls = json.load(open(sys.argv[1]))
threads, folder = int(sys.argv[2]), sys.argv[3]
settings = FetchSettings.model_validate({"network": {"threads": threads, "allow_private_addresses": True,
    "limits": {"requests_per_second": None, "connections": threads}}})
gate, num, resident = HostGate(settings.network), 0, []
for start in range(0, len(urls), 250):
    rows = [(f"{start + n:032x}", url) for n, url in enumerate(urls[start:start + 250])]
    (piece,) = fetch_in_pieces(rows, settings, gate, lambda: f"{folder}/{start}.tar")
    num += piece.facts["outcome"].to_pylist().count("ok")
    pages = int(open("/proc/self/statm").read().split()[1])
    resident.append(pages * resource.getpagesize() >> 20)
print(json.dumps({"num": num, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "resident": resident}))
"""
# One process of img2dataset as its own `download` starts them, without its distributor and logger processes.
THEIRS = """
import json, os, resource, sys, warnings
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
warnings.simplefilter("ignore")
import pyarrow as pa
from img2dataset.downloader import Downloader
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter
urls = json.load(open(sys.argv[1]))
threads, folder = int(sys.argv[2]), sys.argv[3]
table = pa.table({"url": urls})
with pa.OSFile(folder + "/rows.arrow", "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
    writer.write_table(table)
raw = len(sys.argv) > 4
resizer = Resizer(image_size=256, resize_mode="no" if raw else "keep_ratio", resize_only_if_bigger=True,
    disable_all_reencoding=raw)
loader = Downloader(WebDatasetSampleWriter, resizer, threads, False, False, folder, ["url"], 10, len(urls), 5,
    None if raw else "sha256", None, "jpg", 0, None, None)
loader.download_shard((0, folder + "/rows.arrow"))
stats = json.load(open(folder + "/00000_stats.json"))
print(json.dumps({"num": stats["successes"], "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # as real servers do; else each answer on a kept connection waits 40 ms

    def log_message(self, *_):
        pass


def serve(folder: str, ports) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=folder))
    ports.put(server.server_port)
    server.serve_forever()


def make_large(photos: list[Path], side_px: int, folder: Path) -> list[Path]:
    """Photos enlarged to `side_px` on the longer side: the bytes and decoding work of a camera's original."""
    from PIL import Image

    made = []
    for photo in photos:
        with Image.open(photo) as image:
            scale = side_px / max(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            path = folder / f"large_{photo.stem}.jpg"
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
            made.append(path)
    return made


def measure(code: str, urls: list[str], threads: int, *more: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "urls.json"
        listing.write_text(json.dumps(urls))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        started = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run(
            [sys.executable, "-c", code, str(listing), str(threads), folder, *more],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = time.perf_counter() - started
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result = json.loads(out.splitlines()[-1])
        assert result["num"] == len(urls), f"{result['num']} of {len(urls)} stored"
        return {**result, "seconds": seconds, "cpu": cpu, "peak_mib": result["peak"] / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with JPEG photos, searched recursively")
    parser.add_argument("--num", type=int, default=1500)
    parser.add_argument("--large", type=int, default=4000, help="longer side of the enlarged photos, px")
    parser.add_argument("--num-large", type=int, default=300)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    photos = sorted(options.photos.rglob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small = [root / f"small_{n}.jpg" for n in range(min(options.num, len(photos)))]
        for link, photo in zip(small, photos, strict=False):
            link.symlink_to(photo.resolve())
        step = max(1, len(photos) // 60)
        few = make_large(photos[::step][:60], options.large, root)
        large = [few[n % len(few)] for n in range(options.num_large)]
        ports = multiprocessing.Queue()
        server = multiprocessing.Process(target=serve, args=(folder, ports), daemon=True)
        server.start()
        port = ports.get()
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
            f"{options.threads} threads, best of {options.rounds}\n"
        )
        print("| photos | work | engine | wall s | images/s | CPU s | images / CPU s | peak MiB | ours / theirs |")
        print("|---|---|---|---|---|---|---|---|---|")
        work = {"raw": (("raw",), OURS_RAW), "all": ((), OURS)}
        for name, paths in ((f"{len(small)} as they are", small), (f"{len(large)} at {options.large} px", large)):
            urls = [f"http://127.0.0.1:{port}/{path.name}?{n}" for n, path in enumerate(paths)]
            for kind, (more, ours) in work.items():
                best: dict[str, dict] = {}
                for _ in range(options.rounds):
                    for engine, code in (("img2dataset", THEIRS), ("PlantMix", ours)):
                        result = measure(code, urls, options.threads, *(more if code is THEIRS else ()))
                        if engine not in best or result["seconds"] < best[engine]["seconds"]:
                            best[engine] = result
                ratio = best["img2dataset"]["seconds"] / best["PlantMix"]["seconds"]
                for engine, r in best.items():
                    shown = f"{ratio:.2f}x" if engine == "PlantMix" else ""
                    print(
                        f"| {name} | {kind} | {engine} | {r['seconds']:.1f} | {len(urls) / r['seconds']:.0f} | "
                        f"{r['cpu']:.1f} | {len(urls) / r['cpu']:.0f} | {r['peak_mib']:.0f} | {shown} |",
                        flush=True,
                    )
        urls = [f"http://127.0.0.1:{port}/{path.name}" for path in small]
        resident = measure(OURS_PARTS, urls * 2, options.threads)["resident"]
        print(f"\nresident MiB of one worker after each part of 250 small photos: {', '.join(map(str, resident))}")
        print("load average at the end:", *(f"{load:.1f}" for load in os.getloadavg()))
        server.terminate()


if __name__ == "__main__":
    main()
