"""Shards that PlantMix did not build, as files: the samples of open_clip's reader, an index made once, clear lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from environments import environment
from foreign_tars import PictureModel, img2dataset_samples, picture, tree_of_life_samples, write_tar
from sealed import flip_byte
from training_runs import write_values
from webdataset.shardlists import expand_urls

from manifests.errors import ConfigError, IntegrityError, RunError
from training.config import read_train_settings
from training.data import loader, shard_index
from training.data.sampling import BatchPlan
from training.data.settings import DataSettings
from training.data.shard_groups import expand
from training.data.shards import SamplePool, open_pool


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"batch_size": 4, "num_workers": 0, "cache_dir": str(tmp_path / "cache")}


def opened(values: dict[str, Any], split: str = "train") -> tuple[DataSettings, SamplePool]:
    data = DataSettings(**values)
    return data, open_pool(loader.open_sources(None, data, split), split)


def epoch(values: dict[str, Any], first: int = 0) -> tuple[list[str], list[str]]:
    """The texts of an epoch's batches from `first` on, and what was broken."""
    data, pool = opened(values)
    order = loader.build_order(pool, data, None, seed=3)
    batches = range(first, order.epoch_size // data.batch_size)
    made = loader.train_loader(pool, order, BatchPlan(data.batch_size, 1, 0), batches, data, PictureModel, pin=False)
    texts, corrupt = list[str](), list[str]()
    for batch in loader.iterate(made):
        texts += [bytes(row.tolist()).rstrip(b"\0").decode() for row in batch.tokens]
        corrupt += [f"{pool.names([row])[0]}: {reason}" for row, reason in batch.corrupt]
    return texts, corrupt


def test_the_samples_are_those_of_open_clips_reader(tmp_path: Path, settings: dict[str, Any]) -> None:
    from open_clip_train import data as wds_data

    samples = img2dataset_samples(0, 10)
    samples[3][1]["webp"] = samples[3][1].pop("jpg")
    del samples[5][1]["txt"], samples[6][1]["jpg"]
    write_tar(tmp_path / "a/00000.tar", samples)
    write_tar(tmp_path / "a/00001.tar", tree_of_life_samples(20, 24))  # has no txt
    write_tar(tmp_path / "a/00002.tar", [("x/k", {"v2.txt": b"more", "txt": b"two", "PNG": picture(30, "png")})])
    pattern = str(tmp_path / "a/{00000..00002}.tar")
    with ExitStack() as files:  # their opener closes none
        streams = [{"url": url, "stream": files.enter_context(Path(url).open("rb"))} for url in expand([pattern])]
        theirs = [
            (sample["__key__"], sample["txt"].decode(), next(sample[e] for e in ("jpg", "png", "webp") if e in sample))
            for sample in wds_data.group_by_keys_nothrow(wds_data.tar_file_expander(streams))
            if wds_data.filter_no_caption_or_no_image(sample)
        ]
    _, pool = opened(settings | {"shards": pattern})
    read = loader.ShardReader(pool).read(range(len(pool)), with_texts=False)
    keys = pool.table["key"].to_pylist()
    ours = [(key, text.decode(), image) for key, (image, text, _) in zip(keys, read, strict=True)]
    assert len(ours) == 9
    assert ours == theirs
    assert any("1 samples without a picture are left out: 00000.tar/000000006" in note for note in pool.notes)
    assert any("5 samples without a text (txt) are left out: 00000.tar/000000005" in note for note in pool.notes)


_READ_BY_WEBDATASET = """
import json, sys, webdataset
from webdataset.shardlists import expand_urls
places = json.loads(sys.argv[1])
read = [[s["__key__"], s["txt"].decode()] for s in webdataset.WebDataset(places[0], shardshuffle=False) if "txt" in s]
print(json.dumps([[list(expand_urls(place)) for place in places], read]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.2.86", "1.0.2"])
def test_any_webdataset_of_a_user_names_the_same_shards_and_samples(
    version: str, tmp_path: Path, settings: dict[str, Any]
) -> None:
    for number in range(2):
        write_tar(tmp_path / f"a/{number:03d}.tar", img2dataset_samples(9 * number, 9 * number + 9))
    places = [f"{tmp_path}/a/{{000..001}}.tar", "b/{x,y}.tar::c/{0..12}.tar", "s3://b/{08..11}.tar?x=1", "d/{1..}.tar"]
    python = environment(f"webdataset-{version}", [f"webdataset=={version}", "numpy<3"])
    done = subprocess.run(
        [python, "-c", _READ_BY_WEBDATASET, json.dumps(places)], capture_output=True, text=True, check=True
    )
    expanded, samples = json.loads(done.stdout)
    assert expanded == [[*expand_urls(place)] for place in places]
    assert expand(places[:1]) == expanded[0]
    _, pool = opened(settings | {"shards": places[0]})
    texts = [text.decode() for _, text, _ in loader.ShardReader(pool).read(range(len(pool)), with_texts=False)]
    assert [list(sample) for sample in zip(pool.table["key"].to_pylist(), texts, strict=True)] == samples


def test_several_texts_are_drawn_as_of_a_release(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_tar(tmp_path / "t.tar", tree_of_life_samples(0, 24))
    drawn = {"use": "draw", "members": ["sci.txt", "com", "taxon.txt"]}
    texts, _ = epoch(settings | {"shards": str(tmp_path / "t.tar"), "text": drawn})
    assert sorted(int(text.split()[1]) for text in texts) == list(range(24))
    assert {text.split()[0] for text in texts} == {"sci", "com", "taxon"}
    with pytest.raises(ConfigError, match=r"a text \(vernacular\); their members: com.txt, jpg, sci.txt"):
        opened(settings | {"shards": str(tmp_path / "t.tar"), "text": {"members": ["vernacular"]}})
    with pytest.raises(ConfigError, match=r"no sample of data.shards has a member vernacular; they have com, jpg, sci"):
        opened(settings | {"shards": str(tmp_path / "t.tar"), "text": drawn | {"members": ["sci", "vernacular"]}})


def test_a_key_of_the_json_is_a_text_and_broken_samples_are_named(tmp_path: Path, settings: dict[str, Any]) -> None:
    samples = img2dataset_samples(0, 12)
    samples[2][1]["json"] = b"{"
    del samples[2][1]["txt"]
    samples[7][1]["jpg"] = samples[7][1]["jpg"][:300]
    write_tar(tmp_path / "j.tar", samples)
    values = settings | {"shards": str(tmp_path / "j.tar"), "text": {"members": ["json:caption"]}}
    texts, corrupt = epoch(values)
    assert {text.split()[0] for text in texts} == {"caption"}
    assert len(texts) == 12
    assert len(corrupt) == 2
    assert any("j.tar/000000002): its json cannot be read" in line for line in corrupt)
    assert any("j.tar/000000007)" in line for line in corrupt)


def test_groups_are_domains_with_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_tar(tmp_path / "plant/0.tar", img2dataset_samples(0, 20))
    write_tar(tmp_path / "web/0.tar", img2dataset_samples(100, 160))
    groups: list[dict[str, Any]] = [
        {"name": "plant", "shards": str(tmp_path / "plant"), "weight": 3},
        {"name": "web", "shards": [str(tmp_path / "web/*.tar")], "weight": 1},
        {"name": "web", "shards": str(tmp_path / "web/0.tar"), "split": "heldout"},
    ]
    values = settings | {"shards": groups, "epoch_samples": 16, "batches": "one_domain", "mixture": None}
    texts, _ = epoch(values)
    numbers = [int(text.split()[1]) for text in texts]
    assert sum(number < 100 for number in numbers) == 12
    assert all(len({number < 100 for number in numbers[i : i + 4]}) == 1 for i in range(0, 16, 4))
    assert opened(values, "heldout")[1].domains == ["web"]
    del groups[0]["weight"]
    with pytest.raises(ConfigError, match="some groups or releases have a weight and others not"):
        epoch(values)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: no shard here"):
        opened(settings | {"shards": str(tmp_path / "empty")})
    write_tar(tmp_path / "c.tar", [("a", {"mp4": b"x"})])
    with pytest.raises(ConfigError, match=r"'shards': no sample of 1 shards has a picture .* their members: mp4"):
        opened(settings | {"shards": str(tmp_path / "c.tar")})


def test_a_truncated_tar_is_named_and_a_compressed_one_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = write_tar(tmp_path / "00000.tar", img2dataset_samples(0, 8)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    _, pool = opened(settings | {"shards": str(tmp_path / "cut.tar")})
    assert 1 < len(pool) < 8
    assert any("cut.tar: damaged or cut short" in note for note in pool.notes)
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"empty.tar: damaged or cut short"):
        opened(settings | {"shards": str(tmp_path / "empty.tar")})
    (tmp_path / "z.tar").write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(ConfigError, match=r"z.tar: is compressed \(gzip\); unpack it, or give pipe:gunzip -c"):
        opened(settings | {"shards": str(tmp_path / "z.tar")})


def test_an_index_that_is_killed_goes_on_without_reading_again(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "big.tar", img2dataset_samples(0, 60))
    code = f"""
import os, signal
from training.data import shard_index
from manifests.stores.cache import ShardCache
shard_index.SEGMENT_BYTES, shard_index._CHUNK_BYTES = 10_000, 4096
add, count = shard_index._Segments.add, 0
def kill_after(self, *rows, **said):
    global count
    add(self, *rows, **said)
    count += 1
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
shard_index._Segments.add = kill_after
shard_index.index_shards([{str(path)!r}], ShardCache({settings["cache_dir"]!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(shard_index, "SEGMENT_BYTES", 10_000)
    monkeypatch.setattr(shard_index, "_CHUNK_BYTES", 4096)
    started: list[int] = []
    one_pass = shard_index._OnePass

    def watched(opened: Any, size: int, start: int, say: Any) -> Any:
        started.append(start)
        return one_pass(opened, size, start, say)

    monkeypatch.setattr(shard_index, "_OnePass", watched)
    data, pool = opened(settings | {"shards": str(path)})
    assert len(started) == 1
    assert started[0] >= 50_000
    _, whole = opened(settings | {"shards": str(path), "cache_dir": str(tmp_path / "other")})
    assert whole.table.equals(pool.table)
    assert whole.files[0].sha256 == pool.files[0].sha256
    assert whole.fingerprints == pool.fingerprints
    opened(settings | {"shards": str(path)})
    assert len(started) == 2
    loader.check_shards(loader.open_sources(None, data, "train"), "train")


def test_a_large_shard_is_indexed_in_bounded_memory(tmp_path: Path, settings: dict[str, Any]) -> None:
    noise = os.urandom(1 << 20) * 64
    path = write_tar(tmp_path / "l.tar", [("a", {"npy": noise}), *img2dataset_samples(0, 2), ("b", {"npy": noise})])
    tracemalloc.start()
    _, pool = opened(settings | {"shards": str(path)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pool) == 2
    assert peak < 50e6  # of 134 MB


def test_a_shard_that_changes_is_named(
    tmp_path: Path, settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "c.tar", img2dataset_samples(0, 8))
    values = settings | {"shards": str(path)}
    data, pool = opened(values)
    write_tar(path, img2dataset_samples(8, 16))
    os.utime(path, ns=(1, 1))
    with pytest.raises(IntegrityError, match=r"c.tar: was changed while it was in use .* indexed anew"):
        loader.ShardReader(pool).read([0], with_texts=False)
    _, other = opened(values)
    assert "c.tar: changed since it was indexed (now " in capfd.readouterr().err
    assert other.fingerprints != pool.fingerprints
    sources = loader.open_sources(None, data, "train")
    flip_byte(path, 600)
    os.utime(path, ns=(1, 1))
    with pytest.raises(IntegrityError, match=r"c.tar has other content than when it was indexed"):
        loader.check_shards(sources, "train")


def test_a_shard_of_the_same_size_and_time_is_indexed_anew_once(
    tmp_path: Path, settings: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_tar(tmp_path / "c.tar", img2dataset_samples(0, 8))
    before = path.stat()
    values = settings | {"shards": str(path)}
    pool = opened(values)[1]
    flip_byte(path, 600)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    _, other = opened(values)
    assert "c.tar: changed since it was indexed (now " in capfd.readouterr().err
    assert other.fingerprints != pool.fingerprints
    loader.check_shards(loader.open_sources(None, DataSettings(**values), "train"), "train")
    assert "indexed" not in capfd.readouterr().err


def test_a_content_that_no_stamp_shows_is_indexed_anew_by_the_next_run(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a disk that lost a bit."""
    monkeypatch.setattr("manifests.stores.stamps.of_disk", lambda info: f"{info.st_size}")
    path = write_tar(tmp_path / "c.tar", img2dataset_samples(0, 8))
    values = settings | {"shards": str(path)}
    opened(values)
    flip_byte(path, 600)
    sources = loader.open_sources(None, DataSettings(**values), "train")
    with pytest.raises(IntegrityError, match=r"c.tar has other content than when it was indexed"):
        loader.check_shards(sources, "train")
    assert "indexed" not in capfd.readouterr().err
    loader.check_shards(loader.open_sources(None, DataSettings(**values), "train"), "train")
    assert "c.tar: changed since it was indexed (now " in capfd.readouterr().err


def test_other_rights_of_a_shard_in_use_end_no_training(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = write_tar(tmp_path / "c.tar", img2dataset_samples(0, 8))
    _, pool = opened(settings | {"shards": str(path)})
    path.chmod(0o400)
    (tmp_path / "backup.tar").hardlink_to(path)
    assert loader.ShardReader(pool).read([0], with_texts=False)


def test_a_moved_shard_keeps_its_fingerprint(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = write_tar(tmp_path / "c.tar", img2dataset_samples(0, 8))
    _, pool = opened(settings | {"shards": str(path)})
    (tmp_path / "d").mkdir()
    moved = path.rename(tmp_path / "d/renamed.tar")
    assert opened(settings | {"shards": str(moved)})[1].fingerprints == pool.fingerprints


def test_any_batch_of_an_epoch_can_be_the_first(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_tar(tmp_path / "s/0.tar", img2dataset_samples(0, 13))
    write_tar(tmp_path / "s/1.tar", img2dataset_samples(13, 40))
    values = settings | {"shards": str(tmp_path / "s")}
    texts, _ = epoch(values)
    assert len(set(texts)) == 40
    assert epoch(values, first=6)[0] == texts[24:]
    assert epoch(values | {"num_workers": 2})[0] == texts


def test_a_pipe_is_run_for_ones_own_config_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    write_tar(tmp_path / "p.tar", img2dataset_samples(0, 12))
    command = f"pipe:TOKEN=hunter2 cat {tmp_path}/p.tar"
    values = settings | {"shards": command}
    texts, _ = epoch(values)
    assert len(set(texts)) == 12
    _, pool = opened(values)
    assert pool.files[0].path == "pipe: *** p.tar"
    (tmp_path / "p.tar").unlink()  # the output is kept in the cache
    assert epoch(values)[0] == texts
    with pytest.raises(RunError, match=r"pipe:cat \*\*\* q.tar: the command ended with status 1"):
        opened(settings | {"shards": f"pipe:cat {tmp_path}/q.tar"})
    stored = {"release": None, "output_dir": "run", "schedule": {"steps": 1}, "data": values}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="a pipe: command is run only from your own config"):
        read_train_settings(str(tmp_path))
    stored["data"] = values | {"shards": "pipe:cat *** p.tar"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(
        ConfigError, match=r"pipe:cat \*\*\* p.tar: a run's folder keeps no secrets; give your own config"
    ):
        loader.open_sources(None, read_train_settings(str(tmp_path)).data, "train")


def test_places_of_a_config_begin_at_its_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/0.tar", img2dataset_samples(0, 2))
    write_tar(tmp_path / "data/1.tar", img2dataset_samples(2, 4))
    shards = ["data/{0..1}.tar", f"pipe:cat {tmp_path}/data/0.tar"]
    values = {"output_dir": "run", "schedule": {"steps": 1}, "data": {"shards": shards}}
    write_values(tmp_path, values)
    (group,) = read_train_settings(str(tmp_path / "run.yaml")).data.shards
    assert expand(group.shards) == [str(tmp_path / "data/0.tar"), str(tmp_path / "data/1.tar"), shards[1]]
    write_values(tmp_path, values | {"data": {}})
    with pytest.raises(ConfigError, match="nothing to train on: name a release, or shards of others"):
        read_train_settings(str(tmp_path / "run.yaml"))


def test_shards_are_always_indexed_and_a_config_that_says_otherwise_is_told(tmp_path: Path) -> None:
    write_values(tmp_path, {"data": {"shards": "0.tar", "index": False}})
    with pytest.raises(ConfigError, match=r"unknown key 'data.index'"):
        read_train_settings(str(tmp_path / "run.yaml"))
    assert DataSettings.of_record({"index": False}) == DataSettings(), "the run of an earlier version is still read"
