"""Several predictions of one picture as one: aligned to each other, then the median of every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modality_forcing.geometry.alignment import align_affine, align_scale

ROUNDS, TOLERANCE = 30, 1e-6
REGULARISER = 0.02
"""Weight that pulls every fit towards "unchanged", as a share of the data's: against drift."""


def combine(members: Sequence[np.ndarray], *, shift: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixel-wise median of aligned predictions, and their spread.

    Every member is fitted to the median of all by least squares, and the median is taken anew, until it
    rests. The fits are shrunk towards the identity (``REGULARISER``), and every new median is fitted back to
    the one before, so the result keeps the unit of the members. Marigold minimises all pairwise distances at
    once (arXiv 2312.02145); where the members agree, both find the same map.

    Args:
        members: float (H, W) each, of one shape; finite.
        shift: fit factor and shift (affine-invariant depth), else the factor alone.

    Returns:
        median: float32 (H, W).
        spread: float32 (H, W), the mean absolute deviation from the median, over the median's size.

    Raises:
        ValueError: no member, or shapes that differ.
    """
    if not members or any(member.shape != members[0].shape for member in members):
        raise ValueError("an ensemble needs members of one shape")
    stack = np.stack([np.asarray(member, dtype=np.float64) for member in members])
    if len(stack) == 1:
        return stack[0].astype(np.float32), np.zeros(stack[0].shape, dtype=np.float32)
    # Members of relative depth start at one mean, so that the first median is among equals.
    means = stack.mean(axis=(1, 2), keepdims=True)
    if np.all(means > 0):
        stack = stack * (means.mean() / means)
    median = np.median(stack, axis=0)
    for _ in range(ROUNDS):
        stack = np.stack([_fitted(member, median, shift) for member in stack])
        new = np.median(stack, axis=0)
        new = _fitted(new, median, shift)  # the gauge: the median keeps its unit
        change = float(np.abs(new - median).max())
        median = new
        if change <= TOLERANCE * float(np.abs(median).max()):
            break
    deviation = np.mean(np.abs(stack - median), axis=0)
    size = np.maximum(np.abs(median), 1e-3 * float(np.abs(median).mean()))
    return median.astype(np.float32), (deviation / size).astype(np.float32)


def _fitted(member: np.ndarray, median: np.ndarray, shift: bool) -> np.ndarray:
    if shift:
        fit = align_affine(member, median)
        scale, offset = fit.scale, fit.shift
    else:
        scale, offset = align_scale(member, median, method="least_squares").scale, 0.0
    keep = REGULARISER / (1.0 + REGULARISER)
    return (keep + (1.0 - keep) * scale) * member + (1.0 - keep) * offset
