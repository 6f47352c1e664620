"""Loading from a real release: the same batches for any number of workers, texts, broken samples, refusals."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sealed import flip_byte

from manifests.contract.release import Release
from manifests.errors import ConfigError, IntegrityError, RunError
from training.data import images, loader
from training.data.loader import SampleDataset
from training.data.sampling import BatchPlan
from training.data.settings import DataSettings, ReleaseShare, TextSettings
from training.data.shards import SamplePool, ShardReader, cut_pools, open_pool, strata_of, text_members


class PictureModel:
    """What the loader asks of a model: picture size, normalisation and a tokenizer."""

    class preprocess_settings:  # noqa: N801 - stands for open_clip's PreprocessCfg
        size = 32
        mean = (0.48, 0.45, 0.40)
        std = (0.26, 0.26, 0.27)

    @staticmethod
    def tokenizer(texts: list[str]) -> torch.Tensor:
        rows = [list(text.encode("utf-8")[:40].ljust(40, b"\0")) for text in texts]
        return torch.tensor(rows)


def _text(tokens: torch.Tensor) -> str:
    return bytes(tokens.tolist()).rstrip(b"\0").decode()


def _pool(folder: Path, split: str = "train") -> SamplePool:
    return open_pool([Release.open(str(folder))], split)


def _batches(pool: SamplePool, **changes: Any) -> list[loader.Batch]:
    settings = DataSettings(**{"batch_size": 10, "num_workers": 0, "shuffle_window": 8} | changes)
    order = loader.build_order(pool, settings, "release", seed=5)
    batches = loader.train_loader(pool, order, BatchPlan(10, 1, 0), range(12), settings, PictureModel, pin=False)
    return list(loader.iterate(batches))


def test_members_are_read_by_offset(release_folder: Path, writer: ModuleType) -> None:
    pool = _pool(release_folder)
    assert len(pool) == 107
    assert pool.domains == ["general", "plant"]
    given = {sample.jpg: sample.text for sample in writer.drawn_samples(107, 0)}
    read = ShardReader(pool).read(range(107), with_texts=False)
    assert {image: text.decode() for image, text, _ in read} == given


def test_a_reader_that_is_gone_holds_no_shard_open(release_folder: Path, tmp_path: Path) -> None:
    """Each validation in the process of the training has one: a long run would end with too many open files."""
    pool = _pool(Path(shutil.copytree(release_folder, tmp_path / "copy")))

    def open_shards() -> list[str]:  # shards alone: pyarrow may close samples.parquet a moment after it was read
        opened = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
        return sorted(each for each in opened if str(tmp_path) in each and each.endswith(".tar"))

    reader = ShardReader(pool)
    reader.read(range(len(pool)), with_texts=False)
    assert open_shards() == sorted(file.path for file in pool.files)
    copied = pickle.loads(pickle.dumps(reader))
    assert copied.read([0], with_texts=False) == reader.read([0], with_texts=False)
    del copied
    assert reader.read([0], with_texts=False)
    del reader
    assert open_shards() == []


def test_text_members_behind_txt_are_found(release_folder: Path, writer: ModuleType) -> None:
    pool = _pool(release_folder)
    texts = {sample.jpg: sample.texts for sample in writer.drawn_samples(107, 0)}
    for image, _, members in ShardReader(pool).read(range(107), with_texts=True):
        assert members == texts[image]


def test_any_number_of_workers_gives_the_same_batches(release_folder: Path) -> None:
    alone = _batches(_pool(release_folder))
    apart = _batches(_pool(release_folder), num_workers=2)
    for one, two in zip(alone, apart, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.rows, two.rows)
    assert sorted(torch.cat([batch.rows for batch in alone])[:107].tolist()) == list(range(107))


def test_images_and_texts_belong_together(release_folder: Path, writer: ModuleType) -> None:
    pool = _pool(release_folder)
    for batch in _batches(pool):
        for row, image, tokens in zip(batch.rows.tolist(), batch.images, batch.tokens, strict=True):
            jpg, text, _ = ShardReader(pool).read([row], with_texts=False)[0]
            assert _text(tokens) == text.decode()
            whole = images.TrainView((32, 32), images.AugmentSettings(scale=(1.0, 1.0)))(jpg)
            assert (whole.float() - image.float()).abs().mean() < 40  # the same picture, cropped


def test_loading_leaves_the_random_state_alone(release_folder: Path) -> None:
    torch.manual_seed(1)
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    _batches(_pool(release_folder))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_an_epoch_draws_other_crops(release_folder: Path) -> None:
    pool = _pool(release_folder)
    dataset = SampleDataset(pool, images.TrainView((32, 32), images.AugmentSettings()), PictureModel.tokenizer,
                            TextSettings(), seed=0)  # fmt: skip
    first, again, later = (dataset.load([(position, 3)]).images for position in (3, 3, 110))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


def test_a_drawn_text_comes_from_its_members_and_falls_back(release_folder: Path) -> None:
    pool = _pool(release_folder)
    text = {"use": "draw", "members": ["sci", "com", "txt"]}
    seen: dict[int, set[str]] = {}
    for batch in _batches(pool, text=text) + _batches(pool, text=text, shuffle_window=3):
        for row, tokens in zip(batch.rows.tolist(), batch.tokens, strict=True):
            seen.setdefault(row, set()).add(_text(tokens))
    domains = pool.table["domain"].to_pylist()
    plants = {text for row, texts in seen.items() if domains[row] == "plant" for text in texts}
    others = {text for row, texts in seen.items() if domains[row] == "general" for text in texts}
    assert any(text.startswith("Rubrum") for text in plants)
    assert any(text.endswith("thing") for text in plants)
    assert any(text.startswith("a ") for text in plants)
    assert all(text.startswith("a ") for text in others)


def test_text_members_that_no_sample_has_are_found(release_folder: Path) -> None:
    pool = _pool(release_folder)
    for members, absent in ((("txt",), []), (("sci", "com"), []), (("txt", "scie"), ["scie"])):
        found, there = loader.absent_members(pool, DataSettings(text=TextSettings(use="draw", members=members)))
        assert found == absent
        assert there == ([] if members == ("txt",) else ["com", "sci"])


def test_a_mixture_weighs_the_domains(release_folder: Path) -> None:
    pool = _pool(release_folder)
    batches = _batches(pool, mixture={"plant": 3, "general": 1}, epoch_samples=120)
    domains = pool.table["domain"].to_pylist()
    drawn = [domains[row] for batch in batches for row in batch.rows.tolist()]
    assert drawn.count("plant") == 90


def test_several_releases_share_by_weight_and_mixture(release_folder: Path, writer: ModuleType, tmp_path: Path) -> None:
    small = writer.write_release(tmp_path / "small", writer.drawn_samples(12, 0), name="small")
    pool = open_pool([Release.open(str(release_folder)), Release.open(str(small))], "train")
    weights = [1.0, 3.0]
    assert [(part.name, part.weight) for part in strata_of(pool, weights, None)] == [("0:all", 1.0), ("1:all", 3.0)]
    both = strata_of(pool, weights, {"plant": 1.0, "general": 1.0})
    assert [part.weight for part in both] == [0.5, 0.5, 1.5, 1.5]
    shares = (ReleaseShare(release="a", weight=1), ReleaseShare(release="b", weight=3))
    order = loader.build_order(pool, DataSettings(epoch_samples=100), shares, seed=0)
    assert int((pool.releases[order.epoch(0)] == 1).sum()) == 75


@pytest.fixture(scope="module")
def stratified_release(writer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 training samples, 56 plant and 54 general, each domain in shards of its own."""
    folder = tmp_path_factory.mktemp("stratified")
    return writer.write_release(folder, writer.drawn_samples(110, 20), shard_size=25, stratified=True)


