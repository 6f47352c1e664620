"""The report of a release: one HTML page that needs nothing else. Pure: record, mixture and figures in, text out.

Styles and drawings stand in the page, pictures as data; no script, no address is loaded from elsewhere. The same
release gives the same page, so it is part of the release. Sections of a work folder are handed in as fragments.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from pipeline.sidefiles.card import LAW_LOSSES, LAW_SHARES, STAGES, evaluation_rows, law_rows
from pipeline.sidefiles.drawings import bar, bars, curve
from pipeline.sidefiles.figures import MAX_ROWS, SIDE_EDGES_PX, WORD_EDGES

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2420;--soft:#5b6660;--line:#d7ddd8;--back:#fbfcfa;--card:#fff;--a:#2f7d4f;
--b:#c08a2b;--c:#4a6fa5;--d:#a0527a;--drop:#c9d0cb}
@media(prefers-color-scheme:dark){:root{--ink:#e7ece8;--soft:#9aa69f;--line:#343c37;--back:#151917;--card:#1c211e;
--a:#58b27f;--b:#dcae57;--c:#7fa3d8;--d:#d084ac;--drop:#48524c}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1060px;margin:0 auto;padding:20px 16px 60px}h1{font-size:25px;margin:8px 0 2px;overflow-wrap:anywhere}
h2{font-size:18px;margin:34px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:18px 0 6px}p{margin:6px 0}.soft,small{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin:16px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:20px;font-variant-numeric:tabular-nums}.tile span{color:var(--soft);font-size:13px}
.wide{overflow-x:auto}table{border-collapse:collapse;min-width:280px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:13px}td.num,th.num{text-align:right}
.stage{display:grid;grid-template-columns:70px 1fr;gap:2px 10px;margin:7px 0;align-items:center}
.stage .why{grid-column:2;color:var(--soft);font-size:13px}svg{display:block;max-width:100%;height:auto}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px}
.legend i{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:5px;vertical-align:-1px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:0 34px}.pair>div{min-width:0}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(142px,1fr));gap:10px}
.sheet figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;overflow:hidden}
.sheet img{width:100%;height:140px;object-fit:contain;background:#8881;display:block}
.sheet figcaption{padding:5px 8px 7px;font-size:12px;line-height:1.35;overflow-wrap:anywhere}
.warn{border-left:3px solid var(--b);padding-left:10px}code{font-size:13px;overflow-wrap:anywhere}
"""
_COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)")
_SHOWN_TEXT_CHARS = 140


