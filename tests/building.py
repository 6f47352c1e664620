"""Whole builds over real pictures: a part of the demo's web, a small build config, the real command."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from walk.web import picture

from pipeline.cli import main
from pipeline.config import BuildConfig

ROOT = Path(__file__).resolve().parents[1]
NUM_PLANTS, NUM_GENERAL = 40, 110
PLANTMIX = [sys.executable, "-m", "pipeline.cli"]


@dataclass(frozen=True)
class Web:
    """Where the pictures are served, and small tables that point there."""

    plants: Path
    general: Path
    root: str


def thin_out(rows: list[dict[str, Any]], num: int, copied: set[bytes], folder: Path) -> list[dict[str, Any]]:
    """All rows with planted troubles, what they are copies of, and every n-th of the others."""
    kept, plain = [], []
    for row in rows:
        odd = not row["record_id"].startswith(("tuxpaint/", "pysiogame/")) or len(row["caption"] or "") < 2
        original = odd or "fruit" in row["record_id"] or file_hash(row, folder) in copied
        (kept if odd or original else plain).append(row)
    return kept + plain[:: max(1, len(plain) // num)]


def file_hash(row: dict[str, Any], folder: Path) -> bytes:
    """Hash of the file that a row's URL serves; of nothing for a dead link."""
    path = folder / unquote(urlsplit(row["url"]).path.lstrip("/"))
    return hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest()


def write_csv(folder: Path, rows: list[dict[str, Any]]) -> None:
    with (folder / "plants.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(folder: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / "general.parquet")


def write_build_config(web: Web, folder: Path, name: str, work_dir: Path | None = None, **changes: Any) -> Path:
    config = yaml.safe_load((ROOT / "configs/pipeline/demo.yaml").read_text(encoding="utf-8"))
    config["work_dir"] = str(work_dir or folder / name)
    config["sources"][0]["table"], config["sources"][1]["table"] = str(web.plants), str(web.general)
    config["run"] = {"executor": "inline", "fetch_part_size": 40}
    config["mix"]["ratio"] = {"plant": 3, "general": 1}
    config["mix"]["max_epochs"] = {"plant": 2, "general": 1}
    config["mix"]["heldout"] = {"num_samples": {"plant": 10, "general": 10}}
    config["pack"] = {"samples_per_shard": 30}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(config.get(key), dict) else value
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def write_folder_config(folder: Path, work_dir: str, pictures: str, **run: Any) -> Path:
    """A small build of `pictures/plant` and `pictures/general`, each picture with its text beside it."""
    sources = [
        {
            "name": domain,
            "domain": domain,
            "folder": {"path": f"{pictures}/{domain}", "captions": "text_file"},
            "defaults": {"licence": "CC0"},
        }
        for domain in ("plant", "general")
    ]
    values = {
        "name": "stored",
        "work_dir": work_dir,
        "sources": sources,
        "mix": {"ratio": {"plant": 1, "general": 1}, "heldout": {"num_samples": {"plant": 2, "general": 2}}},
        "pack": {"samples_per_shard": 10},
        "run": {"executor": "inline", "fetch_part_size": 4, "max_attempts": 6, "retry_wait_seconds": 0.01, **run},
    }
    path = folder / f"config-{hashlib.sha256(work_dir.encode()).hexdigest()[:6]}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def write_pictures(folder: Path, num_of_domain: int = 9) -> str:
    """Pictures of `write_folder_config`, each with its text beside it; gives the folder `folder`/pics."""
    for domain, first in (("plant", 0), ("general", 100)):
        (folder / "pics" / domain).mkdir(parents=True)
        for number in range(num_of_domain):
            place = folder / "pics" / domain / f"{number}.jpg"
            place.write_bytes(picture(first + number, "jpg"))
            place.with_suffix(".txt").write_text(f"a picture of the {domain} domain, number {number}")
    return str(folder / "pics")


def write_small_config(
    folder: Path, *sources: dict[str, Any], name: str = "small", file: str = "", **sections: Any
) -> Path:
    """A build in one process of a few sources into `folder`/work, all domains alike; sections stand as they are given.

    `file` is the name of the config where it is not that of the release.
    """
    values = {
        "name": name,
        "work_dir": str(folder / "work"),
        "sources": list(sources),
        "mix": {"ratio": dict.fromkeys((source["domain"] for source in sources), 1)},
        **sections,
        "run": {"executor": "inline", **sections.get("run", {})},
    }
    path = folder / f"{file or name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def loopback(**network: Any) -> dict[str, Any]:
    """The section `fetch` for a web on this machine, which is asked as fast as it answers."""
    limits = {"requests_per_second": None, **network.pop("limits", {})}
    return {"network": {"retries": 0, "limits": limits, "allow_private_addresses": True, **network}}


def list_source(folder: Path, urls: Iterable[str], name: str = "a") -> dict[str, Any]:
    """A source of plants: `folder`/NAME.csv with a row for each address, whose key is its number."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["key", "url", "caption", "licence"])
        writer.writerows([n, url, f"a photo of plant number {n} in the field", "CC0"] for n, url in enumerate(urls))
    columns = {"url": "url", "caption": "caption", "record_key": "key", "licence": "licence"}
    return {"name": name, "domain": "plant", "table": str(folder / f"{name}.csv"), "columns": columns}


def folder_source(path: Path | str, **defaults: str) -> dict[str, Any]:
    """A source of plants: a folder of pictures, free for all."""
    return {
        "name": "ours",
        "domain": "plant",
        "folder": {"path": str(path)},
        "defaults": {"licence": "CC0-1.0", **defaults},
    }


def photos_config(folder: Path, work_dir: Path, **sections: Any) -> BuildConfig:
    """A build in one process of the pictures in a folder, all with the same caption."""
    photos = {
        "name": "photos",
        "domain": "food",
        "folder": {"path": str(folder), "captions": "none"},
        "defaults": {"caption": "a photo of something to eat", "licence": "CC0-1.0"},
    }
    values = {"name": "demo", "work_dir": str(work_dir), "sources": [photos], "mix": {"ratio": {"food": 1}}}
    return BuildConfig.model_validate({**values, "run": {"executor": "inline"}, **sections})


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The real command in this process, which has loaded all that a process would load first."""
    given = [str(argument) for argument in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code: Any = main(given)
        except SystemExit as error:  # of the parser
            code = error.code
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(given, code, *texts)


def run_inline(config: Path) -> None:
    """Have a config that `init` wrote build in one process."""
    text = config.read_text()
    assert "executor: processes" in text
    config.write_text(text.replace("executor: processes", "executor: inline"))


def done(*arguments: str | Path) -> str:
    """What a command says that must succeed."""
    ended = run_here(*arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def release_of(work_dir: Path) -> Path:
    """The newest release of a work folder."""
    return work_dir / "releases" / (work_dir / "releases/LATEST").read_text(encoding="utf-8").strip()


def hash_tree(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_own_pictures(folder: Path, *options: str) -> None:
    """A build, in this process, of the pictures in `folder`/pics into `folder`/work."""
    config = write_small_config(folder, folder_source(folder / "pics"), name="own")
    assert main(["build", str(config), *options]) == 0
