"""Heun against Euler on an equation with a known answer, and conditioning of a model with one noise level."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from modality_forcing.codecs.frame import Frame
from modality_forcing.config import FlowConfig
from modality_forcing.engine import Item
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.path import interpolate, path_velocity, velocity
from modality_forcing.flow.sampler import sample
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)
from modality_forcing.pipeline import Pipeline
from modality_forcing.studies.replacement import HELD_NOISE, share_level
from modality_forcing.types import PerModality

DEVIATIONS = PerModality(rgb=0.5, depth=2.0)


def gaussian(flow: FlowConfig):
    """The exact predictor where both modalities are normal with these deviations: E[x0 | x_t] is linear."""

    def one(x: Tensor, t: float, deviation: float, kind: str) -> Tensor:
        variance = (1 - t) ** 2 * deviation**2 + t**2
        x0 = (1 - t) * deviation**2 / variance * x
        return x0 if kind == "x0" else (x - x0) / t if t > 0 else torch.zeros_like(x)

    return lambda x, t: PerModality(
        rgb=one(x.rgb, t.rgb, DEVIATIONS.rgb, flow.rgb_prediction),
        depth=one(x.depth, t.depth, DEVIATIONS.depth, flow.depth_prediction),
    )


def exact(x: Tensor, t: float, s: float, deviation: float) -> Tensor:
    """The answer: x_t goes as the deviation of its distribution."""
    spread = [math.sqrt((1 - level) ** 2 * deviation**2 + level**2) for level in (t, s)]
    return x * spread[1] / spread[0]


def error(solver: str, steps: int, end: float) -> PerModality[float]:
    """Of the last state, from level 1 to ``end`` in equal steps; depth is ahead of the image."""
    start = PerModality(rgb=torch.ones(1, 3, 2), depth=torch.full((1, 3, 4), -1.0))
    levels = torch.linspace(1.0, end, steps + 1, dtype=torch.float64)
    # Another, smooth path for depth: its steps are not the image's.
    depth = levels * (2 + levels) / 3
    flow = FlowConfig()
    out = sample(gaussian(flow), start, Schedule(levels, depth), flow, solver=solver)
    at = PerModality(rgb=end, depth=float(depth[-1]))
    return PerModality(
        rgb=float((out.rgb - exact(start.rgb, 1.0, at.rgb, DEVIATIONS.rgb)).abs().max()),
        depth=float((out.depth - exact(start.depth, 1.0, at.depth, DEVIATIONS.depth)).abs().max()),
    )


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_order_of_convergence(solver, order, modality):
    errors = [getattr(error(solver, steps, 0.3), modality) for steps in (20, 40, 80)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    assert errors[-1] > 1e-6  # of the solver, not of rounding


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_heun_is_better_down_to_zero(modality):
    assert getattr(error("heun", 10, 0.0), modality) < 0.5 * getattr(error("euler", 20, 0.0), modality)


@pytest.mark.parametrize("log2_alpha", [-5.0, 0.0, 5.0, None])
def test_heun_lands_on_the_clean_tokens_of_a_perfect_predictor(log2_alpha):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (
        PerModality(
            rgb=torch.randn(2, 6, 4, generator=generator), depth=torch.randn(2, 6, 9, generator=generator)
        )
        for _ in range(2)
    )
    calls = []

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        calls.append(t)
        return PerModality(rgb=velocity(clean.rgb, noise.rgb), depth=clean.depth)

    for steps in (1, 2, 7, 30):
        calls.clear()
        out = sample(predict, noise, joint_schedule(steps, log2_alpha=log2_alpha), solver="heun")
        assert len(calls) == 2 * steps - 1
        assert all(t.rgb > 0 and t.depth > 0 for t in calls)
        assert torch.equal(out.depth, clean.depth)
        assert (out.rgb - clean.rgb).abs().max() < 1e-5


@pytest.mark.parametrize("given", ["rgb", "depth"])
def test_heun_leaves_a_given_modality_alone_whatever_its_head_says(given):
    schedule = image_to_depth_schedule(5) if given == "rgb" else depth_to_image_schedule(5)
    start = PerModality(rgb=torch.ones(1, 2, 3), depth=torch.full((1, 2, 4), 2.0))

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        bad = PerModality(rgb=x.rgb * math.nan, depth=x.depth * 0.5)
        return bad if given == "rgb" else PerModality(rgb=x.rgb * 0.5, depth=x.depth * math.nan)

    out = sample(predict, start, schedule, solver="heun")
    assert torch.equal(getattr(out, given), getattr(start, given))
    assert torch.isfinite(getattr(out, "depth" if given == "rgb" else "rgb")).all()


def test_heun_puts_held_values_in_before_its_second_call():
    schedule = joint_schedule(3)
    nodes = [pair.rgb for pair in schedule.pairs()]
    seen = []

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        seen.append((float(x.rgb[0, 0, 0]), t.rgb))
        return x.map(torch.zeros_like)

    def put_in(index: int, x: PerModality[Tensor]) -> PerModality[Tensor]:
        return PerModality(rgb=torch.full_like(x.rgb, nodes[index]), depth=x.depth)

    start = PerModality(rgb=torch.ones(1, 1, 1), depth=torch.ones(1, 1, 1))
    sample(predict, start, schedule, on_state=put_in, solver="heun")
    assert len(seen) == 5
    assert all(value == pytest.approx(level) for value, level in seen)


def test_unknown_names_are_refused():
    start = PerModality(rgb=torch.ones(1, 1, 1), depth=torch.ones(1, 1, 1))
    with pytest.raises(ValueError, match="known: euler, heun"):
        sample(lambda x, t: x, start, joint_schedule(2), solver="rk4")
    with pytest.raises(ValueError, match="known: velocity, x0"):
        path_velocity(torch.ones(1), torch.ones(1), "epsilon", 0.5)


# -- one noise level -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> Pipeline:
    return share_level(Pipeline.from_pretrained(tiny_model, device="cpu"))


@pytest.mark.parametrize("given", ["rgb", "depth"])
def test_a_given_modality_is_held_at_the_level_of_the_other(pipeline, given, monkeypatch):
    engine = pipeline.engine
    frame = Frame.exact(32, 32, 16)
    noise = engine.noise(7, frame)
    clean = PerModality(rgb=torch.full_like(noise.rgb, 0.5), depth=torch.full_like(noise.depth, 1.5))
    seen: list[tuple[float, float, Tensor]] = []

    def forward(rgb, depth, text, rope, t_rgb, t_depth, level):
        seen.append((float(t_rgb[0]), float(t_depth[0]), (rgb if given == "rgb" else depth).clone()))
        return torch.zeros_like(rgb), torch.ones_like(depth)

    monkeypatch.setattr(engine, "_forward", forward)
    start = PerModality(
        rgb=clean.rgb if given == "rgb" else noise.rgb,
        depth=noise.depth if given == "rgb" else clean.depth,
    )
    schedule = (image_to_depth_schedule if given == "rgb" else depth_to_image_schedule)(4)
    engine.run([Item(frame, start, "", 7)], schedule, Guidance(1.0), None, 8)
    held = getattr(engine.noise(7 + HELD_NOISE, frame), given)
    assert [round(t, 6) for t, _, _ in seen] == [
        round(t, 6) for t in torch.maximum(schedule.rgb, schedule.depth)[:-1].tolist()
    ]
    for t_rgb, t_depth, state in seen:
        assert t_rgb == t_depth
        expected = interpolate(getattr(clean, given), held, torch.tensor([t_rgb]))
        torch.testing.assert_close(state, expected)


def test_one_level_cannot_be_tilted(pipeline):
    pipeline.joint("a house", seed=0, steps=2, log2_alpha=0.0)
    with pytest.raises(ValueError, match="diagonal"):
        pipeline.joint("a house", seed=0, steps=2, log2_alpha=3.0)


def test_all_tasks_give_pictures(pipeline, picture, ramp):
    assert pipeline.image_to_depth(picture, seed=0, steps=2)[0].depth.shape == (48, 64)
    assert pipeline.depth_to_image("a house", ramp, seed=0, steps=2)[0].rgb.shape == (48, 64, 3)
