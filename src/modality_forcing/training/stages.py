"""The stages as losses on a micro-batch: autoencoder, text-to-image, modality forcing (spec sections 2, 4).

A stage works in two parts. ``prepare`` draws what is random and counts what will count; the counts of all
micro-batches on all processes are summed before the first backward pass. ``terms`` asks the model. So the
gradient is that of sum / count over the whole batch however it is split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modality_forcing.codecs.depth import encode_depth, fill_missing, patchify, unpatchify
from modality_forcing.codecs.depth_latent import encode_latent_depth
from modality_forcing.codecs.filling import fill_nearest
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import TrainConfig
from modality_forcing.data.lowpoly.colours import ColourClassifier
from modality_forcing.flow.noise_levels import LogitNormal, PlateauLogitNormal, TaskMix
from modality_forcing.flow.path import expand_level, interpolate, path_velocity
from modality_forcing.losses import SumCount, distillation_loss, velocity_loss, x0_loss
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.layers import rope_table
from modality_forcing.training import randomness
from modality_forcing.training.cycle import Cycle
from modality_forcing.training.data import Batch
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.noisy import Noisy, Teach
from modality_forcing.training.painting import expected_pictures
from modality_forcing.training.randomness import generator_for, noise_for
from modality_forcing.training.reading import Reader
from modality_forcing.training.relative import relative_depth_loss
from modality_forcing.training.words import Words


class Stage(ABC):
    """What a stage asks for and how its answer is judged."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.config = config
        self.device = device

    weights: dict[str, float]
    """Weight of each term in the loss; 0: only shown."""
    passes: int = 1
    """Steps, one after the other, that a batch serves."""

    @abstractmethod
    def prepare(self, batch: Batch, step: int) -> Noisy:
        """Draw and count; everything random comes from (seed, step, slot)."""

    @abstractmethod
    def terms(self, model: nn.Module, work: Noisy) -> dict[str, Tensor]:
        """Per term the sum over what counts of each sample, (b,)."""

    def finish(self, row: dict[str, float]) -> dict[str, float]:
        """Numbers of the log that are made of others."""
        return row

    def rope(self, *ids: Tensor) -> Tensor:
        """Rotations of the transformer's tokens at these positions, on the device."""
        transformer = self.config.model.transformer
        table = rope_table(torch.cat(ids, dim=-2), transformer.rope_axes, transformer.rope_theta)
        return table.to(self.device)


