"""Every recipe under configs/recipes runs as its page says, over a small web on the loopback that the test makes.

The pages' blocks run as they stand. Of the configs only this is changed: hosts on this machine may be asked, without
politeness, parts run in one process, and trainings of hundreds of steps have three, prepared in the same process. What
they publish goes to a hub on the loopback.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from building import ROOT
from command_server import CommandServer, serving_commands
from darwin_core import gbif_files, write_zip
from foreign_tars import write_tar
from gbif_server import ACCOUNT, GbifServer
from misbehaving import object_store
from misbehaving.hub import FakeHub, Repository, StoredFile, fake_hub
from misbehaving.owners import mining, with_xmp
from PIL import Image
from ray_nodes import ENVIRONMENT
from safetensors import safe_open
from shell_blocks import blocks_of, copy_configs, environment_of, run_block, write_yaml
from slurm_nodes import Slurm, put_programs_into, require_slurm
from tiny_clip import tiny

from manifests.contract.release import Release
from pipeline.demo.server import serving
from training.model.build import build_model
from training.model.exports import export_hugging_face
from training.model.presets import ModelSettings

RECIPES = sorted(path.name for path in (ROOT / "configs/recipes").iterdir())
PHOTOS = sorted((ROOT / "tests/photos").glob("*.jpg"))
TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def words_of(photo: Path) -> str:
    return f"A photo of {photo.stem.replace('-', ' ')}"


def pictures() -> Iterator[tuple[Path, int, bytes]]:
    """60 pictures that are not alike: each photo in four turns."""
    for number, turn in enumerate(TURNS):
        for photo in PHOTOS:
            image = Image.open(photo)
            stream = io.BytesIO()
            (image if turn is None else image.transpose(turn)).save(stream, "JPEG", quality=90)
            yield photo, number, stream.getvalue()


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def serve_all(data: Path, address: str) -> list[tuple[str, str]]:
    """All pictures on the web: address and caption of each."""
    rows = []
    for photo, turn, body in pictures():
        put(data / f"web/{turn}/{photo.name}", body)
        rows.append((f"{address}/web/{turn}/{photo.name}", f"{words_of(photo)}, turn {turn}"))
    return rows


def write_list(path: Path, head: list[str], rows: list[list[str]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([head, *rows])


def own_pictures(data: Path, address: str) -> None:
    rows = serve_all(data, address)
    lines = [[str(number), url, caption] for number, (url, caption) in enumerate(rows[:30])]
    write_list(data / "own/fruit.csv", ["Nr", "Bildadresse", "Beschreibung"], lines, ";")
    for photo, turn, body in list(pictures())[30:]:
        put(data / f"own/pictures/{photo.stem}/{turn}.jpg", body)
    put(data / "own/test/a.jpg", next(pictures())[2])


def faces(data: Path, address: str) -> None:
    """Photos of fruit, and a portrait."""
    for photo in PHOTOS:
        put(data / f"faces/pictures/fruit/{photo.name}", photo.read_bytes())
    portrait = Path(matplotlib.get_data_path(), "sample_data/grace_hopper.jpg")
    put(data / "faces/pictures/people/portrait.jpg", portrait.read_bytes())


def gbif(data: Path, address: str, folder: str = "gbif", licences: tuple[str, ...] = ("by/4.0",)) -> None:
    families = ("Rosaceae", "Fagaceae", "Pinaceae")
    occurrences, media = [], []
    for number, (url, _) in enumerate(serve_all(data, address)):
        family = families[number % 3]
        occurrences.append(
            {
                "gbifID": str(number),
                "kingdom": "Animalia" if number == 59 else "Plantae",
                "family": family,
                "genus": family[:-4] + "a",
                "scientificName": f"{family[:-4]}a alba L.",
                "species": f"{family[:-4]}a alba",
                "basisOfRecord": "HUMAN_OBSERVATION",
            }
        )
        licence = f"http://creativecommons.org/licenses/{licences[number % len(licences)]}/legalcode"
        media.append({"gbifID": str(number), "type": "StillImage", "identifier": url, "license": licence})
    (data / folder).mkdir(parents=True)
    write_zip(data / folder / "archive.zip", gbif_files(occurrences, media))


def genus(data: Path, address: str) -> None:
    """Two turns of each photo are on the web, as oaks; one is for the test, one is of other genera."""
    occurrences, media, species = [], [], ("Quercus robur", "Quercus petraea", "Quercus rubra")
    for number, (photo, turn, body) in enumerate(pictures()):
        name = species[number % 3]
        if turn > 1:
            put(data / f"genus/{f'test/{name}' if turn == 2 else f'others/Rosa {number % 2}'}/{number}.jpg", body)
            continue
        put(data / f"web/{turn}/{photo.name}", body)
        taxon = {"kingdom": "Plantae", "family": "Fagaceae", "genus": "Quercus", "species": name}
        record = {"gbifID": str(number), "scientificName": f"{name} L.", "basisOfRecord": "HUMAN_OBSERVATION"}
        occurrences.append(record | taxon)
        url, licence = f"{address}/web/{turn}/{photo.name}", "http://creativecommons.org/licenses/by/4.0/legalcode"
        media.append({"gbifID": str(number), "type": "StillImage", "identifier": url, "license": licence})
    write_zip(data / "genus/archive.zip", gbif_files(occurrences, media))


def stand_in(folder: Path) -> Repository:
    """A repository of the layout of BioCLIP 2's, with a small model."""
    made = folder / "stand-in"
    export_hugging_face(build_model(ModelSettings(preset="clip", architecture=tiny(folder, "stand-in"))), made)
    files = {path.name: path.read_bytes() for path in made.iterdir()}
    return Repository(
        False, {name: StoredFile(sha256(body).hexdigest(), len(body), body, True) for name, body in files.items()}
    )


