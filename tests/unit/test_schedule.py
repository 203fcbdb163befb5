"""Noise-level schedules: where they start and end, monotone, tilt and shift by their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from modality_forcing.config import FlowConfig
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
    shift_time,
    shifted_grid,
    tilt,
)

STEPS = [1, 2, 3, 10, 50, 200]
ALPHAS = [None, -8.0, -2.0, 0.0, 0.5, 5.0, 8.0]


@pytest.mark.parametrize("log2_alpha", ALPHAS)
@pytest.mark.parametrize("steps", STEPS)
def test_joint_goes_from_noise_to_clean(steps, log2_alpha):
    schedule = joint_schedule(steps, log2_alpha=log2_alpha)
    assert schedule.steps == steps
    for levels in (schedule.rgb, schedule.depth):
        assert levels.shape == (steps + 1,)
        assert levels.dtype == torch.float32
        assert levels[0].item() == 1.0
        assert levels[-1].item() == 0.0
        assert (levels.diff() < 0).all()


@pytest.mark.parametrize("steps", STEPS)
def test_a_given_modality_is_at_zero_throughout(steps):
    i2d, d2i = image_to_depth_schedule(steps), depth_to_image_schedule(steps)
    assert not i2d.rgb.any()
    assert not d2i.depth.any()
    for levels in (i2d.depth, d2i.rgb):
        assert torch.equal(levels, shifted_grid(steps, FlowConfig().shift_mu))


@pytest.mark.parametrize(("log2_alpha", "leads"), [(5.0, "rgb"), (-5.0, "depth"), (0.0, None)])
def test_who_leads(log2_alpha, leads):
    schedule = joint_schedule(10, log2_alpha=log2_alpha)
    rgb, depth = schedule.rgb[1:-1], schedule.depth[1:-1]
    if leads is None:
        assert torch.equal(rgb, depth)
    else:
        assert ((rgb < depth) if leads == "rgb" else (depth < rgb)).all()


def test_tilt_formula():
    t = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(tilt(t, 1.0), torch.tensor([0.0, 0.4, 2 / 3, 1.0]))
    torch.testing.assert_close(tilt(tilt(t, 3.0), -3.0), t)


def test_shift_formula():
    t = torch.tensor([0.0, 0.2, 0.5, 1.0])
    for mu, sigma in ((1.1, 1.0), (-0.5, 0.7), (0.0, 1.0)):
        shifted = shift_time(t, mu, sigma)
        assert shifted[0] == 0
        assert shifted[3] == 1
        for before, after in zip(t[1:3].tolist(), shifted[1:3].tolist(), strict=True):
            expected = math.exp(mu) / (math.exp(mu) + (1 / before - 1) ** sigma)
            assert after == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(shift_time(t, 0.0), t)  # mu 0 and sigma 1: no shift


def test_each_stream_has_its_own_shift():
    rgb, depth = FlowConfig(shift_mu=0.0), FlowConfig(shift_mu=2.0, shift_sigma=0.7)
    schedule = joint_schedule(4, rgb, depth)
    torch.testing.assert_close(schedule.rgb, torch.linspace(1, 0, 5))
    torch.testing.assert_close(schedule.depth, shifted_grid(4, 2.0, 0.7))
    tilted = joint_schedule(4, rgb, depth, log2_alpha=0.0)  # a tilt follows the image's grid
    torch.testing.assert_close(tilted.depth, tilted.rgb)


def test_pairs_are_the_nodes():
    schedule = joint_schedule(3, log2_alpha=2.0)
    pairs = schedule.pairs()
    assert [p.rgb for p in pairs] == schedule.rgb.tolist()
    assert [p.depth for p in pairs] == schedule.depth.tolist()


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps(steps):
    with pytest.raises(ValueError, match=str(steps)):
        joint_schedule(steps)


def test_levels_that_do_not_match():
    with pytest.raises(ValueError, match="differ"):
        Schedule(torch.zeros(3), torch.zeros(4))
