"""Noise-level pairs of every task against the released tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modality_forcing.config import FlowConfig
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)

ROWS = json.loads((Path(__file__).parent / "data" / "schedule_tables.json").read_text())
TOLERANCE = 2e-6
# Not offered: depth-to-image whose image starts as noise at t_rgb = 1 throughout.
OFFERED = [row for row in ROWS if not row["d2i_full_noise_rgb"]]


def ours(row: dict[str, Any]) -> Schedule:
    rgb = FlowConfig(shift_mu=row["rgb_shift_mu"], shift_sigma=row["rgb_shift_sigma"])
    depth = FlowConfig(shift_mu=row["depth_shift_mu"], shift_sigma=row["depth_shift_sigma"])
    if row["mode"] == "joint":
        return joint_schedule(row["num_steps"], rgb, depth, row["log2_alpha"])
    if row["mode"] == "i2d":
        return image_to_depth_schedule(row["num_steps"], depth)
    assert row["mode"] == "d2i"
    return depth_to_image_schedule(row["num_steps"], rgb)


def test_the_table_covers_every_task():
    assert {row["mode"] for row in OFFERED} == {"joint", "i2d", "d2i"}
    assert {row["log2_alpha"] for row in OFFERED} == {None, 0.0, 5.0, -2.0}
    assert len(OFFERED) >= 100


@pytest.mark.parametrize("row", OFFERED, ids=lambda row: f"{row['id']}-{row['mode']}{row['num_steps']}")
def test_levels(row):
    schedule = ours(row)
    for levels, key in ((schedule.rgb, "t_rgb"), (schedule.depth, "t_depth")):
        expected = torch.tensor(row[key])
        assert levels.dtype == torch.float32
        assert levels.shape == expected.shape
        assert (levels - expected).abs().max().item() < TOLERANCE
