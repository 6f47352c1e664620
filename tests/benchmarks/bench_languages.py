"""The rule `languages: {allow: [en]}` on real short captions: English that stays, and other languages that stay.

    python tests/benchmarks/bench_languages.py ENGLISH.parquet TRANSLATED.parquet

ENGLISH has a column caption (every row English), TRANSLATED has caption and lang. Every distinct caption counts once;
a text that stands under English too is left out of the others. Prints a table by words: with the defaults of the rule,
and with a minimum of no characters in place of the default.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests import tables
from pipeline.captions import rules
from pipeline.captions.measure import measure_captions
from pipeline.captions.rules import judge_captions
from pipeline.captions.settings import MIN_CHARS, CaptionSettings

LENGTHS = (("1-2", 1, 2), ("3-5", 3, 5), ("6+", 6, 10_000), ("all", 0, 10_000))


def main() -> None:
    given, translated = pq.read_table(sys.argv[1], columns=["caption"]), pq.read_table(sys.argv[2])
    is_english = pc.equal(translated["lang"], "en")
    english = set(given["caption"].to_pylist()) | set(translated.filter(is_english)["caption"].to_pylist())
    others = set(translated.filter(pc.invert(is_english))["caption"].to_pylist()) - english
    print("| captions | words | distinct | kept by default | kept with min_chars: 0 |\n|---|---|---|---|---|")
    for name, texts in (("English", english), ("other languages", others)):
        captions = measured(sorted(text for text in texts if text))
        kept = {low: kept_by(captions, low) for low in (None, 0)}
        words = captions["num_words"].to_numpy()
        for label, least, most in LENGTHS:
            chosen = (words >= least) & (words <= most)
            shares = (f"{kept[low][chosen].sum():,} ({kept[low][chosen].mean():.1%})" for low in (None, 0))
            print(f"| {name} | {label} | {chosen.sum():,} | {' | '.join(shares)} |")
        if name == "English":
            dropped = captions.filter(pa.array(~kept[None])).select(["text", "language", "language_confidence"])
    print(f"\nEnglish that the default drops, {dropped.num_rows}:")
    for row in dropped.to_pylist():
        print(f"  {row['language']} {row['language_confidence']:.2f}  {row['text']}")


def measured(texts: list[str]) -> pa.Table:
    """The table CAPTIONS of these texts; what cleaning leaves empty is left out."""
    size = len(texts)
    columns = {name: pa.nulls(size, tables.CANDIDATES.field(name).type) for name in tables.CANDIDATES.names}
    columns |= {
        "sample_id": pa.array([str(number) for number in range(size)]),
        "source": pa.array(["bench"] * size),
        "domain": pa.array(["general"] * size),
        "caption": pa.array(texts),
    }
    captions = measure_captions(pa.table(columns, schema=tables.CANDIDATES))
    return captions.filter(pc.greater(captions["num_words"], 0))


def kept_by(captions: pa.Table, min_chars: int | None) -> npt.NDArray[np.bool_]:
    """Which captions the rule keeps, with its own least length or another."""
    rules.MIN_CHARS = MIN_CHARS if min_chars is None else min_chars
    judged = CaptionSettings.model_validate({"rules": [{"languages": {"allow": ["en"]}}]})
    needed = {"domain": ["general"] * captions.num_rows, "source": ["bench"] * captions.num_rows}
    for name, values in needed.items():
        if name not in captions.column_names:
            captions = captions.append_column(name, pa.array(values))
    keep: npt.NDArray[np.bool_] = judge_captions(captions, judged)["keep"].to_numpy(zero_copy_only=False)
    return keep


if __name__ == "__main__":
    main()