def lab(data: Path, address: str) -> None:
    """A host that refuses a quarter of the pictures, an owner who refuses one, a licence that forbids changes."""
    gbif(data, address, "lab", ("by/4.0", "by/4.0", "by-nc/4.0", "by-nd/4.0"))
    put(data / "web/0" / PHOTOS[0].name, with_xmp(mining("DMI-PROHIBITED"), image=Image.open(PHOTOS[0])))
    put(data / "robots.txt", b"User-agent: *\nDisallow: /web/3/\n")


def plus(data: Path, address: str) -> None:
    rows = serve_all(data, address)
    write_list(data / "plus/plants.csv", ["url", "caption", "licence"], [[*row, "CC0-1.0"] for row in rows[:20]])
    beside, samples = [], []
    for number, (photo, turn, body) in enumerate(list(pictures())[18:]):
        key, url = f"00000{number:04d}", f"{address}/old/{number}.jpg"
        row = {"key": key, "url": url, "caption": f"{words_of(photo)}, old {turn}", "status": "success"}
        beside.append(row)
        samples.append((key, {"jpg": body, "txt": row["caption"].encode(), "json": json.dumps(row).encode()}))
    write_tar(data / "plus/old/00000.tar", samples)
    pq.write_table(pa.Table.from_pylist(beside), data / "plus/old/00000.parquet")


def plan(data: Path, address: str) -> None:
    shares = np.repeat(np.linspace(0.1, 0.9, 9), 2)
    noise = np.random.default_rng(0).normal(0, 0.004, (2, len(shares)))
    plant, general = 2 + 0.8 * np.exp(-3 * shares) + noise[0], 2.5 + 0.9 * np.exp(-3 * (1 - shares)) + noise[1]
    rows = [[f"{value:.4f}" for value in row] for row in zip(shares, 1 - shares, plant, general, strict=True)]
    write_list(data / "plan/runs.csv", ["mix_plant", "mix_general", "loss_plant", "loss_general"], rows)
    for photo, turn, body in pictures():
        put(data / f"plan/{'plants' if turn else 'general'}/{photo.stem}/{turn}.jpg", body)


def weeks(data: Path, address: str) -> None:
    rows = [[*row, "CC-BY-4.0"] for row in serve_all(data, address)]
    rows.append([f"{address}/gone.jpg", "A photo that is gone", "CC-BY-4.0"])
    write_list(data / "weeks/list.csv", ["url", "caption", "licence"], rows)


def cluster(data: Path, address: str) -> None:
    rows = [[*row, "CC-BY-4.0"] for row in serve_all(data, address)]
    write_list(data / "cluster/list.csv", ["url", "caption", "licence"], rows[:30])


def jobs(data: Path, address: str) -> None:
    rows = [[*row, "CC-BY-4.0"] for row in serve_all(data, address)]
    write_list(data / "slurm/plants.csv", ["url", "caption", "licence"], rows[:30])
    write_list(data / "slurm/general.csv", ["url", "caption", "licence"], rows[30:])


