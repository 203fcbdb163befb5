"""Sparse measurements against a dense relative depth: robust fit, outliers, and the correction spread out.

All of it is ours; what was measured to choose it stands in docs/completion.md. Arrays are (H, W); a
measurement is a pixel of ``points`` that is finite and positive.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree

from modality_forcing.geometry.alignment import Alignment, align_affine_l1, align_scale

MIN_AFFINE = 8
"""Points from which a shift is fitted beside the scale."""
SHIFT_COST = 0.08
"""Mean relative error that a shift as large as the median measurement must save. A free shift follows points
that are all near and throws the far part of the scene about."""
MIN_SLOPE = 0.1
"""Least affine scale, as a share of the scale alone: below it the fit would make a flat wall of the scene."""
NEIGHBOURS = 8
"""Points around a point that it is compared with."""
TOLERANCE = 0.2
"""Least disagreement, in log depth, that makes an outlier: 20 %."""
EDGE = 0.05
"""Step of log depth between two pixels at which the correction's coupling halves."""
COLOUR_EDGE = 5.0
"""The same for a step of colour (root of the summed squares, 0..441)."""
FADE = 1e-4
"""Pull of the correction to zero per pixel: it fades over about 1 / sqrt(FADE) = 100 pixels."""
GRIP = 30.0
"""Pull of the correction to a measurement, against 1 between neighbouring pixels: it is nearly met."""
SOFT_GRIP = 1.0
"""The same where measurements are noisy and their neighbours shall outvote them."""


def measured(points: np.ndarray) -> np.ndarray:
    """bool (H, W): a measurement stands here."""
    return np.isfinite(points) & (points > 0)


