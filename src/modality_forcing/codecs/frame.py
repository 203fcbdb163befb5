"""How a picture of any size sits on the model's grid: scaled without stretching, padded to whole tokens.

input (H, W) --one scale for both axes--> scaled (h, w) --pad right and bottom--> grid, multiples of 16
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Sizes in pixels. ``grid_*`` are multiples of ``cell`` and at most one cell larger than ``scaled_*``."""

    width: int
    height: int
    scaled_width: int
    scaled_height: int
    cell: int = 16

    @property
    def grid_width(self) -> int:
        """Width inside the model."""
        return math.ceil(self.scaled_width / self.cell) * self.cell

    @property
    def grid_height(self) -> int:
        """Height inside the model."""
        return math.ceil(self.scaled_height / self.cell) * self.cell

    @property
    def rows(self) -> int:
        """Tokens per column."""
        return self.grid_height // self.cell

    @property
    def cols(self) -> int:
        """Tokens per row."""
        return self.grid_width // self.cell

    @classmethod
    def exact(cls, width: int, height: int, cell: int = 16) -> Frame:
        """No scaling: what is made at (height, width) stays there."""
        return cls(width, height, width, height, cell)

    @classmethod
    def fitted(cls, width: int, height: int, area: int, cell: int = 16) -> Frame:
        """Scale to about ``area`` pixels, with the long side a whole number of cells."""
        wanted = math.sqrt(area / (width * height)) * max(width, height)
        long_side = max(cell, round(wanted / cell) * cell)
        scale = long_side / max(width, height)
        return cls(width, height, max(1, round(width * scale)), max(1, round(height * scale)), cell)

    def scale_image(self, image: Tensor) -> Tensor:
        """(1, C, height, width) -> (1, C, grid_height, grid_width), antialiased; edges repeat as padding."""
        if (self.scaled_height, self.scaled_width) != (self.height, self.width):
            image = F.interpolate(
                image,
                (self.scaled_height, self.scaled_width),
                mode="bilinear",
                antialias=True,
                align_corners=False,
            )
        return F.pad(image, self._padding(), mode="replicate")

    def scale_depth(self, depth: Tensor) -> Tensor:
        """(1, 1, height, width) depth -> (1, 1, grid_height, grid_width) by nearest pixel: measurements are
        never mixed with holes. Padding is NaN, which is no measurement."""
        if (self.scaled_height, self.scaled_width) != (self.height, self.width):
            depth = F.interpolate(depth, (self.scaled_height, self.scaled_width), mode="nearest-exact")
        return F.pad(depth, self._padding(), value=float("nan"))

    def crop(self, maps: Tensor) -> Tensor:
        """(B, C, grid_height, grid_width) -> (B, C, scaled_height, scaled_width): the padding taken off."""
        return maps[..., : self.scaled_height, : self.scaled_width]

    def restore(self, maps: Tensor, mode: str = "bilinear") -> Tensor:
        """(B, C, grid_height, grid_width) -> (B, C, height, width): crop the padding, undo the scaling."""
        maps = self.crop(maps)
        if (self.scaled_height, self.scaled_width) == (self.height, self.width):
            return maps
        if mode == "nearest":
            return F.interpolate(maps, (self.height, self.width), mode="nearest-exact")
        return F.interpolate(maps, (self.height, self.width), mode=mode, align_corners=False, antialias=False)

    def _padding(self) -> tuple[int, int, int, int]:
        return (0, self.grid_width - self.scaled_width, 0, self.grid_height - self.scaled_height)
