"""Frozen encoders answer once per input: their outputs stay in memory as float16."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class Remembered:
    """Outputs of one frozen function by the hashable key of its input."""

    def __init__(self) -> None:
        self.store: dict[Hashable, Tensor] = {}

    def __call__(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Outputs for all keys, (len(keys), ...) float32; ``compute`` is asked for unseen positions only."""
        new = list({key: i for i, key in enumerate(keys) if key not in self.store}.values())
        if new:
            for position, output in zip(new, compute(new), strict=True):
                self.store[keys[position]] = output.half()
        return torch.stack([self.store[key] for key in keys]).float()
