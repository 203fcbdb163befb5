"""Batches from a rendered cache. Everything random is keyed by (seed, step), so a resumed run goes on as if
it had never stopped."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.cache import open_cache
from modality_forcing.data.sensors import sparsify
from modality_forcing.errors import UserError

_SIDES = re.compile(r"\b(left|right)\b")


@dataclass
class Batch:
    """Images (B, 3, H, W) float in [-1, 1]; depth (B, H, W) metres, +inf is sky; measured (B, H, W) bool:
    where the sparse sensor says something; captions."""

    images: Tensor
    depth: Tensor
    measured: Tensor
    captions: list[str]
    indices: list[int]
    mirrored: list[bool]


def rng_for(seed: int, *keys: int) -> np.random.Generator:
    """A generator for one purpose at one step."""
    return np.random.default_rng([seed, *keys])


def mirrored_caption(caption: str) -> str:
    """The caption of the mirrored image: left and right swap."""
    return _SIDES.sub(lambda m: "right" if m.group(1) == "left" else "left", caption)


class CacheLoader:
    """Shuffled passes over a cache with random mirroring."""

    def __init__(self, folder: str, batch: int, seed: int, size: int) -> None:
        self.cache = open_cache(folder)
        self.batch = batch
        self.seed = seed
        self.count = len(self.cache)
        if self.count < batch:
            raise UserError(f"{folder} holds {self.count} samples, fewer than one batch of {batch}")
        shape = self.cache[0][0].shape[:2]
        if shape != (size, size):
            raise UserError(f"{folder} holds {shape[1]}x{shape[0]} images; image_size={size} was asked for")

    def indices(self, step: int) -> np.ndarray:
        """Sample numbers of one step: each pass is a fresh permutation."""
        per_pass = self.count // self.batch
        epoch, position = divmod(step, per_pass)
        order = rng_for(self.seed, 1, epoch).permutation(self.count)
        return order[position * self.batch : (position + 1) * self.batch]

    def load(self, step: int, sparse_kinds: tuple[str, ...] = ()) -> Batch:
        """The batch of one step; ``sparse_kinds`` empty: every finite pixel and the sky is measured."""
        indices = self.indices(step)
        rng = rng_for(self.seed, 2, step)
        images, depths, measured, captions, mirrored = [], [], [], [], []
        for index in indices:
            rgb, depth, _, texts = self.cache[int(index)]
            caption = texts[int(rng.integers(len(texts)))] if texts else ""
            mirrored.append(bool(rng.random() < 0.5))
            if mirrored[-1]:
                rgb, depth, caption = rgb[:, ::-1], depth[:, ::-1], mirrored_caption(caption)
            if sparse_kinds:
                kind = sparse_kinds[int(rng.integers(len(sparse_kinds)))]
                mask = sparsify(depth, rgb, kind, rng)
                # Sensors see no sky; that it is far is told by as sparse a sample of its pixels.
                mask |= np.isinf(depth) & (rng.random(depth.shape) < mask.mean() + 0.002)
            else:
                mask = depth > 0
            images.append(np.ascontiguousarray(rgb))
            depths.append(np.ascontiguousarray(depth))
            measured.append(mask)
            captions.append(caption)
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return Batch(
            images=pixels,
            depth=torch.from_numpy(np.stack(depths)),
            measured=torch.from_numpy(np.stack(measured)),
            captions=captions,
            indices=[int(i) for i in indices],
            mirrored=mirrored,
        )
