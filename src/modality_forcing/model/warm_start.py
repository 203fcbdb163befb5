"""Initialisation: from scratch, and a text-to-image backbone grown into an RGB-D model (spec section 5)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from modality_forcing.config import RefinerConfig
from modality_forcing.errors import UserError
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.model.refiner import DepthRefiner

CLONED = (
    (re.compile(r"^(double_blocks\.\d+)\.depth_(attn|mlp)\."), r"\1.img_\2."),
    (re.compile(r"^double_stream_modulation_depth\."), "double_stream_modulation_img."),
    (re.compile(r"^single_stream_modulation_depth\."), "single_stream_modulation."),
    (re.compile(r"^modulation_depth\."), "modulation."),
)
"""Depth-stream tensors that start as copies of the image stream's (the last one is the flat family's)."""

FRESH_PREFIXES = (
    "depth_in.",
    "time_in_depth.",
    "time_in_depth_to_img.",
    "time_in_rgb_to_depth.",
    "cross_alpha_img",
    "cross_alpha_depth",
    "depth_decoder_blocks.",
    "depth_decoder_modulation.",
    "depth_final_layer.",
)
"""Depth-stream tensors that start from scratch."""

FREEZE_RULES = {
    "rgb_double_blocks": re.compile(r"^double_blocks\.\d+\.(img|txt)_"),
    "trunk": re.compile(r"^(?!depth_decoder_|depth_final_layer\.)"),
}
"""Freeze lists with a name. "rgb_double_blocks": RGB weights of the double blocks, frozen in FLUX.2
post-training (spec section 5). "trunk" (ours): all but depth's own blocks after the shared ones and its head,
on which no image depends."""


SMOOTH_GAIN = 4.0
"""Of :func:`smooth_depth_head`: a feature of 1 moves a whole 16x16 patch by a quarter of the mean depth."""


def initialise(model: DiffusionTransformer, generator: torch.Generator) -> None:
    """Weights from scratch: scaled normal matrices, zero modulations and heads (each block starts as the
    identity and each head at zero), zero mixers."""
    for name, parameter in model.named_parameters():
        initialise_tensor(name, parameter, generator)


@torch.no_grad()
def initialise_autoencoder(model: nn.Module) -> None:
    """Start every residual branch at zero: the fresh autoencoder is then almost linear, and a linear one
    learns in a few hundred steps (ours)."""
    for name, parameter in model.named_parameters():
        if ".conv2." in name or ".proj_out." in name:
            parameter.zero_()


@torch.no_grad()
def initialise_tensor(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """One tensor's fresh value, by its role."""
    if "cross_alpha" in name or "modulation" in name.lower() or name.endswith("final_layer.linear.weight"):
        parameter.zero_()
    elif parameter.dim() == 1:
        parameter.fill_(1.0)
    else:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)


def warm_start(
    model: DiffusionTransformer, backbone: dict[str, Tensor], generator: torch.Generator
) -> dict[str, list[str]]:
    """Fill an RGB-D model from a text-to-image backbone's tensors.

    Args:
        model: with a depth stream; overwritten in place.
        backbone: the T2I model's state, complete.

    Returns:
        The names of the copied, cloned and fresh tensors.

    Raises:
        ValueError: a tensor of the backbone is missing, left over or misshapen, or one of ours has no rule.
    """
    report: dict[str, list[str]] = {"copied": [], "cloned": [], "fresh": []}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source = next((p.sub(new, name) for p, new in CLONED if p.match(name)), None)
            if source is not None:
                parameter.copy_(_shaped(backbone, source, parameter))
                report["cloned"].append(name)
            elif name.startswith(FRESH_PREFIXES):
                initialise_tensor(name, parameter, generator)
                report["fresh"].append(name)
            else:
                parameter.copy_(_shaped(backbone, name, parameter))
                report["copied"].append(name)
    surplus = set(backbone) - set(report["copied"])
    if surplus:
        raise ValueError(f"the backbone has tensors the model does not: {sorted(surplus)[:5]}")
    return report


@torch.no_grad()
def smooth_depth_head(model: DiffusionTransformer) -> None:
    """Start the depth head with smooth patches (ours, for sparse supervision): column k is the cosine pattern
    (2-D DCT-II) of the k-th lowest frequency, weaker the higher it is.

    From zeros every pixel of a patch has to learn from its own measurements; a pixel seen once in twenty
    samples is then an isolated dot for long. From smooth patches each measurement moves its neighbours too.
    """
    weight = model.depth_final_layer.linear.weight  # (patch^2, D)
    patch = math.isqrt(weight.shape[0])
    at = torch.arange(patch, dtype=torch.float32)
    waves = torch.cos(math.pi / patch * (at[:, None] + 0.5) * at)  # (position, frequency)
    waves = waves / waves.norm(dim=0)
    radius = (at[:, None].square() + at.square()).sqrt().flatten()
    lowest = radius.argsort(stable=True)[: weight.shape[1]]
    patterns = torch.einsum("yu,xv->yxuv", waves, waves).reshape(patch * patch, patch * patch)
    strength = SMOOTH_GAIN / (1.0 + radius).square()
    weight.zero_()
    weight[:, : len(lowest)] = (patterns * strength)[:, lowest]


def freeze(model: nn.Module, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Stop training some weights.

    Args:
        names: names of parameters, their beginnings up to a dot ("img_in", "single_blocks.3"), or names in
            ``FREEZE_RULES``.

    Returns:
        Names of the parameters that train and of those that do not.

    Raises:
        UserError: an entry fits no parameter of this model. Nothing is frozen then.
    """
    parameters = dict(model.named_parameters())
    chosen: set[str] = set()
    for entry in names:
        rule = FREEZE_RULES.get(entry)
        if rule is not None:
            hit = {name for name in parameters if rule.match(name)}
        else:
            hit = {name for name in parameters if name == entry or name.startswith(entry.rstrip(".") + ".")}
        if not hit:
            parts = sorted({name.split(".")[0] for name in parameters})
            raise UserError(
                f"freeze names {entry!r}, which no weight of this model begins with; "
                f"known: {', '.join([*FREEZE_RULES, *parts])}"
            )
        chosen |= hit
    for name in chosen:
        parameters[name].requires_grad_(False)
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    return trainable, [name for name in parameters if name not in set(trainable)]


def _shaped(backbone: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    if name not in backbone:
        raise ValueError(f"the backbone lacks {name}")
    if backbone[name].shape != like.shape:
        raise ValueError(f"{name} is {tuple(backbone[name].shape)}, the model needs {tuple(like.shape)}")
    return backbone[name]


def deepen_refiner(refiner: DepthRefiner, config: RefinerConfig, weights: Mapping[str, Tensor]) -> None:
    """Fill ``refiner`` with the weights of one as wide and no deeper; blocks that it lacks stay the identity.

    Args:
        config, weights: sizes and state dict of the other one.

    Raises:
        ValueError: sizes that do not fit.
    """
    ours = refiner.config
    fits = replace(config, blocks=ours.blocks) == ours
    if not fits or any(a < b for a, b in zip(ours.blocks, config.blocks, strict=True)):
        raise ValueError(f"a refiner of {config} does not fit into {ours}; right is as wide and no deeper")
    refiner.load_state_dict({**refiner.state_dict(), **weights}, strict=True)
