"""Pictures that the model paints itself while it trains: from noise, by the sampler, as far as a node; and
what it expects from there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.codecs.image import tokens_to_latents
from modality_forcing.config import FlowConfig
from modality_forcing.flow.guidance import Guidance, guided
from modality_forcing.flow.path import expand_level
from modality_forcing.flow.sampler import sample
from modality_forcing.flow.schedule import Schedule
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.training.noisy import Noisy
from modality_forcing.types import PerModality


def set_apart(work: Noisy, chosen: Tensor, level: Tensor) -> None:
    """The image of the chosen samples is at ``level``, and its own loss does not count.

    Args:
        chosen: (b,) bool, on the CPU.
        level: ().
    """
    items = chosen.nonzero()[:, 0]
    work.t_rgb, work.rgb_weight = work.t_rgb.clone(), work.rgb_weight.clone()
    work.t_rgb[items], work.rgb_weight[items] = float(level), 0.0
    work.counts["rgb"] = work.counts["rgb"] * ~chosen


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


def expected_latents(velocity: Tensor, work: Noisy, items: Tensor) -> Tensor:
    """Clean image tokens (b', N, C) that the model expects of the samples ``items``.

    Args:
        velocity: (b, N, C), the image head's answer.
    """
    return work.rgb_t[items] - expand_level(work.t_rgb[items], velocity) * velocity[items]


def expected_pictures(velocity: Tensor, work: Noisy, autoencoder: Autoencoder) -> Tensor:
    """What the model expects of the pictures that it makes itself, decoded: (b', 3, H, W) in [-1, 1], about,
    of the samples ``work.own``; the gradient goes through.

    Args:
        velocity: (b, N, C), the image head's answer.
    """
    if not len(work.own):
        return velocity.new_zeros(0, 3, 0, 0)
    assert work.batch.images is not None
    rows, cols = (side // autoencoder.config.downscale for side in work.batch.images.shape[-2:])
    return autoencoder.decode(tokens_to_latents(expected_latents(velocity, work, work.own), rows, cols))


def at_least_one(items: Tensor) -> Tensor:
    """The items, or the first sample where there is none: all processes ask sharded weights together."""
    return items if len(items) else torch.zeros(1, dtype=torch.int64)
