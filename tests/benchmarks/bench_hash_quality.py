"""How well perceptual hashes find re-uploaded photos, by radius: what the default radius rests on.

    python tests/benchmarks/bench_hash_quality.py --photos FOLDER --labelled near_duplicates.parquet --out FOLDER

Reads a folder of photos laid out as `group/class/name.jpg` (photos of different groups never show the same thing) and,
optionally, a table of labelled pairs with columns near_duplicate, relation, phash_distance, dhash_distance. `--num`
photos are changed once by every transform, with a random strength; all are compared with each other. Writes
`hash_quality.json` and `hash_quality.png` into the folder given and prints the tables as Markdown.

Unrelated pairs that lie within a small radius are too rare to be counted among a few thousand photos. Their rate at
13 M is therefore extrapolated, see `expected_rate`, and is an estimate, not a measurement.
"""

from __future__ import annotations

import argparse
import io
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

HASHES: dict[str, Callable[[Image.Image], object]] = {
    "pHash": imagehash.phash,
    "dHash": imagehash.dhash,
    "wHash": imagehash.whash,
}


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


def to_int(value: object) -> int:
    return int(str(value), 16)


def hash_photo(job: tuple[str, int, bool]) -> list[list[int]]:
    """Hashes of the photo and, if asked, of each changed copy: (1 + transforms) x hashes."""
    path, seed, changed = job
    rng = np.random.default_rng(seed)
    photo = Image.open(path).convert("RGB")
    versions = [photo, *(change(photo, rng) for change in TRANSFORMS.values() if changed)]
    return [[to_int(make(version)) for make in HASHES.values()] for version in versions]


def unrelated_distances(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """How many pairs of photos of different groups lie at each distance 0 .. 64."""
    counts = np.zeros(65, np.int64)
    for row in range(len(hashes) - 1):
        other = groups[row + 1 :] != groups[row]
        counts += np.bincount(np.bitwise_count(hashes[row] ^ hashes[row + 1 :])[other], minlength=65)
    return counts


def expected_rate(counts: np.ndarray, radius: int, balanced: bool) -> float:
    """Chance that two unrelated photos lie within `radius`: independent bits, times how much real photos exceed that.

    Independent bits give a hypergeometric law (pHash has 32 ones of 64) or a binomial one. The excess is measured at
    the smallest distance within which at least ENOUGH unrelated pairs were seen and taken to hold below: it grows
    towards small distances, so that this is a lower estimate.
    """
    chance = np.array([independent_within(distance, balanced) for distance in range(65)])
    within = np.cumsum(counts)
    anchor = int(np.argmax(within >= ENOUGH))
    if radius >= anchor:
        return float(within[radius] / within[-1])
    return float(chance[radius] * within[anchor] / within[-1] / chance[anchor])


def independent_within(distance: int, balanced: bool) -> float:
    if balanced:
        return sum(math.comb(32, step) ** 2 for step in range(distance // 2 + 1)) / math.comb(64, 32)
    return sum(math.comb(64, step) for step in range(distance + 1)) / 2**64


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
    for place, name in enumerate(HASHES):
        distance = np.bitwise_count(values[:, :1, place] ^ values[:, 1:, place])
        counts = unrelated_distances(originals[:, place], groups)
        result[name] = {
            "recall": {
                change: [float((distance[:, step] <= radius).mean()) for radius in RADII]
                for step, change in enumerate(TRANSFORMS)
            },
            "unrelated_pairs": int(counts.sum()),
            "unrelated_within": [int(counts[: radius + 1].sum()) for radius in RADII],
            "unrelated_counts": counts.tolist(),
            "ones": float(np.bitwise_count(originals[:, place]).mean()),
            "rate": [expected_rate(counts, radius, name == "pHash") for radius in RADII],
        }
    return result


def labelled(path: Path) -> dict[str, object]:
    import duckdb

    columns = ", ".join(
        f"avg(({name}_distance <= {radius})::double) as {name}_{radius}"
        for name in ("phash", "dhash")
        for radius in RADII
    )
    query = f"select near_duplicate, relation, count(*) num, {columns} from read_parquet($1) group by all order by all"
    rows = duckdb.execute(query, [str(path)])
    names = [column[0] for column in rows.description]
    return {"rows": [dict(zip(names, row, strict=True)) for row in rows.fetchall()]}


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
    for row in result.get("labelled", {}).get("rows", []):
        truth = f"{row['num']:,}, {'same' if row['near_duplicate'] else 'other'}"
        for name in ("phash", "dhash"):
            shares = " | ".join(f"{row[f'{name}_{radius}']:.3f}" for radius in RADII)
            print(f"| {row['relation']} ({truth}), {name} | {shares} |")


def draw(result: dict[str, object], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, colour in zip(HASHES, ("tab:green", "tab:blue", "tab:orange"), strict=True):
        facts = result[name]
        plain = [recall for change, recall in facts["recall"].items() if change != "mirror"]
        left.plot(RADII, np.mean(plain, axis=0), "o-", color=colour, label=name)
        right.semilogy(RADII, np.maximum(np.array(facts["rate"]) * RELEASE, 1e-9), "o-", color=colour, label=name)
    left.set(xlabel="radius (bits)", ylabel="recall, mean over transforms", ylim=(0, 1))
    right.set(xlabel="radius (bits)", ylabel="unrelated neighbours a photo at 13 M", ylim=(1e-7, 1e6))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labelled", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    result = measure(args.photos, args.num, args.workers)
    if args.labelled:
        result["labelled"] = labelled(args.labelled)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "hash_quality.json").write_text(json.dumps(result, indent=1))
    draw(result, args.out / "hash_quality.png")
    print_tables(result)


if __name__ == "__main__":
    sys.exit(main())
