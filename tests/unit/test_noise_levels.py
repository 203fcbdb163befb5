"""Training densities: closed numbers, quantiles against the density, samples against both, the task mix."""

from __future__ import annotations

import math

import pytest
import torch

from modality_forcing.flow.noise_levels import LogitNormal, PlateauLogitNormal, TaskMix, stratified_uniform

DENSITIES = [
    LogitNormal(),
    PlateauLogitNormal(),
    LogitNormal(-0.5, 0.7),
    PlateauLogitNormal(-0.5, 0.7),
    PlateauLogitNormal(0.3, 1.2),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_published_numbers_of_the_plateau():
    plateau = PlateauLogitNormal(1.1, 1.0)
    base = plateau.base
    assert base.mode == pytest.approx(0.8607, abs=5e-5)
    assert math.log(base.mode / (1 - base.mode)) == pytest.approx(1.1 + 2 * base.mode - 1, abs=1e-9)
    assert base.pdf(base.mode) == pytest.approx(2.5656, abs=5e-5)
    assert base.cdf(base.mode) == pytest.approx(0.7647, abs=5e-5)
    assert plateau.normaliser == pytest.approx(1.12197, abs=5e-6)
    assert plateau.plateau_mass == pytest.approx(0.318, abs=5e-4)


def test_the_plateau_is_flat_and_continuous():
    plateau = PlateauLogitNormal()
    mode = plateau.base.mode
    top = plateau.pdf(1.0)
    assert all(plateau.pdf(t) == top for t in (mode, 0.9, 0.99, 1.0))
    assert plateau.pdf(mode - 1e-6) == pytest.approx(top, rel=1e-6)
    for t in (0.1, 0.5, 0.8):  # below the mode only the scale changes
        assert plateau.pdf(t) == pytest.approx(plateau.base.pdf(t) / plateau.normaliser, rel=1e-12)
    assert plateau.cdf(mode) == pytest.approx(1 - plateau.plateau_mass, rel=1e-12)


@pytest.mark.parametrize(("mu", "sigma"), [(1.1, 1.0), (0.0, 1.0), (-0.5, 0.7), (1.1, 2.5), (-1.1, 2.5)])
def test_the_mode_is_the_highest_point(mu, sigma):
    """A wide logit-normal has two modes: the higher one counts."""
    base = LogitNormal(mu, sigma)
    highest = max(base.pdf((i + 0.5) / 20000) for i in range(20000))
    assert base.pdf(base.mode) >= highest * (1 - 1e-9)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_the_density_integrates_to_its_cdf(density):
    n = 20000
    step = 1 / n
    total, worst = 0.0, 0.0
    for i in range(n):
        total += density.pdf((i + 0.5) * step) * step
        if i % 500 == 499 and i < n - 1:
            worst = max(worst, abs(total - density.cdf((i + 1) * step)))
    assert worst < 1e-5
    assert total == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("density", DENSITIES, ids=repr)
def test_the_quantile_inverts_the_cdf(density):
    u = torch.linspace(0.001, 0.999, 201, dtype=torch.float64)
    t = density.quantile(u)
    assert t.dtype == torch.float64
    assert (t.diff() > 0).all()
    assert max(abs(density.cdf(x) - y) for x, y in zip(t.tolist(), u.tolist(), strict=True)) < 1e-9


@pytest.mark.parametrize("density", DENSITIES[:2], ids=repr)
def test_samples_follow_the_density(density):
    n, bins = 20000, 25
    t = density.sample(n, generator())
    assert t.dtype == torch.float32
    assert t.shape == (n,)
    assert ((t > 0) & (t <= 1)).all()
    counts = torch.histc(t, bins, 0, 1) / n
    edges = [density.cdf(i / bins) if 0 < i < bins else float(i > 0) for i in range(bins + 1)]
    expected = torch.tensor(edges).diff()
    # Stratified draws miss a bin's mass by at most two draws.
    assert (counts - expected).abs().max().item() < 2.5 / n


def test_samples_are_keyed_and_shuffled():
    density = PlateauLogitNormal()
    a = density.sample(64, generator(1))
    assert torch.equal(a, density.sample(64, generator(1)))
    assert not torch.equal(a, density.sample(64, generator(2)))
    assert (a.diff() < 0).any()
    # In batches of 8, every place of the batch sees every part of the density.
    first = torch.stack([density.sample(8, generator(seed))[0] for seed in range(300)])
    assert first.min() < 0.4
    assert first.max() > 0.95


@pytest.mark.parametrize("num", [1, 2, 7, 64])
def test_one_draw_in_each_part(num):
    u = stratified_uniform(num, generator())
    assert u.dtype == torch.float64
    assert sorted((u * num).floor().int().tolist()) == list(range(num))


def test_task_mix_shares_and_exact_zeros():
    n = 20000
    t_rgb, t_depth = torch.rand(2, n, generator=generator()) * 0.9 + 0.1
    rgb, depth = TaskMix().apply(t_rgb, t_depth, generator(1))
    is_i2d, is_d2i = rgb == 0, depth == 0
    assert is_i2d.float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert is_d2i.float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert not (is_i2d & is_d2i).any()
    assert torch.equal(rgb[~is_i2d], t_rgb[~is_i2d])
    assert torch.equal(depth[~is_d2i], t_depth[~is_d2i])
    # The task is drawn independently of the level.
    assert abs(t_depth[is_i2d].mean() - t_depth.mean()) < 0.02


@pytest.mark.parametrize(("i2d", "d2i", "zero_rgb", "zero_depth"), [(0, 0, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1)])
def test_task_mix_at_its_ends(i2d, d2i, zero_rgb, zero_depth):
    ones = torch.ones(500)
    rgb, depth = TaskMix(float(i2d), float(d2i)).apply(ones, ones, generator())
    assert (rgb == 0).float().mean() == zero_rgb
    assert (depth == 0).float().mean() == zero_depth
