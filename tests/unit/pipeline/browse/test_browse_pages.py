"""What the pages show, held against the tables themselves."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import OWNER
from starlette.testclient import TestClient

from manifests.contract.reader import open_reader
from pipeline.answers.lives import find_lives
from pipeline.browse import codes as codes_module
from pipeline.browse import image_index as image_index_module
from pipeline.browse.app import PAGES
from pipeline.browse.filters import Filters
from pipeline.browse.image_index import ImageIndex
from pipeline.commands.explain import describe_life


def ask(work: Path, sql: str) -> list[Any]:
    with open_reader(str(work)) as connection:
        return list(connection.execute(sql).fetchall())


def one_id(work: Path, condition: str) -> str:
    return str(ask(work, f"SELECT sample_id FROM samples WHERE {condition} ORDER BY sample_id LIMIT 1")[0][0])


def ids_on(page: str) -> list[str]:
    return re.findall(r'<a href="/image/([0-9a-f]{32})">\n<span class="frame">', page)


def num_found(client: TestClient, address: str) -> int:
    page = client.get(address)
    assert page.status_code == 200
    found = re.search(r'class="found"><b>([0-9,]+)</b>', page.text)
    assert found is not None
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("path", [path for path, _ in PAGES])
def test_every_page_is_there_for_work_folder_and_release(
    client: TestClient, release_client: TestClient, path: str
) -> None:
    for one in (client, release_client):
        page = one.get(path)
        assert page.status_code == 200
        assert page.text.count("<h1") == 1
        assert 'aria-current="page"' in page.text


def test_the_counts_beside_filters_are_those_of_the_tables(image_index: ImageIndex, work: Path) -> None:
    total, facets = image_index.counts(Filters())
    counted = {facet["name"]: {row["value"]: row["num"] for row in facet["values"]} for facet in facets}
    assert total == 22
    assert counted["outcome"] == dict(ask(work, "SELECT outcome, count(*) FROM facts GROUP BY 1"))
    dropped = dict(ask(work, "SELECT reason, count(*) FROM decisions WHERE NOT keep GROUP BY 1"))
    left_out = 22 - sum(dropped.values()) - 3
    assert counted["reason"] == {**dropped, "left_out_by_ratio": left_out, "": 3}
    stages = dict(ask(work, "SELECT stage, count(*) FROM decisions WHERE NOT keep GROUP BY 1"))
    assert counted["stage"] == {**stages, "mix": left_out, "packed": 3}
    assert counted["family"] == {"Rosaceae": 22}
    assert counted["licence"] == {"CC0-1.0": 22}
    assert counted["evaluation"] == {"": 20, "held": 2}
    assert all(sum(values.values()) == total for values in counted.values())


def test_a_facet_counts_what_all_other_filters_leave(image_index: ImageIndex, work: Path) -> None:
    filters = Filters(chosen={"stage": ("select", "fetch"), "reason": ("near_duplicate",)})
    total, facets = image_index.counts(filters)
    counted = {facet["name"]: {row["value"]: row["num"] for row in facet["values"]} for facet in facets}
    reasons = "SELECT reason, count(*) FROM decisions WHERE stage IN ('select', 'fetch') GROUP BY 1"
    assert counted["reason"] == dict(ask(work, reasons))
    assert total == counted["reason"]["near_duplicate"] > 5
    assert counted["stage"] == {"select": total, "fetch": 0}  # a chosen value stays, so that it can be taken away


@pytest.mark.parametrize(
    ("address", "condition"),
    [
        ("/?q=SHELF", "contains(lower(coalesce(text, caption)), 'shelf')"),
        ("/?q=shelf+milk", "text LIKE '%milk%' AND text LIKE '%shelf%'"),
        ("/?q=%25", "contains(text, '%')"),
        ("/?q='+OR+1=1;+--", "contains(caption, 'OR 1=1; --')"),
        ("/?q=שלום", "contains(text, 'שלום')"),
        ("/?q=shelf&reason=near_duplicate", "contains(text, 'shelf') AND reason = 'near_duplicate'"),
        ("/?reason=near_duplicate&reason=max_chars", "reason IN ('near_duplicate', 'max_chars')"),
        ("/?taxon=rosaceae", "true"),
        ("/?taxon=quercus", "false"),
        ("/?host=example.org", "false"),
        ("/?reason=%27", "false"),
        ("/?nonsense=1&after=x", "true"),
    ],
)
def test_search_and_filters_find_what_sql_finds(client: TestClient, work: Path, address: str, condition: str) -> None:
    wanted = [row[0] for row in ask(work, f"SELECT sample_id FROM samples WHERE {condition} ORDER BY 1")]
    assert num_found(client, address) == len(wanted)
    assert ids_on(client.get(address).text) == wanted


def test_pages_show_every_image_once_and_lead_back(
    client: TestClient, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_index_module, "PAGE_IMAGES", 6)
    everything = [row[0] for row in ask(work, "SELECT sample_id FROM samples ORDER BY 1")]

    def walk(address: str | None, rel: str) -> list[list[str]]:
        seen = []
        while address is not None:
            page = client.get(address).text
            seen.append(ids_on(page))
            link = re.search(f'rel="{rel}" href="([^"]+)"', page)
            address, last = (html.unescape(link[1]) if link else None), address
        walked.append(last)
        return seen

    walked: list[str] = []
    forward = walk("/", "next")
    assert [one for page in forward for one in page] == everything
    back = walk(walked[0], "prev")
    assert back[::-1][1:] == forward[1:]
    assert back[-1] == forward[0]


def test_an_image_tells_its_life_as_explain_does(client: TestClient, work: Path) -> None:
    dropped = one_id(work, "reason = 'near_duplicate'")
    page = html.unescape(client.get(f"/image/{dropped}").text)
    with open_reader(str(work)) as connection:
        lines = describe_life(find_lives(connection, dropped)[0])
    assert len(lines) > 8
    for line in lines:
        assert line in page


def test_duplicates_stand_side_by_side_with_their_distances(client: TestClient, work: Path) -> None:
    dropped, kept, distance = ask(
        work,
        "SELECT sample_id, other_sample_id, distance FROM samples WHERE reason = 'near_duplicate' AND distance > 0 "
        "AND value NOT LIKE 'mirrored%'",
    )[0]
    page = client.get(f"/image/{kept}").text
    group = [row[0] for row in ask(work, f"SELECT sample_id FROM samples WHERE other_sample_id = '{kept}'")]
    assert set(ids_on(page)) >= {kept, dropped, *group}
    assert f"{distance} bits apart" in page
    assert f'/image/{kept}"' in client.get(f"/image/{dropped}").text


@pytest.mark.slow
def test_near_misses_are_the_nearest_beyond_the_radius(image_index: ImageIndex, work: Path) -> None:
    for image in image_index.images(
        [row[0] for row in ask(work, "SELECT sample_id FROM samples WHERE phash IS NOT NULL")]
    ):
        wanted = ask(
            work,
            f"SELECT bit_count(xor(phash, {image['phash']}::UBIGINT)) AS bits, sample_id FROM facts "
            "WHERE phash IS NOT NULL AND bits BETWEEN 5 AND 12 ORDER BY ALL LIMIT 8",
        )
        assert [(row["bits"], row["id"]) for row in image_index.near_misses(image)] == wanted


def test_a_leak_names_its_twin(client: TestClient, work: Path) -> None:
    leaks = dict(ask(work, "SELECT evaluation_member, sample_id FROM leaks"))
    leak = leaks["held.jpg"]
    page = client.get(f"/image/{leak}").text
    assert "twin in an evaluation set" in page
    assert "held: held.jpg" in page
    assert ids_on(client.get("/leaks").text) == [leak, leaks["near.png"]]


def test_a_packed_image_names_its_shard_and_key(client: TestClient, work: Path) -> None:
    sample_id, shard, key = ask(work, "SELECT sample_id, shard, key FROM samples WHERE shard IS NOT NULL")[0]
    page = client.get(f"/image/{sample_id}").text
    assert shard in page
    assert key in page


def test_galleries_show_every_drop_reason(client: TestClient, work: Path) -> None:
    page = client.get("/reasons").text
    for reason, num in ask(work, "SELECT reason, count(*) FROM decisions WHERE NOT keep GROUP BY 1"):
        assert f"reason={reason}" in page
        assert f"{num} at " in page
    shown = ask(work, "SELECT sum(least(n, 6)) FROM (SELECT count(*) n FROM decisions WHERE NOT keep GROUP BY reason)")
    ((kept,),) = ask(work, "SELECT count(*) FROM decisions WHERE keep")
    assert len(ids_on(page)) == int(shown[0][0]) + min(6, kept - 3)  # at most six of a reason; three were packed


def test_duplicates_shows_groups_and_close_calls(client: TestClient) -> None:
    page = client.get("/duplicates").text
    assert "3 images <small>" in page
    assert "Just inside the radius" in page
    assert "searched among" in page


def test_two_releases_are_compared(client: TestClient, work: Path) -> None:
    a, b = sorted(path.parent.name for path in (work / "releases").glob("*/release.json"))
    page = client.get("/compare", params={"a": a, "b": b}).text
    assert f"plantmix diff {work}/releases/{a} {work}/releases/{b}</code>" in page
    sealed = dict(ask(work, "SELECT name, strftime(sealed_at, '%Y-%m-%d %H:%M') FROM releases"))
    assert f"{a} ({sealed[a]}, 4 samples)" in page or f"{a} ({sealed[a]}, 3 samples)" in page


@pytest.mark.parametrize("name", ["../../pictures", "..", "/etc", "small", ""])
def test_only_releases_of_the_folder_are_compared(client: TestClient, name: str) -> None:
    page = client.get("/compare", params={"a": name, "b": name})
    assert page.status_code == 200
    assert "plantmix diff" not in page.text


def test_pictures_are_the_stored_bytes(client: TestClient, release_client: TestClient, work: Path) -> None:
    rows = ask(work, 'SELECT sample_id, pool_file, f."offset", length FROM facts f WHERE pool_file IS NOT NULL')
    assert len(rows) == 20
    for sample_id, pool_file, offset, length in rows:
        answer = client.get(f"/picture/{sample_id}.jpg")
        stored = (work / "pool" / pool_file).read_bytes()[offset : offset + length]
        assert (answer.content, answer.headers["content-type"]) == (stored, "image/jpeg")
    packed = ids_on(release_client.get("/").text)
    assert len(packed) == 3
    for sample_id in packed:
        same = client.get(f"/picture/{sample_id}.jpg").content
        assert release_client.get(f"/picture/{sample_id}.jpg").content == same


@pytest.mark.parametrize("name", ["0" * 32, "x", "..%2f..%2fcatalog", "%2e%2e/catalog.duckdb", "'"])
def test_an_unknown_picture_or_image_is_not_found(client: TestClient, name: str) -> None:
    assert client.get(f"/picture/{name}.jpg").status_code == 404
    assert client.get(f"/image/{name}").status_code == 404


def test_hostile_texts_change_nothing_but_themselves(client: TestClient, image_index: ImageIndex, work: Path) -> None:
    pages = [client.get(path).text for path, _ in PAGES]
    pages += [client.get(f"/image/{row[0]}").text for row in ask(work, "SELECT sample_id FROM candidates")]
    pages.append(client.get("/", params={"q": OWNER, "taxon": OWNER, "reason": OWNER}).text)
    for page in pages:
        assert "<script" not in page.lower()
        assert "<img src=x" not in page
        assert "onerror=alert(1)>" not in page
        assert "x" * 13_000 not in page
    lives = "".join(pages)
    assert str(html.escape(OWNER)).replace("&#x27;", "&#39;") in lives
    assert '<span class="given text">evil שלום tomato</span>' in pages[0]  # .given keeps its direction to itself


def test_pages_follow_each_other_over_the_borders_of_what_is_walked_at_a_time(
    image_index: ImageIndex, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "CHUNK", 3)
    monkeypatch.setattr(image_index_module, "PAGE_IMAGES", 4)
    for chosen in ({}, {"stage": ("select",)}, {"stage": ("select", "fetch"), "source": ("photos",)}):
        wanted = " OR ".join(f"stage = '{stage}'" for stage in chosen.get("stage", ())) or "true"
        ids = [row[0] for row in ask(work, f"SELECT sample_id FROM decisions WHERE {wanted} ORDER BY 1")]
        seen, filters, more = [], Filters(chosen=chosen), True
        while more:
            images, more = image_index.page(filters)
            seen += [image["id"] for image in images]
            filters = Filters(chosen=chosen, after=seen[-1])
        assert seen == ids
        back, more = image_index.page(Filters(chosen=chosen, before=ids[-1]))
        assert [image["id"] for image in back] == ids[-5:-1]
        assert more == (len(ids) > 5)


def test_a_leak_is_shown_beside_the_image_of_the_set(client: TestClient, work: Path) -> None:
    ((leak, matched),) = ask(work, "SELECT sample_id, matched FROM leaks WHERE evaluation_member = 'held.jpg'")
    page = client.get("/leaks").text
    assert matched in ("bytes", "pixels"), "so its own picture is the set's"
    assert page.count(f'src="/picture/{leak}.jpg"') == 2
    assert "the set’s image: the same picture" in page
    assert 'alt="the image of held' in client.get(f"/image/{leak}").text


def test_two_releases_are_compared_with_pictures(client: TestClient, work: Path) -> None:
    names = sorted(path.parent.name for path in (work / "releases").glob("*/release.json"))
    held = [
        {row[0] for row in ask(work, f"SELECT sample_id FROM '{work}/releases/{name}/samples.parquet'")}
        for name in names
    ]
    assert held[0] != held[1]
    page = client.get("/compare", params={"a": names[0], "b": names[1]}).text
    added = page.partition("<h2>Added")[2].partition("<h2>")[0]
    removed = page.partition("<h2>Removed")[2].partition("<h2>")[0]
    assert set(ids_on(added)) == held[1] - held[0]
    assert set(ids_on(removed)) == held[0] - held[1]


def test_a_release_tells_the_languages(release_client: TestClient, work: Path) -> None:
    num = num_found(release_client, "/")
    newest = work / "releases" / (work / "releases/LATEST").read_text(encoding="utf-8").strip()
    counted = ask(work, f"SELECT coalesce(language, ''), count(*) FROM '{newest}/samples.parquet' GROUP BY 1")
    assert sum(own for _, own in counted) == num
    for language, own in counted:
        assert num_found(release_client, f"/?language={language}") == own
