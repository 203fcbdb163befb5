"""The three tasks end to end on a tiny random model: sizes, seeds, batches, holes, records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from modality_forcing import Pipeline
from modality_forcing.codecs.depth import contract, expand
from modality_forcing.errors import UserError
from modality_forcing.flow.sampler import Step

FLAT = np.ones((32, 32), np.float32)


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> Pipeline:
    return Pipeline.from_pretrained(tiny_model, device="cpu")


def close(a: np.ndarray, b: np.ndarray) -> None:
    """Equal pictures up to rounding of one level, equal depth up to float32 rounding of a batch."""
    if a.dtype == np.uint8:
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    else:
        za, zb = contract(torch.from_numpy(a)), contract(torch.from_numpy(b))
        torch.testing.assert_close(za, zb, atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (70, 50), (33, 96)])
def test_joint_gives_the_asked_size(pipeline, size):
    (result,) = pipeline.joint("a kitchen", seed=1, size=size)
    width, height = size
    assert result.rgb.shape == (height, width, 3)
    assert result.depth.shape == result.mask.shape == (height, width)
    assert (result.camera.width, result.camera.height) == size
    assert np.isfinite(result.depth).all()
    assert (result.depth > 0).all()


def test_an_item_is_the_same_alone_and_in_a_batch(pipeline):
    prompts = ["a kitchen", "a red ball", "a street", ""]
    batch = pipeline.joint(prompts, seed=[5, 6, 7, 8])
    (alone,) = pipeline.joint(prompts[2], seed=7)
    close(batch[2].rgb, alone.rgb)
    close(batch[2].depth, alone.depth)
    assert np.abs(batch[1].rgb.astype(int) - alone.rgb).max() > 1  # other items differ


def test_seeds_count_up_from_one_number(pipeline):
    counted = pipeline.joint(["a", "a"], seed=3)
    listed = pipeline.joint("a", seed=[3, 4])
    for one, other in zip(counted, listed, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
        assert one.provenance["seed"] == other.provenance["seed"]


def test_the_record_repeats_the_run(pipeline):
    (first,) = pipeline.joint("a harbour", steps=3, guidance=1.5, log2_alpha=2.0)
    note = first.provenance
    (again,) = pipeline.joint(
        note["prompt"],
        seed=note["seed"],
        steps=note["steps"],
        guidance=note["guidance"],
        log2_alpha=note["log2_alpha"],
        refine_depth=note["refine_depth"],
    )
    np.testing.assert_array_equal(first.rgb, again.rgb)
    np.testing.assert_array_equal(first.depth, again.depth)
    assert set(note["model"]["sha256"]) == {"transformer.safetensors", "autoencoder.safetensors"}


def test_options_change_the_result(pipeline):
    plain = pipeline.joint("a", seed=0)[0]
    for options in ({"guidance": 1.0}, {"log2_alpha": 5.0}, {"log2_alpha": None}, {"steps": 9}):
        other = pipeline.joint("a", seed=0, **options)[0]
        changed = np.abs(other.depth - plain.depth).max()
        # On the tiny preset the tilt 0 equals both streams' own grid: None is the one that must agree.
        assert (changed == 0) == (options == {"log2_alpha": None}), options
    image_only = pipeline.joint("a", seed=0, guide_image_only=True)[0]
    assert image_only.provenance["guide_image_only"] and not plain.provenance["guide_image_only"]
    assert np.abs(image_only.depth - plain.depth).max() > 0
    across = pipeline.joint("a", seed=0, guidance_parallel=0.0)[0]
    assert (across.provenance["guidance_parallel"], plain.provenance["guidance_parallel"]) == (0.0, 1.0)
    assert np.abs(across.rgb.astype(int) - plain.rgb).max() > 0
    refined = pipeline.joint("a", seed=0, refine_depth=True)[0]
    np.testing.assert_array_equal(refined.rgb, plain.rgb)
    assert np.abs(refined.depth - plain.depth).max() > 0


def test_depth_follows_the_edges_of_the_image_on_request(pipeline):
    plain, filtered = (pipeline.joint("a", seed=0, edge_radius=radius)[0] for radius in (0, 3))
    np.testing.assert_array_equal(plain.rgb, filtered.rgb)
    assert np.abs(plain.depth - filtered.depth).max() > 0
    assert (plain.provenance["edge_radius"], filtered.provenance["edge_radius"]) == (0, 3)
    default = pipeline.sampler_defaults.edge_radius
    assert pipeline.joint("a", seed=0)[0].provenance["edge_radius"] == default == 0
    image = np.zeros((40, 90, 3), np.uint8)
    image[:, 50:] = 255
    plain, filtered = (pipeline.image_to_depth(image, seed=0, edge_radius=r)[0].depth for r in (0, 3))
    assert np.abs(plain - filtered).max() > 0
    for radius in (-1, 65, float("nan")):
        with pytest.raises(UserError, match="edge_radius"):
            pipeline.joint("a", seed=0, edge_radius=radius)


def test_steps_that_were_asked_for_hold_for_refining_too(pipeline):
    seen: list[int] = []
    pipeline.joint("a", seed=0, steps=3, refine_depth=True, on_step=lambda step: seen.append(step.num_steps))
    assert seen == [3] * 6


@pytest.mark.parametrize("shape", [(40, 90), (300, 47), (64, 64), (17, 17)])
def test_image_to_depth_keeps_size_and_pixels(pipeline, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    (result,) = pipeline.image_to_depth(image, seed=0)
    np.testing.assert_array_equal(result.rgb, image)
    assert result.depth.shape == shape
    assert (result.camera.width, result.camera.height) == shape[::-1]
    assert result.camera.fx == pytest.approx(result.camera.fy)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_image_to_depth_takes_several_sizes_and_does_not_mix_them(pipeline, batch_size):
    rng = np.random.default_rng(1)
    shapes = ((40, 60), (40, 60), (64, 32), (40, 60))
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    prompts = ["a", "b", "c", "d"]
    together = pipeline.image_to_depth(images, prompt=prompts, seed=4, batch_size=batch_size)
    for i, result in enumerate(together):
        (alone,) = pipeline.image_to_depth(images[i], prompt=prompts[i], seed=4 + i)
        close(result.depth, alone.depth)
        np.testing.assert_array_equal(result.rgb, images[i])


def test_depth_to_image_keeps_the_given_depth_and_never_reads_holes(pipeline, ramp):
    holed = ramp.copy()
    holed[5:12, 20:33] = np.nan
    holed[20, :] = 0.0
    holed[21, :] = -3.0
    (result,) = pipeline.depth_to_image("a floor", holed, seed=2)
    valid = np.isfinite(holed) & (holed > 0)
    np.testing.assert_array_equal(result.mask, valid)
    np.testing.assert_array_equal(result.depth[valid], ramp[valid])
    assert result.rgb.shape == (*ramp.shape, 3)
    other = ramp.copy()
    other[~valid] = 1e6  # whatever a masked pixel holds, the picture is the same
    (masked,) = pipeline.depth_to_image("a floor", other, mask=valid, seed=2)
    np.testing.assert_array_equal(masked.rgb, result.rgb)
    (scaled,) = pipeline.depth_to_image("a floor", 7.0 * holed, seed=2, depth_unit="m")
    close(scaled.rgb, result.rgb)
    assert scaled.depth_unit == "m"


def test_depth_guidance_changes_the_image_and_is_recorded(pipeline, ramp):
    """The items of a batch have their own noise to be compared with."""
    plain, other = pipeline.depth_to_image(["a", "b"], [ramp, ramp], seed=2)
    pulled, second = pipeline.depth_to_image(["a", "b"], [ramp, ramp], seed=2, guidance_depth=5.0)
    assert np.abs(pulled.rgb.astype(int) - plain.rgb).max() > 0
    assert np.abs(second.rgb.astype(int) - other.rgb).max() > 0
    (alone,) = pipeline.depth_to_image("b", ramp, seed=3, guidance_depth=5.0)
    close(alone.rgb, second.rgb)
    across = pipeline.depth_to_image("a", ramp, seed=2, guidance_depth=5.0, guidance_parallel=0.0)[0]
    assert np.abs(across.rgb.astype(int) - pulled.rgb).max() > 0
    assert plain.provenance["guidance_depth"] == 1.0
    assert alone.provenance["guidance_depth"] == 5.0
    np.testing.assert_array_equal(alone.depth, ramp)


def test_sky_is_told_from_a_hole(pipeline, ramp):
    sky, hole = ramp.copy(), ramp.copy()
    sky[:10], hole[:10] = np.inf, np.nan
    (with_sky,) = pipeline.depth_to_image("a", sky, seed=0)
    (with_hole,) = pipeline.depth_to_image("a", hole, seed=0)
    assert not with_sky.mask[:10].any()
    assert np.abs(with_sky.rgb.astype(int) - with_hole.rgb).max() > 0


def test_step_callback_sees_every_step(pipeline):
    seen: list[Step] = []
    pipeline.joint("a", seed=0, steps=3, on_step=seen.append)
    assert [s.index for s in seen] == [0, 1, 2]
    assert seen[0].t.rgb == 1.0
    assert torch.equal(seen[-1].x.depth, seen[-1].clean.depth)  # the last step lands on the estimate


def test_mask_marks_what_lies_at_infinity(pipeline):
    (result,) = pipeline.joint("a", seed=0)
    limit = float(expand(torch.tensor(pipeline.config.depth.far_threshold)))
    np.testing.assert_array_equal(result.mask, result.depth < limit)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.joint("a", steps=0), "steps is 0"),
        (lambda p: p.joint("a", guidance=float("nan")), "guidance is nan"),
        (lambda p: p.joint("a", log2_alpha=99.0), "log2_alpha is 99"),
        (lambda p: p.joint("a", size=(8, 64)), "width is 8"),
        (lambda p: p.joint("a", seed=-1), "seed is -1"),
        (lambda p: p.joint(["a", "b"], seed=[1]), "1 seeds for 2 items"),
        (lambda p: p.joint("a", fov_x=190.0), "fov_x is 190"),
        (lambda p: p.joint([], seed=1), "no prompt is given"),
        (lambda p: p.joint(None), "a prompt is NoneType"),
        (lambda p: p.joint(["a", 3]), "a prompt is int"),
        (lambda p: p.joint("a", seed=1.5), "seed is 1.5"),
        (lambda p: p.joint("a", seed=[]), "no seed is given"),
        (lambda p: p.joint("a", steps=2.5), "steps is 2.5; a whole number"),
        (lambda p: p.joint("a", steps="4"), "steps is '4'; a number"),
        (lambda p: p.joint("a", size=(64,)), r"size is \(64,\); \(width, height\)"),
        (lambda p: p.joint("a", edge_radius=65), "edge_radius is 65"),
        (lambda p: p.joint("a", guidance_parallel=2.0), "guidance_parallel is 2"),
        (lambda p: p.image_to_depth([]), "no image is given"),
        (lambda p: p.image_to_depth("photo.png"), "an image is str"),
        (lambda p: p.image_to_depth(Image.new("RGB", (32, 32))), "np.asarray"),
        (lambda p: p.image_to_depth(np.zeros((32, 32), np.uint8)), "uint8 array"),
        (lambda p: p.depth_to_image("a", np.full((32, 32), "near")), "a depth map is <U4; real numbers"),
        (lambda p: p.depth_to_image("a", FLAT, mask=Image.new("L", (32, 32))), "the mask is Image;"),
        (lambda p: p.depth_to_image("a", FLAT, mask="m.png"), "the mask is str;"),
        (lambda p: p.depth_to_image("a", [FLAT] * 3, mask=[FLAT > 0] * 2), "2 masks for 3 depth maps"),
        (lambda p: p.image_to_depth(np.zeros((32, 32, 3), np.float32)), "float32"),
        (lambda p: p.depth_to_image("a", np.full((32, 32), np.nan, np.float32)), "no valid pixel"),
        (
            lambda p: p.depth_to_image("a", np.ones((32, 32), np.float32), guidance_depth=-1.0),
            "guidance_depth is -1",
        ),
        (lambda p: p.depth_to_image("a", np.ones((2, 32, 32, 1), np.float32)), r"\(H, W\)"),
        (
            lambda p: p.depth_to_image("a", np.ones((32, 32), np.float32), mask=np.ones((4, 4), bool)),
            "sizes must agree",
        ),
    ],
)
def test_bad_arguments_are_named(pipeline, call, message):
    with pytest.raises(UserError, match=message):
        call(pipeline)


def test_masks_as_one_array_are_as_good_as_a_list(pipeline):
    maps = np.stack([FLAT, FLAT])
    maps[:, :16] = 4
    masks = np.ones(maps.shape, bool)
    masks[1, :, 8:] = False
    wanted = pipeline.depth_to_image("a", list(maps), mask=list(masks), seed=3, steps=1, size=(32, 32))
    found = pipeline.depth_to_image("a", maps, mask=masks, seed=3, steps=1, size=(32, 32))
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a.rgb, b.rgb)


def test_numpy_numbers_are_numbers(pipeline):
    (wanted,) = pipeline.joint("a", seed=3, steps=2, guidance=2.0, size=(32, 32))
    (found,) = pipeline.joint(
        "a", seed=np.int64(3), steps=np.int32(2), guidance=np.float32(2.0), size=(np.int64(32), 32)
    )
    assert np.array_equal(found.depth, wanted.depth)
    results = pipeline.joint("a", seed=np.array([3, 8]), steps=2, size=(32, 32))
    seeds = [result.provenance["seed"] for result in [found, *results]]
    assert seeds == [3, 3, 8]
    assert {type(seed) for seed in seeds} == {int}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "quantum"}, "unknown device"),
        ({"dtype": "float16"}, "float16 overflows"),
        ({"text_encoder": "somewhere"}, "somewhere does not exist"),
    ],
)
def test_bad_loading_options_are_named(tiny_model, options, message):
    with pytest.raises(UserError, match=message):
        Pipeline.from_pretrained(tiny_model, **options)


def test_bfloat16_body_keeps_the_depth_head_float32(tiny_model):
    pipeline = Pipeline.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")
    assert pipeline.engine.transformer.dtype == torch.bfloat16
    assert pipeline.engine.transformer.depth_final_layer.linear.weight.dtype == torch.float32
    (result,) = pipeline.joint("a", seed=0)
    assert np.isfinite(result.depth).all()
