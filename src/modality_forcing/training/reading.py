"""A frozen model that reads depth from pictures while another one learns to paint pictures of given depth.

Measurements are sparse, what users give is dense: a model that was only ever given a few points per patch
does not follow the outlines of a whole map. The reader makes a whole map of every training picture, from what
it learned of sparse measurements itself. And what it reads in the picture that the model has in mind should
be what it reads in the real one (cycle consistency, as in ControlNet++, arXiv 2404.07987): that is
``training.cycle``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.codecs.depth import MAX_CONTRACTED, MIN_DEPTH, patchify, surfaces, unpatchify
from modality_forcing.config import ModelConfig
from modality_forcing.training.noisy import Noisy
from modality_forcing.training.relative import relative_depth_loss


class Reader:
    """Image to depth in one step. No module attribute of anything that trains.

    Args:
        transformer: frozen, with a depth stream.
        refiner: frozen, float32; None: depth as the transformer writes it.
        config: of the model that trains; the reader has the same patches, positions and heads.
        half: the transformer computes in bfloat16, on a GPU.
    """

    def __init__(
        self, transformer: nn.Module, refiner: nn.Module | None, config: ModelConfig, *, half: bool = False
    ) -> None:
        self.transformer, self.refiner, self.config, self.half = transformer, refiner, config, half

    def __call__(
        self, rgb: Tensor, noise: Tensor, text: Tensor, rope: Tensor, t_rgb: Tensor | None = None
    ) -> Tensor:
        """Contracted depth (b, N, P) float32 of latents ``rgb`` (b, N, C), from ``noise`` (b, N, P); the
        gradient goes through to ``rgb``.

        Args:
            text: (b, T, width).
            rope: rotations of text, image and depth.
            t_rgb: (b,), noise levels of ``rgb``; None: it is clean.
        """
        t_rgb = torch.zeros(len(rgb), device=rgb.device) if t_rgb is None else t_rgb
        with torch.autocast(rgb.device.type, torch.bfloat16, enabled=self.half):
            found = self.transformer(rgb, noise, text, rope, t_rgb, torch.ones_like(t_rgb))[1].float()
        return noise - found if self.config.flow.depth_prediction == "velocity" else found

    @torch.no_grad()
    def answer(self, work: Noisy) -> tuple[Tensor, Tensor]:
        """What both heads say of ``work``, image (b, N, C) and depth (b, N, P), whatever of it is noisy."""
        with torch.autocast(work.rgb_t.device.type, torch.bfloat16, enabled=self.half):
            return self.transformer(work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth)

    @torch.no_grad()
    def maps(self, read: Tensor, images: Tensor) -> Tensor:
        """Whole depth maps (b, H, W) in units of their mean, +inf in the sky, of what was read (b, N, P).

        Args:
            images: (b, 3, H, W) in [-1, 1].
        """
        depth, seen = surfaces(self._sharp(read, images)[:, 0], self.config.depth.sky_limit)
        return depth.masked_fill(~seen, torch.inf)

    def refined(self, read: Tensor, images: Tensor) -> Tensor:
        """Tokens (b, N, P) float32 of what was read, along the edges of ``images`` (b, 3, H, W) in [-1, 1],
        about; the gradient goes through to both."""
        return patchify(self._sharp(read, images)[:, 0], self.config.transformer.patch_size)

    def _sharp(self, read: Tensor, images: Tensor) -> Tensor:
        patch = self.config.transformer.patch_size
        rows, cols = (side // patch for side in images.shape[-2:])
        contracted = unpatchify(read, rows, cols, patch)[:, None]
        if self.refiner is None:
            return contracted
        with torch.autocast(images.device.type, enabled=False):
            return self.refiner(contracted, images)

    def difference(self, read: Tensor, wanted: Tensor) -> Tensor:
        """(b,): how far ``read`` is off from ``wanted``, both read, (b, N, P): ``training.relative``'s error
        over all pixels."""
        sky = self.config.depth.sky_limit
        limit = MAX_CONTRACTED if sky is None else sky
        wanted = torch.where(wanted < limit, wanted.clamp_min(MIN_DEPTH), 2.0 if sky else limit)
        level, weight = torch.ones(len(read), device=read.device), torch.ones_like(read)
        off, count = relative_depth_loss(read, wanted, level, 1.0, limit, weight)
        return off / count
