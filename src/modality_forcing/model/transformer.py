"""The three-stream transformer: FLUX.2's backbone with a depth stream (spec section 5).

One class is both models: with ``config.depth_channels=None`` it is the FLUX.2 text-to-image backbone.
Parameter names are those of the published checkpoints (without the release's ``dit.`` prefix).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.config import TransformerConfig
from modality_forcing.model.base import Conditioning, DiffusionTransformer, modulate_streams
from modality_forcing.model.blocks import DoubleBlock, SingleBlock, Streams
from modality_forcing.model.layers import EmbeddingMLP, Head, Modulation


class Transformer(DiffusionTransformer):
    """Streams with weights of their own (double blocks), then one set for all tokens (single blocks)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        d = config.hidden
        self.img_in = nn.Linear(config.latent_channels, d, bias=False)
        self.txt_in = nn.Linear(config.text_width, d, bias=False)
        self.time_in = EmbeddingMLP(d)
        if config.guidance_embedding:
            self.guidance_in = EmbeddingMLP(d)
        streams: tuple[str, ...] = ("txt", "img")
        self.double_stream_modulation_img = Modulation(d, 6)
        self.double_stream_modulation_txt = Modulation(d, 6)
        self.single_stream_modulation = Modulation(d, 3)
        self.final_layer = Head(d, config.latent_channels)
        if config.depth_channels is not None:
            streams = (*streams, "depth")
            self.depth_in = nn.Linear(config.depth_channels, d, bias=False)
            self.time_in_depth = EmbeddingMLP(d)
            if config.cross_stream_mixing:
                self.time_in_depth_to_img = EmbeddingMLP(d)
                self.time_in_rgb_to_depth = EmbeddingMLP(d)
                self.cross_alpha_img = nn.Parameter(torch.zeros(1))
                self.cross_alpha_depth = nn.Parameter(torch.zeros(1))
            self.double_stream_modulation_depth = Modulation(d, 6)
            self.single_stream_modulation_depth = Modulation(d, 3)
            self.depth_decoder_modulation = Modulation(d, 3)
            self.depth_decoder_blocks = nn.ModuleList(
                SingleBlock(config) for _ in range(config.num_depth_blocks)
            )
            self.depth_final_layer = Head(d, config.depth_channels)
        self.double_blocks = nn.ModuleList(
            DoubleBlock(config, streams) for _ in range(config.num_double_blocks)
        )
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_blocks))

    def wrap_units(self) -> list[nn.Module]:
        """Double, single and depth blocks."""
        depth = self.depth_decoder_blocks if self.has_depth else []
        return [*self.double_blocks, *self.single_blocks, *depth]

    def shared_blocks(self, streams: Streams, cond: Conditioning, rope: Tensor) -> Tensor:
        """Double blocks, then single blocks over [text, image, depth]."""
        # Text has its own modulation, of the image's noise level.
        modulation = {
            "txt": self.double_stream_modulation_txt(cond.vec_img),
            "img": self.double_stream_modulation_img(cond.vec_img),
        }
        own = None
        if cond.vec_depth is not None:
            modulation["depth"] = self.double_stream_modulation_depth(cond.vec_depth)
            own = self.single_stream_modulation_depth(cond.vec_depth)
        for block in self.double_blocks:
            streams = block(streams, modulation, rope)
        x = torch.cat(list(streams.values()), dim=1)
        per_token = modulate_streams(streams, self.single_stream_modulation(cond.vec_img), own)
        for block in self.single_blocks:
            x = block(x, per_token, rope)
        return x