def _drawn_domains(pool: SamplePool, **changes: Any) -> list[str]:
    domains = pool.table["domain"].to_pylist()
    return [domains[row] for batch in _batches(pool, **changes) for row in batch.rows.tolist()]


def test_a_stratified_release_serves_any_mixture(stratified_release: Path) -> None:
    """Every batch is near the asked share, though each shard holds one domain only."""
    shards = [shard["shard"] for shard in Release.open(str(stratified_release)).record["splits"]["train"]["shards"]]
    assert [name[:-11] for name in shards] == ["general"] * 3 + ["plant"] * 3
    pool = _pool(stratified_release)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        drawn = _drawn_domains(pool, mixture={"plant": share, "general": 1 - share}, epoch_samples=120)
        assert drawn.count("plant") == round(share * 120)
        for start in range(0, 120, 10):
            assert abs(drawn[start : start + 10].count("plant") - 10 * share) <= 2
    whole = _batches(pool)
    assert sorted(torch.cat([batch.rows for batch in whole])[:110].tolist()) == list(range(110))


def test_batches_of_one_domain_are_drawn_by_share(stratified_release: Path, release_folder: Path) -> None:
    changes = {"mixture": {"plant": 0.75, "general": 0.25}, "batches": "one_domain", "epoch_samples": 120}
    drawn = _drawn_domains(_pool(stratified_release), **changes)
    batches = [set(drawn[start : start + 10]) for start in range(0, 120, 10)]
    assert batches.count({"plant"}) == 9
    assert batches.count({"general"}) == 3
    assert set(_drawn_domains(_pool(stratified_release), batches="one_domain")) == {"plant", "general"}
    with pytest.raises(ConfigError, match=r"one_domain needs data\.mixture, since the release is not stratified"):
        _batches(_pool(release_folder), batches="one_domain")


