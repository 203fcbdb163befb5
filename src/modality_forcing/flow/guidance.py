"""Classifier-free guidance: u + s (c - u) on both heads, in one batched forward (spec section 7).

Given depth can be amplified in the same way (ours): the difference between depth and no depth, which for a
model whose depth has a noise level of its own is noise at level 1. And what guidance adds along the clean
image itself, mostly contrast and saturation, can be left out (adaptive projected guidance, arXiv 2410.02416).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from modality_forcing.flow.path import clean_from_velocity
from modality_forcing.types import PerModality

Forward = Callable[[PerModality[Tensor], Tensor, PerModality[Tensor]], PerModality[Tensor]]
"""(x, text (B, T, C), t as (B,) per modality) -> raw predictions."""


@dataclass(frozen=True)
class Guidance:
    """How strongly what is given pulls.

    Attributes:
        text: scale of the difference the text makes; 1 is none and leaves out a forward pass.
        depth: w of given depth: the image's prediction gains (w - 1) (c - n), n the prediction for the same
            text with noise at level 1 in place of the depth; 1 is as the model learned it, without that pass.
        image_only: the text pulls the image's prediction alone (ours), and depth is what the model expects of
            the text and of the image it is making; else it pulls both (the paper's guidance).
        parallel: what is kept, 0..1, of the image's guidance along the clean image that is predicted with
            everything given; 1 is plain guidance. Depth is left alone.
    """

    text: float = 1.0
    depth: float = 1.0
    image_only: bool = False
    parallel: float = 1.0


def guided(
    forward: Forward,
    text: Tensor,
    null_text: Tensor,
    guidance: Guidance,
    depth_noise: Tensor | None = None,
    rgb_prediction: str = "velocity",
) -> Callable[[PerModality[Tensor], PerModality[float]], PerModality[Tensor]]:
    """A :class:`~modality_forcing.flow.sampler.Predictor` with guidance.

    The x-prediction's guidance equals guidance on its velocity, since both are affine in the prediction at
    the same x_t.

    Args:
        text: (B, T, C) conditional text tokens.
        null_text: (1 or B, T, C) tokens of the empty prompt.
        depth_noise: (B, N, C), needed where ``guidance.depth`` is not 1.
        rgb_prediction: what the image head predicts, "velocity" or "x0".

    Raises:
        ValueError: guidance on depth without noise.
    """
    scale, pull = guidance.text, guidance.depth
    if pull != 1.0 and depth_noise is None:
        raise ValueError("guidance on depth needs noise to compare it with")

    def levels(t: PerModality[float], num: int, device: torch.device) -> PerModality[Tensor]:
        return t.map(lambda value: torch.full((num,), value, device=device))

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        num, device = x.rgb.shape[0], x.rgb.device
        at = levels(t, num, device)
        if scale == 1.0 and pull == 1.0:
            return forward(x, text, at)
        # One batch of up to three parts: with text, without text, without depth.
        states, texts, times = [x], [text], [at]
        if scale != 1.0:
            states, texts, times = [*states, x], [*texts, null_text.expand_as(text)], [*times, at]
        if depth_noise is not None and pull != 1.0:
            states.append(PerModality(rgb=x.rgb, depth=depth_noise))
            texts.append(text)
            times.append(PerModality(rgb=at.rgb, depth=torch.ones_like(at.depth)))
        out = forward(_together(states), torch.cat(texts), _together(times))
        rgbs, depths = (tokens.float().split(num) for tokens in (out.rgb, out.depth))
        rgb, depth = rgbs[0], depths[0]
        if scale != 1.0:
            rgb = rgbs[1] + scale * (rgbs[0] - rgbs[1])
            if not guidance.image_only:
                depth = depths[1] + scale * (depths[0] - depths[1])
        if pull != 1.0:
            rgb = rgb + (pull - 1.0) * (rgbs[0] - rgbs[-1])
        if guidance.parallel != 1.0:
            clean = rgbs[0]
            if rgb_prediction == "velocity":
                clean = clean_from_velocity(x.rgb, rgbs[0], at.rgb)
            rgb = rgbs[0] + _lessened(rgb - rgbs[0], clean, guidance.parallel)
        return PerModality(rgb=rgb, depth=depth)

    return predict


def _lessened(change: Tensor, clean: Tensor, kept: float) -> Tensor:
    """``change`` (B, N, C) with ``kept`` of what of it lies along ``clean``, sample by sample.

    A change of the velocity is one of the clean image times -1/t, so this is the same for both predictions.
    """
    square = clean.square().sum(dim=(-2, -1), keepdim=True)
    along = (change * clean).sum(dim=(-2, -1), keepdim=True) / square.clamp_min(1e-12)
    return change - (1.0 - kept) * along * clean


def _together(parts: list[PerModality[Tensor]]) -> PerModality[Tensor]:
    return PerModality(
        rgb=torch.cat([part.rgb for part in parts]), depth=torch.cat([part.depth for part in parts])
    )
