"""Random numbers keyed by (seed, step, slot): the same for any number of processes and micro-batches.

A slot is a sample's position in the step's whole batch. What is one number per sample (noise levels, tasks,
text dropout) is drawn for the whole batch everywhere and each process takes its slots; what is large (noise)
has a generator of its own per slot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEVELS, TEXT, CROPS, RGB_NOISE, DEPTH_NOISE, CODE_NOISE, WEIGHTS, DROPOUT, READ, WORDS = range(10)
"""What a number is for; each purpose has its own stream."""


def seed_for(*keys: int) -> int:
    """A 63-bit seed from keys of any size and sign; keys that differ anywhere give unrelated seeds."""
    words = np.random.SeedSequence([key % 2**64 for key in keys]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


def generator_for(*keys: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose: ``generator_for(seed, step, purpose[, slot])``."""
    return torch.Generator(device).manual_seed(seed_for(*keys))


def noise_for(seed: int, step: int, purpose: int, slots: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise (B, ...) float32 shaped like ``like`` on its device, one stream per slot.

    The numbers depend on the kind of device.
    """
    noise = torch.empty(like.shape, device=like.device)
    for item, slot in zip(noise, slots, strict=True):
        torch.randn(
            item.shape, out=item, device=like.device,
            generator=generator_for(seed, step, purpose, slot, device=like.device),
        )  # fmt: skip
    return noise
