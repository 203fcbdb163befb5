"""Metrics against closed forms and against other libraries' functions, on random maps with masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from sklearn import metrics as reference

from modality_forcing.errors import UserError
from modality_forcing.evaluation.fitting import ALIGNMENTS, check_alignments, fit_depth
from modality_forcing.evaluation.metrics import (
    BOUNDARY_THRESHOLDS,
    METRICS,
    DepthScore,
    boundary_f1,
    mean_score,
    score_aligned,
    score_depth,
    valid_reference,
)


def maps(seed: int, shape: tuple[int, int] = (24, 31)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prediction, target with holes and sky, mask."""
    rng = np.random.default_rng(seed)
    target = rng.lognormal(1.0, 0.8, shape).astype(np.float32)
    prediction = (target * rng.lognormal(0.0, 0.3, shape) * 0.4 + 0.3).astype(np.float32)
    target[rng.random(shape) < 0.1] = 0.0
    target[rng.random(shape) < 0.1] = np.inf
    target[rng.random(shape) < 0.05] = np.nan
    return prediction, target, rng.random(shape) < 0.8


def test_scale_and_affine_are_found():
    target = np.random.default_rng(0).uniform(1.0, 9.0, (20, 30))
    assert score_depth(3.0 * target, target, alignment="scale").abs_rel < 1e-9
    for name in ("affine", "affine_lstsq"):
        affine = score_depth(3.0 * target + 2.0, target, alignment=name)
        assert affine.abs_rel < 1e-9 and affine.delta1 == 1.0
    assert score_depth(3.0 * target, target, alignment="none").abs_rel == pytest.approx(2.0)
    assert score_depth(3.0 / target + 2.0, target, alignment="disparity", disparity=True).rmse < 1e-9
    assert score_depth(5.0 * target, target, alignment="disparity").rmse < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_measures_agree_with_an_independent_library(seed):
    prediction, target, mask = maps(seed)
    score = score_depth(prediction, target, mask, alignment="none")
    keep = np.isfinite(target) & (target > 0) & mask
    p, g = prediction[keep].astype(np.float64), target[keep].astype(np.float64)
    known = {
        "abs_rel": reference.mean_absolute_percentage_error(g, p),
        "sq_rel": reference.mean_squared_error(g, p, sample_weight=1 / g) * np.sum(1 / g) / len(g),
        "rmse": reference.root_mean_squared_error(g, p),
        "rmse_log": reference.root_mean_squared_error(np.log(g), np.log(p)),
        "log10": reference.mean_absolute_error(np.log10(g), np.log10(p)),
    }
    for k in (1, 2, 3):
        hit = [max(a / b, b / a) < 1.25**k for a, b in zip(p, g, strict=True)]
        known[f"delta{k}"] = reference.accuracy_score([True] * len(hit), hit)
    d = np.log(p) - np.log(g)
    known["silog"] = 100 * math.sqrt(np.mean(d**2) - np.mean(d) ** 2)
    for name, value in known.items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert score.num_valid == keep.sum() and score.non_positive == 0.0


