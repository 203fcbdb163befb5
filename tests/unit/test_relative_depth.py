"""The relative loss of depth: the evaluation's own measure, in any scale, blind to what does not count."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from modality_forcing.codecs.depth import contract, expand
from modality_forcing.geometry.alignment import align_scale_l1
from modality_forcing.losses import SumCount, mean
from modality_forcing.training.relative import SCALE_SHARE, fit_scale, relative_depth_loss


def depth_case(*, spread: float = 0.2) -> tuple[Tensor, Tensor, Tensor]:
    """Contracted prediction and target (3, 5, 40) of surfaces from 0.3 to 3 times the mean, and a mask."""
    generator = torch.Generator().manual_seed(1)
    depth = 0.3 + 2.7 * torch.rand(3, 5, 40, generator=generator)
    wrong = torch.exp(spread * torch.randn(3, 5, 40, generator=generator))
    mask = (torch.rand(3, 5, 40, generator=generator) > 0.3).float()
    return contract((depth * wrong).clamp(max=3.9)), contract(depth), mask


def relative(prediction: Tensor, x0: Tensor, mask: Tensor, t: float = 1.0) -> SumCount:
    return relative_depth_loss(prediction, x0, torch.full((len(x0),), t), 0.05, 1.93, mask)


def test_the_relative_loss_is_the_measure_of_the_evaluation():
    """AbsRel after the exact fit of one scale per picture, and a share of how far the mean is off."""
    prediction, x0, mask = depth_case()
    total, count = relative(prediction, x0, mask)
    for k in range(3):
        chosen = mask[k] > 0
        p, g = (expand(x[k][chosen]).double().numpy() for x in (prediction, x0))
        scale = align_scale_l1(p, g, None, 1 / g).scale
        wanted = np.mean(np.abs(scale * p - g) / g) + SCALE_SHARE * abs((prediction - x0)[k][chosen].mean())
        assert (total[k] / count[k]).item() == pytest.approx(float(wanted), rel=1e-4)
    quarter = relative(prediction, x0, mask, t=0.25)[0]
    torch.testing.assert_close(quarter, 4 * total)
    torch.testing.assert_close(relative(prediction, x0, mask, t=0.01)[0], 20 * total)


def test_a_wrong_scale_costs_its_share_alone():
    """Everything at half the depth: no relative error, only the mean is off, and its gradient says so."""
    _, x0, mask = depth_case()
    smaller = contract(expand(x0) * 0.5).requires_grad_(True)
    loss = relative(smaller, x0, mask)
    off = ((smaller - x0) * mask).sum(dim=(1, 2)).abs()
    torch.testing.assert_close(loss[0], SCALE_SHARE * off, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fit_scale(expand(smaller), expand(x0), mask > 0), torch.full((3,), 2.0))
    loss[0].sum().backward()
    assert smaller.grad is not None
    assert (smaller.grad.sum(dim=(1, 2)) < 0).all()


def test_the_relative_loss_and_the_sky():
    """Sky counts plainly and leaves the scale alone; surfaces taken for sky cost finitely."""
    _, x0, mask = depth_case()
    sky = x0.clone()
    sky[:, 0] = 2.0
    mask[:, 0] = 1.0
    missed = sky.clone()
    missed[:, 0] = 1.5
    torch.testing.assert_close(relative(missed, sky, mask)[0], torch.full((3,), 20.0), atol=1e-3, rtol=0)
    taken = x0.clone()
    taken[:, 1] = 2.3
    taken.requires_grad_(True)
    loss = mean(relative(taken, x0, mask))
    loss.backward()
    assert 0 < loss.item() < 20
    assert taken.grad is not None
    assert torch.isfinite(taken.grad).all()


def test_the_relative_loss_never_sees_what_does_not_count():
    prediction, x0, mask = depth_case()
    expected = relative(prediction, x0, mask)
    x0 = torch.where(mask > 0, x0, torch.full_like(x0, torch.nan))
    prediction = torch.where(mask > 0, prediction, torch.full_like(x0, 7.0)).requires_grad_(True)
    found = relative(prediction, x0, mask)
    torch.testing.assert_close(found, expected)
    mean(found).backward()
    assert prediction.grad is not None
    assert torch.isfinite(prediction.grad).all()
    assert (prediction.grad[mask == 0] == 0).all()
    nothing = relative(prediction, x0, torch.zeros_like(mask))
    assert mean(nothing).item() == 0.0
