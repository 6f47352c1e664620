"""`plantmix preview`: what the caption rules of a config would do, on a sample, before anything is built.

Reads candidates of an earlier build where its sources are the config's (with what is known of their pictures), or
else the first rows of each source as it streams. Writes nothing; a backbone and joined archives are staged in a
temporary folder that is removed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from manifests import tables
from manifests.errors import ConfigError, PlantMixError
from manifests.reader import open_reader
from pipeline.captions.preview import describe_preview, preview_captions
from pipeline.commands.parsing import Commands, add_command
from pipeline.config import BuildConfig, read_config
from pipeline.vocabulary.backbone import check_backbone, names_to_resolve, resolve_names

MAX_SCANNED_ROWS = 200_000  # of each source, when they are streamed
_JOINED = {
    "num_same_text": pa.int64(),
    "num_same_text_host": pa.int64(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "pixel_std": pa.float32(),
}


@dataclass(frozen=True)
class Sample:
    """Drawn candidates, what is known beside them, and words on where they come from."""

    candidates: pa.Table
    joined: dict[str, pa.Array]
    origin: str


def add_parser(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `preview` to the command line."""
    parser = add_command(
        commands,
        "preview",
        "what the caption rules would do, on a sample and with examples; writes nothing",
        "plantmix preview configs/pipeline/demo.yaml --stage caption --num 2000",
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument("--stage", choices=("caption",), default="caption", help="whose rules (caption)")
    parser.add_argument("--num", type=int, default=2000, metavar="N", help="rows to look at (2000)")
    parser.add_argument("--seed", type=int, default=0, help="which rows are drawn (0)")
    parser.add_argument("--json", action="store_true", help="the same as json")
    parser.set_defaults(func=_preview)


def _preview(args: argparse.Namespace) -> int:
    if args.num < 1:
        raise ConfigError(f"--num {args.num}: give at least 1")
    started = time.monotonic()
    config = read_config(args.config)
    check_backbone(config.caption.backbone)
    with tempfile.TemporaryDirectory(prefix="plantmix-preview-") as scratch:
        sample = draw_sample(config, args.num, args.seed, scratch)
        names = None
        if config.caption.backbone is not None:
            wanted = names_to_resolve(sample.candidates)
            names = resolve_names(wanted, config.caption.backbone, scratch, config.run.memory_gb)
    report = preview_captions(sample.candidates, sample.joined, config.caption, names)
    if args.json:
        print(json.dumps({"name": config.name, "origin": sample.origin, **report}, indent=1, ensure_ascii=False))
        return 0
    print(f"{config.name}: {report['num_rows']:,} rows drawn from {sample.origin}")
    print(f"nothing is written; {time.monotonic() - started:.1f} s\n")
    print("\n".join(describe_preview(report)))
    return 0


def draw_sample(config: BuildConfig, num: int, seed: int, scratch: str) -> Sample:
    """`num` candidates, drawn by seed: from the work folder where it holds this config's, else from the sources.

    Raises: ConfigError when a source cannot be read, or gives no rows.
    """
    return _from_work_dir(config, num, seed) or _from_sources(config, num, seed, scratch)


def _from_work_dir(config: BuildConfig, num: int, seed: int) -> Sample | None:
    """None when nothing is ingested there, it was ingested by other source settings, or a build holds it."""
    try:
        connection = open_reader(config.work_dir)
    except PlantMixError:
        return None
    with connection:
        found = connection.execute(
            "SELECT identity FROM stages JOIN current_stages USING (fingerprint) WHERE current_stages.stage = 'ingest'"
        ).fetchall()
        (total,) = connection.execute("SELECT count(*) FROM candidates").fetchall()[0]
        if not found or not total:
            return None
        ingested = [source["source"] for source in json.loads(found[0][0])["sources"]]
        if ingested != json.loads(json.dumps([source.identity() for source in config.sources])):
            return None
        (fetched,) = connection.execute("SELECT count(*) FROM facts").fetchall()[0]
        drawn = f"SELECT * FROM candidates ORDER BY md5(sample_id || '{int(seed)}') LIMIT {num}"
        # repeats by the caption as given, over all candidates: close to what the stage counts over clean texts
        rows = connection.sql(
            f"WITH drawn AS MATERIALIZED ({drawn}), same AS (SELECT caption, count(*) AS num FROM candidates "
            "WHERE caption IN (SELECT caption FROM drawn) GROUP BY caption) "
            "SELECT d.*, same.num AS num_same_text, NULL AS num_same_text_host, f.width_px, f.height_px, f.pixel_std "
            "FROM drawn d LEFT JOIN facts f USING (sample_id) LEFT JOIN same USING (caption) ORDER BY d.sample_id"
        ).to_arrow_table()
    pictures = " and their fetched pictures" if fetched else ""
    origin = f"the {total:,} candidates{pictures} in {config.work_dir}"
    return Sample(rows.select(tables.CANDIDATES.names).cast(tables.CANDIDATES), _joined(rows), origin)


def _from_sources(config: BuildConfig, num: int, seed: int, scratch: str) -> Sample:
    from pipeline.sources.reading import check_source, read_rows
    from pipeline.stages.ingest import map_rows
    from pipeline.store.sql import open_scratch

    read: list[pa.Table] = []
    whole = True
    for source in config.sources:
        check_source(source)
        scanned = 0
        for batch in read_rows(source, partial(open_scratch, scratch, config.run.memory_gb)):
            mapped = map_rows(batch, source)
            read.append(mapped.filter(mapped["reason"].is_null()).select(tables.CANDIDATES.names))
            scanned += mapped.num_rows
            if scanned >= MAX_SCANNED_ROWS:
                whole = False
                break
    rows = pa.concat_tables(read).cast(tables.CANDIDATES).combine_chunks() if read else tables.CANDIDATES.empty_table()
    if not rows.num_rows:
        raise ConfigError("the sources give no usable row; check what each source says of its columns")
    first = "" if whole else f" (the first {MAX_SCANNED_ROWS:,} of each source are read)"
    origin = f"{rows.num_rows:,} rows of the sources{first}; no picture is fetched yet"
    same = pc.value_counts(rows["caption"].combine_chunks())
    drawn = _draw(rows, num, seed)
    place = pc.index_in(drawn["caption"].combine_chunks(), value_set=same.field("values"))
    counted = drawn.append_column("num_same_text", same.field("counts").take(place))
    return Sample(drawn, _joined(counted), origin)


def _draw(rows: pa.Table, num: int, seed: int) -> pa.Table:
    import numpy as np

    order = np.sort(np.random.default_rng(seed).permutation(rows.num_rows)[:num])
    return rows.take(pa.array(order))


def _joined(rows: pa.Table) -> dict[str, pa.Array]:
    nothing = {name: pa.nulls(rows.num_rows, kind) for name, kind in _JOINED.items()}
    there = {
        name: rows[name].combine_chunks().cast(kind) for name, kind in _JOINED.items() if name in rows.column_names
    }
    return nothing | there
