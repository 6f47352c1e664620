"""Make the README's pictures from the demo's release with a real Chromium, and record what they show.

`make pictures` runs this after `make demo`. A picture itself cannot be compared: other fonts give other pixels. So
.github/pictures.json holds the release that the pictures show and a digest of the words on each page. Tests compare
these with the README, and with the demo's release where it is built anyway.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from building import release_of  # noqa: E402
from crawling import make_client, open_image_index  # noqa: E402

FOLDER = ROOT / ".github"
RECORD = "pictures.json"
SIZES = {"report.png": (1280, 1075), "browse.png": (1280, 790)}  # width and height, px
SECONDS_TO_INDEX = 240
SECONDS_TO_DRAW = 60
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC")
_DRAW = """
const done = arguments[arguments.length - 1];
const seen = [...document.images].filter(image => image.getBoundingClientRect().top < innerHeight);
Promise.allSettled(seen.map(image => image.decode())).then(() => requestAnimationFrame(() => done()));
"""


class _Words(HTMLParser):
    """The words of a page that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title")

    def handle_data(self, data: str) -> None:
        self.words += [] if self._hidden else data.split()


def digest_of_words(html: str) -> str:
    """sha256 of the words on a page, but for times: each build has its own."""
    page = _Words()
    page.feed(html)
    return hashlib.sha256(_TIME.sub("TIME", " ".join(page.words)).encode()).hexdigest()


def shown_by(work: Path, name: str) -> dict[str, Any]:
    """Return a release of a work folder, by its name, and a digest of the words of each page that is pictured."""
    release = work / "releases" / name
    with tempfile.TemporaryDirectory() as private, open_image_index(work, Path(private)) as image_index:
        browse = make_client(image_index).get("/").text
    pages = {"report.png": (release / "report.html").read_text(encoding="utf-8"), "browse.png": browse}
    return {"release": release.name, "words": {name: digest_of_words(html) for name, html in pages.items()}}


def make(work: Path, folder: Path) -> None:
    """Write the pictures and the record into a folder."""
    from browsing import open_chromium, open_page  # loads torch, which the tests of the record do without
    from selenium.webdriver.support.ui import WebDriverWait

    addresses = {"report.png": (release_of(work) / "report.html").resolve().as_uri()}
    digests = {}
    with open_chromium() as driver, browsing(work) as address:
        driver.set_script_timeout(SECONDS_TO_DRAW)
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        driver.get(address)  # with the token
        WebDriverWait(driver, SECONDS_TO_INDEX).until_not(lambda page: "Getting ready" in page.title)
        addresses["browse.png"] = address.partition("?")[0]
        for name, size in SIZES.items():
            open_page(driver, addresses[name], size)
            driver.execute_async_script(_DRAW)
            (folder / name).write_bytes(smaller(driver.get_screenshot_as_png()))
            digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    record = shown_by(work, release_of(work).name) | {"sha256": digests}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


@contextmanager
def browsing(work: Path) -> Iterator[str]:
    """Run `plantmix browse` and give the address that it prints."""
    command = [sys.executable, "-m", "pipeline.cli", "browse", str(work)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as served:
        assert served.stdout is not None
        try:
            yield served.stdout.readline().strip()
        finally:
            served.terminate()


def smaller(png: bytes) -> bytes:
    """Return the same picture in 256 colours."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def release_of_readme() -> str:
    """Return the release that the README names."""
    (name,) = re.findall(r"^release: \S+/([\w-]+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return str(name)


def main() -> int:
    """`make pictures`."""
    work = ROOT / "data/demo"
    made = release_of(work).name if (work / "releases/LATEST").is_file() else "none"
    if made != release_of_readme():
        print(
            f"pictures: the newest release of {work} is {made}, and README.md names {release_of_readme()}; correct the "
            f"README, or delete {work} and run `make pictures` again",
            file=sys.stderr,
        )
        return 2
    if missing := [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]:
        print(
            f"pictures: no {' and no '.join(missing)} here; on Debian: apt-get install chromium chromium-driver",
            file=sys.stderr,
        )
        return 2
    make(work, FOLDER)
    print(f"pictures: {', '.join(SIZES)} in {FOLDER} show {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