class AutoencoderStage(Stage):
    """L1 at three scales and of image gradients, with a noisy, weakly bounded code (ours: no adversary,
    no LPIPS, and no learned variance: a variance of one at the start buried the code for hundreds of steps).
    """

    def __init__(self, config: TrainConfig, device: torch.device, *, channels_last: bool) -> None:
        super().__init__(config, device)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.weights = {
            "l1": 1.0, "coarse": 0.5, "edges": 0.5, "code_square": config.latent_penalty, "mse": 0.0,
        }  # fmt: skip

    def prepare(self, batch: Batch, step: int) -> Noisy:
        """Crops, on the device."""
        images = batch.images.to(self.device)
        starts = generator_for(self.config.seed, step, randomness.CROPS)
        both = torch.cat([images, self._pixel_weight(batch, images)], dim=1)
        both = random_crops(both, self.config.crop, batch.slots, self.config.batch, starts)
        images, weight = both.split([images.shape[1], 1], dim=1)
        ones = torch.ones(len(images))
        tokens = images.shape[-2] * images.shape[-1] // self.config.model.autoencoder.downscale**2
        work = Noisy(batch, dict.fromkeys(self.weights, ones), tokens=tokens)
        work.rgb0, work.rgb_weight = images.contiguous(memory_format=self.format), weight
        sizes = self.config.model.autoencoder
        rows, cols = (side * sizes.PATCH // sizes.downscale for side in images.shape[-2:])
        code = images.new_empty(len(images), sizes.z_channels, rows, cols)
        noise = noise_for(self.config.seed, step, randomness.CODE_NOISE, batch.slots, code)
        work.rgb_noise = self.config.latent_noise * noise
        return work

    def _pixel_weight(self, batch: Batch, images: Tensor) -> Tensor:
        """(b, 1, H, W): what each pixel counts, more where things are that the caption names."""
        if batch.named is None:
            return torch.ones_like(images[:, :1])
        shares = F.interpolate(batch.named[:, None].to(images), images.shape[-2:])
        return 1 + self.config.forcing.named_weight * shares

    def terms(self, model: nn.Module, work: Noisy) -> dict[str, Tensor]:
        """Means over each image's pixels, by their weight; the square error, for the PSNR, without."""
        assert isinstance(model, Autoencoder)
        target, weight = work.rgb0, work.rgb_weight
        decoded, code = model(target, work.rgb_noise)
        decoded = decoded.float()
        error = decoded - target
        coarse = [_image_mean(F.avg_pool2d(error, k).abs(), F.avg_pool2d(weight, k)) for k in (2, 4)]
        edges = [
            _image_mean(error.diff(dim=d).abs(), weight.narrow(d, 1, weight.shape[d] - 1)) for d in (2, 3)
        ]
        return {
            "l1": _image_mean(error.abs(), weight),
            "coarse": coarse[0] + coarse[1],
            "edges": edges[0] + edges[1],
            "code_square": _image_mean(code.square()),
            "mse": _image_mean(error.square().detach()),
        }

    def finish(self, row: dict[str, float]) -> dict[str, float]:
        """PSNR in dB from the mean square error; images span 2."""
        row = dict(row)
        row["psnr"] = float(10 * torch.log10(torch.tensor(4.0 / max(row.pop("mse"), 1e-12))))
        return {name: value for name, value in row.items() if name not in ("coarse", "edges")}


def _image_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """(b, C, H, W) -> (b,); ``weight`` (b, 1, H, W)."""
    if weight is not None:
        values = values * (weight / weight.mean(dim=(1, 2, 3), keepdim=True))
    return values.flatten(1).mean(dim=1)


def random_crops(
    images: Tensor, side: int, slots: Sequence[int], batch: int, generator: torch.Generator
) -> Tensor:
    """(b, C, H, W) -> (b, C, side, side), one crop per image; ``side`` 0 or the full size: unchanged.

    Args:
        slots: positions of the images in a step's whole batch of ``batch`` samples.
    """
    height, width = images.shape[-2:]
    if side == 0 or side >= min(height, width):
        return images
    rows = torch.randint(height - side + 1, (batch,), generator=generator)[slots].tolist()
    cols = torch.randint(width - side + 1, (batch,), generator=generator)[slots].tolist()
    return torch.stack(
        [image[:, r : r + side, c : c + side] for image, r, c in zip(images, rows, cols, strict=True)]
    )


class ImageStage(Stage):
    """Text to image: flow matching on the image alone."""

    def __init__(self, config: TrainConfig, device: torch.device, encoders: Encoders) -> None:
        super().__init__(config, device)
        self.encoders = encoders
        self.weights = {"rgb": 1.0}

    def captions(self, batch: Batch, step: int, t: Tensor) -> list[str]:
        """The batch's, each replaced by "" with probability ``forcing.text_dropout``, or
        ``i2d_text_dropout`` where the image's level ``t`` (b,) is 0."""
        forcing = self.config.forcing
        draws = torch.rand(
            self.config.batch, generator=generator_for(self.config.seed, step, randomness.TEXT)
        )
        given = forcing.text_dropout if forcing.i2d_text_dropout is None else forcing.i2d_text_dropout
        chance = torch.where(t == 0, given, forcing.text_dropout)
        drop = (draws[batch.slots] < chance).tolist()
        return ["" if dropped else text for text, dropped in zip(batch.captions, drop, strict=True)]

    def prepare(self, batch: Batch, step: int) -> Noisy:
        """Latents, text, levels, noise."""
        config = self.config
        levels = generator_for(config.seed, step, randomness.LEVELS)
        flow = config.model.flow
        t = LogitNormal(flow.shift_mu, flow.shift_sigma).sample(config.batch, levels)[batch.slots]
        work = self._image(batch, step, t)
        work.rope = work.image_rope
        work.tokens = work.text.shape[1] + work.rgb0.shape[1]
        return work

    def _image(self, batch: Batch, step: int, t: Tensor) -> Noisy:
        """What both transformer stages do with the image."""
        latents = self.encoders.latents(batch)
        work = Noisy(batch, {})
        work.captions = self.captions(batch, step, t)
        work.text = self.encoders.text(work.captions)
        work.rgb0 = latents.flatten(2).transpose(1, 2)
        work.t_rgb = t.to(self.device)
        work.rgb_noise = noise_for(self.config.seed, step, randomness.RGB_NOISE, batch.slots, work.rgb0)
        work.rgb_t = interpolate(work.rgb0, work.rgb_noise, work.t_rgb)
        work.image_rope = self.rope(text_ids(work.text.shape[1]), image_ids(*latents.shape[-2:]))
        noisy = (t > 0).float()
        weight = noisy[:, None].expand(work.rgb0.shape[:2])
        if batch.named is not None:
            weight = weight * (1 + self.config.forcing.named_weight * batch.named.flatten(1).cpu())
        work.rgb_weight = weight[..., None].to(self.device)
        work.counts["rgb"] = weight.sum(dim=1) * work.rgb0.shape[2]
        return work

    def terms(self, model: nn.Module, work: Noisy) -> dict[str, Tensor]:
        """The image head's loss."""
        prediction, _ = model(work.rgb_t, None, work.text, work.rope, work.t_rgb)
        return {"rgb": self._rgb_loss(prediction, work)[0]}

    def _rgb_loss(self, prediction: Tensor, work: Noisy) -> SumCount:
        flow = self.config.model.flow
        if flow.rgb_prediction == "velocity":
            return velocity_loss(prediction, work.rgb0, work.rgb_noise, work.rgb_weight)
        return x0_loss(prediction, work.rgb0, work.t_rgb, flow.t_min, work.rgb_weight)


class ForcingStage(ImageStage):
    """Both modalities, each at its own noise level; depth counts where it was measured (spec section 2).

    A clean modality's own prediction carries no information and is left out. A sample without any depth is
    what it looks like: depth at level 1, joint, and nothing of depth counts (ours).
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        encoders: Encoders,
        teach: Teach | None = None,
        reader: Reader | None = None,
        judge: ColourClassifier | None = None,
    ) -> None:
        super().__init__(config, device, encoders)
        self.teach = teach
        self.cycle = None if reader is None else Cycle(config, reader, encoders, self._depth_tokens)
        self.weights = {
            "rgb": config.forcing.rgb_weight, "depth": config.forcing.depth_weight, "i2d_mae": 0.0,
        }  # fmt: skip
        if teach is not None:
            self.weights["distill"] = float(config.forcing.distill_every)
        if self.cycle is not None:
            self.weights["cycle"] = config.forcing.cycle_weight
        self.words = None if judge is None else Words(config, judge, encoders)
        if self.words is not None:
            self.weights["words"] = config.forcing.word_weight
        keeps = {name: getattr(config.forcing, name) for name in ("keep_rgb", "keep_depth", "keep_painted")}
        self.keeps = keeps if any(keeps.values()) else {}
        self.weights |= self.keeps

    def prepare(self, batch: Batch, step: int) -> Noisy:
        """Levels and tasks, noise, missing depth filled with pure noise."""
        config = self.config
        depth, measured = batch.depth.to(self.device), batch.measured.to(self.device)
        patch = config.model.transformer.patch_size
        depth0, valid = self._depth_tokens(depth, measured)
        known = valid.flatten(1).any(dim=1).cpu()
        t_rgb, t_depth = self._levels(step, batch.slots, known)
        work = self._image(batch, step, t_rgb)
        work.depth0, work.valid, work.t_depth = depth0, valid, t_depth.to(self.device)
        work.depth_noise = noise_for(config.seed, step, randomness.DEPTH_NOISE, batch.slots, depth0)
        rows, cols = (side // patch for side in depth.shape[-2:])
        work.rope = self.rope(text_ids(work.text.shape[1]), image_ids(rows, cols), depth_ids(rows, cols))
        if self.cycle is not None:
            self.cycle.prepare(work, step)
        if self.words is not None:
            self.words.prepare(work, step)
        work.depth_t = self._noisy_depth(work, rows, cols)
        num_valid = work.valid.flatten(1).sum(dim=1).cpu().float()
        if config.forcing.depth_average == "samples":
            work.depth_share = (1 / num_valid.clamp_min(1)).to(self.device)
            num_valid = (num_valid > 0).float()
        is_i2d, is_d2i = t_rgb == 0, t_depth == 0
        work.tasks = {"joint": ~is_i2d & ~is_d2i, "i2d": is_i2d, "d2i": is_d2i}
        work.counts["depth"] = num_valid * ~is_d2i
        work.counts["i2d_mae"] = num_valid * is_i2d
        if self.teach is not None:
            work.taught = step % config.forcing.distill_every == 0
            work.counts["distill"] = work.counts["rgb"] * work.taught
        if self.keeps:
            painted = torch.zeros(len(t_rgb), dtype=torch.bool).index_fill(0, work.own, True)
            work.counts["keep_rgb"] = (~is_i2d & ~painted).float()
            work.counts["keep_depth"] = (~is_d2i).float()
            work.counts["keep_painted"] = painted.float()
        work.tokens = work.text.shape[1] + 2 * work.rgb0.shape[1]
        return work

    def _depth_tokens(self, depth: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
        """Clean tokens (b, N, P) and what of them counts, bool."""
        model = self.config.model
        patch, sky = model.transformer.patch_size, model.depth.sky
        if self.config.forcing.depth_coding == "latent":
            return encode_latent_depth(depth, measured, self.encoders.autoencoder, patch, sky)
        return encode_depth(depth, measured, patch, sky)[:2]

    def _noisy_depth(self, work: Noisy, rows: int, cols: int) -> Tensor:
        """Depth at its level, with something in place of what was not measured."""
        forcing = self.config.forcing
        depth_t = interpolate(work.depth0, work.depth_noise, work.t_depth)
        if forcing.depth_coding == "latent":  # a code has no holes
            return depth_t
        zero = forcing.fill == "zero"
        depth_t = fill_missing(depth_t, work.valid, torch.zeros_like(depth_t) if zero else work.depth_noise)
        given = work.t_depth == 0
        if forcing.d2i_fill == "nearest" and bool(given.any()):
            patch = self.config.model.transformer.patch_size
            maps = unpatchify(work.depth0[given], rows, cols, patch)
            known = unpatchify(work.valid[given].float(), rows, cols, patch) > 0.5
            depth_t[given] = patchify(fill_nearest(maps, known), patch)
        return depth_t

    def _levels(self, step: int, slots: list[int], known: Tensor) -> tuple[Tensor, Tensor]:
        config, flow = self.config, self.config.model.flow
        draws = generator_for(config.seed, step, randomness.LEVELS)
        sampled = LogitNormal(flow.shift_mu, flow.shift_sigma).sample(config.batch, draws)
        density = PlateauLogitNormal if config.forcing.depth_density == "plateau" else LogitNormal
        t_depth = density(flow.shift_mu, flow.shift_sigma).sample(config.batch, draws)
        if config.forcing.shared_level:
            sampled = t_depth
        mix = TaskMix(config.forcing.p_i2d, config.forcing.p_d2i)
        t_rgb, t_depth = (t[slots] for t in mix.apply(sampled, t_depth, draws))
        if config.forcing.d2i_density == "plateau":
            high = PlateauLogitNormal(flow.shift_mu, flow.shift_sigma).sample(config.batch, draws)
            t_rgb = torch.where(t_depth == 0, high[slots], t_rgb)
        if config.forcing.i2d_pure:
            pure = torch.rand(config.batch, generator=draws)[slots] < config.forcing.i2d_pure
            t_depth = torch.where((t_rgb == 0) & pure, torch.ones(()), t_depth)
        t_rgb = torch.where(known, t_rgb, sampled[slots])
        return t_rgb, torch.where(known, t_depth, torch.ones(()))

    def terms(self, model: nn.Module, work: Noisy) -> dict[str, Tensor]:
        """Both heads' losses, the teacher's, and how far depth is off where the image was given."""
        if self.cycle is not None:
            self.cycle.paint(model, work)
        if self.words is not None:
            self.words.paint(model, work)
        target = self.teach(model, work) if self.teach is not None and work.taught else None
        rgb, depth = model(work.rgb_t, work.depth_t, work.text, work.rope, work.t_rgb, work.t_depth)
        out = {
            "rgb": self._rgb_loss(rgb, work)[0],
            "depth": self._depth_loss(depth, work)[0] * work.depth_share,
        }
        if target is not None:
            forcing = self.config.forcing
            out["distill"] = distillation_loss(
                self._velocity(rgb, work), self._velocity(target, work), work.t_depth,
                forcing.distill_high, forcing.distill_low, work.rgb_weight,
            )[0]  # fmt: skip
        elif "distill" in self.weights:
            out["distill"] = torch.zeros_like(out["rgb"])
        if self.cycle is not None or self.words is not None:
            velocity = self._velocity(rgb, work)
            pictures = expected_pictures(velocity, work, self.encoders.autoencoder)
            if self.cycle is not None:
                out["cycle"] = self.cycle.loss(velocity, pictures, work)
            if self.words is not None:
                out["words"] = self.words.loss(pictures, work)
        if self.keeps:
            out |= self._kept(rgb, depth, work)
        given = work.valid & (work.t_rgb == 0)[:, None, None]
        off = (depth.detach().float() - work.depth0).abs()
        out["i2d_mae"] = (
            torch.where(given, off, torch.zeros_like(off)).flatten(1).sum(dim=1) * work.depth_share
        )
        return out

    def _depth_loss(self, prediction: Tensor, work: Noisy) -> SumCount:
        flow = self.config.model.flow
        weight = work.valid.float() * (work.t_depth > 0).float()[:, None, None]
        share, clean = self.config.forcing.i2d_relative, prediction
        if flow.depth_prediction == "velocity":
            square, count = velocity_loss(prediction, work.depth0, work.depth_noise, weight)
            clean = work.depth_t - expand_level(work.t_depth, prediction) * prediction.float()
        else:
            square, count = x0_loss(prediction, work.depth0, work.t_depth, flow.t_min, weight)
        if not share:
            return square, count
        sky = self.config.model.depth.far_threshold
        relative, _ = relative_depth_loss(clean, work.depth0, work.t_depth, flow.t_min, sky, weight)
        return torch.where(work.t_rgb == 0, share * relative, square), count

    def _kept(self, rgb: Tensor, depth: Tensor, work: Noisy) -> dict[str, Tensor]:
        """Mean squares, (b,), of the way from the reader's velocities."""
        assert self.cycle is not None
        flow = self.config.model.flow
        old_rgb, old_depth = self.cycle.reader.answer(work)
        image = (self._velocity(rgb, work) - self._velocity(old_rgb, work)).square().flatten(1).mean(dim=1)
        t = expand_level(work.t_depth.clamp_min(flow.t_min), depth)
        now, before = (
            path_velocity(work.depth_t, answer.float(), flow.depth_prediction, t)
            for answer in (depth, old_depth)
        )
        maps = (now - before).square().flatten(1).mean(dim=1)
        counts = {name: work.counts[name].to(self.device) for name in self.keeps}
        return {
            "keep_rgb": image * counts["keep_rgb"],
            "keep_depth": maps * counts["keep_depth"],
            "keep_painted": image * counts["keep_painted"],
        }

    def _velocity(self, prediction: Tensor, work: Noisy) -> Tensor:
        """The image head's answer as a velocity, whatever it predicts."""
        flow = self.config.model.flow
        t = expand_level(work.t_rgb.clamp_min(flow.t_min), prediction)
        return path_velocity(work.rgb_t, prediction.float(), flow.rgb_prediction, t)
