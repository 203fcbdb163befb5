"""What training reads: a pure function of (seed, step, slot), the same for any number of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import BATCH, COUNT, FULL, PLAIN, SIZE, config, index_of, joined, loader, one, same

from modality_forcing.config import AugmentConfig, DataConfig, SensorConfig, SourceConfig
from modality_forcing.training import mixture
from sending import sent
from shard_folders import toy_sample, write_samples


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
    for _ in range(2):
        next(walk)  # one from each reader: both are at work
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


def test_an_image_that_was_written_altered_has_a_key(tmp_path):
    """What was changed before it was written comes again as it is; what is changed here does not."""
    altered = [replace(s, meta={**s.meta, "augment": ["colour"]}) for s in map(toy_sample, range(COUNT))]
    folder = write_samples(tmp_path / "altered", altered)
    assert all(one(loader(config(folder)).load(0)).keys)
    changed = loader(config(folder, augment=AugmentConfig(mirror=0.5, degrade=1.0)))
    assert not any(one(changed.load(0)).keys)


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


def test_a_loader_can_be_sent_to_another_process(small_shards):
    read = loader(config(small_shards))
    assert same(one(sent(read).load(1)), one(read.load(1)))


def test_other_sizes_are_resized_to_squares(mixed):
    batch = one(loader(config(mixed)).load(0))
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
