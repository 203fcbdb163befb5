"""Sensors: where they report, how densely, and with which error; every rule on a scene whose answer is
known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.config.training import SensorConfig
from modality_forcing.data.sensors import KINDS, SensorMix, mean_density, measure
from modality_forcing.errors import UserError
from modality_forcing.types import Camera, Sample

SIZE = 64


def scene(seed: int) -> Sample:
    """A floor, a textured wall, two boxes in front of it and sky above; sizes and distances from the seed."""
    rng = np.random.default_rng([7, seed])
    camera = Camera.from_fov(SIZE, SIZE, fov_x=rng.uniform(50, 90))
    v = np.arange(SIZE)[:, None] + 0.5 - camera.cy
    wall = rng.uniform(3, 30)
    floor = np.where(v > 0, camera.fy * rng.uniform(1.0, 2.0) / np.maximum(v, 1e-6), np.inf)
    depth = np.broadcast_to(np.minimum(floor, wall), (SIZE, SIZE)).astype(np.float32)
    depth[: int(rng.integers(0, SIZE // 3))] = np.inf
    for _ in range(2):
        top, left = rng.integers(SIZE // 3, SIZE - 20), rng.integers(0, SIZE - 20)
        depth[top : top + 14, left : left + 18] = rng.uniform(0.8, 0.9 * wall)
    rgb = rng.integers(40, 230, (SIZE, SIZE, 3)).astype(np.uint8)
    return Sample(rgb, depth, camera)


def wall(z: float, size: int = 160, grey: int = 128) -> Sample:
    """A frontal plane at one distance with fine texture around one grey."""
    noise = np.random.default_rng(3).integers(-25, 26, (size, size, 1))
    rgb = np.broadcast_to(grey + noise, (size, size, 3)).astype(np.uint8)
    return Sample(rgb, np.full((size, size), z, np.float32), Camera.from_fov(size, size, fov_x=60))


def look(
    sample: Sample, sensor: SensorConfig, seed: int = 0, **options: bool
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return measure(sample.depth, sample.rgb, sample.camera, sensor, rng, normals=sample.normals, **options)


def exactly(kind: str, share: float, noise: float = 0.0, reach: float = 0.0) -> SensorConfig:
    return SensorConfig(kind, 1.0, share, share, noise, reach)


@pytest.mark.parametrize("kind", KINDS)
def test_what_every_sensor_promises(kind: str) -> None:
    sample = replace(scene(1), depth=np.where(np.arange(SIZE) < 4, 0, scene(1).depth).astype(np.float32))
    before = (sample.depth.copy(), sample.rgb.copy())
    measured, mask = look(sample, SensorConfig(kind, low=0.05, high=0.5))
    assert measured.dtype == np.float32 and mask.dtype == bool
    assert measured.shape == mask.shape == sample.depth.shape
    assert mask.any()
    assert not (mask & ~sample.valid).any(), "sky or the unknown was measured"
    np.testing.assert_array_equal(
        measured, np.where(mask, sample.depth, 0), err_msg="not exact without noise"
    )
    for noise in (0.0, 1.0):
        sensor = SensorConfig(kind, low=0.05, high=0.5, noise=noise)
        first, again, other = look(sample, sensor, 4), look(sample, sensor, 4), look(sample, sensor, 5)
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert (first[1] != other[1]).any()
        assert np.isfinite(first[0]).all() and (first[0][first[1]] > 0).all()
    np.testing.assert_array_equal(sample.depth, before[0])
    np.testing.assert_array_equal(sample.rgb, before[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("low", "high"), [(0.002, 0.05), (0.01, 0.01), (0.1, 0.3), (0.5, 0.95)])
def test_density_is_what_was_asked_for_or_all_there_is(kind: str, low: float, high: float) -> None:
    pixel = 1.0 / SIZE**2
    reached = 0
    for seed in range(15):
        sample = scene(seed)
        share = look(sample, SensorConfig(kind, low=low, high=high), seed)[1].mean()
        most = look(sample, exactly(kind, 1.0), seed)[1].mean()
        assert min(low, most) - pixel <= share <= high + pixel
        assert share <= most
        reached += share >= low - pixel
    assert reached >= (13 if high < 0.1 and kind not in ("tof", "structured_light") else 1)


@pytest.mark.parametrize("kind", ["random", "dense", "lidar", "keypoints", "tof", "stereo"])
def test_densities_from_a_fifth_of_a_percent_to_most(kind: str) -> None:
    """On a near wall without sky nothing stands in the way."""
    sample = wall(3.0)
    for share in (0.002, 0.02, 0.2, 0.6):
        got = look(sample, exactly(kind, share))[1].mean()
        allowed = look(sample, exactly(kind, 1.0))[1].mean()
        assert got == pytest.approx(min(share, allowed), abs=1 / 160**2)
    if kind in ("random", "dense", "tof"):
        assert look(sample, exactly(kind, 0.95))[1].mean() == pytest.approx(0.95, abs=1 / 160**2)


def test_density_is_drawn_log_uniformly() -> None:
    sample = wall(3.0)
    shares = [look(sample, SensorConfig("random", low=0.002, high=0.2), i)[1].mean() for i in range(300)]
    histogram, _ = np.histogram(np.log(shares), bins=4, range=(math.log(0.00199), math.log(0.201)))
    assert histogram.sum() == 300
    assert histogram.min() > 50 and histogram.max() < 100


def test_random_has_no_favourite_place() -> None:
    hits = sum(look(wall(3.0, 32), exactly("random", 0.1), i)[1].astype(int) for i in range(300))
    assert hits.min() > 5 and hits.max() < 65  # mean 30, standard deviation 5.2


def test_keypoints_are_on_corners_and_never_on_plain_surfaces() -> None:
    sample = wall(3.0, 64)
    rgb = np.full((64, 64, 3), 90, np.uint8)
    rgb[20:44, 20:44] = 200
    mask = look(replace(sample, rgb=rgb), exactly("keypoints", 4 / 64**2))[1]
    corners = np.array([(20, 20), (20, 43), (43, 20), (43, 43)])
    rows, columns = np.nonzero(mask)
    for row, column in zip(rows, columns, strict=True):
        assert np.abs(corners - (row, column)).max(1).min() <= 2
    assert len(rows) == 4
    everything = look(replace(sample, rgb=rgb), exactly("keypoints", 1.0))[1]
    assert not everything[:16].any() and not everything[26:38, 26:38].any()
    assert not look(replace(sample, rgb=np.full_like(rgb, 90)), exactly("keypoints", 1.0))[1].any()


@pytest.mark.parametrize("kind", ["keypoints", "stereo"])
def test_strong_texture_is_measured_more_often(kind: str) -> None:
    sample = wall(3.0, 96)
    noise = np.random.default_rng(1).integers(-60, 61, (96, 96, 1))
    noise[:48] //= 10
    sample = replace(sample, rgb=np.broadcast_to(128 + noise, (96, 96, 3)).astype(np.uint8))
    masks = [look(sample, exactly(kind, 0.01), seed)[1] for seed in range(9)]
    weak, strong = (sum(int(mask[half].sum()) for mask in masks) for half in (slice(0, 48), slice(48, 96)))
    assert 0 < weak < 0.2 * strong


def test_keypoints_keep_their_distance() -> None:
    """Local maxima come first, and two of them are never neighbours."""
    mask = np.pad(look(wall(3.0, 96), exactly("keypoints", 0.03))[1], 1)
    around = sum(np.roll(mask, (dy, dx), (0, 1)).astype(int) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) - mask
    assert (around[mask] > 0).mean() < 0.1


def test_reach() -> None:
    """Beyond ``max_range`` nothing; without it the kind's own reach."""
    own = {"random": 200, "dense": 200, "keypoints": 200, "lidar": 120, "structured_light": 8, "tof": 6}
    for kind in KINDS:
        end = 200 if own.get(kind, 0) > 100 else 12
        depth = np.repeat(np.linspace(0.1, end, 160, dtype=np.float32)[None], 160, 0)
        towards = np.tile(np.float32([0, 0, -1]), (160, 160, 1))
        sample = replace(wall(3.0, grey=200), depth=depth, normals=towards)
        measured = look(sample, exactly(kind, 1.0, reach=4.0))[0]
        assert 2.0 < measured.max() <= 4.0, kind
        if kind in own:
            farthest = look(sample, exactly(kind, 1.0))[0].max()
            assert 0.8 * own[kind] < farthest <= own[kind], kind


