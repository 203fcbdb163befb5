"""Depth maps <-> the image autoencoder's code of them, as earlier models hold depth (for comparison only).

The contracted map z in [0, 2] becomes the grey image z - 1, and its latents stand in the first channels of
the depth tokens. The other channels are 0 and count nothing, so that the transformer is the one that takes
pixels. An image has no holes: what was not measured is filled from the nearest measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from modality_forcing.codecs.depth import encode_depth, unpatchify
from modality_forcing.codecs.filling import fill_nearest
from modality_forcing.codecs.image import decode_image, encode_image
from modality_forcing.model.autoencoder import Autoencoder


def encode_latent_depth(
    depth: Tensor, mask: Tensor | None, autoencoder: Autoencoder, patch: int = 16, sky: str = "missing"
) -> tuple[Tensor, Tensor]:
    """Depth maps to clean tokens that hold latents; arguments as of :func:`codecs.depth.encode_depth`.

    Returns:
        tokens (B, N, patch^2), latents first and 0 behind them; and what counts, bool of the same shape: the
        latents, of items with any measurement.
    """
    rows, cols = depth.shape[-2] // patch, depth.shape[-1] // patch
    pixels, valid, _ = encode_depth(depth, mask, patch, sky)
    known = unpatchify(valid.float(), rows, cols, patch) > 0.5
    grey = fill_nearest(unpatchify(pixels, rows, cols, patch), known) - 1.0
    latents = encode_image(autoencoder, grey[:, None].expand(-1, 3, -1, -1)).to(depth.device)
    tokens = torch.zeros_like(pixels)
    tokens[..., : latents.shape[-1]] = latents
    counts = torch.zeros_like(valid)
    counts[..., : latents.shape[-1]] = known.flatten(1).any(dim=1)[:, None, None]
    return tokens, counts


def decode_latent_depth(tokens: Tensor, rows: int, cols: int, autoencoder: Autoencoder) -> Tensor:
    """Tokens (B, rows*cols, P) to contracted maps (B, H, W) float32: the mean of the decoded colours."""
    latents = tokens[..., : autoencoder.config.latent_channels]
    return decode_image(autoencoder, latents, rows, cols).mean(dim=1) + 1.0
