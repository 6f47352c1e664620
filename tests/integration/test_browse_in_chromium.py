"""The pages of `plantmix browse` in a real headless Chromium, served by the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from browsing import (
    DESK,
    PHONE,
    build_work_folder,
    complaints,
    embed_release,
    newest_release,
    open_chromium,
    open_page,
    violations,
)
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from manifests.contract.reader import open_reader

PAGES = (
    "/",
    "/?q=shelf&stage=select",
    "/?shows=a+ripe+tomato&stage=packed",
    "/reasons",
    "/duplicates",
    "/leaks",
    "/compare",
)
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Browsed:
    """A running `plantmix browse` and a browser that is signed in."""

    driver: Any
    base: str
    work: Path

    def open(self, path: str, size: tuple[int, int] = DESK, scheme: str = "light") -> None:
        open_page(self.driver, self.base + path, size, scheme)

    def text(self, selector: str) -> str:
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def complaints(self) -> list[str]:
        return complaints(self.driver)

    def ask(self, sql: str) -> list[Any]:
        with open_reader(str(self.work)) as connection:
            return list(connection.execute(sql).fetchall())


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    work = build_work_folder(tmp_path_factory.mktemp("browsed"))
    command = [sys.executable, "-m", "pipeline.cli", "browse", str(work)]
    command += ["--evaluation", f"held={work.parent / 'evaluation'}"]
    command += ["--search", str(embed_release(newest_release(work), work.parent))]
    own = {**os.environ, "XDG_CACHE_HOME": str(work.parent / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as served:
        assert served.stdout is not None
        yield served.stdout.readline().strip(), work
        served.terminate()


@pytest.fixture(scope="module")
def browsed(address: tuple[str, Path]) -> Iterator[Browsed]:
    url, work = address
    with open_chromium() as driver:
        driver.get(url)
        WebDriverWait(driver, 240).until_not(lambda page: "Getting ready" in page.title)
        yield Browsed(driver, url.partition("/?")[0], work)


def test_the_token_is_gone_from_the_address(browsed: Browsed) -> None:
    browsed.open("/")
    assert browsed.driver.current_url == browsed.base + "/"
    assert browsed.driver.execute_script("return document.cookie") == ""


def test_an_image_opens_with_its_life_by_keyboard(browsed: Browsed) -> None:
    browsed.open("/?reason=near_duplicate")
    body = browsed.driver.switch_to.active_element
    for _ in range(80):
        body.send_keys(Keys.TAB)
        body = browsed.driver.switch_to.active_element
        if "/image/" in (body.get_attribute("href") or ""):
            break
    outline = browsed.driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    body.send_keys(Keys.ENTER)
    assert "DROPPED: near_duplicate" in browsed.text(".life")
    assert len(browsed.all(".grid > li")) >= 2
    shown = browsed.all(".frame.large img")[0]
    assert browsed.driver.execute_script("return arguments[0].naturalWidth", shown) > 100
    assert shown.get_attribute("alt")


SOUND = """<!doctype html><html lang=en><title>sound</title><meta name=viewport content="width=device-width">
<style>body {{ background: #fff; color: #222 }} div {{ width: 90px; overflow: auto }}</style><h1 id=head>Head</h1>
<label for=word>Word</label><input id=word><button>Go</button><a href=/>Home</a><ul><li>one</ul>
<img alt="a leaf" src="data:,">{}</html>"""
FAULTS = {
    "": [],
    '<p style="color: #999">pale': ["contrast 2.85: pale"],
    '<p style="color: #777; font-size: 24px">large': [],
    '<p style="background: #222; color: rgb(255 255 255 / .2)">faint': ["contrast 1.92: faint"],
    '<a href=/ aria-label=" "></a>': ["link without a name"],
    "<button></button><input>": ["button without a name", "textbox without a name"],
    "<img src='data:,'>": ['no alt: <img src="data:,">', "image without a name"],
    "<i id=head></i>": ["two elements have the id head"],
    "<label for=other>Other</label>": ["for names other, which is not there"],
    "<p><li>alone": ["a list that is none: <li>alone</li>"],
    "<div>a_word_that_is_wider_than_its_box</div>": ["no key scrolls <div>a_word_that_is_wider_than_its_box</div>"],
}


def test_each_fault_of_a_page_is_seen(browsed: Browsed, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    seen = {}
    for fault in FAULTS:
        page.write_text(SOUND.format(fault), encoding="utf-8")
        open_page(browsed.driver, page.as_uri())
        seen[fault] = violations(browsed.driver)
    page.write_text("<p>bare", encoding="utf-8")
    open_page(browsed.driver, page.as_uri())
    assert violations(browsed.driver) == ["html says no language", "the page has no title"]
    assert seen == FAULTS
    browsed.complaints()


# colours depend on the scheme alone and the layout on the width alone, so two of the four show all
@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")], ids=["desk-light", "phone-dark"])
def test_every_page_fits_and_everyone_can_use_it(browsed: Browsed, size: tuple[int, int], scheme: str) -> None:
    ((dropped,),) = browsed.ask("SELECT min(sample_id) FROM decisions WHERE reason = 'near_duplicate'")
    names = sorted(path.parent.name for path in (browsed.work / "releases").glob("*/release.json"))
    browsed.complaints()
    for page in (*PAGES, f"/image/{dropped}", f"/compare?a={names[0]}&b={names[1]}"):
        browsed.open(page, size, scheme)
        assert browsed.complaints() == [], page
        assert browsed.driver.execute_script("return document.documentElement.scrollWidth") <= size[0], page
        serious = violations(browsed.driver)
        assert not serious, f"{page}: {json.dumps(serious, indent=1)[:3000]}"
    background = browsed.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness < 60) == (scheme == "dark")


def test_the_filters_of_a_phone_open(browsed: Browsed) -> None:
    browsed.open("/", PHONE)
    assert not browsed.all(".facets")[0].is_displayed()
    browsed.all("details.all summary")[0].click()
    assert browsed.all(".facets")[0].is_displayed()


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "dark"), (PHONE, "light")], ids=["desk-dark", "phone-light"])
def test_a_picture_is_searched_from_a_tile(browsed: Browsed, size: tuple[int, int], scheme: str) -> None:
    browsed.complaints()
    browsed.open("/?stage=packed", size, scheme)
    first = browsed.all("section .grid > li")[0]
    sample_id = first.find_element(By.CSS_SELECTOR, "a").get_attribute("href").rpartition("/")[2]
    first.find_element(By.CSS_SELECTOR, "a.like").click()
    assert browsed.text("section .grid .line").split() == ["packed", "score", "1.000"]
    assert browsed.driver.current_url == f"{browsed.base}/?like={sample_id}"
    given = browsed.all(".asked img")[0]
    assert browsed.driver.execute_script("return arguments[0].naturalWidth", given) > 100
    assert browsed.complaints() == []
    assert browsed.driver.execute_script("return document.documentElement.scrollWidth") <= size[0]
    assert not violations(browsed.driver)
    browsed.all(".asked .chip")[0].click()
    assert browsed.driver.current_url == f"{browsed.base}/"


def test_hostile_captions_run_nothing(browsed: Browsed) -> None:
    browsed.complaints()
    for (sample_id,) in browsed.ask("SELECT sample_id FROM candidates"):
        browsed.open(f"/image/{sample_id}")
        assert "taken" not in browsed.driver.title
        assert browsed.all("script, main img[onerror], iframe") == []
        header = browsed.driver.execute_script("return getComputedStyle(document.querySelector('header')).direction")
        assert header == "ltr"
    assert browsed.complaints() == []
