"""The stage that trains the refiner beside a finished transformer (ours; the paper has none)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modality_forcing.codecs.depth import encode_depth, patchify, unpatchify
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.config import TrainConfig
from modality_forcing.flow.path import interpolate
from modality_forcing.training import randomness
from modality_forcing.training.data import Batch
from modality_forcing.training.encoding import Encoders
from modality_forcing.training.noisy import Noisy
from modality_forcing.training.parallelize import autocasts
from modality_forcing.training.randomness import generator_for, noise_for
from modality_forcing.training.reading import Reader
from modality_forcing.training.relative import relative_depth_loss
from modality_forcing.training.stages import Stage


class RefinerStage(Stage):
    """The transformer estimates depth in one step from the given image; the refiner learns what it left out,
    from the same sparse measurements, by ``training.relative``.

    Each batch serves two steps, as it is and mirrored: what was read, encoded and estimated is used twice.

    Args:
        estimator: the frozen transformer.
    """

    passes = 2

    def __init__(
        self, config: TrainConfig, device: torch.device, encoders: Encoders, estimator: nn.Module
    ) -> None:
        super().__init__(config, device)
        half = autocasts(config.precision, device)
        self.encoders, self.reader = encoders, Reader(estimator, None, config.model, half=half)
        self.weights = {"depth": 1.0, "unrefined": 0.0}
        self._number, self._kept = -1, dict[tuple[int, ...], tuple[Tensor, Tensor, int]]()

    def prepare(self, batch: Batch, step: int) -> Noisy:
        """``depth_t`` (b, 1, H, W): contracted estimate; ``rgb0`` (b, 3, H, W): what to refine it by."""
        number, mirrored = divmod(step, self.passes)
        if number != self._number:
            self._number = number
            self._kept.clear()
        slots = tuple(batch.slots)
        if slots not in self._kept:
            self._kept[slots] = self._estimate(batch, number)
        estimate, images, tokens = self._kept[slots]
        maps = [estimate, images, batch.depth.to(self.device), batch.measured.to(self.device)]
        if mirrored:
            maps = [x.flip(-1) for x in maps]
        work = Noisy(batch, {}, tokens=tokens, depth_t=maps[0], rgb0=maps[1])
        model = self.config.model
        work.depth0, work.valid, _ = encode_depth(
            maps[2], maps[3], model.transformer.patch_size, model.depth.sky
        )
        known = work.valid.flatten(1).any(dim=1).float().cpu()
        work.counts = dict.fromkeys(self.weights, known)
        return work

    def terms(self, model: nn.Module, work: Noisy) -> dict[str, Tensor]:
        """The refined depth's error, and that of the transformer's."""
        return {
            "depth": self._error(model(work.depth_t, work.rgb0), work),
            "unrefined": self._error(work.depth_t, work),
        }

    def _error(self, contracted: Tensor, work: Noisy) -> Tensor:
        """(b,): mean of ``relative_depth_loss`` over what was measured of each sample."""
        model = self.config.model
        tokens = patchify(contracted.float()[:, 0], model.transformer.patch_size)
        level = torch.ones(len(tokens), device=self.device)
        off, count = relative_depth_loss(
            tokens, work.depth0, level, 1.0, model.depth.far_threshold, work.valid.float()
        )
        return off / count.clamp_min(1)

    @torch.no_grad()
    def _estimate(self, batch: Batch, number: int) -> tuple[Tensor, Tensor, int]:
        """(b, 1, H, W) contracted depth, (b, 3, H, W) images, and the tokens of one sample."""
        config, refine, seed = self.config, self.config.refine, self.config.seed
        latents = self.encoders.latents(batch)
        generator = generator_for(seed, number, randomness.TEXT)
        wordless, decoded, unclean, level = torch.rand(4, config.batch, generator=generator)[:, batch.slots]
        captions = zip(batch.captions, (wordless < refine.wordless).tolist(), strict=True)
        text = self.encoders.text(["" if dropped else caption for caption, dropped in captions])
        rows, cols = latents.shape[-2:]
        rgb = latents.flatten(2).transpose(1, 2)
        patch = config.model.transformer.patch_size
        like = rgb.new_empty(len(batch), rows * cols, patch**2)
        noise = noise_for(seed, number, randomness.DEPTH_NOISE, batch.slots, like)
        t_rgb = torch.where(unclean < refine.unclean, refine.noisiest * level, 0.0).to(self.device)
        rgb_noise = noise_for(seed, number, randomness.RGB_NOISE, batch.slots, rgb)
        rope = self.rope(text_ids(text.shape[1]), image_ids(rows, cols), depth_ids(rows, cols))
        found = self.reader(interpolate(rgb, rgb_noise, t_rgb), noise, text, rope, t_rgb)
        assert batch.images is not None
        images = batch.images.to(self.device, copy=True)
        seen = (decoded < refine.decoded).to(self.device)
        if bool(seen.any()):
            images[seen] = self.encoders.autoencoder.decode(latents[seen]).clamp(-1, 1)
        return unpatchify(found, rows, cols, patch)[:, None], images, text.shape[1] + 2 * rows * cols
