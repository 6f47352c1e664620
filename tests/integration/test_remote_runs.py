"""A run whose output_dir lies in a real S3 server: uploaded whole, taken up on a fresh machine, faults survived."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import release_writer as writer
import torch
import training_runs
from command_server import CommandServer
from misbehaving.object_store import BUCKET, Store, become_user, serving
from ray_nodes import free_port
from sealed import flip_byte
from training_runs import write_values

from manifests.errors import ConfigError, RunError
from training.cli import main
from training.record.remote import RemoteRun
from training.run.loop import train
from training.run.stopping import StoppedError

RUN = f"s3://{BUCKET}/run"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("remote-runs")
    writer.write_release(folder / "toy", writer.drawn_samples(60, 16))
    values = training_runs.tiny_values(
        folder,
        release=str(folder / "toy"),
        output_dir=RUN,
        model={"preset": "clip"},
        schedule={"steps": 12},
        checkpoint={"every_steps": 3},
    )
    training_runs.run_once(values, output_dir=str(folder / "whole"))
    with serving() as store:
        yield store, values | {"whole": str(folder / "whole")}


@pytest.fixture
def store(served: tuple[Store, Any], monkeypatch: pytest.MonkeyPatch) -> Store:
    become_user(served[0], monkeypatch)
    monkeypatch.setattr("manifests.stores.faults.WAITS_SECONDS", (0.01, 0.02))
    fs = fsspec.filesystem("s3", **served[0].options, use_listings_cache=False)
    if fs.exists(f"{BUCKET}/run"):
        fs.rm(f"{BUCKET}/run", recursive=True)
    served[0].requests.clear()
    return served[0]


def settings(served: tuple[Store, dict[str, Any]], machine: Path, **sections: Any) -> Any:
    """The run's settings on a machine, which has a folder of its own."""
    values = {name: value for name, value in served[1].items() if name != "whole"}
    values["data"] = values["data"] | {"cache_dir": str(machine)}
    return training_runs.make_settings(values, **sections)


def assert_as_undisturbed(served: tuple[Store, dict[str, Any]], machine: Path) -> None:
    folder = RemoteRun(RUN, str(machine)).folder
    training_runs.assert_same_run(served[1]["whole"], str(folder))
    with fsspec.open(f"{RUN}/model.pt") as file:
        there = torch.load(file, weights_only=True)["state_dict"]
    assert all(torch.equal(there[name], value) for name, value in training_runs.final_weights(str(folder)).items())


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, chosen: Any, **options: bool) -> None:
    """A run that a signal stops in the given step."""
    with monkeypatch.context() as patch:
        training_runs.stop_at(patch, step)
        with pytest.raises(StoppedError):
            train(chosen, **options)


def names(store: Store) -> set[str]:
    fs = fsspec.filesystem("s3", **store.options, use_listings_cache=False)
    return {path.removeprefix(f"{BUCKET}/run/") for path in fs.find(f"{BUCKET}/run")}


@pytest.mark.slow
def test_a_run_is_uploaded_whole_with_few_requests(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path
) -> None:
    assert not train(settings(served, tmp_path / "one"))[1]
    assert_as_undisturbed(served, tmp_path / "one")
    writes = Counter(path.rpartition("/")[2].partition("?")[0] for method, path in store.requests if method == "PUT")
    assert writes == {"config.json": 7, "run.json": 7, "log.jsonl": 6, "LATEST": 4, "model.pt": 1, "summary.json": 1,
                      **{f"step-{step:08d}.pt": 1 for step in (3, 6, 9, 12)}}  # fmt: skip
    written = [path.rpartition("/")[2] for method, path in store.requests if method == "PUT"]
    assert written.index("step-00000003.pt") < written.index("LATEST"), "the pointer after what it points to"
    assert names(store) == {"config.json", "run.json", "log.jsonl", "model.pt", "summary.json", "checkpoints/LATEST",
                            "checkpoints/step-00000009.pt", "checkpoints/step-00000012.pt"}  # fmt: skip
    assert train(settings(served, tmp_path / "two"))[1], "on another machine it is known to be finished"