def go_on(data: Path, address: str) -> None:
    """Eight kinds are plants, the others general. Two turns are trained on, one is for validation, one for the test."""
    captions = []
    for photo, turn, body in pictures():
        is_plant, name = photo in PHOTOS[:8], photo.stem.replace("-", " ")
        if turn > 1:
            where = f"{('validation', 'test')[turn - 2]}/{'plants' if is_plant else 'general'}/{name}"
        else:
            where = f"plants/{name}" if is_plant else "general"
        put(data / f"continue/{where}/{turn}-{photo.name}", body)
        if where == "general":
            captions.append([f"{turn}-{photo.name}", words_of(photo)])
    write_list(data / "continue/general/captions.csv", ["file", "caption"], captions)


def distilled(data: Path, address: str) -> None:
    for photo, turn, body in pictures():
        put(data / f"distil/pictures/{photo.stem}/{turn}.jpg", body)
    student = data.parent / "configs/recipes/distil-a-teacher/student.json"
    vision = json.loads(student.read_text())["vision_cfg"]
    small = json.loads((data.parent / "configs/models/vit-tiny-demo.json").read_text())
    student.write_text(json.dumps(small | {"vision_cfg": vision}))  # the teacher is small here


def large(data: Path, address: str) -> None:
    """Two turns of each photo are trained on, one is for the test."""
    for photo, turn, body in pictures():
        if turn < 3:
            put(data / f"vit-l/{'test' if turn == 2 else 'plants'}/{photo.stem.replace('-', ' ')}/{turn}.jpg", body)


TAXA = (
    "taxonID\tparentNameUsageID\tacceptedNameUsageID\tscientificName\tscientificNameAuthorship\tcanonicalName\ttaxonRank\t"
    "taxonomicStatus\tkingdom\tphylum\tclass\torder\tfamily\tgenus\n"
    "1\t\t\tQuercus robur L.\tL.\tQuercus robur\tspecies\taccepted\tPlantae\t\t\tFagales\tFagaceae\tQuercus\n"
    "2\t\t\tCanis lupus L.\tL.\tCanis lupus\tspecies\taccepted\tAnimalia\t\t\t\tCanidae\tCanis\n"
)
CJK = "\u8fd9\u662f\u4e00\u5f20\u82b1\u56ed\u91cc\u7684\u6811\u7684\u7167\u7247" * 3


def published(data: Path, address: str) -> None:
    """Tars of jpg + txt as they are published: names, web texts, texts of another script, shops, and a leak."""
    with zipfile.ZipFile(data.parent / "backbone.zip", "w") as archive:
        archive.writestr("backbone/Taxon.tsv", TAXA)
    put(data / "published/backbone.zip", (data.parent / "backbone.zip").read_bytes())
    put(data / "published/test/leaked.jpg", next(pictures())[2])
    samples = []
    for number, (photo, turn, body) in enumerate(pictures()):
        texts = {1: CJK, 2: "click here to buy this picture now", 3: f"Canis lupus beside {words_of(photo)} {number}"}
        plant = f"Quercus robur, {photo.stem.replace('-', ' ')}, seen in turn {turn}"
        text = texts.get(number % 10, plant if number % 3 else f"{words_of(photo)} in turn {turn}")
        samples.append((str(number), {"jpg": body, "txt": text.encode()}))
    for number in range(2):
        write_tar(data / f"tars/{number}.tar", samples[30 * number : 30 * number + 30])


