"""Depth metrics against closed forms."""

import numpy as np
import pytest

from modality_forcing.evaluation.metrics import DepthScore, mean_score, score_depth


def _target(rng):
    return rng.uniform(1.0, 10.0, (24, 32))


def test_perfect_prediction_up_to_alignment():
    target = _target(np.random.default_rng(0))
    assert score_depth(3.0 * target, target, alignment="scale").abs_rel < 1e-9
    affine = score_depth(3.0 * target + 2.0, target, alignment="affine")
    assert affine.abs_rel < 1e-9
    assert affine.delta1 == 1.0
    assert score_depth(3.0 * target, target, alignment="none").abs_rel == pytest.approx(2.0)


def test_abs_rel_and_delta1_closed_form():
    target = np.full((4, 4), 2.0)
    prediction = target.copy()
    prediction[:2] *= 1.2
    prediction[2] *= 1.3
    score = score_depth(prediction, target, alignment="none")
    assert score.abs_rel == pytest.approx((8 * 0.2 + 4 * 0.3) / 16)
    assert score.delta1 == pytest.approx(12 / 16)


def test_only_measured_pixels_count():
    target = np.full((6, 6), 2.0)
    target[0], target[1], target[2] = np.inf, np.nan, 0.0
    prediction = np.full((6, 6), 2.0)
    prediction[:3] = 1e6
    mask = np.ones((6, 6), bool)
    mask[3] = False
    prediction[3] = 1e6
    score = score_depth(prediction, target, mask, alignment="none")
    assert score == DepthScore(0.0, 1.0, 12)


def test_negative_after_alignment_is_no_hit():
    target = np.full((4, 4), 1.0)
    assert score_depth(-target, target, alignment="none").delta1 == 0.0


def test_refusals():
    good = np.ones((4, 4))
    with pytest.raises(ValueError, match="differ in size"):
        score_depth(np.ones((4, 5)), good)
    with pytest.raises(ValueError, match="no valid pixel"):
        score_depth(good, np.full((4, 4), np.inf))
    with pytest.raises(ValueError, match="known: none"):
        score_depth(good, good, alignment="median")


def test_mean_weighs_images_alike():
    mean = mean_score([DepthScore(0.1, 1.0, 1), DepthScore(0.3, 0.5, 999)])
    assert mean == DepthScore(pytest.approx(0.2), pytest.approx(0.75), 1000)
