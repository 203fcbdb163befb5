"""The refiner's loss without its kink, where gradients are compared.

The real one has the scale of a median, at which one pixel's error is zero and the sign of its gradient is
rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from modality_forcing.training import refining


@contextmanager
def smooth_refining() -> Iterator[None]:
    """The stage "refiner" learns by the square of the error while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refining, "relative_depth_loss", _square)
        yield


def _square(
    found: Tensor, wanted: Tensor, level: Tensor, t_min: float, sky: float, weight: Tensor
) -> tuple[Tensor, Tensor]:
    return (weight * (found - wanted) ** 2).sum(dim=(1, 2)), weight.sum(dim=(1, 2))