def test_sky_is_reported_only_on_request_and_sparsely() -> None:
    sample = scene(2)
    sample.depth[:30] = np.inf
    sensor = exactly("random", 0.1)
    plain = look(sample, sensor)
    measured, mask = look(sample, sensor, sky=True)
    assert not np.isinf(plain[0]).any()
    known = np.isposinf(measured)
    np.testing.assert_array_equal(known & ~mask, False)
    np.testing.assert_array_equal(mask & ~known, plain[1])
    assert not known[30:].any()
    shares = [np.isinf(look(sample, sensor, i, sky=True)[0])[:30].mean() for i in range(30)]
    assert np.mean(shares) == pytest.approx(0.102, abs=0.01)
    assert look(replace(sample, depth=np.full_like(sample.depth, np.inf)), sensor, sky=True)[1].sum() < 40


def test_a_mix_draws_by_weight() -> None:
    """The number of pixels tells which sensor looked."""
    sample = wall(3.0, 64)
    mix = SensorMix(
        (replace(exactly("random", 0.1), weight=3.0), replace(exactly("dense", 0.5), weight=1.0),
         replace(exactly("random", 0.9), weight=0.0))
    )  # fmt: skip
    rng = np.random.default_rng(0)
    counts = [int(mix.measure(sample.depth, sample.rgb, sample.camera, rng)[1].sum()) for _ in range(400)]
    assert set(counts) == {round(0.1 * 64**2), round(0.5 * 64**2)}
    assert np.mean(np.array(counts) == round(0.1 * 64**2)) == pytest.approx(0.75, abs=0.07)


