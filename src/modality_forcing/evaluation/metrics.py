"""How far a depth map is from a reference: the usual measures, on valid pixels only.

A prediction that is not positive is never a hit, whatever alignment made it so. All arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from modality_forcing.evaluation.fitting import ALIGNMENTS, fit_depth

LOG_FLOOR = 1e-3
"""In logarithms a prediction counts as at least this share of the reference; zero has no logarithm."""
HIT = 1.25  # delta k: max(p / g, g / p) < HIT ** k
BOUNDARY_THRESHOLDS = np.linspace(1.05, 1.25, 10)
LOWER_IS_BETTER = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "non_positive")
HIGHER_IS_BETTER = ("delta1", "delta2", "delta3", "boundary_f1")


@dataclass(frozen=True)
class DepthScore:
    """One image, p the aligned prediction and g the reference on valid pixels.

    Attributes:
        abs_rel: mean of |p - g| / g.
        sq_rel: mean of (p - g)^2 / g, in the unit of g.
        rmse: root of the mean of (p - g)^2, in the unit of g.
        rmse_log: root of the mean of (ln p - ln g)^2.
        log10: mean of |log10 p - log10 g|.
        silog: 100 times the standard deviation of ln p - ln g (KITTI's scale-invariant error).
        delta1, delta2, delta3: share of pixels with max(p/g, g/p) < 1.25, 1.25^2, 1.25^3.
        boundary_f1: see :func:`boundary_f1`; NaN where the reference has no boundary.
        non_positive: share of pixels with p <= 0, before any clipping.
        num_valid: pixels counted.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    silog: float
    delta1: float
    delta2: float
    delta3: float
    boundary_f1: float
    non_positive: float
    num_valid: int


METRICS = tuple(field.name for field in fields(DepthScore))[:-1]


def valid_reference(target: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """bool (H, W): the reference is finite and positive, and ``mask`` (if given) is True."""
    valid = np.isfinite(target) & (target > 0)
    return valid if mask is None else valid & np.asarray(mask, dtype=bool)


def score_depth(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    alignment: str = "scale",
    clip: tuple[float, float] | None = None,
    disparity: bool = False,
) -> DepthScore:
    """Align a prediction to the target and measure it on all valid pixels of the target.

    Args:
        prediction: (H, W) depth in any unit, or disparity; finite on valid pixels.
        target: (H, W) reference depth; not finite or not positive: no measurement.
        mask: bool (H, W), further restriction.
        alignment: one of ``fitting.ALIGNMENTS``.
        clip: nearest and farthest depth; the aligned prediction is brought into this range.
        disparity: the prediction is disparity (larger = nearer); only alignment "disparity" understands it.

    Raises:
        ValueError: unknown alignment, sizes that differ, a prediction that is not finite, or no valid pixel.
        UserError: nothing to fit (``geometry.alignment``).
    """
    valid = check_pair(prediction, target, mask)
    aligned = fit_depth(prediction, target, valid, alignment, disparity=disparity)
    return score_aligned(aligned, target, valid, clip=clip)


def check_pair(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """bool (H, W) of the pixels to be measured.

    Raises:
        ValueError: sizes that differ, no valid pixel, or a prediction that is not finite on one.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in size")
    valid = valid_reference(target, mask)
    if not valid.any():
        raise ValueError("the target has no valid pixel")
    lost = int(np.count_nonzero(~np.isfinite(prediction[valid])))
    if lost:
        raise ValueError(f"the prediction is not finite on {lost} of {int(valid.sum())} valid pixels")
    return valid


def score_aligned(
    aligned: np.ndarray, target: np.ndarray, valid: np.ndarray, *, clip: tuple[float, float] | None = None
) -> DepthScore:
    """Measure a depth map that is in the target's units already; arguments as of :func:`score_depth`."""
    whole = np.asarray(aligned, dtype=np.float64)
    positive = whole[valid] > 0  # asked before clipping, which would make a wrong sign a small distance
    if clip is not None:
        whole = np.clip(whole, *clip)
    p, g = whole[valid], target[valid].astype(np.float64)
    difference = p - g
    size = np.abs(difference) / g
    # ln p - ln g. The floor is a share of g, so it changes nothing about scale.
    shares = np.maximum(p / g, LOG_FLOOR)
    logs = np.log(shares)
    ratio = np.maximum(shares, 1.0 / shares)
    hits = [float(np.count_nonzero(positive & (ratio < HIT**k))) / len(p) for k in (1, 2, 3)]
    return DepthScore(
        abs_rel=float(np.mean(size)),
        sq_rel=float(size @ np.abs(difference)) / len(p),
        rmse=math.sqrt(float(difference @ difference) / len(p)),
        rmse_log=math.sqrt(float(logs @ logs) / len(p)),
        log10=float(np.mean(np.abs(logs))) / math.log(10.0),
        silog=100.0 * float(np.std(logs)),
        delta1=hits[0],
        delta2=hits[1],
        delta3=hits[2],
        boundary_f1=boundary_f1(whole, target, valid),
        non_positive=float(np.mean(~positive)),
        num_valid=len(p),
    )


def boundary_f1(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray) -> float:
    """Scale-invariant F1 of occluding boundaries, as Depth Pro defines it (arXiv 2410.02073).

    Two neighbours form a boundary at threshold t where one is more than t times as deep as the other. For
    each of the four directions precision and recall compare the boundaries of prediction and reference; both
    are averaged over the directions (a direction without boundaries counts 0, as in the authors' published
    code), and F1 is averaged over ten thresholds from 1.05 to 1.25 with weights in proportion to t. Beyond
    that code: a pair takes part where both reference pixels are valid, and a prediction that is not positive
    forms no boundary.

    Returns:
        0..1; NaN when the reference has no boundary at the lowest threshold.
    """
    # NaN is on neither side of any comparison, so a pair with one of these is no boundary.
    p = np.where(valid & (prediction > 0), prediction, np.nan).astype(np.float64)
    g = np.where(valid, target, np.nan).astype(np.float64)
    count = len(BOUNDARY_THRESHOLDS)
    found, real, both = (np.zeros((4, count)) for _ in range(3))
    lowest = BOUNDARY_THRESHOLDS[0] * (1 - 1e-9)  # a first sieve that rounding cannot make too fine
    for axis in (0, 1):
        ratio, reference = (x[1:] / x[:-1] if axis == 0 else x[:, 1:] / x[:, :-1] for x in (p, g))
        some = (ratio > lowest) | (ratio < 1.0 / lowest) | (reference > lowest) | (reference < 1.0 / lowest)
        ratio, reference = np.nan_to_num(ratio[some], nan=1.0), reference[some]
        for turn in (0, 1):  # deeper to the right or below, then to the left or above
            # Level k: the ratio exceeds the first k thresholds.
            mine = np.searchsorted(BOUNDARY_THRESHOLDS, 1.0 / ratio if turn else ratio)
            theirs = np.searchsorted(BOUNDARY_THRESHOLDS, 1.0 / reference if turn else reference)
            row = 2 * axis + turn
            for levels, table in ((mine, found), (theirs, real), (np.minimum(mine, theirs), both)):
                exact = np.bincount(levels, minlength=count + 1)
                table[row] = exact[::-1].cumsum()[::-1][1:]
    if not real[:, 0].any():
        return math.nan
    recall = np.mean(both / np.maximum(real, 1), axis=0)
    precision = np.mean(both / np.maximum(found, 1), axis=0)
    total = recall + precision
    f1 = 2.0 * recall * precision / np.where(total > 0, total, 1.0)
    return float(f1 @ BOUNDARY_THRESHOLDS / BOUNDARY_THRESHOLDS.sum())


def mean_score(scores: Sequence[DepthScore]) -> DepthScore:
    """Mean over images, each image counting alike; ``num_valid`` is the sum.

    Images without a boundary say nothing about ``boundary_f1`` and are left out of its mean.

    Raises:
        ValueError: no score.
    """
    if not scores:
        raise ValueError("no score to average")
    means = {}
    for name in METRICS:
        values = np.array([getattr(score, name) for score in scores], dtype=np.float64)
        known = values[~np.isnan(values)] if name == "boundary_f1" else values
        means[name] = float(known.mean()) if len(known) else math.nan
    return DepthScore(**means, num_valid=sum(score.num_valid for score in scores))


__all__ = [
    "ALIGNMENTS", "HIGHER_IS_BETTER", "LOWER_IS_BETTER", "METRICS", "DepthScore", "boundary_f1", "check_pair",
    "mean_score", "score_aligned", "score_depth", "valid_reference",
]  # fmt: skip
