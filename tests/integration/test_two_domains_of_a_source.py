"""One source of two domains: the name at the start of a caption decides, as the backbone knows it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import done, run_here, write_small_config
from foreign_tars import picture, write_tar

from manifests.contract.reader import open_reader
from manifests.errors import ConfigError
from pipeline.config import read_config

COLUMNS = (
    "taxonID parentNameUsageID acceptedNameUsageID scientificName canonicalName taxonRank taxonomicStatus kingdom genus"
)
TAXA = (
    ("1", "", "", "Rosa canina L.", "Rosa canina", "species", "accepted", "Plantae", "Rosa"),
    ("2", "", "1", "Rosa vulgaris Mill.", "Rosa vulgaris", "species", "synonym", "Plantae", "Rosa"),
    ("3", "", "", "Canis lupus L.", "Canis lupus", "species", "accepted", "Animalia", "Canis"),
    ("4", "", "", "Monstera Adans.", "Monstera", "genus", "accepted", "Plantae", "Monstera"),
)
CAPTIONS = {
    "Rosa canina L. in a hedge": ("plant", "Rosa canina"),
    "Rosa vulgaris, an old name": ("plant", "Rosa canina"),
    "MONSTERA in a pot": ("plant", "Monstera"),
    "Monstera": ("plant", "Monstera"),
    "Canis lupus in snow": ("general", None),
    "Red rose on a white background": ("general", None),
    "a photo of Rosa canina": ("general", None),
    "\u82b1\u56ed": ("general", None),
}


def config_of(folder: Path, **changes: Any) -> Path:
    with zipfile.ZipFile(folder / "backbone.zip", "w") as archive:
        archive.writestr("b/Taxon.tsv", "\n".join("\t".join(row) for row in (COLUMNS.split(), *TAXA)) + "\n")
    samples = [(str(n), {"jpg": picture(n), "txt": text.encode()}) for n, text in enumerate(CAPTIONS)]
    write_tar(folder / "tars/0.tar", samples)
    source = {
        "name": "both",
        "domain": "plant",
        "other_domain": {"name": "general", "kingdoms": ["Plantae"]},
        "webdataset": {"path": str(folder / "tars")},
        "defaults": {"licence": "CC0-1.0"},
    }
    sections = {
        "caption": {"backbone": {"path": str(folder / "backbone.zip")}},
        "mix": {"ratio": {"plant": 1, "general": 1}},
    }
    return write_small_config(folder, source, **(sections | changes))


def test_the_name_at_the_start_decides_and_becomes_the_taxon(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    done("build", config, "--to", "ingest")
    with open_reader(str(tmp_path / "work")) as sql:
        rows = sql.execute("SELECT caption, domain, taxon_scientific_name FROM candidates").fetchall()
    assert {caption: rest for caption, *rest in map(tuple, rows)} == {c: [*each] for c, each in CAPTIONS.items()}
    assert "ingest: reused" in run_here("build", config, "--to", "ingest").stderr


def test_it_needs_a_backbone(tmp_path: Path) -> None:
    config = config_of(tmp_path, caption={})
    with pytest.raises(ConfigError, match=r"sources.both.other_domain: name the archive of a backbone"):
        read_config(config)
    values = yaml.safe_load(config.read_text())
    values["caption"] = {"backbone": {"path": "b.zip"}}
    values["mix"] = {"ratio": {"plant": 1}}
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="no share for the domain general"):
        read_config(config)


def test_a_joined_caption_that_could_become_txt_cannot_decide(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    values = yaml.safe_load(config.read_text())
    table = {"join": "captions.csv", "on": "record_key", "text": "caption", "kind": "caption"}
    values["sources"][0]["captions"] = [table]
    config.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"captions: .* `other_domain` judges; give it another `kind`"):
        read_config(config)
    table["kind"] = "long"
    config.write_text(yaml.safe_dump(values))
    assert read_config(config).sources[0].captions[0].kind == "long"