def test_a_stratified_release_without_a_mixture_is_drawn_by_the_sizes_of_its_domains(
    stratified_release: Path, release_folder: Path
) -> None:
    """Not in the order of its shards, by which a batch holds one domain; an epoch still has every sample once."""
    pool = _pool(stratified_release)
    strata = strata_of(pool, None, None)
    assert [(part.name, part.weight) for part in strata] == [("0:general", 54.0), ("0:plant", 56.0)]
    drawn = _drawn_domains(pool)
    assert all(abs(drawn[start : start + 10].count("plant") - 5) <= 2 for start in range(0, 120, 10))
    assert sorted(torch.cat([batch.rows for batch in _batches(pool)])[:110].tolist()) == list(range(110))
    cut = loader.build_order(pool, DataSettings(pool_samples={"plant": 27}), "release", seed=0)
    assert cut.counts == [54, 27]
    both = open_pool([Release.open(str(path)) for path in (stratified_release, release_folder)], "train")
    shared = strata_of(both, [1.0, 3.0], None)
    assert [part.name for part in shared] == ["0:general", "0:plant", "1:all"]
    assert [part.weight for part in shared] == pytest.approx([54 / 110, 56 / 110, 3.0])


def test_a_release_without_any_domain_of_the_mixture_is_named(
    release_folder: Path, writer: ModuleType, tmp_path: Path
) -> None:
    plants = [sample for sample in writer.drawn_samples(40, 0) if sample.domain == "plant"]
    other = writer.write_release(tmp_path / "plants-only", plants)
    pool = open_pool([Release.open(str(release_folder)), Release.open(str(other))], "train")
    with pytest.raises(
        ConfigError, match=r"plants-only: has no sample of the mixture's domains \(general\).*\(plant\)"
    ):
        strata_of(pool, [1.0, 3.0], {"general": 1.0, "plant": 0.0})
    assert len(strata_of(pool, [1.0, 3.0], {"general": 1.0, "plant": 1.0})) == 3


def test_a_stratified_mixture_is_the_same_for_any_workers_and_ranks(stratified_release: Path) -> None:
    pool = _pool(stratified_release)
    changes = {"mixture": {"plant": 0.7, "general": 0.3}, "pool_samples": {"plant": 12}, "epoch_samples": 60}
    alone, apart = _batches(pool, **changes), _batches(pool, num_workers=2, **changes)
    assert all(torch.equal(one.images, two.images) for one, two in zip(alone, apart, strict=True))
    settings = DataSettings(batch_size=10, num_workers=0, shuffle_window=8, **changes)
    order = loader.build_order(pool, settings, "release", seed=5)
    for step, whole in enumerate(alone):
        halves = [row for rank in (0, 1) for row in
                  order.rows(*[(step * 2 + rank + end) * 5 for end in (0, 1)]).tolist()]  # fmt: skip
        assert halves == whole.rows.tolist()


def test_the_order_in_which_a_mixture_names_its_domains_draws_the_same(stratified_release: Path) -> None:
    """A resume takes two such configs for one: they have to be."""
    pool = _pool(stratified_release)
    one, two = ({"plant": 0.5, "general": 0.5}, {"general": 0.5, "plant": 0.5})
    drawn = [torch.cat([batch.rows for batch in _batches(pool, mixture=mixture)]) for mixture in (one, two)]
    assert torch.equal(*drawn)


