"""The one door to a model: text -> RGB-D, image -> depth, depth -> image; completion and inpainting.

Assembles model, codecs and flow. Every task is the same sampler on another schedule of noise-level pairs.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import modality_forcing
from modality_forcing.checkpoint.layouts import Checkpoint, open_checkpoint
from modality_forcing.codecs.depth import encode_depth, fill_missing, surfaces
from modality_forcing.codecs.edges import along_edges
from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import decode_image, pixels_to_tensor, tensor_to_pixels
from modality_forcing.codecs.text import CachedTextEncoder, TextEncoder, make_text_encoder
from modality_forcing.config import ModelConfig, SamplerConfig
from modality_forcing.devices import memory_advice, resolve_device, resolve_dtype
from modality_forcing.editing.assembled import DEFAULT, Intrinsics, contracted_depth, image_item
from modality_forcing.editing.completion import Completion
from modality_forcing.editing.inpainting import Inpainting
from modality_forcing.engine import Engine, Item, OnStep, Settings
from modality_forcing.errors import UserError
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.schedule import depth_to_image_schedule, image_to_depth_schedule, joint_schedule
from modality_forcing.geometry.camera import resolve_camera
from modality_forcing.inputs import (
    area_of,
    check_depth,
    check_image,
    check_size,
    listed,
    one_each,
    pair_up,
)
from modality_forcing.model.autoencoder import Autoencoder
from modality_forcing.model.base import DiffusionTransformer
from modality_forcing.model.refiner import DepthRefiner
from modality_forcing.types import RGBD, PerModality

EMBEDDED = {"lowpoly": Path(__file__).parent / "weights" / "lowpoly"}
"""Models that come with the package."""


def user_cache() -> Path:
    """This user's cache: ``$XDG_CACHE_HOME/modality-forcing``, else ``~/.cache/modality-forcing``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "modality-forcing"