def test_a_mix_puts_a_sensor_aside_that_sees_nothing_here() -> None:
    far = wall(50.0, 64)
    indoor, outdoor = exactly("structured_light", 0.3), exactly("random", 0.01)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        mask = SensorMix((indoor, outdoor)).measure(far.depth, far.rgb, far.camera, rng)[1]
        assert mask.sum() == round(0.01 * 64**2)
    rng = np.random.default_rng(0)
    assert (
        not SensorMix((indoor, replace(outdoor, weight=0.0)))
        .measure(far.depth, far.rgb, far.camera, rng)[1]
        .any()
    )
    # A scene half in reach: too little for the range, but more than the other one gives.
    half = replace(
        far, depth=np.where(np.arange(64) < 8, 2.0, 50.0).repeat(64).reshape(64, 64).astype(np.float32)
    )
    poor = replace(indoor, weight=2.0), exactly("tof", 0.9)
    assert SensorMix(poor).measure(half.depth, half.rgb, half.camera, rng)[1].any()


def test_mean_density() -> None:
    samples = [wall(3.0, 64), replace(wall(3.0, 64), depth=np.full((64, 64), np.inf, np.float32))]
    mix = SensorMix((exactly("random", 0.2),), sky=True)
    assert mean_density(mix, samples) == pytest.approx(0.1, abs=1e-3)
    assert mean_density(mix, samples[:1], seed=3) == pytest.approx(0.2, abs=1e-3)
    with pytest.raises(UserError, match="without a sample"):
        mean_density(mix, [])


def test_bad_input() -> None:
    sample, rng = scene(0), np.random.default_rng(0)
    with pytest.raises(UserError, match="unknown sensor 'radar'; choose one of random, lidar"):
        look(sample, SensorConfig("radar"))
    with pytest.raises(UserError, match="unknown sensor 'radar'"):
        SensorMix((SensorConfig("radar"),))
    with pytest.raises(UserError, match="do not belong together"):
        measure(sample.depth[1:], sample.rgb, sample.camera, SensorConfig(), rng)
    with pytest.raises(UserError, match="do not belong together"):
        measure(sample.depth, sample.rgb, sample.camera.resized(32, 64), SensorConfig(), rng)
    with pytest.raises(UserError, match="normals have the shape"):
        measure(sample.depth, sample.rgb, sample.camera, SensorConfig(), rng, normals=np.zeros((2, 2, 3)))
    with pytest.raises(UserError, match="empty"):
        SensorMix(())
    with pytest.raises(UserError, match="weight 0"):
        SensorMix((SensorConfig(weight=0.0),))


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_one_pixel_and_of_nothing(kind: str) -> None:
    camera = Camera(1.0, 1.0, 0.5, 0.5, 1, 1)
    rng = np.random.default_rng(0)
    one = measure(np.ones((1, 1)), np.full((1, 1, 3), 128, np.uint8), camera, exactly(kind, 0.5, 1.0), rng)
    assert one[0].shape == (1, 1)
    nothing = np.zeros((20, 30), np.float32)
    rgb = np.random.default_rng(1).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    for empty in (nothing, nothing + np.inf):
        measured, mask = measure(
            empty, rgb, Camera.from_fov(30, 20, fov_x=60), exactly(kind, 0.5, 1.0), rng, sky=False
        )
        assert not mask.any() and not measured.any()
