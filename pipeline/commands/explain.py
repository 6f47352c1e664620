"""`plantmix explain`: the life of one image, from its source row to its shard or the reason it has none."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from typing import Any

import duckdb

from manifests.contract.outcomes import PASSING
from manifests.contract.reader import open_reader, rows_of
from manifests.contract.release import Release
from manifests.contract.takedowns import read_list
from manifests.errors import ConfigError, IntegrityError
from manifests.stores.folder import place_of
from pipeline.answers.lives import MIN_PREFIX, find_lives
from pipeline.answers.tables import print_lines
from pipeline.commands import WORKDIR_HELP, Commands, add_command, add_json_option, print_json
from pipeline.releases.opening import open_sql, view_samples
from pipeline.releases.versions import releases_beside

MAX_SHOWN = 20
_UNREADABLE = (ConfigError, IntegrityError, duckdb.Error)  # a release that is damaged: `verify` says how


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `explain` to the command line."""
    parser = add_command(
        commands,
        "explain",
        "tell what became of one image: its source, fetch, duplicates, rules, shard, or why it was dropped",
        "plantmix explain data/demo http://127.0.0.1:8731/tuxpaint/plants/flowers/rose.png",
        reads="catalogue and tables of the work folder",
        writes="nothing",
    )
    parser.add_argument("dir", metavar="DIR", help=WORKDIR_HELP)
    parser.add_argument(
        "what", metavar="ID-or-URL-or-SHARD/KEY", help="an id or its first digits, URL, path, or shard and key"
    )
    add_json_option(parser)
    parser.set_defaults(func=_run)


def _packed_text(workdir: str, life: dict[str, Any]) -> dict[str, Any] | None:
    """`text` and `text_type` that the newest release has of an image; None where it has none, or is damaged."""
    if not life.get("placements") or not life["release"]:
        return None
    with contextlib.suppress(*_UNREADABLE), open_sql() as sql:
        view_samples(sql, Release.open(place_of(workdir, life["release"]["path"])))
        query = "SELECT text, text_type FROM samples WHERE sample_id = $1 AND copy = 0"
        return next(iter(rows_of(sql, query, [life["candidates"]["sample_id"]])), None)
    return None


def _elsewhere(workdir: str, what: str) -> str:
    """Words that name a release of earlier sources which holds an image; none where there is none."""
    with contextlib.suppress(*_UNREADABLE):
        for release in releases_beside(Release.open(place_of(workdir))):
            with open_sql() as sql:
                view_samples(sql, release)
                if sql.execute("SELECT 1 FROM samples WHERE $1 IN (sample_id, url) LIMIT 1", [what]).fetchall():
                    return f", but its release {release.name} holds it, from sources that were named then"
    return ""


def _run(args: argparse.Namespace) -> int:
    with open_reader(args.dir) as connection:
        lives = find_lives(connection, args.what)
    taken = {entry.value: entry.reason for entry in read_list(args.dir).entries if entry.by == "id"}
    for life in lives:
        life["taken_down"] = taken_down(life, taken)
        life["packed_text"] = _packed_text(args.dir, life)
    if not lives:
        raise ConfigError(
            f"{args.what}: no such image in the last build of {args.dir}{_elsewhere(args.dir, args.what)}; give a "
            f"sample id or its first {MIN_PREFIX} digits or more, a URL as in the source, the path of a picture, or "
            "SHARD/KEY as in a release"
        )
    if args.json:
        print_json(lives)
        return 0
    for number, life in enumerate(lives[:MAX_SHOWN]):
        print_lines([""] * (number > 0) + describe_life(life))
    if len(lives) > MAX_SHOWN:
        print(f"\nand {len(lives) - MAX_SHOWN:,} more rows of this URL")
    return 0


def taken_down(life: dict[str, Any], taken: Mapping[str, str]) -> str | None:
    """Return the reason of a takedown that the stages have not seen yet: they still say kept and drawn."""
    if "reject" in life or (life["decisions"] or {}).get("reason") == "takedown":
        return None
    facts = life["facts"] or {}
    ids = [str(life["candidates"]["sample_id"]), *(str(facts.get(name)) for name in ("image_id", "stored_sha256"))]
    return next((taken[named] for named in ids if named in taken), None)


