"""Depth trained by its error relative to the depth, in each sample's best scale: AbsRel as a loss (ours).

Not among ``losses``: it must know how depth is contracted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modality_forcing.codecs.depth import MAX_CONTRACTED, expand
from modality_forcing.flow.path import expand_level
from modality_forcing.losses import SumCount, weighted_sum, where_counted

STEEP = 1.75
"""Contracted depth (4 times the mean) from which ``relative_depth_loss`` goes on straight."""
SCALE_SHARE = 0.5
"""How much ``relative_depth_loss`` asks for the scale: without it the embedded model's grew fivefold."""
NEAREST = 0.1
"""Depth in units of the mean that ``relative_depth_loss`` divides by at least."""


def relative_depth_loss(
    prediction: Tensor, x0: Tensor, t: Tensor, t_min: float, sky: float, weight: Tensor
) -> SumCount:
    """|a d_pred - d| / d / max(t, t_min): the error relative to the depth, in any scale (ours).

    d = expand(x0), and a is each sample's scale that makes its sum least (``fit_scale``): the absolute
    relative error of the evaluation as a loss. Where depth is uncertain, as beside an edge, it prefers what
    is near, as that measure does. Beyond ``STEEP`` the expansion goes on straight, so that a pixel wrongly
    near the sky does not outweigh a picture. The sky (x0 = 2) counts |x0_pred - x0|. ``SCALE_SHARE`` of how
    far the mean of x0_pred over the surfaces is off is added: no scale at all lets it drift.

    Args:
        prediction, x0: (B, N, C), contracted depth (``codecs.depth.contract``).
        t, t_min: (B,) noise levels, and the clamp on the divisor.
        sky: contracted depth; the fit of the scale takes what is predicted beyond it for as far as this.
        weight: broadcastable to (B, N, C), 0 where an element does not count.
    """
    weight = weight.to(x0.dtype).expand_as(x0)
    prediction, x0 = (where_counted(x, weight) for x in (prediction.float(), x0))
    surface = x0 < MAX_CONTRACTED
    depth = expand(x0)
    with torch.no_grad():
        scale = fit_scale(expand(prediction.clamp(max=sky)), depth, surface & (weight > 0))
    wanted = depth / scale[:, None, None]
    relative = (_expand_straight(prediction) - wanted).abs() / wanted.clamp_min(NEAREST)
    off = torch.where(surface, relative, (prediction - x0).abs())
    off = off + SCALE_SHARE * _off_in_the_mean(prediction, x0, surface * weight)
    return weighted_sum(off / expand_level(t.clamp_min(t_min), x0), weight)


def fit_scale(prediction: Tensor, depth: Tensor, counted: Tensor) -> Tensor:
    """(B,): the scale a of each sample that makes the sum of |a prediction - depth| / depth least.

    The median of depth / prediction with weights prediction / depth; 1 where nothing counts.

    Args:
        prediction, depth: (B, N, C), positive.
        counted: bool, the same shape.
    """
    prediction, depth, counted = (x.flatten(1) for x in (prediction, depth, counted))
    share = torch.where(counted, prediction / depth, torch.zeros_like(depth))
    ratio = torch.where(counted, depth / prediction, torch.full_like(depth, torch.inf))
    ratio, order = ratio.sort(dim=1)
    below = share.gather(1, order).cumsum(dim=1)
    middle = (below < 0.5 * below[:, -1:]).sum(dim=1, keepdim=True)
    scale = ratio.gather(1, middle)[:, 0]
    return torch.where(counted.any(dim=1), scale, torch.ones_like(scale))


def _off_in_the_mean(prediction: Tensor, x0: Tensor, weight: Tensor) -> Tensor:
    """(B, 1, 1): |mean of prediction - x0|, 0 where nothing counts."""
    total = (weight * (prediction - x0)).sum(dim=(1, 2), keepdim=True)
    return total.abs() / weight.sum(dim=(1, 2), keepdim=True).clamp_min(1)


def _expand_straight(z: Tensor) -> Tensor:
    """``codecs.depth.expand`` up to ``STEEP``, its tangent from there on, z itself below 0."""
    curved = 1 / (2 - z.clamp(1, STEEP)) + (z - STEEP).clamp_min(0) / (2 - STEEP) ** 2
    return torch.where(z <= 1, z, curved)
