"""What training reads: a pure function of (seed, step, slot), the same for any number of processes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modality_forcing.config import AugmentConfig, DataConfig, SensorConfig, SourceConfig
from modality_forcing.errors import TrainingError, UserError
from modality_forcing.training import data as module
from modality_forcing.training import mixture
from modality_forcing.training.data import Batch, Loader
from shard_folders import toy_sample, write_samples

COUNT, SIZE, BATCH = 12, 32, 4
PLAIN = AugmentConfig(mirror=0.0)


def config(folder: Path, depth: str = "sensors", **more) -> DataConfig:
    return DataConfig(sources=(SourceConfig(path=str(folder), depth=depth),), **more)


def loader(data: DataConfig, **changes) -> Loader:
    return Loader(data, **({"batch": BATCH, "seed": 3, "size": SIZE, "stage": "forcing"} | changes))


def index_of(id: str) -> int:
    return int(id.rpartition(":")[2])


def one(batches: list[Batch]) -> Batch:
    (batch,) = batches
    return batch


def same(a: Batch, b: Batch) -> bool:
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("images", "depth", "measured"))
    return tensors and (a.captions, a.ids, a.slots, a.keys) == (b.captions, b.ids, b.slots, b.keys)


def joined(batches: list[Batch]) -> Batch:
    """Micro-batches (of any rank) as one."""
    return Batch(
        **{name: torch.cat([getattr(b, name) for b in batches]) for name in ("images", "depth", "measured")},
        **{
            name: [item for b in batches for item in getattr(b, name)]
            for name in ("captions", "ids", "slots", "keys")
        },
        size=batches[0].size,
    )


FULL = AugmentConfig(mirror=0.5, crop=0.5, colour=0.5, degrade=0.5)


def test_a_step_is_a_pure_function_of_seed_and_step(small_shards):
    data = config(small_shards, augment=FULL)
    first = loader(data)
    steps = [one(first.load(step)) for step in range(5)]
    again = loader(data)
    assert all(same(one(again.load(step)), steps[step]) for step in (4, 0, 2))
    assert not same(one(loader(data, seed=4).load(0)), steps[0])
    walk = again.steps(2)
    assert all(same(one(next(walk)), steps[step]) for step in (2, 3, 4))


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (1, 8), (2, 1), (2, 2), (4, 2)])
def test_any_number_of_processes_and_micro_batches_sees_the_same(small_shards, world, accumulate):
    data = config(small_shards, augment=FULL)
    whole = loader(data, batch=8)
    for step in range(3):
        parts = []
        for rank in range(world):
            share = loader(data, batch=8, rank=rank, world=world, accumulate=accumulate).load(step)
            assert len(share) == accumulate
            parts += share
        assert same(joined(parts), one(whole.load(step)))
        assert joined(parts).slots == list(range(8))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_readers_ahead_give_what_the_process_itself_would(small_shards, context, monkeypatch):
    """Spawned readers get everything by pickling; forked ones share the parent's memory."""
    import torch.multiprocessing

    before = torch.multiprocessing.get_start_method()
    data = config(small_shards, augment=FULL, workers=1 if context == "spawn" else 2)
    read = loader(data)
    read.load(0)  # files are open when the readers start
    state = torch.random.get_rng_state()
    torch.multiprocessing.set_start_method(context, force=True)
    try:
        walk = read.steps(3)
        ahead = [one(next(walk)) for _ in range(5)]
        walk.close()
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    here = loader(replace(data, workers=0))
    assert all(same(batch, one(here.load(3 + i))) for i, batch in enumerate(ahead))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_signals_to_the_group_leave_the_readers_alone(small_shards):
    """Ctrl-C and a scheduler's SIGTERM reach every process; training still wants to finish its step."""
    import multiprocessing

    walk = loader(config(small_shards, workers=2)).steps(0)
    next(walk)
    readers = multiprocessing.active_children()
    assert len(readers) == 2
    for reader in readers:
        os.kill(reader.pid, signal.SIGINT)
        os.kill(reader.pid, signal.SIGTERM)
    assert [one(next(walk)).slots for _ in range(8)] == [[0, 1, 2, 3]] * 8
    walk.close()
    for reader in readers:
        reader.join(5)
        assert reader.exitcode == 0


