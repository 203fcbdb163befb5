"""Named models. Sizes of published models are facts (spec sections 5, 8); the rest is ours."""

from __future__ import annotations

from dataclasses import replace

from modality_forcing.config import (
    AutoencoderConfig,
    DepthConfig,
    FlowConfig,
    ModelConfig,
    SamplerConfig,
    TextConfig,
    TransformerConfig,
)
from modality_forcing.errors import UserError

RGBD_9B_V2 = TransformerConfig()
RGBD_9B_V1 = replace(RGBD_9B_V2, cross_stream_mixing=False)
RGBD_4B = replace(
    RGBD_9B_V2, hidden=3072, num_heads=24, num_double_blocks=5, num_single_blocks=20, text_width=7680
)
RGBD_DEV = replace(
    RGBD_9B_V2, hidden=6144, num_heads=48, num_single_blocks=48, text_width=15360, guidance_embedding=True
)

MINILM_WIDTH = 3 * 384

LOWPOLY = ModelConfig(
    name="lowpoly",
    transformer=TransformerConfig(
        latent_channels=32,
        depth_channels=256,
        text_width=MINILM_WIDTH,
        hidden=192,
        num_heads=3,
        num_double_blocks=2,
        num_single_blocks=4,
        num_depth_blocks=2,
        rope_axes=(16, 16, 16, 16),
        rope_theta=100,
    ),
    autoencoder=AutoencoderConfig(
        channels=16, channel_multipliers=(1, 2, 4, 6), num_res_blocks=1, z_channels=8, norm_groups=4
    ),
    text=TextConfig(encoder="minilm", max_tokens=48),
    depth=DepthConfig(sky="far"),
    # One step is the best guess of a model that is unsure; many drift (docs/lowpoly.md).
    sampler=SamplerConfig(
        steps=16,
        steps_i2d=1,
        guidance=14.0,
        guidance_d2i=5.0,
        guidance_depth=6.0,
        guidance_parallel=0.0,
        guide_image_only=True,
        log2_alpha=8.0,
        refine_depth=True,
        edge_radius=2,
        width=128,
        height=128,
    ),
    licence="Apache-2.0",
)

# Not in LOWPOLY itself: `mf train` makes the transformer, the refiner comes beside it afterwards.
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

TINY_FLAT = replace(
    TINY,
    name="tiny-flat",
    transformer=replace(
        TINY.transformer,
        family="flat",
        num_heads=4,
        num_kv_heads=1,
        num_double_blocks=0,
        num_single_blocks=3,
        rope_axes=(4, 4, 4, 4),
    ),
    flow=FlowConfig(rgb_prediction="x0"),
)


UMT5_XXL_WIDTH = 4096


def _flat(name: str, hidden: int) -> ModelConfig:
    """One size of the scaling study with its depth stream: 30 blocks, heads of 128, one in four with keys."""
    transformer = TransformerConfig(
        family="flat",
        text_width=UMT5_XXL_WIDTH,
        hidden=hidden,
        num_heads=hidden // 128,
        num_kv_heads=hidden // 512,
        num_double_blocks=0,
        num_single_blocks=30,
    )
    return ModelConfig(
        name=name,
        transformer=transformer,
        text=TextConfig(encoder="umt5-xxl", max_tokens=128),
        flow=FlowConfig(rgb_prediction="x0"),
        sampler=SamplerConfig(width=256, height=256),
        licence="Apache-2.0",
    )


def _flux2(name: str, transformer: TransformerConfig, encoder: str, licence: str) -> ModelConfig:
    return ModelConfig(name=name, transformer=transformer, text=TextConfig(encoder=encoder), licence=licence)


NON_COMMERCIAL = "FLUX Non-Commercial License"
_RGBD = (
    _flux2("flux_rgbd_9b_v1", RGBD_9B_V1, "qwen3-8b", "CC-BY-NC-4.0"),
    _flux2("flux_rgbd_9b_v2", RGBD_9B_V2, "qwen3-8b", "CC-BY-NC-4.0"),
)
_GROWN = (
    _flux2("flux2-klein-4b", RGBD_4B, "qwen3-4b", "Apache-2.0"),
    _flux2("flux2-klein-9b", RGBD_9B_V2, "qwen3-8b", NON_COMMERCIAL),
    _flux2("flux2-dev", RGBD_DEV, "mistral-small", NON_COMMERCIAL),
    _flat("t2i-370m", 1024),
    _flat("t2i-800m", 1536),
    _flat("t2i-3.3b", 3072),
)
"""Text-to-image models, here with the depth stream that the forcing stage grows on them."""


def _both(model: ModelConfig) -> tuple[ModelConfig, ModelConfig]:
    """The text-to-image model and, as NAME-rgbd, the one with depth."""
    t2i = replace(model, transformer=model.transformer.backbone())
    return t2i, replace(model, name=f"{model.name}-rgbd")


MODELS: dict[str, ModelConfig] = {
    model.name: model
    for model in (LOWPOLY, TINY, TINY_FLAT, *_RGBD, *(one for grown in _GROWN for one in _both(grown)))
}

TRANSFORMERS: dict[str, TransformerConfig] = {
    name: model.transformer for name, model in MODELS.items() if name.startswith("flux")
}
"""Full-size FLUX.2 transformers by variant name (the release's ``config.json`` gives the variant)."""

FREEZE: dict[str, tuple[str, ...]] = {
    f"flux2-{size}-rgbd": ("rgb_double_blocks",) for size in ("klein-4b", "klein-9b", "dev")
}
"""What the recipes of a model do not train (spec section 5)."""


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
