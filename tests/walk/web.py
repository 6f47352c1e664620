"""Small real pictures, and a loopback server that gives each address one content for ever; some fail until healed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from misbehaving.answers import encode, send
from misbehaving.owners import mining, with_xmp
from misbehaving.server import MisbehavingServer
from PIL import Image, ImageOps

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
NUM_MOTIFS = len(PHOTOS) + 11
KIN = ("jpg", "near", "png", "bmp", "ppm", "iptc", "mirrored")  # the whole motif: other bytes, size or direction
OTHER_FORMS = ("grey", "small", "wide", "half")
HEADERS = {
    "noai": ("X-Robots-Tag", "noai"),
    "tdm": ("TDM-Reservation", "1"),
    "usage": ("Content-Usage", "train-ai=n"),
}


@cache
def motif(number: int) -> Image.Image:
    """One of the photos, or behind them a pattern of blocks."""
    if number < len(PHOTOS):
        with Image.open(PHOTOS[number]) as image:
            return image.convert("RGB")
    blocks = np.random.default_rng(number).integers(0, 256, (7, 7, 3), np.uint8)
    return Image.fromarray(blocks).resize((200, 200), Image.Resampling.BICUBIC)


@cache
def picture(number: int, form: str) -> bytes:
    """The bytes of a motif in a form; all BMP have one size, and so have all PPM."""
    image, form = motif(number), form.removeprefix("late")
    if form == "mirrored":
        return encode(ImageOps.mirror(image).resize((90, 90)), quality=90)
    if form in ("bmp", "ppm"):
        return encode(image.resize((48, 48)), form.upper())
    if form == "near":
        return encode(image.resize((84, 84)), quality=70)
    if form in ("png", "long"):
        return encode(image.resize((72, 72)), "PNG")
    if form == "grey":
        return encode(image.convert("L").resize((90, 90)), quality=90)
    if form == "small":
        return encode(image.resize((44, 44)), quality=90)
    if form == "wide":
        return encode(image.crop((0, 60, 200, 110)), quality=90)
    if form == "iptc":
        return with_xmp(mining("DMI-PROHIBITED-AIMLTRAINING"), image=image.resize((100, 100)))
    if form == "half":
        return picture(number, "jpg")[:900]
    return encode(image.resize((96, 96)), quality=90)


def semantic_settings(folder: Path) -> list[Any]:
    """Values of dedup.semantic, off first: a tiny model of random weights, written into the folder.

    Pictures are embedded one by one, so that an embedding depends on nothing but its picture.
    """
    import open_clip  # takes seconds
    import torch

    shape = {"layers": 1, "width": 32}
    vision, text = {"image_size": 32, "head_width": 16, "patch_size": 8}, {"context_length": 8, "heads": 1}
    model, weights = folder / "vit-walk.json", folder / "vit-walk.pt"
    model.write_text(json.dumps({"embed_dim": 16, "vision_cfg": shape | vision, "text_cfg": shape | text}))
    torch.manual_seed(0)
    open_clip.add_model_config(model)
    torch.save(open_clip.create_model(model.stem).state_dict(), weights)
    own = {"model": str(model), "pretrained": str(weights), "batch_size": 1}
    return [None, own | {"threshold": 0.995}, own | {"threshold": 0.99}]


class Web:
    """Addresses /p/MOTIF-FORM and /private/MOTIF-FORM, which robots.txt forbids.

    `late` fails until it is healed, and so does `lateFORM`, which then answers as FORM; each healing heals a third of
    them. `never` fails for ever, `gone` is not there. While `knows` is set, a clean build asks: it gets what the work
    folder was told, and nothing is noted.
    """

    def __init__(self) -> None:
        self.num_healed = 0  # of the three thirds
        self.knows: frozenset[str] | None = None
        self.asked: list[tuple[str, bool]] = []
        self.server = MisbehavingServer(extra={"p": self._answer, "private": self._answer})

    def url(self, number: int, form: str) -> str:
        """The address of a picture."""
        place = "private" if form.endswith("private") else "p"
        return f"http://127.0.0.1:{self.server.port}/{place}/{number}-{form}"

    def _answer(self, sock: Any, request: Any) -> None:
        number, _, form = request.path.rpartition("/")[2].partition("-")
        healthy = int(number) % 3 < self.num_healed if self.knows is None else request.path in self.knows
        fails = form == "never" or (form.startswith("late") and not healthy)
        form = form.removeprefix("late")
        if self.knows is None:
            self.asked.append((request.path, not fails))
        if fails:
            send(sock, "500 Internal Server Error")
        elif form == "gone":
            send(sock, "404 Not Found")
        else:
            headers = [("Content-Type", "image/jpeg"), *([HEADERS[form]] if form in HEADERS else [])]
            send(sock, headers=headers, body=picture(int(number), form))
