"""Pictures that the model paints itself while it trains: from noise, by the sampler, as far as a node."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.config import FlowConfig
from modality_forcing.flow.guidance import Guidance, guided
from modality_forcing.flow.sampler import sample
from modality_forcing.flow.schedule import Schedule
from modality_forcing.training.noisy import Noisy
from modality_forcing.types import PerModality


@torch.no_grad()
def painted_until(
    model: nn.Module,
    work: Noisy,
    items: Tensor,
    schedule: Schedule,
    node: int,
    guidance: Guidance,
    empty_text: Tensor,
    flow: FlowConfig,
) -> PerModality[Tensor]:
    """Both modalities of the samples ``items`` at a node of the schedule, from noise or from what is given.

    Args:
        items: numbers (b',) of samples; at least one, since sharded weights are gathered by all processes.
        node: 1 or more.
        empty_text: (1, T, C).
    """

    def forward(x: PerModality[Tensor], tokens: Tensor, t: PerModality[Tensor]) -> PerModality[Tensor]:
        rgb, depth = model(x.rgb, x.depth, tokens, work.rope, t.rgb, t.depth)
        return PerModality(rgb=rgb, depth=depth)

    noise = work.depth_noise[items]
    predict = guided(forward, work.text[items], empty_text, guidance, noise, flow.rgb_prediction)
    part = Schedule(schedule.rgb[: node + 1], schedule.depth[: node + 1])
    depth = work.depth_t[items] if float(part.depth[0]) == 0 else noise
    return sample(predict, PerModality(rgb=work.rgb_noise[items], depth=depth), part, flow)


def at_least_one(items: Tensor) -> Tensor:
    """The items, or the first sample where there is none: all processes ask sharded weights together."""
    return items if len(items) else torch.zeros(1, dtype=torch.int64)
