"""`plantmix retry`: only what passes is asked again, into the same catalogue; killed anywhere, nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import folder_source, list_source, loopback, write_small_config
from misbehaving.answers import encode, pixels, send
from misbehaving.numbered import NumberedPictures

from manifests.contract.catalog import Catalog
from manifests.contract.reader import open_reader
from pipeline.cli import main
from pipeline.config import read_config
from pipeline.engine.kept_config import last_config
from pipeline.fetching.local import read_local


class Web(NumberedPictures):
    """It has an opinion of each picture today."""

    mood: dict[int, str]

    def answer(self, sock: Any, number: int) -> None:
        mood = self.mood.get(number)
        if mood is None:
            super().answer(sock, number)
        elif mood == "redirect":
            send(sock, "302 Found", {"Location": f"/p/{number + 100}"})
        else:
            send(sock, {"5xx": "500 Internal Server Error", "404": "404 Not Found", "429": "429 Too Many"}[mood])


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as made:
        made.mood = {}
        yield made


NUM = 12


def write_config(folder: Path, web: Web, num: int = NUM, **run: Any) -> Path:
    """A small build of `num` pictures, two domains, one URL a row."""
    source = list_source(folder, web.urls(num))
    fetch = loopback(threads=4, limits={"connections": 4})
    return write_small_config(folder, source, fetch=fetch, dedup={"radius": 0}, run={"fetch_part_size": 5, **run})


def outcomes(work: Path) -> dict[str, str]:
    with open_reader(str(work)) as connection:
        rows = connection.sql("SELECT record_key, outcome FROM facts JOIN candidates USING (sample_id)").fetchall()
    return dict(rows)


@pytest.mark.slow
def test_only_what_passes_is_asked_again_and_later_stages_see_it(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    config, work = write_config(tmp_path, web), tmp_path / "work"
    web.mood = {1: "5xx", 2: "404", 3: "5xx", 4: "5xx"}
    assert main(["build", str(config)]) == 0
    assert web.newly_asked() == dict.fromkeys(range(NUM), 1)
    first = (work / "releases/LATEST").read_text()
    web.mood = {3: "404", 4: "5xx"}
    assert main(["build", str(config)]) == 0
    assert web.newly_asked() == {}, "a build alone asks nobody again"
    capsys.readouterr()

    assert main(["retry", str(work)]) == 0
    assert web.newly_asked() == {1: 1, 3: 1, 4: 1}
    shown = capsys.readouterr().out
    assert "round 1: asked again for 3 rows, 1 more pictures" in shown
    counts = {line.split()[0]: line.split()[1:3] for line in shown.splitlines() if line[:4] in ("ok  ", "http")}
    assert counts == {"ok": ["8", "9"], "http_5xx": ["3", "1"], "http_404": ["1", "2"]}
    assert (outcomes(work)["1"], outcomes(work)["3"], outcomes(work)["4"]) == ("ok", "http_404", "http_5xx")
    status = json.loads((work / "status.json").read_text())
    assert status["stages"]["pack"]["sealed"], "what was decided stays until it is decided again"
    assert main(["status", str(work)]) == 0
    assert "dedup and what follows are older than fetch: `plantmix build`" in capsys.readouterr().out

    assert main(["build", str(config)]) == 0
    assert "done in" in capsys.readouterr().out
    assert web.newly_asked() == {}
    assert (work / "releases/LATEST").read_text() != first
    web.mood = {4: "5xx"}
    assert main(["retry", str(work)]) == 0
    assert web.newly_asked() == {4: 1}
    assert "nothing that later stages look at has changed" in capsys.readouterr().out
    assert main(["build", str(config)]) == 0
    assert "fetch" not in capsys.readouterr().out.partition("\n")[0]


@pytest.mark.parametrize("by", ["url", "owner", "id"])
def test_what_must_stay_out_is_not_asked_again(
    by: str, tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    config, work = write_config(tmp_path, web), tmp_path / "work"
    web.mood = {1: "5xx", 3: "5xx"}
    assert main(["build", str(config), "--to", "fetch"]) == 0
    with open_reader(str(work)) as connection:
        (row,) = (
            connection.sql("SELECT sample_id AS id, url FROM candidates WHERE record_key = '1'")
            .to_arrow_table()
            .to_pylist()
        )
    if by == "owner":
        row["owner"] = "nobody"
    (work / "takedowns.jsonl").write_text(json.dumps({"by": by, "value": row[by], "reason": "asked"}))
    web.newly_asked()
    capsys.readouterr()
    assert main(["retry", str(work)]) == 0
    assert web.newly_asked() == ({1: 1, 3: 1} if by == "owner" else {3: 1})
    said = "1 more were not asked: takedowns.jsonl says that they stay out"
    assert (said in capsys.readouterr().out) == (by != "owner")


@pytest.mark.slow
def test_explain_shows_every_round(tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    config, work = write_config(tmp_path, web), tmp_path / "work"
    web.mood = {1: "5xx"}
    assert main(["build", str(config), "--to", "fetch"]) == 0
    web.mood = {1: "429"}
    assert main(["retry", str(work)]) == 0
    web.mood = {1: "redirect"}
    assert main(["retry", str(work)]) == 0
    capsys.readouterr()
    url = web.url_of(1)
    assert main(["explain", str(work), url]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "at first: http_5xx (status 500), 1 attempt" in lines
    assert "round 1: http_429 (status 429), 1 attempt" in lines
    assert "round 2: ok, 1 attempt" in lines
    assert f"redirected to {url}01" in lines
    assert main(["explain", str(work), f"{url}01"]) == 0, "found by where it was redirected to as well"


def test_wrong_use_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", str(tmp_path / "nowhere")]) == 2
    assert "no catalogue" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_a_fetch_that_is_not_done_is_built_first(tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    config, work = write_config(tmp_path, web), tmp_path / "work"
    with Catalog.open(str(work)):
        pass
    assert main(["retry", str(work)]) == 2
    assert "no build has run here yet" in capsys.readouterr().err
    assert main(["build", str(config), "--to", "ingest"]) == 0
    assert main(["retry", str(work)]) == 2
    assert "the stage 'fetch' is not done yet" in capsys.readouterr().err


def test_the_stored_config_is_the_one_of_the_last_build(tmp_path: Path, web: Web) -> None:
    config = write_config(tmp_path, web)
    assert main(["build", str(config), "--to", "ingest"]) == 0
    with Catalog.open(str(tmp_path / "work")) as catalog:
        assert last_config(catalog) == read_config(config)


@pytest.mark.slow
def test_a_file_that_was_away_is_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(4):
        (pictures / f"rose {n}.jpg").write_bytes(encode(pixels(seed=n)))
    config = str(write_small_config(tmp_path, folder_source(pictures)))

    def disk_away(*arguments: Any, **options: Any) -> Any:
        pictures.replace(tmp_path / "away")
        try:
            return read_local(*arguments, **options)
        finally:
            (tmp_path / "away").replace(pictures)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.fetch.local.read_local", disk_away)
        assert main(["build", config, "--to", "fetch"]) == 0
    assert list(outcomes(tmp_path / "work").values()).count("file_missing") == 4
    assert main(["retry", str(tmp_path / "work")]) == 0
    assert "round 1: asked again for 4 rows, 4 more pictures" in capsys.readouterr().out
    assert set(outcomes(tmp_path / "work").values()) == {"ok"}
    os.utime(pictures / "rose 1.jpg")
    assert main(["retry", str(tmp_path / "work")]) == 2
    assert "or files of its sources have changed since; run `plantmix build`" in capsys.readouterr().err
    assert main(["build", config, "--to", "fetch"]) == 0
    assert set(outcomes(tmp_path / "work").values()) == {"ok"}


@pytest.mark.slow
def test_a_release_without_most_of_its_pictures_is_sealed_when_told_alone(
    tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    config, work = write_config(tmp_path, web), tmp_path / "work"
    web.mood = dict.fromkeys(range(7), "5xx")
    for _ in range(2):  # a build alone asks nobody again, and says the same
        assert main(["build", str(config)]) == 1
        said = capsys.readouterr().err
        assert "a: 7 of 12 pictures (7 http_5xx)" in said
        assert f"plantmix retry {work}" in said
        assert not (work / "releases").exists()
    assert main(["build", str(write_config(tmp_path, web, max_passing_share=1))]) == 0
    without_them = (work / "releases/LATEST").read_text()
    web.mood = {1: "5xx"}
    assert main(["retry", str(work)]) == 0
    assert main(["build", str(write_config(tmp_path, web))]) == 0
    assert (work / "releases/LATEST").read_text() != without_them
