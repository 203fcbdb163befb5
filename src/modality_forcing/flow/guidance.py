"""Classifier-free guidance: u + s (c - u) on both heads, in one batched forward (spec section 7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modality_forcing.types import PerModality

Forward = Callable[[PerModality[Tensor], Tensor, PerModality[Tensor]], PerModality[Tensor]]
"""(x, text (B, T, C), t as (B,) per modality) -> raw predictions."""


def guided(
    forward: Forward, text: Tensor, null_text: Tensor, scale: float
) -> Callable[[PerModality[Tensor], PerModality[float]], PerModality[Tensor]]:
    """A :class:`~modality_forcing.flow.sampler.Predictor` with guidance ``scale``.

    With scale 1 the unconditional half is not computed. The x-prediction's guidance equals guidance on its
    velocity, since both are affine in the prediction at the same x_t.

    Args:
        text: (B, T, C) conditional text tokens.
        null_text: (1 or B, T, C) tokens of the empty prompt.
    """

    def levels(t: PerModality[float], num: int, device: torch.device) -> PerModality[Tensor]:
        return t.map(lambda value: torch.full((num,), value, device=device))

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        num, device = x.rgb.shape[0], x.rgb.device
        if scale == 1.0:
            return forward(x, text, levels(t, num, device))
        both = forward(
            x.map(lambda tokens: torch.cat([tokens, tokens])),
            torch.cat([text, null_text.expand_as(text)]),
            levels(t, 2 * num, device),
        )

        def combine(out: Tensor) -> Tensor:
            conditional, unconditional = out.float().chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return both.map(combine)

    return predict
