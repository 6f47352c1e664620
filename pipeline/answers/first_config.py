"""The first configuration of a user, as commented YAML: what `plantmix init` writes.

Every guess stands in the file with what it was made from. What only the user can decide is listed at its top.
Reads the places that are named; writes nothing.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from manifests.contract.settings import NAME_PATTERN, parse_settings
from manifests.errors import ConfigError
from pipeline.answers.first_rows import read_head
from pipeline.answers.folders import Found, look_below
from pipeline.answers.places import keys_of, look_at
from pipeline.config import BuildConfig
from pipeline.sources.kinds import Place, path_keys
from pipeline.sources.reading import check_source
from pipeline.sources.settings import KINDS, SourceSettings
from pipeline.sources.tables.captions import guess_join

WIDTH = 118
_MEMORY_GB = 1.0  # to read the first rows of a place
_BELONGS_HERE = ": it says more of pictures here, so its other addresses are not asked for"
_MOST_OF_LIST = 0.9  # of the first rows of a list: a shorter one with so many of its addresses has hardly any others
_RUN = ["run:", "  executor: processes # parts side by side on this machine; write ray for a cluster"]


def parse_domains(options: Sequence[str]) -> dict[str, list[str]]:
    """`plant=a.zip,b/` as domain to places, in the order given.

    Raises: ConfigError for what is not written so.
    """
    domains: dict[str, list[str]] = {}
    for text in options:
        domain, equals, places = text.partition("=")
        split = re.split(r",(?![^{]*\})", places)  # a comma inside braces is part of a place
        named = [path.strip() for path in split if path.strip()]
        if not equals or not named:
            raise ConfigError(f"--domain {text}: write DOMAIN=PLACE[,PLACE...], as in plant=observations.zip")
        if not re.fullmatch(NAME_PATTERN, domain):
            raise ConfigError(f"--domain {text}: '{domain}' is no name; use small letters, digits, - and _")
        domains.setdefault(domain, []).extend(named)
    return domains


def write_first_config(
    name: str,
    domains: Mapping[str, Sequence[str]],
    evaluation: Sequence[str] = (),
    folder: str = ".",
    captions: Sequence[str] = (),
) -> str:
    """Return the YAML of a run over these places, as it stands in `folder`, where its relative paths begin.

    `evaluation` lists places of pictures that must not be trained on, `captions` tables of texts for the pictures.

    Raises: ConfigError for a place that cannot be a source, and for a table that fits none, with the cure.
    """
    places: list[tuple[str, str, Place]] = []
    notes: list[str] = []
    for domain, paths in domains.items():
        for found in map(look_below, paths):
            notes += found.notes + _place_tables(found)
            for guess in found.places:
                taken = [source for source, _, _ in places]
                path = str(guess.settings.get("table") or guess.settings["path"])
                places.append((_source_name(path, taken), domain, guess))
    if not places:
        raise ConfigError("; ".join(_once(notes)))
    for path in captions:
        if len(faults := _join(path, [guess for *_, guess in places])) == len(places):
            raise ConfigError(f"--captions {path}: {faults[0]}")
    for source, domain, guess in places:
        check_source(SourceSettings(name=source, domain=domain, **keys_of(guess)))
    sets: list[tuple[str, Place]] = []
    for path in evaluation:
        sets.append((_source_name(path, [taken for taken, _ in sets]), look_at(path)))
    for guess in [*(guess for *_, guess in places), *(guess for _, guess in sets)]:
        for key in path_keys(KINDS[guess.kind].settings_type):
            if key in guess.settings:
                guess.settings[key] = _from_folder(guess.settings[key], folder)
        for key, entries in (("join", guess.captions), ("table", guess.join)):
            for entry in entries:
                entry[key] = _from_folder(entry[key], folder)
    body = [*_body(name, list(domains), places), "", *_evaluation(sets), "", *_RUN]
    text = "\n".join([*_head(places, notes), "", *body]) + "\n"
    parse_settings(yaml.safe_load(text), BuildConfig, "the written config", folder)
    return text


def _once(notes: Sequence[str]) -> Iterator[str]:
    """Words on files, each said once for all files that have it."""
    files: dict[str, set[str]] = {}
    for note in notes:
        path, _, words = note.partition(": ")
        path = os.path.relpath(path) if os.path.lexists(path) else path
        files.setdefault(words.removeprefix("not read: "), set()).add(path)
    for words, paths in files.items():
        more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
        yield f"{min(paths)}{more}: {words}"


def _place_tables(found: Found) -> list[str]:
    """Join each table to the pictures or the list beside it that it belongs to, else take it as a source.

    The longest of several lists of the same addresses is the source. Return words on the rest.
    """
    notes, pictures = [], list(found.places)
    lists: dict[str, Place] = {}
    others: dict[str, tuple[ConfigError, list[str]]] = {}
    for path, otherwise in found.tables.items():
        faults = _join(path, pictures)
        if len(faults) < len(pictures):
            notes += [f"{path}{_BELONGS_HERE}"] if isinstance(otherwise, Place) else []
        elif isinstance(otherwise, Place):
            lists[path] = otherwise
        else:
            others[path] = otherwise, faults
    readers = {path: SourceSettings(name="x", domain="x", **keys_of(guess)).reader for path, guess in lists.items()}
    longest: list[str] = []
    for path in sorted(lists, key=lambda path: -(readers[path].most_rows() or 0)):
        if len(_join(path, [lists[other] for other in longest], ("url",))) < len(longest):
            notes.append(f"{path}{_BELONGS_HERE}")
        else:
            longest.append(path)
    found.places += (sources := [lists[path] for path in lists if path in longest])
    for path, (error, faults) in others.items():
        faults += (unlike := _join(path, sources, ()))
        if len(unlike) == len(sources):
            notes.append(f"{path}: not read: {'; no captions: '.join([_reason(error, path), *faults[:1]])}")
    return notes


def _reason(error: ConfigError, path: str) -> str:
    return str(error).partition(f"{path}: ")[2] or str(error)


def _join(path: str, places: Sequence[Place], of_list: Sequence[str] | None = None) -> list[str]:
    """Join a table to each place that it fits; why it does not fit the others. `of_list` as `_join_table` has it."""
    faults = []
    for guess in places:
        try:
            _join_table(path, guess, of_list)
        except ConfigError as error:
            faults.append(_reason(error, path))
    return faults


def _from_folder(path: str, folder: str) -> str:
    """Return a path below the current folder as a config in `folder` names it."""
    if "://" in path or PurePosixPath(path).is_absolute() or path.startswith("~"):
        return path
    return os.path.relpath(path, folder)


def describe_places(text: str) -> list[str]:
    """Return the comments at the top of a written config, as lines for the screen."""
    head = text.partition("\n\n")[0].splitlines()
    return [line.removeprefix("#").removeprefix(" ") for line in head]


def _source_name(path: str, taken: Sequence[str]) -> str:
    """Return a name for a source: the last part of its path that says what it is."""
    parts = [part for part in PurePosixPath(path.replace("\\", "/")).parts if not re.search(r"[*?\[{]", part)]
    stem = (parts[-1] if parts else "source").partition(".")[0].lower()
    name = re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_") or "source"
    more = (f"{name}-{number}" for number in range(2, 10_000))
    return name if name not in taken else next(other for other in more if other not in taken)


def _head(places: Sequence[tuple[str, str, Place]], notes: Sequence[str]) -> list[str]:
    """Comments on what only the user can decide, and on what is no source."""
    decisions: list[str] = []
    if not all(KINDS[guess.kind].on_disk for *_, guess in places):
        decisions.append("fetch.network.contact: a mail address or page of yours; public hosts are asked only with one")
    unstated = [source for source, _, guess in places if not guess.states_licence]
    if unstated:
        states = "state" if len(unstated) > 1 else "states"
        decisions.append(
            f"licences: {', '.join(unstated)} {states} none, and pictures of unknown licence are taken, so that "
            "none is lost before you say what holds. Write it as `defaults: {licence: CC-BY-4.0}` in the source, and "
            "take `unknown` out of select.licences.allow"
        )
    for source, _, guess in places:
        decisions += [f"{source}: {missing}" for missing in guess.missing]
        if guess.left_out:
            columns = "; ".join(f"{name} ({why})" for name, why in guess.left_out.items())
            decisions.append(
                f"{source}: columns that are not read: {columns}. Map them in `columns`, or keep them in `extra`"
            )
    if len({domain for _, domain, _ in places}) > 1:
        decisions.append("mix.ratio: as much of each domain as of the others, until you say otherwise")
    lines = ["Written by `plantmix init`. Nothing was asked over the network.", ""]
    lines.append("Only you can decide:" if decisions else "It builds as it is.")
    for number, text in enumerate(decisions, 1):
        lines += _wrap(f"{number}. {text}")
    lines += ["", "Found, and no source:"] if notes else []
    for note in notes:
        lines += _wrap(f"- {note}")
    lines += ["", "Next: plantmix estimate, plantmix preview, plantmix build, each with this file."]
    return [f"# {line}".rstrip() for line in lines]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, initial_indent=" ", subsequent_indent="    ", break_long_words=False)


def _body(name: str, domains: Sequence[str], places: Sequence[tuple[str, str, Place]]) -> list[str]:
    lines = [f"name: {_scalar(name)}", f"work_dir: data/{name} # catalogue, pool and releases", "", "sources:"]
    for source, domain, guess in places:
        lines += [f"  - name: {_scalar(source)}", f"    domain: {_scalar(domain)}", f"    # {guess.words}"]
        lines += _yaml(keys_of(guess), guess.comments, "    ")
    if not all(KINDS[guess.kind].on_disk for *_, guess in places):
        lines += ["", "fetch:", "  network:", "    contact: null # decide: mailto:you@example.org"]
    lines += ["", "caption:", "  rules: # the first that fits a row judges it"]
    with_taxa = {domain for _, domain, guess in places if guess.has_taxa}
    taxonomic = [domain for domain in domains if domain in with_taxa or domain.startswith("plant")]
    if taxonomic:
        lines.append(f"    - {{domains: {_scalar(taxonomic)}, preset: plant}} # a scientific name is a caption")
    if len(taxonomic) < len(domains):
        lines.append("    - {preset: general} # add languages: {allow: [en]} to keep English alone")
    states_all = all(guess.states_licence for *_, guess in places)
    allow = "[known] # every one that is stated" if states_all else "[known, unknown] # unknown: where none is stated"
    lines += ["", "select:", "  licences:", f"    allow: {allow}; or a list: [CC0-1.0, CC-BY]"]
    lines += ["", "mix:", "  ratio:", *[f"    {_scalar(domain)}: 1" for domain in domains]]
    lines.append("  heldout: 5% # of each domain, set aside for evaluation")
    return lines


def _evaluation(sets: Sequence[tuple[str, Place]]) -> list[str]:
    """Return the section of evaluation sets. A list without pictures can be matched by name alone."""
    if not sets:
        return ["# evaluation: # images that must not be trained on", "#   - {name: my-test-set, folder: {path: test}}"]
    lines = ["evaluation: # images that must not be trained on"]
    for name, guess in sets:
        lines += [f"  - name: {_scalar(name)}", f"    # {guess.words}"]
        if not KINDS[guess.kind].on_disk:
            lines += _yaml({**keys_of(guess), "match_names": True}, {"match_names": "a list shows no pictures"}, "    ")
        else:
            image = guess.settings.get("columns", {}).get("image")
            columns = {"columns": {"image": image}} if image else {}
            lines += _yaml({guess.kind: {"path": guess.settings["path"]} | columns}, {}, "    ")
    return lines


def _yaml(values: Mapping[str, Any], comments: Mapping[str, str], indent: str) -> list[str]:
    """Return settings as YAML, a line each, with the comment on it."""
    lines = []
    for key, value in values.items():
        comment = f" # {comments[key]}" if key in comments else ""
        if isinstance(value, dict):
            lines += [f"{indent}{key}:{comment}", *_yaml(value, comments, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}:{comment}")
            for number, item in enumerate(value, 1):
                words = [f"{indent}  # {comments[of_item]}"] if (of_item := f"{key} {number}") in comments else []
                lines += [*words, f"{indent}  - {_scalar(item)}"]
        else:
            lines.append(f"{indent}{key}: {_scalar(value)}{comment}")
    return lines


def _scalar(value: Any) -> str:
    listed = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return listed.strip()[1:-1]


def _join_table(path: str, guess: Place, of_list: Sequence[str] | None) -> None:
    """Write into the settings of a place what a table has for it: the first values of both decide.

    For a list of addresses, most of its first rows must be in the table. `of_list` says by which of its keys; empty: by
    any. A table that has addresses too must say more than another caption.

    Raises: as `guess_join`.
    """
    keys, given = _keys_of(guess), guess.settings.get(guess.mapping) or guess.fields
    if of_list:
        keys = {name: some for name, some in keys.items() if name in of_list}
    found = guess_join(path, keys, given, 0.0 if of_list is None else _MOST_OF_LIST)
    if of_list and given.get("caption") and "join" not in found:
        raise ConfigError(f"{path}: another list of captions")
    for section, (entry, words) in found.items():
        entries = getattr(guess, section)
        entries.append(entry)
        guess.comments[f"{section} {len(entries)}"] = words
        (key,) = entry["on"]
    joined = {name for entry in guess.join for name in entry["columns"]}
    guess.states_licence |= bool(joined & {"licence", "licence_url"})
    guess.has_taxa |= any(name.startswith("taxon_") for name in joined)
    if guess.captions or guess.has_taxa:
        guess.missing = [words for words in guess.missing if not words.startswith("captions of ")]
    if name := key.partition("extra.")[2]:
        mapping = guess.settings.setdefault(guess.mapping, dict(guess.fields))
        mapping["extra"] = list(dict.fromkeys([*mapping.get("extra", ()), name]))
        guess.left_out.pop(name, None)


def _keys_of(guess: Place) -> dict[str, list[str]]:
    """Names that tell the first pictures of a path apart: the distinct values of their keys, fields and addresses."""
    mapped: dict[str, Any] = guess.settings.get(guess.mapping) or guess.fields
    names = [name for name in guess.could_keep if name not in mapped.values()]
    settings = guess.settings | {guess.mapping: mapped | {"extra": names}} if names else guess.settings
    source = SourceSettings(name="x", domain="x", **keys_of(replace(guess, settings=settings)))
    rows = read_head(source, _MEMORY_GB).rows
    extras = [json.loads(text) for text in rows["extra"].to_pylist()] if names else []
    values = {key: rows[key].to_pylist() for key in ("url", "record_key")}
    values |= {f"extra.{name}": [extra[name] for extra in extras] for name in names}
    distinct = {key: sorted({value.strip() for value in some if value}) for key, some in values.items()}
    return {key: some for key, some in distinct.items() if 2 * len(some) > rows.num_rows}