PROGRAM = """
import sys
from modality_forcing.config import DataConfig, SourceConfig
from modality_forcing.training.data import Loader
if __name__ == "__main__":
    data = DataConfig(sources=(SourceConfig(sys.argv[1]),), workers=2)
    walk = Loader(data, batch=4, seed=0, size=32, stage="forcing").steps()
    next(walk)
    raise SystemExit(3)
"""


def test_readers_do_not_keep_a_program_from_ending(small_shards):
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(small_shards)], timeout=120, check=False)
    assert done.returncode == 3


def test_every_pass_visits_every_sample_once_in_a_new_order(small_shards):
    read = loader(config(small_shards), batch=5)  # passes end within steps
    ids = [index_of(id) for step in range(12) for id in one(read.load(step)).ids]
    passes = [ids[i : i + COUNT] for i in range(0, 60, COUNT)]
    assert all(sorted(order) == list(range(COUNT)) for order in passes)
    assert len({tuple(order) for order in passes}) == 5


def test_what_a_batch_holds(small_shards):
    batch = one(loader(config(small_shards, depth="measured", augment=PLAIN)).load(0))
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
    assert batch.images.dtype == batch.depth.dtype == torch.float32
    assert (batch.slots, batch.size, len(batch)) == ([0, 1, 2, 3], (SIZE, SIZE), BATCH)
    for item, id in enumerate(batch.ids):
        index = index_of(id)
        assert id == f"{small_shards}:{index:06d}"
        expected = toy_sample(index)
        pixels = (batch.images[item].permute(1, 2, 0) + 1) * 127.5
        torch.testing.assert_close(pixels, torch.from_numpy(expected.rgb).float(), atol=1e-3, rtol=0)
        np.testing.assert_allclose(batch.depth[item].numpy(), expected.depth, rtol=1e-4)
        assert batch.captions[item] in expected.captions
    assert batch.measured.all()  # sky included
    assert len(set(batch.keys)) == BATCH


def test_images_depth_captions_and_keys_are_mirrored_together(small_shards):
    read = loader(config(small_shards, depth="measured"))
    seen, keys, both = set(), {}, 0
    for step in range(12):
        batch = one(read.load(step))
        both += len(set(batch.images[:, 2, 0, 0].tolist())) == 2
        for item, caption in enumerate(batch.captions):
            image, depth = batch.images[item], batch.depth[item]
            mirrored = bool((image[2, :, -1] == 1.0).all())
            assert mirrored != bool((image[2, :, 0] == 1.0).all())
            assert bool((depth[-1].diff() < 0).all()) == mirrored
            assert keys.setdefault((batch.ids[item], mirrored), batch.keys[item]) == batch.keys[item]
            if "bar" in caption:
                side = "right" if mirrored else "left"
                assert f"bar on the {side}" in caption
                seen.add(side)
    assert seen == {"left", "right"}
    assert both > 4  # each sample has its own chance
    assert len(set(keys.values())) == len(keys) > COUNT


def test_an_image_changed_at_random_has_no_key(small_shards):
    read = loader(config(small_shards, augment=AugmentConfig(mirror=0.5, degrade=0.5)), batch=12)
    batches = [one(read.load(step)) for step in range(4)]
    keys = [key for batch in batches for key in batch.keys]
    assert 0.2 < np.mean([key is None for key in keys]) < 0.8
    exact = loader(config(small_shards), batch=12)
    clean = {}
    for step in range(12):
        batch = one(exact.load(step))
        clean |= dict(zip(batch.keys, batch.images, strict=True))
    for batch in batches:
        for key, image in zip(batch.keys, batch.images, strict=True):
            if key is not None:
                assert torch.equal(image, clean[key])


SENSORS = (SensorConfig("random", low=0.05, high=0.05), SensorConfig("lidar", low=0.1, high=0.1))


def test_sensors_measure_a_part_and_some_sky(small_shards):
    read = loader(config(small_shards, sensors=SENSORS))
    shares, sky = [], 0
    for step in range(6):
        batch = one(read.load(step))
        finite = torch.isfinite(batch.depth) & batch.measured
        shares += finite.float().mean((1, 2)).tolist()
        sky += int((batch.measured & torch.isposinf(batch.depth)).sum())
        assert (batch.depth[batch.measured] > 0).all()
    assert {round(share, 2) for share in shares} == {0.05, 0.1}  # the sensor is drawn per sample
    assert sky > 0


