"""A training run looks at itself: sample grids and validation with the averaged weights, always on the same
prompts, pictures and seeds. Nothing random of the training is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import decode_image, pixels_to_tensor, tensor_to_pixels
from modality_forcing.config import LogConfig, ModelConfig, TrainConfig
from modality_forcing.engine import sample_images
from modality_forcing.errors import UserError
from modality_forcing.evaluation.metrics import mean_score, score_depth
from modality_forcing.io.atomic import atomic_file
from modality_forcing.pipeline import Pipeline
from modality_forcing.training.buckets import fit
from modality_forcing.types import Sample
from modality_forcing.viz import colorize, contact_sheet

SHOWN = 4
"""Prompts, and pictures of the validation data, in a sample grid."""
TILE = 128  # pixels: the height of one picture in it
BATCH = 8


@dataclass(frozen=True)
class Parts:
    """What a stage has to look at. ``model`` holds the weights to look at already.

    Attributes:
        model: the autoencoder and the refiner in their own stages, else the transformer.
        autoencoder: the frozen one; None in the autoencoder's own stage.
        encode: texts -> (B, T, C).
        estimator: the frozen transformer; None where ``model`` is one.
    """

    model: Any
    autoencoder: Any = None
    encode: Callable[[list[str]], Tensor] | None = None
    estimator: Any = None


class _Text:
    """The frozen text encoder of a run as a :class:`~modality_forcing.codecs.text.TextEncoder`."""

    def __init__(self, encode: Callable[[list[str]], Tensor], width: int, max_tokens: int) -> None:
        self._encode = encode
        self.width, self.max_tokens = width, max_tokens
        self.fingerprint = "training"

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, T, C)."""
        return self._encode(list(prompts))

    def token_counts(self, prompts: Sequence[str]) -> list[int]:
        """Not asked for while training."""
        return [self.max_tokens] * len(prompts)

    def release(self) -> None:
        """The training goes on to use it."""


def read_validation(log: LogConfig) -> list[Sample]:
    """The first ``validation_count`` samples of ``log.validation``; empty when nothing is to be shown.

    Raises:
        UserError: the folder is missing or empty.
    """
    if not (log.sample_every or log.validate_every):
        return []
    if not log.validation:
        if log.validate_every or not log.prompts:
            raise UserError(
                "log.validation is empty; name a folder of shards to validate on, "
                "or set log.validate_every=0 and give log.prompts"
            )
        return []
    from modality_forcing.data.shards import ShardSet

    shards = ShardSet(log.validation)
    count = log.validation_count if log.validate_every else min(SHOWN, log.validation_count)
    return [shards.read(index) for index in range(min(count, len(shards)))]


