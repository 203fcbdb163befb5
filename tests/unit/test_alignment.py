import numpy as np
import pytest
from scipy.optimize import linprog

from modality_forcing.errors import UserError
from modality_forcing.geometry.alignment import (
    Alignment,
    align_affine,
    align_affine_l1,
    align_roe,
    align_scale,
    align_scale_l1,
    fit_scale_to_points,
    grid_samples,
)


def l1_cost(a: Alignment, p, g, w):
    return float(np.sum(w * np.abs(a.scale * p + a.shift - g)))


def linprog_cost(p, g, w, shift=True):
    """min sum w t with -t <= s p + b - g <= t, by a general solver."""
    n = len(p)
    lines = np.stack([p, np.ones(n) if shift else np.zeros(n)], axis=1)
    a = np.block([[lines, -np.eye(n)], [-lines, -np.eye(n)]])
    b = np.concatenate([g, -g])
    bounds = [(None, None), (None, None), *[(0, None)] * n]
    return linprog(np.concatenate([[0, 0], w]), A_ub=a, b_ub=b, bounds=bounds, method="highs").fun


def problem(seed, n=60):
    rng = np.random.default_rng(seed)
    p = rng.lognormal(0, 0.6, n)
    g = np.maximum(
        2.5 * p + 0.7 + rng.normal(0, 0.3, n) + (rng.random(n) < 0.2) * rng.exponential(20, n), 0.05
    )
    return p, g, 1 / g


@pytest.mark.parametrize("seed", range(8))
def test_exact_l1_matches_linear_programming(seed):
    p, g, w = problem(seed)
    affine = align_affine_l1(p, g, weights=w)
    assert l1_cost(affine, p, g, w) == pytest.approx(linprog_cost(p, g, w), rel=1e-6, abs=1e-9)
    scale = align_scale_l1(p, g, weights=w)
    assert l1_cost(scale, p, g, w) == pytest.approx(linprog_cost(p, g, w, shift=False), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "kind", ["ties", "collinear", "duplicates", "negative", "two", "far", "two_clusters"]
)
def test_exact_l1_on_degenerate_data(kind):
    rng = np.random.default_rng(3)
    p, g, w = problem(11, 40)
    if kind == "ties":
        p, g = np.round(p, 1), np.round(g)
    elif kind == "collinear":
        g = 3 * p + 1
        g[:15] += rng.normal(0, 5, 15)
    elif kind == "duplicates":
        p, g, w = np.repeat(p[:5], 8), np.tile(g[:8], 5), np.ones(40)
    elif kind == "negative":
        g = 9 - 2 * p
    elif kind == "two":
        p, g, w = p[:2], g[:2], w[:2]
    elif kind == "far":
        p, g = p * 1e-5 + 7.0, g * 1e4
    else:
        p = np.where(rng.random(40) < 0.5, 1.0, 2.0)
    found = l1_cost(align_affine_l1(p, g, weights=w), p, g, w)
    reference = linprog_cost(p, g, w)
    assert found <= reference * (1 + 1e-6) + 1e-9 * np.abs(g).max()


def test_exact_l1_is_never_beaten_by_a_line_through_two_points():
    # Some optimal line passes through two of the points: try all of them.
    for seed in range(5):
        p, g, w = problem(seed + 100, 30)
        i, j = np.triu_indices(30, 1)
        s = (g[i] - g[j]) / (p[i] - p[j])
        costs = np.abs(s[:, None] * p + (g[i] - s * p[i])[:, None] - g) @ w
        assert l1_cost(align_affine_l1(p, g, weights=w), p, g, w) == pytest.approx(costs.min(), rel=1e-10)


def test_l1_ignores_gross_errors_where_least_squares_does_not():
    p = np.linspace(1, 5, 101)
    g = 2 * p + 1
    g[np.random.default_rng(0).permutation(101)[:30]] = 500.0
    exact = align_affine_l1(p, g)
    assert (exact.scale, exact.shift) == (pytest.approx(2), pytest.approx(1))
    assert abs(align_affine(p, g).shift - 1) > 50


