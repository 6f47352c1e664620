"""The command line of each command of a walk."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

from walk.world import ONE_OWNER, World

if TYPE_CHECKING:
    from walk.walker import Walk

QUERIES = ("SELECT reason, count(*) FROM decisions GROUP BY ALL", "SELECT * FROM facts", "SELECT * FROM views")


def arguments_of(walk: Walk, name: str, rng: random.Random) -> list[str] | None:
    """The command line; None where the command has nothing to work on."""
    work, config = str(walk.work), walk.world.write_config(walk.work)
    if name == "build":
        return ["--quiet", "build", config]
    if not walk.whole:
        return None
    releases = sorted(str(path.parent) for path in walk.work.glob("releases/*/release.json"))
    rows = walk.built.rows if walk.built else []
    match name:
        case "mix":
            return ["--quiet", "mix", config]
        case "retry":
            return ["--quiet", "retry", work]
        case "takedown":
            return _takedown(walk, rng)
        case "repair":
            return ["--quiet", "repair", work, "--yes"] if walk.world.may("A1") else None
        case "repair CONFIG":
            return ["--quiet", "repair", work, config, "--yes"]
        case "diff":
            return ["diff", rng.choice(releases), work] if releases else None
        case "explain":
            values = [value for row in rows for value in (row["sample_id"], row["url"]) if value]
            return ["explain", work, rng.choice(values)] if values else None
        case "query":
            return ["query", work, rng.choice(QUERIES)]
        case "publish" if releases:
            shutil.rmtree(walk.published, ignore_errors=True)
            return ["publish", rng.choice(releases), "--to", str(walk.published)]
        case "export" if releases:
            return ["export", rng.choice(releases), "--for", "webdataset"]
        case "publish" | "export":
            return None
        case "init":
            return _init(walk.world, at_once=walk.world.may("init") and rng.random() < 0.5)
        case "report":
            return ["report", work, "--out", str(walk.world.folder / "report.html")]
        case _:
            return [name.split()[0], work, *name.split()[1:]]


def _init(world: World, at_once: bool) -> list[str]:
    """All places one by one, or at once the folder that holds them."""
    shutil.rmtree(world.first, ignore_errors=True)
    world.first.mkdir()
    places = {"plant": [world.inputs / "list.csv"], "general": [world.place("own"), world.tars]}
    places = {"plant": [world.inputs]} if at_once else places
    domains = [f"--domain={domain}={','.join(map(str, of))}" for domain, of in places.items()]
    return ["init", *domains, "--out", str(world.first / "first.yaml")]


def _takedown(walk: Walk, rng: random.Random) -> list[str] | None:
    rows = walk.built.rows if walk.built else []
    copies = [row for row in rows if row["other_sample_id"]]
    kept = [row for row in rows if row["keep"]]
    if len(kept) < 8 or (walk.retried and not walk.world.may("A2")):
        return None
    standing = {row["other_sample_id"] for row in copies}
    with_copies = [row for row in kept if row["sample_id"] in standing]
    drawn = rng.choices([copies, with_copies, kept, rows], [4, 3, 2, 1])[0]
    row = rng.choice(drawn or kept)
    often = 4 if row["rights_holder"] in ONE_OWNER else 0.3
    by = rng.choices(["id", "image", "url", "owner"], [4, 2, 4, often])[0]
    column = {"id": "sample_id", "image": "image_id", "url": "url", "owner": "rights_holder"}[by]
    value = row[column] or row["sample_id"]
    by = by if row[column] and by != "image" else "id"
    return ["takedown", str(walk.work), f"--{by}", value, "--reason", "asked by the owner"]
