"""Whole trajectories of the released sampler: every task, with and without guidance, both kinds of head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import FlowConfig
from modality_forcing.flow.guidance import Guidance, guided
from modality_forcing.flow.sampler import Step, sample
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)
from modality_forcing.types import PerModality

DATA = Path(__file__).parent / "data"
GOLDEN = load_file(DATA / "sampling.safetensors")
RUNS: dict[str, dict[str, Any]] = json.loads((DATA / "sampling_runs.json").read_text())
CLAMPED = "joint.s7.cfg1.a-5"  # the original's clamp on t leaves noise behind: a fault, see below
NOT_OFFERED = "d2i.s4.cfg1.full_noise_rgb"
TOLERANCE, TOLERANCE_GUIDED = 5e-5, 3e-4
CLAMP = 0.05


def flows(run: dict[str, Any]) -> tuple[FlowConfig, FlowConfig]:
    """What the heads predict and the image's grid; the depth's grid."""
    shifts = run.get("cfg", {})
    rgb = FlowConfig(
        shift_mu=shifts.get("rgb_shift_mu", 1.1),
        shift_sigma=shifts.get("rgb_shift_sigma", 1.0),
        rgb_prediction="x0" if run.get("rgb_use_x_prediction", False) else "velocity",
        depth_prediction="x0" if run.get("depth_use_x_prediction", True) else "velocity",
    )
    depth = FlowConfig(
        shift_mu=shifts.get("depth_shift_mu", 1.1), shift_sigma=shifts.get("depth_shift_sigma", 1.0)
    )
    return rgb, depth


def start_and_schedule(run: dict[str, Any]) -> tuple[PerModality[Tensor], Schedule]:
    mode, steps, (rgb, depth) = run["mode"], run["steps"], flows(run)
    if mode == "joint":
        start = PerModality(rgb=GOLDEN["noise.joint.rgb"], depth=GOLDEN["noise.joint.depth"])
        return start, joint_schedule(steps, rgb, depth, run.get("log2_alpha"))
    if mode == "i2d":
        start = PerModality(rgb=GOLDEN["in.clean_rgb"], depth=GOLDEN["noise.i2d.depth"])
        return start, image_to_depth_schedule(steps, depth)
    start = PerModality(rgb=GOLDEN["noise.d2i.rgb"], depth=GOLDEN["in.clean_depth"])
    return start, depth_to_image_schedule(steps, rgb)


@torch.no_grad()
def trajectory(run: dict[str, Any], model) -> tuple[PerModality[Tensor], list[Step]]:
    """States (steps + 1, B, N, C) per modality and what the step callback saw."""
    rope = model.rope(text_ids(7), image_ids(4, 6), depth_ids(4, 6))

    def forward(x, text, t):
        rgb, depth = model(x.rgb, x.depth, text, rope, t.rgb, t.depth)
        return PerModality(rgb=rgb, depth=depth)

    start, schedule = start_and_schedule(run)
    null = GOLDEN["in.null_text_embed"] if run.get("null", True) else torch.zeros(1, 7, 48)
    seen: list[Step] = []
    predict = guided(forward, GOLDEN["in.ctx"], null, Guidance(run.get("cfg_scale", 1.0)))
    out = sample(predict, start, schedule, flows(run)[0], on_step=seen.append)
    assert torch.equal(seen[-1].x.rgb, out.rgb)
    assert torch.equal(seen[-1].x.depth, out.depth)
    states = PerModality(
        rgb=torch.stack([start.rgb, *(step.x.rgb for step in seen)]),
        depth=torch.stack([start.depth, *(step.x.depth for step in seen)]),
    )
    return states, seen


@pytest.mark.parametrize("name", [name for name in RUNS if name not in (CLAMPED, NOT_OFFERED)])
def test_trajectory(name, small_transformer):
    states, _ = trajectory(RUNS[name], small_transformer("dit_v2_small"))
    tolerance = TOLERANCE if RUNS[name].get("cfg_scale", 1.0) == 1.0 else TOLERANCE_GUIDED
    for modality in ("rgb", "depth"):
        expected = GOLDEN[f"{name}/traj_{modality}"]
        ours = getattr(states, modality)
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max().item() < tolerance


@pytest.mark.parametrize(("mode", "given"), [("i2d", "rgb"), ("d2i", "depth")])
def test_the_given_modality_is_not_touched(mode, given, small_transformer):
    states, seen = trajectory(RUNS[f"{mode}.s4.cfg4"], small_transformer("dit_v2_small"))
    clean = GOLDEN[f"in.clean_{given}"]
    assert torch.equal(getattr(states, given), clean.expand(5, -1, -1, -1))
    assert all(torch.equal(getattr(step.clean, given), clean) for step in seen)


def test_no_noise_is_left_where_the_original_clamps(small_transformer):
    states, seen = trajectory(RUNS[CLAMPED], small_transformer("dit_v2_small"))
    expected = PerModality(rgb=GOLDEN[f"{CLAMPED}/traj_rgb"], depth=GOLDEN[f"{CLAMPED}/traj_depth"])
    first_below = int((GOLDEN[f"{CLAMPED}/t_depth"] < CLAMP).nonzero()[0])
    assert 0 < first_below < RUNS[CLAMPED]["steps"]
    same = slice(0, first_below + 1)  # the state at that node still comes from an unclamped step
    assert (states.rgb[same] - expected.rgb[same]).abs().max().item() < TOLERANCE
    assert (states.depth[same] - expected.depth[same]).abs().max().item() < TOLERANCE
    assert torch.equal(states.depth[-1], seen[-1].clean.depth)
    assert (states.depth[-1] - expected.depth[-1]).abs().max().item() > 100 * TOLERANCE
