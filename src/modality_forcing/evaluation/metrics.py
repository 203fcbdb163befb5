"""Depth metrics on valid pixels; a prediction that is not positive is never a hit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.geometry.alignment import align_roe


@dataclass(frozen=True)
class DepthScore:
    """One image.

    Attributes:
        abs_rel: mean of |p - g| / g.
        delta1: share of pixels with max(p/g, g/p) < 1.25.
        num_valid: pixels counted.
    """

    abs_rel: float
    delta1: float
    num_valid: int


def score_depth(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None, *, alignment: str = "scale"
) -> DepthScore:
    """Align a prediction to the target and measure it on all valid pixels of the target.

    Args:
        prediction: (H, W) depth in any unit.
        target: (H, W) reference depth; not finite or not positive: no measurement.
        mask: bool (H, W), further restriction.
        alignment: "none", "scale" or "affine": MoGe's exact L1 fit on relative errors (spec section 11).

    Raises:
        ValueError: unknown alignment, sizes that differ, or no valid pixel.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in size")
    valid = np.isfinite(target) & (target > 0)
    if mask is not None:
        valid &= mask
    if not valid.any():
        raise ValueError("the target has no valid pixel")
    p, g = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    if alignment in ("scale", "affine"):
        fit = align_roe(prediction, target, valid, shift=alignment == "affine")
        p = fit.scale * p + fit.shift
    elif alignment != "none":
        raise ValueError(f"alignment {alignment!r} is unknown; known: none, scale, affine")
    positive = p > 0
    ratio = np.full_like(g, np.inf)
    ratio[positive] = np.maximum(p[positive] / g[positive], g[positive] / p[positive])
    return DepthScore(float(np.mean(np.abs(p - g) / g)), float(np.mean(ratio < 1.25)), int(valid.sum()))


def mean_score(scores: list[DepthScore]) -> DepthScore:
    """Mean over images, each image counting alike; ``num_valid`` is the sum."""
    return DepthScore(
        float(np.mean([s.abs_rel for s in scores])),
        float(np.mean([s.delta1 for s in scores])),
        sum(s.num_valid for s in scores),
    )
