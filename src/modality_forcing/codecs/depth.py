"""Depth maps <-> depth tokens (spec section 3): unit mean, contraction, patches. Scale is relative."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CONTRACTED = 2.0 - 1e-4
"""Upper clamp before the contraction is inverted: 2 means "at infinity"; this is 10,000 times the mean."""
MIN_DEPTH = 1e-4
"""Lower clamp of decoded depth, in units of the mean: depth is positive (ours)."""


def contract(d: Tensor) -> Tensor:
    """d for d <= 1, 2 - 1/d beyond (mip-NeRF 360); [0, inf) -> [0, 2)."""
    return torch.where(d <= 1.0, d, 2.0 - 1.0 / d.clamp_min(1.0))


def expand(z: Tensor) -> Tensor:
    """Inverse of :func:`contract`, always positive and finite: z is clamped to (0, 2) first."""
    z = z.clamp(MIN_DEPTH, MAX_CONTRACTED)
    return torch.where(z <= 1.0, z, 1.0 / (2.0 - z))


def surfaces(contracted: Tensor, limit: float | None = None) -> tuple[Tensor, Tensor]:
    """Contracted values to depth and the mask of what is a surface, both of their shape.

    Args:
        contracted: any shape, float.
        limit: values from here on are sky: masked, and as far as the farthest surface that counts as one.
            None: the model calls every pixel a surface.
    """
    if limit is None:
        return expand(contracted), torch.ones_like(contracted, dtype=torch.bool)
    return expand(contracted.clamp(max=limit)), contracted < limit


def valid_depth(depth: Tensor, mask: Tensor | None = None) -> Tensor:
    """bool, shape of ``depth``: finite, positive and not masked out."""
    valid = torch.isfinite(depth) & (depth > 0)
    return valid if mask is None else valid & mask.bool()


def unit_mean(depth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each item by its mean over valid pixels; invalid pixels become 0.

    Args:
        depth: (B, H, W), any positive unit.
        valid: (B, H, W) bool.

    Returns:
        The normalised depth and the means (B,). An item without a valid pixel has mean 1.
    """
    safe = torch.where(valid, depth, torch.zeros_like(depth)).float()
    count = valid.sum(dim=(1, 2))
    # The mean is accumulated in float64 so that it does not depend on the batch or the image size.
    mean = safe.double().sum(dim=(1, 2)) / count.clamp_min(1)
    mean = torch.where(count > 0, mean, torch.ones_like(mean)).float()
    return safe / mean[:, None, None], mean


def patchify(maps: Tensor, patch: int = 16) -> Tensor:
    """(B, H, W) -> (B, N, patch*patch), blocks and pixels inside them row-major.

    Raises:
        ValueError: H or W is not a multiple of ``patch``.
    """
    b, h, w = maps.shape
    if h % patch or w % patch:
        raise ValueError(f"size {h}x{w} is not a multiple of the patch size {patch}")
    grid = maps.reshape(b, h // patch, patch, w // patch, patch)
    return grid.transpose(2, 3).reshape(b, -1, patch * patch)


def unpatchify(tokens: Tensor, rows: int, cols: int, patch: int = 16) -> Tensor:
    """Inverse of :func:`patchify`: (B, rows*cols, patch*patch) -> (B, H, W)."""
    grid = tokens.reshape(tokens.shape[0], rows, cols, patch, patch)
    return grid.transpose(2, 3).reshape(tokens.shape[0], rows * patch, cols * patch)


def encode_depth(
    depth: Tensor, mask: Tensor | None = None, patch: int = 16, sky: str = "missing"
) -> tuple[Tensor, Tensor, Tensor]:
    """Depth maps to clean tokens.

    Args:
        depth: (B, H, W); NaN, 0 and negative values are invalid and, like +inf, never reach the mean.
        mask: (B, H, W) bool, optional: False marks further pixels as invalid.
        sky: what +inf is: "missing", an invalid pixel; "far", the contraction's limit 2 (``DepthConfig``).

    Returns:
        tokens (B, N, patch^2) with 0 at invalid pixels, validity (B, N, patch^2) bool, means (B,).
    """
    depth = depth.float()  # first: what float32 cannot hold is no measurement either
    valid = valid_depth(depth, mask)
    normalised, mean = unit_mean(depth, valid)
    contracted = contract(normalised)
    if sky == "far":
        infinite = torch.isposinf(depth) if mask is None else torch.isposinf(depth) & mask.bool()
        contracted = torch.where(infinite, torch.full_like(contracted, 2.0), contracted)
        valid = valid | infinite
    return patchify(contracted, patch), patchify(valid.float(), patch) > 0.5, mean


def fill_missing(tokens: Tensor, valid: Tensor, noise: Tensor) -> Tensor:
    """Put Gaussian noise where nothing was measured: what a wholly absent map looks like (spec section 1).

    Args:
        tokens: (B, N, P) tokens at *some noise level*; the missing pixels are pure noise at every level.
    """
    return torch.where(valid, tokens, noise)


def decode_depth(tokens: Tensor, rows: int, cols: int, patch: int = 16) -> Tensor:
    """Tokens (B, N, patch^2) to relative depth (B, H, W) float32, positive and finite."""
    return expand(unpatchify(tokens.float(), rows, cols, patch))
