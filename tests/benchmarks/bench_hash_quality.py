r"""How well perceptual hashes find re-uploaded photos, by radius: what the default radius rests on.

    python tests/benchmarks/bench_hash_quality.py --photos FOLDER --out FOLDER \
        --labelled PAIRS.parquet --groups GROUPS.parquet --pictures FOLDER

Reads a folder of photos laid out as `group/class/name.jpg` (photos of different groups never show the same thing) and,
optionally, a table of labelled pairs (columns a, b, near_duplicate, relation; a and b are paths below `--pictures`) and
one of known groups (relation, group, url_path): its resized pictures are pairs of the same, one emoji drawn by several
vendors (`semantic`) pairs of others; files of the same bytes are one.
`--num` photos are changed once by every transform, with a random strength; all are compared with each other. Writes
`hash_quality.json` and `hash_quality.png` into the folder given and prints the tables as Markdown.

Hashes: pHash, dHash and wHash of imagehash (64 bits), and PDQ (256 bits) where the package pdqhash is installed; a
column of the tables is a share of the bits, so PDQ is read at four times the radius of the others.

Unrelated pairs that lie within a small radius are too rare to be counted among a few thousand photos. Their rate at
13 M is therefore extrapolated, see `expected_rate`, and is an estimate, not a measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import itertools
import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

RADII = (0, 2, 4, 6, 8, 10, 12)
RELEASE = 13_000_000
ENOUGH = 50  # unrelated pairs at a distance before its rate is taken as measured


def words_of(bits: np.ndarray) -> list[int]:
    """A hash of 64 * W bits as W integers."""
    return [int("".join("01"[bit] for bit in word), 2) for word in bits.astype(int).reshape(-1, 64)]


HASHES: dict[str, Callable[[Image.Image], list[int]]] = {
    "pHash": lambda photo: words_of(imagehash.phash(photo).hash),
    "dHash": lambda photo: words_of(imagehash.dhash(photo).hash),
    "wHash": lambda photo: words_of(imagehash.whash(photo).hash),
}
if importlib.util.find_spec("pdqhash"):
    import pdqhash

    HASHES["PDQ"] = lambda photo: words_of(pdqhash.compute(np.asarray(photo.convert("RGB")))[0])
WORDS = {name: 4 if name == "PDQ" else 1 for name in HASHES}
BALANCED = ("pHash", "PDQ")  # cut at a median: half of the bits are ones


def scaled(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = 2 ** rng.uniform(-2, 1)
    size = [max(16, round(side * factor)) for side in photo.size]
    return photo.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def jpeg(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    return recoded(photo, "JPEG", quality=int(rng.integers(30, 96)))


def webp(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    return recoded(photo, "WEBP", quality=int(rng.integers(50, 91)))


def palette(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    return photo.quantize(256).convert("RGB")


def recoded(photo: Image.Image, form: str, quality: int) -> Image.Image:
    stream = io.BytesIO()
    photo.save(stream, form, quality=quality)
    return Image.open(stream).convert("RGB")


def cropped(low: float, high: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    def crop(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = photo.size
        share = rng.uniform(low, high)
        left, top = rng.uniform(0, share, 2)
        box = (left * width, top * height, (1 - share + left) * width, (1 - share + top) * height)
        return photo.crop(tuple(round(side) for side in box))

    return crop


def bordered(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    width_px = round(min(photo.size) * rng.uniform(0.01, 0.05))
    return ImageOps.expand(photo, width_px, "white" if rng.random() < 0.5 else "black")


def relit(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    brighter = ImageEnhance.Brightness(photo).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Contrast(brighter).enhance(rng.uniform(0.7, 1.3))


def watermarked(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    marked = photo.copy()
    font = ImageFont.load_default(size=max(12, photo.height // 14))
    place = (rng.uniform(0, 0.5) * photo.width, rng.uniform(0, 0.9) * photo.height)
    ImageDraw.Draw(marked).text(place, "© example.org", fill="white", font=font)
    return Image.blend(photo, marked, 0.7)


def grey(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    return photo.convert("L").convert("RGB")


def mirrored(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(photo)


def mirrored_asked(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A re-encoded mirror image, mirrored back as the search does when asked to."""
    return ImageOps.mirror(jpeg(ImageOps.mirror(photo), rng))


TRANSFORMS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "resize 0.25-2x": scaled,
    "JPEG 30-95": jpeg,
    "WebP 50-90": webp,
    "256 colours": palette,
    "brightness, contrast ±30 %": relit,
    "watermark": watermarked,
    "greyscale": grey,
    "border 1-5 %": bordered,
    "crop 2-5 %": cropped(0.02, 0.05),
    "crop 5-10 %": cropped(0.05, 0.10),
    "mirror": mirrored,
    "mirror, asked mirrored": mirrored_asked,
}


