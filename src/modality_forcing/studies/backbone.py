"""Pictures of a text-to-image model, from the noise that an RGB-D model grown from it starts from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from modality_forcing.checkpoint.layouts import open_checkpoint
from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import decode_image, tensor_to_pixels
from modality_forcing.engine import sample_images
from modality_forcing.errors import UserError
from modality_forcing.pipeline import Pipeline

BATCH = 16


@torch.no_grad()
def text_to_image(
    grown: Pipeline, model: str, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float
) -> list[np.ndarray]:
    """uint8 (H, W, 3) per prompt, of the pipeline's own size.

    Args:
        grown: the RGB-D model; its text encoder, autoencoder and noise are used.
        model: folder of the text-to-image model.

    Raises:
        UserError: the folder holds no text-to-image model.
    """
    engine, config = grown.engine, grown.config
    transformer = open_checkpoint(model).load_transformer(engine.transformer.dtype, engine.device)
    if transformer.has_depth:
        raise UserError(f"{model} has a depth stream; right is a text-to-image model")
    transformer.requires_grad_(False)
    cell = config.transformer.patch_size
    frame = Frame.exact(config.sampler.width, config.sampler.height, cell)
    null = engine.text.encode([""]).to(engine.device, transformer.dtype)
    images: list[np.ndarray] = []
    for first in range(0, len(prompts), BATCH):
        part = slice(first, first + BATCH)
        text = engine.text.encode(list(prompts[part])).to(engine.device, transformer.dtype)
        noise = torch.cat([engine.noise(seed, frame).rgb for seed in seeds[part]])
        tokens = sample_images(
            transformer, noise, text, null, frame, config.flow, steps=steps, guidance=guidance
        )
        pixels = decode_image(grown.autoencoder, tokens, frame.rows, frame.cols)
        images += list(tensor_to_pixels(pixels.cpu()))
    return images
