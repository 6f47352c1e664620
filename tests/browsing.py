"""A small real work folder to browse: photos with copies, a leak, broken files, hostile captions, two releases.

Also a real Chromium to look at pages with, and axe-core to check them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import axe_core_python
from environments import lacks
from PIL import Image
from release_writer import TINY_ARCHITECTURE
from selenium import webdriver
from training_runs import make_settings

from manifests.catalog import Catalog
from pipeline.config import BuildConfig
from pipeline.flow import FLOW
from pipeline.runner.runner import Runner
from training.cli import main
from training.run.loop import train

PHOTOS = sorted((Path(__file__).parent / "photos").glob("*.jpg"))
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "\u202eevil \u05e9\u05dc\u05d5\u05dd tomato"
LONG = "long " + "x" * 10_000
HOSTILE = {0: SCRIPT, 1: RIGHT_TO_LEFT, 2: LONG, 3: "' OR 1=1; --\" onload=alert(1) {{ 7*7 }}"}
OWNER = "</dd><script>alert('owner')</script>"

AXE = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PHONE, DESK = (390, 844), (1280, 900)


@contextmanager
def open_chromium() -> Iterator[Any]:
    """A headless Chromium that keeps what its console says."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        lacks(f"{' and '.join(missing)}; on Debian: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs["chromedriver"])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # selenium leaves its connection to the garbage collector
        driver.quit()


def open_page(driver: Any, url: str, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
    """Open a page on a screen of this size, in light or dark."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(url)


def complaints(driver: Any) -> list[str]:
    """What the console said since the last time."""
    return [entry["message"] for entry in driver.get_log("browser")]


def violations(driver: Any) -> list[dict[str, Any]]:
    """Serious and critical findings of axe-core on the open page."""
    driver.execute_script(AXE)
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(done, error => done(String(error)))"
    )
    return [one for one in found["violations"] if one["impact"] in ("serious", "critical")]


def make_pictures(folder: Path) -> None:
    """Three qualities of five photos (0 to 6 bits apart), with captions; a dot, and what is no picture."""
    folder.mkdir()
    for at, photo in enumerate(PHOTOS[:5]):
        picture = Image.open(photo).convert("RGB")
        for quality in (95, 20, 8):
            stem = folder / f"{photo.stem}-{quality}"
            picture.save(f"{stem}.jpg", quality=quality)
            caption = HOSTILE.get(at, "a ripe tomato on a table") if quality == 95 else f"{photo.stem} on a shelf"
            Path(f"{stem}.txt").write_text(caption, encoding="utf-8")
    for photo in PHOTOS[5:10]:
        Image.open(photo).convert("RGB").save(folder / photo.name)
        (folder / f"{photo.stem}.txt").write_text(f"{photo.stem} alone", encoding="utf-8")
    Image.new("RGB", (3, 3)).save(folder / "<b>dot.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")


def build_work_folder(folder: Path) -> Path:
    """Build twice, with another seed, so that two releases lie there."""
    make_pictures(folder / "pictures")
    (folder / "evaluation").mkdir()
    shutil.copy(folder / "pictures" / PHOTOS[5].name, folder / "evaluation" / "held.jpg")
    with Image.open(PHOTOS[6]) as photo:  # made smaller: other bytes and pixels, nearly the same hash
        photo.convert("RGB").resize((photo.width * 3 // 4, photo.height * 3 // 4)).save(folder / "evaluation/near.png")
    for seed, num in ((0, 4), (1, 3)):
        run(folder, mix={"ratio": {"food": 1}, "num_samples": num, "seed": seed})
    return folder / "work"


def newest_release(work: Path) -> Path:
    return work / "releases" / (work / "releases/LATEST").read_text(encoding="utf-8").strip()


def index_release(release: Path, folder: Path) -> Path:
    """Train a tiny model on a release into `folder`/run, and index the release's vectors."""
    architecture = folder / "tiny-for-browse.json"
    architecture.write_text(json.dumps(TINY_ARCHITECTURE), encoding="utf-8")
    values = {
        "release": str(release),
        "output_dir": str(folder / "run"),
        "model": {"architecture": str(architecture), "second_order": {"heads": 2, "reduced_width": 4}},
        "data": {"batch_size": 2, "num_workers": 0, "shuffle_window": 16},
        "schedule": {"steps": 3},
        "compute": {"device": "cpu", "num_threads": 1},
    }
    train(make_settings(values))
    vectors, index = folder / "vectors.parquet", folder / "index"
    assert main(["embed", str(release), "--model", str(folder / "run"), "--out", str(vectors)]) == 0
    assert main(["index", str(vectors), "--out", str(index)]) == 0
    return index


def run(folder: Path, **changes: Any) -> None:
    config = BuildConfig.model_validate(
        {
            "name": "small",
            "work_dir": str(folder / "work"),
            "sources": [
                {
                    "name": "photos",
                    "domain": "food",
                    "folder": {"path": str(folder / "pictures"), "captions": "text_file"},
                    "defaults": {"licence": "CC0-1.0", "rights_holder": OWNER, "taxon_family": "Rosaceae"},
                }
            ],
            "dedup": {"radius": 4},
            "evaluation": [{"name": "held", "folder": {"path": str(folder / "evaluation"), "captions": "none"}}],
            "run": {"executor": "inline"},
            **changes,
        }
    )
    with Catalog.open(str(folder / "work")) as catalog:
        Runner(config, FLOW, catalog).run()