def describe_life(life: dict[str, Any]) -> list[str]:
    """Return a life as lines that a person reads, stage by stage."""
    if "reject" in life:
        row = life["reject"]
        value = f" ({row['value']})" if row["value"] else ""
        named = row["url"] or row["record_key"] or "(no URL)"
        return [
            f"source    row {row['row_number'] + 1:,} of {row['source']}: {named}",
            f"ingest    DROPPED: {row['reason']}{value}",
        ]
    lines = _source_lines(life["candidates"])
    if life["facts"] is None:
        return [*lines, "fetch     not yet"]
    lines += _fetch_lines(life["facts"]) + _round_lines(life["fetched"])
    decision = life["decisions"]
    if life["captions"] is not None:
        lines += _taxon_lines(life, life["captions"]) + _caption_lines(life["captions"])
    lines += [line for row in life["joined_texts"] for line in _text_lines(row)]
    lines += [f"score     {row['score']:.4f} by {row['scorer']}" for row in life["scores"]]
    if life["marks"] is not None:
        lines.append(f"          packed as {life['marks']['marks']} ({len(life['marks']['blur'] or [])} boxes blurred)")
    if decision is None:
        return [*lines, "select    not yet"]
    lines += _decision_lines(life, decision) + _mix_lines(life, decision)
    if life.get("taken_down"):
        lines.append(
            f"TAKEN DOWN since this build; reason: {life['taken_down']}. The newest release is without it, and the "
            "next build drops it"
        )
    return lines


def _source_lines(row: dict[str, Any]) -> list[str]:
    taxon = [row[name] for name in row if name.startswith("taxon_") and row[name]]
    lines = [
        f"sample    {row['sample_id']}",
        f"source    row {row['row_number'] + 1:,} of {row['source']} (domain {row['domain']}), key {row['record_key']}",
        *([f"          {row['url']}"] if row["url"] else []),
        *([f"          on this machine: {row['locator']} (file@offset or row+length)"] if row["locator"] else []),
        f"          caption as given: {row['caption']!r}",
    ]
    if taxon:
        lines.append(f"          taxon: {', '.join(dict.fromkeys(taxon))}")
    stated = (str(row[name]).replace("\n", "; ") for name in ("licence", "licence_url") if row[name])
    licence = ", ".join(stated) or "none stated"
    owner = row["rights_holder"] or row["creator"]
    lines.append(f"          licence: {licence}" + (f", owner: {owner}" if owner else ""))
    if row["reference_url"]:
        lines.append(f"          page: {row['reference_url']}")
    return lines


def _fetch_lines(row: dict[str, Any]) -> list[str]:
    tries = _tries(row["attempts"])
    status = f", HTTP {row['http_status']}" if row["http_status"] else ""
    if row["outcome"] != "ok":
        again = "may pass, `plantmix retry` asks again" if row["outcome"] in PASSING else "final, not asked again"
        detail = f" ({row['detail']})" if row["detail"] else ""
        return [f"fetch     DROPPED: {row['outcome']}{detail} after {tries}{status}; {again}", *_way_lines(row)]
    owners = dict.fromkeys(owner for name in ("file_creator", "file_rights") if (owner := row.get(name)))
    turned = f", rotated (EXIF {row['exif_orientation']})" if (row["exif_orientation"] or 1) > 1 else ""
    return [
        f"fetch     ok after {tries}{status}: {row['num_bytes']:,} bytes, {row['format']} {row['mode']}, "
        f"{row['width_px']} x {row['height_px']} px{turned}",
        f"          stored as {row['stored_width_px']} x {row['stored_height_px']} px, pHash {row['phash']:016x}, "
        f"in pool/{row['pool_file']} at {row['offset']:,}",
        f"          sha256 as downloaded {row['image_id']}",
        *([f"          its file names {', '.join(owners)}"] if owners else []),
        *_way_lines(row),
    ]


def _tries(num_attempts: int | None) -> str:
    if num_attempts is None:  # img2dataset does not say
        return "an unknown number of attempts"
    return f"{num_attempts} {'attempt' if num_attempts == 1 else 'attempts'}"


def _way_lines(row: dict[str, Any]) -> list[str]:
    hops = [*(row["redirects"] or []), row["final_url"]]
    return [f"          redirected to {hop}" for hop in hops[1:]]


