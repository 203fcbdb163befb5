"""The stages as losses on a batch: autoencoder, text-to-image, modality forcing (spec sections 2, 4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modality_forcing.codecs.depth import encode_depth, fill_missing
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import FlowConfig, TrainConfig
from modality_forcing.flow.noise_levels import LogitNormal, PlateauLogitNormal, TaskMix
from modality_forcing.flow.path import interpolate
from modality_forcing.losses import SumCount, distillation_loss, mean, velocity_loss, x0_loss
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.transformer import Transformer
from modality_forcing.training.data import Batch
from modality_forcing.training.memory import Remembered

Losses = dict[str, Tensor]
"""Named losses; "loss" is the one to minimise."""


def autoencoder_loss(
    model: Autoencoder, batch: Batch, config: TrainConfig, generator: torch.Generator
) -> Losses:
    """L1 at three scales and of image gradients, with a noisy, weakly bounded code (ours: no adversary,
    no LPIPS, and no learned variance: a variance of one at the start buried the code for hundreds of steps).
    """
    target = random_crops(batch.images, config.crop, generator)
    mu = model.encode_moments(target).float().chunk(2, dim=1)[0]
    noise = torch.randn(mu.shape, generator=generator)
    decoded = model.decoder(mu + config.latent_noise * noise).float()
    pixel = (decoded - target).abs().mean()
    coarse = sum((F.avg_pool2d(decoded, k) - F.avg_pool2d(target, k)).abs().mean() for k in (2, 4))
    edges = sum((decoded.diff(dim=d) - target.diff(dim=d)).abs().mean() for d in (2, 3))
    size = mu.square().mean()
    loss = pixel + 0.5 * coarse + 0.5 * edges + config.latent_penalty * size
    psnr = 10 * torch.log10(4.0 / F.mse_loss(decoded, target))
    return {"loss": loss, "l1": pixel.detach(), "code_square": size.detach(), "psnr": psnr.detach()}


def random_crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), one crop per image; ``side`` 0 or the full size: unchanged."""
    height, width = images.shape[-2:]
    if side == 0 or side >= min(height, width):
        return images
    rows = torch.randint(height - side + 1, (len(images),), generator=generator).tolist()
    cols = torch.randint(width - side + 1, (len(images),), generator=generator).tolist()
    crops = [image[:, r : r + side, c : c + side] for image, r, c in zip(images, rows, cols, strict=True)]
    return torch.stack(crops).contiguous(memory_format=torch.channels_last)


class TextSource:
    """Text tokens for a batch of captions with dropout to the empty prompt."""

    def __init__(
        self, encode: Callable[[list[str]], Tensor], dropout: float, memory: Remembered | None = None
    ) -> None:
        self.encode = encode
        self.dropout = dropout
        self.memory = memory

    def __call__(self, captions: list[str], generator: torch.Generator) -> Tensor:
        """(B, T, C); each caption is replaced by "" with probability ``dropout``."""
        drop = (torch.rand(len(captions), generator=generator) < self.dropout).tolist()
        texts = ["" if dropped else caption for caption, dropped in zip(captions, drop, strict=True)]
        if self.memory is None:
            return self.encode(texts)
        return self.memory(texts, lambda positions: self.encode([texts[i] for i in positions]))


def t2i_loss(
    model: Transformer, latents: Tensor, text: Tensor, flow: FlowConfig, generator: torch.Generator
) -> Losses:
    """Flow matching on the image alone.

    Args:
        latents: (B, C, h, w) normalised autoencoder latents.
        text: (B, T, text_width).
    """
    b, _, rows, cols = latents.shape
    x0 = latents.flatten(2).transpose(1, 2)
    t = LogitNormal(flow.shift_mu, flow.shift_sigma).sample(b, generator)
    noise = torch.randn(x0.shape, generator=generator)
    rope = model.rope(text_ids(text.shape[1]), image_ids(rows, cols))
    prediction, _ = model(interpolate(x0, noise, t), None, text, rope, t)
    loss = mean(_head_loss(flow.rgb_prediction, prediction, x0, noise, t, flow.t_min, torch.ones(1)))
    return {"loss": loss, "rgb": loss.detach()}


def forcing_loss(
    model: Transformer,
    latents: Tensor,
    batch: Batch,
    text: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    teacher: Callable[..., Tensor] | None = None,
) -> Losses:
    """Both modalities, each at its own noise level; depth counts where it was measured (spec section 2).

    A clean modality's own prediction carries no information and is left out. ``teacher`` (the frozen
    text-to-image model on the same noisy image) adds self-distillation.
    """
    flow, forcing = config.model.flow, config.forcing
    b, _, rows, cols = latents.shape
    rgb0 = latents.flatten(2).transpose(1, 2)
    patch = config.model.transformer.patch_size
    depth0, valid, _ = encode_depth(batch.depth, batch.measured, patch, config.model.depth.sky)
    t_rgb = LogitNormal(flow.shift_mu, flow.shift_sigma).sample(b, generator)
    t_depth = PlateauLogitNormal(flow.shift_mu, flow.shift_sigma).sample(b, generator)
    t_rgb, t_depth = TaskMix(forcing.p_i2d, forcing.p_d2i).apply(t_rgb, t_depth, generator)
    rgb_noise = torch.randn(rgb0.shape, generator=generator)
    depth_noise = torch.randn(depth0.shape, generator=generator)
    rgb_t = interpolate(rgb0, rgb_noise, t_rgb)
    depth_t = fill_missing(interpolate(depth0, depth_noise, t_depth), valid, depth_noise)
    rope = model.rope(text_ids(text.shape[1]), image_ids(rows, cols), depth_ids(rows, cols))
    rgb_pred, depth_pred = model(rgb_t, depth_t, text, rope, t_rgb, t_depth)
    assert depth_pred is not None
    rgb_counts = (t_rgb > 0).float()[:, None, None]
    depth_counts = valid.float() * (t_depth > 0).float()[:, None, None]
    rgb = mean(_head_loss(flow.rgb_prediction, rgb_pred, rgb0, rgb_noise, t_rgb, flow.t_min, rgb_counts))
    depth = mean(
        _head_loss(flow.depth_prediction, depth_pred, depth0, depth_noise, t_depth, flow.t_min, depth_counts)
    )
    loss = forcing.rgb_weight * rgb + forcing.depth_weight * depth
    out = {"rgb": rgb.detach(), "depth": depth.detach()}
    is_i2d = ((t_rgb == 0).float()[:, None, None] * valid).bool()
    out["i2d_mae"] = ((depth_pred.detach().float() - depth0).abs() * is_i2d).sum() / is_i2d.sum().clamp_min(1)
    if teacher is not None and (forcing.distill_high > 0 or forcing.distill_low > 0):
        target = teacher(rgb_t, text, t_rgb)
        distilled = mean(
            distillation_loss(
                rgb_pred, target, t_depth, forcing.distill_high, forcing.distill_low, rgb_counts
            )
        )
        loss = loss + distilled
        out["distill"] = distilled.detach()
    return {"loss": loss, **out}


def _head_loss(
    kind: str, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor, t_min: float, weight: Tensor
) -> SumCount:
    """The v-space loss of a head by what it predicts."""
    if kind == "velocity":
        return velocity_loss(prediction, x0, noise, weight)
    return x0_loss(prediction, x0, t, t_min, weight)
