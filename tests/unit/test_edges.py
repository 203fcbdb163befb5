"""The guided filter over decoded depth, against least squares done window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modality_forcing.codecs.depth import contract, expand
from modality_forcing.codecs.edges import EPSILON, along_edges, edge_functions
from modality_forcing.codecs.frame import Frame

LIMIT = 1.93


def colours(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def two_halves(size: int, column: int) -> torch.Tensor:
    """Blue left of a column, orange from there on."""
    image = torch.tensor([-0.6, -0.4, 0.5])[None, :, None, None].repeat(1, 1, size, size)
    image[..., column:] = torch.tensor([0.7, 0.2, -0.5])[None, :, None, None]
    return image


def smeared(size: int, column: float, near: float, far: float) -> torch.Tensor:
    """A jump from near to far, smeared over six pixels."""
    share = ((torch.arange(size) - column) / 6 + 0.5).clamp(0, 1)
    return (near + (far - near) * share)[None, None, None].repeat(1, 1, size, 1)


def test_functions_are_the_weighted_ridge_fit_of_every_window_averaged():
    height, width, radius = 7, 9, 2
    guide = colours(height, width).double()
    values = torch.rand(1, 1, height, width, dtype=torch.double)
    weight = 0.1 + torch.rand(1, 1, height, width, dtype=torch.double)
    g, v, w = guide[0].numpy(), values[0, 0].numpy(), weight[0, 0].numpy()
    fits, counts = np.zeros((4, height, width)), np.zeros((height, width))
    around = lambda y, x: np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]  # noqa: E731
    for y in range(height):
        for x in range(width):
            at = around(y, x)
            c, t, k = g[(slice(None), *at)].reshape(3, -1).T, v[at].ravel(), w[at].ravel()
            # sum k (c a + b - t)^2 + sum(k) EPSILON |a|^2 as one least-squares problem
            rows = np.vstack([
                np.sqrt(k)[:, None] * np.hstack([c, np.ones((len(t), 1))]),
                np.sqrt(k.sum() * EPSILON) * np.eye(3, 4),
            ])  # fmt: skip
            fits[:, y, x] = np.linalg.lstsq(rows, np.append(np.sqrt(k) * t, [0, 0, 0]), rcond=None)[0]
            counts[y, x] = k.mean()
    expected = np.zeros_like(fits)
    for y in range(height):
        for x in range(width):
            at = around(y, x)
            expected[:, y, x] = (fits[(slice(None), *at)] * counts[at]).sum((1, 2)) / counts[at].sum()
    found = edge_functions(values, weight, guide, radius)
    torch.testing.assert_close(found[0].double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 48), (5, 3), (1, 7), (64, 64)])
def test_a_flat_map_stays_flat_under_any_image(size):
    frame = Frame.exact(size[1], size[0])
    values = torch.full((1, 1, frame.grid_height, frame.grid_width), 0.7)
    depth, mask = along_edges(values, colours(*size), frame, 5, LIMIT)
    assert depth.shape == mask.shape == (1, 1, *size)
    torch.testing.assert_close(depth, torch.full_like(depth, 0.7))
    assert mask.all()


def test_a_smeared_jump_becomes_sharp_where_the_image_has_it():
    values = smeared(48, 22.5, 0.4, 0.9)
    truth = torch.where(torch.arange(48) < 24, 0.4, 0.9)
    depth, _ = along_edges(values, two_halves(48, 24), Frame.exact(48, 48), 5)
    before, after = (float((row[0, 0, 20] - truth).square().mean()) for row in (values, depth))
    assert after < 0.6 * before
    jump = depth[0, 0, 20].diff()
    assert int(jump.argmax()) == 23 and jump[23] > 3 * values[0, 0, 20].diff().max()


def test_a_larger_picture_gets_its_own_edges():
    """Functions found at 48 pixels, applied at 480: the edge is one pixel wide there, not ten."""
    frame = Frame(480, 480, 48, 48)
    depth, _ = along_edges(smeared(48, 24.0, 0.4, 0.9), two_halves(480, 243), frame, 5)
    assert depth.shape == (1, 1, 480, 480)
    jump = depth[0, 0, 200].diff()
    assert int(jump.argmax()) == 242 and jump[242] > 0.2


def test_padding_of_the_grid_is_never_read():
    frame = Frame.exact(40, 24)  # on a grid of 48 by 32
    values = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    spoiled = values.clone()
    spoiled[..., 24:, :] = spoiled[..., 40:] = 1e6
    image = colours(24, 40)
    for one, other in zip(
        along_edges(values, image, frame, 5, LIMIT), along_edges(spoiled, image, frame, 5, LIMIT), strict=True
    ):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_sky_and_surfaces_keep_apart():
    """A mountain at three times the mean before the sky; the model has its outline four pixels too low."""
    mountain = float(contract(torch.tensor(3.0)))
    image, values = torch.empty(1, 3, 64, 64), torch.full((1, 1, 64, 64), 2.0)
    image[:, :, :30], image[:, :, 30:] = 0.8, -0.5
    values[:, :, 34:] = mountain
    depth, mask = along_edges(values, image, Frame.exact(64, 64), 5, LIMIT)
    torch.testing.assert_close(depth[:, :, 42:], torch.full_like(depth[:, :, 42:], 3.0), rtol=0.01, atol=0)
    assert not mask[:, :, :30].any() and mask[:, :, 31:].all()
    torch.testing.assert_close(depth[:, :, 31:], torch.full_like(depth[:, :, 31:], 3.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("value", [0.5, 2.0])
def test_all_sky_and_no_sky(value):
    values = torch.full((1, 1, 32, 32), value)
    depth, mask = along_edges(values, colours(32, 32), Frame.exact(32, 32), 4, LIMIT)
    assert bool(mask.all()) == (value < LIMIT) and bool(mask.any()) == (value < LIMIT)
    assert torch.isfinite(depth).all()
    torch.testing.assert_close(depth, expand(torch.full_like(depth, min(value, LIMIT))), rtol=1e-4, atol=0)


def test_results_stay_within_the_range_of_the_surfaces():
    values = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.01
    image = colours(32, 32) * 0.1
    image[..., 10:12, 10:12] = 1.0  # a highlight, far outside the colours of its windows
    depth, _ = along_edges(values, image, Frame.exact(32, 32), 3)
    assert values.min() <= depth.min() and depth.max() <= values.max()
