"""One sampler for every task: Euler or Heun on both modalities along a schedule of noise-level pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from modality_forcing.config import FlowConfig
from modality_forcing.flow.path import clean_from_velocity, euler_step, path_velocity
from modality_forcing.flow.schedule import Schedule
from modality_forcing.types import PerModality

SOLVERS = ("euler", "heun")


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
    solver: str = "euler",
) -> PerModality[Tensor]:
    """Integrate from ``schedule``'s first pair of levels to its last.

    Args:
        predict: the (guided) model.
        start: (B, N, C) tokens per modality at the first levels: noise where the level is 1, clean tokens
            where it is 0.
        flow: what each head predicts.
        on_step: called after each step.
        on_state: may replace the state before each model call (partial conditioning: a hint re-noised to
            the current level, spec section 1); gets the number of the node whose levels the call is at.
        solver: "euler", or "heun": second order for two model calls per step. The velocity is averaged
            over both ends of a step, except where a modality ends at 0: an x0-prediction has no velocity
            there, so that modality lands as with Euler, and a step on which both do costs one call.

    Returns:
        (B, N, C) tokens per modality at the last levels, float32.

    Raises:
        ValueError: an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; known: {', '.join(SOLVERS)}")
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
        ahead = PerModality(
            rgb=euler_step(x.rgb, prediction.rgb, kinds.rgb, t.rgb, s.rgb),
            depth=euler_step(x.depth, prediction.depth, kinds.depth, t.depth, s.depth),
        )
        if solver == "heun" and (0 < s.rgb < t.rgb or 0 < s.depth < t.depth):
            there = ahead if on_state is None else on_state(index + 1, ahead)
            second = predict(there, s).map(lambda tokens: tokens.float())
            ahead = PerModality(
                rgb=_heun_step(x.rgb, there.rgb, prediction.rgb, second.rgb, kinds.rgb, t.rgb, s.rgb),
                depth=_heun_step(
                    x.depth, there.depth, prediction.depth, second.depth, kinds.depth, t.depth, s.depth
                ),
            )
        x = ahead
        if on_step is not None:
            on_step(Step(index, schedule.steps, t, x, clean))
    return x


def _heun_step(
    x_t: Tensor, x_s: Tensor, first: Tensor, second: Tensor, kind: str, t: float, s: float
) -> Tensor:
    """From t to s with the mean of the velocities at both ends.

    Args:
        x_t, first: state and prediction at t.
        x_s, second: the same at s, after an Euler step.
    """
    if s in (0.0, t):
        return x_s
    mean = 0.5 * (path_velocity(x_t, first, kind, t) + path_velocity(x_s, second, kind, s))
    return x_t + (s - t) * mean


def _clean(x: Tensor, prediction: Tensor, kind: str, t: float) -> Tensor:
    """Clean estimate from a raw prediction; a given modality is its own."""
    if t == 0.0:
        return x
    if kind == "x0":
        return prediction
    return clean_from_velocity(x, prediction, torch.full((x.shape[0],), t, device=x.device))
