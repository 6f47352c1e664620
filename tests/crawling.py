"""The pages of `plantmix browse` in this process: a client that is signed in, and a crawl of all that they lead to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, urldefrag, urlencode, urljoin, urlsplit

from starlette.testclient import TestClient

from pipeline.browse.app import Pages, make_app
from pipeline.browse.evaluation import EvaluationPictures
from pipeline.browse.image_index import ImageIndex
from pipeline.browse.index import make_index
from pipeline.browse.snapshot import IMAGES_FILE, open_snapshot
from pipeline.commands.explain import describe_life

PORT = 8123
TOKEN = "the-right-token"
BASE = f"http://127.0.0.1:{PORT}"


@contextmanager
def open_image_index(folder: Path, private: Path) -> Iterator[ImageIndex]:
    """The index of a work folder or a release, made anew in an empty folder."""
    with open_snapshot(str(folder), private) as snapshot:
        make_index(snapshot)
        with snapshot.attached(snapshot.index / IMAGES_FILE, read_only=True):
            yield ImageIndex(snapshot)


def make_client(image_index: ImageIndex, *, signed_in: bool = True, evaluation: Sequence[str] = ()) -> TestClient:
    """A client of the real application."""
    pages = Pages(image_index.snapshot, "today", describe_life, EvaluationPictures(image_index.snapshot, evaluation))
    pages.open(image_index)
    client = TestClient(make_app(pages, token=TOKEN, port=PORT), base_url=BASE, follow_redirects=False)
    if signed_in:
        assert client.get("/", params={"open": TOKEN}).status_code == 303
    return client


class _Page(HTMLParser):
    """Where a page leads: what its tags name, and every way to send its forms. Also the ids that it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self._fields: list[tuple[str, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "form":
            assert values.get("method", "get").lower() == "get", "only addresses can be followed"
            self._action, self._fields = values["action"], []
        elif tag == "select":
            self._fields.append((values["name"], []))
        elif tag == "option":
            self._fields[-1][1].append(values["value"])
        elif tag == "input":
            typed = values.get("value") or "a"
            self._fields.append((values["name"], [typed] if values["type"] == "hidden" else ["", typed]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            names = [name for name, _ in self._fields]
            for chosen in itertools.product(*(values for _, values in self._fields)):
                self.links.append(f"{self._action}?{urlencode(list(zip(names, chosen, strict=True)))}")


def crawl(client: TestClient) -> tuple[dict[str, str], list[str]]:
    """Every page that can be reached, by its address; and what is wrong: an answer other than 200, a place that is not
    on its page.

    Filters on filters lead to nothing new. So on the page of all images, only addresses with one filter are followed.
    """
    pages: dict[str, str] = {}
    faults: list[str] = []
    waiting = [("/", "")]
    seen = {"/?"}
    while waiting:
        address, linked_from = waiting.pop(0)
        answer = client.get(address)
        if answer.status_code != 200:
            faults.append(f"{answer.status_code}: {address} on {linked_from}")
            continue
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        pages[address] = answer.text
        page = _Page(answer.text)
        for link in page.links:
            target, place = urldefrag(urljoin(BASE + address, link))
            target = target.removeprefix(BASE)
            if place and target == address and place not in page.ids:
                faults.append(f"no element {place}: {link} on {address}")
            parts = urlsplit(target)
            said = parse_qsl(parts.query)  # without fields that were left empty
            is_deep = urlsplit(address).path == parts.path == "/" and len(said) > 1
            key = f"{parts.path}?{urlencode(sorted(said))}"
            if not parts.netloc and key not in seen and not is_deep:
                seen.add(key)
                waiting.append((target, address))
    return pages, faults