def test_a_fresh_machine_goes_on_to_the_same_bits(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    interrupt(monkeypatch, 8, settings(served, tmp_path / "one"))
    assert "checkpoints/step-00000008.pt" in names(store), "what the signal saved is uploaded"
    strange = {"checkpoints/epoch_5.pt", "eval/mine.json", "tensorboard/notes.txt", "notes.txt"}
    for name in strange:
        fsspec.filesystem("s3", **store.options).pipe_file(f"{BUCKET}/run/{name}", b"of someone else")
    train(settings(served, tmp_path / "two"))
    assert "going on after step 8 from" in capsys.readouterr().err
    assert_as_undisturbed(served, tmp_path / "two")
    assert train(settings(served, tmp_path / "one"))[1], "the first machine sees that its copy is behind"
    interrupt(monkeypatch, 2, settings(served, tmp_path / "one"), resume=False)
    assert names(store) >= {"checkpoints/step-00000002.pt", "checkpoints/LATEST"}
    assert not names(store) & {"summary.json", "model.pt", "checkpoints/step-00000012.pt"}, "begun anew in its place"
    assert names(store) >= strange, "what no run wrote stays"


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_interval(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    interrupt(monkeypatch, 8, settings(served, tmp_path / "one"))
    fs = fsspec.filesystem("s3", **store.options)
    damaged = bytearray(fs.cat_file(name := f"{BUCKET}/run/checkpoints/step-00000008.pt"))
    damaged[len(damaged) // 2] ^= 1
    fs.pipe_file(name, bytes(damaged))
    train(settings(served, tmp_path / "two"))
    err = capsys.readouterr().err
    assert f"{RUN}/checkpoints/step-00000008.pt: damaged; the one before is taken" in err
    assert "going on after step 6 from" in err
    assert_as_undisturbed(served, tmp_path / "two")


@pytest.mark.slow
def test_checkpoints_without_their_pointer_are_taken_up(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The newest whole one, on the machine that wrote them and on another."""
    fs = fsspec.filesystem("s3", **store.options)
    for machine in ("one", "two"):
        interrupt(monkeypatch, 8, settings(served, tmp_path / "one"), resume=False)
        fs.rm_file(f"{BUCKET}/run/checkpoints/LATEST")
        newest = fs.cat_file(name := f"{BUCKET}/run/checkpoints/step-00000008.pt")
        if machine == "two":
            fs.pipe_file(name, newest[:-100])
        train(settings(served, tmp_path / machine))
        step = {"one": 8, "two": 6}[machine]
        err = capsys.readouterr().err
        assert f"its LATEST is gone; checkpoints/step-{step:08d}.pt is the newest whole checkpoint" in err
        assert f"going on after step {step} from" in err
        assert_as_undisturbed(served, tmp_path / machine)
    fs.rm_file(f"{BUCKET}/run/model.pt")
    train(settings(served, tmp_path / "three"))
    assert_as_undisturbed(served, tmp_path / "three")


@pytest.mark.slow
def test_a_place_in_the_store_that_holds_something_else_is_refused(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path
) -> None:
    fs = fsspec.filesystem("s3", **store.options, use_listings_cache=False)
    for name in ("model.pt", "checkpoints/step-00000003.pt", "checkpoints/epoch_5.pt"):
        fs.pipe_file(f"{BUCKET}/run/{name}", b"of someone else")
        for resume in (True, False):
            with pytest.raises(ConfigError, match=r"s3://.*holds .*but no run\.json of a training"):
                train(settings(served, tmp_path / "one"), resume=resume)
        assert names(store) == {name}
        fs.rm_file(f"{BUCKET}/run/{name}")
    fs.pipe_file(f"{BUCKET}/run/release.json", b'{"format": "plantmix-release/1"}')
    with pytest.raises(ConfigError, match=r"runs/a: lies in the sealed release s3://.*/run;"):
        train(settings(served, tmp_path / "one", output_dir=f"{RUN}/runs/a"))


@pytest.mark.slow
@pytest.mark.parametrize("resume", [True, False])
def test_figures_beside_a_run_in_the_store_stay(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, resume: bool
) -> None:
    fs = fsspec.filesystem("s3", **store.options, use_listings_cache=False)
    fs.pipe_file(f"{BUCKET}/run/eval/mine.json", b"of someone else")
    train(settings(served, tmp_path / "one"), resume=resume)
    assert_as_undisturbed(served, tmp_path / "one")
    assert fs.cat_file(f"{BUCKET}/run/eval/mine.json") == b"of someone else"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["expired_403", "slow_down", "reset"])
def test_uploads_that_fail_for_a_while_do_not_end_the_run(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store.choose = lambda method, path: fault if "step-00000003" in path or "step-00000006" in path else None
    train(settings(served, tmp_path / "one"))
    err = capsys.readouterr().err
    assert f"{RUN}/checkpoints/step-00000006.pt: the store does not answer" in err
    assert "training goes on (2 of 3 in a row)" in err
    assert_as_undisturbed(served, tmp_path / "one")
    assert "checkpoints/step-00000012.pt" in names(store)


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_and_nothing_is_lost(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path
) -> None:
    store.choose = lambda method, path: "slow_down" if method == "PUT" and "step-" in path else None
    with pytest.raises(RunError, match=r"3 uploads in a row failed, the last: .*The checkpoints lie in .*same command"):
        train(settings(served, tmp_path / "one"))
    store.choose = lambda method, path: None
    train(settings(served, tmp_path / "one"))
    assert_as_undisturbed(served, tmp_path / "one")


@pytest.mark.slow
def test_two_trainings_in_one_place_are_noticed(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("s3", **store.options)
    pointer = {"run": "another", "checkpoints": [{"name": "step-00000001.pt", "num_bytes": 1, "sha256": ""}]}
    saved = RemoteRun.save

    def save(self: RemoteRun, keep: int) -> None:
        fs.pipe_file(f"{BUCKET}/run/checkpoints/LATEST", json.dumps(pointer).encode())
        saved(self, keep)

    monkeypatch.setattr(RemoteRun, "save", save)
    with pytest.raises(RunError, match="another training has written here meanwhile"):
        train(settings(served, tmp_path / "one"))


@pytest.mark.slow
def test_a_training_that_lost_its_place_changes_nothing_there(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it was found: it put its log over that of the run that had finished meanwhile."""
    interrupt(monkeypatch, 8, settings(served, tmp_path / "one"))
    RemoteRun(RUN, str(tmp_path / "two")).take_up()
    train(settings(served, tmp_path / "one"))
    fs = fsspec.filesystem("s3", **store.options, use_listings_cache=False)
    before = {
        path: fs.cat_file(path) for path in fs.find(f"{BUCKET}/run") if not path.endswith(("run.json", "config.json"))
    }
    monkeypatch.setattr(RemoteRun, "take_up", lambda run: None)  # it has looked already
    with pytest.raises(RunError, match="another training has written here meanwhile"):
        train(settings(served, tmp_path / "two"))
    assert {path: fs.cat_file(path) for path in before} == before


@pytest.mark.slow
def test_a_damaged_copy_on_this_machine_is_fetched_again(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    interrupt(monkeypatch, 8, settings(served, tmp_path / "one"))
    copy = RemoteRun(RUN, str(tmp_path / "two"))
    copy.take_up()
    flip_byte(copy.folder / "checkpoints/step-00000008.pt")
    train(settings(served, tmp_path / "two"))
    assert "going on after step 8 from" in capsys.readouterr().err
    assert_as_undisturbed(served, tmp_path / "two")


def test_a_bucket_that_is_not_there_is_said_before_the_first_step(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = settings(served, tmp_path / "one").model_dump(mode="json")
    write_values(tmp_path, values)
    assert main(["train", str(tmp_path / "run.yaml"), "--output", "s3://nowhere/run"]) == 2
    assert "s3://nowhere/run: there is no such place" in capsys.readouterr().err


@pytest.mark.slow
def test_eval_plot_and_export_take_the_run_from_the_store(
    store: Store, served: tuple[Store, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    train(settings(served, tmp_path / "one"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["eval", RUN]) == 0
    assert f"in the store: {RUN}/eval/" in capsys.readouterr().out
    assert {"eval/heldout-toy-0001.json", "eval/heldout-toy-0001.png"} <= names(store)
    assert main(["plot", RUN, "--out", str(tmp_path / "curves.png")]) == 0
    assert main(["export", RUN, str(tmp_path / "model.pt")]) == 0
    assert main(["publish", RUN, "--to", "hf:lab/toy", "--dry-run"]) == 0
    assert main(["embed", served[1]["release"], "--model", RUN, "--out", str(tmp_path / "vectors.parquet")]) == 0
    capsys.readouterr()
    assert main(["eval", f"s3://{BUCKET}/none"]) == 2
    assert f"s3://{BUCKET}/none: no run here (no config.json)" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_from_and_into_the_store(
    store: Store, served: tuple[Store, dict[str, Any]], commands: CommandServer, tmp_path: Path
) -> None:
    """As torchrun starts them. Nothing is shared but the store: release and checkpoints."""
    fsspec.filesystem("s3", **store.options).put(served[1]["release"], f"{BUCKET}/toy", recursive=True)
    values = settings(served, tmp_path / "one", release=f"s3://{BUCKET}/toy").model_dump(mode="json")
    write_values(tmp_path, values)
    store.requests.clear()
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = ("dalip", "train", tmp_path / "run.yaml")
    ranks = [commands.start(*command, **meeting, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    said = [process.communicate(timeout=900) for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], said
    assert said[0][0].startswith("finished: 12 steps")
    assert f"model: {RUN}/model.pt" in said[0][0]
    assert names(store) >= {"summary.json", "model.pt", "checkpoints/LATEST", "checkpoints/step-00000012.pt"}
    shards = Counter(path for method, path in store.requests if path.endswith(".tar") and "/shards/" in path)
    assert set(shards.values()) == {1}, "two processes of a machine share a request"
