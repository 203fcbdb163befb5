"""Pictures to model values and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modality_forcing.codecs import image as codec
from modality_forcing.config import AutoencoderConfig
from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder

CONFIG = AutoencoderConfig(
    channels=8, channel_multipliers=(1, 2, 2), num_res_blocks=1, z_channels=4, norm_groups=4
)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(CONFIG).eval()
    model.set_latent_statistics(torch.randn(16), torch.rand(16) + 0.5)
    return model


def test_every_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = codec.pixels_to_tensor(levels)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min(), tensor.max()) == (-1.0, 1.0)
    assert np.array_equal(codec.tensor_to_pixels(tensor), levels)


def test_one_picture_becomes_a_batch_and_channels_keep_their_order():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[1, 2] = (255, 0, 128)
    tensor = codec.pixels_to_tensor(pixels)
    assert tensor.shape == (1, 3, 2, 3)
    assert tensor[0, :, 1, 2].tolist() == pytest.approx([1.0, -1.0, 128 / 127.5 - 1], abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_arrays_that_pytorch_cannot_hold_are_copied():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    wanted = codec.pixels_to_tensor(pixels[..., ::-1].copy())
    frozen = pixels[..., ::-1].copy()
    frozen.setflags(write=False)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # the warning about read-only arrays comes once per process otherwise
    try:
        for view in (pixels[..., ::-1], frozen, np.asfortranarray(frozen)):
            assert torch.equal(codec.pixels_to_tensor(view), wanted)
    finally:
        torch.set_warn_always(before)


def test_values_out_of_range_are_clamped():
    assert codec.tensor_to_pixels(torch.full((1, 3, 2, 2), 7.0)).min() == 255
    assert codec.tensor_to_pixels(torch.full((1, 3, 2, 2), -7.0)).max() == 0


def test_nan_is_not_turned_into_a_picture():
    with pytest.raises(FloatingPointError):
        codec.tensor_to_pixels(torch.full((1, 3, 2, 2), float("nan")))


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_wrong_arrays(wrong):
    with pytest.raises(UserError, match="uint8"):
        codec.pixels_to_tensor(wrong)


def test_tokens_are_row_major():
    latents = torch.arange(2 * 5 * 3 * 4).reshape(2, 5, 3, 4)
    tokens = codec.latents_to_tokens(latents)
    assert torch.equal(tokens[1, 1 * 4 + 2], latents[1, :, 1, 2])
    assert torch.equal(codec.tokens_to_latents(tokens, 3, 4), latents)


def test_encode_and_decode_go_through_the_autoencoder(autoencoder, monkeypatch):
    images = torch.rand(5, 3, 16, 24) * 2 - 1
    tokens = codec.encode_image(autoencoder, images)
    assert tokens.shape == (5, 2 * 3, 16)
    assert not tokens.requires_grad
    with torch.no_grad():
        assert torch.equal(tokens, codec.latents_to_tokens(autoencoder.encode(images)))
        expected = autoencoder.decode(codec.tokens_to_latents(tokens, 2, 3))
    assert torch.equal(codec.decode_image(autoencoder, tokens, 2, 3), expected)
    monkeypatch.setattr(codec, "PIXELS_PER_PASS", 2 * 16 * 24)
    assert (codec.encode_image(autoencoder, images) - tokens).abs().max() < 1e-5
    assert (codec.decode_image(autoencoder, tokens, 2, 3) - expected).abs().max() < 1e-5


def test_half_precision_autoencoder_gives_float32(autoencoder):
    half = Autoencoder(CONFIG).eval()
    half.load_state_dict(autoencoder.state_dict())
    half.to(torch.bfloat16)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    tokens = codec.encode_image(half, images)
    assert tokens.dtype == torch.float32
    assert codec.decode_image(half, tokens, 2, 2).dtype == torch.float32


def test_autoencoder_refuses_what_does_not_fit(autoencoder):
    with pytest.raises(UserError, match="multiple of 8"):
        codec.encode_image(autoencoder, torch.zeros(1, 3, 16, 20))
    with pytest.raises(UserError, match=r"\(B, 3, H, W\)"):
        autoencoder.encode(torch.zeros(1, 4, 16, 16))
    with pytest.raises(UserError, match=r"\(B, 16, h, w\)"):
        autoencoder.decode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UserError, match="norm_groups"):
        AutoencoderConfig(channels=24)
    with pytest.raises(UserError, match="shape"):
        autoencoder.set_latent_statistics(torch.zeros(3), torch.ones(3))
    with pytest.raises(UserError, match="positive"):
        autoencoder.set_latent_statistics(torch.zeros(16), torch.zeros(16))


def test_statistics_make_latents_standard():
    torch.manual_seed(1)
    model = Autoencoder(CONFIG).eval()
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        raw = torch.nn.functional.pixel_unshuffle(model.encode_moments(images).chunk(2, 1)[0], 2)
        model.set_latent_statistics(raw.mean((0, 2, 3)), raw.var((0, 2, 3)))
        latents = model.encode(images)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3
    # Not exactly 1: 1e-4 is added to the variance, as in the published model.
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
    # Decoding sees the codes that were encoded.
    with torch.no_grad():
        direct = model.decoder(model.encode_moments(images).chunk(2, 1)[0])
        assert (model.decode(latents) - direct).abs().max() < 1e-4
