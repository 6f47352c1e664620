"""Shards read front to back, without an index: dealt to processes, resumed at a shard's border, faults told."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from foreign_tars import PictureModel, img2dataset_samples, picture, tree_of_life_samples, write_tar
from training_runs import assert_same_run, run_once, stop_at, tiny_values

from manifests.errors import ConfigError, RunError
from training.data import loader, streams
from training.data.sampling import BatchPlan
from training.data.settings import DataSettings
from training.data.shards import NO_TEXT, open_pool
from training.evaluation.evaluate import evaluate_model
from training.evaluation.trained_model import open_trained_model
from training.record.log import read_log

WHOLE = 20  # samples of a shard


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Six shards of plants, six of the web."""
    for number in range(6):
        start = WHOLE * number
        write_tar(tmp_path / f"plant/{number}.tar", tree_of_life_samples(start, start + WHOLE))
        write_tar(tmp_path / f"web/{number}.tar", img2dataset_samples(200 + start, 200 + start + WHOLE))
    return tmp_path


@pytest.fixture
def config(tars: Path) -> dict[str, Any]:
    groups = [
        {"name": "plant", "shards": str(tars / "plant"), "weight": 3},
        {"name": "web", "shards": f"pipe:cat {tars}/web/{{0..5}}.tar # --token hunter2", "weight": 1},
    ]
    data = {"shards": groups, "index": False, "epoch_samples": 240, "shuffle_window": 30,
            "text": {"use": "draw", "members": ["sci", "txt"]}}  # fmt: skip
    return tiny_values(
        tars,
        model={"preset": "clip"},
        data=data,
        schedule={"steps": 10},
        checkpoint={"every_steps": 50},
        eval={"split": None},
    )


def of_streams(
    values: dict[str, Any], num_ranks: int, num_batches: int, finished: frozenset[streams.Place] = frozenset()
) -> tuple[list[str], dict[streams.Place, int]]:
    """The texts that all ranks see in so many batches each, and how much of which place was used."""
    data = DataSettings(**values | {"index": False})
    pool = open_pool(loader.open_sources(None, data, "train", index=False), "train")
    order = loader.build_order(pool, data, None, seed=3)
    texts, used = list[str](), dict[streams.Place, int]()
    for rank in range(num_ranks):
        plan = BatchPlan(data.batch_size, num_ranks, rank)
        made = loader.train_loader(
            pool, order, plan, range(num_batches), data, PictureModel, pin=False, finished=finished
        )
        for batch in loader.iterate(made):
            texts += [bytes(row.tolist()).rstrip(b"\0").decode() for row in batch.tokens]
            for place, num in batch.places:
                used[place] = num if num == streams.FINISHED else used.get(place, 0) + num
    return texts, used


def test_the_samples_are_those_of_the_index(tars: Path) -> None:
    for place, members in ((str(tars / "plant/1.tar"), ["sci"]), (f"pipe:cat {tars}/web/2.tar", ["json:caption"])):
        data = DataSettings(shards=place, text={"members": members}, cache_dir=str(tars / "cache"))
        pool = open_pool(loader.open_sources(None, data, "train"), "train")
        assert list(streams.samples_of(place, members)) == loader.ShardReader(pool, data.cache).read(
            range(len(pool)), with_texts=True
        )


def test_each_sample_of_a_pass_is_seen_once_by_any_number_of_processes(tars: Path) -> None:
    values = {"shards": str(tars / "web"), "batch_size": 4, "epoch_samples": 120, "shuffle_window": 40}
    for num_ranks, num_workers in ((1, 0), (2, 0), (1, 2)):
        num_batches = 120 // 4 // num_ranks
        texts, used = of_streams(values | {"num_workers": num_workers}, num_ranks, num_batches)
        assert sorted(texts) == [f"text {number}" for number in range(200, 320)], (num_ranks, num_workers)
        assert used == {(0, at): streams.FINISHED for at in range(6)}
        assert texts != sorted(texts)


