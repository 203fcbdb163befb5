"""Masked losses in velocity space (spec section 2), as (sum, count) per sample: batches may be split."""

from __future__ import annotations

import torch
from torch import Tensor

from modality_forcing.flow.path import expand_level

SumCount = tuple[Tensor, Tensor]
"""Sum over what counts and how much counts, each (B,): one number per sample."""


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
    """:func:`weighted_sum` of factor * difference^2."""
    weight = weight.to(difference.dtype).expand_as(difference)
    return weighted_sum(factor * where_counted(difference, weight).square(), weight)


def where_counted(values: Tensor, weight: Tensor) -> Tensor:
    """Zero where ``weight`` is 0.

    An element that does not count may hold anything, NaN included: it is put to zero before anything is made
    of it, because a mask afterwards would still send NaN back as its gradient (0 * NaN).
    """
    return torch.where(weight > 0, values, torch.zeros_like(values))


def weighted_sum(values: Tensor, weight: Tensor) -> SumCount:
    """Per sample: sum of weight * values and sum of weights."""
    return (weight * values).flatten(1).sum(dim=1), weight.flatten(1).sum(dim=1)
