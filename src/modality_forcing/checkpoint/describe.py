"""What a checkpoint is, from its tensors' shapes or from the configuration files of other layouts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from modality_forcing.config import AutoencoderConfig, ModelConfig, TextConfig, TransformerConfig
from modality_forcing.errors import UserError
from modality_forcing.presets import MODELS, TRANSFORMERS

Shape = tuple[int, ...]

# Encoders of the published backbones, by the width of their embeddings (spec section 5).
TEXT_ENCODERS = {7680: "qwen3-4b", 12288: "qwen3-8b", 15360: "mistral-small"}


def _count(names: Iterable[str], prefix: str) -> int:
    """Blocks numbered from 0 under ``prefix``."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(match[1]) for name in names if (match := pattern.match(name))), default=-1)


def transformer_from_shapes(shapes: Mapping[str, Shape]) -> TransformerConfig:
    """The configuration of a transformer under our names (those of BFL's files).

    The head size is split evenly over the four axes of the rotary embedding, whose base is FLUX.2's: shapes
    tell neither.

    Raises:
        UserError: these are not the names of such a transformer.
    """
    try:
        hidden, latent_channels = shapes["img_in.weight"]
        head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
        depth = shapes.get("depth_in.weight")
        return TransformerConfig(
            latent_channels=latent_channels,
            depth_channels=None if depth is None else depth[1],
            text_width=shapes["txt_in.weight"][1],
            hidden=hidden,
            num_heads=hidden // head,
            num_double_blocks=_count(shapes, "double_blocks"),
            num_single_blocks=_count(shapes, "single_blocks"),
            num_depth_blocks=_count(shapes, "depth_decoder_blocks"),
            rope_axes=(head // 4,) * 4,
            mlp_ratio=shapes["double_blocks.0.img_mlp.2.weight"][1] / hidden,
            guidance_embedding="guidance_in.in_layer.weight" in shapes,
            cross_stream_mixing="cross_alpha_img" in shapes,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"these weights are no FLUX.2 transformer: {error}") from None


def autoencoder_from_shapes(shapes: Mapping[str, Shape]) -> AutoencoderConfig:
    """The configuration of an autoencoder under our names, with or without the statistics' prefix.

    Raises:
        UserError: these are not the names of such an autoencoder.
    """
    try:
        channels, in_channels = shapes["encoder.conv_in.weight"][:2]
        levels = _count(shapes, "encoder.down")
        widths = [shapes[f"encoder.down.{level}.block.0.conv2.weight"][0] for level in range(levels)]
        return AutoencoderConfig(
            in_channels=in_channels,
            channels=channels,
            channel_multipliers=tuple(width // channels for width in widths),
            num_res_blocks=_count(shapes, "encoder.down.0.block"),
            z_channels=shapes["decoder.post_quant_conv.weight"][0],
        )
    except (KeyError, IndexError) as error:
        raise UserError(f"these weights are no FLUX.2 autoencoder: {error} is missing") from None


def transformer_from_diffusers(values: Mapping[str, Any]) -> TransformerConfig:
    """From ``transformer/config.json`` of a diffusers pipeline.

    Raises:
        UserError: not a ``Flux2Transformer2DModel``, or with a setting we do not have.
    """
    kind = values.get("_class_name")
    if kind != "Flux2Transformer2DModel":
        raise UserError(f"the diffusers model is a {kind}; a Flux2Transformer2DModel is needed")
    if values.get("patch_size", 1) != 1 or values.get("out_channels") not in (
        None,
        values.get("in_channels", 128),
    ):
        raise UserError("a diffusers transformer with its own patch size or output channels is not supported")
    heads = values.get("num_attention_heads", 48)
    return TransformerConfig(
        latent_channels=values.get("in_channels", 128),
        text_width=values.get("joint_attention_dim", 15360),
        hidden=heads * values.get("attention_head_dim", 128),
        num_heads=heads,
        num_double_blocks=values.get("num_layers", 8),
        num_single_blocks=values.get("num_single_layers", 48),
        rope_axes=tuple(values.get("axes_dims_rope", (32, 32, 32, 32))),
        rope_theta=values.get("rope_theta", 2000),
        mlp_ratio=values.get("mlp_ratio", 3.0),
        guidance_embedding=values.get("guidance_embeds", True),
    ).backbone()


def transformer_to_diffusers(config: TransformerConfig) -> dict[str, Any]:
    """``config.json`` of diffusers' ``Flux2Transformer2DModel``.

    Raises:
        UserError: diffusers has no depth stream and no flat family.
    """
    if config.family != "flux2":
        raise UserError("the diffusers layout holds FLUX.2 backbones; this model is of the flat family")
    if config.depth_channels is not None:
        raise UserError("the diffusers layout has no depth stream; only a text-to-image backbone fits it")
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": config.latent_channels,
        "out_channels": None,
        "num_layers": config.num_double_blocks,
        "num_single_layers": config.num_single_blocks,
        "attention_head_dim": config.hidden // config.num_heads,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.text_width,
        "timestep_guidance_channels": 256,
        "mlp_ratio": config.mlp_ratio,
        "axes_dims_rope": list(config.rope_axes),
        "rope_theta": config.rope_theta,
        "eps": 1e-6,
        "guidance_embeds": config.guidance_embedding,
    }


def autoencoder_from_diffusers(values: Mapping[str, Any]) -> AutoencoderConfig:
    """From ``vae/config.json`` of a diffusers pipeline.

    Raises:
        UserError: not an ``AutoencoderKLFlux2``, or with a setting we do not have.
    """
    kind = values.get("_class_name")
    if kind != "AutoencoderKLFlux2":
        raise UserError(f"the diffusers autoencoder is a {kind}; an AutoencoderKLFlux2 is needed")
    fixed = {
        "act_fn": "silu",
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "batch_norm_eps": 1e-4,
        "decoder_block_out_channels": None,
    }
    for key, only in fixed.items():
        if values.get(key, only) != only:
            raise UserError(f"the diffusers autoencoder has {key}={values[key]}; only {only} is supported")
    widths = values.get("block_out_channels", (128, 256, 512, 512))
    return AutoencoderConfig(
        in_channels=values.get("in_channels", 3),
        channels=widths[0],
        channel_multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=values.get("layers_per_block", 2),
        z_channels=values.get("latent_channels", 32),
        norm_groups=values.get("norm_num_groups", 32),
    )


def autoencoder_to_diffusers(config: AutoencoderConfig) -> dict[str, Any]:
    """``config.json`` of diffusers' ``AutoencoderKLFlux2``."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKLFlux2",
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.num_res_blocks,
        "act_fn": "silu",
        "latent_channels": config.z_channels,
        "norm_num_groups": config.norm_groups,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "mid_block_add_attention": True,
        "batch_norm_eps": 1e-4,
        "batch_norm_momentum": 0.1,
        "patch_size": [2, 2],
    }


def variant_name(config: TransformerConfig) -> str | None:
    """The name of the published model of exactly these sizes."""
    return next((name for name, known in TRANSFORMERS.items() if known == config), None)


def backbone_model(transformer: TransformerConfig, autoencoder: AutoencoderConfig) -> ModelConfig:
    """A whole configuration around a text-to-image backbone from another layout."""
    name = variant_name(transformer)
    if name is not None:
        return replace(MODELS[name], autoencoder=autoencoder)
    encoder = TEXT_ENCODERS.get(transformer.text_width, "unknown")
    return ModelConfig(
        name="flux2", transformer=transformer, autoencoder=autoencoder, text=TextConfig(encoder=encoder)
    )
