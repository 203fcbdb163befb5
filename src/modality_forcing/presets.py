"""Named models. Sizes of published models are facts (spec section 5); "tiny" and "lowpoly" are ours."""

from __future__ import annotations

from dataclasses import replace

from modality_forcing.config import (
    AutoencoderConfig,
    DepthConfig,
    ModelConfig,
    SamplerConfig,
    TextConfig,
    TransformerConfig,
)
from modality_forcing.errors import UserError

KLEIN_4B = TransformerConfig(
    hidden=3072, num_heads=24, num_double_blocks=5, num_single_blocks=20, text_width=7680
).backbone()
KLEIN_9B = TransformerConfig().backbone()
DEV_32B = replace(
    KLEIN_9B, hidden=6144, num_heads=48, num_single_blocks=48, text_width=15360, guidance_embedding=True
)
RGBD_9B_V2 = TransformerConfig()
RGBD_9B_V1 = replace(RGBD_9B_V2, cross_stream_mixing=False)
RGBD_4B = replace(KLEIN_4B, depth_channels=256, num_depth_blocks=4, cross_stream_mixing=True)

TRANSFORMERS: dict[str, TransformerConfig] = {
    "flux_rgbd_9b_v1": RGBD_9B_V1,
    "flux_rgbd_9b_v2": RGBD_9B_V2,
    "flux_rgbd_4b": RGBD_4B,
    "flux2_klein_4b": KLEIN_4B,
    "flux2_klein_9b": KLEIN_9B,
    "flux2_dev": DEV_32B,
}
"""Full-size transformers by variant name (the release's ``config.json`` gives the variant)."""

MINILM_WIDTH = 3 * 384

LOWPOLY = ModelConfig(
    name="lowpoly",
    transformer=TransformerConfig(
        latent_channels=32,
        depth_channels=256,
        text_width=MINILM_WIDTH,
        hidden=256,
        num_heads=4,
        num_double_blocks=2,
        num_single_blocks=6,
        num_depth_blocks=2,
        rope_axes=(16, 16, 16, 16),
        rope_theta=100,
    ),
    autoencoder=AutoencoderConfig(
        channels=16, channel_multipliers=(1, 2, 4, 6), num_res_blocks=1, z_channels=8, norm_groups=4
    ),
    text=TextConfig(encoder="minilm", max_tokens=32),
    depth=DepthConfig(sky="far"),
    sampler=SamplerConfig(steps=30, guidance=3.0, log2_alpha=0.0, width=128, height=128),
    licence="Apache-2.0",
)

TINY = ModelConfig(
    name="tiny",
    transformer=replace(
        LOWPOLY.transformer,
        hidden=64,
        num_heads=2,
        num_double_blocks=1,
        num_single_blocks=2,
        num_depth_blocks=1,
        rope_axes=(8, 8, 8, 8),
    ),
    autoencoder=AutoencoderConfig(channels=8, num_res_blocks=1, z_channels=8, norm_groups=4),
    text=TextConfig(encoder="minilm", max_tokens=16),
    depth=DepthConfig(sky="far"),
    sampler=SamplerConfig(steps=4, guidance=2.0, log2_alpha=0.0, width=64, height=64),
    licence="Apache-2.0",
)

MODELS: dict[str, ModelConfig] = {
    "lowpoly": LOWPOLY,
    "tiny": TINY,
    "flux_rgbd_9b_v1": ModelConfig(name="flux_rgbd_9b_v1", transformer=RGBD_9B_V1, licence="CC-BY-NC-4.0"),
    "flux_rgbd_9b_v2": ModelConfig(name="flux_rgbd_9b_v2", transformer=RGBD_9B_V2, licence="CC-BY-NC-4.0"),
    "flux_rgbd_4b": ModelConfig(
        name="flux_rgbd_4b", transformer=RGBD_4B, text=TextConfig(encoder="qwen3-4b"), licence="Apache-2.0"
    ),
}


def transformer_preset(name: str) -> TransformerConfig:
    """A full-size transformer by variant name.

    Raises:
        UserError: unknown name.
    """
    if name not in TRANSFORMERS:
        raise UserError(f"unknown variant {name!r}; known: {', '.join(TRANSFORMERS)}")
    return TRANSFORMERS[name]


def model_preset(name: str) -> ModelConfig:
    """A whole model's configuration by name.

    Raises:
        UserError: unknown name.
    """
    if name not in MODELS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(MODELS)}")
    return MODELS[name]