def test_a_pool_cut_in_proportion_repeats_as_the_long_run_does(stratified_release: Path) -> None:
    """The cut follows from the ids alone, smaller cuts lie in larger ones, and what is left is repeated evenly."""
    pool = _pool(stratified_release)
    ids = pool.table["sample_id"].to_pylist()
    domains = pool.table["domain"].to_pylist()
    cuts = {n: cut_pools(pool, {"plant": n}) for n in (7, 14, 56)}
    assert set(cuts[7]) < set(cuts[14]) < set(cuts[56]) == set(range(110))
    assert [sum(domains[row] == "plant" for row in cuts[n]) for n in cuts] == [7, 14, 56]
    shuffled = pool.table.take(list(reversed(range(110))))
    mirrored = cut_pools(replace(pool, table=shuffled), {"plant": 14})
    assert {ids[row] for row in cuts[14]} == {ids[109 - row] for row in mirrored}
    drawn = torch.cat([b.rows for b in _batches(pool, mixture={"plant": 1, "general": 1}, pool_samples={"plant": 15},
                                                epoch_samples=60)])  # fmt: skip
    plants = torch.bincount(drawn, minlength=110)[[domain == "plant" for domain in domains]]
    assert sorted(plants[plants > 0].tolist()) == [4] * 15
    assert int(torch.bincount(drawn, minlength=110)[[domain == "general" for domain in domains]].max()) == 2


def test_a_cut_that_cannot_be_is_refused(stratified_release: Path) -> None:
    pool = _pool(stratified_release)
    with pytest.raises(ConfigError, match=r"cuts domain 'general' to 60 samples, but it has 54"):
        strata_of(pool, None, None, {"general": 60})
    with pytest.raises(ConfigError, match=r"pool_samples names 'sea'.* general, plant"):
        strata_of(pool, None, None, {"sea": 3})
    with pytest.raises(ValueError, match="pool_samples"):
        DataSettings(pool_samples={"plant": 0})


def test_an_unknown_domain_is_named(release_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"names 'fungi'.* general, plant"):
        strata_of(_pool(release_folder), None, {"fungi": 1.0, "plant": 1.0})


