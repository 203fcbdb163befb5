"""Pictures <-> model values: uint8 sRGB, floats in [-1, 1], latents, tokens (one per 16x16 pixels)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from modality_forcing.errors import UserError
from modality_forcing.model.autoencoder import Autoencoder

PIXELS_PER_PASS = 2**20
"""Image pixels the autoencoder sees at once: bounds its memory (four pictures of 512x512)."""


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) or (B, H, W, 3), 0..255 -> float32 (B, 3, H, W) in [-1, 1].

    Raises:
        UserError: another type or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or pixels.shape[-1] != 3:
        raise UserError(
            f"an image must be uint8 (H, W, 3) or (B, H, W, 3); got {pixels.dtype} {pixels.shape}"
        )
    # A copy of views that PyTorch cannot hold: flipped ones (BGR to RGB) and read-only ones (from Pillow).
    batch = torch.from_numpy(np.require(pixels.reshape(-1, *pixels.shape[-3:]), requirements=("C", "W")))
    return batch.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def tensor_to_pixels(images: Tensor) -> np.ndarray:
    """float (B, 3, H, W), clamped to [-1, 1] -> uint8 (B, H, W, 3). Inverts :func:`pixels_to_tensor` exactly.

    Raises:
        FloatingPointError: NaN: the model failed, and a black picture would hide it.
    """
    if images.isnan().any():
        raise FloatingPointError("the image holds NaN; the model or its precision failed")
    levels = ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def latents_to_tokens(latents: Tensor) -> Tensor:
    """(B, C, rows, cols) -> (B, rows*cols, C)."""
    return latents.flatten(2).transpose(1, 2)


def tokens_to_latents(tokens: Tensor, rows: int, cols: int) -> Tensor:
    """(B, rows*cols, C) -> (B, C, rows, cols)."""
    return tokens.transpose(1, 2).unflatten(2, (rows, cols))


@torch.no_grad()
def encode_image(autoencoder: Autoencoder, images: Tensor) -> Tensor:
    """float (B, 3, H, W) in [-1, 1] -> clean tokens (B, N, latent_channels), float32, row-major.

    Raises:
        UserError: a side that is no multiple of the autoencoder's factor.
    """
    chunk = max(1, PIXELS_PER_PASS // (images.shape[-2] * images.shape[-1]))
    return latents_to_tokens(_in_chunks(autoencoder.encode, autoencoder, images, chunk))


@torch.no_grad()
def decode_image(autoencoder: Autoencoder, tokens: Tensor, rows: int, cols: int) -> Tensor:
    """Tokens (B, rows*cols, latent_channels) -> images (B, 3, 16*rows, 16*cols), float32, about [-1, 1]."""
    chunk = max(1, PIXELS_PER_PASS // (rows * cols * autoencoder.config.downscale**2))
    return _in_chunks(autoencoder.decode, autoencoder, tokens_to_latents(tokens, rows, cols), chunk)


def _in_chunks(
    function: Callable[[Tensor], Tensor], autoencoder: Autoencoder, x: Tensor, chunk: int
) -> Tensor:
    weight = autoencoder.encoder.conv_in.weight
    return torch.cat([function(part.to(weight.device, weight.dtype)).float() for part in x.split(chunk)])
