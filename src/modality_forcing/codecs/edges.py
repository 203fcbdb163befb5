"""Depth that follows the edges of its image: the guided filter.

A model writes depth in patches of 16x16 pixels, each from one token; a small one smears edges inside a patch
and leaves steps between patches. In every window the filter explains the depth by a linear function of the
colours, so that it is smooth where the image is and jumps where the image does. Surfaces and sky are filtered
apart: a mountain shall not become farther because of the sky behind it.

He, Sun and Tang, "Guided Image Filtering", TPAMI 2013 (doi 10.1109/TPAMI.2012.213), its form for guides in
colour; the functions are found at the model's size and applied at the picture's (He and Sun, "Fast Guided
Filter", arXiv 1505.00996). The weights are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from modality_forcing.codecs.depth import expand, surfaces
from modality_forcing.codecs.frame import Frame

EPSILON = 0.02
"""Variance of the colours, which lie in [-1, 1], below which a window counts as flat. On rendered scenes
0.004 is as good; on photographs it copies the texture of walls into their depth."""
SKY_WINDOWS = 2
"""Windows of the sky over those of the surfaces: its colours reach farther than one thing's."""
FAINT = 1e-3
"""Weight of sky where surfaces are filtered: it counts only where a window holds nothing else."""


def along_edges(
    contracted: Tensor, image: Tensor, frame: Frame, radius: int, limit: float | None = None
) -> tuple[Tensor, Tensor]:
    """Contracted depth on the model's grid to depth of the picture's size, along the picture's edges.

    Args:
        contracted: (1, 1, grid_height, grid_width) float, see ``codecs.depth.contract``.
        image: (1, 3, height, width) colours in [-1, 1].
        radius: of the square windows in pixels of the grid, at least 1; 5 are 11 by 11 pixels.
        limit: values from here on are sky; None: there is none.

    Returns:
        Depth and the mask of what is a surface, (1, 1, height, width), as ``codecs.depth.surfaces`` has them;
        but behind the mask depth goes on as the surfaces nearby have it, in case the mask is wrong.
    """
    values, guide = frame.crop(contracted), frame.crop(frame.scale_image(image))
    if limit is None:
        found = _guided(values, torch.ones_like(values), guide, image, frame, radius)
        return surfaces(found)
    sky, values = values >= limit, values.clamp(max=limit)
    found = _guided(values, torch.where(sky, FAINT, 1.0), guide, image, frame, radius)
    matte = _guided(sky.float(), torch.ones_like(values), guide, image, frame, SKY_WINDOWS * radius)
    return expand(found), matte < 0.5


def edge_functions(values: Tensor, weight: Tensor, guide: Tensor, radius: int) -> Tensor:
    """For every pixel the linear function of the colours that best explains the values around it.

    Args:
        values, weight: (1, 1, H, W) float; how much each value counts, > 0.
        guide: (1, 3, H, W) colours in [-1, 1].
        radius: of the windows in pixels.

    Returns:
        (1, 4, H, W) float32: three slopes and an offset, averaged over all windows that hold the pixel.
    """
    guide, values, weight = guide.double(), values.double(), weight.double()
    total = _box(weight, radius)

    def mean(maps: Tensor) -> Tensor:
        return _box(weight * maps, radius) / total

    colour, target = mean(guide), mean(values)
    covariance = mean(guide * values) - colour * target
    pairs = mean((guide[:, :, None] * guide[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    matrix = (pairs - colour[:, :, None] * colour[:, None])[0].permute(2, 3, 0, 1)  # (H, W, 3, 3)
    matrix = matrix + EPSILON * torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    slope = torch.linalg.solve(matrix, covariance[0].permute(1, 2, 0)).permute(2, 0, 1)[None]
    offset = target - (slope * colour).sum(1, keepdim=True)
    functions = torch.cat((slope, offset), dim=1)
    # A window with more to say counts for more.
    return (_box(functions * total, radius) / _box(total, radius)).float()


def _guided(
    values: Tensor, weight: Tensor, guide: Tensor, image: Tensor, frame: Frame, radius: int
) -> Tensor:
    functions = frame.restore(edge_functions(values, weight, guide, radius))
    found = (functions[:, :3] * image).sum(1, keepdim=True) + functions[:, 3:]
    # A linear function of the colours knows no limits: beside a highlight it could turn depth negative.
    return found.clamp(values.min(), values.max())


def _box(maps: Tensor, radius: int) -> Tensor:
    """Mean over the square window around every pixel, cut at the borders; (1, C, H, W)."""
    size = 2 * radius + 1
    rows = F.avg_pool2d(maps, (1, size), 1, (0, radius), count_include_pad=False)
    return F.avg_pool2d(rows, (size, 1), 1, (radius, 0), count_include_pad=False)
