"""Depth tokens: what is invalid never matters, what is decoded is depth, the sky has its own path."""

from __future__ import annotations

import pytest
import torch

from modality_forcing.codecs.depth import (
    MAX_CONTRACTED,
    contract,
    decode_depth,
    encode_depth,
    expand,
    fill_missing,
    patchify,
    unit_mean,
    unpatchify,
)

BAD = [float("nan"), float("inf"), float("-inf"), 0.0, -3.0]


def depth_map(batch: int = 1, height: int = 32, width: int = 48, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, height, width, generator=generator).exp() * 5.0


@pytest.mark.parametrize("sky", ["missing", "far"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_pixels_never_reach_the_mean(bad, sky):
    depth = depth_map()
    holes = torch.zeros_like(depth, dtype=torch.bool)
    holes[0, ::3, ::2] = True
    tokens, valid, mean = encode_depth(torch.where(holes, bad, depth), sky=sky)
    assert mean.item() == pytest.approx(depth[~holes].double().mean().item(), rel=1e-6)
    assert torch.isfinite(tokens).all()
    far = sky == "far" and bad == float("inf")
    expected = contract(torch.where(holes, torch.zeros_like(depth), depth) / mean)
    expected[holes] = 2.0 if far else 0.0
    torch.testing.assert_close(tokens, patchify(expected), atol=1e-6, rtol=0)
    assert torch.equal(valid, patchify((~holes).float()) > 0.5) != far


@pytest.mark.parametrize("sky", ["missing", "far"])
def test_the_mask_hides_everything(sky):
    """Masked pixels may hold anything, infinity included."""
    depth = depth_map()
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[0, 5:20, 7:30] = False
    tokens, valid, mean = encode_depth(depth, mask, sky=sky)
    for value in [*BAD, 1e30]:
        other = encode_depth(torch.where(mask, depth, value), mask, sky=sky)
        assert torch.equal(other[0], tokens)
        assert torch.equal(other[1], valid)
        assert torch.equal(other[2], mean)
    assert torch.equal(valid, patchify(mask.float()) > 0.5)


@pytest.mark.parametrize("value", BAD)
def test_a_map_without_a_valid_pixel(value):
    tokens, valid, mean = encode_depth(torch.full((2, 16, 16), value))
    assert not tokens.any()
    assert not valid.any()
    assert mean.tolist() == [1.0, 1.0]


def test_all_sky():
    tokens, valid, mean = encode_depth(torch.full((1, 16, 16), float("inf")), sky="far")
    assert (tokens == 2.0).all()
    assert valid.all()
    assert mean.item() == 1.0


def test_the_mean_is_one_and_scale_is_lost():
    depth = depth_map(3)
    tokens, _, mean = encode_depth(depth)
    torch.testing.assert_close(mean, depth.mean(dim=(1, 2)))
    scaled, _, scaled_mean = encode_depth(depth * 250.0)
    torch.testing.assert_close(scaled, tokens, atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled_mean, 250.0 * mean)
    normalised, _ = unit_mean(depth, torch.ones_like(depth, dtype=torch.bool))
    torch.testing.assert_close(normalised.mean(dim=(1, 2)), torch.ones(3))


def test_items_do_not_share_a_mean():
    depth = depth_map(3) * torch.tensor([1.0, 40.0, 0.01])[:, None, None]
    together = encode_depth(depth)
    for item in range(3):
        alone = encode_depth(depth[item : item + 1])
        assert torch.equal(together[0][item], alone[0][0])
        assert torch.equal(together[2][item], alone[2][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int32])
def test_any_number_type(dtype):
    depth = (depth_map() * 10).round().clamp(1, 1000).to(dtype)
    tokens, valid, mean = encode_depth(depth)
    reference = encode_depth(depth.float())
    assert tokens.dtype == mean.dtype == torch.float32
    assert torch.equal(tokens, reference[0])
    assert valid.all()


@pytest.mark.parametrize("huge", [1e39, 1e-50, 1e300])
def test_values_beyond_float32_are_no_measurements(huge):
    depth = depth_map().double()
    depth[0, 3, 4] = huge
    tokens, valid, mean = encode_depth(depth)
    assert torch.isfinite(tokens).all()
    assert torch.isfinite(mean).all()
    assert not unpatchify(valid.float(), 2, 3)[0, 3, 4]


def test_contraction():
    d = torch.tensor([0.0, 0.5, 1.0, 2.0, 4.0, 1e6])
    torch.testing.assert_close(contract(d), torch.tensor([0.0, 0.5, 1.0, 1.5, 1.75, 2.0]))
    nodes = torch.linspace(0.001, 50, 500)
    assert (contract(nodes).diff() > 0).all()
    torch.testing.assert_close(expand(contract(nodes)), nodes, rtol=2e-5, atol=0)


def test_round_trip():
    depth = depth_map(2)
    tokens, _, mean = encode_depth(depth)
    decoded = decode_depth(tokens, 2, 3)
    torch.testing.assert_close(decoded * mean[:, None, None], depth, rtol=2e-5, atol=0)


@pytest.mark.parametrize(
    "value", [2.0, 2.0 + 1e-6, 1.9999999, 2.5, 1e9, float("inf"), 0.0, -0.0, -1e-9, -5.0, -1e9, float("-inf")]
)
def test_decoded_depth_is_positive_and_finite(value):
    depth = decode_depth(torch.full((1, 1, 256), value), 1, 1)
    assert depth.dtype == torch.float32
    assert torch.isfinite(depth).all()
    assert (depth > 0).all()
    if value >= 2.0:
        assert depth.min().item() == pytest.approx(1 / (2 - MAX_CONTRACTED), rel=0.01)


def test_decoding_keeps_the_order():
    z = torch.linspace(0.001, 1.999, 256)[None, None]
    depth = decode_depth(z, 1, 1).flatten()
    assert (depth.diff() > 0).all()


def test_nan_tokens_stay_visible():
    """A broken prediction must not turn into a plausible depth."""
    tokens = torch.full((1, 1, 256), 0.5)
    tokens[0, 0, 17] = float("nan")
    depth = decode_depth(tokens, 1, 1).flatten()
    assert depth.isnan().nonzero().flatten().tolist() == [17]


def test_sky_is_far_and_decodes_as_such():
    depth = depth_map(1, 32, 32)
    depth[0, :10] = float("inf")
    tokens, valid, mean = encode_depth(depth, sky="far")
    assert valid.all()
    assert mean.item() == pytest.approx(depth[0, 10:].mean().item(), rel=1e-6)
    decoded = unpatchify(tokens, 2, 2)
    assert (decoded[0, :10] == 2.0).all()  # the limit of the contraction, beyond every surface
    assert decoded[0, 10:].max() < 2.0
    torch.testing.assert_close(decoded[0, 10:], contract(depth[0, 10:] / mean), atol=1e-6, rtol=0)
    _, missing, _ = encode_depth(depth, sky="missing")
    assert not unpatchify(missing.float(), 2, 2)[0, :10].any()


def test_patches_are_row_major_inside_and_out():
    maps = torch.arange(4 * 6, dtype=torch.float32).reshape(1, 4, 6)
    tokens = patchify(maps, 2)
    assert tokens[0, 0].tolist() == [0, 1, 6, 7]
    assert tokens[0, 1].tolist() == [2, 3, 8, 9]
    assert tokens[0, 3].tolist() == [12, 13, 18, 19]
    assert torch.equal(unpatchify(tokens, 2, 3, 2), maps)


@pytest.mark.parametrize("size", [(15, 16), (16, 40)])
def test_sizes_that_do_not_fit(size):
    with pytest.raises(ValueError, match="multiple of the patch size 16"):
        encode_depth(torch.ones(1, *size))


def test_missing_pixels_are_noise_at_every_level():
    tokens, noise = torch.zeros(1, 2, 4), torch.full((1, 2, 4), 7.0)
    valid = torch.tensor([[[True, False, True, True], [False] * 4]])
    filled = fill_missing(tokens, valid, noise)
    assert torch.equal(filled, torch.where(valid, 0.0, 7.0))
    assert not fill_missing(tokens * float("nan"), torch.zeros_like(valid), noise).isnan().any()
