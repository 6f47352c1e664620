"""A picture that says itself that it must not train a model is left out, also when the setting changes."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from building import loopback, write_small_config
from misbehaving.answers import photo
from misbehaving.owners import mining, signed, with_xmp

from manifests.reader import open_reader
from pipeline.cli import main

PICTURES = {
    "plain": photo(),
    "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
    "c2pa": signed({"cawg.ai_training": {"use": "notAllowed"}}),
}
XMP_SAYS = "XMP plus:DataMining: DMI-PROHIBITED-AIMLTRAINING"
C2PA_SAYS = "C2PA training-mining: ai_training=notAllowed"


@contextmanager
def serving_pictures() -> Iterator[tuple[str, list[str]]]:
    """An address, and the names of the pictures that were asked for since the list was last emptied."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").removesuffix(".jpg")
            if name in PICTURES:
                asked.append(name)
            self.send_response(200 if name in PICTURES else 404)
            self.end_headers()
            self.wfile.write(PICTURES.get(name, b""))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def build(folder: Path, source: dict[str, Any], signals: list[str] | None) -> dict[str, tuple[str, str | None]]:
    """Outcome and detail of each picture by its name."""
    fetch = loopback(**({} if signals is None else {"consent_signals": signals})) | {"image": {"min_side_px": 16}}
    base = {"name": "a", "domain": "plant", "defaults": {"licence": "CC0-1.0", "caption": "a plant"}}
    config = write_small_config(folder, {**base, **source}, fetch=fetch)
    assert main(["build", str(config), "--to", "fetch"]) == 0
    with open_reader(str(folder / "work")) as connection:
        rows = connection.sql(
            "SELECT record_key, outcome, detail, stored_sha256 FROM facts JOIN candidates USING (sample_id)"
        ).fetchall()
    assert all((outcome == "ok") == (stored is not None) for _, outcome, _, stored in rows)
    return {Path(key).stem: (outcome, detail) for key, outcome, detail, _ in rows}


REFUSED, OK = {"xmp": ("opted_out", XMP_SAYS), "c2pa": ("opted_out", C2PA_SAYS)}, ("ok", None)


@pytest.mark.slow
def test_the_signals_of_pictures_on_the_web(tmp_path: Path) -> None:
    with serving_pictures() as (address, asked):
        (tmp_path / "list.csv").write_text("url\n" + "".join(f"{address}/{name}.jpg\n" for name in PICTURES))
        source = {"table": str(tmp_path / "list.csv"), "columns": {"url": "url", "caption": []}}

        def build_and_ask(signals: list[str] | None, *wanted: str) -> dict[str, tuple[str, str | None]]:
            found = build(tmp_path, source, signals)
            assert sorted(asked) == sorted(wanted), signals
            asked.clear()
            return found

        first = build_and_ask(None, *PICTURES)
        assert first == {"plain": OK, "xmp": REFUSED["xmp"], "c2pa": OK}, "by default C2PA does not count"
        assert build_and_ask(None) == first
        # what was decided by the setting is asked for again when it changes, and nothing else is
        assert build_and_ask([], "xmp") == {"plain": OK, "xmp": ("ok", XMP_SAYS), "c2pa": OK}
        # what is stored is judged by what is known of it, without a request
        assert build_and_ask(["iptc_data_mining"]) == first
        assert build_and_ask([])["xmp"] == ("ok", XMP_SAYS)


def test_c2pa_counts_where_it_is_named(tmp_path: Path) -> None:
    with serving_pictures() as (address, _):
        (tmp_path / "list.csv").write_text("url\n" + "".join(f"{address}/{name}.jpg\n" for name in PICTURES))
        source = {"table": str(tmp_path / "list.csv"), "columns": {"url": "url", "caption": []}}
        found = build(tmp_path, source, ["iptc_data_mining", "c2pa_training"])
        assert found == {"plain": OK, **REFUSED}


def test_the_signals_of_pictures_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for name, body in PICTURES.items():
        (tmp_path / f"pics/{name}.jpg").write_bytes(body)
    source = {"folder": {"path": str(tmp_path / "pics")}}
    first = build(tmp_path, source, None)
    assert first == {"plain": OK, "xmp": REFUSED["xmp"], "c2pa": OK}
    assert build(tmp_path, source, [])["xmp"] == ("ok", XMP_SAYS)
    assert build(tmp_path, source, ["c2pa_training"]) == {"plain": OK, "xmp": ("ok", XMP_SAYS), "c2pa": REFUSED["c2pa"]}
    assert build(tmp_path, source, None) == first


def test_a_missing_library_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("manifests.services.packages.importlib.util.find_spec", lambda _: None)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/plain.jpg").write_bytes(photo())
    with pytest.raises(AssertionError):
        build(tmp_path, {"folder": {"path": str(tmp_path / "pics")}}, ["c2pa_training"])
    assert 'pip install "plantmix[c2pa]"' in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
