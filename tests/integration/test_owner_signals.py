"""A picture that says itself that it must not train a model is left out, also when the setting changes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from building import loopback, write_small_config
from misbehaving.answers import photo
from misbehaving.owners import mining, signed, with_xmp

from manifests.contract.reader import open_reader
from manifests.services.packages import install_line
from pipeline.cli import main

PICTURES = {
    "plain": photo(),
    "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
    "c2pa": signed({"cawg.ai_training": {"use": "notAllowed"}}),
}
XMP_SAYS = "XMP plus:DataMining: DMI-PROHIBITED-AIMLTRAINING"
C2PA_SAYS = "C2PA training-mining: ai_training=notAllowed"


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
    monkeypatch.setitem(sys.modules, "c2pa", None)
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/plain.jpg").write_bytes(photo())
    with pytest.raises(AssertionError):
        build(tmp_path, {"folder": {"path": str(tmp_path / "pics")}}, ["c2pa_training"])
    assert install_line("c2pa") in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