def test_an_unknown_split_is_named(release_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no split 'test'.*train, heldout"):
        _pool(release_folder, "test")


@pytest.fixture
def broken_release(writer: ModuleType, tmp_path: Path) -> Path:
    """40 samples: number 7 is half a JPEG, number 21 no picture at all."""
    samples = writer.drawn_samples(40, 0)
    samples[7].jpg = samples[7].jpg[: len(samples[7].jpg) // 2]
    samples[21].jpg = b"<html>sign in</html>"
    return writer.write_release(tmp_path / "broken", samples)


def test_a_broken_sample_is_named_and_replaced(broken_release: Path) -> None:
    pool = _pool(broken_release)
    batches = _batches(pool, num_workers=1)
    assert all(len(batch.rows) == 10 for batch in batches)
    found = {item.row: item.reason for batch in batches for item in batch.corrupt}
    assert len(found) == 2
    assert any("truncated" in reason for reason in found.values())
    assert any("not_an_image" in reason for reason in found.values())
    used = torch.cat([batch.rows for batch in batches]).tolist()
    assert not set(found) & set(used)
    assert all("toy-" in name for name in pool.names(list(found)))


def test_a_broken_sample_is_replaced_by_one_of_its_domain(writer: ModuleType, tmp_path: Path) -> None:
    """Never by one that the mixture leaves out or a cut has taken away, and by the same one in every process."""
    samples = writer.drawn_samples(40, 0)
    for number in (0, 1, 4, 5, 8, 9):
        samples[number].jpg = b"no picture"
    pool = _pool(writer.write_release(tmp_path / "broken", samples))
    domains = pool.table["domain"].to_pylist()
    changes: dict[str, Any] = {"mixture": {"plant": 1.0}, "pool_samples": {"plant": 15}}
    batches = _batches(pool, **changes)
    assert sum(len(batch.corrupt) for batch in batches) > 0
    used = torch.cat([batch.rows for batch in batches]).tolist()
    assert {domains[row] for row in used} == {"plant"}
    assert set(used) <= set(cut_pools(pool, {"plant": 15}).tolist())
    assert used == torch.cat([batch.rows for batch in _batches(pool, num_workers=2, **changes)]).tolist()
    mixed = torch.cat([batch.rows for batch in _batches(pool, mixture={"plant": 1, "general": 1}, epoch_samples=120)])
    assert [domains[row] for row in mixed.tolist()].count("plant") == 60


def test_a_release_of_broken_samples_stops(writer: ModuleType, tmp_path: Path) -> None:
    samples = writer.drawn_samples(10, 0)
    for sample in samples:
        sample.jpg = b"nothing"
    pool = _pool(writer.write_release(tmp_path / "all", samples))
    with pytest.raises(RunError, match="100 samples in a row are broken"):
        _batches(pool, num_workers=1)


def test_a_shard_cut_short_is_an_integrity_error(release_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(release_folder / "releases" / "toy-0001", copy)
    pool = _pool(copy)
    shard = copy / "shards" / "toy-000002.tar"
    shard.write_bytes(shard.read_bytes()[:1500])
    with pytest.raises(IntegrityError, match=r"toy-000002.*ends before the sample"):
        _batches(pool, num_workers=1)
    with pytest.raises(IntegrityError, match=r"toy-000002\.tar has 1,500 bytes"):
        Release.open(str(copy))


@pytest.fixture
def remote_release(release_folder: Path) -> Iterator[str]:
    """A copy of the release in fsspec's memory."""
    import fsspec

    memory = fsspec.filesystem("memory")
    source = release_folder / "releases" / "toy-0001"
    for path in source.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/loader-test/{path.relative_to(source)}", path.read_bytes())
    yield "memory://loader-test"
    memory.rm("/loader-test", recursive=True)


def test_shards_are_read_through_fsspec(release_folder: Path, remote_release: str) -> None:
    remote = open_pool([Release.open(remote_release)], "train")
    local = _pool(release_folder)
    for with_texts in (False, True):
        there, here = (ShardReader(pool).read(range(107), with_texts) for pool in (remote, local))
        assert there == here


@pytest.mark.parametrize("local_first", [True, False])
def test_local_and_remote_releases_are_read_together(
    release_folder: Path, remote_release: str, local_first: bool
) -> None:
    here, there = Release.open(str(release_folder)), Release.open(remote_release)
    both = open_pool([here, there] if local_first else [there, here], "train")
    rows = random.Random(0).sample(range(214), 60)
    alone = ShardReader(_pool(release_folder)).read([row % 107 for row in rows], with_texts=True)
    assert ShardReader(both).read(rows, with_texts=True) == alone


def test_storage_that_fails_is_an_error_of_ours(remote_release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    pool = open_pool([Release.open(remote_release)], "train")
    with monkeypatch.context() as patch:
        patch.setattr(memory, "cat_file", lambda *_, **__: (_ for _ in ()).throw(TimeoutError("no answer")))
        with pytest.raises(RunError, match=r"loader-test/shards/toy-0.*TimeoutError: no answer"):
            ShardReader(pool).read([0], with_texts=False)
    memory.rm("/loader-test/shards/toy-000000.tar")
    with pytest.raises(IntegrityError, match=r"toy-000000\.tar: the shard is not there any more"):
        ShardReader(pool).read([0], with_texts=False)


def test_a_text_that_was_changed_in_a_shard_is_found(release_folder: Path, tmp_path: Path) -> None:
    """As it was found: the caption in a shard was edited, and training learnt it without a word."""
    folder = Path(shutil.copytree(release_folder, tmp_path / "copy"))
    release = Release.open(str(folder))
    loader.check_shards([release], "train")
    shard = Path(release.shard_path("train", release.shards("train")[1]))
    pool = open_pool([release], "train")
    row = next(row for row in range(len(pool)) if pool.files[pool.shards[row]].path == str(shard))
    flip_byte(shard, int(pool.offsets["txt_offset"][row]))
    with pytest.raises(IntegrityError, match=rf"{shard.name} has other content than when the release was sealed"):
        loader.check_shards([Release.open(str(folder))], "train")


def test_a_member_of_a_negative_size_ends_the_search() -> None:
    """It went round for ever."""
    header = bytearray(tarfile.TarInfo("k.a.txt").tobuf(tarfile.GNU_FORMAT))
    for size in (b"\xff" * 10 + b"\xfc\x00", b"\xff" * 12, b"junk".ljust(12, b"\0"), b"\x80" + b"\xff" * 11):
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        assert set(text_members(bytes(header) * 3, "k")) <= {"a"}
