"""The convolutional autoencoder of FLUX.2: images to the latents that the transformer models, and back.

Two modules with the names of the published weights, :class:`Encoder` and :class:`Decoder`, each with its own
copy of the latent statistics (so that the files ``ae_encoder`` and ``ae_decoder`` stand alone), and
:class:`Autoencoder`, which adds the step from the convolutional code to model latents:

    z   = mean half of encoder(image)                            (B, z, H/8, W/8)
    u   = 2x2 pixel-unshuffle of z, channels ordered (c, i, j)   (B, 4z, H/16, W/16)
    out = (u - running_mean) / sqrt(running_var + 1e-4)          BatchNorm without affine, never updated here

Sizes in this text are those of the default configuration. Source: FLUX.2 reference code and its weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modality_forcing.config import AutoencoderConfig
from modality_forcing.errors import UserError

NORM_EPS = 1e-6  # every GroupNorm of the autoencoder
STATISTICS_EPS = 1e-4  # the BatchNorm of the latents
PATCH = AutoencoderConfig.PATCH  # the pixel-unshuffle that follows the encoder


class LatentStatistics(nn.Module):
    """Per-channel mean and variance of the latents, under the names of a BatchNorm without affine.

    A buffer holder and no ``nn.BatchNorm2d``: the statistics must not drift when somebody calls ``train()``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def normalize(self, u: Tensor) -> Tensor:
        """(B, C, h, w) -> the same, mean 0 and variance 1 per channel."""
        return ((u - self._column(self.running_mean)) / self._scale()).to(u.dtype)

    def denormalize(self, u: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`."""
        return (u * self._scale() + self._column(self.running_mean)).to(u.dtype)

    def _scale(self) -> Tensor:
        return self._column((self.running_var + STATISTICS_EPS).sqrt())

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)


class ResBlock(nn.Module):
    """GroupNorm, swish, 3x3 conv, twice, around a skip (1x1 conv where the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions; q, k, v are 1x1 convolutions."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        n = self.norm(x)
        # (B, C, h, w) -> (B, 1 head, h*w, C)
        q, k, v = (conv(n).flatten(2).transpose(1, 2).unsqueeze(1) for conv in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Stride-2 3x3 convolution, padded at the right and bottom only (the weights were trained so)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    """The residual blocks of one encoder resolution and the step to the next one, if there is one."""

    def __init__(self, in_channels: int, channels: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else channels, channels, groups) for i in range(blocks)
        )
        self.downsample = nn.Identity() if last else Downsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, C, h/2, w/2); (B, C, h, w) at the last resolution."""
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class UpLevel(nn.Module):
    """The residual blocks of one decoder resolution and the step to the next finer one, if there is one."""

    def __init__(self, in_channels: int, channels: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(in_channels if i == 0 else channels, channels, groups) for i in range(blocks)
        )
        self.upsample = nn.Identity() if last else Upsample(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, C, 2h, 2w); (B, C, h, w) at the last resolution."""
        for block in self.block:
            x = block(x)
        return self.upsample(x)


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> moments (B, 2z, H/8, W/8): mean half, then log-variance half."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(
            DownLevel(before, width, config.num_res_blocks, groups, last=i == len(widths) - 1)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)
        self.bn = LatentStatistics(config.latent_channels)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        h = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return self.quant_conv(h)


class Decoder(nn.Module):
    """Code z (B, z, H/8, W/8), not normalised and not unshuffled -> images (B, 3, H, W), about [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        # Stored finest first (``up.0``), run coarsest first.
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(
            UpLevel(before, width, config.num_res_blocks + 1, groups, last=i == 0)
            for i, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)
        self.bn = LatentStatistics(config.latent_channels)

    def forward(self, z: Tensor) -> Tensor:
        """See the class."""
        h = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """Images to model latents and back; see the module text for the steps."""

    def __init__(self, config: AutoencoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of training: images (B, 3, H, W) and noise on their code (B, z, H/8, W/8) -> the decoded
        images and the clean code, which is the moments' mean in float32. Latent statistics take no part."""
        # A copy: FSDP warns of outputs that are views.
        mean = self.encode_moments(images).float().chunk(2, dim=1)[0].clone()
        return self.decoder(mean + noise), mean

    def encode_moments(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> (B, 2z, H/8, W/8): mean, then log-variance.

        Raises:
            UserError: not a batch of images of the configured channels, or a side that is no multiple of
                ``config.downscale``.
        """
        side = self.config.downscale
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            expected = f"(B, {self.config.in_channels}, H, W)"
            raise UserError(f"the autoencoder takes images {expected}; got {tuple(images.shape)}")
        if images.shape[2] % side or images.shape[3] % side:
            raise UserError(
                f"image size {images.shape[2]}x{images.shape[3]} (height x width) is no multiple of {side}"
            )
        return self.encoder(images)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> normalised latents (B, 4z, H/16, W/16). Deterministic: the mean.

        Raises:
            UserError: see :meth:`encode_moments`.
        """
        mean, _ = self.encode_moments(images).chunk(2, dim=1)
        # pixel_unshuffle orders the channels (c, i, j) with c slowest, as the weights expect.
        return self.encoder.bn.normalize(F.pixel_unshuffle(mean, PATCH))

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, 4z, h, w) -> images (B, 3, 16h, 16w), about [-1, 1], not clamped.

        Raises:
            UserError: the latents do not have ``config.latent_channels`` channels.
        """
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            expected = f"(B, {self.config.latent_channels}, h, w)"
            raise UserError(f"the decoder takes latents {expected}; got {tuple(latents.shape)}")
        return self.decoder(F.pixel_shuffle(self.decoder.bn.denormalize(latents), PATCH))

    @torch.no_grad()
    def set_latent_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Store the per-channel mean and variance (4z,) of ``pixel_unshuffle(z)`` over a training set.

        Raises:
            UserError: wrong shape, a value that is not finite, or a variance that is not positive.
        """
        shape = (self.config.latent_channels,)
        if tuple(mean.shape) != shape or tuple(var.shape) != shape:
            raise UserError(
                f"latent statistics need shape {shape}; got {tuple(mean.shape)} and {tuple(var.shape)}"
            )
        if not (mean.isfinite().all() and var.isfinite().all() and (var > 0).all()):
            raise UserError("latent statistics must be finite, the variance positive")
        for half in (self.encoder, self.decoder):
            half.bn.running_mean.copy_(mean)
            half.bn.running_var.copy_(var)
