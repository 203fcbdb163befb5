"""Buckets and mixtures by themselves: which size a sample goes to, exact geometry, shares, passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.training import mixture
from modality_forcing.training.buckets import fit, nearest_bucket, parse_buckets
from modality_forcing.training.mixture import Cycle, Pool
from modality_forcing.types import Camera, Sample
from shard_folders import toy_sample


def test_sizes():
    assert parse_buckets(("512x384", " 384 X 512"), 128, 16) == [(512, 384), (384, 512)]
    assert parse_buckets((), 128, 16) == [(128, 128)]


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((1024, 768), (512, 384)), ((768, 1024), (384, 512)), ((700, 700), (512, 512)),
        ((480, 481), (256, 256)), ((200, 200), (256, 256)), ((4000, 500), (512, 384)),
        ((1000, 870), (512, 512)), ((1000, 862), (512, 384)),
    ],
)  # fmt: skip
def test_the_nearest_aspect_and_then_the_size_that_does_not_enlarge(size, nearest):
    buckets = [(512, 384), (384, 512), (256, 256), (512, 512)]
    assert buckets[nearest_bucket(buckets, *size)] == nearest


def picture_of_places(width: int, height: int) -> Sample:
    """Red grows with x, green with y, both linear; depth is x + y in pixels of this picture."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rgb = np.stack([x / width * 250, y / height * 250, 0 * x], -1)
    camera = Camera(0.9 * width, 0.8 * width, 0.45 * width, 0.6 * height, width, height)
    sample = Sample(np.rint(rgb).astype(np.uint8), (x + y).astype(np.float32), camera)
    sample.object_ids = np.arange(width * height, dtype=np.int32).reshape(height, width)
    sample.normals = np.stack([x, y, 0 * x], -1).astype(np.float32)
    return sample


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (32, 80), (160, 96), (100, 60)])
def test_everything_moves_together(size):
    """What a new pixel shows, its depth and its ray belong to one place of the old picture."""
    old = picture_of_places(100, 60)
    new = fit(old, size)
    width, height = size
    assert new.rgb.shape == (height, width, 3)
    assert (new.camera.width, new.camera.height) == size
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    # Where the ray through the new pixel met the old picture.
    x = (u - new.camera.cx) / new.camera.fx * old.camera.fx + old.camera.cx
    y = (v - new.camera.cy) / new.camera.fy * old.camera.fy + old.camera.cy
    inside = (slice(4, -4), slice(4, -4))  # antialiasing has nothing to look at beyond a border
    np.testing.assert_allclose(new.rgb[inside][..., 0], (x / 100 * 250)[inside], atol=1.6)
    np.testing.assert_allclose(new.rgb[inside][..., 1], (y / 60 * 250)[inside], atol=2.6)
    np.testing.assert_allclose(new.normals[..., 0], x, atol=0.5001)
    np.testing.assert_allclose(new.normals[..., 1], y, atol=0.5001)
    np.testing.assert_allclose(new.depth, new.normals[..., 0] + new.normals[..., 1])
    assert (old.object_ids.ravel()[new.object_ids.ravel()] == new.object_ids.ravel()).all()
    np.testing.assert_allclose(new.object_ids // 100 + 0.5, new.normals[..., 1])
    # As much of the picture as the shape allows, from its middle.
    assert x.min() > 0 and x.max() < 100 and y.min() > 0 and y.max() < 60
    scale = max(width / 100, height / 60)
    assert x[0, 0] - 0.5 / scale + x[0, -1] + 0.5 / scale == pytest.approx(100)
    assert min(100 - width / scale, 60 - height / scale) == pytest.approx(0, abs=1e-9)


def test_sky_and_unknown_stay_what_they_are():
    sample = toy_sample(0, 90, 60)
    sample.depth[:, 50:] = 0
    small = fit(sample, (32, 32))
    known = {float(value) for value in sample.depth.ravel()}
    assert {float(value) for value in small.depth.ravel()} <= known
    assert np.isposinf(small.depth[0, 0]) and (small.depth[:, -1] == 0).all()


def test_a_sample_of_the_right_size_is_left_alone():
    sample = toy_sample(0)
    assert fit(sample, (32, 32)) is sample


def test_sparse_depth_keeps_its_density():
    sample = toy_sample(0, 256, 256)
    known = np.random.default_rng(0).random((256, 256)) < 0.05
    sample = replace(sample, depth=np.where(known, 3.0, 0.0).astype(np.float32))
    assert (fit(sample, (96, 96)).depth > 0).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("shares", [(1,), (3, 1), (0.5, 0.3, 0.2), (1, 1e-9), tuple(range(1, 40))])
def test_a_cycle_has_exact_shares_and_can_be_entered_anywhere(shares):
    cycle = Cycle(shares, (7, 1))
    length = cycle.length
    series = [cycle.at(i) for i in range(2 * length + 100)]
    again = Cycle(shares, (7, 1))
    assert [again.at(i) for i in range(length + 50, length + 90)] == series[length + 50 : length + 90]
    counts = np.zeros(len(shares), int)
    for choice, before in series:
        assert before == counts[choice]
        counts[choice] += 1
    first = np.bincount([choice for choice, _ in series[:length]], minlength=len(shares))
    expected = np.asarray(shares) / np.sum(shares) * mixture.CYCLE
    assert (first >= 1).all()
    assert mixture.CYCLE <= length <= mixture.CYCLE + 1
    assert np.abs(first - expected).max() <= 1
    if len(shares) > 1 and min(shares) > 0.01:
        assert [c for c, _ in series[:length]] != [c for c, _ in series[length : 2 * length]]


def shards(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(i * size, (i + 1) * size) for i in range(count)]


def test_a_pass_over_many_shards_stays_near_a_few_of_them():
    pool = Pool(shards(100, 10), (0, 1))
    passes = [[pool.at(i) for i in range(p * 1000, (p + 1) * 1000)] for p in range(3)]
    for order in passes:
        assert sorted(order) == list(range(1000))
        for first in range(0, 1000, mixture.WINDOW * 10):
            assert len({i // 10 for i in order[first : first + mixture.WINDOW * 10]}) <= mixture.WINDOW
        assert order[:160] != sorted(order[:160])
    assert len({order[0] // 160 for order in passes} | {order[-1] // 160 for order in passes}) > 2
    assert [pool.at(i) for i in (2500, 3, 999)] == [passes[2][500], passes[0][3], passes[0][999]]


def test_few_shards_are_shuffled_as_a_whole():
    pool = Pool(shards(4, 250), (0, 1))
    order = np.array([pool.at(i) for i in range(1000)])
    for part in order.reshape(4, 250):
        assert (np.bincount(part // 250, minlength=4) > 40).all()


def test_shards_without_a_member_do_no_harm():
    pool = Pool([np.arange(0), np.arange(3), np.arange(0), np.arange(3, 5)], (0, 1))
    assert sorted(pool.at(i) for i in range(5)) == list(range(5))
    rng = np.random.default_rng(0)
    drawn = np.bincount([pool.any(rng) for _ in range(2000)], minlength=5)
    assert drawn.min() > 330
