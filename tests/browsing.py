"""A small real work folder to browse: photos with copies, a leak, broken files, hostile captions, two releases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from manifests.catalog import Catalog
from pipeline.config import BuildConfig
from pipeline.flow import FLOW
from pipeline.runner.runner import Runner

PHOTOS = sorted((Path(__file__).parent / "photos").glob("*.jpg"))
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"
RIGHT_TO_LEFT = "\u202eevil \u05e9\u05dc\u05d5\u05dd tomato"
LONG = "long " + "x" * 10_000
HOSTILE = {0: SCRIPT, 1: RIGHT_TO_LEFT, 2: LONG, 3: "' OR 1=1; --\" onload=alert(1) {{ 7*7 }}"}
OWNER = "</dd><script>alert('owner')</script>"


def make_pictures(folder: Path) -> None:
    """Three qualities of five photos (0 to 6 bits apart), with captions; a dot, and what is no picture."""
    folder.mkdir()
    for at, photo in enumerate(PHOTOS[:5]):
        picture = Image.open(photo).convert("RGB")
        for quality in (95, 20, 8):
            stem = folder / f"{photo.stem}-{quality}"
            picture.save(f"{stem}.jpg", quality=quality)
            caption = HOSTILE.get(at, "a ripe tomato on a table") if quality == 95 else f"{photo.stem} on a shelf"
            Path(f"{stem}.txt").write_text(caption, encoding="utf-8")
    for photo in PHOTOS[5:10]:
        Image.open(photo).convert("RGB").save(folder / photo.name)
        (folder / f"{photo.stem}.txt").write_text(f"{photo.stem} alone", encoding="utf-8")
    Image.new("RGB", (3, 3)).save(folder / "<b>dot.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")


def build_work_folder(folder: Path) -> Path:
    """Build twice, with another seed, so that two releases lie there."""
    make_pictures(folder / "pictures")
    (folder / "evaluation").mkdir()
    Image.open(PHOTOS[5]).convert("RGB").save(folder / "evaluation" / "held.png")
    for seed, num in ((0, 4), (1, 3)):
        run(folder, mix={"ratio": {"food": 1}, "num_samples": num, "seed": seed})
    return folder / "work"


def run(folder: Path, **changes: Any) -> None:
    config = BuildConfig.model_validate(
        {
            "name": "small",
            "work_dir": str(folder / "work"),
            "sources": [
                {
                    "name": "photos",
                    "domain": "food",
                    "folder": {"path": str(folder / "pictures"), "captions": "text_file"},
                    "defaults": {"licence": "CC0-1.0", "rights_holder": OWNER, "taxon_family": "Rosaceae"},
                }
            ],
            "dedup": {"radius": 4},
            "evaluation": [{"name": "held", "folder": {"path": str(folder / "evaluation"), "captions": "none"}}],
            "run": {"executor": "inline"},
            **changes,
        }
    )
    with Catalog.open(str(folder / "work")) as catalog:
        Runner(config, FLOW, catalog).run()
