"""What completion and inpainting need of a pipeline, and what both do with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modality_forcing.codecs.depth import contract, patchify, surfaces, unpatchify
from modality_forcing.codecs.edges import along_edges
from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import encode_image, pixels_to_tensor
from modality_forcing.config import ModelConfig, SamplerConfig
from modality_forcing.devices import memory_advice
from modality_forcing.engine import Engine, Item, Settings
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.types import Camera, PerModality

Intrinsics = Camera | np.ndarray | Sequence[float] | None

DEFAULT: Any = type("Default", (), {"__repr__": lambda self: "DEFAULT"})()
"""Marks "the model's own default" where None means something else."""


class Assembled(Protocol):
    """A pipeline as its tasks see it."""

    config: ModelConfig
    autoencoder: Autoencoder
    refiner: DepthRefiner | None
    device: torch.device
    engine: Engine

    @property
    def sampler_defaults(self) -> SamplerConfig: ...
    @property
    def _cell(self) -> int: ...
    def _decode_image(self, tokens: Tensor, frame: Frame) -> np.ndarray: ...
    def _decode_depth(
        self, tokens: Tensor, frame: Frame, image: np.ndarray, edge_radius: int
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def _provenance(self, settings: Settings, item: Item) -> dict[str, Any]: ...


def image_item(pipeline: Assembled, image: np.ndarray, area: int, prompt: str, seed: int) -> Item:
    """The start of image to depth: the image's clean tokens beside depth noise."""
    height, width = image.shape[:2]
    frame = Frame.fitted(width, height, area, pipeline._cell)
    with pipeline.engine.timed("encode"), memory_advice():
        tokens = encode_image(pipeline.autoencoder, frame.scale_image(pixels_to_tensor(image)))
    # Image to depth draws no image noise, so depth takes the seed's first draw.
    noise = pipeline.engine.noise(seed, frame, rgb=False)
    start = PerModality(rgb=tokens.to(pipeline.device), depth=noise.depth)
    return Item(frame, start, prompt, seed)


@torch.no_grad()
def contracted_depth(pipeline: Assembled, tokens: Tensor, frame: Frame, image: np.ndarray) -> Tensor:
    """Depth tokens (1, N, C) to contracted depth (1, 1, H, W) on the grid, float32 on the CPU.

    ``image``, uint8 of the frame's outer size, sharpens it where the model has a refiner.
    """
    z = unpatchify(tokens.float(), frame.rows, frame.cols, pipeline._cell)[:, None]
    refiner = pipeline.refiner
    if refiner is not None:
        z = refiner(z, frame.scale_image(pixels_to_tensor(image)).to(z.device))
    return z.cpu()


def grid_depth(
    pipeline: Assembled, tokens: Tensor, frame: Frame, image: np.ndarray, edge_radius: int
) -> np.ndarray:
    """Depth tokens (1, N, C) to a relative map, float32 (H, W) of the grid, positive and finite.

    ``image``, uint8 of the frame's outer size, gives the edges to a refiner and where ``edge_radius`` is not
    0. What the model calls sky is as far as the farthest surface: its own number, 10,000 times the mean,
    would drown every comparison with a measurement.
    """
    z = contracted_depth(pipeline, tokens, frame, image)
    limit = pipeline.config.depth.sky_limit
    if edge_radius:
        grid = Frame.exact(frame.grid_width, frame.grid_height, frame.cell)
        depth, _ = along_edges(z, frame.scale_image(pixels_to_tensor(image)), grid, edge_radius, limit)
    else:
        depth, _ = surfaces(z, limit)
    found: np.ndarray = depth[0, 0].numpy()
    return found


def depth_tokens(depth: np.ndarray, patch: int, device: torch.device) -> Tensor:
    """Depth (H, W) in units of the model's mean, +inf is sky -> tokens (1, N, patch^2), clean.

    H and W are the grid's. Pixels that are NaN or not positive become 0.
    """
    values = torch.from_numpy(np.where(depth > 0, depth, 0.0).astype(np.float32))[None]
    return patchify(contract(values), patch).to(device)


def mask_tokens(mask: np.ndarray, patch: int, device: torch.device) -> Tensor:
    """bool (H, W) on the grid -> bool (1, N, patch^2)."""
    return (patchify(torch.from_numpy(mask.astype(np.float32))[None], patch) > 0.5).to(device)
