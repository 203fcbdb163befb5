"""The straight path and its Euler step: direction of time, exact landing, an ODE with known solution."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from modality_forcing.flow.path import clean_from_velocity, euler_step, interpolate, velocity


def tensors(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    return x0, noise


def test_zero_is_clean_and_one_is_noise():
    x0, noise = tensors(2, 5, 3)
    assert torch.equal(interpolate(x0, noise, torch.zeros(2)), x0)
    assert torch.equal(interpolate(x0, noise, torch.ones(2)), noise)


def test_each_item_has_its_own_level():
    x0, noise = tensors(3, 4, 2)
    x_t = interpolate(x0, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], 0.75 * x0[1] + 0.25 * noise[1])
    assert torch.equal(x_t[2], noise[2])


def test_velocity_is_the_derivative():
    x0, noise = (x.double() for x in tensors(2, 4, 3))
    t, h = torch.tensor([0.3, 0.8]).double(), 1e-6
    derivative = (interpolate(x0, noise, t + h) - interpolate(x0, noise, t - h)) / (2 * h)
    torch.testing.assert_close(derivative, velocity(x0, noise), atol=1e-8, rtol=1e-8)


def test_clean_from_velocity_inverts_the_path():
    x0, noise = tensors(3, 6, 2)
    t = torch.tensor([0.1, 0.5, 1.0])
    found = clean_from_velocity(interpolate(x0, noise, t), velocity(x0, noise), t)
    torch.testing.assert_close(found, x0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["x0", "velocity"])
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.4), (0.4, 0.39), (0.02, 0.001), (1.0, 0.0), (0.03, 0.0)])
def test_a_step_stays_on_a_straight_path(kind, t, s):
    x0, noise = tensors(2, 8, 4)
    prediction = x0 if kind == "x0" else velocity(x0, noise)
    x_t = interpolate(x0, noise, torch.full((2,), t))
    expected = interpolate(x0, noise, torch.full((2,), s))
    torch.testing.assert_close(euler_step(x_t, prediction, kind, t, s), expected, atol=2e-6, rtol=0)


def test_both_kinds_are_the_same_step():
    """With any (wrong) prediction: v = (x_t - x0) / t."""
    x_t, predicted = (x.double() for x in tensors(2, 8, 4))
    for t, s in ((1.0, 0.7), (0.5, 0.2), (0.04, 0.01)):
        by_x0 = euler_step(x_t, predicted, "x0", t, s)
        by_velocity = euler_step(x_t, (x_t - predicted) / t, "velocity", t, s)
        torch.testing.assert_close(by_x0, by_velocity, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("t", [1.0, 0.5, 0.05, 0.01, 1e-7])
def test_the_last_step_returns_the_prediction_to_the_bit(t):
    x_t, predicted = tensors(2, 8, 4)
    assert torch.equal(euler_step(x_t, predicted, "x0", t, 0.0), predicted)


@pytest.mark.parametrize("kind", ["x0", "velocity"])
@pytest.mark.parametrize("level", [0.0, 0.6])
def test_a_held_modality_does_not_move(kind, level):
    x_t, predicted = tensors(1, 3, 2)
    assert euler_step(x_t, predicted * float("nan"), kind, level, level) is x_t


def test_unknown_kind():
    x_t, predicted = tensors(1, 3, 2)
    with pytest.raises(ValueError, match="epsilon"):
        euler_step(x_t, predicted, "epsilon", 1.0, 0.5)


@pytest.mark.parametrize("kind", ["x0", "velocity"])
def test_euler_converges_to_the_known_solution(kind):
    """Data N(0, c^2): the best prediction is linear in x_t and x_0 = c x_1 exactly.

    E[x0 | x_t] = c^2 (1 - t) x_t / ((1 - t)^2 c^2 + t^2), so dx/dt has the solution
    x_t = x_1 sqrt((1 - t)^2 c^2 + t^2); halving the step halves the error (first order).
    """
    c = 0.5
    x1 = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]

    def end(steps: int) -> torch.Tensor:
        x = x1
        nodes = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
        for t, s in pairwise(nodes):
            clean = c**2 * (1 - t) * x / ((1 - t) ** 2 * c**2 + t**2)
            x = euler_step(x, clean if kind == "x0" else (x - clean) / t, kind, t, s)
        return x

    errors = [(end(steps) - c * x1).abs().max().item() for steps in (64, 128, 256)]
    assert errors[2] < 0.01
    for coarse, fine in pairwise(errors):
        assert 1.8 < coarse / fine < 2.2
