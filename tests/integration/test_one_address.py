"""An address that several rows have, of one source or of two, is asked once; each of its rows gets its fact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import hash_tree, loopback, write_small_config
from misbehaving.answers import send
from misbehaving.numbered import NumberedPictures

from manifests.contract.reader import open_reader
from pipeline.cli import main


class Web(NumberedPictures):
    """Of its pictures, `down` are not to be had today."""

    down: frozenset[int] = frozenset()

    def answer(self, sock: Any, number: int) -> None:
        if number in self.down:
            send(sock, "503 Service Unavailable", {"Retry-After": "0"})
        else:
            super().answer(sock, number)


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as made:
        yield made


def build(folder: Path, web: Web, *options: str, **run: Any) -> None:
    folder.mkdir(exist_ok=True)
    sources = []
    for name, numbers in (("a", [0, 1, 1, 2, 3, 4]), ("b", [3, 4, 5, 3])):
        rows = [f"{k},http://127.0.0.1:{web.port}/p/{n},a plant {n} of {name}" for k, n in enumerate(numbers)]
        (folder / f"{name}.csv").write_text("\n".join(["key,url,caption", *rows]) + "\n")
        columns = {"url": "url", "caption": "caption", "record_key": "key"}
        source = {"name": name, "domain": "plant", "table": str(folder / f"{name}.csv"), "columns": columns}
        sources.append({**source, "defaults": {"licence": "CC0-1.0"}})
    config = write_small_config(folder, *sources, fetch=loopback(), run={"fetch_part_size": 2, **run})
    assert main(["build", str(config), *options]) == 0


def outcomes(folder: Path) -> list[tuple[str, str]]:
    with open_reader(str(folder / "work")) as connection:
        return connection.sql(
            "SELECT right(url, 1), outcome FROM facts JOIN candidates USING (sample_id) ORDER BY ALL"
        ).fetchall()


@pytest.mark.slow
def test_an_address_is_asked_once_whatever_the_parts(tmp_path: Path, web: Web) -> None:
    build(tmp_path / "one", web)
    assert web.newly_asked() == dict.fromkeys(range(6), 1)
    assert [n for n, outcome in outcomes(tmp_path / "one") if outcome == "ok"] == list("0112333445")
    build(tmp_path / "two", web, executor="processes", num_workers=2, fetch_part_size=100)
    assert web.newly_asked() == dict.fromkeys(range(6), 1)
    first, second = (hash_tree(tmp_path / name / "work" / "releases") for name in ("one", "two"))
    assert first == second


@pytest.mark.slow
def test_a_retry_asks_it_once_as_well(tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.down = frozenset({1, 3})
    build(tmp_path, web, "--to", "fetch", max_passing_share=1)
    assert set(web.newly_asked().values()) == {1}
    assert [n for n, outcome in outcomes(tmp_path) if outcome == "http_5xx"] == list("11333")
    web.down = frozenset({3})
    capsys.readouterr()
    assert main(["retry", str(tmp_path / "work")]) == 0
    assert web.newly_asked() == {1: 1, 3: 1}
    assert "asked again for 5 rows, 2 more pictures" in capsys.readouterr().out
    assert [n for n, outcome in outcomes(tmp_path) if outcome == "http_5xx"] == list("333")
    build(tmp_path, web, "--to", "fetch", max_passing_share=1)
    assert web.newly_asked() == {}
    assert main(["verify", str(tmp_path / "work")]) == 0