def _round_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Describe each round of fetching, once there is more than one."""
    if len(rows) < 2:
        return []
    return [
        f"          {'round ' + str(row['round']) if row['round'] else 'at first'}: {row['outcome']}"
        + (f" ({row['detail']})" if row["detail"] else "")
        + f", {_tries(row['attempts'])}"
        for row in rows
    ]


def _caption_lines(row: dict[str, Any]) -> list[str]:
    steps = f" (changed by {', '.join(row['steps'])})" if row["steps"] else ""
    taxon = " (of the taxon: the caption is empty or too short)" if row["text_source"] == "taxon" else ""
    return [
        f"caption   {row['text']!r}{taxon}{steps}",
        f"          {row['num_chars']} characters, {row['num_words']} words, language {row['language'] or 'unknown'}, "
        f"letters {row['letter_ratio'] or 0:.2f}, licence read as {row['licence_id']}",
    ]


def _text_lines(row: dict[str, Any]) -> list[str]:
    """Return a joined text: where it came from, and what became of it."""
    value = f" ({row['value']}; allowed: {row['threshold']})" if row["threshold"] else ""
    return [
        f"text      {row['name'] or row['kind']}: {row['text']!r}",
        f"          row {row['row_number'] + 1:,} of the table of captions {row['entry']} of {row['source']}"
        + (f"; DROPPED: {row['reason']}{value}" if row["reason"] else ""),
    ]


def _taxon_lines(life: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Return the taxon as given, how the backbone matched it, and what it is accepted as."""
    derived = (row["taxon_derived"] or "").split()
    ranks = ", ".join(
        f"{rank} {name}" + " (derived)" * (rank in derived) for rank, name in dict(row["taxon_ranks"] or {}).items()
    )
    name = life["name"]
    if name is None:
        return [f"taxon     {row['taxon_name']} ({ranks or 'no ranks'})"] if row["taxon_name"] else []
    if name["accepted_id"] is None:
        return [f"taxon     {name['name']!r} kept as given: {name['matched_how']} in the backbone"]
    vernacular = f", known there as {name['vernacular']}" if name["vernacular"] else ""
    return [
        f"taxon     {name['name']!r} as given, matched {name['matched_how']} with {name['matched_id']} "
        f"({name['matched_status']})",
        f"          accepted as {name['accepted_name']}, {name['accepted_id']}{vernacular} ({ranks})",
    ]


def _decision_lines(life: dict[str, Any], decision: dict[str, Any]) -> list[str]:
    if decision["keep"]:
        return [
            "select    kept",
            *(
                f"          instead of {row['sample_id']} ({row['reason']}, distance {row['distance']}): {row['url']}"
                for row in life["stands_for"]
            ),
            *(
                f"          contradicted in its {row['about']}: {row['other_value']!r}, not {row['value']!r}, says the "
                f"{row['matched']} {row['other_sample_id']}"
                for row in decision["conflicts"] or ()
            ),
            *(f"          takes over the caption {row['text']!r}" for row in life["extra_captions"]),
        ]
    if decision["stage"] == "fetch":
        return []
    if decision["reason"] == "eval_leak":
        who = "the leak shows" if " the leak " in decision["value"] else "shows"
        return [
            f"select    DROPPED: eval_leak ({decision['value']})",
            f"          {who} {decision['evaluation_member']} of the evaluation set {decision['evaluation_set']}",
        ]
    twin = life["kept_instead"]
    if decision["reason"] == "takedown":
        is_copy = decision["distance"] is not None
        named = f"as a copy ({decision['value']})" if is_copy else f"by {decision['value']!r}"
        lines = [f"select    DROPPED: takedown, {named}; reason: {decision['threshold']}"]
        return [*lines, f"          that picture is {twin['sample_id']}"] if twin else lines
    if decision["reason"] in ("conflicting_licence", "conflicting_label"):
        return [
            f"select    DROPPED: {decision['reason']} ({decision['value']}; allowed: {decision['threshold']})",
            f"          contradicted by {decision['other_sample_id']}",
        ]
    if twin is not None:
        return [
            f"select    DROPPED: {decision['reason']} ({decision['value']})",
            f"          kept instead: {twin['sample_id']} {twin['url'] or twin['locator'] or ''}".rstrip(),
            *([f"          because {decision['kept_because']}"] if decision["kept_because"] else []),
        ]
    return [
        f"{decision['stage']:<10}DROPPED: {decision['reason']} (measured {decision['value']!r}, "
        f"allowed {decision['threshold']})"
    ]


def _mix_lines(life: dict[str, Any], decision: dict[str, Any]) -> list[str]:
    mix = life["mix"]
    if not decision["keep"]:
        return []
    if mix is None:
        return ["mix       not yet"]
    if not life["draws"]:
        return [
            f"mix       DROPPED: left_out_by_ratio ({mix['num_drawn']:,} of {mix['num_available']:,} {mix['domain']} "
            f"samples were drawn for a share of {mix['target_share']:.4f}; this one comes later in the seeded order)"
        ]
    split = life["draws"][0]["split"]
    copies = len(life["draws"])
    lines = [f"mix       drawn for {split}" + (f", {copies} times" if copies > 1 else "")]
    where = life["release"]["path"] if life["release"] else "?"
    lines += [
        f"pack      {where}: {row['shard']} / {row['key']} (sample {row['position']} of the shard)"
        for row in life["placements"]
    ]
    packed = life.get("packed_text")
    if packed and packed["text"] != (life["captions"] or {}).get("text"):
        lines.append(f"          its text ({packed['text_type'] or 'none'}): {packed['text']!r}")
    return lines if life["placements"] else [*lines, "pack      not yet"]
