"""A small real work folder to browse: photos with copies, a leak, broken files, hostile captions, two releases.

Also a real Chromium to look at pages with, and checks that everyone can use them.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from environments import lacks
from PIL import Image
from release_writer import TINY_ARCHITECTURE
from selenium import webdriver
from training_runs import make_settings

from manifests.contract.catalog import Catalog
from pipeline.config import BuildConfig
from pipeline.engine.runner import Runner
from pipeline.flow import FLOW
from training.cli import main
from training.run.loop import train

PHOTOS = sorted((Path(__file__).parent / "photos").glob("*.jpg"))
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "\u202eevil \u05e9\u05dc\u05d5\u05dd tomato"
LONG = "long " + "x" * 10_000
HOSTILE = {0: SCRIPT, 1: RIGHT_TO_LEFT, 2: LONG, 3: "' OR 1=1; --\" onload=alert(1) {{ 7*7 }}"}
OWNER = "</dd><script>alert('owner')</script>"

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


NAMED_ROLES = {"button", "checkbox", "combobox", "DisclosureTriangle", "image", "link", "listbox", "radio", "searchbox",
               "spinbutton", "tab", "textbox"}  # fmt: skip
# Least contrast of WCAG 2.2 (1.4.3), of what stands on one colour; a text over a picture cannot be judged so.
LOOK = r"""
const faults = [];
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
function behind(element) {
  if (!element) return rgba("Canvas").slice(0, 3);
  const colour = rgba(getComputedStyle(element).backgroundColor);
  return colour[3] === 1 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
}
function luminance(colour) {
  const [r, g, b] = colour.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let text = texts.nextNode(); text; text = texts.nextNode()) {
  const element = text.parentElement, style = getComputedStyle(element);
  if (!text.data.trim() || element.closest("svg, script, style, :disabled") || !element.checkVisibility()) continue;
  const below = behind(element), colour = over(rgba(style.color), below);
  const [dark, light] = [luminance(colour), luminance(below)].sort((a, b) => a - b);
  const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  const ratio = (light + 0.05) / (dark + 0.05);
  if (ratio < (isLarge ? 3 : 4.5)) faults.push(`contrast ${ratio.toFixed(2)}: ${text.data.trim().slice(0, 60)}`);
}
if (!document.documentElement.lang) faults.push("html says no language");
if (!document.title.trim()) faults.push("the page has no title");
if (/user-scalable\s*=\s*no|maximum-scale/.test(document.querySelector("meta[name=viewport]")?.content))
  faults.push("the page forbids to zoom");
for (const image of document.querySelectorAll("img:not([alt])")) faults.push(`no alt: ${image.outerHTML.slice(0, 80)}`);
const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) faults.push(`two elements have the id ${id}`);
for (const name of ["for", "aria-labelledby", "aria-describedby", "aria-controls"])
  for (const element of document.querySelectorAll(`[${name}]`))
    for (const id of element.getAttribute(name).split(/\s+/))
      if (!document.getElementById(id)) faults.push(`${name} names ${id}, which is not there`);
for (const item of document.querySelectorAll("li:not(:is(ul, ol, menu) > li), :is(ul, ol) > :not(li, script)"))
  faults.push(`a list that is none: ${item.outerHTML.slice(0, 80)}`);
for (const box of document.querySelectorAll("body *")) {
  const style = getComputedStyle(box);
  const scrolls = /auto|scroll/.test(style.overflowX + style.overflowY) && !box.closest("svg, textarea, select")
    && (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1);
  const keys = "a[href], button, input, select, textarea, summary, [tabindex]";
  if (scrolls && box.tabIndex < 0 && !box.querySelector(keys))
    faults.push(`no key scrolls ${box.outerHTML.slice(0, 80)}`);
}
return faults;
"""


def violations(driver: Any) -> list[str]:
    """What keeps people from using the open page: no name for what they act on, little contrast, no way by keyboard."""
    faults: list[str] = driver.execute_script(LOOK)
    for node in driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]:
        role = node.get("role", {}).get("value")
        is_silent = node["ignored"] or node.get("name", {}).get("value", "").strip()
        if role in NAMED_ROLES and not is_silent:
            faults.append(f"{role} without a name")
    return faults


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


def embed_release(release: Path, folder: Path) -> Path:
    """Train a tiny model on a release into `folder`/run, and embed the release."""
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
    vectors = folder / "vectors.parquet"
    assert main(["embed", str(release), "--model", str(folder / "run"), "--out", str(vectors)]) == 0
    return vectors


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
