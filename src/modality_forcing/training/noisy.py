"""A micro-batch made ready for the model: what a stage draws and mixes, and what its losses need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from modality_forcing.training.data import Batch

Teach = Callable[[nn.Module, "Noisy"], Tensor]
"""The text-to-image model's answer to a noisy image: (student, input) -> (b, N, C)."""


@dataclass
class Noisy:
    """One micro-batch made ready.

    Attributes:
        batch: where it came from.
        counts: per loss term, how much of each sample counts, (b,).
        tasks: which samples do what, bool (b,): shown apart in the log.
        tokens: tokens per sample that the model sees.
        rgb0, rgb_noise, rgb_t, t_rgb: clean, noise, mixed (b, N, C), and level (b,).
        depth0, depth_noise, depth_t, t_depth, valid: the same of depth; ``valid`` (b, N, P) bool.
        text: (b, T, width).
        rope: rotations of text, image [and depth].
        image_rope: rotations of text and image alone.
        rgb_weight: what each image token counts, broadcastable to (b, N, C); 0 where the image is given. In
            stage autoencoder what each pixel counts, (b, 1, H, W).
        taught: whether the teacher is asked, the same on all processes.
        depth_share: what a measured pixel counts in the mean, (b,).
        read: what the reader reads in the given images, (b', N, P), of the samples ``cycled``, numbers (b',).
        painted: numbers (b'',) of the samples whose noisy image the model makes itself (``training.cycle``).
        node: of the sampler's schedule, up to which it does; 0: it makes none, on any process.
        captions: of every sample, "" where it was dropped.
        pairs: (thing, colour) pairs that the captions name, per sample (``training.words``).
        worded: numbers (b'',) of the samples of text alone whose noisy image the model makes itself.
        word_node: as ``node``, of the schedule of both modalities.
    """

    batch: Batch
    counts: dict[str, Tensor]
    tasks: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    rgb0: Tensor = field(default_factory=lambda: torch.zeros(0))
    rgb_noise: Tensor = field(default_factory=lambda: torch.zeros(0))
    rgb_t: Tensor = field(default_factory=lambda: torch.zeros(0))
    t_rgb: Tensor = field(default_factory=lambda: torch.zeros(0))
    depth0: Tensor = field(default_factory=lambda: torch.zeros(0))
    depth_noise: Tensor = field(default_factory=lambda: torch.zeros(0))
    depth_t: Tensor = field(default_factory=lambda: torch.zeros(0))
    t_depth: Tensor = field(default_factory=lambda: torch.zeros(0))
    valid: Tensor = field(default_factory=lambda: torch.zeros(0))
    text: Tensor = field(default_factory=lambda: torch.zeros(0))
    rope: Tensor = field(default_factory=lambda: torch.zeros(0))
    image_rope: Tensor = field(default_factory=lambda: torch.zeros(0))
    rgb_weight: Tensor = field(default_factory=lambda: torch.ones(()))
    taught: bool = False
    depth_share: Tensor = field(default_factory=lambda: torch.ones(()))
    read: Tensor = field(default_factory=lambda: torch.zeros(0))
    cycled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    painted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    node: int = 0
    captions: list[str] = field(default_factory=list)
    pairs: list[list[tuple[str, str]]] = field(default_factory=list)
    worded: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    word_node: int = 0

    @property
    def own(self) -> Tensor:
        """Numbers of the samples whose noisy image the model makes itself: ``painted``, then ``worded``."""
        return torch.cat([self.painted, self.worded])
