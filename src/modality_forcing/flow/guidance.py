"""Classifier-free guidance: u + s (c - u) on both heads, in one batched forward (spec section 7).

Given depth can be amplified in the same way (ours): the difference between depth and no depth, which for a
model whose depth has a noise level of its own is noise at level 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from modality_forcing.types import PerModality

Forward = Callable[[PerModality[Tensor], Tensor, PerModality[Tensor]], PerModality[Tensor]]
"""(x, text (B, T, C), t as (B,) per modality) -> raw predictions."""


def guided(
    forward: Forward,
    text: Tensor,
    null_text: Tensor,
    scale: float,
    *,
    depth_scale: float = 1.0,
    depth_noise: Tensor | None = None,
) -> Callable[[PerModality[Tensor], PerModality[float]], PerModality[Tensor]]:
    """A :class:`~modality_forcing.flow.sampler.Predictor` with guidance ``scale``.

    With scale 1 the unconditional half is not computed. The x-prediction's guidance equals guidance on its
    velocity, since both are affine in the prediction at the same x_t. With ``depth_scale`` w the image's
    prediction gains (w - 1) (c - n), n the prediction for the same text with ``depth_noise`` at level 1 in
    place of the depth; the depth's prediction is as without.

    Args:
        text: (B, T, C) conditional text tokens.
        null_text: (1 or B, T, C) tokens of the empty prompt.
        depth_scale: how strongly given depth pulls; 1 is as the model learned it, and costs nothing.
        depth_noise: (B, N, C) noise, needed where ``depth_scale`` is not 1.

    Raises:
        ValueError: a ``depth_scale`` other than 1 without noise.
    """

    if depth_scale != 1.0 and depth_noise is None:
        raise ValueError("guidance on depth needs noise to compare it with")

    def levels(t: PerModality[float], num: int, device: torch.device) -> PerModality[Tensor]:
        return t.map(lambda value: torch.full((num,), value, device=device))

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        num, device = x.rgb.shape[0], x.rgb.device
        at = levels(t, num, device)
        if scale == 1.0 and depth_scale == 1.0:
            return forward(x, text, at)
        # One batch of up to three parts: with text, without text, without depth.
        states, texts, times = [x], [text], [at]
        if scale != 1.0:
            states, texts, times = [*states, x], [*texts, null_text.expand_as(text)], [*times, at]
        if depth_scale != 1.0 and depth_noise is not None:
            states.append(PerModality(rgb=x.rgb, depth=depth_noise))
            texts.append(text)
            times.append(PerModality(rgb=at.rgb, depth=torch.ones_like(at.depth)))
        out = forward(_together(states), torch.cat(texts), _together(times))
        rgb, depth = (tokens.float().split(num) for tokens in (out.rgb, out.depth))
        found = PerModality(rgb=rgb[0], depth=depth[0])
        if scale != 1.0:
            found = PerModality(
                rgb=rgb[1] + scale * (rgb[0] - rgb[1]), depth=depth[1] + scale * (depth[0] - depth[1])
            )
        if depth_scale != 1.0:
            found = PerModality(rgb=found.rgb + (depth_scale - 1.0) * (rgb[0] - rgb[-1]), depth=found.depth)
        return found

    return predict


def _together(parts: list[PerModality[Tensor]]) -> PerModality[Tensor]:
    return PerModality(
        rgb=torch.cat([part.rgb for part in parts]), depth=torch.cat([part.depth for part in parts])
    )
