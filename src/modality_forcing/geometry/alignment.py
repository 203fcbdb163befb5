"""Fitting a prediction to a reference: scale, or scale and shift, by least squares or exactly in L1.

Every function takes arrays of one shape (any rank) and an optional bool mask; pixels where the mask is
False or a value is not finite take no part. All arithmetic is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.errors import UserError

ROE_SIZE = 64  # MoGe's protocol fits on a 64 x 64 grid of valid samples


@dataclass(frozen=True)
class Alignment:
    """``scale * prediction + shift`` is in the units of the reference."""

    scale: float
    shift: float = 0.0

    def apply(self, prediction: np.ndarray) -> np.ndarray:
        """The aligned prediction, same shape and dtype."""
        return (self.scale * prediction + self.shift).astype(prediction.dtype)


def align_scale(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None, *, method: str = "median"
) -> Alignment:
    """One factor.

    ``"median"`` (default): median of target / prediction; half of the pixels may be wrong, and near and far
    count alike. ``"least_squares"``: minimises the sum of squares, so far pixels dominate. The L1 optimum
    is :func:`align_scale_l1`.

    Raises:
        UserError: no usable pixel, or an unknown method.
    """
    p, g, _ = _select(prediction, target, mask, None, least=1)
    if method == "median":
        positive = p > 0
        if not positive.any():
            raise UserError("alignment: the prediction is nowhere positive")
        return Alignment(float(np.median(g[positive] / p[positive])))
    if method == "least_squares":
        power = float(p @ p)
        if power == 0.0:
            raise UserError("alignment: the prediction is zero everywhere")
        return Alignment(float(p @ g) / power)
    raise UserError(f"alignment: method {method!r} is unknown; right is 'median' or 'least_squares'")


def align_affine(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Alignment:
    """Scale and shift by (weighted) least squares. A constant prediction gets scale 0 and the mean.

    Raises:
        UserError: fewer than two usable pixels.
    """
    p, g, w = _select(prediction, target, mask, weights, least=2)
    w = w / w.sum()
    p_mean, g_mean = float(w @ p), float(w @ g)
    dp = p - p_mean
    variance = float(w @ dp**2)
    # Rounding leaves about (eps * |p|)^2 where the true variance is zero.
    if variance <= (1e-14 * np.abs(p).max()) ** 2:
        return Alignment(0.0, g_mean)
    scale = float(w @ (dp * (g - g_mean))) / variance
    return Alignment(scale, g_mean - scale * p_mean)


def align_scale_l1(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Alignment:
    """The factor s with the least sum of w |s p - g|, exactly.

    w |s p - g| = w |p| * |s - g / p|, so s is the weighted median of g / p.

    Raises:
        UserError: no usable pixel, or a prediction that is zero everywhere.
    """
    p, g, w = _select(prediction, target, mask, weights, least=1)
    nonzero = p != 0
    if not nonzero.any():
        raise UserError("alignment: the prediction is zero everywhere")
    p, g, w = p[nonzero], g[nonzero], w[nonzero]
    return Alignment(_weighted_median(g / p, w * np.abs(p)))


def align_affine_l1(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Alignment:
    """Scale s and shift b with the least sum of w |s p + b - g|, exactly.

    For a fixed s the best b is the weighted median of g - s p. What remains is a convex, piecewise linear
    function f(s); the lower envelope of two tangents touches it at the optimum after a finite number of
    steps, each O(n log n). s may be negative. A constant prediction gets scale 0 and the weighted median.

    Raises:
        UserError: fewer than two usable pixels.
    """
    p, g, w = _select(prediction, target, mask, weights, least=2)
    w = w / w.sum()
    # Work on values of order one: keeps every tolerance below meaningful.
    p_centre, p_size = float(np.median(p)), float(np.ptp(p))
    g_size = float(np.abs(g).max()) or 1.0
    if p_size <= 1e-14 * np.abs(p).max():
        return Alignment(0.0, _weighted_median(g, w))
    scale, shift = _minimise_l1((p - p_centre) / p_size, g / g_size, w)
    scale *= g_size / p_size
    return Alignment(scale, shift * g_size - scale * p_centre)


def align_roe(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None, *, shift: bool = True
) -> Alignment:
    """MoGe's alignment: minimise sum (1/g) |s p + b - g| on at most 64 x 64 valid pixels.

    Args:
        prediction, target: (H, W); target > 0 where valid.
        mask: bool (H, W), further restriction.
        shift: False fits the factor alone.
    """
    valid = np.isfinite(prediction) & np.isfinite(target) & (target > 0)
    if mask is not None:
        valid = valid & mask
    rows, columns = grid_samples(valid, ROE_SIZE)
    p, g = prediction[rows, columns], target[rows, columns]
    solver = align_affine_l1 if shift else align_scale_l1
    return solver(p, g, weights=1.0 / np.asarray(g, dtype=np.float64))


def grid_samples(valid: np.ndarray, size: int | tuple[int, int] = ROE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Nearest masked down-sampling: in each cell of a size x size grid, the valid pixel nearest its centre.

    Args:
        valid: bool (H, W).
        size: cells per side, or (rows, columns) of the grid.

    Returns:
        rows, columns: int (K,), at most one pixel per cell, in the order of the cells; cells without a valid
        pixel give none.
    """
    grid_rows, grid_columns = (size, size) if isinstance(size, int) else size
    row_cell, row_distance = _cells(valid.shape[0], grid_rows)
    column_cell, column_distance = _cells(valid.shape[1], grid_columns)
    # Most cells of a dense map hold their central pixel; only the others are searched.
    middle_rows, middle_columns = _nearest(row_cell, row_distance), _nearest(column_cell, column_distance)
    direct = valid[np.ix_(middle_rows, middle_columns)]
    searched = np.ones((grid_rows, grid_columns), dtype=bool)
    searched[np.ix_(row_cell[middle_rows], column_cell[middle_columns])] = ~direct
    rows, columns = np.nonzero(valid & searched[np.ix_(row_cell, column_cell)])
    cell = row_cell[rows] * grid_columns + column_cell[columns]
    distance = row_distance[rows] + column_distance[columns]
    order = np.lexsort((distance, cell))
    _, first = np.unique(cell[order], return_index=True)
    chosen = order[first]
    i, j = np.nonzero(direct)
    rows = np.concatenate([middle_rows[i], rows[chosen]])
    columns = np.concatenate([middle_columns[j], columns[chosen]])
    sort = np.argsort(row_cell[rows] * grid_columns + column_cell[columns])
    return rows[sort], columns[sort]