def test_least_squares_matches_lstsq():
    p, g, w = problem(4)
    a = np.stack([p, np.ones_like(p)], axis=1)
    for weights in (None, w):
        root = np.ones_like(p) if weights is None else np.sqrt(w)
        expected = np.linalg.lstsq(a * root[:, None], g * root, rcond=None)[0]
        found = align_affine(p, g, weights=weights)
        np.testing.assert_allclose([found.scale, found.shift], expected, rtol=1e-9)


def test_scale():
    p, g, _ = problem(5)
    assert align_scale(p, g).scale == pytest.approx(np.median(g / p))
    squares = align_scale(p, g, method="least_squares").scale
    assert np.sum((squares * p - g) ** 2) < np.sum((1.001 * squares * p - g) ** 2)
    assert np.sum((squares * p - g) ** 2) < np.sum((0.999 * squares * p - g) ** 2)


def test_mask_and_non_finite_values_take_no_part():
    p = np.linspace(1, 2, 48).reshape(6, 8).astype(np.float32)
    g = (3 * p + 1).astype(np.float32)
    mask = np.ones((6, 8), bool)
    mask[0], g[0] = False, 1e6
    g[1, 0], p[1, 1], g[1, 2] = np.inf, np.nan, np.nan
    for fit in (align_affine, align_affine_l1, align_roe):
        found = fit(p, g, mask)
        np.testing.assert_allclose([found.scale, found.shift], [3, 1], rtol=1e-5)
    aligned = found.apply(p)
    assert aligned.dtype == np.float32
    np.testing.assert_allclose(aligned[2:], g[2:], rtol=1e-5)


def test_constant_prediction():
    p, g = np.full(9, 0.1), np.arange(9.0)
    assert align_affine(p, g) == Alignment(0.0, 4.0)
    assert align_affine_l1(p, g) == Alignment(0.0, 4.0)


def test_grid_samples_takes_the_valid_pixel_nearest_each_cell_centre():
    valid = np.ones((30, 50), bool)
    rows, columns = grid_samples(valid, 10)
    assert len(rows) == 100
    assert set(rows) == {3 * i + 1 for i in range(10)}
    assert set(columns) == {5 * i + 2 for i in range(10)}
    valid[:, :25] = False
    valid[4, 7] = True
    rows, columns = grid_samples(valid, 10)
    assert len(rows) == 51
    assert (4, 7) in set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(grid_samples(np.ones((20, 20), bool), 64)[0]) == 400


def test_roe_uses_inverse_depth_weights_on_the_grid():
    rng = np.random.default_rng(0)
    g = rng.uniform(1, 30, (64, 64))
    p = g + rng.normal(0, 1, g.shape) * g
    found = align_roe(p, g)
    assert found == align_affine_l1(p, g, weights=1 / g)
    assert align_roe(p, g, shift=False).shift == 0.0


def test_metric_scale_from_points():
    depth = np.arange(1.0, 49.0).reshape(6, 8)
    points = [(0.5, 0.5, 2.0), (3.5, 2.5, 40.0), (7.9, 5.9, 96.0), (4.5, 4.5, 1.0)]
    assert fit_scale_to_points(depth, points).scale == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: align_scale(np.ones(3), np.full(3, np.nan)), "0 valid pixels"),
        (lambda: align_scale(np.zeros(3), np.ones(3)), "nowhere positive"),
        (lambda: align_scale(np.zeros(3), np.ones(3), method="least_squares"), "zero everywhere"),
        (lambda: align_scale(np.ones(3), np.ones(3), method="mean"), "'mean' is unknown"),
        (lambda: align_scale_l1(np.zeros(3), np.ones(3)), "zero everywhere"),
        (lambda: align_affine(np.ones(3), np.ones(4)), "differ"),
        (lambda: align_affine(np.ones(3), np.ones(3), np.array([True, False, False])), "1 valid pixels"),
        (lambda: align_affine_l1(np.ones(1), np.ones(1)), "at least 2"),
        (lambda: fit_scale_to_points(np.ones((4, 4)), [(5.0, 1.0, 1.0)]), "outside"),
        (lambda: fit_scale_to_points(np.ones((4, 4)), [(1.0, 1.0, -1.0)]), "distance -1"),
        (lambda: fit_scale_to_points(np.zeros((4, 4)), [(1.0, 1.0, 1.0)]), "none of the known points"),
        (lambda: fit_scale_to_points(np.ones((4, 4)), [(1.0, 1.0)]), "shape"),
    ],
)
def test_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
