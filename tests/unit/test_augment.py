"""Augmentation: geometry stays true, captions stay true, the rest changes as far as it is meant to."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.config.training import AugmentConfig
from modality_forcing.data.augment import (
    augment,
    cropped,
    degraded,
    mirrored,
    mirrored_caption,
    recoloured,
)
from modality_forcing.geometry.camera import project, unproject
from modality_forcing.types import Camera, Sample

W, H = 96, 64
OFF = AugmentConfig(mirror=0.0)


def sample() -> Sample:
    """A slanted plane under sky with two objects; red counts the columns, green the rows."""
    v, u = np.mgrid[:H, :W]
    depth = (4.0 + 0.03 * u - 0.02 * v).astype(np.float32)
    depth[:12] = np.inf
    rgb = np.stack([2 * u, 3 * v, np.full((H, W), 90)], -1).astype(np.uint8)
    ids = np.zeros((H, W), np.int32)
    ids[30:50, 10:30], ids[40:60, 80:95] = 1, 2
    normals = np.tile(np.float32([0.6, 0.0, -0.8]), (H, W, 1))
    things = [
        {"id": 1, "name": "chair", "pixels": 400, "position": [1.0, 2.0, 3.0]},
        {"id": 2, "name": "table", "pixels": 300, "position": [3.0, 2.0, 1.0]},
    ]
    return Sample(
        rgb, depth, Camera(80.0, 82.0, 45.0, 35.0, W, H),
        ("a room", "a room with a chair to the left of a table"), 5, normals, ids,
        {"place": "room", "objects": things},
    )  # fmt: skip


def same(a: Sample, b: Sample) -> bool:
    return (
        np.array_equal(a.rgb, b.rgb)
        and np.array_equal(a.depth, b.depth)
        and np.array_equal(a.normals, b.normals)
        and np.array_equal(a.object_ids, b.object_ids)
        and (a.camera, a.captions) == (b.camera, b.captions)
    )


ALL = AugmentConfig(mirror=0.5, crop=0.5, colour=1.0, degrade=0.5, texture=0.5, light=0.5)


def test_a_pure_function_of_sample_settings_and_generator() -> None:
    seen = set()
    for seed in range(20):
        given = sample()
        first = augment(given, ALL, np.random.default_rng(seed))
        assert same(given, sample()), "the given sample was changed"
        assert same(first, augment(given, ALL, np.random.default_rng(seed)))
        assert first.rgb.shape == (H, W, 3) and first.rgb.dtype == np.uint8
        assert first.depth.shape == (H, W) and first.depth.dtype == np.float32
        assert (first.camera.width, first.camera.height) == (W, H)
        assert first.meta["place"] == "room"
        assert first.rgb.flags.writeable
        seen.add(tuple(first.meta["augment"]))
    assert len(seen) > 5


def test_nothing_asked_for_nothing_done() -> None:
    out = augment(sample(), OFF, np.random.default_rng(0))
    assert same(out, sample()) and out.meta["augment"] == []


def test_probabilities_are_kept_and_noted() -> None:
    config = AugmentConfig(mirror=0.25, crop=0.5, colour=0.0, degrade=0.75, texture=0.1)
    done = [augment(sample(), config, np.random.default_rng(seed)).meta["augment"] for seed in range(300)]
    for name, wanted in (("mirror", 0.25), ("crop", 0.5), ("degrade", 0.75), ("texture", 0.1)):
        assert np.mean([name in one for one in done]) == pytest.approx(wanted, abs=0.08)
    twice = augment(augment(sample(), ALL, np.random.default_rng(1)), ALL, np.random.default_rng(2))
    assert twice.meta["augment"].count("colour") == 2


def test_mirrored_points_are_the_mirrored_points() -> None:
    given, out = sample(), mirrored(sample())
    points, turned = unproject(given.depth, given.camera), unproject(out.depth, out.camera)
    solid = given.valid[:, ::-1]
    np.testing.assert_allclose(turned[solid], (points * [-1, 1, 1])[:, ::-1][solid], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out.rgb, given.rgb[:, ::-1])
    assert out.object_ids is not None and given.object_ids is not None
    np.testing.assert_array_equal(out.object_ids, given.object_ids[:, ::-1])
    assert out.normals is not None
    np.testing.assert_allclose(out.normals, np.tile(np.float32([-0.6, 0, -0.8]), (H, W, 1)))
    assert out.captions == ("a room", "a room with a chair to the right of a table")
    assert all("position" not in thing for thing in out.meta["objects"])
    assert same(mirrored(out), given)
    bare = replace(given, normals=None, object_ids=None, meta={})
    assert mirrored(bare).normals is None


def test_words_of_the_mirrored_caption() -> None:
    assert mirrored_caption("a left lamp, right of it a leftover, bright") == (
        "a right lamp, left of it a leftover, bright"
    )
    assert mirrored_caption("Left-hand rightmost LEFT. upright") == "Right-hand leftmost RIGHT. upright"


@pytest.mark.parametrize("window", [(0, 0, W, H), (10, 8, 48, 32), (40, 20, 51, 34)])
def test_a_crop_is_another_picture_by_the_same_camera(window: tuple[int, int, int, int]) -> None:
    """Points of the scene fall where the resized window shows them; depth is that of the nearest pixel."""
    given = sample()
    x, y, width, height = window
    out = cropped(given, *window)
    points = unproject(given.depth, given.camera)[y + 1 : y + height, x : x + width]
    known = given.valid[y + 1 : y + height, x : x + width]
    u, v = project(points[known], out.camera)[..., :2].T
    rows, columns = np.nonzero(known)
    np.testing.assert_allclose(u, (columns + 0.5) * W / width, rtol=1e-4)
    np.testing.assert_allclose(v, (rows + 1.5) * H / height, rtol=1e-4)
    # The plane as the new camera sees it, within half an old pixel.
    xs, ys = np.meshgrid(
        (np.arange(W) + 0.5) * width / W + x - 0.5, (np.arange(H) + 0.5) * height / H + y - 0.5
    )
    plane = 4.0 + 0.03 * xs - 0.02 * ys
    solid = out.valid
    assert np.abs(out.depth - plane)[solid].max() <= 0.5 * (0.03 + 0.02) + 1e-4
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(out.rgb[..., 0].astype(float) - 2 * xs)[inner].max() <= 1.5
    assert np.abs(out.rgb[..., 1].astype(float) - 3 * ys)[inner].max() <= 1.5
    assert out.object_ids is not None
    counts = np.bincount(out.object_ids.ravel(), minlength=3)
    assert {t["id"]: t["pixels"] for t in out.meta["objects"]} == {i: counts[i] for i in (1, 2) if counts[i]}
    assert out.captions == ("a room",)
    assert out.normals is not None and out.normals.shape == (H, W, 3)


def test_crops_keep_half_of_each_side_and_the_aspect() -> None:
    config = replace(OFF, crop=1.0)
    zooms = []
    for seed in range(40):
        out = augment(sample(), config, np.random.default_rng(seed))
        zoom_x, zoom_y = out.camera.fx / 80.0, out.camera.fy / 82.0
        assert 1.0 <= zoom_x <= 2.0 and zoom_x == pytest.approx(zoom_y, rel=0.02)
        zooms.append(zoom_x)
    assert min(zooms) < 1.1 and max(zooms) > 1.7


def test_a_crop_does_not_lose_the_scene() -> None:
    given = sample()
    given.depth[: H - 16] = np.inf
    shares = [
        augment(given, replace(OFF, crop=1.0), np.random.default_rng(seed)).valid.mean() for seed in range(60)
    ]
    assert min(shares) >= 0.25 * 0.25 * 0.9


def test_colours_keep_their_names() -> None:
    """At full strength a saturated colour turns by less than half the way to the next name (30 degrees)."""
    turned, changed = [], []
    for hue in np.arange(0, 360, 60):
        colour = np.array(colorsys.hsv_to_rgb(hue / 360, 0.7, 0.6))
        for seed in range(60):
            rgb = np.full((8, 8, 3), np.rint(255 * colour), np.uint8)
            out = recoloured(rgb, 1.0, np.random.default_rng(seed))[0, 0] / 255
            new, saturation, value = colorsys.rgb_to_hsv(*out)
            turned.append(abs((360 * new - hue + 180) % 360 - 180))
            changed.append(abs(value - 0.6))
            assert saturation > 0.2
    assert max(turned) < 30 and np.quantile(turned, 0.9) < 15
    assert np.quantile(changed, 0.75) > 0.1
    grey = [
        np.ptp(recoloured(np.full((8, 8, 3), 128, np.uint8), 1.0, np.random.default_rng(s))[0, 0].astype(int))
        for s in range(60)
    ]
    assert 8 < max(grey) < 60


def test_strength_scales_the_change_of_colour() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    change = [
        np.mean([np.abs(recoloured(rgb, s, np.random.default_rng(i)) - 1.0 * rgb).mean() for i in range(30)])
        for s in (0.0, 0.25, 1.0)
    ]
    assert change[0] < 0.5 < change[1] < 0.5 * change[2]


def test_each_defect_occurs() -> None:
    """On a flat grey only noise makes a spread; on an edge blur widens it; JPEG leaves neither alone."""
    flat = np.full((32, 32, 3), 120, np.uint8)
    spread = np.array([degraded(flat, np.random.default_rng(seed)).std() for seed in range(60)])
    assert 0.3 < (spread > 0.8).mean() < 0.8
    assert 2 < np.median(spread[spread > 0.8]) < 25
    edge = np.zeros((32, 32, 3), np.uint8)
    edge[:, 16:] = 255
    sharp = [
        np.abs(degraded(edge, np.random.default_rng(seed))[:, 12:20] - 1.0 * edge[:, 12:20]).mean()
        for seed in range(60)
    ]
    assert min(sharp) < 8 < max(sharp)
    picture = sample().rgb ^ np.random.default_rng(0).integers(0, 32, (H, W, 3)).astype(np.uint8)
    outs = [degraded(picture, np.random.default_rng(seed)) for seed in range(30)]
    assert all((out != picture).any() and out.shape == picture.shape for out in outs)
    assert all(np.abs(out - 1.0 * picture).mean() < 40 for out in outs)


def test_noise_grows_with_light() -> None:
    """Variance a I + b^2 in linear light; seeds whose only defect is noise are found by the untouched
    black."""
    bright, dark = np.full((48, 48, 3), 180, np.uint8), np.full((48, 48, 3), 60, np.uint8)
    ratios = []
    for seed in range(40):
        a, b = (degraded(x, np.random.default_rng(seed)) / 255.0 for x in (bright, dark))
        light_a, light_b = (((x + 0.055) / 1.055) ** 2.4 for x in (a, b))
        if a.std() > 0.01:
            ratios.append(light_a.std() / light_b.std())
    assert len(ratios) > 10
    assert np.median(ratios) > 1.5


def test_shadow_and_glare_are_factors_on_light() -> None:
    """Black stays black, grey stays grey, a picture gets much darker somewhere; geometry is left alone."""
    given = replace(sample(), rgb=np.full((H, W, 3), 128, np.uint8))
    given.rgb[0] = 0
    darkest, brightest = [], []
    for seed in range(40):
        found = augment(given, replace(OFF, light=1.0), np.random.default_rng(seed))
        assert found.meta["augment"] == ["light"]
        assert np.array_equal(found.depth, given.depth) and found.camera == given.camera
        assert np.all(found.rgb[0] == 0)
        assert np.ptp(found.rgb.astype(int), axis=-1).max() == 0
        darkest.append(found.rgb[1:].min())
        brightest.append(found.rgb[1:].max())
    assert np.median(darkest) < 64
    assert sum(b > 150 for b in brightest) > 8 and sum(b < 150 for b in brightest) > 8


def test_objects_have_a_light_of_their_own() -> None:
    given = replace(sample(), rgb=np.full((H, W, 3), 128, np.uint8))
    steps = []
    for seed in range(60):
        rgb = augment(given, replace(OFF, light=1.0), np.random.default_rng(seed)).rgb.astype(int)
        steps.append(abs(rgb[35, 10, 0] - rgb[35, 9, 0]))  # beside the left border of the chair
    assert sum(s > 20 for s in steps) >= 3


def test_patterns_lie_on_surfaces_and_change_brightness_only() -> None:
    given = sample()
    given.rgb[:] = (120, 80, 40)
    changed = []
    for seed in range(12):
        out = augment(given, replace(OFF, texture=1.0), np.random.default_rng(seed))
        np.testing.assert_array_equal(out.rgb[:12], given.rgb[:12], err_msg="the sky has no surface")
        np.testing.assert_array_equal(out.depth, given.depth)
        ratio = out.rgb.astype(float) / given.rgb
        assert np.abs(ratio - ratio.mean(-1, keepdims=True)).max() < 0.02
        assert ratio.min() > 0.45 and ratio.max() < 1.55
        assert given.object_ids is not None
        changed.append([ratio[12:][given.object_ids[12:] == i].std() > 0.02 for i in range(3)])
    assert 0.4 < np.mean(changed) < 0.95
    assert len({tuple(one) for one in changed}) > 2  # objects are drawn one by one
    without = replace(given, object_ids=None)
    assert same(augment(without, replace(OFF, texture=1.0), np.random.default_rng(0)), without)
