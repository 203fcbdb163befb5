"""One sampler for every task: Euler on both modalities along a schedule of noise-level pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from modality_forcing.config import FlowConfig
from modality_forcing.flow.path import clean_from_velocity, euler_step
from modality_forcing.flow.schedule import Schedule
from modality_forcing.types import PerModality


class Predictor(Protocol):
    """The model seen from the sampler: raw predictions of both heads at one pair of noise levels."""

    def __call__(self, x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]: ...


@dataclass(frozen=True)
class Step:
    """What a step callback sees. ``clean`` is the current estimate of both clean modalities."""

    index: int
    num_steps: int
    t: PerModality[float]
    x: PerModality[Tensor]
    clean: PerModality[Tensor]


def sample(
    predict: Predictor,
    start: PerModality[Tensor],
    schedule: Schedule,
    flow: FlowConfig | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_state: Callable[[int, PerModality[Tensor]], PerModality[Tensor]] | None = None,
) -> PerModality[Tensor]:
    """Integrate from ``schedule``'s first pair of levels to its last.

    Args:
        predict: the (guided) model.
        start: (B, N, C) tokens per modality at the first levels: noise where the level is 1, clean tokens
            where it is 0.
        flow: what each head predicts.
        on_step: called after each step.
        on_state: may replace the state before each model call (partial conditioning: a hint re-noised to
            the current level, spec section 1).

    Returns:
        (B, N, C) tokens per modality at the last levels, float32.
    """
    flow = flow or FlowConfig()
    kinds = PerModality(rgb=flow.rgb_prediction, depth=flow.depth_prediction)
    x = start.map(lambda tokens: tokens.float())
    nodes = schedule.pairs()
    for index, (t, s) in enumerate(pairwise(nodes)):
        if on_state is not None:
            x = on_state(index, x)
        prediction = predict(x, t).map(lambda tokens: tokens.float())
        if on_step is not None:
            clean = PerModality(
                rgb=_clean(x.rgb, prediction.rgb, kinds.rgb, t.rgb),
                depth=_clean(x.depth, prediction.depth, kinds.depth, t.depth),
            )
        x = PerModality(
            rgb=euler_step(x.rgb, prediction.rgb, kinds.rgb, t.rgb, s.rgb),
            depth=euler_step(x.depth, prediction.depth, kinds.depth, t.depth, s.depth),
        )
        if on_step is not None:
            on_step(Step(index, schedule.steps, t, x, clean))
    return x


def _clean(x: Tensor, prediction: Tensor, kind: str, t: float) -> Tensor:
    """Clean estimate from a raw prediction; a given modality is its own."""
    if t == 0.0:
        return x
    if kind == "x0":
        return prediction
    return clean_from_velocity(x, prediction, torch.full((x.shape[0],), t, device=x.device))
