"""Sparse depth as sensors give it: which pixels of a dense depth map a sensor would have measured."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from modality_forcing.errors import UserError


def _random(
    depth: np.ndarray, rgb: np.ndarray, rng: np.random.Generator, fraction: float | None
) -> np.ndarray:
    share = fraction if fraction is not None else math.exp(rng.uniform(math.log(0.002), math.log(0.05)))
    return rng.random(depth.shape) < share


def _lidar(
    depth: np.ndarray, rgb: np.ndarray, rng: np.random.Generator, fraction: float | None
) -> np.ndarray:
    """Horizontal scan lines; far and dark points drop out more often."""
    h = depth.shape[0]
    lines = (
        max(2, round(h * fraction / 0.5)) if fraction is not None else int(rng.integers(h // 16, h // 5 + 2))
    )
    rows = np.unique(np.clip(np.linspace(0.15 * h, h - 1, lines) + rng.uniform(-1, 1), 0, h - 1).astype(int))
    out = np.zeros(depth.shape, bool)
    out[rows] = True
    columns = (np.arange(depth.shape[1]) + int(rng.integers(2))) % 2 == 0
    dark = rgb.mean(-1) / 255.0
    keep = 0.95 * np.exp(-np.where(np.isfinite(depth), depth, 0.0) / 80.0) * (0.6 + 0.4 * dark)
    return out & columns[None] & (rng.random(depth.shape) < keep)


def _keypoints(
    depth: np.ndarray, rgb: np.ndarray, rng: np.random.Generator, fraction: float | None
) -> np.ndarray:
    """Points drawn where the picture has strong gradients, as a feature matcher finds them."""
    grey = rgb.astype(np.float64).mean(-1)
    gy, gx = np.gradient(grey)
    weight = np.where(np.isfinite(depth), np.hypot(gx, gy), 0.0).ravel()
    share = fraction if fraction is not None else math.exp(rng.uniform(math.log(0.005), math.log(0.03)))
    count = min(max(1, round(share * depth.size)), int((weight > 0).sum()))
    out = np.zeros(depth.size, bool)
    if count:
        out[rng.choice(depth.size, count, replace=False, p=weight / weight.sum())] = True
    return out.reshape(depth.shape)


def _structured_light(
    depth: np.ndarray, rgb: np.ndarray, rng: np.random.Generator, fraction: float | None
) -> np.ndarray:
    """Dense, with holes beside depth edges, on dark surfaces and beyond the reach of the projector."""
    z = np.where(np.isfinite(depth), depth, 1e4).astype(np.float64)
    log = np.log(np.maximum(z, 1e-3))
    edge = np.zeros(depth.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(log, axis=axis)) > 0.08
        low, high = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        low[axis], high[axis] = (1, 0), (0, 1)
        edge |= np.pad(step, low) | np.pad(step, high)
    reach = max(rng.uniform(5.0, 10.0), float(np.quantile(z, 0.3)))
    out = ~edge & (rgb.mean(-1) > rng.uniform(12, 30)) & (z < reach)
    return out & (rng.random(depth.shape) < (0.95 if fraction is None else fraction))


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator, float | None], np.ndarray]] = {
    "random": _random, "lidar": _lidar, "keypoints": _keypoints, "structured_light": _structured_light,
}  # fmt: skip


def sparsify(
    depth: np.ndarray, rgb: np.ndarray, kind: str, rng: np.random.Generator, *, fraction: float | None = None
) -> np.ndarray:
    """Mask bool (H, W) of the pixels a sensor of this kind measures; never where depth is not finite.

    Args:
        depth: float (H, W) z-depth in metres, +inf is sky.
        rgb: uint8 (H, W, 3).
        kind: "random", "lidar", "keypoints" or "structured_light".
        rng: the only source of chance.
        fraction: density; None draws it ("random": log-uniform between 0.2 % and 5 % of the pixels).

    Raises:
        UserError: unknown kind, or a fraction outside (0, 1].
    """
    if kind not in KINDS:
        raise UserError(f"unknown sensor {kind!r}; choose one of {', '.join(KINDS)}")
    if fraction is not None and not 0.0 < fraction <= 1.0:
        raise UserError(f"fraction is {fraction}; a density lies above 0 and at most at 1")
    return KINDS[kind](depth, rgb, rng, fraction) & np.isfinite(depth) & (depth > 0)
