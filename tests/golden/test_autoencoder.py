"""The autoencoder against numbers of the released code (random weights, toy size)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modality_forcing.model.autoencoder import Autoencoder, AutoencoderConfig

DATA = Path(__file__).parent / "data"
TOLERANCE = 5e-5  # about 5 to 10 times the largest difference between equivalent evaluations of the original


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(DATA / "ae_small.io.safetensors")


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    config = AutoencoderConfig(channels=32, channel_multipliers=(1, 2, 2), num_res_blocks=1, z_channels=4)
    model = Autoencoder(config).eval()
    model.encoder.load_state_dict(load_file(DATA / "ae_encoder_small.weights.safetensors"))
    model.decoder.load_state_dict(load_file(DATA / "ae_decoder_small.weights.safetensors"))
    return model.requires_grad_(False)


def nchw(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2).contiguous()


def max_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def test_moments(autoencoder, golden):
    moments = autoencoder.encode_moments(nchw(golden["in.image_nhwc"]))
    assert max_difference(moments, golden["out.moments_nchw"]) < TOLERANCE


def test_latents(autoencoder, golden):
    latents = autoencoder.encode(nchw(golden["in.image_nhwc"]))
    assert max_difference(latents, nchw(golden["out.latents_nhwc"])) < TOLERANCE


def test_reconstruction(autoencoder, golden):
    image = autoencoder.decode(nchw(golden["out.latents_nhwc"]))
    assert max_difference(image, nchw(golden["out.recon_nhwc"])) < TOLERANCE


def test_decode_of_random_latents(autoencoder, golden):
    image = autoencoder.decode(nchw(golden["in.z_random_nhwc"]))
    assert max_difference(image, nchw(golden["out.recon_of_z_random_nhwc"])) < TOLERANCE


def test_train_mode_leaves_the_statistics_alone(autoencoder, golden):
    before = autoencoder.encoder.bn.running_mean.clone()
    images = nchw(golden["in.image_nhwc"])
    reference = autoencoder.encode(images)
    autoencoder.train()
    try:
        assert torch.equal(autoencoder.encode(images), reference)
        assert torch.equal(autoencoder.encoder.bn.running_mean, before)
    finally:
        autoencoder.eval()


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_every_key_and_shape_of_the_full_size(half):
    expected = json.loads((DATA / f"keys_ae_{half}_default.json").read_text())
    with torch.device("meta"):
        model = getattr(Autoencoder(), half)
    state = model.state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {
        k: v["shape"] for k, v in expected["keys"].items()
    }
    assert sum(p.numel() for p in model.parameters()) == expected["total_parameters"]