def test_a_resume_reads_what_was_not_read_to_its_end(tars: Path) -> None:
    values = {
        "shards": str(tars / "web"),
        "batch_size": 4,
        "epoch_samples": 120,
        "shuffle_window": 10,
        "num_workers": 0,
    }
    first, used = of_streams(values, 2, 9)
    finished = frozenset(place for place, num in used.items() if num == streams.FINISHED)
    assert 1 <= len(finished) < 6
    again = sum(num for num in used.values() if num != streams.FINISHED)
    assert len(first) == len(finished) * WHOLE + again
    rest, _ = of_streams(values, 1, (6 - len(finished)) * WHOLE // 4, finished)
    counts = Counter(first + rest)
    assert len(counts) == 120
    assert set(counts.values()) == {1, 2}
    assert sum(counts.values()) - 120 == again


def test_weights_are_shares(config: dict[str, Any]) -> None:
    texts, _ = of_streams(config["data"] | {"text": {"use": "draw", "members": ["sci", "txt"]}}, 1, 60)
    assert 0.68 < sum(text.startswith("sci") for text in texts) / len(texts) < 0.82


def test_a_run_goes_on_and_says_what_comes_again(
    config: dict[str, Any], tars: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (tars / "web/4.tar").read_bytes()
    (tars / "web/4.tar").write_bytes(content[:-12000])
    samples = tree_of_life_samples(0, WHOLE)
    samples[3][1]["jpg"] = b"no picture"
    write_tar(tars / "plant/0.tar", samples)
    for name in ("once", "twice"):
        run_once(config, output_dir=str(tars / name), schedule={"steps": 40})
    assert_same_run(str(tars / "once"), str(tars / "twice"))
    broken = {line["sample"]: line["reason"] for line in read_log(tars / "once/log.jsonl", "corrupt_sample")}
    assert "not_an_image" in broken[f"{tars}/plant/0.tar, sample 4"]
    of_cut = [reason for name, reason in broken.items() if name.startswith("pipe:cat *** 4.tar, sample ")]
    assert any("damaged or cut short" in reason for reason in of_cut), broken
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(RunError, match="stopped by a signal after step 4 of 10"):
            run_once(config)
    capsys.readouterr()
    assert run_once(config)["steps"] == 10
    note = read_log(tars / "run/log.jsonl", "seen_again")[0]["note"]
    assert note in capsys.readouterr().err
    num, listed = note.partition(" of their samples come again: ")[::2]
    counts = [int(part.rpartition("(")[2].rstrip(")")) for part in listed.split(", ")]
    assert num == f"{len(counts)} shards begin anew, and {sum(counts)}"
    assert 0 < sum(counts) <= 48
    for path in (tars / "run").rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"release": "r"}, "data.index: false leaves out the index that release needs"),
        ({"data": {"mixture": {"plant": 1}}}, "the index that data.mixture needs"),
        ({"data": {"batches": "one_domain"}}, "the index that data.batches: one_domain needs"),
        ({"loss": {"label_field": "key"}}, "the index that loss.label_field needs"),
        ({"data": {"epoch_samples": None}}, "not counted; set data.epoch_samples"),
        ({"data": {"num_workers": 7}}, "group plant has 6 shards for 7 loader processes"),
    ],
)
def test_what_needs_an_index_is_refused(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_once(config, **changes)


def test_labels_of_domains_and_texts_and_held_out_groups(config: dict[str, Any], tars: Path) -> None:
    heldout = write_tar(tars / "heldout.tar", img2dataset_samples(400, 416))
    config["data"]["shards"].append({"name": "web", "shards": str(heldout), "split": "heldout"})
    config["data"]["cache_dir"] = str(tars / "cache")
    config["eval"] = {"every_steps": 2, "batch_size": 8}
    for field in ("text", "domain"):
        loss = {"same_label": "positive", "label_field": field}
        assert run_once(config, loss=loss, output_dir=str(tars / field), schedule={"steps": 2})["steps"] == 2
    assert set(read_log(tars / "text/log.jsonl", "validation")[0]["losses"]) == {"all", "web"}
    assert evaluate_model(open_trained_model(str(tars / "text")))[0]["num_samples"] == 16


def test_damage_is_told(tmp_path: Path) -> None:
    def faults(content: bytes) -> list[str]:
        path = tmp_path / "x.tar"
        path.write_bytes(content)
        return [texts[NO_TEXT] for _, _, texts in streams.samples_of(str(path), ["txt"]) if NO_TEXT in texts]

    twice = [("a", {"jpg": picture(0), "txt": b"a"}), ("b", {"txt": b"b"})]
    whole = write_tar(tmp_path / "whole.tar", twice).read_bytes()
    assert faults(whole) == ["b has no picture (jpg, png, jpeg, webp, gif, bmp, tif, tiff)"]
    assert faults(whole.rstrip(b"\0") + bytes(-len(whole.rstrip(b"\0")) % 512))[-1].endswith("(it has no end mark)")
    assert "unexpected end of data" in faults(whole[:900])[-1]
    assert "invalid header" in faults(b"no tar" * 200)[0]
    with pytest.raises(ConfigError, match=r"x.tar: is compressed"):
        faults(gzip.compress(whole))
    with pytest.raises(ConfigError, match=r"none.tar: no such shard"):
        list(streams.samples_of(str(tmp_path / "none.tar"), ["txt"]))
    with pytest.raises(RunError, match=r"pipe:cat \*\*\* none.tar: the command ended with status 1"):
        list(streams.samples_of(f"pipe:cat {tmp_path}/none.tar", ["txt"]))


def test_no_member_is_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MAX_MEMBER_BYTES", 50_000)
    samples = img2dataset_samples(0, 3)
    samples[1][1]["jpg"] = bytes(200_000)
    path = write_tar(tmp_path / "x.tar", samples)
    assert "a member of more than 50,000 bytes" in list(streams.samples_of(str(path), ["txt"]))[-1][2][NO_TEXT]
