"""The one door to a model: text -> RGB-D, image -> depth, depth -> image.

Assembles model, codecs and flow. Every task is the same sampler on another schedule of noise-level pairs.
"""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import modality_forcing
from modality_forcing.checkpoint.layouts import Checkpoint, open_checkpoint
from modality_forcing.codecs.depth import encode_depth, expand, fill_missing, unpatchify
from modality_forcing.codecs.frame import Frame
from modality_forcing.codecs.image import decode_image, encode_image, pixels_to_tensor, tensor_to_pixels
from modality_forcing.codecs.positions import depth_ids, image_ids, text_ids
from modality_forcing.codecs.text import CachedTextEncoder, TextEncoder, make_text_encoder
from modality_forcing.config import ModelConfig, SamplerConfig
from modality_forcing.errors import OutOfMemoryError, UserError
from modality_forcing.flow.guidance import guided
from modality_forcing.flow.sampler import Step, sample
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)
from modality_forcing.geometry.camera import resolve_camera
from modality_forcing.inputs import (
    MAX_STEPS,
    area_of,
    check_depth,
    check_image,
    check_number,
    check_size,
    chunks,
    pair_up,
    resolve_device,
    resolve_dtype,
)
from modality_forcing.types import RGBD, Camera, PerModality

OnStep = Callable[[Step], None]
Intrinsics = Camera | np.ndarray | Sequence[float] | None

DEFAULT: Any = type("Default", (), {"__repr__": lambda self: "DEFAULT"})()
"""Marks "the model's own default" where None means something else."""

EMBEDDED = {"lowpoly": Path(__file__).parent / "weights" / "lowpoly"}
"""Models that come with the package."""


@dataclass(frozen=True)
class Settings:
    """Resolved settings of one call; they go into ``metadata.json`` as they are."""

    task: str
    steps: int
    guidance: float
    log2_alpha: float | None
    refine_depth: bool


