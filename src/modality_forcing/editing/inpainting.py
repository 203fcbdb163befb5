"""A part of an image and of its depth made anew, each with its own mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from modality_forcing.codecs.depth import contract, expand
from modality_forcing.codecs.frame import Frame
from modality_forcing.editing.assembled import (
    DEFAULT,
    Assembled,
    Intrinsics,
    depth_tokens,
    grid_depth,
    image_item,
    mask_tokens,
)
from modality_forcing.engine import Item, OnStep, Settings
from modality_forcing.errors import UserError
from modality_forcing.flow.guidance import Guidance
from modality_forcing.flow.held import Held
from modality_forcing.flow.schedule import (
    Schedule,
    depth_to_image_schedule,
    image_to_depth_schedule,
    joint_schedule,
)
from modality_forcing.geometry import completion as sparse
from modality_forcing.geometry.camera import resolve_camera
from modality_forcing.inputs import (
    MAX_SIDE,
    area_of,
    check_depth,
    check_image,
    check_mask,
    check_number,
    check_same_size,
    listed,
    one_each,
    pair_up,
)
from modality_forcing.types import RGBD, Camera, PerModality

FEATHER = 0.25
"""Width of the seam in cells of the model's grid (4 pixels where the picture is not scaled)."""

MAX_BEND = 1.0
"""Largest error of log depth that is carried into the hole: more is another surface, not a wrong scale."""


@dataclass
class _Scene:
    """One item of an inpainting. Masks are bool (H, W) of the picture, True where it is made anew."""

    image: np.ndarray
    new_rgb: np.ndarray
    new_depth: np.ndarray
    depth: np.ndarray | None
    """float32 (H, W), NaN unknown, +inf sky; None until it is estimated."""
    unit: float
    """What 1 of the model's own numbers is, in the unit of ``depth``."""
    estimated: bool
    camera: Camera
    clean: Item
    """The whole old image beside depth noise: image to depth of this item."""

    @property
    def kind(self) -> str:
        """Which streams are made: a stream with nothing to make is given, at level 0."""
        if not self.new_depth.any():
            return "rgb"
        return "both" if self.new_rgb.any() else "depth"


