"""`dalip proxies`: every run of a list once, killed or not, its results in the table and in the catalogue."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from command_server import CommandServer
from process_tree import below, is_running
from training_runs import write_values
from waiting import wait_until

from manifests.contract.catalog import Catalog
from manifests.contract.reader import read_proxy_runs
from manifests.errors import ConfigError
from training.cli import main
from training.config import TrainSettings
from training.data import loader
from training.data.decoded import decode_shard, open_decoded, prepare_decoded
from training.data.sampling import BatchPlan
from training.data.shards import SamplePool, open_pool
from training.model.build import build_model
from training.proxies.runs import ProxySettings, check_runs, read_runs, run_settings
from training.proxies.study import count_epochs, run_proxies
from training.record.checkpoint import lock_folder
from training.record.log import read_log

DESIGN = """run,reason,seed,mix_plant,mix_general,samples_seen,pool_plant
proxy-01,centroid,0,0.5000,0.5000,48,12
proxy-02,space-filling,0,1.0000,0.0000,48,12
proxy-03,space-filling,0,0.2500,0.7500,48,12
proxy-04,replicate,1,0.5000,0.5000,48,12
"""


@pytest.fixture(scope="module")
def stratified(writer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stratified") / "toy-0001"
    return writer.write_release(folder, writer.drawn_samples(83, 25, size_px=40), shard_size=15, stratified=True)


@pytest.fixture
def values(config: dict[str, Any], stratified: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "design.csv").write_text(DESIGN)
    with Catalog.open(str(tmp_path / "work")):
        pass
    config |= {
        "release": str(stratified),
        "output_dir": str(tmp_path / "study"),
        "runs": str(tmp_path / "design.csv"),
        "catalogue": str(tmp_path / "work"),
        "schedule": {"steps": 3, "warmup_steps": 1},
    }
    config["eval"] = {"batch_size": 8}
    return config


def _settings(values: dict[str, Any]) -> ProxySettings:
    return ProxySettings.model_validate(values)


def _table(values: dict[str, Any]) -> list[dict[str, str]]:
    with (Path(values["output_dir"]) / "runs.csv").open() as stream:
        return list(csv.DictReader(stream))


def _config_file(values: dict[str, Any], tmp_path: Path) -> str:
    return write_values(tmp_path, values, "proxies")


def test_every_run_ends_in_the_table_and_in_the_catalogue(values: dict[str, Any], tmp_path: Path) -> None:
    printed: list[str] = []
    outcome = run_proxies(_settings(values), printed.append)
    assert [result["run"] for result in outcome.results] == ["proxy-01", "proxy-02", "proxy-03", "proxy-04"]
    assert not outcome.failed
    rows = _table(values)
    assert [row["seed"] for row in rows] == ["0", "0", "0", "1"]
    assert {row["samples_seen"] for row in rows} == {"48"}
    assert {row["step"] for row in rows} == {"4"}, "48 samples of the list in batches of 12 outrank schedule.steps"
    assert [float(row["mix_plant"]) for row in rows] == [0.5, 1.0, 0.25, 0.5]
    assert float(rows[1]["epochs_plant"]) == 48 / 12, "a pool of 12 seen 48 times: four passes"
    assert float(rows[1]["epochs_general"]) == 0.0
    assert float(rows[2]["epochs_plant"]) == pytest.approx(1.0, abs=1.01 / 12), "a share is met to within a sample"
    assert rows[0]["loss_plant"] != rows[3]["loss_plant"], "another seed is another run"
    assert all(0 < float(row[f"loss_{name}"]) < 20 for row in rows for name in ("plant", "general"))
    recorded = read_proxy_runs(str(tmp_path / "work"))
    assert [row["run"] for row in recorded] == [f"study/{row['run']}" for row in rows]
    for ours, theirs in zip(recorded, rows, strict=True):
        assert ours["loss_plant"] == float(theirs["loss_plant"])
        assert ours["mix_general"] == float(theirs["mix_general"])
        assert ours["epochs_general"] == pytest.approx(float(theirs["epochs_general"]), abs=1e-4)
    assert any("decoded 83 pictures once" in line for line in printed)


def test_a_folder_without_a_catalogue_is_refused_before_any_run(values: dict[str, Any], tmp_path: Path) -> None:
    values["catalogue"] = str(tmp_path / "wrok")
    with pytest.raises(ConfigError, match=r"wrok holds no catalog\.duckdb; name the work folder of a build, or null"):
        run_proxies(_settings(values), lambda line: None)
    assert not (tmp_path / "wrok").exists()
    assert not (tmp_path / "study").exists()


def test_a_list_of_runs_is_utf8_with_or_without_a_mark(values: dict[str, Any], tmp_path: Path) -> None:
    plain = read_runs(_settings(values))
    design = tmp_path / "design.csv"
    design.write_bytes(b"\xef\xbb\xbf" + design.read_bytes())
    assert read_runs(_settings(values)) == plain
    design.write_bytes(DESIGN.encode().replace(b"centroid", b"centro\xefde"))
    with pytest.raises(ConfigError, match=r"design\.csv: line 2 is not UTF-8 \(byte 0xef\); convert the file"):
        read_runs(_settings(values))
    design.write_text(DESIGN + "proxy-05,short\n")
    with pytest.raises(ConfigError, match=r"design\.csv: row 6: 'mixture'"):
        read_runs(_settings(values))
    design.unlink()
    design.mkdir()
    with pytest.raises(ConfigError, match=r"design\.csv: the list of runs cannot be read \(Is a directory\)"):
        read_runs(_settings(values))


@pytest.mark.slow
def test_the_same_run_alone_gives_the_same_losses(values: dict[str, Any], tmp_path: Path) -> None:
    """A proxy run is `dalip train` with that mixture and seed: nothing of the other runs reaches it."""
    from training.evaluation.evaluate import domain_losses
    from training.evaluation.trained_model import load_run_model
    from training.run.loop import train

    settings = _settings(values | {"decode_once": False, "catalogue": None})
    outcome = run_proxies(settings, lambda line: None)
    own = run_settings(settings, read_runs(settings)[2])
    alone = own.model_copy(update={"output_dir": str(tmp_path / "alone")})
    train(alone)
    model = load_run_model(alone, tmp_path / "alone").model
    heldout = open_pool(loader.open_releases(alone.release), "heldout")
    losses = domain_losses(model, heldout, alone)
    assert losses["plant"]["value"] == outcome.results[2]["losses"]["plant"]["value"]


@pytest.mark.slow
def test_finished_runs_are_kept_and_a_longer_list_goes_on(values: dict[str, Any], tmp_path: Path) -> None:
    lines = DESIGN.splitlines(keepends=True)
    (tmp_path / "design.csv").write_text("".join(lines[:3]))
    run_proxies(_settings(values), lambda line: None)
    models = {path: path.stat().st_mtime_ns for path in (tmp_path / "study/runs").glob("*/model.pt")}
    (tmp_path / "design.csv").write_text(DESIGN)
    outcome = run_proxies(_settings(values), lambda line: None)
    assert outcome.num_reused == len(models) == 2
    assert all(path.stat().st_mtime_ns == before for path, before in models.items())
    assert len(_table(values)) == 4
    assert len(read_proxy_runs(str(tmp_path / "work"))) == 4


@pytest.mark.slow
def test_killed_runs_go_on_and_end_alike(values: dict[str, Any], commands: CommandServer, tmp_path: Path) -> None:
    """SIGKILL to the command: its processes end with it, finished runs stay, the one at work goes on, bit for bit."""
    values["num_processes"], values["checkpoint"] = 2, {"every_steps": 2}
    (tmp_path / "design.csv").write_text("".join(DESIGN.replace(",48,", ",1800,").splitlines(keepends=True)[:3]))
    process = commands.start("dalip", "proxies", _config_file(values, tmp_path))
    checkpoints = tmp_path / "study/runs/proxy-01/checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*.pt")), process)
    children = below(process.pid)
    process.kill()
    process.wait(500)
    wait_until(lambda: not any(map(is_running, children)))
    assert not (tmp_path / "study/runs/proxy-01/proxy.json").exists()
    values["num_processes"] = 1
    assert main(["proxies", _config_file(values, tmp_path)]) == 0
    resumed = json.loads((tmp_path / "study/runs/proxy-01/proxy.json").read_text())
    log = (tmp_path / "study/runs/proxy-01/log.jsonl").read_text()
    assert '"event": "resume"' in log
    values["output_dir"] = str(tmp_path / "whole")
    (tmp_path / "design.csv").write_text("".join((tmp_path / "design.csv").read_text().splitlines(keepends=True)[:2]))
    run_proxies(_settings(values), lambda line: None)
    whole = json.loads((tmp_path / "whole/runs/proxy-01/proxy.json").read_text())
    assert resumed["losses"] == whole["losses"]


def test_a_failed_run_does_not_stop_the_others(values: dict[str, Any], capsys: pytest.CaptureFixture[str],
                                               writer: ModuleType, tmp_path: Path) -> None:  # fmt: skip
    """One broken picture among the plants, and none allowed: the run without plants does not meet it."""
    samples = writer.drawn_samples(40, 25, size_px=40)
    next(sample for sample in samples if sample.domain == "plant").jpg = b"no picture"
    values["release"] = str(writer.write_release(tmp_path / "broken-0001", samples, shard_size=15, stratified=True))
    values["data"]["max_corrupt_samples"] = 0
    values["runs"] = [
        {"run": "plants", "mixture": {"plant": 1.0, "general": 0.0}, "samples_seen": 48},
        {"run": "without", "mixture": {"plant": 0.0, "general": 1.0}, "samples_seen": 12},
    ]
    code = main(["proxies", _config_file(values, tmp_path)])
    out = capsys.readouterr().out
    assert code == 1
    assert "plants: failed: 1 broken samples, more than data.max_corrupt_samples = 0" in out
    assert "1 runs done, 0 done before and kept, 1 failed" in out
    assert [row["run"] for row in _table(values)] == ["without"]


def test_a_run_on_ray_takes_one_core_unless_told(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the cores of the machine the command is given on: no machine of the cluster may have as many."""
    asked: list[tuple[int, int]] = []

    def on_ray(work: Any, tasks: Any, settings: Any, address: Any) -> Iterator[tuple[int, Any]]:
        asked.extend((settings.compute.num_threads, task.settings.compute.num_threads) for task in tasks)
        yield from ((number, work(task)) for number, task in enumerate(tasks))

    monkeypatch.setattr("training.proxies.on_ray.each_result_on_ray", on_ray)
    values["runs"] = [{"run": "a", "mixture": {"plant": 0.5, "general": 0.5}, "samples_seen": 12}]
    for number, (threads, wanted) in enumerate(((None, 1), (2, 2))):
        values["compute"]["num_threads"] = threads
        values["output_dir"] += str(number)
        assert not run_proxies(_settings(values), lambda line: None, ray_address="local").failed
        assert asked.pop() == (wanted, wanted)


