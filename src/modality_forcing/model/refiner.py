"""A small convolutional network that sharpens depth by the picture (ours; the paper has none).

The transformer writes the depth of a whole patch from one token, and it sees the image through as few
numbers as the autoencoder leaves: edges lie where the patch allows. The refiner sees both at full resolution,
the contracted depth and the colours, and adds what is missing.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modality_forcing.config import RefinerConfig
from modality_forcing.model.autoencoder import Downsample, ResBlock

FOLD = RefinerConfig.FOLD
"""Side of the squares of pixels that lie in the channels: half the resolution costs a quarter."""
MIDDLE = 1.0
"""Of contracted depth, which lies between 0 and 2."""


def _identity_block(width: int, groups: int) -> ResBlock:
    """A residual block whose branch adds nothing before training."""
    block = ResBlock(width, width, groups)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(cast(Tensor, block.conv2.bias))
    return block


class DepthRefiner(nn.Module):
    """Residual U-Net on contracted depth and colours; before training it changes nothing.

    Args:
        config: widths and residual blocks of the levels, each at half the resolution of the one before.
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.config = config
        self.conv_in = nn.Conv2d(4 * FOLD**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(ResBlock(width, width, groups) for width in widths)
        # Blocks beyond a level's first begin as the identity, so that a trained network can be made deeper.
        self.more_blocks = nn.ModuleList(
            nn.Sequential(*(_identity_block(width, groups) for _ in range(count - 1)))
            for width, count in zip(widths, config.blocks, strict=True)
        )
        self.down = nn.ModuleList(Downsample(width) for width in widths[:-1])
        self.widen = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up_blocks = nn.ModuleList(ResBlock(width, width, groups) for width in widths)
        self.norm_out = nn.GroupNorm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], FOLD**2, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def forward(self, contracted: Tensor, image: Tensor) -> Tensor:
        """Sharpened depth.

        Args:
            contracted: (B, 1, H, W), see ``codecs.depth.contract``; sky lies at 2.
            image: (B, 3, H, W) in [-1, 1]; H and W are multiples of ``config.multiple``.

        Returns:
            (B, 1, H, W), contracted.
        """
        given = torch.cat((contracted - MIDDLE, image), dim=1)
        x = self.conv_in(F.pixel_unshuffle(given, FOLD))
        kept: list[Tensor] = []
        for level, block in enumerate(self.down_blocks):
            x = self.more_blocks[level](block(x))
            if level < len(self.down):
                kept.append(x)
                x = self.widen[level](self.down[level](x))
        x = self.up_blocks[-1](x)
        for level in reversed(range(len(kept))):
            # The 1x1 convolution comes before the doubling, where it costs a quarter.
            coarse = F.interpolate(self.narrow[level](x), scale_factor=2.0, mode="nearest")
            x = self.up_blocks[level](kept[level] + coarse)
        change = self.conv_out(F.silu(self.norm_out(x)))
        return contracted + F.pixel_shuffle(change, FOLD)
