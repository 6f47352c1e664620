"""What `dalip` reads is compared with what was recorded where it is taken up, and nothing counts twice or by chance."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from evaluation_sets import write_folders
from training_runs import write_values

from manifests.contract.release import Release
from manifests.errors import ConfigError
from training.cli import main
from training.data.decoded import decode_shard, open_decoded, prepare_decoded
from training.data.loader import open_releases
from training.data.settings import DataSettings
from training.data.shards import ShardReader, open_pool
from training.evaluation.set_layouts import open_eval_set
from training.using.pictures import list_pictures

Output = pytest.CaptureFixture[str]


def _swap_heldout_texts(release: Path) -> str:
    """Two captions of the held-out shard change places: sizes, record and samples table stay as they were."""
    pool = open_pool([Release.open(str(release))], "heldout")
    shard, at = Path(pool.files[0].path), pool.offsets
    content = bytearray(shard.read_bytes())
    lengths = at["txt_length"].tolist()
    one, other = next((i, j) for i in range(len(lengths)) for j in range(i) if lengths[i] == lengths[j])
    places = [slice(int(at["txt_offset"][row]), int(at["txt_offset"][row]) + lengths[row]) for row in (one, other)]
    content[places[0]], content[places[1]] = content[places[1]], content[places[0]]
    content[int(at["jpg_offset"][0]) + 700] ^= 1
    shard.write_bytes(content)
    return shard.name


@pytest.mark.parametrize("command", ["eval", "train", "embed", "predict"])
def test_a_heldout_shard_with_other_content_is_one_line(
    command: str, config: dict[str, Any], release_folder: Path, tmp_path: Path, capsys: Output
) -> None:
    copy = Path(shutil.copytree(release_folder, tmp_path / "copy"))
    config |= {"release": str(copy)}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    if command != "train":
        assert main(["train", str(path)]) == 0
    else:
        config["eval"]["every_steps"] = 2
        path.write_text(yaml.safe_dump(config))
    name = _swap_heldout_texts(copy)
    run, out, labels = config["output_dir"], str(tmp_path / "out.parquet"), tmp_path / "labels.txt"
    labels.write_text("red circle\nblue square\n")
    given = {
        "eval": ["eval", run],
        "train": ["train", str(path)],
        "embed": ["embed", str(copy), "--model", run, "--out", out],
        "predict": ["predict", str(release_folder / "nowhere"), "--model", run, "--out", out],
    }[command]
    if command == "predict":
        picture = tmp_path / "a.jpg"
        picture.write_bytes(ShardReader(open_pool([Release.open(str(copy))], "train")).read([0], False)[0][0])
        given = ["predict", str(picture), "--model", run, "--out", out, "--labels", str(labels), "--calibrate",
                 str(copy), "--field", "extra.category"]  # fmt: skip
    capsys.readouterr()
    assert main(given) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{name} has other content than when the release was sealed" in line
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda tar, npy: tar.write_bytes(tar.read_bytes()[:-100] + b"x" * 100),
        lambda tar, npy: npy.write_bytes(npy.read_bytes()[:-8]),
        lambda tar, npy: tar.unlink(),
    ],
    ids=["bytes", "cut", "gone"],
)
def test_a_damaged_decoded_shard_is_decoded_anew(
    damage: Callable[[Path, Path], object], release_folder: Path, tmp_path: Path
) -> None:
    pool = open_pool(open_releases(str(release_folder)), "train")
    for shard in prepare_decoded(pool, tmp_path, 16):
        decode_shard(pool, tmp_path, 16, shard)
    whole = ShardReader(open_decoded(pool, tmp_path)).read(range(len(pool)), True)
    assert prepare_decoded(pool, tmp_path, 16) == []
    damage(tmp_path / "shard-000002.tar", tmp_path / "shard-000002.npy")
    assert prepare_decoded(pool, tmp_path, 16) == [2]
    decode_shard(pool, tmp_path, 16, 2)
    assert ShardReader(open_decoded(pool, tmp_path)).read(range(len(pool)), True) == whole


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -1.0])
def test_a_mixture_of_no_numbers_is_refused(
    share: float, config: dict[str, Any], tmp_path: Path, capsys: Output
) -> None:
    with pytest.raises(ValueError, match="mixture"):
        DataSettings(mixture={"plant": share, "general": 1.0})
    config["data"]["mixture"] = {"plant": share, "general": 1.0}
    path = write_values(tmp_path, config)
    assert main(["train", path]) == 2
    assert "mixture" in capsys.readouterr().err


def test_what_an_editor_leaves_is_no_class(writer: ModuleType, tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "set", writer.drawn_samples(12, 0))
    found = open_eval_set(str(folder), "test")
    picture = Path(found.items[0].path)
    for name in (".ipynb_checkpoints", picture.parent / ".ipynb_checkpoints"):
        (picture.parents[1] / name).mkdir()
        shutil.copy(picture, picture.parents[1] / name / "rose-checkpoint.jpg")
    shutil.copy(picture, picture.parent / "._rose.jpg")
    again = open_eval_set(str(folder), "test")
    assert (again.classes, again.items) == (found.classes, found.items)


def test_pictures_beside_the_class_folders_are_refused(writer: ModuleType, tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "set", writer.drawn_samples(12, 0))
    picture = Path(open_eval_set(str(folder), "test").items[0].path)
    shutil.copy(picture, picture.parents[1] / "preview.jpg")
    with pytest.raises(ConfigError, match=r"1 of 13 pictures lie beside the class folders; first: preview.jpg. Move"):
        open_eval_set(str(folder), "test")


def test_two_class_folders_of_one_name_are_refused(writer: ModuleType, tmp_path: Path) -> None:
    folder = write_folders(tmp_path / "set", writer.drawn_samples(12, 0))
    picture = Path(open_eval_set(str(folder), "test").items[0].path)
    for parent in ("birds", "plants"):
        (picture.parents[1] / parent / "other").mkdir(parents=True)
        shutil.copy(picture, picture.parents[1] / parent / "other" / "a.jpg")
    with pytest.raises(ConfigError, match=r"1 classes have several folders of one name; first: birds/other, plants"):
        open_eval_set(str(folder), "test")


def test_rows_of_two_folders_are_told_apart(release_folder: Path, tmp_path: Path) -> None:
    content = ShardReader(open_pool(open_releases(str(release_folder)), "train")).read([0], False)[0][0]
    for name in ("a/rose.jpg", "a/tulip.jpg", "b/rose.jpg", "lone.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    one, two, lone = (str(tmp_path / name) for name in ("a", "b", "lone.jpg"))
    alone = list_pictures([one])
    assert alone.table["name"].to_pylist() == ["rose.jpg", "tulip.jpg"]
    both = list_pictures([one, two, lone])
    assert both.table["name"].to_pylist() == [f"{one}/rose.jpg", f"{one}/tulip.jpg", f"{two}/rose.jpg", lone]
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/lily.jpg").write_bytes(content)
    assert list_pictures([one, two]).table["name"].to_pylist() == ["rose.jpg", "tulip.jpg", "lily.jpg"]


def test_a_file_of_more_bytes_than_a_picture_has_is_not_read(tmp_path: Path) -> None:
    from training.data.images import CorruptSample

    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate((1 << 30) + 1)
    with pytest.raises(CorruptSample, match="body_too_large: more than 1,073,741,824 bytes"):
        list_pictures([str(tmp_path)]).read(0)