def _cells(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one side: the cell of every pixel, and its squared distance in pixels from the cell's centre."""
    place = (np.arange(length) + 0.5) * size / length
    cell = place.astype(np.int64)
    return cell, ((place - cell - 0.5) * length) ** 2


def _nearest(cell: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Of every cell that holds a pixel, the pixel nearest its centre."""
    order = np.lexsort((distance, cell))
    _, first = np.unique(cell[order], return_index=True)
    return order[first]


def fit_scale_to_points(depth: np.ndarray, points: np.ndarray, mask: np.ndarray | None = None) -> Alignment:
    """The factor that makes a relative depth metric, from a few known distances.

    The median of g / d: right as long as less than half of the points are wrong. (Weighted L1 is not: one
    point whose g is far too small would outweigh the rest.)

    Args:
        depth: (H, W) relative z-depth.
        points: (N, 3): u, v in pixels (top-left pixel's centre 0.5, 0.5) and z-depth g in metres.
        mask: bool (H, W), True where ``depth`` is meaningful.

    Raises:
        UserError: a point outside the image, a distance that is not positive, or no point on a valid pixel.
    """
    known = np.atleast_2d(np.asarray(points, dtype=np.float64))
    if known.ndim != 2 or known.shape[1] != 3 or len(known) == 0:
        raise UserError(f"known points have shape {known.shape}; right is one u,v,metres per point")
    height, width = depth.shape
    u, v, metres = known.T
    for i in range(len(known)):
        if not (0 <= u[i] <= width and 0 <= v[i] <= height):
            raise UserError(
                f"known point {i} at ({u[i]:g}, {v[i]:g}) lies outside the {width}x{height} image"
            )
        if not (np.isfinite(metres[i]) and metres[i] > 0):
            raise UserError(
                f"known point {i} has distance {metres[i]:g}; right is a positive number of metres"
            )
    rows = np.minimum(v.astype(np.int64), height - 1)
    columns = np.minimum(u.astype(np.int64), width - 1)
    values = depth[rows, columns]
    good = np.isfinite(values) & (values > 0)
    if mask is not None:
        good &= mask[rows, columns]
    if not good.any():
        raise UserError("none of the known points lies on a pixel with valid depth")
    return align_scale(values, metres, good)


def _select(
    prediction: np.ndarray,
    target: np.ndarray,
    mask: np.ndarray | None,
    weights: np.ndarray | None,
    *,
    least: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixels that take part, as flat float64 arrays."""
    p, g = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    w = np.ones_like(g) if weights is None else np.asarray(weights, dtype=np.float64)
    if not p.shape == g.shape == w.shape or (mask is not None and mask.shape != p.shape):
        raise UserError(
            f"alignment: prediction {p.shape} and target {g.shape} (or mask, weights) differ in shape"
        )
    use = np.isfinite(p) & np.isfinite(g) & np.isfinite(w) & (w > 0)
    if mask is not None:
        use &= np.asarray(mask, dtype=bool)
    if int(use.sum()) < least:
        raise UserError(f"alignment: {int(use.sum())} valid pixels; at least {least} needed")
    return p[use], g[use], w[use]


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The lower weighted median: the smallest value with at least half of the weight at or below it."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order[np.searchsorted(total, 0.5 * total[-1])]])


def _minimise_l1(p: np.ndarray, g: np.ndarray, w: np.ndarray) -> tuple[float, float]:
    """argmin over (s, b) of sum w |s p + b - g|; p and g of order one, p not constant, w sums to one."""

    def evaluate(s: float) -> tuple[float, float, float]:
        """f(s), a subgradient of f at s, and the best shift."""
        residual = g - s * p
        b = _weighted_median(residual, w)
        residual = residual - b
        side = np.sign(residual)
        tied = side == 0
        # By duality: multipliers u in [-w, w], u = w sign(r) off zero, sum u = 0; then f'(s) = -sum u p.
        side[tied] = -float(w @ side) / float(w[tied].sum())
        return float(w @ np.abs(residual)), -float((w * side) @ p), b

    start = align_affine(p, g, weights=w).scale
    value, slope, b = evaluate(start)
    best = (value, start, b)
    left = right = (start, value, slope)
    step = 1.0
    while slope != 0.0 and (left[2] >= 0.0 or right[2] <= 0.0):  # walk downhill until the sign turns
        s = left[0] - step if slope > 0 else right[0] + step
        value, new_slope, b = evaluate(s)
        best = min(best, (value, s, b))
        if new_slope == 0.0:
            return s, b
        if slope > 0:
            left = (s, value, new_slope)
            right = right if new_slope < 0 else left
        else:
            right = (s, value, new_slope)
            left = left if new_slope > 0 else right
        step *= 2.0
    for iteration in range(400):
        if slope == 0.0:
            break
        (s0, f0, d0), (s1, f1, d1) = left, right
        s = (f1 - f0 + d0 * s0 - d1 * s1) / (d0 - d1)
        bound = f0 + d0 * (s - s0)  # no line lies lower than where the two tangents meet
        if best[0] - bound <= 1e-14 or not s0 < s < s1:
            break
        if iteration % 4 == 3:  # a halving now and then bounds the number of steps
            s = 0.5 * (s0 + s1)
        value, slope, b = evaluate(s)
        best = min(best, (value, s, b))
        if slope < 0:
            left = (s, value, slope)
        else:
            right = (s, value, slope)
    return best[1], best[2]