class Monitor:
    """Draws and validates; every process of a distributed run calls it, the first one writes."""

    def __init__(self, config: TrainConfig, samples: Sequence[Sample]) -> None:
        self.config = config
        steps = config.log.sample_steps or config.model.sampler.steps
        self.model_config: ModelConfig = replace(
            config.model, sampler=replace(config.model.sampler, steps=steps)
        )
        self.samples = list(samples)
        captions = [s.captions[len(s.captions) // 2] if s.captions else "" for s in self.samples]
        self.prompts = list(config.log.prompts or captions)[:SHOWN]
        self.size = (config.image_size, config.image_size)

    def draw(self, parts: Parts) -> np.ndarray:
        """The sample grid, uint8 (H, W, 3)."""
        with _looking(parts.model):
            if self.config.stage == "autoencoder":
                return self._draw_autoencoder(parts)
            if self.config.stage == "t2i":
                return self._draw_images(parts)
            return self._draw_both(parts)

    def validate(self, parts: Parts) -> dict[str, float]:
        """Numbers by name: PSNR in the autoencoder's stage, none in text to image, else depth errors."""
        with _looking(parts.model):
            if self.config.stage == "autoencoder":
                pairs = [self._reconstruct(parts.model, s) for s in self.samples]
                errors = [np.mean((a.astype(float) - b.astype(float)) ** 2) for a, b in pairs]
                return {"val_psnr": float(np.mean([10 * np.log10(255.0**2 / max(e, 1e-9)) for e in errors]))}
            if self.config.stage == "t2i":
                return {}
            pipeline = self._pipeline(parts)
            known = [s for s in self.samples if s.valid.any()]
            found = pipeline.image_to_depth([s.rgb for s in known], seed=0, size=self.size, batch_size=BATCH)
            row: dict[str, float] = {}
            for name, alignment in (("val", "scale"), ("val_affine", "affine")):
                pairs_ = zip(found, known, strict=True)
                score = mean_score([score_depth(r.depth, s.depth, alignment=alignment) for r, s in pairs_])
                row |= {f"{name}_abs_rel": score.abs_rel, f"{name}_delta1": score.delta1}
            return row

    # -- pictures --------------------------------------------------------------------------------------

    def _draw_autoencoder(self, parts: Parts) -> np.ndarray:
        """Each picture above what comes back."""
        pairs = [self._reconstruct(parts.model, s) for s in self.samples[: 2 * SHOWN]]
        return contact_sheet([[a for a, _ in pairs], [b for _, b in pairs]], tile=TILE)

    def _draw_images(self, parts: Parts) -> np.ndarray:
        """One image per prompt, above its prompt."""
        images = generate_images(parts, self.model_config, self.prompts, self.config.image_size)
        return contact_sheet([images], [self.prompts], tile=TILE)

    def _draw_both(self, parts: Parts) -> np.ndarray:
        """Joint generation; images and their depth; depths and their image."""
        pipeline = self._pipeline(parts)
        shown = self.samples[:SHOWN]
        rows, texts = [], []
        made = pipeline.joint(self.prompts, seed=0, size=self.size, batch_size=BATCH)
        rows.append([tile for r in made for tile in (r.rgb, colorize(r.depth, r.mask))])
        texts.append([text for prompt in self.prompts for text in (prompt, "depth")])
        if shown:
            found = pipeline.image_to_depth([s.rgb for s in shown], seed=0, size=self.size, batch_size=BATCH)
            rows.append([tile for r in found for tile in (r.rgb, colorize(r.depth, r.mask))])
            texts.append(["given image", "its depth"] * len(shown))
        known = [s for s in shown if s.valid.any()]
        if known:
            captions = [s.captions[-1] if s.captions else "" for s in known]
            back = pipeline.depth_to_image(
                captions, [s.depth for s in known], seed=0, size=self.size, batch_size=BATCH
            )
            rows.append([tile for r in back for tile in (colorize(r.depth, r.mask), r.rgb)])
            texts.append(["given depth", "its image"] * len(known))
        return contact_sheet(rows, texts, tile=TILE)

    # -- pieces ----------------------------------------------------------------------------------------

    def _pipeline(self, parts: Parts) -> Pipeline:
        assert parts.encode is not None
        text = _Text(
            parts.encode, self.model_config.transformer.text_width, self.model_config.text.max_tokens
        )
        if parts.estimator is None:
            return Pipeline.around(self.model_config, parts.model, parts.autoencoder, text)
        return Pipeline.around(self.model_config, parts.estimator, parts.autoencoder, text, parts.model)

    def _reconstruct(self, autoencoder: Any, one: Sample) -> tuple[np.ndarray, np.ndarray]:
        """A picture of the stage's size and what the autoencoder makes of it."""
        picture = fit(one, self.size).rgb
        images = pixels_to_tensor(picture).to(next(autoencoder.parameters()).device)
        sizes = self.model_config.autoencoder
        rows, columns = (side * sizes.PATCH // sizes.downscale for side in images.shape[-2:])
        # By its forward pass, as in training: only that gathers sharded weights.
        decoded, _ = autoencoder(images, images.new_zeros(1, sizes.z_channels, rows, columns))
        return picture, tensor_to_pixels(decoded.float().cpu())[0]


@torch.no_grad()
def generate_images(parts: Parts, config: ModelConfig, prompts: Sequence[str], size: int) -> list[np.ndarray]:
    """One square image of ``size`` pixels per prompt from a text-to-image model, seeds 0, 1, ..."""
    assert parts.encode is not None
    model = parts.model
    device = next(model.parameters()).device
    cells = size // config.transformer.patch_size
    texts = parts.encode([*prompts, ""]).to(device)
    noise = [
        torch.randn(
            cells * cells, config.transformer.latent_channels, generator=torch.Generator().manual_seed(i)
        )
        for i in range(len(prompts))
    ]
    frame = Frame.exact(size, size, config.transformer.patch_size)
    tokens = sample_images(
        model, torch.stack(noise).to(device), texts[:-1], texts[-1:], frame, config.flow,
        steps=config.sampler.steps, guidance=config.sampler.guidance,
        embedded=config.transformer.guidance_embedding,
    )  # fmt: skip
    return list(tensor_to_pixels(decode_image(parts.autoencoder, tokens, cells, cells).cpu()))


def save_picture(path: Path, pixels: np.ndarray) -> None:
    """A PNG, whole or not at all."""
    with atomic_file(path) as aside:
        Image.fromarray(pixels).save(aside)


@contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """The model as it is when it is used, without gradients; afterwards it trains on."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
