"""The three-stream transformer: FLUX.2's backbone with a depth stream (spec section 5).

One class is both models: with ``config.depth_channels=None`` it is the FLUX.2 text-to-image backbone.
Parameter names are those of the published checkpoints (without the release's ``dit.`` prefix).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modality_forcing.config import TransformerConfig
from modality_forcing.model.blocks import DoubleBlock, SingleBlock, Streams
from modality_forcing.model.layers import EmbeddingMLP, Head, Modulation, rope_table, timestep_embedding


@dataclass(frozen=True)
class Conditioning:
    """What the blocks are modulated with, computed once per call.

    Attributes:
        vec_img: (B, D), also the text stream's.
        vec_depth: (B, D), None without a depth stream.
    """

    vec_img: Tensor
    vec_depth: Tensor | None


class Transformer(nn.Module):
    """Predicts both modalities from noisy tokens, text and one noise level per modality."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden
        self.has_depth = config.depth_channels is not None
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

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the body."""
        return self.img_in.weight.dtype

    def keep_depth_head_float32(self) -> Transformer:
        """Put the depth head back to float32 after a cast of the body: bf16 there causes banding."""
        if self.has_depth:
            self.depth_final_layer.float()
        return self

    def conditioning(
        self, t_rgb: Tensor, t_depth: Tensor | None, guidance: Tensor | None = None
    ) -> Conditioning:
        """Modulation vectors from the noise levels (and embedded guidance), each (B,)."""
        emb_rgb = timestep_embedding(t_rgb)
        vec_img = self.time_in(emb_rgb)
        vec_depth = None
        if self.has_depth:
            assert t_depth is not None
            emb_depth = timestep_embedding(t_depth)
            vec_depth = self.time_in_depth(emb_depth)
            if self.config.cross_stream_mixing:
                vec_img = vec_img + self.cross_alpha_img * self.time_in_depth_to_img(emb_depth)
                vec_depth = vec_depth + self.cross_alpha_depth * self.time_in_rgb_to_depth(emb_rgb)
        if self.config.guidance_embedding:
            if guidance is None:
                raise ValueError("this model embeds its guidance: pass guidance (B,)")
            vec_img = vec_img + self.guidance_in(timestep_embedding(guidance))
        return Conditioning(vec_img, vec_depth)

    def rope(self, *ids: Tensor) -> Tensor:
        """Rotation table for position ids (N_i, 4) of text, image [, depth]: (sum N_i, K/2, 2)."""
        return rope_table(torch.cat(ids, dim=-2), self.config.rope_axes, self.config.rope_theta)

    def forward(
        self,
        rgb: Tensor,
        depth: Tensor | None,
        text: Tensor,
        rope: Tensor,
        t_rgb: Tensor,
        t_depth: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Raw predictions of both heads (what each one means stands in ``FlowConfig``).

        Args:
            rgb: (B, N, latent_channels) noisy image tokens, row-major.
            depth: (B, N, depth_channels) noisy depth tokens; None for the backbone.
            text: (B, T, text_width).
            rope: table from :meth:`rope` in the order text, image, depth.
            t_rgb, t_depth: (B,) noise levels in [0, 1].
            guidance: (B,) when the model embeds it.

        Returns:
            rgb (B, N, latent_channels) and depth (B, N, depth_channels) or None.
        """
        cond = self.conditioning(t_rgb, t_depth, guidance)
        streams: Streams = {
            "txt": self.txt_in(text.to(self.txt_in.weight.dtype)),
            "img": self.img_in(rgb.to(self.img_in.weight.dtype)),
        }
        modulation = {
            "txt": self.double_stream_modulation_txt(cond.vec_img),
            "img": self.double_stream_modulation_img(cond.vec_img),
        }
        if self.has_depth:
            assert depth is not None
            assert cond.vec_depth is not None
            streams["depth"] = self.depth_in(depth.to(self.depth_in.weight.dtype))
            modulation["depth"] = self.double_stream_modulation_depth(cond.vec_depth)
        for block in self.double_blocks:
            streams = block(streams, modulation, rope)
        x, depth_tokens = self._shared_blocks(streams, cond, rope)
        num_text = text.shape[1]
        num_image = rgb.shape[1]
        rgb_out = self.final_layer(x[:, num_text : num_text + num_image], cond.vec_img)
        if not self.has_depth:
            return rgb_out, None
        assert depth_tokens is not None
        assert cond.vec_depth is not None
        decoder_modulation = self.depth_decoder_modulation(cond.vec_depth)
        depth_rope = rope[..., num_text + num_image :, :, :]
        for block in self.depth_decoder_blocks:
            depth_tokens = block(depth_tokens, decoder_modulation, depth_rope)
        head_dtype = self.depth_final_layer.linear.weight.dtype
        # The depth head is a float32 island even under autocast.
        with torch.autocast(depth_tokens.device.type, enabled=False):
            depth_out = self.depth_final_layer(depth_tokens.to(head_dtype), cond.vec_depth.to(head_dtype))
        return rgb_out, depth_out

    def _shared_blocks(
        self, streams: Streams, cond: Conditioning, rope: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Single-stream blocks over [text, image, depth]; returns all tokens and the depth part."""
        x = torch.cat(list(streams.values()), dim=1)
        modulation = self.single_stream_modulation(cond.vec_img)
        num_depth = 0
        if self.has_depth:
            assert cond.vec_depth is not None
            num_depth = streams["depth"].shape[1]
            # Text and image follow the image's noise level, depth its own: one vector per token.
            own = self.single_stream_modulation_depth(cond.vec_depth)
            modulation = tuple(
                torch.cat([a.expand(-1, x.shape[1] - num_depth, -1), b.expand(-1, num_depth, -1)], dim=1)
                for a, b in zip(modulation, own, strict=True)
            )
        for block in self.single_blocks:
            x = block(x, modulation, rope)
        return x, x[:, x.shape[1] - num_depth :] if num_depth else None