def thinned(points: np.ndarray, inside: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Measurements of a picture on a coarser or finer grid, none invented and no two mixed.

    Each goes to the grid pixel it lies in; of several in one the lower median stays. (Nearest-pixel scaling
    would lose most of them.) +inf counts as the farthest.

    Args:
        points: float (H, W); NaN is none.
        inside: (rows, columns) that the whole picture covers on the grid.
        shape: (rows, columns) of the grid, at least ``inside``; the rest is padding.

    Returns:
        float32 of ``shape``, NaN where nothing was measured.
    """
    rows, cols = np.nonzero(~np.isnan(points))
    values = points[rows, cols]
    place = (rows * inside[0] // points.shape[0]) * shape[1] + cols * inside[1] // points.shape[1]
    order = np.lexsort((values, place))
    where, first, count = np.unique(place[order], return_index=True, return_counts=True)
    grid = np.full(shape[0] * shape[1], np.nan, np.float32)
    grid[where] = values[order][first + (count - 1) // 2]
    return grid.reshape(shape)


def fit(dense: np.ndarray, points: np.ndarray, usable: np.ndarray) -> Alignment:
    """``scale * dense + shift`` ~ ``points``: least mean |s d + b - g| / g + ``SHIFT_COST`` |b| / median g.

    The least value is found exactly: the second term is one more observation, of depth 0 at relative depth 0.
    Half of the points may be wrong for the scale alone (the median of g / d), which is taken when there are
    fewer than ``MIN_AFFINE`` points, or when the affine fit would flatten the scene, turn it inside out or
    put a pixel of it behind the camera.

    Args:
        dense: relative depth, positive.
        points: measurements in their own unit.
        usable: bool, the pixels to fit on.

    Raises:
        UserError: no usable point.
    """
    d, g = dense[usable].astype(np.float64), points[usable].astype(np.float64)
    plain = align_scale(d, g)
    if len(g) < MIN_AFFINE:
        return plain
    cost = SHIFT_COST * len(g) / float(np.median(g))
    affine = align_affine_l1(np.append(d, 0.0), np.append(g, 0.0), weights=np.append(1.0 / g, cost))
    nearest = affine.scale * float(dense[np.isfinite(dense) & (dense > 0)].min()) + affine.shift
    if affine.scale <= MIN_SLOPE * plain.scale or nearest <= 0.25 * float(g.min()):
        return plain
    return affine


def outliers(dense: np.ndarray, points: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Points that nothing supports: bool (H, W).

    A point is one when both hold: its error log(g / d) is far from the median error of its ``NEIGHBOURS``
    nearest points, and its depth is far from that of all of them but one. So a point beside a depth edge
    that the model put one pixel off stays: neighbours on its own side have its depth. "Far" is
    ``TOLERANCE``, or five times the usual spread (1.4826 MAD) of the points' errors around their neighbours'.

    Args:
        dense: depth already fitted to the points, same unit, positive.
        points: measurements.
        usable: bool, the points to judge.
    """
    bad = np.zeros(points.shape, bool)
    rows, cols = np.nonzero(usable)
    if len(rows) < NEIGHBOURS:
        return bad
    depth = np.log(points[rows, cols].astype(np.float64))
    error = depth - np.log(dense[rows, cols].astype(np.float64))
    places = np.stack([rows, cols], axis=1)
    _, near = cKDTree(places).query(places, k=NEIGHBOURS)
    near = near[:, 1:]
    apart = np.abs(error - np.median(error[near], axis=1))
    limit = max(TOLERANCE, 5 * 1.4826 * float(np.median(apart)))
    unlike = np.sort(np.abs(depth[:, None] - depth[near]), axis=1)[:, 1] > TOLERANCE
    bad[rows, cols] = (apart > limit) & unlike
    return bad


def spread(
    values: np.ndarray,
    known: np.ndarray,
    guide: np.ndarray,
    image: np.ndarray | None = None,
    grip: float = GRIP,
) -> np.ndarray:
    """Values at some pixels to a smooth map over all, which bends where the guide jumps.

    Minimises sum w_ij (c_i - c_j)^2 + grip sum_known (c - value)^2 + FADE sum c^2 over the four neighbours of
    each pixel, w_ij = 1 / (1 + (step of log guide / EDGE)^2 + (step of colour / COLOUR_EDGE)^2): a sparse,
    positive definite system.

    Args:
        values: (H, W), read where ``known``.
        known: bool (H, W).
        guide: (H, W) depth, positive and finite.
        image: (H, W, 3), 0..255: the map bends where its colour jumps, too.
        grip: pull to the values.

    Returns:
        float64 (H, W); zeros when nothing is known.
    """
    shape = known.shape
    if not known.any():
        return np.zeros(shape)
    features = (np.log(guide.astype(np.float64)) / EDGE)[None]
    if image is not None:
        features = np.concatenate([features, np.moveaxis(image, -1, 0) / COLOUR_EDGE])
    index = np.arange(known.size).reshape(shape)
    steps = [(np.diff(features, axis=axis) ** 2).sum(axis=0) for axis in (2, 1)]
    weight = 1.0 / (1.0 + np.concatenate([step.ravel() for step in steps]))
    first = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    second = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    coupling = sparse.coo_array((weight, (first, second)), shape=(known.size, known.size))
    coupling = coupling + coupling.T
    diagonal = np.asarray(coupling.sum(axis=1)).ravel() + FADE + grip * known.ravel()
    target = grip * np.where(known, values, 0.0).ravel()
    start = _pyramid(np.where(known, values, 0.0), known).ravel()
    matrix = sparse.dia_array((diagonal[None], [0]), shape=coupling.shape).tocsr() - coupling.tocsr()
    jacobi = sparse.dia_array((1.0 / diagonal[None], [0]), shape=coupling.shape)
    solution, _ = cg(matrix, target, x0=start, rtol=1e-4, maxiter=500, M=jacobi)
    return solution.reshape(shape)


def _pyramid(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """A first guess for :func:`spread`: a hole takes the mean of the smallest block that knows."""
    if known.all() or min(values.shape) == 1:
        return values if known.any() else np.zeros_like(values)
    h, w = values.shape
    padded = ((0, h % 2), (0, w % 2))
    total = np.pad(values, padded).reshape((h + 1) // 2, 2, (w + 1) // 2, 2).sum(axis=(1, 3))
    count = np.pad(known, padded).reshape((h + 1) // 2, 2, (w + 1) // 2, 2).sum(axis=(1, 3))
    coarse = _pyramid(total / np.maximum(count, 1), count > 0)
    return np.where(known, values, np.kron(coarse, np.ones((2, 2)))[:h, :w])