def test_depth_of_unknown_scale_is_measured_in_its_own_unit(tmp_path):
    """Structured light sees 0.4 m to 8 m; a map of thousandths must not look empty to it."""
    samples = [replace(s, depth=s.depth / 1000) for s in map(toy_sample, range(4))]
    sensors = (SensorConfig("tof", low=0.2, high=0.2),)
    relative = write_samples(tmp_path / "relative", samples, unit="relative")
    batch = one(loader(config(relative, sensors=sensors)).load(0))
    measured = batch.depth[batch.measured & torch.isfinite(batch.depth)]
    assert len(measured) > 50
    assert 0.001 < measured.min() < measured.max() < 0.02
    metres = write_samples(tmp_path / "metres", samples, unit="m")
    batch = one(loader(config(metres, sensors=sensors)).load(0))
    assert not torch.isfinite(batch.depth[batch.measured]).any()


def test_images_only(small_shards, monkeypatch):
    """Sources without depth, and stages that need none, never decode it."""
    from modality_forcing.data.shards import ShardSet

    asked = []
    read = ShardSet.read

    def spy(self, index, fields):
        asked.append(set(fields))
        return read(self, index, fields)

    monkeypatch.setattr(ShardSet, "read", spy)
    folder = str(small_shards)
    data = DataConfig(sources=(SourceConfig(folder, depth="none"), SourceConfig(folder)))
    batch = one(loader(data, batch=16).load(0))
    with_depth = batch.measured.flatten(1).any(1)
    assert 0 < with_depth.sum() < 16
    assert not batch.depth[~with_depth].any()
    assert Counter(map(frozenset, asked))[frozenset({"rgb"})] == int((~with_depth).sum())
    for stage in ("autoencoder", "t2i"):
        asked.clear()
        batch = one(loader(config(small_shards), stage=stage).load(0))
        assert not batch.measured.any() and not batch.depth.any()
        assert asked == [{"rgb"}] * BATCH


