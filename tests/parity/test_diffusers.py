"""Our modules against diffusers' own classes, with the same random weights carried over by the key maps.

diffusers builds its rotary and timestep tables in another precision than the released code (and we), which
moves outputs by up to 5e-4 (3e-3 with embedded guidance): see the tolerances of the golden files. Otherwise
they agree to rounding, which the second transformer test shows.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from modality_forcing.checkpoint import keymaps
from modality_forcing.checkpoint.describe import autoencoder_to_diffusers, transformer_to_diffusers
from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.checkpoint.writing import convert, save_model
from modality_forcing.codecs.positions import image_ids, text_ids
from modality_forcing.config import AutoencoderConfig, ModelConfig, TransformerConfig
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer

diffusers = pytest.importorskip("diffusers")

ROWS, COLS, NUM_TEXT, BATCH = 3, 5, 7, 2
AE_CONFIG = AutoencoderConfig(
    channels=16, channel_multipliers=(1, 2, 2), num_res_blocks=1, z_channels=4, norm_groups=8
)


def backbone_config(guidance: bool) -> TransformerConfig:
    return TransformerConfig(
        latent_channels=16,
        text_width=48,
        hidden=64,
        num_heads=2,
        num_double_blocks=2,
        num_single_blocks=3,
        rope_axes=(8, 8, 8, 8),
        guidance_embedding=guidance,
    ).backbone()


def randomise(module: torch.nn.Module) -> None:
    """Weights at which every path matters: the default initialisation leaves norms at 1 and biases near 0."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            centre = 1.0 if "norm" in name and not name.endswith("bias") else 0.0
            torch.nn.init.normal_(parameter, centre, 0.2)


def without_class(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_class_name"}


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "guidance"])
def backbones(request):
    torch.manual_seed(3)
    config = backbone_config(request.param)
    ours = Transformer(config).eval()
    randomise(ours)
    theirs = diffusers.Flux2Transformer2DModel(**without_class(transformer_to_diffusers(config))).eval()
    key_map = keymaps.diffusers_transformer_map(ours.state_dict())
    theirs.load_state_dict(key_map.to_theirs(ours.state_dict()), strict=True)
    return ours, theirs


def run_both(ours, theirs):
    generator = torch.Generator().manual_seed(5)
    rgb = torch.randn(BATCH, ROWS * COLS, 16, generator=generator)
    text = torch.randn(BATCH, NUM_TEXT, 48, generator=generator)
    t = torch.tensor([0.73, 0.21])
    guidance = torch.tensor([4.0, 1.5]) if ours.config.guidance_embedding else None
    ids = text_ids(NUM_TEXT), image_ids(ROWS, COLS)
    with torch.no_grad():
        mine, depth = ours(rgb, None, text, ours.rope(*ids), t, None, guidance)
        other = theirs(rgb, text, t, ids[1], ids[0], guidance=guidance).sample
    assert depth is None
    return mine, other


def test_backbone(backbones):
    mine, other = run_both(*backbones)
    tolerance = 3e-3 if backbones[0].config.guidance_embedding else 5e-4
    assert other.abs().max() > 1
    assert (mine - other).abs().max() < tolerance


def test_backbone_to_rounding_with_the_same_tables(backbones, monkeypatch):
    """With diffusers' rotary and timestep tables in our transformer, nothing but rounding is left."""
    from modality_forcing.model import base

    ours, theirs = backbones

    def their_rope(ids, axes, theta):
        # Theirs repeats each value for both members of a pair.
        cos, sin = theirs.pos_embed(ids)
        return torch.stack([cos[:, ::2], sin[:, ::2]], dim=-1)

    monkeypatch.setattr(base, "rope_table", their_rope)
    monkeypatch.setattr(base, "timestep_embedding", lambda t: theirs.time_guidance_embed.time_proj(t * 1000))
    mine, other = run_both(ours, theirs)
    assert (mine - other).abs().max() < (5e-5 if ours.config.guidance_embedding else 3e-5)


@pytest.fixture(scope="module")
def autoencoders():
    torch.manual_seed(4)
    ours = Autoencoder(AE_CONFIG).eval()
    randomise(ours)
    channels = AE_CONFIG.latent_channels
    ours.set_latent_statistics(torch.randn(channels) * 0.5, torch.rand(channels) * 1.5 + 0.5)
    theirs = diffusers.AutoencoderKLFlux2(**without_class(autoencoder_to_diffusers(AE_CONFIG))).eval()
    key_map = keymaps.diffusers_autoencoder_map(ours.state_dict())
    theirs.load_state_dict(key_map.to_theirs(ours.state_dict()), strict=True)
    return ours, theirs


@torch.no_grad()
def test_autoencoder(autoencoders):
    ours, theirs = autoencoders
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    moments = theirs._encode(images)
    assert moments.abs().max() > 1
    assert (ours.encode_moments(images) - moments).abs().max() < 5e-5
    mean = theirs.encode(images).latent_dist.mode()
    # What diffusers' pipelines do around the autoencoder: unshuffle, then the running statistics.
    unshuffled = torch.nn.functional.pixel_unshuffle(mean, 2)
    latents = theirs.bn(unshuffled)
    assert (ours.encode(images) - latents).abs().max() < 5e-5
    assert (ours.decode(latents) - theirs.decode(mean).sample).abs().max() < 1e-4


def test_diffusers_loads_what_we_write(backbones, autoencoders, tmp_path):
    transformer, autoencoder = backbones[0], autoencoders[0]
    config = ModelConfig(transformer=transformer.config, autoencoder=AE_CONFIG)
    save_model(
        tmp_path / "a", config, transformer=transformer.state_dict(), autoencoder=autoencoder.state_dict()
    )
    folder = convert(tmp_path / "a", tmp_path / "b", "diffusers")
    loaded = diffusers.Flux2Transformer2DModel.from_pretrained(folder / "transformer")
    for name, value in backbones[1].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    vae = diffusers.AutoencoderKLFlux2.from_pretrained(folder / "vae")
    for name, value in autoencoders[1].state_dict().items():
        assert torch.equal(vae.state_dict()[name], value), name


def test_we_load_what_diffusers_writes(backbones, autoencoders, tmp_path):
    backbones[1].save_pretrained(tmp_path / "transformer", max_shard_size="500KB")
    autoencoders[1].save_pretrained(tmp_path / "vae")
    index = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.layout == "diffusers"
    assert checkpoint.config.transformer == backbones[0].config
    assert checkpoint.config.autoencoder == AE_CONFIG
    for name, value in checkpoint.load_transformer().state_dict().items():
        assert torch.equal(value, backbones[0].state_dict()[name]), name
    for name, value in checkpoint.load_autoencoder().state_dict().items():
        assert torch.equal(value, autoencoders[0].state_dict()[name]), name


@pytest.mark.parametrize("variant", ["flux2-klein-4b", "flux2-dev"])
def test_names_and_shapes_at_full_size(variant):
    from modality_forcing.presets import TRANSFORMERS

    config = TRANSFORMERS[variant]
    with torch.device("meta"):
        ours = Transformer(config).state_dict()
        theirs = diffusers.Flux2Transformer2DModel(
            **without_class(transformer_to_diffusers(config))
        ).state_dict()
    key_map = keymaps.diffusers_transformer_map(ours)
    shapes = {
        name: shape
        for entry in key_map.entries
        for name, shape in zip(
            entry.theirs, entry.their_shapes(tuple(ours[entry.ours[0]].shape)), strict=True
        )
    }
    assert shapes == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
