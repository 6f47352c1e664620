"""The report in a real headless Chromium: the sealed page of a release, and the page that adds its work folder."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    DESK,
    LONG,
    OWNER,
    PHONE,
    PHOTOS,
    RIGHT_TO_LEFT,
    SCRIPT,
    build_work_folder,
    complaints,
    open_chromium,
    open_page,
    run,
    violations,
)
from ci_scripts import load_ci_script
from PIL import Image
from sealed import lend
from selenium.webdriver.common.by import By

from manifests.contract.reader import open_reader

MOST_BYTES = 10_000_000
HOSTILE = (SCRIPT, RIGHT_TO_LEFT, LONG, OWNER)
ADDRESSES = ("http://127.0.0.1/", "javascript:alert(1)//")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_work_folder(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="module")
def pages(work: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    command = [sys.executable, "-m", "pipeline.cli", "report", str(work), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    newest = (work / "releases/LATEST").read_text(encoding="utf-8").strip()
    return {"sealed": work / "releases" / newest / "report.html", "work folder": out}


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with open_chromium() as opened:
        yield opened


@pytest.mark.parametrize("page", ["sealed", "work folder"])
@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_it_fits_and_everyone_can_use_it(
    driver: Any, pages: dict[str, Path], page: str, size: tuple[int, int], scheme: str
) -> None:
    assert pages[page].stat().st_size < MOST_BYTES
    complaints(driver)
    open_page(driver, pages[page].as_uri(), size, scheme)
    assert complaints(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    serious = violations(driver)
    assert not serious, json.dumps(serious, indent=1)[:3000]
    pictures = driver.find_elements(By.TAG_NAME, "img")
    assert pictures
    assert all(picture.get_attribute("alt") for picture in pictures)
    assert driver.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness < 60) == (scheme == "dark")


def test_pictures_for_the_readme_are_made_with_a_record_of_what_they_show(work: Path, tmp_path: Path) -> None:
    pictures = load_ci_script("pictures")
    pictures.make(work, tmp_path)
    record = json.loads((tmp_path / "pictures.json").read_text(encoding="utf-8"))
    for name, size in pictures.SIZES.items():
        content = (tmp_path / name).read_bytes()
        assert record["sha256"][name] == hashlib.sha256(content).hexdigest()
        with Image.open(tmp_path / name) as picture:
            assert picture.size == size
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 100, "nothing is shown"
    other = lend(work, tmp_path / "other" / work.name)
    assert record.items() >= pictures.shown_by(other, record["release"]).items(), "the folder's place is not shown"
    releases = sorted(path.parent.name for path in (other / "releases").glob("*/release.json"))
    (older,) = {*releases} - {record["release"]}
    shown = pictures.shown_by(other, older)
    assert shown["release"] == older
    assert shown["words"]["report.png"] != record["words"]["report.png"]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a work folder in which each caption, file name, owner and address is hostile in another way."""
    folder, sources = tmp_path_factory.mktemp("hostile"), []
    for at, text in enumerate(HOSTILE):
        pictures = folder / f"pictures {at}"
        pictures.mkdir()
        name = text.replace("/", "\u2215").encode()[:200].decode(errors="ignore")
        for stem, photo in ((f"{name} kept", 2 * at), (f"{name} dropped", 2 * at + 1)):
            size = (200, 200) if stem.endswith("kept") else (9, 9)
            Image.open(PHOTOS[photo]).convert("RGB").resize(size).save(pictures / f"{stem}.jpg")
            (pictures / f"{stem}.txt").write_text(text, encoding="utf-8")
        origin = {"folder": {"path": str(pictures), "captions": "text_file"}}
        defaults = {"licence": "CC0-1.0", "rights_holder": text, "taxon_family": text[:300]}
        sources.append({"name": f"photos{at}", "domain": "food", "defaults": defaults, **origin})
    (folder / "list.jsonl").write_text(
        "".join(json.dumps({"url": url + text, "caption": text}) + "\n" for text in HOSTILE for url in ADDRESSES),
        encoding="utf-8",
    )
    table = {"table": str(folder / "list.jsonl"), "columns": {"url": "url", "caption": "caption"}}
    sources.append({"name": "web", "domain": "food", "defaults": {"licence": "CC0-1.0"}, **table})
    run(folder, sources=sources, evaluation=[], mix={"ratio": {"food": 1}})
    out = folder / "report.html"
    command = [sys.executable, "-m", "pipeline.cli", "report", str(folder / "work"), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "work folder"])
def test_hostile_captions_owners_file_names_and_addresses_change_nothing_but_themselves(
    driver: Any, hostile: Path, sealed: bool
) -> None:
    (page,) = hostile.parent.glob("work/releases/*/report.html") if sealed else (hostile,)
    complaints(driver)
    open_page(driver, page.as_uri(), PHONE)
    assert complaints(driver) == []
    assert "taken" not in driver.title
    assert driver.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    assert driver.find_elements(By.CSS_SELECTOR, "script, iframe, [onerror], [onload], a:not([href^='#'])") == []
    assert violations(driver) == []
    with open_reader(str(hostile.parent / "work")) as sql:
        kept = [row[0] for row in sql.execute("SELECT text FROM samples WHERE split IS NOT NULL").fetchall()]
    assert len(kept) == len(HOSTILE)
    where = {"#samples": kept, "#origins": HOSTILE, **({} if sealed else {"#dropped": HOSTILE})}
    for section, text in [(section, text) for section, texts in where.items() for text in texts]:
        shown = driver.find_element(By.CSS_SELECTOR, section).get_attribute("textContent")
        assert " ".join(text[:40].split()) in " ".join(shown.split()), section
        assert "x" * 400 not in shown, "cut"
    around = driver.execute_script(
        "const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];"
        "while (walk.nextNode()) if (walk.currentNode.data.includes('\\u202e'))"
        "  found.push(getComputedStyle(walk.currentNode.parentElement).unicodeBidi);"
        "return found"
    )
    assert set(around) == {"isolate"}, "the text around it keeps its direction"


def test_the_sealed_page_tells_of_duplicates_and_leaks_but_shows_no_dropped_picture(
    driver: Any, pages: dict[str, Path], work: Path
) -> None:
    open_page(driver, pages["sealed"].as_uri())
    text = driver.find_element(By.ID, "duplicates").text
    with open_reader(str(work)) as sql:
        rows = sql.execute("SELECT sample_id, reason FROM decisions WHERE NOT keep").fetchall()
    for reason in ("near_duplicate", "exact_duplicate"):
        if num := sum(one == reason for _, one in rows):
            assert re.search(rf"\b{num} images? (was|were) dropped as {reason.replace('_', ' ')}", text)
    assert "held" in text
    page = pages["sealed"].read_text(encoding="utf-8")
    assert not [sample_id for sample_id, _ in rows if sample_id in page]


def test_on_paper_it_is_light_and_without_navigation(driver: Any, pages: dict[str, Path]) -> None:
    open_page(driver, pages["sealed"].as_uri(), scheme="dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3 > 200
    assert not driver.find_element(By.CSS_SELECTOR, "body > nav").is_displayed()
