"""Batches: keyed by seed and step, every sample once per pass, mirrored as a whole, sparse as asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modality_forcing.data.sensors import KINDS
from modality_forcing.errors import UserError
from modality_forcing.training.data import Batch, CacheLoader, mirrored_caption

COUNT, SIZE, BATCH = 12, 32, 4


@pytest.fixture
def loader(small_cache) -> CacheLoader:
    return CacheLoader(str(small_cache), BATCH, seed=3, size=SIZE)


def equal(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.depth, b.depth)
        and torch.equal(a.measured, b.measured)
        and a.captions == b.captions
        and a.indices == b.indices
    )


def test_a_step_is_a_pure_function_of_seed_and_step(small_cache, loader):
    kinds = ("random", "lidar")
    steps = [loader.load(step, kinds) for step in range(5)]
    again = CacheLoader(str(small_cache), BATCH, seed=3, size=SIZE)
    assert all(equal(again.load(step, kinds), steps[step]) for step in (4, 0, 2))
    other = CacheLoader(str(small_cache), BATCH, seed=4, size=SIZE)
    assert not equal(other.load(0, kinds), steps[0])


def test_every_pass_visits_every_sample_once_in_a_new_order(loader):
    per_pass = COUNT // BATCH
    passes = [
        np.concatenate([loader.indices(p * per_pass + i) for i in range(per_pass)]).tolist() for p in range(3)
    ]
    assert all(sorted(order) == list(range(COUNT)) for order in passes)
    assert passes[0] != passes[1] != passes[2]


def test_an_incomplete_batch_is_left_out(small_cache):
    loader = CacheLoader(str(small_cache), 5, seed=0, size=SIZE)
    seen = np.concatenate([loader.indices(0), loader.indices(1)]).tolist()
    assert len(set(seen)) == 10
    assert len(loader.indices(2)) == 5


def test_what_a_batch_holds(loader):
    batch = loader.load(0)
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
    assert batch.images.dtype == torch.float32
    assert batch.indices == loader.indices(0).tolist()
    for item, index in enumerate(batch.indices):
        red = (batch.images[item, 0] + 1) * 127.5
        torch.testing.assert_close(red, torch.full_like(red, 10.0 * index), atol=1e-3, rtol=0)
        assert batch.captions[item].startswith(f"sample {index}")
        finite = batch.depth[item][torch.isfinite(batch.depth[item])]
        assert finite.min() == pytest.approx(2.0 + index + 0.05 * SIZE / 4, abs=1e-4)
    assert batch.images.min() >= -1.0
    assert batch.images.max() == 1.0  # the bar is 255


def test_images_depth_and_captions_are_mirrored_together(loader):
    seen = set()
    for step in range(12):
        batch = loader.load(step)
        for image, depth, caption in zip(batch.images, batch.depth, batch.captions, strict=True):
            mirrored = bool((image[2, :, -1] == 1.0).all())
            assert mirrored != bool((image[2, :, 0] == 1.0).all())
            falling = bool((depth[-1].diff() < 0).all())
            assert falling == mirrored
            if "bar" in caption:
                side = "right" if mirrored else "left"
                assert f"bar on the {side}" in caption
                seen.add(side)
    assert seen == {"left", "right"}


def test_mirrored_captions():
    assert mirrored_caption("a left lamp, right of it a leftover") == "a right lamp, left of it a leftover"


def test_without_sensors_everything_is_measured_sky_included(loader):
    batch = loader.load(1)
    assert batch.measured.all()
    assert torch.isposinf(batch.depth[:, : SIZE // 4]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sensors_measure_a_part_and_some_sky(loader, kind):
    shares, sky = [], 0
    for step in range(6):
        batch = loader.load(step, (kind,))
        assert batch.measured.dtype == torch.bool
        finite = torch.isfinite(batch.depth)
        shares.append(batch.measured[finite].float().mean().item())
        sky += int(batch.measured[~finite].sum())
    assert 0 < np.mean(shares) < 1
    assert sky > 0


def test_the_kind_is_drawn_per_sample(loader):
    """Lidar measures whole rows only, random pixels do not."""
    rows = []
    for step in range(6):
        batch = loader.load(step, ("random", "lidar"))
        finite = batch.measured & torch.isfinite(batch.depth)
        rows += finite.any(dim=2).sum(dim=1).tolist()
    assert min(rows) < 8
    assert max(rows) > 12


def test_too_few_samples(small_cache):
    with pytest.raises(UserError, match="12 samples, fewer than one batch of 13"):
        CacheLoader(str(small_cache), 13, seed=0, size=SIZE)


def test_another_size(small_cache):
    with pytest.raises(UserError, match="32x32 images; image_size=64"):
        CacheLoader(str(small_cache), BATCH, seed=0, size=64)


def test_no_cache(tmp_path):
    with pytest.raises(UserError, match="no finished chunk"):
        CacheLoader(str(tmp_path), BATCH, seed=0, size=SIZE)