class Pipeline:
    """A loaded model with its codecs. Build one with :meth:`from_pretrained`, then call its three tasks.

    Attributes:
        config: the model's configuration; ``config.sampler`` holds its defaults.
        timings: seconds per stage ("load", "text", "sample", "encode", "decode") summed since the last reset.
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
        self.text = text
        self.release_text = release_text
        self.checkpoint = checkpoint
        self.autoencoder = checkpoint.load_autoencoder(dtype, device).requires_grad_(False)
        self.transformer = checkpoint.load_transformer(dtype, device).requires_grad_(False)
        if not self.transformer.has_depth:
            raise UserError(f"{checkpoint.path} is a text-to-image model; an RGB-D model is needed")
        self._forward = torch.compile(self.transformer) if compile else self.transformer
        self.timings: dict[str, float] = {}

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "lowpoly",
        *,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        text_encoder: TextEncoder | str | None = None,
        text_cache: str | Path | None = None,
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
            text_cache: folder that keeps the embeddings of prompts of a large encoder.
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
        if text_cache is not None:
            text_encoder = CachedTextEncoder(text_encoder, text_cache)
        pipeline = cls(
            checkpoint, text_encoder, device=chosen, dtype=precision, compile=compile, release_text=large
        )
        pipeline.timings["load"] = time.perf_counter() - started
        return pipeline

    @cached_property
    def weights_hash(self) -> dict[str, str]:
        """SHA-256 of each weight file."""
        return self.checkpoint.sha256()

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
            fov_x, fov_y, intrinsics: the camera assumed for the cloud; see ``geometry.camera``.
            on_step: called after each step with the state and the clean estimates.
            batch_size: items computed together; does not change any result beyond rounding.

        Returns:
            One :class:`RGBD` per prompt (or per seed, when one prompt comes with several), depth relative.
        """
        d = self.sampler_defaults
        settings = self._settings(
            "joint",
            steps,
            d.guidance if guidance is None else guidance,
            d.log2_alpha if log2_alpha is DEFAULT else log2_alpha,
            d.refine_depth if refine_depth is None else refine_depth,
        )
        width, height = check_size(size or (d.width, d.height))
        frame = Frame.exact(width, height, self._cell)
        camera = resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
        prompts, seeds = pair_up(prompt, seed)
        schedule = joint_schedule(settings.steps, self.config.flow, log2_alpha=settings.log2_alpha)
        results = []
        for part in chunks(len(prompts), batch_size):
            noise = [self._noise(s, frame) for s in seeds[part]]
            start = PerModality(
                rgb=torch.cat([n.rgb for n in noise]), depth=torch.cat([n.depth for n in noise])
            )
            text = self._encode_text(prompts[part])
            x = self._sample(start, schedule, text, settings.guidance, frame, on_step)
            if settings.refine_depth:
                again = PerModality(rgb=x.rgb, depth=start.depth)
                refine = image_to_depth_schedule(settings.steps, self.config.flow)
                x = self._sample(again, refine, text, d.guidance_i2d, frame, on_step)
            images = self._decode_images(x.rgb, frame)
            depths, masks = self._decode_depths(x.depth, frame)
            for i, (item, item_seed) in enumerate(zip(prompts[part], seeds[part], strict=True)):
                provenance = self._provenance(settings, item, item_seed, frame)
                results.append(RGBD(images[i], depths[i], masks[i], camera, "relative", provenance))
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
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
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
        settings = self._settings("i2d", steps, d.guidance_i2d if guidance is None else guidance, None, False)
        images = [image] if isinstance(image, np.ndarray) and image.ndim == 3 else list(image)
        for picture in images:
            check_image(picture)
        prompts, seeds = pair_up(prompt, seed, len(images))
        area = area_of(size or (d.width, d.height))
        schedule = image_to_depth_schedule(settings.steps, self.config.flow)
        results = []
        for picture, text, item_seed in zip(images, prompts, seeds, strict=True):
            height, width = picture.shape[:2]
            frame = Frame.fitted(width, height, area, self._cell)
            camera = resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
            with self._timed("encode"):
                tokens = encode_image(self.autoencoder, frame.scale_image(pixels_to_tensor(picture)))
            # Image to depth draws no image noise, so depth takes the seed's first draw.
            noise = self._noise(item_seed, frame, rgb=False)
            start = PerModality(rgb=tokens.to(self.device), depth=noise.depth)
            x = self._sample(start, schedule, self._encode_text([text]), settings.guidance, frame, on_step)
            depths, masks = self._decode_depths(x.depth, frame)
            provenance = self._provenance(settings, text, item_seed, frame)
            results.append(RGBD(picture, depths[0], masks[0], camera, "relative", provenance))
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
        size: tuple[int, int] | None = None,
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
    ) -> list[RGBD]:
        """Depth (dense or with holes) and text to an image at the depth map's own size.

        Args:
            depth: float (H, W) z-depth in any unit. NaN, 0, negative values and ``mask`` False are unknown:
                they never reach the mean and the model sees noise there. +inf is unknown or, for a model
                that knows the sky, "at infinity".
            mask: bool (H, W), True where depth may be used.
            depth_unit: unit of ``depth``, kept for the result.
            Others: see :meth:`joint` and :meth:`image_to_depth`.

        Returns:
            One :class:`RGBD` per item with the given depth.

        Raises:
            UserError: a map of wrong rank, a mask of another size, or no valid pixel.
        """
        d = self.sampler_defaults
        settings = self._settings("d2i", steps, d.guidance if guidance is None else guidance, None, False)
        maps = [depth] if isinstance(depth, np.ndarray) and depth.ndim == 2 else list(depth)
        masks = [mask] * len(maps) if mask is None or isinstance(mask, np.ndarray) else list(mask)
        if len(masks) != len(maps):
            raise UserError(f"{len(masks)} masks for {len(maps)} depth maps")
        checked = [check_depth(m, k, self.config.depth.sky) for m, k in zip(maps, masks, strict=True)]
        prompts, seeds = pair_up(prompt, seed, len(maps))
        area = area_of(size or (d.width, d.height))
        schedule = depth_to_image_schedule(settings.steps, self.config.flow)
        results = []
        for (values, valid), text, item_seed in zip(checked, prompts, seeds, strict=True):
            height, width = values.shape
            frame = Frame.fitted(width, height, area, self._cell)
            camera = resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
            grid = frame.scale_depth(torch.from_numpy(values)[None, None])[:, 0].to(self.device)
            tokens, known, _ = encode_depth(grid, None, self._cell, self.config.depth.sky)
            noise = self._noise(item_seed, frame)
            start = PerModality(rgb=noise.rgb, depth=fill_missing(tokens, known, noise.depth))
            x = self._sample(start, schedule, self._encode_text([text]), settings.guidance, frame, on_step)
            image = self._decode_images(x.rgb, frame)[0]
            provenance = self._provenance(settings, text, item_seed, frame)
            kept = np.where(valid, values, 0.0).astype(np.float32)
            results.append(RGBD(image, kept, valid, camera, depth_unit, provenance))
        return results

    # -- pieces ----------------------------------------------------------------------------------------

    @property
    def _cell(self) -> int:
        return self.config.transformer.patch_size

    def _settings(
        self, task: str, steps: int | None, guidance: float, log2_alpha: float | None, refine: bool
    ) -> Settings:
        steps = self.sampler_defaults.steps if steps is None else steps
        check_number("steps", steps, 1, MAX_STEPS)
        check_number("guidance", guidance, 0.0, 100.0)
        if log2_alpha is not None:
            check_number("log2_alpha", log2_alpha, -20.0, 20.0)
        return Settings(task, int(steps), float(guidance), log2_alpha, refine)

    def _noise(self, seed: int, frame: Frame, rgb: bool = True) -> PerModality[Tensor]:
        """One item's noise, image first, drawn on the CPU: equal on every device and in every batch."""
        generator = torch.Generator().manual_seed(seed)
        num = frame.rows * frame.cols
        config = self.config.transformer
        assert config.depth_channels is not None
        image = torch.randn(1, num, config.latent_channels, generator=generator) if rgb else torch.empty(0)
        depth = torch.randn(1, num, config.depth_channels, generator=generator)
        return PerModality(rgb=image.to(self.device), depth=depth.to(self.device))

    def _encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C) of the prompts and (1, T, C) of the empty prompt."""
        with self._timed("text"):
            tokens = self.text.encode([*prompts, ""]).to(self.device, self.transformer.dtype)
            if self.release_text:
                self.text.release()
            return tokens[:-1], tokens[-1:]

    @torch.no_grad()
    def _sample(
        self,
        start: PerModality[Tensor],
        schedule: Schedule,
        texts: tuple[Tensor, Tensor],
        guidance: float,
        frame: Frame,
        on_step: OnStep | None,
    ) -> PerModality[Tensor]:
        """Integrate along a schedule, guided."""
        text, null = texts
        rope = self.transformer.rope(
            text_ids(text.shape[1], self.device),
            image_ids(frame.rows, frame.cols, self.device),
            depth_ids(frame.rows, frame.cols, self.device),
        )
        embedded = self.config.transformer.guidance_embedding

        def forward(x: PerModality[Tensor], tokens: Tensor, t: PerModality[Tensor]) -> PerModality[Tensor]:
            level = torch.full_like(t.rgb, guidance) if embedded else None
            rgb, depth = self._forward(x.rgb, x.depth, tokens, rope, t.rgb, t.depth, level)
            return PerModality(rgb=rgb, depth=depth)

        with self._timed("sample"), _memory_advice():
            # A model that embeds its guidance is not guided a second time from outside.
            predict = guided(forward, text, null, 1.0 if embedded else guidance)
            return sample(predict, start, schedule, self.config.flow, on_step)

    def _decode_images(self, tokens: Tensor, frame: Frame) -> list[np.ndarray]:
        """Image tokens to uint8 (H, W, 3) at the frame's outer size."""
        with self._timed("decode"), _memory_advice():
            pixels = decode_image(self.autoencoder, tokens, frame.rows, frame.cols).cpu()
            restored = frame.restore(pixels, "bicubic" if frame.scaled_width < frame.width else "bilinear")
            return list(tensor_to_pixels(restored))

    def _decode_depths(self, tokens: Tensor, frame: Frame) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Depth tokens to float32 (H, W) maps and their masks at the frame's outer size.

        Scaling happens on the contracted values, where far surfaces do not outweigh near ones.
        """
        contracted = unpatchify(tokens.float().cpu(), frame.rows, frame.cols, self._cell)
        restored = frame.restore(contracted[:, None])[:, 0]
        # A model that does not know the sky calls every pixel a surface.
        limit = self.config.depth.far_threshold if self.config.depth.sky == "far" else float("inf")
        return list(expand(restored).numpy()), list((restored < limit).numpy())

    def _provenance(self, settings: Settings, prompt: str, seed: int, frame: Frame) -> dict[str, Any]:
        """Everything needed to repeat this item."""
        return {
            "prompt": prompt,
            "seed": seed,
            **dataclasses.asdict(settings),
            "schedule": {"mu": self.config.flow.shift_mu, "sigma": self.config.flow.shift_sigma},
            "inside_size": {"width": frame.grid_width, "height": frame.grid_height},
            "model": {
                "id": str(self.checkpoint.path.name),
                "name": self.config.name,
                "sha256": self.weights_hash,
            },
            "text_encoder": self.text.fingerprint,
            "device": str(self.device),
            "dtype": str(self.transformer.dtype).removeprefix("torch."),
            "versions": {
                "modality_forcing": modality_forcing.__version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - started


@contextmanager
def _memory_advice() -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            "the device ran out of memory; lower --size or --num-images, use --dtype bfloat16, "
            "or use --device cpu"
        ) from error