def test_a_run_that_ends_in_nonsense_does_not_get_into_the_table(values: dict[str, Any], tmp_path: Path) -> None:
    """One step at an absurd rate: its loss is fine, the weights after it are not."""
    values["optimiser"] = {"lr": 1e30, "clip_norm": None}
    values["runs"] = [{"run": "wild", "mixture": {"plant": 0.5, "general": 0.5}, "samples_seen": 12}]
    values["schedule"]["warmup_steps"] = 0
    outcome = run_proxies(_settings(values), lambda line: None)
    assert outcome.failed.keys() == {"wild"}
    assert "held-out samples, picture features (f): 25 of 25 are not finite" in outcome.failed["wild"]
    assert "a lower optimiser.lr" in outcome.failed["wild"]
    assert not outcome.table.exists()
    with pytest.raises(ConfigError, match="no proxy runs are recorded here"):
        read_proxy_runs(str(tmp_path / "work"))


def test_an_error_that_is_not_ours_fails_its_run_and_leaves_a_traceback(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.run import loop

    whole = loop.run_steps

    def run_steps(trainer: Any, *others: Any) -> None:
        if trainer.settings.seed == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        whole(trainer, *others)

    monkeypatch.setattr(loop, "run_steps", run_steps)
    outcome = run_proxies(_settings(values), lambda line: None)
    assert len(outcome.results) == 3
    console = Path(values["output_dir"]) / "runs/proxy-04/console.log"
    assert outcome.failed == {"proxy-04": f"OutOfMemoryError: CUDA out of memory; more in {console}"}
    assert "Traceback" in console.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_signal_stops_the_list_and_not_one_run_of_it(
    num_processes: int, values: dict[str, Any], commands: CommandServer, tmp_path: Path
) -> None:
    """SIGTERM to the command alone: each run at work saves its checkpoint, and no other begins."""
    values |= {"catalogue": None, "checkpoint": {"every_steps": 1000}, "num_processes": num_processes}
    values["runs"] = [{"run": name, "mixture": {"plant": 0.5, "general": 0.5}, "samples_seen": 60000} for name in "abc"]
    process = commands.start("dalip", "proxies", _config_file(values, tmp_path))
    runs = [tmp_path / "study/runs" / name for name in "abc"]
    working = runs[:num_processes]
    wait_until(
        lambda: all((run / "log.jsonl").exists() and read_log(run / "log.jsonl", "step") for run in working), process
    )
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 1
    assert ("stopped by a signal after step" if num_processes == 1 else "interrupted; run the same command") in err
    for run in working:
        assert list((run / "checkpoints").glob("step-*.pt"))
    assert not runs[num_processes].exists()


def test_tasks_of_an_array_share_a_folder(
    values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each does its run, and none waits for a task that is at another one; the table is written when all are done."""
    (tmp_path / "design.csv").write_text("".join(DESIGN.splitlines(keepends=True)[:3]))
    config = _config_file(values, tmp_path)
    assert main(["proxies", config, "--task", "3"]) == 2
    assert "--task 3: the list has 2 runs, the first is 1" in capsys.readouterr().err
    runs = tmp_path / "study/runs"
    with lock_folder(runs / "proxy-01"):  # as its task does
        assert main(["proxies", config, "--task", "2"]) == 0
        assert main(["proxies", config, "--task", "1"]) == 1
    told = capsys.readouterr().out
    assert "the same command without --task writes the table when all tasks are done" in told
    assert f"{runs / 'proxy-01'}: another command is writing here" in told
    assert sorted(path.name for path in (tmp_path / "study").iterdir()) == [".lock", "decoded", "runs"]
    with pytest.raises(ConfigError, match="no proxy runs are recorded here"):
        read_proxy_runs(str(tmp_path / "work"))
    assert main(["proxies", config]) == 0
    assert "1 runs done, 1 done before and kept, 0 failed" in capsys.readouterr().out
    assert [row["run"] for row in _table(values)] == ["proxy-01", "proxy-02"]
    assert len(read_proxy_runs(str(tmp_path / "work"))) == 2


def test_recording_waits_for_a_catalogue_that_a_build_holds(values: dict[str, Any], tmp_path: Path,
                                                             capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "design.csv").write_text("".join(DESIGN.splitlines(keepends=True)[:2]))
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; from manifests.contract.catalog import Catalog\n"
         f"with Catalog.open({str(tmp_path / 'work')!r}): print('held', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline().strip() == "held"
    assert main(["proxies", _config_file(values, tmp_path)]) == 1
    assert "1 of 1 finished runs are not in the catalogue yet" in capsys.readouterr().err
    holder.stdin.close()
    holder.wait()
    assert main(["proxies", _config_file(values, tmp_path)]) == 0
    assert len(read_proxy_runs(str(tmp_path / "work"))) == 1
    holder.stdout.close()


# ---- shared pictures


@pytest.fixture
def pool(stratified: Path) -> SamplePool:
    return open_pool(loader.open_releases(str(stratified)), "train")


@pytest.mark.parametrize("text", [{}, {"use": "draw", "members": ["txt", "sci", "com"]}])
def test_small_pictures_come_out_of_the_cache_as_they_went_in(
    pool: SamplePool, values: dict[str, Any], tmp_path: Path, text: dict[str, Any]
) -> None:
    """40 px pictures, kept at up to 48: every pixel and every text, in the same order."""
    for shard in prepare_decoded(pool, tmp_path / "decoded", 48):
        decode_shard(pool, tmp_path / "decoded", 48, shard)
    shared = open_decoded(pool, tmp_path / "decoded")
    values["data"] |= {"mixture": {"plant": 0.5, "general": 0.5}, "text": text, "augment": {"scale": [0.5, 1.0]}}
    values = {name: value for name, value in values.items() if name not in ("runs", "catalogue")}
    settings = TrainSettings.model_validate(values)
    for ours, theirs in zip(_batches(shared, settings), _batches(pool, settings), strict=True):
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tokens, theirs.tokens)


def _batches(pool: SamplePool, settings: TrainSettings) -> Iterator[loader.Batch]:
    order = loader.build_order(pool, settings.data, settings.release, 0)
    model = build_model(settings.model)
    plan = BatchPlan(settings.data.batch_size, 1, 0)
    return loader.iterate(loader.train_loader(pool, order, plan, range(6), settings.data, model, pin=False))


def test_large_pictures_are_shrunk_once(pool: SamplePool, tmp_path: Path) -> None:
    todo = prepare_decoded(pool, tmp_path / "decoded", 16)
    assert todo == list(range(len(pool.files)))
    for shard in todo:
        decode_shard(pool, tmp_path / "decoded", 16, shard)
    assert prepare_decoded(pool, tmp_path / "decoded", 16) == []
    shared = open_decoded(pool, tmp_path / "decoded")
    assert set(shared.offsets["jpg_length"].tolist()) == {len(b"P6\n16 16\n255\n") + 16 * 16 * 3}
    assert prepare_decoded(pool, tmp_path / "decoded", 20) == todo, "another size is decoded anew"


# ---- the list


def test_epochs_are_those_that_were_drawn(pool: SamplePool, values: dict[str, Any]) -> None:
    settings = _settings(values)
    own = run_settings(settings, read_runs(settings)[2])
    order = loader.build_order(pool, own.data, own.release, own.seed)
    domains = pool.table["domain"].to_pylist()
    seen = [domains[row] for row in order.rows(0, 48)]
    general = sum(domain == "general" for domain in domains)
    assert count_epochs(pool, own, 48) == {
        "general": seen.count("general") / general,
        "plant": seen.count("plant") / 12,
    }


def _set(values: dict[str, Any], design: str) -> None:
    Path(values["runs"]).write_text(design)


def test_what_must_lie_on_a_disk_is_said(values: dict[str, Any]) -> None:
    for key, words in (
        ("output_dir", "s3://bucket/x: proxy runs are written to a local folder.* and copy it to the store"),
        ("runs", "s3://bucket/x: the list of runs is a local file; copy it here, and name the copy"),
    ):
        with pytest.raises(ValueError, match=words):
            ProxySettings.model_validate(values | {key: "s3://bucket/x"})


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ("run,mix_plant,mix_general\na,0.5,0.6\n", "row 2: '(top level)': the shares of a sum to 1.1"),
        ("run,mix_plant,mix_general\na,0.5,0.5\na,1,0\n", "the name 'a' is given 2 times"),
        ("run,mix_plant,mix_general\na,0.5,x\n", "row 2: 'mixture.mix_general'"),
        ("run,mix_plant,mix_fungi\na,0.5,0.5\n", "no samples of 'fungi'"),
        ("run,mix_plant,mix_general,pool_plant\na,0.5,0.5,9000\n", "cuts domain 'plant' to 9,000 samples"),
        ("run,mix_plant,mix_general\n", "the list is empty"),
        ("mix_plant,mix_general\n0.5,0.5\n", "row 2: missing key 'run'"),
        ("run,mix_plant,mix_general\n../a,0.5,0.5\n", "row 2: 'run'"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_with_its_row(
    values: dict[str, Any], pool: SamplePool, design: str, words: str
) -> None:
    _set(values, design)
    with pytest.raises(ConfigError) as error:
        check_runs(read_runs(_settings(values)), pool, _settings(values))
    assert words.replace("mixture.mix_general", "mixture.general") in str(error.value)
    assert not Path(values["output_dir"]).exists()


def test_a_changed_mixture_of_a_finished_run_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "design.csv").write_text("".join(DESIGN.splitlines(keepends=True)[:2]))
    run_proxies(_settings(values), lambda line: None)
    _set(values, DESIGN.replace("0.5000,0.5000", "0.6000,0.4000"))
    with pytest.raises(ConfigError, match="holds a finished run of another config"):
        run_proxies(_settings(values), lambda line: None)


def test_mixture_in_the_config_is_left_to_the_list(values: dict[str, Any]) -> None:
    values["data"]["mixture"] = {"plant": 1.0}
    with pytest.raises(ValueError, match="come from the list of runs"):
        _settings(values)


def test_a_run_that_is_recorded_again_replaces_its_row(tmp_path: Path) -> None:
    result = {
        "run": "a", "model_size": "tiny", "step": 1, "samples_seen": 2, "seed": 0, "mixture": {"x": 1.0, "y": 0.0},
        "losses": {"x": {"value": 1.5}}, "epochs": {"x": 2.0}, "validation": {"release": "r", "batch_size": 8},
    }  # fmt: skip
    with Catalog.open(str(tmp_path)) as catalog:
        catalog.record_proxy_runs("s", [result])
        catalog.record_proxy_runs("s", [result | {"seed": 3}])
    (row,) = read_proxy_runs(str(tmp_path))
    assert (row["run"], row["study"], row["seed"], row["loss_x"], row["mix_y"]) == ("s/a", "s", 3, 1.5, 0.0)