def slow_boundary(p: np.ndarray, g: np.ndarray, valid: np.ndarray) -> float:
    """The definition, pixel by pixel."""
    height, width = p.shape
    total = 0.0
    for t in BOUNDARY_THRESHOLDS:
        precision = recall = 0.0
        for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            mine, theirs = set(), set()
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if not (0 <= v < height and 0 <= u < width and valid[y, x] and valid[v, u]):
                        continue
                    if p[y, x] > 0 and p[v, u] > 0 and p[v, u] / p[y, x] > t:
                        mine.add((y, x))
                    if g[v, u] / g[y, x] > t:
                        theirs.add((y, x))
            precision += len(mine & theirs) / max(len(mine), 1) / 4
            recall += len(mine & theirs) / max(len(theirs), 1) / 4
        total += t * (2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return total / BOUNDARY_THRESHOLDS.sum()


@pytest.mark.parametrize("seed", range(2))
def test_boundary_f1_follows_its_definition(seed):
    prediction, target, mask = maps(seed, (9, 11))
    prediction = prediction.astype(np.float64)
    prediction[2:4, 3] = -1.0
    valid = valid_reference(target, mask)
    expected = slow_boundary(prediction, target.astype(np.float64), valid)
    assert 0.2 < expected < 1.0
    assert boundary_f1(prediction, target, valid) == pytest.approx(expected, abs=1e-9)
    assert boundary_f1(7 * prediction, target, valid) == pytest.approx(expected, abs=1e-9)


def test_boundary_f1_of_known_pictures():
    target = np.ones((8, 8))
    target[:, 4:] = 2.0
    everywhere = np.ones_like(target, bool)
    # One direction of four has a boundary, and it is found: F1 of 1/4 and 1/4.
    assert boundary_f1(target, target, everywhere) == pytest.approx(0.25)
    assert boundary_f1(np.ones((8, 8)), target, everywhere) == 0.0
    moved = np.roll(target, 1, axis=1)
    moved[:, 0] = 1.0
    assert boundary_f1(moved, target, everywhere) == 0.0
    assert math.isnan(boundary_f1(target, np.ones((8, 8)), everywhere))


@pytest.mark.parametrize("seed", range(3))
def test_alignments_agree_with_general_solvers(seed):
    prediction, target, mask = maps(seed + 10)
    valid = valid_reference(target, mask)
    p, g = prediction[valid].astype(np.float64), target[valid].astype(np.float64)
    columns = np.stack([p, np.ones_like(p)], axis=1)

    scale, shift = np.linalg.lstsq(columns, g, rcond=None)[0]
    found = fit_depth(prediction, target, valid, "affine_lstsq")
    np.testing.assert_allclose(found[valid], scale * p + shift, rtol=1e-6)
    scale = np.linalg.lstsq(columns[:, :1], g, rcond=None)[0][0]
    np.testing.assert_allclose(
        fit_depth(prediction, target, valid, "scale_lstsq")[valid], scale * p, rtol=1e-6
    )

    scale, shift = np.linalg.lstsq(np.stack([1 / p, np.ones_like(p)], axis=1), 1 / g, rcond=None)[0]
    expected = 1 / np.maximum(scale / p + shift, 1 / g.max())
    np.testing.assert_allclose(fit_depth(prediction, target, valid, "disparity")[valid], expected, rtol=1e-6)

    for name, free in (("scale", 1), ("affine", 2)):
        lines = np.concatenate([columns[:, :free] / g[:, None], np.zeros((len(p), 0))], axis=1)
        a = np.block([[lines, -np.eye(len(p))], [-lines, -np.eye(len(p))]])
        b = np.concatenate([np.ones(len(p)), -np.ones(len(p))])
        bounds = [(None, None)] * free + [(0, None)] * len(p)
        cost = np.concatenate([np.zeros(free), np.ones(len(p))])
        best = linprog(cost, A_ub=a, b_ub=b, bounds=bounds, method="highs").fun / len(p)
        # The map is smaller than 64 x 64, so every valid pixel enters the fit and AbsRel is what it
        # minimises.
        assert score_depth(prediction, target, mask, alignment=name).abs_rel == pytest.approx(best, rel=1e-6)


def test_only_valid_pixels_count():
    target = np.full((6, 6), 2.0)
    target[0], target[1], target[2] = np.inf, np.nan, 0.0
    prediction = np.full((6, 6), 2.0)
    prediction[:3] = 1e6
    prediction[0, 0] = np.nan
    mask = np.ones((6, 6), bool)
    mask[3] = False
    prediction[3] = 1e6
    score = score_depth(prediction, target, mask, alignment="none")
    assert (score.abs_rel, score.rmse, score.delta1, score.num_valid) == (0.0, 0.0, 1.0, 12)


def test_what_is_not_positive_is_never_a_hit():
    target = np.full((4, 4), 1.0)
    for wrong in (-target, 0.0 * target):
        score = score_depth(wrong, target, alignment="none")
        assert (score.delta1, score.delta2, score.delta3, score.non_positive) == (0.0, 0.0, 0.0, 1.0)
        assert all(math.isfinite(getattr(score, name)) for name in METRICS if name != "boundary_f1")
    # A fit that turns half of the map negative: the truth 1..16 backwards plus an offset.
    prediction = np.linspace(-8.0, 8.0, 16).reshape(4, 4)
    score = score_depth(prediction, np.full((4, 4), 1e-3), alignment="none")
    assert score.non_positive == 0.5 and score.delta3 == 0.0


def test_clip_brings_the_prediction_into_range():
    target = np.full((4, 4), 5.0)
    prediction = np.full((4, 4), 50.0)
    assert score_depth(prediction, target, alignment="none", clip=(1.0, 10.0)).abs_rel == pytest.approx(1.0)
    assert score_aligned(0.9 + 0 * prediction, target, target > 0, clip=(4.5, 10.0)).delta1 == 1.0
    # Clipping moves a negative prediction next to the truth; it is no hit all the same.
    negative = score_aligned(-prediction, target, target > 0, clip=(4.5, 10.0))
    assert negative.abs_rel == pytest.approx(0.1) and negative.delta3 == 0.0 and negative.non_positive == 1.0


def test_refusals():
    good = np.ones((4, 4))
    with pytest.raises(ValueError, match="differ in size"):
        score_depth(np.ones((4, 5)), good)
    with pytest.raises(ValueError, match="no valid pixel"):
        score_depth(good, np.full((4, 4), np.inf))
    with pytest.raises(ValueError, match="known: none"):
        score_depth(good, good, alignment="median")
    with pytest.raises(ValueError, match="not finite on 1 of 16"):
        score_depth(np.where(np.arange(16).reshape(4, 4) == 3, np.nan, 1.0), good)
    with pytest.raises(ValueError, match="does not fit disparity"):
        score_depth(good, good, alignment="affine", disparity=True)
    with pytest.raises(UserError, match="nowhere positive"):
        score_depth(-good, good, alignment="disparity")
    with pytest.raises(UserError, match="'median' is unknown"):
        check_alignments(["scale", "median"])
    assert check_alignments(["scale", "none", "scale"]) == ("scale", "none")
    with pytest.raises(ValueError, match="no score"):
        mean_score([])


def test_mean_weighs_images_alike():
    def score(value: float, boundary: float, count: int) -> DepthScore:
        return DepthScore(**dict.fromkeys(METRICS, value) | {"boundary_f1": boundary}, num_valid=count)

    mean = mean_score([score(0.1, math.nan, 1), score(0.3, 0.5, 999)])
    assert mean.abs_rel == pytest.approx(0.2) and mean.silog == pytest.approx(0.2)
    assert mean.boundary_f1 == 0.5 and mean.num_valid == 1000
    assert set(ALIGNMENTS) >= {"none", "scale", "affine", "disparity"}