def test_sources_have_their_shares_and_their_own_passes(small_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(mixture, "CYCLE", 1000)
    other = write_samples(tmp_path / "other", [toy_sample(i) for i in range(5)])
    data = DataConfig(sources=(SourceConfig(str(small_shards), 3.0), SourceConfig(str(other), 1.0)))
    mix = loader(data, batch=100)._steps.mixture
    places = [mix.place(step, slot) for step in range(20) for slot in range(100)]
    counts = Counter(place.source for place in places)
    assert counts == {0: 1500, 1: 500}  # exact over each cycle of draws
    for source, size in ((0, COUNT), (1, 5)):
        order = [place.sample for place in places if place.source == source]
        full = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        assert all(sorted(one_pass) == list(range(size)) for one_pass in full)
    hundreds = [Counter(p.source for p in places[i : i + 100])[0] for i in range(0, 2000, 100)]
    assert min(hundreds) > 55 and max(hundreds) < 95  # and near it all along


SHAPES = [(64, 32), (32, 64), (48, 48), (80, 40), (33, 30)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Twenty samples of five shapes: eight wide, four high, eight about square."""
    samples = [toy_sample(i, *SHAPES[i % 5]) for i in range(20)]
    return write_samples(tmp_path_factory.mktemp("mixed"), samples)


BUCKETS = ("64x32", "32x64", "32x32")


def test_a_step_has_one_bucket_and_samples_go_to_the_nearest(mixed):
    read = loader(config(mixed, depth="measured", buckets=BUCKETS))
    assert read.describe()["buckets"] == {"64x32": 8, "32x64": 4, "32x32": 8}
    fits = {(64, 32): {0, 3}, (32, 64): {1}, (32, 32): {2, 4}}
    counts: Counter = Counter()
    for step in range(60):
        batch = one(read.load(step))
        height, width = batch.size
        counts[width, height] += 1
        assert batch.images.shape == (BATCH, 3, height, width)
        assert batch.depth.shape == batch.measured.shape == (BATCH, height, width)
        assert {index_of(id) % 5 for id in batch.ids} <= fits[width, height]
        assert all(f":{width}x{height}:" in key for key in batch.keys)
    assert min(counts.values()) >= 5  # 24, 12 and 24 are expected


def test_buckets_keep_the_shares_of_the_sources(mixed, small_shards, monkeypatch):
    monkeypatch.setattr(mixture, "CYCLE", 1000)
    sources = (SourceConfig(str(mixed), 1.0), SourceConfig(str(small_shards), 1.0))
    mix = loader(DataConfig(sources=sources, buckets=BUCKETS))._steps.mixture
    places = [mix.place(step, slot) for step in range(1000) for slot in range(BATCH)]
    counts = Counter((place.source, place.bucket) for place in places)
    # Half of all from each source; of the mixed one 40 % wide, 20 % high, 40 % square.
    expected = {(0, 0): 0.2, (0, 1): 0.1, (0, 2): 0.2, (1, 2): 0.5}
    assert {key: count / 4000 for key, count in counts.items()} == pytest.approx(expected, abs=5e-3)
    for (source, bucket), size in {(0, 0): 8, (0, 1): 4, (0, 2): 8, (1, 2): 12}.items():
        order = [place.sample for place in places if (place.source, place.bucket) == (source, bucket)]
        full = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        assert all(len(set(one_pass)) == size for one_pass in full)


def test_every_process_has_the_same_bucket(mixed):
    data = config(mixed, buckets=BUCKETS)
    ranks = [loader(data, rank=rank, world=4) for rank in range(4)]
    for step in range(10):
        assert len({one(rank.load(step)).size for rank in ranks}) == 1


def damage(folder: Path, target: Path, *keys: int, member: str = "rgb.png") -> Path:
    """A copy of a folder of shards with the pixels of some samples overwritten."""
    from modality_forcing.data.shards.index import load_index

    shutil.copytree(folder, target)
    for tar in sorted(target.glob("*.tar")):
        index = load_index(target, tar.name, tar.stat().st_size)
        content = bytearray(tar.read_bytes())
        for row, key in enumerate(index.keys):
            if int(key) in keys:
                offset, size, _ = index.places[row, index.endings.index(member)]
                content[offset + size // 2 : offset + size // 2 + 8] = b"\xff" * 8
        tar.write_bytes(content)
    return target


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_are_replaced_counted_and_listed(small_shards, tmp_path, workers):
    folder = damage(small_shards, tmp_path / "bad", 2, 7)
    data = config(folder, workers=workers)
    read = loader(data)
    told: list[module.Bad] = []
    read.listen(told.append)
    walk = read.steps(0)
    batches = [one(next(walk)) for _ in range(6)]
    walk.close()
    assert told == read.bad
    assert {bad.id for bad in read.bad} == {f"{folder}:000002", f"{folder}:000007"}
    assert all("rgb.png" in bad.reason for bad in read.bad)
    assert read.describe()["bad"] == 2
    assert not {2, 7} & {index_of(id) for batch in batches for id in batch.ids}
    clean = loader(config(small_shards))
    for step, batch in enumerate(batches):  # what could be read stands where it would have stood
        for mine, id in zip(batch.ids, one(clean.load(step)).ids, strict=True):
            assert index_of(id) in (2, 7) or index_of(mine) == index_of(id)
    halves = [loader(replace(data, workers=0), rank=rank, world=2) for rank in range(2)]
    parts = [one(half.load(1)) for half in halves]
    assert same(joined(parts), batches[1])


def test_a_run_lists_its_bad_samples(small_shards, tmp_path):
    from modality_forcing.config import TrainConfig
    from modality_forcing.presets import TINY
    from modality_forcing.training.trainer import Trainer

    folder = damage(small_shards, tmp_path / "bad", 2, 7)
    settings = TrainConfig(
        stage="autoencoder", steps=3, batch=4, image_size=SIZE, threads=1, model=TINY, data=config(folder)
    )
    said: list[str] = []
    Trainer(settings, tmp_path / "run").run(notice=said.append)
    assert sorted(line.split(" ")[1] for line in said) == [f"{folder}:000002", f"{folder}:000007"]
    lines = (tmp_path / "run" / "bad_samples.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in lines) == [f"{folder}:000002", f"{folder}:000007"]


def test_bad_depth_does_not_matter_where_none_is_needed(small_shards, tmp_path):
    folder = damage(small_shards, tmp_path / "bad", *range(12), member="depth.png")
    read = loader(config(folder), stage="t2i")
    assert len(one(read.load(0))) == BATCH
    assert read.bad == []


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_the_list(small_shards, tmp_path, workers):
    folder = damage(small_shards, tmp_path / "bad", 1, 4, 9)
    walk = loader(config(folder, max_bad=2, workers=workers)).steps(0)
    with pytest.raises(TrainingError, match="3 samples cannot be read") as error:
        [next(walk) for _ in range(6)]
    for key in ("000001", "000004", "000009"):
        assert f"{folder}:{key}: rgb.png" in str(error.value)


@pytest.mark.parametrize("max_bad", [3, 100])
def test_a_source_without_a_readable_sample_does_not_hang(small_shards, tmp_path, max_bad, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 40)
    folder = damage(small_shards, tmp_path / "bad", *range(12))
    with pytest.raises(TrainingError, match=r"no readable sample|cannot be read"):
        loader(config(folder, max_bad=max_bad)).load(0)


def test_a_cut_shard_gives_what_is_whole_and_lists_the_rest(small_shards, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(small_shards, folder)
    tar = sorted(folder.glob("*.tar"))[1]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    read = loader(config(folder))
    lost = {index_of(bad.id) for bad in read.bad}
    assert lost and lost < set(range(6, 12))
    told: list[module.Bad] = []
    read.listen(told.append)
    assert told == read.bad
    seen = {index_of(id) for step in range(6) for id in one(read.load(step)).ids}
    assert seen == set(range(12)) - lost
    with pytest.raises(UserError, match=r"are lost, more than data\.max_bad=1"):
        loader(config(folder, max_bad=1))


def test_a_loader_can_be_sent_to_another_process(small_shards):
    read = loader(config(small_shards))
    assert same(one(pickle.loads(pickle.dumps(read)).load(1)), one(read.load(1)))


def empty_folder(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "empty", [])


def lacking_folder(tmp_path: Path) -> Path:
    folder = write_samples(tmp_path / "lacking", [toy_sample(i) for i in range(12)])
    (folder / "toy-000001.tar").unlink()
    return folder


def wrong_folder(tmp_path: Path) -> Path:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "manifest.json").write_text('{"format": "photographs"}')
    return tmp_path / "wrong"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda tmp: tmp / "nowhere", "nowhere is no folder of shards"),
        (empty_folder, "holds no sample"),
        (lacking_folder, "lacks 1 of its 2 shards, toy-000001.tar first"),
        (wrong_folder, "no manifest of shards"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_at_once(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        loader(config(make(tmp_path)))


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        ({}, {"batch": 6, "world": 4}, "batch=6 is no multiple of 4 processes x 1"),
        ({}, {"batch": 6, "world": 2, "accumulate": 2}, "no multiple of 2 processes x 2"),
        ({}, {"size": 40}, "image_size 40 does not fit the model; .* multiple of 16"),
        ({}, {"seed": -1}, "seed is -1"),
        ({}, {"stage": "sleep"}, "stage is 'sleep'"),
        ({"buckets": ("64x40",)}, {}, "'64x40' does not fit the model"),
        ({"buckets": ("0x32",)}, {}, "'0x32' does not fit the model"),
        ({"buckets": ("large",)}, {}, "right is WIDTHxHEIGHT"),
        ({"buckets": ("32x32", "32 x 32")}, {}, "twice"),
        ({"buckets": ("32x32", "128x16")}, {}, "bucket 128x16"),
        ({"sensors": (SensorConfig("sonar"),)}, {}, "unknown sensor 'sonar'"),
        ({"depth": "none"}, {}, "at least one with depth"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(small_shards, data, changes, message):
    with pytest.raises(UserError, match=message):
        loader(config(small_shards, **data), **changes)


def test_no_source_is_refused():
    with pytest.raises(UserError, match="give data=FOLDER"):
        loader(DataConfig())


def test_other_sizes_are_resized_to_squares(mixed):
    batch = one(loader(config(mixed)).load(0))
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
