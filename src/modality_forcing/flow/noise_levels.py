"""Densities of the noise levels in training (spec section 2).

Both start from the logit-normal t = sigmoid(mu + sigma n). The depth stream uses its *plateau* version: the
same density up to its mode t*, constant from there to 1, renormalised, so that high noise keeps its weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogitNormal:
    """t = sigmoid(mu + sigma n), n standard normal; t in (0, 1)."""

    mu: float = 1.1
    sigma: float = 1.0

    def pdf(self, t: float) -> float:
        """Density at t in (0, 1)."""
        z = (math.log(t / (1 - t)) - self.mu) / self.sigma
        return math.exp(-0.5 * z * z) / (self.sigma * math.sqrt(2 * math.pi) * t * (1 - t))

    def cdf(self, t: float) -> float:
        """Mass below t in (0, 1)."""
        z = (math.log(t / (1 - t)) - self.mu) / self.sigma
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of :meth:`cdf`, elementwise in float64."""
        return torch.sigmoid(self.mu + self.sigma * torch.special.ndtri(u.double()))

    @property
    def mode(self) -> float:
        """The t of highest density: the root of logit(t) = mu + sigma^2 (2t - 1) with the highest density."""
        return _mode(self)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """(num,) float32 draws, stratified: one uniform in each of ``num`` equal parts, shuffled."""
        return self.quantile(stratified_uniform(num, generator)).float()


@lru_cache(maxsize=64)
def _mode(density: LogitNormal) -> float:
    # The derivative of log pdf is monotone between its turning points; a fine scan picks the right
    # branch (wide densities have two modes) and bisection refines it.
    grid = [(i + 0.5) / 4096 for i in range(4096)]
    best = max(grid, key=density.pdf)
    low, high = best - 1 / 4096, best + 1 / 4096

    def slope(t: float) -> float:
        return density.mu + density.sigma**2 * (2 * t - 1) - math.log(t / (1 - t))

    low, high = max(low, 1e-9), min(high, 1 - 1e-9)
    for _ in range(80):
        middle = 0.5 * (low + high)
        if slope(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@dataclass(frozen=True)
class PlateauLogitNormal:
    """The logit-normal up to its mode, constant from there to 1, renormalised."""

    mu: float = 1.1
    sigma: float = 1.0

    @cached_property
    def base(self) -> LogitNormal:
        """The density before the plateau."""
        return LogitNormal(self.mu, self.sigma)

    @cached_property
    def normaliser(self) -> float:
        """Total mass before renormalising: cdf(t*) + pdf(t*) (1 - t*)."""
        mode = self.base.mode
        return self.base.cdf(mode) + self.base.pdf(mode) * (1 - mode)

    @property
    def plateau_mass(self) -> float:
        """Probability of t >= t*."""
        mode = self.base.mode
        return self.base.pdf(mode) * (1 - mode) / self.normaliser

    def pdf(self, t: float) -> float:
        """Density at t in (0, 1]."""
        mode = self.base.mode
        return self.base.pdf(min(t, mode)) / self.normaliser

    def cdf(self, t: float) -> float:
        """Mass below t in (0, 1]."""
        mode = self.base.mode
        below = self.base.cdf(min(t, mode))
        return (below + self.base.pdf(mode) * max(0.0, t - mode)) / self.normaliser

    def quantile(self, u: Tensor) -> Tensor:
        """Inverse of :meth:`cdf`, elementwise in float64."""
        mode = self.base.mode
        mass = u.double() * self.normaliser
        rising = self.base.quantile(mass.clamp(1e-12, self.base.cdf(mode)))
        flat = mode + (mass - self.base.cdf(mode)) / self.base.pdf(mode)
        return torch.where(mass <= self.base.cdf(mode), rising, flat)

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """(num,) float32 draws, stratified and shuffled."""
        return self.quantile(stratified_uniform(num, generator)).float()


def stratified_uniform(num: int, generator: torch.Generator) -> Tensor:
    """One uniform draw in each of ``num`` equal parts of (0, 1), in random order: less variance."""
    jitter = torch.rand(num, generator=generator, dtype=torch.float64)
    order = torch.randperm(num, generator=generator)
    return ((order + jitter) / num).clamp(1e-7, 1 - 1e-7)


@dataclass(frozen=True)
class TaskMix:
    """Probabilities of the conditional tasks; the rest is joint (spec section 2: 0.2, 0.2, 0.6)."""

    i2d: float = 0.2
    d2i: float = 0.2

    def apply(self, t_rgb: Tensor, t_depth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Set the clean modality's level to exactly 0 in a share of the batch, drawn per item."""
        u = torch.rand(t_rgb.shape[0], generator=generator)
        is_i2d = u < self.i2d
        is_d2i = (u >= self.i2d) & (u < self.i2d + self.d2i)
        zero = torch.zeros(())
        return torch.where(is_i2d, zero, t_rgb), torch.where(is_d2i, zero, t_depth)