def check_published(folder: Path, hub: FakeHub, printed: str) -> None:
    """Plants have their taxon, the wolf is none; other scripts, shops and the leaked picture are gone."""
    rows = Release.open(str(folder / "data/published/build")).samples().to_pylist()
    assert {row["domain"] for row in rows} == {"plant", "general"}
    assert all((row["domain"] == "plant") == row["caption"].startswith("Quercus robur") for row in rows)
    assert any(row["caption"].startswith("Canis lupus") for row in rows)
    assert not [row for row in rows if row["caption"] == CJK or row["caption"].startswith("click here")]
    kept = Counter({row["sample_id"]: row["domain"] for row in rows}.values())
    became = {(domain, reason): int(num) for domain, reason, num in
              re.findall(r"^plantmix +(\w+) +(\w+) .* (\d+) +\d+$", printed, re.MULTILINE)}  # fmt: skip
    assert {domain: became[domain, "kept"] for domain in kept} == kept
    assert became["general", "languages"] == became["general", "looks_like_spam"] == 6
    assert became["general", "eval_leak"] + became.get(("plant", "eval_leak"), 0) >= 1
    assert sum(became.values()) == 60, "all that came in"
    assert "60 pictures of" in printed


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """An object store with pictures in s3://bucket/plants; gives the environment in which clients find it."""
    with object_store.serving() as store:
        fs = fsspec.filesystem("s3", **store.options)
        for photo, turn, body in list(pictures())[30:]:
            fs.pipe_file(f"{object_store.BUCKET}/plants/{turn}-{photo.stem}.jpg", body)
            words = f"{words_of(photo)}, turned {turn} times"
            fs.pipe_file(f"{object_store.BUCKET}/plants/{turn}-{photo.stem}.txt", words.encode())
        yield store.environment()


@contextmanager
def nodes() -> Iterator[dict[str, str]]:
    """A Slurm of two nodes; gives the environment in which its commands find it."""
    require_slurm()
    with Slurm() as slurm:
        yield ENVIRONMENT | {"GLOO_SOCKET_IFNAME": "lo"} | slurm.environment


SERVICES = {"cluster": bucket, "slurm": nodes}
DATA: dict[str, Callable[[Path, str], None]] = {
    "your-own-pictures": own_pictures,
    "gbif-to-model": gbif,
    "plants-plus-what-you-have": plus,
    "planning-a-ratio": plan,
    "two-week-download": weeks,
    "archive-to-hub": lab,
    "cluster": cluster,
    "slurm": jobs,
    "published-plantmix-13m": published,
    "continue-a-model": go_on,
    "fine-tune-bioclip-2": genus,
    "distil-a-teacher": distilled,
    "vit-l-24gb": large,
    "faces": faces,
}
ON_THE_HUB = {
    "fine-tune-bioclip-2": "imageomics/bioclip-2",
    "vit-l-24gb": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
}
ASKED_OF_GBIF = {"archive-to-hub": "lab", "fine-tune-bioclip-2": "genus"}


def check_hub(folder: Path, hub: FakeHub, printed: str) -> None:
    """Consent and licences are honoured, and both repositories are private, whole and say what they are."""
    release = Release.open(str(folder / "data/lab/build"))
    rows = release.samples().to_pylist()
    assert rows
    assert not any("/web/3/" in row["url"] or row["url"].endswith(f"/web/0/{PHOTOS[0].name}") for row in rows)
    assert re.search(r"fetch .* 1[0-9] robots_disallowed", printed)
    assert re.search(r"fetch .* 1 opted_out", printed)
    assert {row["licence_id"] for row in rows} == {"CC-BY-4.0", "CC-BY-NC-4.0"}
    dataset, model = (hub.repositories[name] for name in ("datasets/my-lab/plants", "models/my-lab/plants-dalip"))
    assert dataset.private
    assert model.private
    assert set(dataset.files) == {*release.record["files"], "release.json", "croissant.json", "CITATION.cff"}
    citation = dataset.files["CITATION.cff"].content or b""
    assert b"My lab" in citation
    assert b"10.15468/dl.abc123" in citation, "the DOI of the download"
    card = (model.files["README.md"].content or b"").decode()
    assert release.name in card
    assert "zero-shot top1" in card
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= model.files.keys()
    with (folder / "heldout.csv").open(newline="") as stream:
        answers = list(csv.DictReader(stream))
    assert len(answers) == release.record["splits"]["heldout"]["num_samples"]
    assert {row["answer_rank"] for row in answers} <= {"species", "genus", "family", "order", "class", "kingdom", ""}
    assert "calibrat" in printed
    assert f"vectors.parquet, {len({row['sample_id'] for row in rows})} rows, 0 of them with an error" in printed
    found = re.findall(r"^ +\d+  -?\d\.\d{4}  ([0-9a-f]{32})$", printed, re.MULTILINE)
    assert len(found) == 3
    assert set(found) <= {row["sample_id"] for row in rows}


