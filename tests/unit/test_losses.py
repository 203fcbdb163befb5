"""Masked losses: what does not count cannot matter, sums add up, x0 and velocity space agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from modality_forcing.flow.path import interpolate
from modality_forcing.losses import SumCount, distillation_loss, mean, velocity_loss, x0_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], SumCount]
"""(prediction, target, t, weight), with noise 0 for the velocity loss."""


def velocity_case(prediction: Tensor, target: Tensor, t: Tensor, weight: Tensor) -> SumCount:
    return velocity_loss(prediction, -target, torch.zeros_like(target), weight)


def x0_case(prediction: Tensor, target: Tensor, t: Tensor, weight: Tensor) -> SumCount:
    return x0_loss(prediction, target, t, 0.05, weight)


def distillation_case(prediction: Tensor, target: Tensor, t: Tensor, weight: Tensor) -> SumCount:
    return distillation_loss(prediction, target, t, 2.0, 0.5, weight)


every_loss = pytest.mark.parametrize("loss", [velocity_case, x0_case, distillation_case])


def case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Prediction and target (3, 5, 4), t (3,), mask (3, 5, 4) of ones and zeros."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.randn(3, 5, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.9, 0.4, 0.2])
    return prediction, target, t, (torch.rand(3, 5, 4, generator=generator) > 0.4).float()


@every_loss
def test_an_error_outside_the_mask_costs_nothing(loss):
    _, target, t, mask = case()
    prediction = target + 100.0 * (1 - mask)
    assert mean(loss(prediction, target, t, mask)).item() == 0.0


@every_loss
def test_every_error_inside_the_mask_costs(loss):
    _, target, t, mask = case()
    for index in mask.nonzero()[::7].tolist():
        prediction = target.clone()
        prediction[tuple(index)] += 1.0
        assert mean(loss(prediction, target, t, mask)).item() > 0.0


@every_loss
def test_nothing_counts(loss):
    prediction, target, t, mask = case()
    prediction.requires_grad_(True)
    value = mean(loss(prediction, target, t, torch.zeros_like(mask)))
    assert value.item() == 0.0
    value.backward()
    assert not prediction.grad.any()


@every_loss
@pytest.mark.parametrize("where", ["prediction", "target"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_outside_the_mask_is_harmless(loss, where, bad):
    prediction, target, t, mask = case()
    clean = prediction.clone().requires_grad_(True)
    expected = mean(loss(clean, target, t, mask))
    expected.backward()
    holes = {"prediction": prediction, "target": target}
    holes[where] = torch.where(mask > 0, holes[where], torch.full_like(mask, bad))
    dirty = holes["prediction"].clone().requires_grad_(True)
    value = mean(loss(dirty, holes["target"], t, mask))
    assert torch.equal(value, expected)
    value.backward()
    assert torch.equal(dirty.grad, clean.grad)


@every_loss
def test_nan_inside_the_mask_is_seen(loss):
    prediction, target, t, _ = case()
    prediction[0, 0, 0] = float("nan")
    assert mean(loss(prediction, target, t, torch.ones(1))).isnan()


@every_loss
def test_the_gradient_flows_where_it_counts_and_only_there(loss):
    prediction, target, t, mask = case()
    prediction.requires_grad_(True)
    mean(loss(prediction, target, t, mask)).backward()
    assert torch.equal(prediction.grad != 0, mask > 0)


@every_loss
def test_parts_of_a_batch_add_up(loss):
    prediction, target, t, mask = case()
    whole = loss(prediction, target, t, mask)
    parts = [loss(prediction[i:j], target[i:j], t[i:j], mask[i:j]) for i, j in ((0, 1), (1, 3))]
    for index in (0, 1):
        assert whole[index].shape == (3,)
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    assert whole[1].tolist() == mask.flatten(1).sum(dim=1).tolist()


@every_loss
def test_weights_broadcast(loss):
    prediction, target, t, _ = case()
    per_item = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    total, count = loss(prediction, target, t, per_item)
    full_total, full_count = loss(prediction, target, t, per_item.expand(3, 5, 4).contiguous())
    torch.testing.assert_close(total, full_total)
    assert count.tolist() == full_count.tolist() == [20, 0, 20]


def test_mean_is_over_what_counts():
    prediction, target, t, mask = case()
    squared = (prediction - target).square()
    torch.testing.assert_close(mean(velocity_case(prediction, target, t, mask)), squared[mask > 0].mean())


def test_x0_loss_is_the_velocity_loss_of_the_same_prediction():
    generator = torch.Generator().manual_seed(1)
    x0, noise, predicted = torch.randn(3, 4, 6, 5, generator=generator, dtype=torch.float64).unbind()
    x0, noise, predicted = (v.float() for v in (x0, noise, predicted))
    t = torch.tensor([0.06, 0.3, 0.8, 1.0])
    v = (interpolate(x0, noise, t) - predicted) / t[:, None, None]
    ones = torch.ones(1)
    by_velocity = mean(velocity_loss(v, x0, noise, ones))
    torch.testing.assert_close(mean(x0_loss(predicted, x0, t, 0.05, ones)), by_velocity, rtol=1e-5, atol=0)


def test_the_clamp_holds_below_t_min():
    x0 = torch.zeros(3, 1, 1)
    ones = torch.ones(3, 1, 1)
    for item, scale in ((0, 0.05), (1, 0.05), (2, 0.1)):
        weight = torch.zeros(3, 1, 1)
        weight[item] = 1
        value = mean(x0_loss(ones, x0, torch.tensor([0.0, 0.01, 0.1]), 0.05, weight))
        assert value.item() == pytest.approx(1 / scale**2, rel=1e-5)


def test_distillation_is_weighted_by_the_depth_level():
    teacher = torch.zeros(3, 2, 2)
    prediction = torch.ones(3, 2, 2)
    t_depth = torch.tensor([0.0, 0.25, 1.0])
    for item, expected in enumerate((0.5, 0.875, 2.0)):
        weight = torch.zeros(3, 1, 1)
        weight[item] = 1
        assert mean(distillation_loss(prediction, teacher, t_depth, 2.0, 0.5, weight)).item() == expected


@every_loss
def test_bf16_predictions_are_compared_in_float32(loss):
    prediction, target, t, mask = case()
    rounded = prediction.bfloat16()
    total, _ = loss(rounded, target, t, mask)
    assert total.dtype == torch.float32
    assert torch.equal(total, loss(rounded.float(), target, t, mask)[0])
