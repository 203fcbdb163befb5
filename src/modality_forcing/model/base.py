"""What both families of transformers share: noise levels, the way in and out, and the depth stream's parts.

A family says how its tokens meet (:meth:`DiffusionTransformer.shared_blocks`); everything around that, the
signature of ``forward`` included, is the same, so that training and sampling do not know the family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modality_forcing.config import TransformerConfig
from modality_forcing.model.blocks import Streams
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


class DiffusionTransformer(nn.Module, ABC):
    """Predicts both modalities from noisy tokens, text and one noise level per modality."""

    # Made by the families, each in the order that its checkpoints are initialised in.
    img_in: nn.Linear
    txt_in: nn.Linear
    time_in: EmbeddingMLP
    guidance_in: EmbeddingMLP
    final_layer: Head
    depth_in: nn.Linear
    time_in_depth: EmbeddingMLP
    time_in_depth_to_img: EmbeddingMLP
    time_in_rgb_to_depth: EmbeddingMLP
    cross_alpha_img: nn.Parameter
    cross_alpha_depth: nn.Parameter
    depth_decoder_modulation: Modulation
    depth_decoder_blocks: nn.ModuleList
    depth_final_layer: Head

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.has_depth = config.depth_channels is not None

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the body."""
        return self.img_in.weight.dtype

    @abstractmethod
    def wrap_units(self) -> list[nn.Module]:
        """The blocks in the order they run: what is sharded, recomputed or compiled one by one."""

    @abstractmethod
    def shared_blocks(self, streams: Streams, cond: Conditioning, rope: Tensor) -> Tensor:
        """All blocks in which the streams meet: tokens of all streams, (B, sum N, D), in their order."""

    def embed_text(self, text: Tensor) -> Tensor:
        """(B, T, text_width) -> (B, T, D)."""
        return self.txt_in(text.to(self.txt_in.weight.dtype))

    def keep_depth_head_float32(self) -> DiffusionTransformer:
        """Put the depth head back to float32 after a cast of the body: bf16 there causes banding."""
        if self.has_depth:
            self.depth_final_layer.float()
        return self

    def conditioning(
        self, t_rgb: Tensor, t_depth: Tensor | None, guidance: Tensor | None = None
    ) -> Conditioning:
        """Modulation vectors from the noise levels (and embedded guidance), each (B,).

        Without ``t_depth`` it is the text-to-image backbone's: nothing of the depth stream takes part.
        """
        emb_rgb = timestep_embedding(t_rgb)
        vec_img = self.time_in(emb_rgb)
        vec_depth = None
        if self.has_depth and t_depth is not None:
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

        A model with a depth stream, called without depth, is its own text-to-image backbone: the teacher of
        self-distillation where the backbone's weights are frozen.

        Args:
            rgb: (B, N, latent_channels) noisy image tokens, row-major.
            depth: (B, N, depth_channels) noisy depth tokens; None for the backbone.
            text: (B, T, text_width).
            rope: table from :meth:`rope` in the order text, image [, depth].
            t_rgb, t_depth: (B,) noise levels in [0, 1]; ``t_depth`` is None exactly when ``depth`` is.
            guidance: (B,) when the model embeds it.

        Returns:
            rgb (B, N, latent_channels) and depth (B, N, depth_channels) or None.

        Raises:
            ValueError: depth without its noise level or the other way round; depth for a model without it.
        """
        if (depth is None) != (t_depth is None) or (depth is not None and not self.has_depth):
            raise ValueError("depth and t_depth come together, and only to a model with a depth stream")
        cond = self.conditioning(t_rgb, t_depth, guidance)
        streams: Streams = {
            "txt": self.embed_text(text),
            "img": self.img_in(rgb.to(self.img_in.weight.dtype)),
        }
        if depth is not None:
            streams["depth"] = self.depth_in(depth.to(self.depth_in.weight.dtype))
        x = self.shared_blocks(streams, cond, rope)
        end_of_text = text.shape[1]
        end_of_image = end_of_text + rgb.shape[1]
        rgb_out = self.final_layer(x[:, end_of_text:end_of_image], cond.vec_img)
        if depth is None:
            return rgb_out, None
        assert cond.vec_depth is not None
        return rgb_out, self._read_depth(x[:, end_of_image:], cond.vec_depth, rope[..., end_of_image:, :, :])

    def _read_depth(self, x_BND: Tensor, vec_depth: Tensor, rope: Tensor) -> Tensor:
        """Depth-only blocks and the head: (B, N, depth_channels)."""
        modulation = self.depth_decoder_modulation(vec_depth)
        for block in self.depth_decoder_blocks:
            x_BND = block(x_BND, modulation, rope)
        head_dtype = self.depth_final_layer.linear.weight.dtype
        # The depth head is a float32 island even under autocast.
        with torch.autocast(x_BND.device.type, enabled=False):
            return self.depth_final_layer(x_BND.to(head_dtype), vec_depth.to(head_dtype))


def modulate_streams(
    streams: Streams, shared: tuple[Tensor, ...], own: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """Vectors for all tokens at once: text and image follow the image's noise level, depth its own.

    Args:
        shared: vectors (B, 1, D) of text and image.
        own: the same of depth; None without depth tokens.

    Returns:
        Each (B, sum N, D), or (B, 1, D) without depth.
    """
    if own is None:
        return shared
    num_depth = streams["depth"].shape[1]
    num_others = sum(x.shape[1] for x in streams.values()) - num_depth
    return tuple(
        torch.cat([a.expand(-1, num_others, -1), b.expand(-1, num_depth, -1)], dim=1)
        for a, b in zip(shared, own, strict=True)
    )
