"""Arithmetic of a transformer, counted from its layers (derived in docs/models.md).

A multiplication and an addition are two operations. Counted are matrix products: linear layers and attention;
norms, activations and rotations are below one per cent of them at every size we have.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from modality_forcing.config import TransformerConfig

# Linear layers by what passes through them. Everything else works on one vector per sample.
_ROWS = (
    (re.compile(r"^txt_in$|^double_blocks\.\d+\.txt_"), "text"),
    (re.compile(r"^img_in$|^final_layer\.linear$|^double_blocks\.\d+\.img_"), "image"),
    (re.compile(r"^depth_in$|^depth_final_layer\.linear$|^double_blocks\.\d+\.depth_"), "depth"),
    (re.compile(r"^depth_decoder_blocks\."), "depth"),
    (re.compile(r"^(single_)?blocks\."), "all"),
)
# What nothing trainable stands in front of: no gradient flows to their inputs.
_ENTRY = re.compile(r"^(img_in|depth_in|(time|guidance)_in\w*\.in_layer)$")


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample by stream."""

    text: int
    image: int
    depth: int = 0

    @property
    def all(self) -> int:
        """What attention in the shared blocks sees."""
        return self.text + self.image + self.depth


@dataclass(frozen=True)
class Flops:
    """Operations of one sample.

    Attributes:
        forward: one forward pass.
        backward: gradients of inputs and of the weights that train.
        recomputed: the blocks' forward pass once more, with activation checkpointing.
    """

    forward: float
    backward: float
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What training needs: the numerator of model FLOP utilisation (MFU)."""
        return self.forward + self.backward

    @property
    def hardware(self) -> float:
        """What is computed, recomputation included."""
        return self.model + self.recomputed


def rows(name: str, tokens: Tokens) -> int:
    """How many vectors of one sample pass through a linear layer of that name."""
    return next((getattr(tokens, stream) for pattern, stream in _ROWS if pattern.match(name)), 1)


def attention_flops(config: TransformerConfig, tokens: Tokens) -> float:
    """Q K^T and its product with V in every block: 4 N^2 D each; grouped queries save memory, not work."""
    depth_blocks = config.num_depth_blocks if tokens.depth else 0
    shared = config.num_double_blocks + config.num_single_blocks
    return 4.0 * config.hidden * (shared * tokens.all**2 + depth_blocks * tokens.depth**2)


def forward_flops(model: nn.Module, config: TransformerConfig, tokens: Tokens) -> float:
    """One sample through the model (which may be on the meta device).

    Without depth tokens a model with a depth stream counts as its own backbone (the teacher).
    """
    linear = sum(
        2.0 * layer.weight.numel() * rows(name, tokens)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and (tokens.depth or not of_depth(name))
    )
    return linear + attention_flops(config, tokens)


def training_flops(
    model: nn.Module,
    config: TransformerConfig,
    tokens: Tokens,
    *,
    adapted: Collection[str] = (),
    rank: int = 0,
    checkpointing: bool = False,
) -> Flops:
    """One sample forward and backward; which weights train is read from the parameters.

    Each linear layer costs its forward pass again for the gradient of its input, and again for that of its
    weight if it trains; attention costs twice its forward pass.

    Args:
        adapted: names of the layers with a low-rank adapter of ``rank``, not yet in the model.
        checkpointing: recompute the blocks in the backward pass.
    """
    forward = backward = blocks = 0.0
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        through = rows(name, tokens)
        own = 2.0 * layer.weight.numel() * through
        low = 2.0 * rank * (layer.in_features + layer.out_features) * through if name in adapted else 0.0
        forward += own + low
        # The flat family has a trainable norm in front of its text projection.
        entry = _ENTRY.match(name) or (name == "txt_in" and not hasattr(model, "txt_norm"))
        backward += (0.0 if entry else own) + 2 * low
        backward += own if layer.weight.requires_grad else 0.0
        blocks += own + low if "blocks." in name else 0.0
    attention = attention_flops(config, tokens)
    recomputed = blocks + attention if checkpointing else 0.0
    return Flops(forward + attention, backward + 2 * attention, recomputed)


def of_depth(name: str) -> bool:
    """Whether a layer or weight belongs to the depth stream: it has no part in the text-to-image model."""
    return "depth" in name or name.startswith("cross_alpha")
