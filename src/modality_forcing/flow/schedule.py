"""Sequences of noise-level pairs: every task is one of these and nothing else (spec sections 1, 2, 7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from modality_forcing.config import FlowConfig
from modality_forcing.types import PerModality


def shift_time(t: Tensor, mu: float, sigma: float = 1.0) -> Tensor:
    """t' = e^mu / (e^mu + (1/t - 1)^sigma), with t = 0 and t = 1 fixed."""
    ratio = (1.0 / t.clamp_min(torch.finfo(t.dtype).tiny) - 1.0).pow(sigma)
    shifted = math.exp(mu) / (math.exp(mu) + ratio)
    return torch.where(t <= 0, torch.zeros_like(t), shifted)


def shifted_grid(steps: int, mu: float, sigma: float = 1.0) -> Tensor:
    """(steps + 1,) float32 nodes from 1 to 0."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one step is needed")
    return shift_time(torch.linspace(1.0, 0.0, steps + 1), mu, sigma)


def tilt(t: Tensor, log2_alpha: float) -> Tensor:
    """f_a(t) = a t / (1 + (a - 1) t), a = 2^log2_alpha: > 0 lets the image lead, < 0 the depth."""
    alpha = 2.0**log2_alpha
    return alpha * t / (1.0 + (alpha - 1.0) * t)


@dataclass(frozen=True)
class Schedule:
    """Noise levels of both modalities at each node; a modality at 0 throughout is given, not sampled."""

    rgb: Tensor
    depth: Tensor

    def __post_init__(self) -> None:
        if self.rgb.shape != self.depth.shape or self.rgb.dim() != 1:
            raise ValueError(f"levels of shape {tuple(self.rgb.shape)} and {tuple(self.depth.shape)} differ")

    @property
    def steps(self) -> int:
        """Number of Euler steps."""
        return self.rgb.shape[0] - 1

    def pairs(self) -> list[PerModality[float]]:
        """The nodes as pairs of numbers."""
        return [
            PerModality(rgb=r, depth=d) for r, d in zip(self.rgb.tolist(), self.depth.tolist(), strict=True)
        ]


def joint_schedule(
    steps: int,
    rgb: FlowConfig | None = None,
    depth: FlowConfig | None = None,
    log2_alpha: float | None = None,
) -> Schedule:
    """Both modalities from noise to clean. With ``log2_alpha`` depth follows the tilted image level,
    without it each follows its own shifted grid."""
    rgb = rgb or FlowConfig()
    depth = depth or rgb
    t_rgb = shifted_grid(steps, rgb.shift_mu, rgb.shift_sigma)
    if log2_alpha is not None:
        return Schedule(t_rgb, tilt(t_rgb, log2_alpha))
    return Schedule(t_rgb, shifted_grid(steps, depth.shift_mu, depth.shift_sigma))


def image_to_depth_schedule(steps: int, depth: FlowConfig | None = None, start: float = 1.0) -> Schedule:
    """The image is given (level 0), depth is sampled from level ``start``: nodes above it are left out."""
    depth = depth or FlowConfig()
    grid = shifted_grid(steps, depth.shift_mu, depth.shift_sigma)
    if start < 1.0:
        grid = torch.cat([torch.tensor([start]), grid[grid < start]])
    return Schedule(torch.zeros_like(grid), grid)


def depth_to_image_schedule(steps: int, rgb: FlowConfig | None = None) -> Schedule:
    """Depth is given (level 0), the image is sampled."""
    rgb = rgb or FlowConfig()
    grid = shifted_grid(steps, rgb.shift_mu, rgb.shift_sigma)
    return Schedule(grid, torch.zeros_like(grid))
