"""Transformer blocks over named streams (spec section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.config import TransformerConfig
from modality_forcing.model.layers import (
    GatedSiLU,
    QKNorm,
    attend,
    modulate,
    queries_keys_values,
)

Streams = dict[str, Tensor]
"""Tokens (B, N, D) by stream name, in attention order: "txt", "img" and, with depth, "depth"."""

GatedModulation = tuple[Tensor, ...]
"""shift, scale, gate, each (B, 1, D) or (B, N, D)."""


class StreamAttention(nn.Module):
    """One stream's own projections around the joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.norm = QKNorm(config.head_size)
        self.proj = nn.Linear(config.hidden, config.hidden, bias=False)


class DoubleBlock(nn.Module):
    """Each stream has its own weights; all streams attend to each other."""

    def __init__(self, config: TransformerConfig, streams: tuple[str, ...]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.mlp_width
        for name in streams:
            self.add_module(f"{name}_attn", StreamAttention(config))
            mlp = nn.Sequential(
                nn.Linear(config.hidden, 2 * inner, bias=False),
                GatedSiLU(),
                nn.Linear(inner, config.hidden, bias=False),
            )
            self.add_module(f"{name}_mlp", mlp)

    def forward(self, streams: Streams, modulation: dict[str, tuple[Tensor, ...]], rope: Tensor) -> Streams:
        """``modulation``: six vectors per stream (shift, scale, gate for attention, then for the MLP)."""
        parts = []
        for name, x in streams.items():
            shift, scale = modulation[name][:2]
            attn: StreamAttention = getattr(self, f"{name}_attn")
            parts.append(queries_keys_values(attn.qkv(modulate(x, shift, scale)), self.num_heads, attn.norm))
        q, k, v = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
        mixed = attend(q, k, v, rope).split([x.shape[1] for x in streams.values()], dim=1)
        out: Streams = {}
        for (name, x), attended in zip(streams.items(), mixed, strict=True):
            _, _, gate, shift2, scale2, gate2 = modulation[name]
            x = x + gate * getattr(self, f"{name}_attn").proj(attended)
            out[name] = x + gate2 * getattr(self, f"{name}_mlp")(modulate(x, shift2, scale2))
        return out


class SingleBlock(nn.Module):
    """One set of weights for all tokens; attention and MLP in parallel from one projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.hidden = config.hidden
        inner = config.mlp_width
        self.linear1 = nn.Linear(config.hidden, 3 * config.hidden + 2 * inner, bias=False)
        self.linear2 = nn.Linear(config.hidden + inner, config.hidden, bias=False)
        self.norm = QKNorm(config.head_size)
        self.mlp_act = GatedSiLU()

    def forward(self, x_BND: Tensor, modulation: GatedModulation, rope: Tensor) -> Tensor:
        shift, scale, gate = modulation
        qkv, mlp = self.linear1(modulate(x_BND, shift, scale)).tensor_split([3 * self.hidden], dim=-1)
        attended = attend(*queries_keys_values(qkv, self.num_heads, self.norm), rope)
        return x_BND + gate * self.linear2(torch.cat([attended, self.mlp_act(mlp)], dim=-1))
