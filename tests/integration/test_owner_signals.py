"""A picture that says itself that it must not train a model is left out, also when the setting changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from building import loopback, write_small_config
from misbehaving.answers import photo
from misbehaving.owners import mining, with_xmp

from manifests.contract.reader import open_reader
from pipeline.cli import main

PICTURES = {
    "plain": photo(),
    "xmp": with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING")),
}
XMP_SAYS = "XMP plus:DataMining: DMI-PROHIBITED-AIMLTRAINING"


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


OK = ("ok", None)


def test_the_signals_of_pictures_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for name, body in PICTURES.items():
        (tmp_path / f"pics/{name}.jpg").write_bytes(body)
    source = {"folder": {"path": str(tmp_path / "pics")}}
    first = build(tmp_path, source, None)
    assert first == {"plain": OK, "xmp": ("opted_out", XMP_SAYS)}
    assert build(tmp_path, source, []) == {"plain": OK, "xmp": ("ok", XMP_SAYS)}
    assert build(tmp_path, source, None) == first