class Inpainting:
    """The method ``inpaint`` of a pipeline."""

    def inpaint(
        self: Assembled,
        prompts: str | Sequence[str],
        images: np.ndarray | Sequence[np.ndarray],
        masks: np.ndarray | Sequence[np.ndarray],
        depths: np.ndarray | Sequence[np.ndarray | None] | None = None,
        depth_masks: np.ndarray | Sequence[np.ndarray | None] | None = None,
        *,
        depth_unit: str = "relative",
        feather: int | None = None,
        seed: int | Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        log2_alpha: float | None = DEFAULT,
        edge_radius: int | None = None,
        fov_x: float | None = None,
        fov_y: float | None = None,
        intrinsics: Intrinsics = None,
        on_step: OnStep | None = None,
        batch_size: int = 8,
    ) -> list[RGBD]:
        """A part of an image and of its depth made anew, the rest kept.

        In every step the known part of both streams is put back at its noised true value: the image in whole
        cells of 16 pixels that hold no masked pixel, the depth pixel by pixel. A stream with nothing to make
        is given at level 0 instead, as in depth to image and image to depth.

        Args:
            prompts: what the picture shows when it is done; one for all or one per image. "" is allowed.
            images: uint8 (H, W, 3) sRGB, one or several of any sizes.
            masks: bool (H, W) of the image's size, True where the image is made anew; one for all or one
                each.
            depths: float (H, W) z-depth of the image's size, or None: estimated from the image first. NaN, 0
                and negative values are made anew, whatever the mask says.
            depth_masks: as ``masks`` for the depth; None: the image's.
            depth_unit: unit of ``depths``, kept for the result; estimated depth is "relative".
            feather: pixels outside the mask over which the new image fades into the old one; 0 is a hard
                edge. None: a quarter of a cell.
            Others: see ``joint`` and ``image_to_depth``.

        Returns:
            One :class:`RGBD` per image. Outside the mask and its feather the colours are exactly the given
            ones; outside the depth mask so is the depth.

        Raises:
            UserError: numbers or sizes that do not fit, a mask that is no bool array, or masks that leave
                nothing to make.
        """
        d = self.sampler_defaults
        settings = Settings.checked(
            d,
            "inpaint",
            steps,
            d.guidance if guidance is None else guidance,
            d.log2_alpha if log2_alpha is DEFAULT else log2_alpha,
            False,
            edge_radius=edge_radius,
        )
        if feather is not None:
            check_number("feather", feather, 0, MAX_SIDE)
        pictures = listed("image", images, 3)
        for picture in pictures:
            check_image(picture)
        num = len(pictures)
        image_masks = one_each("masks", masks, num)
        maps = one_each("depth maps", depths, num)
        own = one_each("depth masks", depth_masks, num)
        texts, seeds = pair_up(prompts, seed, num)
        area = area_of(size or (d.width, d.height))
        scenes = []
        for i, picture in enumerate(pictures):
            height, width = picture.shape[:2]
            new_rgb = image_masks[i]
            new_depth = new_rgb if own[i] is None else own[i]
            for name, mask in (("mask", new_rgb), ("depth mask", new_depth)):
                check_mask(f"{name} {i}", mask)
                check_same_size(f"{name} {i}", mask, picture)
            depth, unit = maps[i], 1.0
            if depth is not None:
                depth, _ = check_depth(depth, None, self.config.depth.sky)
                check_same_size(f"depth map {i}", depth, picture)
                new_depth = new_depth | np.isnan(depth)
                finite = np.isfinite(depth) & ~new_depth
                unit = float(depth[finite].astype(np.float64).mean()) if finite.any() else 1.0
            if not (new_rgb.any() or new_depth.any()):
                raise UserError(f"mask {i} is False everywhere; right is True where something is made anew")
            camera = resolve_camera(width, height, fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
            clean = image_item(self, picture, area, texts[i], seeds[i])
            scenes.append(_Scene(picture, new_rgb, new_depth, depth, unit, depth is None, camera, clean))

        # Depth that was not given is estimated from the whole old picture.
        unknown = [scene for scene in scenes if scene.depth is None]
        if unknown:
            schedule = image_to_depth_schedule(settings.steps, self.config.flow)
            items = [scene.clean for scene in unknown]
            found = self.engine.run(items, schedule, Guidance(d.guidance_i2d), on_step, batch_size)
            for scene, x in zip(unknown, found, strict=True):
                values, mask = self._decode_depth(
                    x.depth, scene.clean.frame, scene.image, settings.edge_radius
                )
                scene.depth = np.where(mask, values, np.inf).astype(np.float32)

        flow, count = self.config.flow, settings.steps
        schedules: dict[str, Schedule] = {
            "both": joint_schedule(count, flow, log2_alpha=settings.log2_alpha),
            "rgb": depth_to_image_schedule(count, flow),
            "depth": image_to_depth_schedule(count, flow),
        }
        results: list[RGBD | None] = [None] * num
        for kind, schedule in schedules.items():
            chosen = [i for i in range(num) if scenes[i].kind == kind]
            if not chosen:
                continue
            items = [_item(self, scenes[i]) for i in chosen]
            found = self.engine.run(items, schedule, settings.pull, on_step, batch_size)
            for i, item, x in zip(chosen, items, found, strict=True):
                scene = scenes[i]
                width = _feather(item.frame) if feather is None else int(feather)
                rgb = _image(self, scene, item, x.rgb, width)
                depth, mask = _depth(self, scene, item, x.depth, rgb, settings.edge_radius)
                note = {
                    "made_rgb": float(scene.new_rgb.mean()),
                    "made_depth": float(scene.new_depth.mean()),
                    "depth": "estimated" if scene.estimated else "given",
                    "feather": width,
                }
                record = {**self._provenance(settings, item), "inpainting": note}
                label = "relative" if scene.estimated else depth_unit
                results[i] = RGBD(rgb, depth, mask, scene.camera, label, record)
        return [result for result in results if result is not None]


def _grown(mask: np.ndarray, frame: Frame, cell: int) -> np.ndarray:
    """bool (rows, cols): cells of the grid that hold a masked pixel. Padding repeats the edge."""
    rows, cols = np.nonzero(mask)
    # Every grid pixel that looks at a masked pixel, and every one that a corner of a masked pixel lies in.
    grid: np.ndarray = _on_grid(mask, frame) > 0.5
    high, wide = frame.scaled_height / mask.shape[0], frame.scaled_width / mask.shape[1]
    for top in (np.floor(rows * high), np.ceil((rows + 1) * high) - 1):
        for left in (np.floor(cols * wide), np.ceil((cols + 1) * wide) - 1):
            grid[top.astype(int), left.astype(int)] = True
    grid[frame.scaled_height :] = grid[frame.scaled_height - 1]
    grid[:, frame.scaled_width :] = grid[:, frame.scaled_width - 1 : frame.scaled_width]
    return grid.reshape(frame.rows, cell, frame.cols, cell).any(axis=(1, 3))


def _on_grid(values: np.ndarray, frame: Frame) -> np.ndarray:
    """(H, W) -> (H, W) of the grid by nearest pixel, NaN in the padding."""
    return frame.scale_depth(torch.from_numpy(values.astype(np.float32))[None, None])[0, 0].numpy()


def _item(pipeline: Assembled, scene: _Scene) -> Item:
    """Start and held values: noise where something is made, the given values elsewhere."""
    assert scene.depth is not None
    frame, cell, device = scene.clean.frame, pipeline._cell, pipeline.device
    noise = pipeline.engine.noise(scene.clean.seed, frame)
    rgb = scene.clean.start.rgb
    known_rgb = torch.from_numpy(~_grown(scene.new_rgb, frame, cell)).reshape(1, -1, 1).to(device)
    grid = _on_grid(np.where(scene.new_depth, np.nan, scene.depth), frame) / scene.unit
    depth, known_depth = depth_tokens(grid, cell, device), mask_tokens(grid > 0, cell, device)
    kind = scene.kind
    if kind == "rgb":  # padding of the given depth is unknown: noise, as in depth to image
        start = PerModality(rgb=noise.rgb, depth=torch.where(known_depth, depth, noise.depth))
    else:
        start = PerModality(rgb=rgb if kind == "depth" else noise.rgb, depth=noise.depth)
    held = PerModality(
        rgb=Held(rgb, known_rgb.expand_as(rgb), noise.rgb), depth=Held(depth, known_depth, noise.depth)
    )
    return Item(frame, start, scene.clean.prompt, scene.clean.seed, held)


def _feather(frame: Frame) -> int:
    """The default width of a seam, in pixels of the picture."""
    scale = max(frame.width, frame.height) / max(frame.scaled_width, frame.scaled_height)
    return round(FEATHER * frame.cell * scale)


def _image(pipeline: Assembled, scene: _Scene, item: Item, tokens: torch.Tensor, width: int) -> np.ndarray:
    """The new part laid over the old picture, fading over ``width`` pixels outside the mask."""
    if not scene.new_rgb.any():
        return scene.image
    assert item.held is not None
    made = pipeline._decode_image(item.held.rgb.at(0.0, tokens.float()), item.frame)
    apart = distance_transform_edt(~scene.new_rgb)
    share = np.where(apart > width, 0.0, 1.0 - apart / (width + 1.0))[..., None]
    mixed = share * made.astype(np.float64) + (1.0 - share) * scene.image
    return np.rint(mixed).astype(np.uint8)


def _depth(
    pipeline: Assembled, scene: _Scene, item: Item, tokens: torch.Tensor, rgb: np.ndarray, edge_radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """The known depth as it was given, the new part bent to meet it; and the mask. (H, W) of the picture."""
    assert scene.depth is not None
    frame, unit = item.frame, np.float32(scene.unit)
    known = ~scene.new_depth
    solid = known & np.isfinite(scene.depth)
    out = np.zeros(known.shape, np.float32)
    mask = solid.copy()
    if scene.new_depth.any():
        plain = grid_depth(pipeline, tokens, frame, rgb, edge_radius)
        points = _on_grid(np.where(solid, scene.depth, np.nan), frame) / unit
        use = sparse.measured(points)
        errors = np.log(np.where(use, points, 1.0).astype(np.float64) / np.where(use, plain, 1.0))
        errors = errors.clip(-MAX_BEND, MAX_BEND)
        picture = frame.scale_image(torch.from_numpy(rgb).permute(2, 0, 1)[None].float())[0]
        plain = plain * np.exp(sparse.spread(errors, use, plain, picture.permute(1, 2, 0).numpy()))
        z = contract(torch.from_numpy(plain.astype(np.float32)))[None, None]
        out = expand(frame.restore(z)[0, 0]).numpy() * unit
        mask |= scene.new_depth & pipeline._decode_depth(tokens, frame, rgb, edge_radius)[1]
    out[solid] = scene.depth[solid]
    # Known sky: as far as the farthest surface, and masked.
    out[known & ~solid] = out[mask].max() if mask.any() else unit
    return out, mask
