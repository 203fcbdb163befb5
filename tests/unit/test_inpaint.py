"""Inpainting: what is known stays, what is masked is made, each stream by its own mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from modality_forcing import Pipeline
from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import encode_image, pixels_to_tensor
from modality_forcing.editing import inpainting
from modality_forcing.editing.inpainting import _grown
from modality_forcing.errors import UserError


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


@pytest.fixture
def depth() -> np.ndarray:
    return np.repeat(np.linspace(5.0, 2.0, 64, dtype=np.float32)[:, None], 80, axis=1)


def box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (64, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_outside_the_masks_nothing_changes(pipeline, image, depth):
    new_rgb, new_depth = box(10, 10, 30, 30), box(20, 40, 50, 70)
    (result,) = pipeline.inpaint("a", image, new_rgb, depth, new_depth, depth_unit="m", seed=0)
    width = result.provenance["inpainting"]["feather"]
    far = distance_transform_edt(~new_rgb) > width
    np.testing.assert_array_equal(result.rgb[far], image[far])
    np.testing.assert_array_equal(result.depth[~new_depth], depth[~new_depth])
    assert (result.rgb[new_rgb] != image[new_rgb]).mean() > 0.9
    assert (result.depth[new_depth] != depth[new_depth]).all()
    assert (result.depth > 0).all()
    assert result.depth_unit == "m"
    assert result.mask[~new_depth].all()


def test_a_hard_edge_changes_no_pixel_outside(pipeline, image, depth):
    mask = box(10, 10, 30, 30)
    (result,) = pipeline.inpaint("a", image, mask, depth, seed=0, feather=0)
    np.testing.assert_array_equal(result.rgb[~mask], image[~mask])
    (soft,) = pipeline.inpaint("a", image, mask, depth, seed=0, feather=12)
    np.testing.assert_array_equal(result.rgb[mask], soft.rgb[mask])
    assert (soft.rgb[~mask] != image[~mask]).any()


def test_what_the_mask_hides_of_the_depth_never_matters(pipeline, image, depth):
    mask = box(10, 10, 30, 30)
    other = depth.copy()
    other[mask] = 77.0
    (one,) = pipeline.inpaint("a", image, mask, depth, seed=0)
    (two,) = pipeline.inpaint("a", image, mask, other, seed=0)
    np.testing.assert_array_equal(one.rgb, two.rgb)
    np.testing.assert_array_equal(one.depth, two.depth)


def test_holes_of_the_depth_are_made_anew(pipeline, image, depth):
    holed = depth.copy()
    holed[40:50, 5:20] = np.nan
    (result,) = pipeline.inpaint("a", image, box(0, 0, 4, 4), holed, seed=0)
    assert (result.depth[40:50, 5:20] > 0).all()
    assert result.provenance["inpainting"]["made_depth"] == pytest.approx((150 + 16) / depth.size)


def test_the_new_depth_is_bent_to_meet_the_old(pipeline, image, depth, monkeypatch):
    """A model whose depth is half of the truth everywhere: what is known around the hole says so."""
    mask = box(20, 20, 40, 60)
    half = 0.5 * depth / depth[~mask].mean()
    monkeypatch.setattr(inpainting, "grid_depth", lambda *_: half)
    (result,) = pipeline.inpaint("a", np.full_like(image, 128), mask, depth, seed=0, size=(80, 64))
    np.testing.assert_allclose(result.depth[mask], depth[mask], rtol=0.1)
    # An error beyond e is another surface behind the border and does not pull the hole along.
    monkeypatch.setattr(inpainting, "grid_depth", lambda *_: half / 100)
    (result,) = pipeline.inpaint("a", np.full_like(image, 128), mask, depth, seed=0, size=(80, 64))
    assert (result.depth[mask] < 0.02 * depth[mask]).all()


def test_a_stream_with_nothing_to_make_is_given(pipeline, image, depth):
    """Its noise level is 0 in every step, as in image to depth and depth to image."""
    nothing, mask = np.zeros((64, 80), bool), box(10, 10, 40, 40)
    levels = []
    (result,) = pipeline.inpaint(
        "a", image, nothing, depth, mask, seed=0, on_step=lambda step: levels.append(step.t)
    )
    assert {t.rgb for t in levels} == {0.0}
    assert levels[0].depth == 1.0
    np.testing.assert_array_equal(result.rgb, image)
    levels.clear()
    (result,) = pipeline.inpaint(
        "a", image, mask, depth, nothing, seed=0, on_step=lambda step: levels.append(step.t)
    )
    assert {t.depth for t in levels} == {0.0}
    np.testing.assert_array_equal(result.depth, depth)


def test_known_cells_are_held_in_every_step(pipeline, image, depth, monkeypatch):
    """The state that reaches the model has the known cells at (1 - t) x0 + t noise, and only those."""
    mask = box(16, 16, 32, 32)
    forward, seen = pipeline.engine._forward, []

    def watch(rgb, depth, text, rope, t_rgb, t_depth, level):
        seen.append((float(t_rgb[0]), rgb[:1].clone()))
        return forward(rgb, depth, text, rope, t_rgb, t_depth, level)

    monkeypatch.setattr(pipeline.engine, "_forward", watch)
    pipeline.inpaint("a", image, mask, depth, seed=3, steps=4, size=(80, 64))
    frame = Frame.fitted(80, 64, 80 * 64, 16)
    made = torch.from_numpy(_grown(mask, frame, 16)).reshape(-1)
    assert made.sum() == 1
    noise = pipeline.engine.noise(3, frame).rgb
    clean = encode_image(pipeline.autoencoder, pixels_to_tensor(image))
    assert len(seen) == 4
    for t, x in seen:
        wanted = (1 - t) * clean + t * noise
        torch.testing.assert_close(x[:, ~made], wanted[:, ~made])
    assert (x[:, made] - wanted[:, made]).abs().max() > 1e-2


def test_the_image_mask_grows_to_whole_cells():
    frame = Frame.fitted(80, 64, 80 * 64, 16)
    grown = _grown(box(15, 15, 17, 17), frame, 16)
    assert grown.shape == (4, 5)
    assert grown[:2, :2].all()
    assert grown.sum() == 4
    # Scaled: a single pixel of a large picture is not lost, one of a small picture fills all its cells.
    large = Frame.fitted(1600, 1280, 80 * 64, 16)
    assert _grown(box(1279, 1599, 1280, 1600, (1280, 1600)), large, 16).sum() == 1
    small = Frame.fitted(4, 4, 128 * 128, 16)
    assert _grown(box(1, 1, 2, 2, (4, 4)), small, 16).sum() == 4


def test_depth_that_is_not_given_is_estimated(pipeline, image):
    mask = box(10, 10, 30, 30)
    (result,) = pipeline.inpaint("a", image, mask, seed=4, depth_unit="m")
    (estimate,) = pipeline.image_to_depth(image, prompt="a", seed=4)
    np.testing.assert_array_equal(result.depth[~mask & estimate.mask], estimate.depth[~mask & estimate.mask])
    assert result.depth_unit == "relative"  # an estimate is no measurement
    assert result.provenance["inpainting"]["depth"] == "estimated"


def test_an_item_is_the_same_alone_and_in_a_batch(pipeline, image, depth):
    images = [image, image[:, ::-1].copy(), image[:48, :48].copy(), image]
    masks = [box(10, 10, 30, 30), box(5, 40, 60, 60), box(0, 0, 20, 20, (48, 48)), np.zeros((64, 80), bool)]
    depths = [depth, None, None, depth]
    own = [None, box(0, 0, 20, 20), None, box(10, 10, 40, 40)]
    prompts = ["a", "b", "c", "d"]
    together = pipeline.inpaint(prompts, images, masks, depths, own, seed=[5, 6, 7, 8])
    for i, prompt in enumerate(prompts):
        (alone,) = pipeline.inpaint(prompt, images[i], masks[i], [depths[i]], [own[i]], seed=5 + i)
        assert np.abs(together[i].rgb.astype(int) - alone.rgb).max() <= 1
        np.testing.assert_allclose(together[i].depth, alone.depth, rtol=2e-3, atol=1e-5)


def test_seed_and_prompt_change_the_new_part(pipeline, image, depth):
    mask = box(10, 10, 40, 60)
    plain = pipeline.inpaint("a", image, mask, depth, seed=0)[0]
    again = pipeline.inpaint("a", image, mask, depth, seed=0)[0]
    np.testing.assert_array_equal(plain.rgb, again.rgb)
    for prompt, seed in (("a red ball", 0), ("a", 1)):
        other = pipeline.inpaint(prompt, image, mask, depth, seed=seed)[0]
        assert np.abs(other.rgb.astype(int) - plain.rgb)[mask].max() > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"masks": np.zeros((64, 80), bool)}, "nothing is made|False everywhere"),
        ({"masks": np.ones((64, 81), bool)}, "sizes must agree"),
        ({"masks": np.ones((64, 80), np.uint8)}, "bool array"),
        ({"masks": [np.ones((64, 80), bool)] * 2}, "2 masks for 1 images"),
        ({"masks": "hole.png"}, "mask 0 is str; a bool array"),
        ({"depths": np.ones((60, 80), np.float32)}, "sizes must agree"),
        ({"depth_masks": np.ones((60, 80), bool)}, "sizes must agree"),
        ({"depths": np.zeros((64, 80), np.float32)}, "no valid pixel"),
        ({"feather": -1}, "feather"),
        ({"prompts": ["a", "b"]}, "2 prompts for 1 items"),
    ],
)
def test_bad_input_is_refused(pipeline, image, change, says):
    options = {"prompts": "a", "images": image, "masks": np.ones((64, 80), bool), **change}
    with pytest.raises(UserError, match=says):
        pipeline.inpaint(**options)
