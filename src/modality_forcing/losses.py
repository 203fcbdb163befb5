"""Masked losses in velocity space (spec section 2), as (sum, count) per sample: batches may be split."""

from __future__ import annotations

import torch
from torch import Tensor

from modality_forcing.codecs.depth import MAX_CONTRACTED, expand
from modality_forcing.flow.path import expand_level

SumCount = tuple[Tensor, Tensor]
"""Sum over what counts and how much counts, each (B,): one number per sample."""

STEEP = 1.75
"""Contracted depth (4 times the mean) from which ``relative_depth_loss`` goes on straight."""
SCALE_SHARE = 0.5
"""How much ``relative_depth_loss`` asks for the scale: without it the embedded model's grew fivefold."""
NEAREST = 0.1
"""Depth in units of the mean that ``relative_depth_loss`` divides by at least."""


def mean(loss: SumCount) -> Tensor:
    """sum / count over the whole batch; 0 where nothing counts."""
    return loss[0].sum() / loss[1].sum().clamp_min(1)


def velocity_loss(prediction: Tensor, x0: Tensor, noise: Tensor, weight: Tensor) -> SumCount:
    """||v_pred - (noise - x0)||^2 of a velocity head.

    Args:
        prediction, x0, noise: (B, N, C).
        weight: broadcastable to (B, N, C), 0 where an element does not count.
    """
    return _weighted_square(prediction.float() - (noise - x0), weight)


def x0_loss(prediction: Tensor, x0: Tensor, t: Tensor, t_min: float, weight: Tensor) -> SumCount:
    """||x0_pred - x0||^2 / max(t, t_min)^2: an x-prediction's loss in velocity space (spec section 2).

    Args:
        t: (B,) noise levels.
        t_min: clamp on the divisor; without it the smallest levels would drown the rest.
    """
    scale = expand_level(t.clamp_min(t_min), x0)
    return _weighted_square((prediction.float() - x0) / scale, weight)


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
        sky: contracted depth from which a prediction counts as sky and leaves the scale alone.
        weight: broadcastable to (B, N, C), 0 where an element does not count.
    """
    weight = weight.to(x0.dtype).expand_as(x0)
    prediction, x0 = (_where_counted(x, weight) for x in (prediction.float(), x0))
    surface = x0 < MAX_CONTRACTED
    depth = expand(x0)
    with torch.no_grad():
        scale = fit_scale(expand(prediction.clamp(max=sky)), depth, surface & (weight > 0))
    wanted = depth / scale[:, None, None]
    relative = (_expand_straight(prediction) - wanted).abs() / wanted.clamp_min(NEAREST)
    off = torch.where(surface, relative, (prediction - x0).abs())
    off = off + SCALE_SHARE * _off_in_the_mean(prediction, x0, surface * weight)
    return _weighted_sum(off / expand_level(t.clamp_min(t_min), x0), weight)


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


def distillation_loss(
    prediction: Tensor,
    teacher: Tensor,
    t_depth: Tensor,
    lambda_high: float,
    lambda_low: float,
    weight: Tensor,
) -> SumCount:
    """(l_hi t_depth + l_lo (1 - t_depth)) ||v_T2I - v_rgb||^2 (spec section 2, self-distillation)."""
    factor = expand_level(lambda_high * t_depth + lambda_low * (1 - t_depth), prediction)
    return _weighted_square(prediction.float() - teacher.float(), weight, factor)


def _weighted_square(difference: Tensor, weight: Tensor, factor: Tensor | float = 1.0) -> SumCount:
    """:func:`_weighted_sum` of factor * difference^2."""
    weight = weight.to(difference.dtype).expand_as(difference)
    return _weighted_sum(factor * _where_counted(difference, weight).square(), weight)


def _where_counted(values: Tensor, weight: Tensor) -> Tensor:
    """Zero where ``weight`` is 0.

    An element that does not count may hold anything, NaN included: it is put to zero before anything is made
    of it, because a mask afterwards would still send NaN back as its gradient (0 * NaN).
    """
    return torch.where(weight > 0, values, torch.zeros_like(values))


def _weighted_sum(values: Tensor, weight: Tensor) -> SumCount:
    """Per sample: sum of weight * values and sum of weights."""
    return (weight * values).flatten(1).sum(dim=1), weight.flatten(1).sum(dim=1)
