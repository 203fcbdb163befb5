"""The from-scratch text-to-image family of the scaling study: a flat transformer (spec section 8).

One token stream: text is projected in and attended in every block, attention and gated MLP run in parallel,
each block is normed before and after (RMS), queries share keys and values in groups, and one modulation
serves all blocks. The depth stream is grown as in FLUX.2 post-training: its own way in, noise-level embedder,
modulation, mixers at zero, depth-only blocks and a float32 head; the shared blocks serve its tokens too.

Ours, where nothing is published: heads of 128 channels with one key-value head per four (the same rotary
table at every size), an RMS norm on the incoming text (encoders differ in scale by orders of magnitude), the
learned norm scales as what a block has of its own beside the shared modulation, and FLUX.2's output head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.config import TransformerConfig
from modality_forcing.model.base import Conditioning, DiffusionTransformer, modulate_streams
from modality_forcing.model.blocks import Streams
from modality_forcing.model.layers import (
    EmbeddingMLP,
    GatedSiLU,
    Head,
    Modulation,
    QKNorm,
    RMSNorm,
    attend,
    queries_keys_values,
)


class FlatBlock(nn.Module):
    """Attention and gated MLP in parallel from one projection, RMS norms around both.

    Matrices: linear1 D -> (1 + 2r)D + 2F, linear2 D + F -> D, with r key-value heads per query head and MLP
    width F; for r = 1/4 and F = 3D together 11.5 D^2.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        d, inner = config.hidden, config.mlp_width
        self.num_heads, self.kv_heads = config.num_heads, config.kv_heads
        self.attention_width = d + 2 * config.kv_heads * config.head_size
        self.pre_norm = RMSNorm(d)
        self.linear1 = nn.Linear(d, self.attention_width + 2 * inner, bias=False)
        self.norm = QKNorm(config.head_size)
        self.mlp_act = GatedSiLU()
        self.linear2 = nn.Linear(d + inner, d, bias=False)
        self.post_norm = RMSNorm(d)

    def forward(self, x_BND: Tensor, modulation: tuple[Tensor, ...], rope: Tensor) -> Tensor:
        """``modulation``: shift, scale, gate, each (B, 1, D) or (B, N, D)."""
        shift, scale, gate = modulation
        normed = torch.addcmul(shift, 1 + scale, self.pre_norm(x_BND))
        qkv, mlp = self.linear1(normed).tensor_split([self.attention_width], dim=-1)
        attended = attend(*queries_keys_values(qkv, self.num_heads, self.norm, self.kv_heads), rope)
        out = self.linear2(torch.cat([attended, self.mlp_act(mlp)], dim=-1))
        return x_BND + gate * self.post_norm(out)


class FlatTransformer(DiffusionTransformer):
    """All tokens in one stream; with ``config.depth_channels=None`` the text-to-image model."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        d = config.hidden
        self.img_in = nn.Linear(config.latent_channels, d, bias=False)
        self.txt_norm = RMSNorm(config.text_width)
        self.txt_in = nn.Linear(config.text_width, d, bias=False)
        self.time_in = EmbeddingMLP(d)
        if config.guidance_embedding:
            self.guidance_in = EmbeddingMLP(d)
        self.modulation = Modulation(d, 3)
        self.final_layer = Head(d, config.latent_channels)
        if config.depth_channels is not None:
            self.depth_in = nn.Linear(config.depth_channels, d, bias=False)
            self.time_in_depth = EmbeddingMLP(d)
            if config.cross_stream_mixing:
                self.time_in_depth_to_img = EmbeddingMLP(d)
                self.time_in_rgb_to_depth = EmbeddingMLP(d)
                self.cross_alpha_img = nn.Parameter(torch.zeros(1))
                self.cross_alpha_depth = nn.Parameter(torch.zeros(1))
            self.modulation_depth = Modulation(d, 3)
            self.depth_decoder_modulation = Modulation(d, 3)
            self.depth_decoder_blocks = nn.ModuleList(
                FlatBlock(config) for _ in range(config.num_depth_blocks)
            )
            self.depth_final_layer = Head(d, config.depth_channels)
        self.blocks = nn.ModuleList(FlatBlock(config) for _ in range(config.num_single_blocks))

    def wrap_units(self) -> list[nn.Module]:
        """Shared and depth blocks."""
        return [*self.blocks, *(self.depth_decoder_blocks if self.has_depth else [])]

    def embed_text(self, text: Tensor) -> Tensor:
        """(B, T, text_width) -> (B, T, D); an all-zero token (padding) stays zero."""
        return self.txt_in(self.txt_norm(text.to(self.txt_in.weight.dtype)))

    def shared_blocks(self, streams: Streams, cond: Conditioning, rope: Tensor) -> Tensor:
        """All blocks over [text, image, depth]."""
        own = None if cond.vec_depth is None else self.modulation_depth(cond.vec_depth)
        per_token = modulate_streams(streams, self.modulation(cond.vec_img), own)
        x = torch.cat(list(streams.values()), dim=1)
        for block in self.blocks:
            x = block(x, per_token, rope)
        return x
