"""Mistakes that a new user makes: each ends in one clear message with its cure, exit code 2, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from building import ROOT
from release_writer import drawn_samples, write_release

from pipeline.cli import main

Values = dict[str, Any]
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
CSV = "url,caption,licence\n" + "".join(f"http://127.0.0.1:9/{n}.jpg,A red apple number {n},CC0\n" for n in range(20))


def config_of(folder: Path) -> Values:
    """A config over a table and a folder that would pass the preflight; the tests break one thing each."""
    (folder / "pics/apple").mkdir(parents=True)
    for photo in PHOTOS[:6]:
        shutil.copy(photo, folder / "pics/apple")
    (folder / "list.csv").write_text(CSV, encoding="utf-8")
    return {
        "name": "own",
        "work_dir": str(folder / "work"),
        "sources": [
            {
                "name": "web",
                "domain": "general",
                "table": str(folder / "list.csv"),
                "columns": {"url": "url", "caption": "caption", "licence": "licence"},
            },
            {
                "name": "ours",
                "domain": "plant",
                "folder": {"path": str(folder / "pics")},
                "defaults": {"licence": "CC0-1.0"},
            },
        ],
        "fetch": {"network": {"allow_private_addresses": ["127.0.0.1"], "retries": 0}},
        "mix": {"ratio": {"plant": 1, "general": 1}},
        "run": {"executor": "inline", "max_passing_share": 1},
    }


def build(values: Values, folder: Path, *options: str) -> int:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return main(["build", str(path), *options])


def web(values: Values, **changes: Any) -> None:
    values["sources"][0] |= changes


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def other_table(name: str, content: str | bytes) -> Callable[[Values, Path], None]:
    return lambda values, folder: web(values, table=write(folder, name, content))


def truncated_zip(values: Values, folder: Path) -> None:
    with zipfile.ZipFile(folder / "gbif.zip", "w") as archive:
        archive.writestr("meta.xml", "<archive/>" * 100)
    whole = (folder / "gbif.zip").read_bytes()
    (folder / "gbif.zip").write_bytes(whole[: len(whole) // 2])
    values["sources"][0] = {"name": "web", "domain": "general", "dwca": {"path": str(folder / "gbif.zip")}}


def folder_as_table(values: Values, folder: Path) -> None:
    web(values, table=str(folder / "pics"))


def file_as_folder(values: Values, folder: Path) -> None:
    values["sources"][1]["folder"] = {"path": str(folder / "list.csv")}


def shards_as_table(values: Values, folder: Path) -> None:
    (folder / "shards").mkdir()
    write(folder, "shards/00000.tar", bytes(10240))
    web(values, table=str(folder / "shards"))


def set_(*places: Any, to: Any) -> Callable[[Values, Path], None]:
    def change(values: Values, folder: Path) -> None:
        inner: Any = values
        for place in places[:-1]:
            inner = inner[place] if isinstance(place, int) else inner.setdefault(place, {})
        inner[places[-1]] = to

    return change


def evaluation_is_training(values: Values, folder: Path) -> None:
    values["evaluation"] = [{"name": "test", "folder": {"path": str(folder / "gone")}}]


PUBLIC = CSV.replace("127.0.0.1:9", "example.org")
BARE = "url,caption,licence\nhttp://127.0.0.1:9/a.jpg,Iris tectorum,CC0\nhttp://127.0.0.1:9/b.jpg,Quercus alba,CC0\n"
UNSTATED = {"url": "url", "caption": "caption"}

UNUSED_CLUSTER = (
    "run.ray.address names a cluster (head:6379), and run.executor: inline would not use it; "
    "write `run: {executor: ray}`, or leave the address out"
)

MISTAKES: dict[str, tuple[Callable[[Values, Path], None], list[str]]] = {
    "no contact": (
        other_table("l.csv", PUBLIC),
        ["contact is not set", "example.org", "write `fetch: {network: {contact:"],
    ),
    "no licence": (
        set_("sources", 0, "columns", to=UNSTATED),
        [
            "sources.web: 20 of the first 20 rows would be dropped for their licence",
            "they state none",
            "`select: {licences: {allow: [known, unknown]}}`",
            "defaults: {licence:",
        ],
    ),
    "other licences": (
        set_("select", to={"licences": {"allow": ["CC-BY"]}}),
        ["sources.web: 20 of the first 20", "(CC0-1.0)", "write `select: {licences: {allow: [CC-BY, CC0-1.0]}}`"],
    ),
    "private addresses": (
        set_("fetch", to={}),
        [
            "sources.web: 20 of the first 20 addresses would be refused",
            "127.0.0.1",
            'allow_private_addresses: ["127.0.0.1"]',
        ],
    ),
    "bare names": (
        other_table("bare.csv", BARE),
        [
            "2 of the first 2 captions would be dropped, 2 of them by bare_scientific_name",
            "Iris tectorum",
            "preset: plant",
        ],
    ),
    "no captions": (
        set_("sources", 1, "folder", "captions", to="text_file"),
        ["sources.ours: 6 of the first 6 captions", "empty_caption", "`folder: {captions: folder_name}`"],
    ),
    "too few rows": (
        set_("mix", to={"ratio": {"plant": 1, "general": 1}, "num_samples": 5000}),
        ["even if every row of the sources were kept", "need 2,500 of the domain 'plant', its pool has 6"],
    ),
    "too many held out": (
        set_("mix", "heldout", to={"num_samples": {"plant": 100}}),
        ["100 samples of 'plant' are to be set aside, only 6 were kept", "`heldout: 10%`"],
    ),
    "heldout as a number": (set_("mix", "heldout", to=100), ["'mix.heldout': '100' is no share; write `heldout: 10%`"]),
    "rules for other domains": (
        set_("caption", to={"rules": [{"domains": ["plant"], "preset": "plant"}]}),
        ["no caption rule set fits the rows of web (domain general)", "{preset: general}"],
    ),
    "picture folder as table": (folder_as_table, ["pics: holds pictures and no table; write `folder: {path:"]),
    "tars as table": (shards_as_table, ["holds tars and no table; write `webdataset: {path:"]),
    "file as folder": (file_as_folder, ["list.csv is a file, not a folder; write `table:` with it instead"]),
    "picture as table": (other_table("a.jpg", b"\xff\xd8"), ["a.jpg is no table; for pictures write `folder:"]),
    "a workbook": (
        other_table("u.xls", b"\xd0\xcf\x11\xe0"),
        ["u.xls is a workbook that is not read; save it as .xlsx and name that file"],
    ),
    "windows path": (
        set_("sources", 0, "table", to="C:\\data\\list.csv"),
        ["no such table", "written as Windows writes paths; write C:/data/list.csv"],
    ),
    "another folder": (
        set_("sources", 0, "table", to="lists/list.csv"),
        ["own.yaml: checking", "/lists/list.csv: no such table"],
    ),
    "truncated zip": (truncated_zip, ["gbif.zip is a zip that breaks off before its end; download it again"]),
    "truncated zip of a table": (
        other_table("l.csv.zip", b"PK\x03\x04 and no end"),
        ["l.csv.zip cannot be read as csv: it is a zip that breaks off"],
    ),
    "no evaluation set": (evaluation_is_training, ["evaluation.test:", "gone: no such folder"]),
    "work folder is a file": (
        lambda values, folder: values.update(work_dir=write(folder, "file", "x") + "/work"),
        ["is not a folder"],
    ),
    "a key at another place": (set_("ratio", to={"plant": 1}), ["unknown key 'ratio'; 'ratio' is a key of mix"]),
    "a section too far in": (
        set_("fetch", "mix", to={}),
        ["unknown key 'fetch.mix'; 'mix' is a key of the top level: mind the indentation"],
    ),
    "a domain with capitals": (
        set_("sources", 0, "domain", to="General"),
        ["'sources.0.domain': 'General' is no name; use small letters"],
    ),
    "a cluster that is not used": (set_("run", "ray", "address", to="head:6379"), [UNUSED_CLUSTER]),
    "an evaluation list without pictures": (
        set_("evaluation", to=[{"name": "t", "table": "x.csv", "columns": {"url": "u", "caption": "c"}}]),
        ["matched by name alone: set match_names: true, or give the images as folder"],
    ),
    "no such preset": (
        set_("caption", to={"rules": [{"preset": "birds"}]}),
        ["'caption.rules.0.preset'", "'datacomp-basic', 'plant' or 'general'", "(given: 'birds')"],
    ),
    "an empty file": (other_table("e.csv", ""), ["e.csv cannot be read as csv: the file is empty"]),
    "a head without rows": (
        other_table("e.csv", "url,caption,licence\n"),
        ["sources.web:", "e.csv: it has no rows; give another place"],
    ),
    "rows without an address": (
        other_table("e.csv", "url,caption,licence\n,a red apple,CC0\nsee page,a green apple,CC0\n"),
        ["none of its rows can be used (1 invalid_url, 1 missing_url); give another place or other `columns`"],
    ),
    "a web page saved as csv": (
        other_table("e.csv", "<!DOCTYPE html><html><body>not found</body></html>"),
        ["e.csv has no column 'url', 'licence', 'caption'; it has <!DOCTYPE html>"],
    ),
    "a scorer that is not installed": (
        set_("score", to={"plugins": [{"scorer": "nothing.here:Class", "name": "x"}]}),
        ["score.plugins.x: the module nothing.here cannot be imported"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_before_any_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    change, said = MISTAKES[name]
    change(values, tmp_path)
    assert build(values, tmp_path) == 2
    seen = capsys.readouterr()
    assert seen.err.count("plantmix: error: ") == 1
    assert "Traceback" not in seen.err
    for text in said:
        assert text in seen.err
    assert not (tmp_path / "work").exists(), "nothing may be written"


COMMANDS: dict[str, tuple[list[str], str]] = {
    "mix before a build": (
        ["mix", "own.yaml", "--dry-run"],
        "no catalogue (catalog.duckdb) here; give the work folder",
    ),
    "status of a config": (["status", "own.yaml"], "no catalogue (catalog.duckdb) here; give the work folder"),
    "explain elsewhere": (["explain", ".", "x"], "no catalogue (catalog.duckdb) here; give the work folder of a build"),
    "query elsewhere": (["query", ".", "SELECT 1"], "no catalogue (catalog.duckdb) here"),
    "verify elsewhere": (["verify", "."], "no sealed release here (no release.json); give a release folder"),
    "browse elsewhere": (["browse", "."], "neither a work folder (no catalog.duckdb) nor a release"),
    "diff elsewhere": (["diff", ".", "."], "no sealed release here"),
    "a takedown of nothing": (["takedown", "."], "say what to take down, with --url, --owner or --id"),
    "init over a file": (["init", "--domain", "a=pics", "--out", "own.yaml"], "there already; name another file"),
    "no law": (["plan", "choose", "law.json", "--objective", "a", "--out", "m.json"], "no such law; make one with"),
    "no runs": (["plan", "fit", "runs.csv", "--out", "law.json"], "runs.csv"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_given_the_wrong_thing_says_what_it_needs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "own.yaml", yaml.safe_dump(config_of(tmp_path)))
    before = sorted(tmp_path.rglob("*"))
    arguments, said = COMMANDS[name]
    assert main(arguments) == 2
    seen = capsys.readouterr()
    assert seen.err.startswith("plantmix: error: ")
    assert len(seen.err.splitlines()) == 1
    assert said in seen.err
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be written"


def test_a_ray_cluster_that_is_not_there_is_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray itself tries for eight minutes, and then ends the process with code 15 and no word."""
    values = config_of(tmp_path)
    values["run"] = {"ray_address": "127.0.0.1:9"}  # the key of before
    assert build(values, tmp_path) == 2
    assert "unknown key 'run.ray_address'; did you mean 'ray'?" in capsys.readouterr().err
    values["run"] = {"ray": {"address": "127.0.0.1:9"}}
    assert build(values, tmp_path) == 2
    assert "run.ray.address 127.0.0.1:9: no Ray cluster answers there" in capsys.readouterr().err


