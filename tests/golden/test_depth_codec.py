"""Depth tokens and decoded depth against the released codec.

The original divides a batch by one common mean; ours normalises each item, so its single-item case is the
common ground and the batch is compared item by item with itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modality_forcing.codecs.depth import MAX_CONTRACTED, contract, decode_depth, encode_depth, patchify

GOLDEN = load_file(Path(__file__).parent / "data" / "depth_codec.safetensors")
TOKENS, DECODED_RELATIVE = 1e-6, 2e-5
HEIGHT, WIDTH = 48, 64


@pytest.mark.parametrize("patch", [8, 16])
def test_tokens(patch):
    tokens, valid, mean = encode_depth(GOLDEN["in.depth_b1"][..., 0], patch=patch)
    expected = GOLDEN[f"p{patch}.default.b1.tokens"].flatten(1, 2)
    assert tokens.shape == expected.shape
    assert (tokens - expected).abs().max().item() < TOKENS
    assert valid.all()
    torch.testing.assert_close(mean, GOLDEN["in.depth_b1"].mean().reshape(1))


@pytest.mark.parametrize("patch", [8, 16])
def test_decoded_depth(patch):
    tokens = GOLDEN[f"p{patch}.default.b1.tokens"].flatten(1, 2)
    depth = decode_depth(tokens, HEIGHT // patch, WIDTH // patch, patch)
    expected = GOLDEN[f"p{patch}.default.b1.roundtrip"][..., 0]
    assert depth.shape == expected.shape
    assert ((depth - expected) / expected).abs().max().item() < DECODED_RELATIVE


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("patch", [8, 16])
def test_an_item_is_encoded_as_if_alone(patch, item):
    depth = GOLDEN["in.depth_b2"][..., 0]
    together, _, means = encode_depth(depth, patch=patch)
    alone, _, mean = encode_depth(depth[item : item + 1], patch=patch)
    assert torch.equal(together[item : item + 1], alone)
    assert torch.equal(means[item : item + 1], mean)
    # The common mean of the original moves every token: this is the difference that is meant.
    assert (alone - GOLDEN[f"p{patch}.default.b2.tokens"].flatten(1, 2)[item]).abs().max().item() > 1e-3


@pytest.mark.parametrize("batch", ["b1", "b2"])
@pytest.mark.parametrize("patch", [8, 16])
def test_contraction_and_patches_alone(patch, batch):
    depth = GOLDEN[f"in.depth_{batch}"][..., 0]
    contracted = patchify(contract(depth), patch)
    expected = GOLDEN[f"p{patch}.contract_only.{batch}.tokens"].flatten(1, 2)
    assert (contracted - expected).abs().max().item() < TOKENS
    plain = GOLDEN[f"p{patch}.none.{batch}.tokens"].flatten(1, 2)
    assert torch.equal(patchify(depth, patch), plain)


def test_tokens_outside_the_range_stay_positive_and_finite():
    tokens = GOLDEN["in.raw_tokens"]  # (2, 3, 64): from -2.5 to 2.5 with one exact 2
    # The original stored its decoding as one column of 2 images of 8 x 24.
    expected = GOLDEN["p8.raw_decoded"][..., 0].reshape(2, 8, 24)
    depth = decode_depth(tokens, 1, 3, 8)
    assert torch.isfinite(depth).all()
    assert (depth > 0).all()
    z = patchify(depth, 8)
    sensible = (tokens > 0.01) & (tokens < MAX_CONTRACTED - 0.01)
    assert sensible.sum() > 50
    reference = patchify(expected, 8)[sensible]
    assert ((z[sensible] - reference) / reference).abs().max().item() < DECODED_RELATIVE
    # Where the original turns negative or infinite, ours is "at infinity".
    beyond = tokens >= 2.0
    assert beyond.any()
    assert (patchify(expected, 8)[beyond] < 0).any()
    assert (z[beyond] > 1e3).all()