def check_table(folder: Path, hub: FakeHub, printed: str) -> None:
    """The start is said, alpha is chosen by the rule, and the last table holds every model's figures of both groups."""
    assert len(re.findall(r"general-model: (\d+) of \1 tensors; new: 0; of the weights, not used: 0", printed)) == 2
    table = printed.splitlines()[-7:-1]
    assert table[0].split() == ["plant", "general"]
    for line in table[1:]:
        name = line.split()[0]
        result = json.loads((folder / f"data/continue/{name}/eval/test.json").read_text())
        assert all(f"{result['groups'][group]['f']['value']:.1%} [" in line for group in ("plant", "general"))
    assert len(table) == 6
    assert (folder / "data/continue/compared.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("plants-only", "plants-and-replay"):
        blend = json.loads((folder / f"data/continue/{name}-blended/blend.json").read_text())
        assert len(blend["rows"]) == 3
        assert blend["alpha"] == max(blend["rows"], key=lambda row: (row["score"], -row["alpha"]))["alpha"]


def check_jobs(folder: Path, hub: FakeHub, printed: str) -> None:
    """Both nodes built, each task did its run, and two processes trained."""
    said = "".join(path.read_text() for path in sorted(folder.glob("slurm-*.out")))
    assert "ray: joining 127.0.0.1:2" in said
    assert "3 done before and kept, 0 failed" in said
    assert "parameters on 2 x cpu" in said
    with (folder / "data/slurm/proxies/runs.csv").open(newline="") as stream:
        assert [row["run"] for row in csv.DictReader(stream)] == ["proxy-01", "proxy-02", "proxy-03"]


def check_tuned(folder: Path, hub: FakeHub, printed: str) -> None:
    """Training began with all weights of the hub, and the three models are compared on the same pictures."""
    assert re.search(r"imageomics/bioclip-2: (\d+) of \1 tensors; new: 0", printed)
    assert re.search(r"Quercus robur\W+\d+", printed)
    figures = [json.loads((folder / f"data/genus/{name}.json").read_text()) for name in ("before", "after", "blended")]
    assert all({"genus", "others"} <= figure["groups"].keys() for figure in figures)
    blend = json.loads((folder / "data/genus/blended/blend.json").read_text())
    assert len(blend["rows"]) == 3
    assert all(row["expert"]["value"] > 0 < row["general"]["value"] for row in blend["rows"])
    assert (folder / "data/genus/compared.png").read_bytes()[:4] == b"\x89PNG"


def check_student(folder: Path, hub: FakeHub, printed: str) -> None:
    """Every sample had a vector, the text tower is the teacher's, and both were asked for the same names."""
    num = Release.open(str(folder / "data/distil/build")).record["splits"]["train"]["num_samples"]
    assert f"loss.teacher: {num} of {num} samples of split 'train' have a vector" in printed
    assert re.search(r"weights from \S+teacher\S*: \d+ of \d+ tensors; new: \d+ \(clip.visual \d+\)", printed)
    models = [json.loads((folder / f"data/distil/{name}.json").read_text()) for name in ("teacher", "student")]
    assert models[0]["zero_shot"][0]["num_classes"] == models[1]["zero_shot"][0]["num_classes"] > 1
    assert (folder / "data/distil/compared.png").read_bytes()[:4] == b"\x89PNG"


def check_adapted(folder: Path, hub: FakeHub, printed: str) -> None:
    """All weights are the hub's and none of them trains; what leaves the run has no adapter beside it."""
    assert re.search(r"b82K: (\d+) of \d+ tensors; new: \d+ \(image_branch \d+, text_branch \d+\)", printed)
    trained = {role: int(num.replace(",", "")) for role, num in re.findall(r"(\w+_tower) ([\d,]+)", printed)}
    assert trained.keys() == {"image_tower", "text_tower"}
    assert sum(trained.values()) < 50_000, "adapters alone, of towers of 1.7 M"
    assert "an estimate, not measured on a card" in printed
    figures = [json.loads((folder / f"data/vit-l/{name}.json").read_text()) for name in ("before", "after")]
    assert all("plant" in figure["groups"] for figure in figures)
    with safe_open(folder / "data/vit-l/model/open_clip_model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "parametrizations" in name]  # noqa: SIM118


def check_faces(folder: Path, hub: FakeHub, printed: str) -> None:
    """The portrait is blurred in the shards, and of 15 fruits hardly one."""
    assert re.search(r"people/portrait.jpg +\S*[0-9.]+", printed), printed[-2000:]
    rows = Release.open(str(folder / "data/faces/build")).samples().to_pylist()
    blurred = [row["text"] for row in rows if "faces:blurred" in (row["marks"] or "")]
    assert "people" in blurred
    assert len(blurred) <= 2


CHECKS: dict[str, Callable[[Path, FakeHub, str], None]] = {
    "published-plantmix-13m": check_published,
    "archive-to-hub": check_hub,
    "continue-a-model": check_table,
    "fine-tune-bioclip-2": check_tuned,
    "distil-a-teacher": check_student,
    "vit-l-24gb": check_adapted,
    "slurm": check_jobs,
    "faces": check_faces,
}


def shorten(recipe: Path) -> None:
    """Three small steps instead of hundreds of large ones, and no process that prepares their pictures ahead."""
    for path in recipe.glob("*.yaml"):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "schedule" in values and values["data"]["batch_size"] > 8:
            values["schedule"] = {"steps": 3}
            values["data"] |= {"batch_size": 8, "num_workers": 0}
            write_yaml(path, values)


def allow_loopback(path: Path, robots_txt: bool, gbif_api: str | None) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if gbif_api:
        values["sources"][0]["gbif"]["api"] = gbif_api
    if path.parent.name != "slurm":  # whose job starts the Ray that the build is given
        values["run"] = values.get("run", {}) | {"executor": "inline", "ray": {}}
    limits = {"requests_per_second": None, "connections": 8}
    network = values.setdefault("fetch", {}).setdefault("network", {})
    network |= {"allow_private_addresses": True, "robots_txt": robots_txt, "limits": limits}
    write_yaml(path, values)


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub() as served:
        yield served


@pytest.fixture(scope="module")
def commands(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """One server for all recipes: the hub is the same, and what else a recipe needs its commands are told."""
    folder = tmp_path_factory.mktemp("commands")
    with serving_commands(environment_of(folder, hub.environment)) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_its_page_says(name: str, hub: FakeHub, commands: CommandServer, tmp_path: Path) -> None:
    copy_configs(tmp_path)
    if name in ("slurm", "faces"):  # whose commands need an environment of their own
        put_programs_into(tmp_path)
    else:
        commands.put_into(tmp_path)
    folder = tmp_path / f"configs/recipes/{name}"
    services_of: Callable[[], Any] = SERVICES.get(name, lambda: nullcontext({}))
    with serving(tmp_path / "data") as server, services_of() as store:
        DATA[name](tmp_path / "data", f"http://127.0.0.1:{server.port}")
        for path in sorted((tmp_path / "data/tars").glob("*.tar")):
            content = path.read_bytes()
            repository = hub.repositories.setdefault("datasets/HEART77/plantmix", Repository(False))
            repository.files[path.name] = StoredFile(sha256(content).hexdigest(), len(content), content, True)
        robots_txt = (tmp_path / "data/robots.txt").is_file()
        if name in ON_THE_HUB:
            hub.repositories[f"models/{ON_THE_HUB[name]}"] = stand_in(tmp_path)
        archive = tmp_path / f"data/{ASKED_OF_GBIF.get(name)}/archive.zip"
        with GbifServer(archive.read_bytes()) if name in ASKED_OF_GBIF else nullcontext() as of_gbif:
            allow_loopback(folder / "build.yaml", robots_txt, of_gbif.api if of_gbif else None)
            shorten(folder)
            printed, services = "", hub.environment | store | ACCOUNT
            for block in blocks_of(f"configs/recipes/{name}/README.md"):
                more = dict(services)
                if "$URL" in block.commands:
                    of_weeks = Release.open(str(tmp_path / "data/weeks/build")).samples("train", ["url"])
                    more["URL"] = of_weeks["url"][0].as_py()
                fewer = replace(block, commands=block.commands.replace("--alpha 0:1:0.1", "--alpha 0:1:0.5"))
                done = run_block(fewer, tmp_path, more)
                assert done.returncode == 0, done.stdout[-3000:]
                printed += done.stdout
        if name in CHECKS:
            CHECKS[name](tmp_path, hub, printed)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short_and_wholly_tested(name: str) -> None:
    page = f"configs/recipes/{name}/README.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = blocks_of(page)
    assert text.count("```") == 2 * len(blocks) > 0
    assert not any(block.reason for block in blocks)
    assert len(text.splitlines()) < 75