def test_a_cluster_given_to_a_build_that_does_not_use_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, "own.yaml", yaml.safe_dump(config_of(tmp_path)))
    assert main(["build", config, "--ray-address", "head:6379"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"plantmix: error: {UNUSED_CLUSTER}"
    assert not (tmp_path / "work").exists()


# On a busy machine the client alone may take longer to begin than the command waits for an answer.
PATIENT = """
import importlib, sys
from manifests.services import model_hub
model_hub.PATIENCE_SECONDS = 300.0
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["plantmix build", "dalip train", "dalip eval"])
def test_a_pretrained_tag_without_a_network_is_one_line(command: str, tmp_path: Path) -> None:
    """The hub's client alone tries twelve times in a minute. Nothing listens on port 9."""
    tag = {"architecture": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
    package, key = ("training", "model") if command.startswith("dalip") else ("pipeline", "score")
    if package == "training":
        write_release(tmp_path / "release", drawn_samples(8, 4))
        folders = {"release": str(tmp_path / "release"), "output_dir": str(tmp_path / "work")}
        values: Values = {**folders, "model": tag, "data": {"batch_size": 4}, "schedule": {"steps": 3}}
    else:
        values = config_of(tmp_path)
        values["score"] = {"model": tag["architecture"], "pretrained": tag["pretrained"]}
    path = write(tmp_path, "own.yaml", yaml.safe_dump(values))
    asked = [sys.executable, "-c", PATIENT, f"{package}.cli", command.split()[1], path]
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(asked, env=os.environ | hub, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = done.stderr.partition(": error: ")
    assert "Retrying" not in done.stderr
    assert len(said[2].splitlines()) == 1
    for text in (
        f"{key}.pretrained: the weights 'laion2b_s34b_b79k' of ViT-B-32 are not on this machine",
        "http://127.0.0.1:9 does not answer: [Errno 111] Connection refused",
        "`hf download laion/CLIP-ViT-B-32-laion2B-s34B-b79K open_clip_model.safetensors`",
        f"into {tmp_path}/hub/hub; or set {key}.pretrained to the path of a file",
    ):
        assert text in said[2]
    assert not (tmp_path / "work").exists(), "nothing may be written"


def test_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    values["fetch"] = {}
    values["sources"][0]["columns"] = UNSTATED
    assert build(values, tmp_path) == 2
    error = capsys.readouterr().err
    assert "plantmix: error: 2 mistakes:\n  sources.web: 20 of the first 20 addresses would be refused" in error
    assert "\n  sources.web: 20 of the first 20 rows would be dropped for their licence" in error


def test_what_only_some_rows_have_wrong_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    values["sources"].append({"name": "more", "domain": "plant", "folder": {"path": str(tmp_path / "pics")}})
    values["mix"]["ratio"]["general"] = 0
    assert build(values, tmp_path) == 0
    seen = capsys.readouterr()
    assert seen.err.startswith(f"{tmp_path / 'own.yaml'}: checking 3 sources before any host is asked\n")
    assert seen.out.splitlines()[-2].startswith(f"look at it: plantmix browse {tmp_path / 'work'}, or open ")
    assert Path(seen.out.splitlines()[-2].rpartition(" ")[2]).is_file()
    assert "warning: sources.more: 6 of the first 6 rows would be dropped for their licence" in seen.err


def test_a_licence_that_a_rule_forbids_is_counted_and_never_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it was found: `allow: [known, all-rights-reserved]` was advised; written so, nothing was said any more."""
    values = config_of(tmp_path)
    rows = [*["all rights reserved"] * 12, *["CC-BY"] * 5, *["CC0"] * 3]
    text = "".join(f"http://127.0.0.1:9/{n}.jpg,A red apple number {n},{each}\n" for n, each in enumerate(rows))
    web(values, table=write(tmp_path, "r.csv", "url,caption,licence\n" + text))
    for allow in (["known"], ["known", "all-rights-reserved"], ["CC0-1.0"]):
        values["select"] = {"licences": {"allow": allow}}
        path = write(tmp_path, "own.yaml", yaml.safe_dump(values))
        assert main(["estimate", path]) == 0
        told = capsys.readouterr().err
        assert (
            "sources.web: 12 of the first 20 rows would be dropped for their licence (12 all-rights-reserved)" in told
        )
        assert "`allow` is no cure: only the owner of a picture can give it another licence" in told
        assert "allow: [" not in told
    web(values, table=write(tmp_path, "r.csv", "url,caption,licence\n" + text.replace("CC0", "CC-BY")))
    assert main(["estimate", write(tmp_path, "own.yaml", yaml.safe_dump(values))]) == 2, "all are dropped"
    rows = text.replace("all rights reserved", "CC-BY").replace("CC-BY", "all rights reserved", 1)
    web(values, table=write(tmp_path, "r.csv", "url,caption,licence\n" + rows))
    assert main(["estimate", write(tmp_path, "own.yaml", yaml.safe_dump(values))]) == 0
    told = capsys.readouterr().err
    assert "1 of the first 20 rows would be dropped for their licence (1 all-rights-reserved)" in told
    assert "16 of the first 20 rows would be dropped for their licence (CC-BY)" in told
    assert "write `select: {licences: {allow: [CC0-1.0, CC-BY]}}`" in told


def test_captions_in_lists_and_objects_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    captions = [["A red apple", "a fruit"], {"en": "A red apple"}, "A red apple"]
    lines = [
        {"url": f"http://127.0.0.1:9/{n}.jpg", "caption": each, "licence": "CC0"} for n, each in enumerate(captions)
    ]
    web(values, table=write(tmp_path, "r.jsonl", "".join(json.dumps(line) + "\n" for line in lines)))
    assert main(["estimate", write(tmp_path, "own.yaml", yaml.safe_dump(values))]) == 0
    told = capsys.readouterr().err
    assert "sources.web: 1 of the first captions are lists; the first text of each is the caption" in told
    assert """sources.web: 1 of the first captions are objects and no text (such as '{"en": "A red apple"}')""" in told


def test_what_only_later_stages_meet_does_not_stop_a_fetch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    values["sources"][0]["columns"] = UNSTATED
    path = Path(write(tmp_path, "own.yaml", yaml.safe_dump(values)))
    assert main(["build", str(path), "--to", "fetch"]) == 0
    told = capsys.readouterr().err
    assert "warning: sources.web: 20 of the first 20 rows would be dropped for their licence" in told
    assert "warning: after fetch: mix: no sample of the domain general is left" in told


def test_a_stage_that_keeps_too_little_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing listens on port 9: every download fails, and the fetch stage is the last that is worth its work."""
    values = config_of(tmp_path)
    assert build(values, tmp_path) == 2
    error = capsys.readouterr().err.partition("plantmix: error: ")[2]
    assert error.startswith("after fetch: mix: no sample of the domain general is left, but the ratio asks for some")
    assert "general: 0 left; dropped: 20 connect_failed (fetch)" in error
    assert "connect_failed: 127.0.0.1:9 (20): it may pass; `plantmix retry` asks again for these alone" in error
    assert "plant: 6 left; dropped: none" in error


def test_a_picture_of_a_folder_is_explained_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config_of(tmp_path)
    values["mix"]["ratio"]["general"] = 0
    (tmp_path / "pics/apple/new.jxl").write_bytes(b"x")
    assert build(values, tmp_path, "--to", "ingest") == 0
    assert "sources.ours: 1 files are not read as pictures (1 .jxl)" in capsys.readouterr().err
    picture = tmp_path / "pics/apple" / PHOTOS[0].name
    for path in (picture, f"pics/apple/{PHOTOS[0].name}", f"apple/{PHOTOS[0].name}"):
        assert main(["explain", str(tmp_path / "work"), str(path)]) == 0
        assert f"key apple/{PHOTOS[0].name}" in capsys.readouterr().out
