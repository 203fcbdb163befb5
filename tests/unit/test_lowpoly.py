"""The low-poly world: purity, exact geometry, captions, splits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("embreex")

from modality_forcing.data.lowpoly import OBJECTS, PLACES, make_sample, split_seed
from modality_forcing.data.lowpoly.captions import MAX_WORDS
from modality_forcing.data.lowpoly.places import GRAMMAR, make_scene
from modality_forcing.data.lowpoly.render import render
from modality_forcing.data.lowpoly.scene import Builder, Material
from modality_forcing.errors import UserError


@pytest.mark.parametrize("place", PLACES)
def test_places(place: str) -> None:
    for seed in range(3):
        sample = make_sample(seed, 64, 48, place=place)
        assert sample.rgb.shape == (48, 64, 3) and sample.rgb.dtype == np.uint8
        assert sample.depth.shape == (48, 64) and sample.depth.dtype == np.float32
        assert not np.isnan(sample.depth).any() and (sample.depth > 0.05).all()
        assert sample.valid.mean() > 0.3 and sample.rgb.std() > 15
        assert 39.9 <= sample.camera.fov_x <= 90.1
        assert len(sample.captions) == 3
        assert all(len(c.split()) <= MAX_WORDS for c in sample.captions)
        assert {t["name"] for t in sample.meta["objects"]} <= set(OBJECTS)
        v = sample.valid
        np.testing.assert_allclose(np.linalg.norm(sample.normals[v], axis=-1), 1, atol=1e-4)
        assert not sample.normals[~v].any() and not sample.object_ids[~v].any()
        rows, cols = np.nonzero(v)
        k = sample.camera
        ray = np.stack([(cols + 0.5 - k.cx) / k.fx, (rows + 0.5 - k.cy) / k.fy, np.ones(len(rows))], 1)
        assert ((ray * sample.normals[v]).sum(1) < 1e-4).all()


def test_pure() -> None:
    a, b = make_sample(5), make_sample(5)
    assert a.captions == b.captions
    for name in ("rgb", "depth", "normals", "object_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(make_sample(5, supersample=1).depth, a.depth)


def test_depth_is_exact_for_pixel_centres() -> None:
    b = Builder(np.random.default_rng(0), "kitchen")
    b.flip = 1.0
    b.add("plane", 0, 0, 0, 1000, 1000, 1, Material((0.5, 0.5, 0.5)))
    b.look(0, 0, 1.5, 0, 10, 1.5, 60)
    picture = render(b.scene(), 40, 30)
    v = np.arange(30) + 0.5 - 15
    below = v > 0
    expected = 1.5 * picture.camera.fy / v[below]
    np.testing.assert_allclose(picture.depth[below], np.repeat(expected[:, None], 40, 1), rtol=1e-5)
    assert np.isinf(picture.depth[~below]).all()
    np.testing.assert_allclose(picture.normals[below], np.broadcast_to([0, -1, 0], (15, 40, 3)), atol=1e-5)


def test_grammar_and_splits() -> None:
    assert tuple(GRAMMAR) == PLACES
    seeds = {split_seed(s, i) for s in ("train", "val", "test") for i in (0, 1, 2**40 - 1)}
    assert len(seeds) == 9
    with pytest.raises(UserError, match="unknown split"):
        split_seed("dev", 0)
    with pytest.raises(UserError, match="index"):
        split_seed("train", -1)
    assert make_scene(split_seed("test", 3)).primitives
