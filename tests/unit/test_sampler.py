"""The one sampler: lands on the clean tokens whatever the schedule; reports and accepts states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from modality_forcing.config import FlowConfig
from modality_forcing.flow.path import interpolate, velocity
from modality_forcing.flow.sampler import Step, sample
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)
from modality_forcing.types import PerModality

KINDS = ("velocity", "x0")


def tokens(seed: int = 0) -> tuple[PerModality[Tensor], PerModality[Tensor]]:
    """Clean tokens and noise, both (2, 6, C)."""
    generator = torch.Generator().manual_seed(seed)

    def draw() -> PerModality[Tensor]:
        return PerModality(
            rgb=torch.randn(2, 6, 4, generator=generator), depth=torch.randn(2, 6, 9, generator=generator)
        )

    return draw(), draw()


def perfect(clean: PerModality[Tensor], noise: PerModality[Tensor], flow: FlowConfig):
    """A predictor that knows the truth."""
    answers = {
        "velocity": PerModality(rgb=velocity(clean.rgb, noise.rgb), depth=velocity(clean.depth, noise.depth)),
        "x0": clean,
    }
    return lambda x, t: PerModality(
        rgb=answers[flow.rgb_prediction].rgb, depth=answers[flow.depth_prediction].depth
    )


@pytest.mark.parametrize("log2_alpha", [-8.0, -5.0, -1.0, 0.0, 0.5, 5.0, 8.0, None])
def test_lands_on_the_clean_tokens_at_any_number_of_steps(log2_alpha):
    clean, noise = tokens()
    flow = FlowConfig()
    predict = perfect(clean, noise, flow)
    for steps in [*range(1, 40), 58, 59, 60, 99, 100, 150, 200]:
        out = sample(predict, noise, joint_schedule(steps, log2_alpha=log2_alpha), flow)
        assert torch.equal(out.depth, clean.depth)  # an x0 head: to the bit
        assert (out.rgb - clean.rgb).abs().max() < 1e-5


@pytest.mark.parametrize("rgb_kind", KINDS)
@pytest.mark.parametrize("depth_kind", KINDS)
def test_every_state_lies_on_the_path(rgb_kind, depth_kind):
    clean, noise = tokens()
    flow = FlowConfig(rgb_prediction=rgb_kind, depth_prediction=depth_kind)
    schedule = joint_schedule(12, log2_alpha=-6.0)  # depth passes below 0.05 long before the end
    nodes = schedule.pairs()
    seen: list[Step] = []
    sample(perfect(clean, noise, flow), noise, schedule, flow, on_step=seen.append)
    assert [step.index for step in seen] == list(range(12))
    for step, before, after in zip(seen, nodes[:-1], nodes[1:], strict=True):
        assert step.t == before
        assert step.num_steps == 12
        for name in ("rgb", "depth"):
            expected = interpolate(
                getattr(clean, name), getattr(noise, name), torch.full((2,), getattr(after, name))
            )
            torch.testing.assert_close(getattr(step.x, name), expected, atol=3e-6, rtol=0)
            torch.testing.assert_close(getattr(step.clean, name), getattr(clean, name), atol=3e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "given"),
    [(image_to_depth_schedule(5), "rgb"), (depth_to_image_schedule(5), "depth")],
)
def test_a_given_modality_comes_back_as_it_was(schedule, given):
    """Whatever the head of the given modality says, NaN included."""
    clean, noise = tokens()
    start = PerModality(rgb=clean.rgb, depth=noise.depth)
    if given == "depth":
        start = PerModality(rgb=noise.rgb, depth=clean.depth)

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        assert getattr(t, given) == 0.0
        bad = PerModality(rgb=x.rgb * float("nan"), depth=clean.depth)
        return bad if given == "rgb" else PerModality(rgb=x.rgb - clean.rgb, depth=x.depth * float("nan"))

    seen: list[Step] = []
    out = sample(predict, start, schedule, on_step=seen.append)
    assert torch.equal(getattr(out, given), getattr(clean, given))
    assert all(torch.equal(getattr(step.clean, given), getattr(clean, given)) for step in seen)
    other = "depth" if given == "rgb" else "rgb"
    assert torch.isfinite(getattr(out, other)).all()


def test_the_predictor_sees_the_levels_of_the_schedule():
    clean, noise = tokens()
    schedule = Schedule(torch.tensor([1.0, 0.3, 0.0]), torch.tensor([0.8, 0.8, 0.1]))
    levels = []

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        levels.append((t.rgb, t.depth))
        return clean

    flow = FlowConfig(rgb_prediction="x0")
    out = sample(predict, noise, schedule, flow)
    assert levels == schedule_pairs(schedule)[:-1]
    # Depth waits at 0.8, then goes to 0.1: an eighth of its noise is left.
    expected = clean.depth + 0.125 * (noise.depth - clean.depth)
    torch.testing.assert_close(out.depth, expected, atol=1e-6, rtol=0)


def schedule_pairs(schedule: Schedule) -> list[tuple[float, float]]:
    return list(zip(schedule.rgb.tolist(), schedule.depth.tolist(), strict=True))


def test_on_state_replaces_what_the_model_sees():
    clean, noise = tokens()
    schedule = joint_schedule(4)
    nodes = schedule.pairs()
    inputs: list[Tensor] = []

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        inputs.append(x.depth)
        return PerModality(rgb=velocity(clean.rgb, noise.rgb), depth=x.depth * 0 + 7.0)

    hint = clean.depth + 3.0

    def on_state(index: int, x: PerModality[Tensor]) -> PerModality[Tensor]:
        level = torch.full((2,), nodes[index].depth)
        return PerModality(rgb=x.rgb, depth=interpolate(hint, noise.depth, level))

    sample(predict, noise, schedule, on_state=on_state)
    assert len(inputs) == 4
    for node, seen in zip(nodes[: len(inputs)], inputs, strict=True):
        assert torch.equal(seen, interpolate(hint, noise.depth, torch.full((2,), node.depth)))


def test_the_state_is_float32_even_if_the_model_is_not():
    clean, noise = tokens()
    flow = FlowConfig()
    exact = perfect(clean, noise, flow)

    def predict(x: PerModality[Tensor], t: PerModality[float]) -> PerModality[Tensor]:
        assert x.rgb.dtype == torch.float32
        return exact(x, t).map(Tensor.bfloat16)

    out = sample(predict, noise.map(Tensor.bfloat16), joint_schedule(20), flow)
    assert out.rgb.dtype == out.depth.dtype == torch.float32
    assert torch.equal(out.depth, clean.depth.bfloat16().float())


def test_the_start_is_not_written_to():
    clean, noise = tokens()
    kept = noise.map(Tensor.clone)
    sample(perfect(clean, noise, FlowConfig()), noise, joint_schedule(3))
    assert torch.equal(noise.rgb, kept.rgb)
    assert torch.equal(noise.depth, kept.depth)
