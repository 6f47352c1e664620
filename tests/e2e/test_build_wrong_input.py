"""Wrong input: one clear line, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import Web, run_plantmix

WriteConfig = Callable[..., Path]


def _refused(config: Path, work_dir: Path, *said: str) -> str:
    done = run_plantmix("build", config)
    assert done.returncode == 2, done.stderr
    assert not work_dir.exists(), "nothing may be written"
    errors = [line for line in done.stderr.splitlines() if line.startswith("plantmix: error: ")]
    assert len(errors) == 1
    assert "Traceback" not in done.stderr
    for text in said:
        assert text in errors[0]
    return errors[0]


def _edit(config: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    change(values)
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config


def test_unknown_key(write_config: WriteConfig, tmp_path: Path) -> None:
    config = _edit(write_config(), lambda values: values["dedup"].update(raduis=3))
    _refused(config, tmp_path / "build", "unknown key 'dedup.raduis'", "did you mean 'radius'?")


def test_missing_column(write_config: WriteConfig, tmp_path: Path) -> None:
    config = _edit(write_config(), lambda values: values["sources"][0]["columns"].update(caption="captoin"))
    _refused(config, tmp_path / "build", "sources.plants", "no column 'captoin'", "did you mean 'caption'?")


@pytest.mark.parametrize("name", ["broken.parquet", "empty.csv", "gone.jsonl", "odd.xlsx"])
def test_unreadable_table(write_config: WriteConfig, tmp_path: Path, name: str) -> None:
    table = tmp_path / name
    if name != "gone.jsonl":
        table.write_bytes(b"" if name == "empty.csv" else b"PAR1 and then nothing of the kind")
    config = _edit(write_config(), lambda values: values["sources"][1].update(table=str(table)))
    _refused(config, tmp_path / "build", "sources.general", str(table))


def test_ratio_over_an_unknown_domain(write_config: WriteConfig, tmp_path: Path) -> None:
    config = _edit(write_config(), lambda values: values["mix"].update(ratio={"plant": 1, "fungi": 1}))
    _refused(config, tmp_path / "build", "mix.ratio: unknown domain fungi", "plant, general")


def test_work_folder_that_cannot_be_written(write_config: WriteConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    config = write_config(work_dir=tmp_path / "file" / "work")
    _refused(config, tmp_path / "file" / "work", "work_dir", "is not a folder")


def test_no_such_config_and_no_such_stage(write_config: WriteConfig, tmp_path: Path) -> None:
    assert "no such config file" in run_plantmix("build", tmp_path / "none.yaml").stderr
    done = run_plantmix("build", write_config(), "--to", "packing")
    assert done.returncode == 2
    assert "no stage 'packing'; the flow is ingest, fetch, dedup" in done.stderr


def test_a_ratio_that_all_rows_could_not_fill(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(mix={"num_samples": 5000, "max_epochs": 1})
    _refused(
        config, tmp_path / "build", "even if every row of the sources were kept", "need 3,750 of the domain 'plant'"
    )


def test_a_ratio_the_pool_cannot_fill(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(mix={"num_samples": 200, "max_epochs": 1})
    done = run_plantmix("build", config)
    assert done.returncode == 2
    error = next(line for line in done.stderr.splitlines() if "error" in line)
    assert "200 samples at this ratio need 150 of the domain 'plant'" in error
    assert "max_epochs is 1" in error
    assert "Lower mix.num_samples to" in error
    assert not (tmp_path / "build/releases").exists()
    # the way out that the message names is one
    lowered = int(error.partition("Lower mix.num_samples to ")[2].split(" ")[0].replace(",", ""))
    again = run_plantmix("build", write_config(mix={"num_samples": lowered, "max_epochs": 1}))
    assert again.returncode == 0, again.stderr


def test_a_release_that_does_not_verify(write_config: WriteConfig, web: Web, tmp_path: Path) -> None:
    nothing = run_plantmix("verify", tmp_path)
    assert nothing.returncode == 2
    assert "no sealed release here" in nothing.stderr


def test_a_foreign_host_needs_a_contact(write_config: WriteConfig, web: Web, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("record_id,url,caption\n1,http://images.example.org/1.jpg,A rose\n", encoding="utf-8")

    def change(values: dict[str, Any]) -> None:
        source = values["sources"][1]
        source.update(table=str(foreign), columns={"url": "url", "caption": "caption"})

    done = run_plantmix("build", _edit(write_config(), change))
    assert done.returncode == 2
    assert "fetch.network.contact is not set" in done.stderr
