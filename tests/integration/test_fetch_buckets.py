"""What was fetched is collected in buckets: each reads the files, or row groups, that hold its ids, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from building import folder_source, hash_tree, list_source, loopback, write_small_config
from misbehaving.answers import encode, pixels, send_picture
from misbehaving.server import MisbehavingServer

from manifests.contract.catalog import Catalog
from pipeline.cli import main
from pipeline.fetching.consent.statements import Consent
from pipeline.stages.fetch import stage as fetch
from pipeline.store import buckets

NUM, PART, NUM_BUCKETS = 24, 4, 3


def build(web: MisbehavingServer, folder: Path) -> dict[str, str]:
    """Hashes of all files of the release."""
    folder.mkdir(exist_ok=True)
    source = list_source(folder, [f"http://127.0.0.1:{web.port}/p/{number}" for number in range(NUM)])
    run = {"fetch_part_size": PART, "max_passing_share": 1.0}
    assert main(["build", str(write_small_config(folder, source, fetch=loopback(robots_txt=False), run=run))]) == 0
    return hash_tree(folder / "work/releases")


@pytest.mark.slow
def test_a_bucket_reads_what_holds_its_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    down = True

    def answer(sock: Any, request: Any) -> None:
        number = int(request.path.rpartition("/")[2])
        if down and number % 8 == 3:
            sock.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        else:
            send_picture(sock, encode(pixels(seed=number)))

    read: list[int] = []
    really = fetch.view_fetched

    def counted(sql: Any, fetched: Sequence[Any], consent: Consent, where: str = "true") -> None:
        if where != "true":  # else the plan, which asks what is there
            read.append(sum(len(group.files.paths) for group in fetched))
        really(sql, fetched, consent, where)

    monkeypatch.setattr(fetch, "view_fetched", counted)
    with MisbehavingServer(extra={"p": answer}) as web:
        whole = tmp_path / "whole"
        build(web, whole)
        assert not read, "one bucket"
        monkeypatch.setattr(buckets, "ROW_BYTES", 4e9 / (NUM / NUM_BUCKETS))
        build(web, tmp_path / "cut")
        num_parts = NUM // PART
        assert len(read) == NUM_BUCKETS
        assert num_parts <= sum(read) <= num_parts + NUM_BUCKETS - 1

        down = False  # a second round gets the rest, into files that lie beside the first
        read.clear()
        assert main(["retry", str(tmp_path / "cut/work")]) == 0
        assert 0 < len(read) <= NUM_BUCKETS
        assert sum(read) <= num_parts + 2 + 2 * (NUM_BUCKETS - 1)
        files = build(web, tmp_path / "cut")
        monkeypatch.setattr(buckets, "ROW_BYTES", 2000)
        assert main(["retry", str(whole / "work")]) == 0
        assert files == build(web, whole)
    with Catalog.open(str(tmp_path / "cut/work")) as catalog:
        parts = catalog.parts_of(str(catalog.find_current("fetch")), "collect")
    assert sum(part.funnel.num_kept for part in parts if part.funnel) == NUM


@pytest.mark.slow
def test_facts_of_local_pictures_are_the_same_in_any_number_of_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(NUM):
        (tmp_path / f"photos/{number}.jpg").write_bytes(encode(pixels(seed=number)))
        (tmp_path / f"photos/{number}.txt").write_text(f"plant number {number} of a folder")
    source = folder_source(tmp_path / "photos")
    source["folder"]["captions"] = "text_file"

    def build_in(folder: str) -> dict[str, str]:
        run, work = {"fetch_part_size": PART}, str(tmp_path / folder)
        assert main(["build", str(write_small_config(tmp_path, source, file=folder, work_dir=work, run=run))]) == 0
        return hash_tree(tmp_path / folder / "releases")

    whole = build_in("whole")
    monkeypatch.setattr(buckets, "ROW_BYTES", 4e9 / (NUM / NUM_BUCKETS))
    assert build_in("cut") == whole
    assert len(list((tmp_path / "cut/tables/fetch").glob("facts-*"))) == NUM_BUCKETS
