"""THE statement of time's direction: t = 0 is clean, t = 1 is noise, for every modality (spec section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def expand_level(t: Tensor, like: Tensor) -> Tensor:
    """(B,) noise levels as (B, 1, ..., 1) to go with ``like``."""
    return t.reshape(-1, *[1] * (like.dim() - 1))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t noise."""
    t = expand_level(t, x0)
    return (1 - t) * x0 + t * noise


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """v = dx_t/dt = noise - x0."""
    return noise - x0


def clean_from_velocity(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The x0 that a velocity points at: x_t - t v."""
    return x_t - expand_level(t, x_t) * v


def path_velocity(x_t: Tensor, prediction: Tensor, kind: str, t: float | Tensor) -> Tensor:
    """dx_t/dt that a prediction stands for at level t > 0 (one, or broadcastable to x_t): itself, or
    (x_t - x0) / t."""
    if kind == "x0":
        return (x_t - prediction) / t
    if kind == "velocity":
        return prediction
    raise ValueError(f"prediction kind {kind!r}; known: velocity, x0")


def euler_step(x_t: Tensor, prediction: Tensor, kind: str, t: float, s: float) -> Tensor:
    """Move from noise level t to s along the predicted straight path.

    For an x0-prediction the step is x_s = x0 + (s/t)(x_t - x0): the velocity (x_t - x0)/t with its division
    folded in, so nothing is amplified near t = 0 and s = 0 lands on x0 exactly. (The release divides by
    max(t, 0.05), which leaves noise behind once a step starts below 0.05.)

    Args:
        prediction: the head's output at (x_t, t).
        kind: "velocity" or "x0".
        t, s: noise levels, 0 <= s <= t. With s == t nothing moves: a clean or held modality.
    """
    if s == t:
        return x_t
    if kind == "x0":
        return torch.lerp(prediction, x_t, s / t)
    if kind == "velocity":
        return x_t + (s - t) * prediction
    raise ValueError(f"prediction kind {kind!r}; known: velocity, x0")