def write_page(
    record: Mapping[str, Any], mixture: Mapping[str, Any], figures: Mapping[str, Any], fragments: Sequence[str] = ()
) -> str:
    """The whole page; `fragments` are further sections in HTML, shown after the others."""
    domains = [row["domain"] for row in mixture["domains"]]
    colours = {domain: _COLOURS[at % len(_COLOURS)] for at, domain in enumerate(domains)}
    sections = [
        _head(record),
        _funnel(record),
        _mixture(record, mixture, figures, colours),
        _law(mixture),
        _sheet(figures),
        _origins(figures),
        _texts_and_sizes(figures, colours),
        _shards(record),
        _evaluation(record),
        _takedowns(record),
        *fragments,
    ]
    title = escape(f"{record['name']} {record['version']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table; numbers get thousands separators and stand to the right."""

    def cell(tag: str, value: object) -> str:
        right = ' class="num"' if isinstance(value, int | float) else ""
        text = f"{value:,}" if isinstance(value, int) else escape(str(value))
        return f"<{tag}{right}>{text}</{tag}>"

    body = list(rows)
    numeric = [bool(body) and isinstance(body[0][at], int | float) for at in range(len(head))]
    first = "".join(
        f'<th class="num">{escape(name)}</th>' if right else f"<th>{escape(name)}</th>"
        for name, right in zip(head, numeric, strict=True)
    )
    lines = ["<tr>" + "".join(cell("td", value) for value in row) + "</tr>" for row in body]
    return f'<div class="wide"><table><tr>{first}</tr>{"".join(lines)}</table></div>'


def section(title: str, *parts: str) -> str:
    """A titled section."""
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def _head(record: Mapping[str, Any]) -> str:
    counts = record["counts"]
    shards = [shard for split in record["splits"].values() for shard in split["shards"]]
    heldout = record["splits"].get("heldout", {}).get("num_samples", 0)
    tiles = [
        (f"{counts['samples']:,}", "training samples"),
        (f"{counts['distinct_samples']:,}", "distinct images"),
        (f"{heldout:,}", "held out"),
        (f"{len(shards):,}", "shards"),
        (_size(sum(shard["num_bytes"] for shard in shards)), "in shards"),
    ]
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    return (
        f'<header><h1>{escape(record["name"])}</h1>\n<p class="soft">version {escape(record["version"])}, '
        f"{escape(record['kind'])} release, fingerprint <code>{escape(record['fingerprint'][:16])}</code></p>\n"
        f'<div class="tiles">{boxes}</div></header>'
    )


def _funnel(record: Mapping[str, Any]) -> str:
    stages = sorted(record["counts"]["stages"].items(), key=lambda item: STAGES.index(item[0]))
    whole = max((funnel["in"] for _, funnel in stages), default=1) or 1
    lines = []
    for name, funnel in stages:
        reasons = sorted(funnel["reasons"].items(), key=lambda item: (-item[1], item[0]))
        dropped = funnel["in"] - funnel["kept"]
        why = ", ".join(f"{num:,} {escape(reason.replace('_', ' '))}" for reason, num in reasons)
        drawn = bar([(funnel["kept"], "var(--a)"), (dropped, "var(--drop)")], whole)
        text = f"{funnel['kept']:,} kept" + (f"; {dropped:,} dropped: {why}" if dropped else "")
        lines.append(f'<div class="stage"><b>{escape(name)}</b>{drawn}<span class="why">{text}</span></div>')
    return section("From candidates to samples", *lines)


def _mixture(
    record: Mapping[str, Any], mixture: Mapping[str, Any], figures: Mapping[str, Any], colours: Mapping[str, str]
) -> str:
    rows = mixture["domains"]
    images = {row["domain"]: row["images"] for row in figures["domains"] if row["split"] == "train"}
    legend = "".join(f'<span><i style="background:{colours[d]}"></i>{escape(d)}</span>' for d in colours)
    drawn = [
        f'<div class="stage"><span>{label}</span>{bar([(row[name], colours[row["domain"]]) for row in rows], 1)}</div>'
        for label, name in (("asked for", "target_share"), ("realised", "realised_share"))
    ]
    counts = table(
        ("domain", "asked for", "realised", "training samples", "distinct images", "in the pool", "epochs", "held out"),
        [
            (row["domain"], f"{row['target_share']:.3%}", f"{row['realised_share']:.3%}", row["num_drawn"],
             images.get(row["domain"], 0), row["num_available"], f"{row['num_epochs']:.2f}", row["num_heldout"])
            for row in rows
        ],
    )  # fmt: skip
    note = (
        "<p>Stratified: every pool is whole in the shards; the shares asked for are what readers are told to draw "
        "(<code>plantmix export</code>).</p>"
        if record["kind"] == "stratified"
        else ""
    )
    return section("Mixture", f'<div class="legend">{legend}</div>', *drawn, note, counts)


def _law(mixture: Mapping[str, Any]) -> str:
    law = mixture.get("law")
    if not law:
        return ""
    shares, losses = law_rows(law)
    parts = []
    if shares:
        parts.append(table(LAW_SHARES, shares))
    if losses:
        parts += ["<h3>Losses</h3>", table(LAW_LOSSES, losses)]
    trade_off = law.get("trade_off")
    if trade_off:
        one, two = trade_off["between"]
        points = [(p["losses"][one]["loss"], p["losses"][two]["loss"]) for p in trade_off["points"]]
        best = (law.get("predicted") or {}).get(one), (law.get("predicted") or {}).get(two)
        mark = (best[0]["loss"], best[1]["loss"]) if best[0] and best[1] else None
        parts.append(f"<h3>Trade-off between the losses {escape(one)} and {escape(two)}</h3>")
        parts.append(curve(points, f"predicted loss {one}", f"predicted loss {two}", mark))
    parts += [f'<p class="warn">{escape(text)}</p>' for text in law.get("warnings") or ()]
    return section("Mixing law", *(parts or ["<p>The shares come from a mixture file without further evidence.</p>"]))


def _sheet(figures: Mapping[str, Any]) -> str:
    parts = []
    for domain in dict.fromkeys(row["domain"] for row in figures["sheet"]):
        shown = []
        for row in figures["sheet"]:
            if row["domain"] != domain:
                continue
            text = row["text"] if len(row["text"]) <= _SHOWN_TEXT_CHARS else row["text"][:_SHOWN_TEXT_CHARS] + "…"
            data = base64.b64encode(row["jpg"]).decode()
            shown.append(
                f'<figure><img loading="lazy" alt="" src="data:image/jpeg;base64,{data}">'
                f"<figcaption>{escape(text) or '<i>no text</i>'}<br><small>{escape(row['source'])}, "
                f"{escape(row['licence_id'] or 'unknown')}</small></figcaption></figure>"
            )
        parts += [f"<h3>{escape(domain)}</h3>", f'<div class="sheet">{"".join(shown)}</div>']
    return section("A look at the samples", '<p class="soft">Drawn by hash, not chosen.</p>', *parts)


def _origins(figures: Mapping[str, Any]) -> str:
    sources = table(
        ("source", "domain", "images"), [(r["source"], r["domain"], r["images"]) for r in figures["sources"]]
    )
    licences = table(("licence", "images"), [(r["licence"], r["images"]) for r in figures["licences"]])
    owners: dict[str, int] = {}
    for row in figures["owners"]:
        owners[row["owner"]] = owners.get(row["owner"], 0) + row["images"]
    named = sorted(owners.items(), key=lambda item: (-item[1], item[0]))
    hosts = [(row["host"], row["images"]) for row in figures["hosts"]]
    return section(
        "Where it comes from",
        f'<div class="pair"><div><h3>Sources</h3>{sources}</div><div><h3>Licences</h3>{licences}</div>'
        f"<div><h3>Owners</h3>{_longest('owner', named)}</div><div><h3>Hosts</h3>{_longest('host', hosts)}</div></div>",
    )


def _longest(name: str, rows: Sequence[tuple[str, int]]) -> str:
    rest = rows[MAX_ROWS:]
    more = f'<p class="soft">and {len(rest):,} more with {sum(num for _, num in rest):,} images</p>' if rest else ""
    return table((name, "images"), rows[:MAX_ROWS]) + more


def _texts_and_sizes(figures: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    types = table(
        ("domain", "text made from", "samples"),
        [(r["domain"], r["text_type"].replace("_", " "), r["samples"]) for r in figures["text_types"]],
    )
    legend = "".join(f'<span><i style="background:{colours[d]}"></i>{escape(d)}</span>' for d in colours)
    words = bars(figures["words"], _labels(WORD_EDGES, "0"), colours)
    sides = bars(figures["sides"], _labels(SIDE_EDGES_PX, f"< {SIDE_EDGES_PX[0]}"), colours)
    return section(
        "Texts and sizes",
        f'<div class="legend">{legend}</div>',
        f'<div class="pair"><div><h3>Words of a text, bins from; share of the domain’s samples</h3>{words}</div>'
        f"<div><h3>Shorter side as downloaded, px, bins from; share of the domain’s images</h3>{sides}</div></div>",
        "<h3>What the texts were made from</h3>",
        types,
    )


def _labels(edges: Sequence[int], below: str) -> list[str]:
    """Names of the bins by where they begin: below the first edge, then each edge; the last one is open."""
    return [below, *(str(edge) for edge in edges[:-1]), f"{edges[-1]}+"]


def _shards(record: Mapping[str, Any]) -> str:
    rows = []
    for split in sorted(record["splits"], reverse=True):
        shards = record["splits"][split]["shards"]
        if not shards:
            continue
        nums, sizes = ([shard[name] for shard in shards] for name in ("num_samples", "num_bytes"))
        rows.append((split, len(shards), sum(nums), _range(nums, "{:,}".format), _range(sizes, _size)))
    return section("Shards", table(("split", "shards", "samples", "samples a shard", "size of a shard"), rows))


def _evaluation(record: Mapping[str, Any]) -> str:
    rows = evaluation_rows(record)
    head = ("set", "pHash radius", "images found in the sources and dropped")
    return section("Evaluation sets kept out", table(head, rows)) if rows else ""


def _takedowns(record: Mapping[str, Any]) -> str:
    takedowns = record.get("takedowns") or []
    rows = [(entry["num_images"], entry["reason"], entry["from"]) for entry in takedowns]
    return section("Taken down", table(("images", "reason", "from version"), rows)) if rows else ""


def _range(values: Sequence[int], shown: Callable[[int], str]) -> str:
    low, high = shown(min(values)), shown(max(values))
    return low if low == high else f"{low} to {high}"


def _size(num_bytes: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} B"
