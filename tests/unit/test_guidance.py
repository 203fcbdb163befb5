"""Guidance: one batched call equals two, scale 1 costs one half, items do not hear each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.flow.guidance import Guidance, guided
from modality_forcing.flow.sampler import sample
from modality_forcing.flow.schedule import joint_schedule
from modality_forcing.model.transformer import Transformer
from modality_forcing.presets import TINY
from modality_forcing.types import PerModality

ROWS, COLS, TEXT = 2, 3, 5
CONFIG = replace(TINY.transformer, text_width=24, depth_channels=16, latent_channels=8)


@pytest.fixture(scope="module")
def forward():
    """A tiny model with random weights in every tensor, gates and heads included."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    rope = model.rope(text_ids(TEXT), image_ids(ROWS, COLS), depth_ids(ROWS, COLS))

    def call(x: PerModality[Tensor], text: Tensor, t: PerModality[Tensor]) -> PerModality[Tensor]:
        call.batches.append(x.rgb.shape[0])
        rgb, depth = model(x.rgb, x.depth, text, rope, t.rgb, t.depth)
        assert depth is not None
        return PerModality(rgb=rgb, depth=depth)

    call.batches = []
    return call


def inputs(batch: int, seed: int = 1) -> tuple[PerModality[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = PerModality(
        rgb=torch.randn(batch, ROWS * COLS, 8, generator=generator),
        depth=torch.randn(batch, ROWS * COLS, 16, generator=generator),
    )
    text = torch.randn(batch, TEXT, 24, generator=generator)
    return x, text, torch.randn(1, TEXT, 24, generator=generator)


def test_batched_equals_two_calls(forward):
    x, text, null = inputs(3)
    t = PerModality(rgb=0.7, depth=0.2)
    forward.batches.clear()
    both = guided(forward, text, null, Guidance(3.5))(x, t)
    assert forward.batches == [6]
    levels = PerModality(rgb=torch.full((3,), 0.7), depth=torch.full((3,), 0.2))
    conditional = forward(x, text, levels)
    unconditional = forward(x, null.expand(3, -1, -1), levels)
    for name in ("rgb", "depth"):
        c, u = getattr(conditional, name), getattr(unconditional, name)
        assert (c - u).abs().max() > 0.01  # the text matters, so the test can tell the halves apart
        torch.testing.assert_close(getattr(both, name), u + 3.5 * (c - u), atol=1e-5, rtol=0)


def test_depth_guidance_amplifies_what_depth_changes(forward):
    x, text, null = inputs(3)
    t = PerModality(rgb=0.7, depth=0.0)
    noise = torch.randn(x.depth.shape, generator=torch.Generator().manual_seed(9))
    levels = PerModality(rgb=torch.full((3,), 0.7), depth=torch.zeros(3))
    conditional = forward(x, text, levels)
    unconditional = forward(x, null.expand(3, -1, -1), levels)
    without = forward(
        PerModality(rgb=x.rgb, depth=noise), text, PerModality(rgb=levels.rgb, depth=torch.ones(3))
    )
    assert (conditional.rgb - without.rgb).abs().max() > 0.01
    for scale, batch in ((2.0, 9), (1.0, 6)):
        forward.batches.clear()
        out = guided(forward, text, null, Guidance(scale, 4.0), noise)(x, t)
        assert forward.batches == [batch]
        plain = unconditional.rgb + scale * (conditional.rgb - unconditional.rgb)
        torch.testing.assert_close(out.rgb, plain + 3.0 * (conditional.rgb - without.rgb), atol=1e-5, rtol=0)
        plain = unconditional.depth + scale * (conditional.depth - unconditional.depth)
        torch.testing.assert_close(out.depth, plain, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="needs noise"):
        guided(forward, text, null, Guidance(2.0, 4.0))


def test_the_text_may_pull_the_image_alone(forward):
    x, text, null = inputs(2)
    t = PerModality(rgb=0.3, depth=0.6)
    both = guided(forward, text, null, Guidance(3.0))(x, t)
    image = guided(forward, text, null, Guidance(3.0, image_only=True))(x, t)
    plain = guided(forward, text, null, Guidance(1.0))(x, t)
    assert torch.equal(image.rgb, both.rgb)
    torch.testing.assert_close(image.depth, plain.depth, atol=1e-5, rtol=0)
    assert (both.depth - plain.depth).abs().max() > 0.01


def along(change: Tensor, clean: Tensor) -> Tensor:
    """Per sample the share of ``change`` that lies along ``clean``, as a cosine."""
    return torch.cosine_similarity(change.flatten(1), clean.flatten(1))


def test_guidance_along_the_clean_image_can_be_left_out(forward):
    x, text, null = inputs(3)
    t = PerModality(rgb=0.7, depth=0.0)
    noise = torch.randn(x.depth.shape, generator=torch.Generator().manual_seed(9))
    given = guided(forward, text, null, Guidance(1.0))(x, t)
    clean = x.rgb - 0.7 * given.rgb
    plain = guided(forward, text, null, Guidance(5.0, 4.0), noise)(x, t)
    none, half = (
        guided(forward, text, null, Guidance(5.0, 4.0, parallel=kept), noise)(x, t) for kept in (0.0, 0.5)
    )
    assert along(plain.rgb - given.rgb, clean).abs().min() > 0.01  # there is something to leave out
    assert along(none.rgb - given.rgb, clean).abs().max() < 1e-5
    torch.testing.assert_close(half.rgb, (plain.rgb + none.rgb) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(none.depth, plain.depth)
    # What is left is what lay across: the same as taking the part along the clean image away.
    unit = clean / clean.flatten(1).norm(dim=1)[:, None, None]
    change = plain.rgb - given.rgb
    across = change - (change * unit).sum(dim=(1, 2), keepdim=True) * unit
    torch.testing.assert_close(none.rgb - given.rgb, across, atol=1e-4, rtol=1e-4)


def test_projected_guidance_of_an_x0_prediction_is_that_of_its_velocity(forward):
    x, text, null = inputs(2)
    t = PerModality(rgb=0.6, depth=0.6)

    def as_clean(at: PerModality[Tensor], tokens: Tensor, levels: PerModality[Tensor]) -> PerModality[Tensor]:
        out = forward(at, tokens, levels)
        return PerModality(rgb=at.rgb - levels.rgb[:, None, None] * out.rgb, depth=out.depth)

    velocity = guided(forward, text, null, Guidance(6.0, parallel=0.2))(x, t)
    clean = guided(as_clean, text, null, Guidance(6.0, parallel=0.2), rgb_prediction="x0")(x, t)
    torch.testing.assert_close(x.rgb - 0.6 * velocity.rgb, clean.rgb, atol=1e-4, rtol=1e-4)


def test_scale_one_computes_the_conditional_half_only(forward):
    x, text, null = inputs(2)
    forward.batches.clear()
    out = guided(forward, text, null * float("nan"), Guidance(1.0))(x, PerModality(rgb=0.5, depth=0.5))
    assert forward.batches == [2]
    levels = PerModality(rgb=torch.full((2,), 0.5), depth=torch.full((2,), 0.5))
    assert torch.equal(out.depth, forward(x, text, levels).depth)


def test_scale_zero_is_unconditional(forward):
    x, text, null = inputs(2)
    t = PerModality(rgb=0.4, depth=0.9)
    out = guided(forward, text, null, Guidance(0.0))(x, t)
    plain = guided(forward, null.expand(2, -1, -1), null, Guidance(1.0))(x, t)
    torch.testing.assert_close(out.rgb, plain.rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.depth, plain.depth, atol=1e-5, rtol=0)


def test_a_null_embedding_per_item_is_as_good_as_one(forward):
    x, text, null = inputs(2)
    t = PerModality(rgb=0.4, depth=0.9)
    one = guided(forward, text, null, Guidance(2.0))(x, t)
    each = guided(forward, text, null.repeat(2, 1, 1), Guidance(2.0))(x, t)
    assert torch.equal(one.rgb, each.rgb)


def test_guiding_x0_is_guiding_its_velocity():
    """Both are affine in the prediction at the same x_t."""
    generator = torch.Generator().manual_seed(0)
    x_t, c, u = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    t, scale = 0.3, 4.0
    by_velocity = (x_t - u) / t + scale * ((x_t - c) / t - (x_t - u) / t)
    torch.testing.assert_close((x_t - (u + scale * (c - u))) / t, by_velocity)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_an_item_of_a_batch_is_the_item_alone(forward, scale):
    x, text, null = inputs(4)
    schedule = joint_schedule(3, log2_alpha=1.0)
    together = sample(guided(forward, text, null, Guidance(scale)), x, schedule)
    item = slice(3, 4)
    alone = sample(guided(forward, text[item], null, Guidance(scale)), x.map(lambda v: v[item]), schedule)
    torch.testing.assert_close(together.rgb[item], alone.rgb, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.depth[item], alone.depth, atol=1e-5, rtol=1e-5)
    assert (together.depth[0] - together.depth[3]).abs().max() > 0.1