class Pipeline(Completion, Inpainting):
    """A loaded model with its codecs. Build one with :meth:`from_pretrained`, then call its tasks;
    ``complete`` and ``inpaint`` stand in ``editing/``.

    Attributes:
        config: the model's configuration; ``config.sampler`` holds its defaults.
        refiner: sharpens every depth that is decoded; None in most models.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: TextEncoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        compile: bool = False,
        release_text: bool = False,
    ) -> None:
        self.config: ModelConfig = checkpoint.config
        self.device = device
        self.checkpoint: Checkpoint | None = checkpoint
        with memory_advice():
            self.autoencoder = checkpoint.load_autoencoder(dtype, device).requires_grad_(False)
            self.refiner = checkpoint.load_refiner(device)
            transformer = checkpoint.load_transformer(dtype, device).requires_grad_(False)
        if not transformer.has_depth:
            raise UserError(f"{checkpoint.path} is a text-to-image model; an RGB-D model is needed")
        self.engine = Engine(transformer, text, self.config.flow, compile=compile, release_text=release_text)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "lowpoly",
        *,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        text_encoder: TextEncoder | str | None = None,
        text_cache: str | Path | None = DEFAULT,
        autoencoder: str | Path | None = None,
        compile: bool = False,
    ) -> Pipeline:
        """Load a model.

        Args:
            source: "lowpoly" (embedded, offline), a folder (our layout or the release's), or a Hub id.
            device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1", "mps".
            dtype: "float32" or "bfloat16"; None: float32 on CPU, bfloat16 elsewhere. The depth head, the
                path and the sampler state stay float32. float16 overflows in this model and is refused.
            text_encoder: an encoder, or where its weights are; None: the model's own. A large encoder is
                freed after each use, before sampling.
            text_cache: folder that keeps the embeddings of prompts; None keeps none. By default the user's
                cache folder for a large encoder, and none for the small one, which is as fast.
            autoencoder: another source for the autoencoder.
            compile: ``torch.compile`` the transformer (slow first call).

        Raises:
            UserError: unknown source, device or dtype; files missing, damaged or not fitting.
        """
        started = time.perf_counter()
        chosen = resolve_device(device)
        precision = resolve_dtype(dtype, chosen)
        checkpoint = open_checkpoint(EMBEDDED.get(str(source), source), autoencoder=autoencoder)
        large = checkpoint.config.text.encoder != "minilm"
        if text_encoder is None or isinstance(text_encoder, str):
            text_config = checkpoint.config.text
            if text_encoder is not None:
                text_config = dataclasses.replace(text_config, source=text_encoder)
            text_encoder = make_text_encoder(text_config, device=chosen)
        if text_encoder.width != checkpoint.config.transformer.text_width:
            raise UserError(
                f"the text encoder gives {text_encoder.width} channels, the model needs "
                f"{checkpoint.config.transformer.text_width}: it was trained with another encoder"
            )
        if text_cache is DEFAULT:
            text_cache = user_cache() / "text" if large else None
        if text_cache is not None:
            text_encoder = CachedTextEncoder(text_encoder, text_cache)
        pipeline = cls(
            checkpoint, text_encoder, device=chosen, dtype=precision, compile=compile, release_text=large
        )
        pipeline.timings["load"] = time.perf_counter() - started
        return pipeline

    @classmethod
    def around(
        cls,
        config: ModelConfig,
        transformer: DiffusionTransformer,
        autoencoder: Autoencoder,
        text: TextEncoder,
        refiner: DepthRefiner | None = None,
    ) -> Pipeline:
        """A pipeline on modules that somebody else owns, such as a training run that looks at itself.

        Nothing is copied or moved, and nothing is frozen. The results name no weight files.
        """
        pipeline = cls.__new__(cls)
        pipeline.config, pipeline.autoencoder, pipeline.refiner = config, autoencoder, refiner
        pipeline.checkpoint = None
        pipeline.engine = Engine(transformer, text, config.flow)
        pipeline.device = pipeline.engine.device
        return pipeline

    @cached_property
    def weights_hash(self) -> dict[str, str]:
        """SHA-256 of each weight file."""
        return {} if self.checkpoint is None else self.checkpoint.sha256()

    @property
    def timings(self) -> dict[str, float]:
        """Seconds per stage ("load", "text", "encode", "sample", "decode") since the model was loaded."""
        return self.engine.timings

    @property
    def sampler_defaults(self) -> SamplerConfig:
        """Steps, guidance, tilt and size when a call does not give them."""
        return self.config.sampler

    # -- the three tasks -------------------------------------------------------------------------------

    def joint(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        log2_alpha: float | None = DEFAULT,
        refine_depth: bool | None = None,
        guide_image_only: bool | None = None,
        guidance_parallel: float | None = None,
        edge_radius: int | None = None,
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
        batch_size: int = 8,
    ) -> list[RGBD]:
        """Text to image and depth.

        Args:
            prompt: one text or several; "" is unconditional.
            seed: one per item, or one number: item i gets seed + i. None: drawn, and kept in ``provenance``.
            steps: Euler steps, at least 1.
            guidance: classifier-free guidance, >= 0; 1 is none.
            size: (width, height) in pixels; any size, the inside is padded to whole tokens.
            log2_alpha: tilt: > 0 image first, 0 diagonal, < 0 depth first, None both on their own grid.
            refine_depth: a second image-to-depth pass on the generated latents.
            guide_image_only: ``guidance`` pulls the image alone, not the depth.
            guidance_parallel: what is kept of guidance along the clean image itself, 0..1; 1 is plain
                guidance, less saturates less.
            edge_radius: decoded depth follows the image's edges, by windows of this radius in pixels inside
                the model (``codecs.edges``); 0: it stays as the model wrote it.
            fov_x, fov_y, intrinsics: the camera assumed for the cloud; see ``geometry.camera``.
            on_step: called after each step with the state and the clean estimates.
            batch_size: items computed together; does not change any result beyond rounding.

        Returns:
            One :class:`RGBD` per prompt (or per seed, when one prompt comes with several), depth relative.
        """
        d = self.sampler_defaults
        settings = Settings.checked(
            d, "joint", steps, d.guidance if guidance is None else guidance,
            d.log2_alpha if log2_alpha is DEFAULT else log2_alpha,
            d.refine_depth if refine_depth is None else refine_depth,
            guide_image_only=d.guide_image_only if guide_image_only is None else guide_image_only,
            guidance_parallel=guidance_parallel, edge_radius=edge_radius,
        )  # fmt: skip
        width, height = check_size(size or (d.width, d.height))
        frame = Frame.exact(width, height, self._cell)
        camera = resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
        items = [
            Item(frame, self.engine.noise(item_seed, frame), text, item_seed)
            for text, item_seed in zip(*pair_up(prompt, seed), strict=True)
        ]
        schedule = joint_schedule(settings.steps, self.config.flow, log2_alpha=settings.log2_alpha)
        found = self.engine.run(items, schedule, settings.pull, on_step, batch_size)
        if settings.refine_depth:
            again = [
                dataclasses.replace(item, start=PerModality(rgb=x.rgb, depth=item.start.depth))
                for item, x in zip(items, found, strict=True)
            ]
            count = d.steps_of("i2d") if steps is None else settings.steps
            refine = image_to_depth_schedule(count, self.config.flow)
            found = self.engine.run(again, refine, Guidance(d.guidance_i2d), on_step, batch_size)
        results = []
        for item, x in zip(items, found, strict=True):
            image = self._decode_image(x.rgb, frame)
            depth, mask = self._decode_depth(x.depth, frame, image, settings.edge_radius)
            results.append(RGBD(image, depth, mask, camera, "relative", self._provenance(settings, item)))
        return results

    def image_to_depth(
        self,
        image: np.ndarray | Sequence[np.ndarray],
        *,
        prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        edge_radius: int | None = None,
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
        batch_size: int = 8,
    ) -> list[RGBD]:
        """Image to depth at the image's own size; the colours of the result are the given pixels.

        Args:
            image: uint8 (H, W, 3) sRGB, one or several of any sizes.
            prompt: optional description, one for all or one per image.
            size: (width, height) whose area the model works at; None: the model's own.
            Others: see :meth:`joint`.

        Returns:
            One :class:`RGBD` per image, depth relative.
        """
        d = self.sampler_defaults
        pull = d.guidance_i2d if guidance is None else guidance
        settings = Settings.checked(d, "i2d", steps, pull, None, False, edge_radius=edge_radius)
        images = listed("image", image, 3)
        for picture in images:
            check_image(picture)
        prompts, seeds = pair_up(prompt, seed, len(images))
        area = area_of(size or (d.width, d.height))
        schedule = image_to_depth_schedule(settings.steps, self.config.flow)
        items, cameras = [], []
        for picture, text, item_seed in zip(images, prompts, seeds, strict=True):
            height, width = picture.shape[:2]
            cameras.append(resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics))
            items.append(image_item(self, picture, area, text, item_seed))
        found = self.engine.run(items, schedule, settings.pull, on_step, batch_size)
        results = []
        for picture, camera, item, x in zip(images, cameras, items, found, strict=True):
            depth, mask = self._decode_depth(x.depth, item.frame, picture, settings.edge_radius)
            results.append(RGBD(picture, depth, mask, camera, "relative", self._provenance(settings, item)))
        return results

    def depth_to_image(
        self,
        prompt: str | Sequence[str],
        depth: np.ndarray | Sequence[np.ndarray],
        *,
        mask: np.ndarray | Sequence[np.ndarray] | None = None,
        depth_unit: str = "relative",
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        guidance_depth: float | None = None,
        guidance_parallel: float | None = None,
        size: tuple[int, int] | None = None,
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
        batch_size: int = 8,
    ) -> list[RGBD]:
        """Depth (dense or with holes) and text to an image at the depth map's own size.

        Args:
            depth: float (H, W) z-depth in any unit. NaN, 0, negative values and ``mask`` False are unknown:
                they never reach the mean and the model sees noise there. +inf is unknown or, for a model
                that knows the sky, "at infinity".
            mask: bool (H, W), True where depth may be used.
            depth_unit: unit of ``depth``, kept for the result.
            guidance_depth: how strongly the image follows the depth, >= 0; 1 is as the model learned it,
                anything else costs a forward pass more in each step.
            Others: see :meth:`joint` and :meth:`image_to_depth`.

        Returns:
            One :class:`RGBD` per item with the given depth.

        Raises:
            UserError: a map of wrong rank, a mask of another size, or no valid pixel.
        """
        d = self.sampler_defaults
        pull = d.guidance_of("d2i") if guidance is None else guidance
        settings = Settings.checked(
            d, "d2i", steps, pull, None, False,
            guidance_depth=d.guidance_depth if guidance_depth is None else guidance_depth,
            guidance_parallel=guidance_parallel, edge_radius=0,  # no depth is decoded
        )  # fmt: skip
        maps = listed("depth map", depth, 2)
        masks = one_each("masks", mask, len(maps), "depth maps")
        checked = [check_depth(m, k, self.config.depth.sky) for m, k in zip(maps, masks, strict=True)]
        prompts, seeds = pair_up(prompt, seed, len(maps))
        area = area_of(size or (d.width, d.height))
        schedule = depth_to_image_schedule(settings.steps, self.config.flow)
        items, cameras = [], []
        for (values, _), text, item_seed in zip(checked, prompts, seeds, strict=True):
            height, width = values.shape
            frame = Frame.fitted(width, height, area, self._cell)
            cameras.append(resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics))
            grid = frame.scale_depth(torch.from_numpy(values)[None, None])[:, 0].to(self.device)
            tokens, known, _ = encode_depth(grid, None, self._cell, self.config.depth.sky)
            noise = self.engine.noise(item_seed, frame)
            start = PerModality(rgb=noise.rgb, depth=fill_missing(tokens, known, noise.depth))
            items.append(Item(frame, start, text, item_seed))
        found = self.engine.run(items, schedule, settings.pull, on_step, batch_size)
        results = []
        for (values, valid), camera, item, x in zip(checked, cameras, items, found, strict=True):
            image = self._decode_image(x.rgb, item.frame)
            kept = np.where(valid, values, 0.0).astype(np.float32)
            results.append(RGBD(image, kept, valid, camera, depth_unit, self._provenance(settings, item)))
        return results

    # -- pieces ----------------------------------------------------------------------------------------

    @property
    def _cell(self) -> int:
        return self.config.transformer.patch_size

    def _decode_image(self, tokens: Tensor, frame: Frame) -> np.ndarray:
        """Image tokens (1, N, C) to uint8 (H, W, 3) at the frame's outer size."""
        with self.engine.timed("decode"), memory_advice():
            pixels = decode_image(self.autoencoder, tokens, frame.rows, frame.cols).cpu()
            restored = frame.restore(pixels, "bicubic" if frame.scaled_width < frame.width else "bilinear")
            return tensor_to_pixels(restored)[0]

    def _decode_depth(
        self, tokens: Tensor, frame: Frame, image: np.ndarray, edge_radius: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Depth tokens (1, N, C) to a float32 (H, W) map and its mask at the frame's outer size.

        ``image``, uint8 (H, W, 3) of that size, gives the edges to a refiner and where ``edge_radius`` is not
        0. All happens on the contracted values, where far surfaces do not outweigh near ones.
        """
        contracted = contracted_depth(self, tokens, frame, image)
        limit = self.config.depth.sky_limit
        if edge_radius:
            depth, mask = along_edges(contracted, pixels_to_tensor(image), frame, edge_radius, limit)
        else:
            depth, mask = surfaces(frame.restore(contracted), limit)
        return depth[0, 0].numpy(), mask[0, 0].numpy()

    def _provenance(self, settings: Settings, item: Item) -> dict[str, Any]:
        """Everything needed to repeat this item."""
        return {
            "prompt": item.prompt,
            "seed": item.seed,
            **dataclasses.asdict(settings),
            "schedule": {"mu": self.config.flow.shift_mu, "sigma": self.config.flow.shift_sigma},
            "inside_size": {"width": item.frame.grid_width, "height": item.frame.grid_height},
            "model": {
                "id": self.config.name if self.checkpoint is None else str(self.checkpoint.path.name),
                "name": self.config.name,
                "sha256": self.weights_hash,
            },
            "text_encoder": self.engine.text.fingerprint,
            "device": str(self.device),
            "dtype": str(self.engine.transformer.dtype).removeprefix("torch."),
            "versions": {
                "modality_forcing": modality_forcing.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