def hash_photo(job: tuple[str, int, bool]) -> list[list[int]]:
    """Hashes of the photo and, if asked, of each changed copy: (1 + transforms) x words of all hashes."""
    path, seed, changed = job
    rng = np.random.default_rng(seed)
    photo = Image.open(path).convert("RGB")
    versions = [photo, *(change(photo, rng) for change in TRANSFORMS.values() if changed)]
    return [[word for make in HASHES.values() for word in make(version)] for version in versions]


def hash_picture(path: str) -> list[int]:
    """Words of all hashes of one file, transparency laid on white."""
    picture = Image.open(path).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return [word for make in HASHES.values() for word in make(flat)]


def columns_of(name: str) -> slice:
    """Where the words of a hash stand."""
    first = sum(WORDS[other] for other in list(HASHES)[: list(HASHES).index(name)])
    return slice(first, first + WORDS[name])


def radii_of(name: str) -> list[int]:
    return [radius * WORDS[name] for radius in RADII]


def unrelated_distances(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many pairs of photos of different groups lie at each distance; `hashes` (N, W)."""
    num_bits = 64 * hashes.shape[1]
    counts = np.zeros(num_bits + 1, np.int64)
    for row in range(len(hashes) - 1):
        other = groups[row + 1 :] != groups[row]
        apart = np.bitwise_count(hashes[row] ^ hashes[row + 1 :]).sum(axis=1, dtype=np.int64)
        counts += np.bincount(apart[other], minlength=num_bits + 1)
    return counts


def expected_rate(counts: np.ndarray, radius: int, balanced: bool) -> float:
    """Chance that two unrelated photos lie within `radius`: independent bits, times how much real photos exceed that.

    Independent bits give a hypergeometric law (pHash and PDQ: half of them ones) or a binomial one. The excess is
    measured at the smallest distance within which at least ENOUGH unrelated pairs were seen and taken to hold below:
    it grows towards small distances, so that this is a lower estimate.
    """
    num_bits = len(counts) - 1
    chance = np.array([independent_within(distance, num_bits, balanced) for distance in range(num_bits + 1)])
    within = np.cumsum(counts)
    anchor = int(np.argmax(within >= ENOUGH))
    if radius >= anchor:
        return float(within[radius] / within[-1])
    return float(chance[radius] * within[anchor] / within[-1] / chance[anchor])


def independent_within(distance: int, num_bits: int, balanced: bool) -> float:
    if balanced:
        half = num_bits // 2
        return sum(math.comb(half, step) ** 2 for step in range(distance // 2 + 1)) / math.comb(num_bits, half)
    return sum(math.comb(num_bits, step) for step in range(distance + 1)) / 2**num_bits


def measure(photos: Path, num: int, num_workers: int) -> dict[str, object]:
    paths = sorted(photos.rglob("*.jpg"))
    paths = [paths[place] for place in np.random.default_rng(0).permutation(len(paths))]
    num = min(num, len(paths))
    groups = np.unique([str(path.relative_to(photos).parts[:2]) for path in paths], return_inverse=True)[1]
    with ProcessPoolExecutor(num_workers) as pool:
        jobs = [(str(path), seed, seed < num) for seed, path in enumerate(paths)]
        hashed = list(pool.map(hash_photo, jobs, chunksize=16))
    values = np.array(hashed[:num], np.uint64)
    originals = np.array([versions[0] for versions in hashed], np.uint64)
    result: dict[str, object] = {"num_photos": len(paths), "num_changed": num, "num_groups": int(groups.max()) + 1}
    for name in HASHES:
        words, radii = columns_of(name), radii_of(name)
        distance = np.bitwise_count(values[:, :1, words] ^ values[:, 1:, words]).sum(axis=2, dtype=np.int64)
        counts = unrelated_distances(originals[:, words], groups)
        result[name] = {
            "recall": {
                change: [float((distance[:, step] <= radius).mean()) for radius in radii]
                for step, change in enumerate(TRANSFORMS)
            },
            "unrelated_pairs": int(counts.sum()),
            "unrelated_within": [int(counts[: radius + 1].sum()) for radius in radii],
            "unrelated_counts": counts.tolist(),
            "ones": float(np.bitwise_count(originals[:, words]).sum(axis=1, dtype=np.int64).mean()),
            "rate": [expected_rate(counts, radius, name in BALANCED) for radius in radii],
        }
    return result


def read_labelled(pairs: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(pairs).to_pylist()


def read_groups(groups: Path, pictures: Path) -> list[dict[str, object]]:
    """Pairs of different bytes within each known group, in the form of the labelled pairs."""
    import pyarrow.parquet as pq

    members: dict[tuple[str, str], dict[str, str]] = {}
    for row in pq.read_table(groups).to_pylist():
        path = pictures / row["url_path"]
        if path.is_file() and ("resized" in row["relation"] or "semantic" in row["relation"]):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            members.setdefault((row["relation"], row["group"]), {}).setdefault(content, row["url_path"])
    return [
        {"relation": f"known group, {relation}", "near_duplicate": "semantic" not in relation, "a": a, "b": b}
        for (relation, _), paths in members.items()
        for a, b in itertools.combinations(paths.values(), 2)
    ]


def judge_pairs(rows: list[dict[str, object]], pictures: Path, num_workers: int) -> list[dict[str, object]]:
    """For every relation of the labelled pairs and every hash, the share of pairs within each radius."""
    names = sorted({row[end] for row in rows for end in ("a", "b") if (pictures / row[end]).is_file()})
    with ProcessPoolExecutor(num_workers) as pool:
        hashed = pool.map(hash_picture, [str(pictures / name) for name in names], chunksize=16)
        values = dict(zip(names, (np.array(words, np.uint64) for words in hashed), strict=True))
    found = []
    truths = {True: "same", False: "other", None: "look-alike"}
    for relation, truth in sorted({(row["relation"], row["near_duplicate"]) for row in rows}, key=str):
        mine = [r for r in rows if (r["relation"], r["near_duplicate"]) == (relation, truth)]
        mine = [r for r in mine if r["a"] in values and r["b"] in values]
        for name in HASHES:
            apart = [
                int(np.bitwise_count(values[r["a"]][columns_of(name)] ^ values[r["b"]][columns_of(name)]).sum())
                for r in mine
            ]
            within = [float(np.mean([d <= radius for d in apart])) if apart else math.nan for radius in radii_of(name)]
            found.append(
                {"relation": relation, "truth": truths[truth], "num": len(mine), "hash": name, "within": within}
            )
    return found


def summed(rows: list[dict[str, object]], name: str, truth: str) -> np.ndarray:
    """How many labelled pairs of a truth lie within each radius; mirrors, which a hash is not asked for, left out."""
    mine = [r for r in rows if r["hash"] == name and r["truth"] == truth and r["relation"] != "mirror" and r["num"]]
    return sum((np.array(r["within"]) * r["num"] for r in mine), np.zeros(len(RADII)))


def print_tables(result: dict[str, object]) -> None:
    head = "| " + " | ".join(["", *map(str, RADII)]) + " |\n|" + "---|" * (len(RADII) + 1)
    for name in HASHES:
        facts = result[name]
        compared = f"{result['num_changed']:,} photos changed, {result['num_photos']:,} compared"
        print(f"\n{name}, {compared}: share within a radius\n\n{head}")
        for change, recall in facts["recall"].items():
            print("| " + " | ".join([change, *(f"{value:.3f}" for value in recall)]) + " |")
        print("| unrelated pairs seen | " + " | ".join(f"{value:,}" for value in facts["unrelated_within"]) + " |")
        pairs = [rate * RELEASE * (RELEASE - 1) / 2 for rate in facts["rate"]]
        print("| unrelated pairs expected at 13 M | " + " | ".join(f"{value:,.2g}" for value in pairs) + " |")
        print(
            "| share of 13 M photos with one | "
            + " | ".join(f"{-math.expm1(-rate * RELEASE):.2g}" for rate in facts["rate"])
            + " |"
        )
    if "labelled" in result:
        print(f"\nLabelled pairs (count, truth), share within a radius\n\n{head}")
    for row in result.get("labelled", []):
        shares = " | ".join(f"{share:.3f}" for share in row["within"])
        print(f"| {row['relation']} ({row['num']:,}, {row['truth']}), {row['hash']} | {shares} |")
    for name in HASHES if "labelled" in result else ():
        same, other = (summed(result["labelled"], name, truth) for truth in ("same", "other"))
        print(
            f"| precision over all of these, {name} | " + " | ".join(f"{x:.3f}" for x in same / (same + other)) + " |"
        )


def draw(result: dict[str, object], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, colour in zip(HASHES, ("tab:green", "tab:blue", "tab:orange", "tab:red"), strict=False):
        facts = result[name]
        plain = [recall for change, recall in facts["recall"].items() if change != "mirror"]
        left.plot(RADII, np.mean(plain, axis=0), "o-", color=colour, label=name)
        right.semilogy(RADII, np.maximum(np.array(facts["rate"]) * RELEASE, 1e-9), "o-", color=colour, label=name)
    left.set(xlabel="radius (bits of 64)", ylabel="recall, mean over transforms", ylim=(0, 1))
    right.set(xlabel="radius (bits of 64)", ylabel="unrelated neighbours a photo at 13 M", ylim=(1e-7, 1e6))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labelled", type=Path)
    parser.add_argument("--groups", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder that the labelled paths lie in")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    result = measure(args.photos, args.num, args.workers)
    rows = read_labelled(args.labelled) if args.labelled else []
    rows += read_groups(args.groups, args.pictures) if args.groups else []
    if rows:
        result["labelled"] = judge_pairs(rows, args.pictures, args.workers)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hash_quality.json").write_text(json.dumps(result, indent=1))
    draw(result, args.out / "hash_quality.png")
    print_tables(result)


if __name__ == "__main__":
    sys.exit(main())
