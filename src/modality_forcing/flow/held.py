"""Holding a part of a result while the rest is sampled: known values at the current noise level, every step.

x_t = (1 - t) x0 + t noise where x0 is known (spec section 1, partial conditioning). The noise is drawn once,
so a known value walks the straight path that the sampler itself walks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modality_forcing.flow.path import interpolate
from modality_forcing.types import PerModality


@dataclass(frozen=True)
class Held:
    """Known values of one modality. All three are (B, N, C), or broadcast to it.

    Attributes:
        clean: the known values at level 0; elsewhere anything finite.
        known: bool, True where a value is held.
        noise: what the known values are mixed with; use the noise that the sampler starts from.
    """

    clean: Tensor
    known: Tensor
    noise: Tensor

    def at(self, t: float, x: Tensor) -> Tensor:
        """The state ``x`` at level ``t`` with the known values put in.

        ``t`` = 0 gives the known values themselves, whatever the noise.
        """
        level = torch.full((x.shape[0],), t, device=x.device)
        held = interpolate(self.clean.float(), self.noise.float(), level)
        return torch.where(self.known, held, x)

    @classmethod
    def nothing(cls, like: Tensor) -> Held:
        """Holds no value of a modality with tokens like these."""
        return cls(torch.zeros_like(like), torch.zeros_like(like, dtype=torch.bool), torch.zeros_like(like))

    @classmethod
    def batch(cls, several: list[Held]) -> Held:
        """Items (1, N, C) as one batch."""
        return cls(
            torch.cat([one.clean for one in several]),
            torch.cat([one.known for one in several]),
            torch.cat([one.noise for one in several]),
        )


def hold(held: PerModality[Held], levels: PerModality[float], x: PerModality[Tensor]) -> PerModality[Tensor]:
    """The state of both modalities at their levels with the known values put in."""
    return PerModality(rgb=held.rgb.at(levels.rgb, x.rgb), depth=held.depth.at(levels.depth, x.depth))
