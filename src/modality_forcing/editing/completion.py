"""Image and sparse depth to dense depth, in the unit of the measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from modality_forcing.codecs.depth import contract, expand
from modality_forcing.codecs.frame import Frame
from modality_forcing.editing.assembled import (
    Assembled,
    Intrinsics,
    depth_tokens,
    grid_depth,
    image_item,
    mask_tokens,
)
from modality_forcing.engine import Item, OnStep, Settings
from modality_forcing.errors import UserError
from modality_forcing.flow.held import Held
from modality_forcing.flow.path import interpolate
from modality_forcing.flow.schedule import image_to_depth_schedule
from modality_forcing.geometry import completion as sparse
from modality_forcing.geometry.alignment import Alignment, align_scale
from modality_forcing.geometry.camera import resolve_camera
from modality_forcing.inputs import (
    BLENDS,
    area_of,
    check_depth,
    check_image,
    check_same_size,
    listed,
    pair_up,
)
from modality_forcing.types import RGBD, PerModality

RESTART = 0.35
"""Noise level from which the second pass starts, with the points held (ours; docs/completion.md)."""


@dataclass
class _Scene:
    """One item of a completion on the model's grid; depth maps are (H, W) of the grid."""

    image: np.ndarray
    given: np.ndarray
    """float32 of the picture's size: depth, NaN unknown, +inf sky."""
    item: Item
    grid_image: np.ndarray
    points: np.ndarray
    """Measurements; 0 is none."""
    sky: np.ndarray
    use: np.ndarray
    dropped: np.ndarray
    fitted: Alignment = field(default_factory=lambda: Alignment(1.0))
    unit: float = 1.0
    """What 1 of the model's own numbers is, in the unit of the points."""
    dense: np.ndarray | None = None
    residual: float = math.inf
    """Mean relative error at the points, before the correction."""


class Completion:
    """The method ``complete`` of a pipeline."""

    def complete(
        self: Assembled,
        images: np.ndarray | Sequence[np.ndarray],
        depths: np.ndarray | Sequence[np.ndarray],
        *,
        prompt: str | Sequence[str] = "",
        depth_unit: str = "m",
        drop_outliers: bool = True,
        blend: str = "exact",
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
        """Image and sparse depth to dense depth of the image's size, in the unit of the given depth.

        Image to depth gives a relative map; a robust fit to the points gives its scale and shift, and what is
        left of the error is spread smoothly from the points, bending at edges. From that map, noised to
        ``RESTART``, the sampler goes once more to 0 with the known pixels held at their true value at every
        level; its result is fitted and corrected in the same way.

        Args:
            images: uint8 (H, W, 3) sRGB, one or several of any sizes.
            depths: float (H, W) z-depth for each image, of its size. NaN, 0 and negative values are unknown;
                +inf is known to be sky, for a model that knows the sky, else unknown. One point is enough
                for the scale, eight for a shift.
            prompt: optional description, one for all or one per image.
            depth_unit: unit of ``depths``, kept for the result.
            drop_outliers: leave out points that neither the image nor their neighbours support.
            blend: "exact" returns the known pixels as they were given; "smooth" returns the map's value
                there too, and lets neighbours outvote a noisy point.
            Others: see ``joint`` and ``image_to_depth``.

        Returns:
            One :class:`RGBD` per image. ``provenance["completion"]`` holds the number of points and of those
            left out, the fit, and the mean relative error at the points before the correction.

        Raises:
            UserError: numbers of images and maps that differ, a map of another size than its image, or one
                without a valid pixel.
        """
        d = self.sampler_defaults
        settings = Settings.checked(
            d,
            "complete",
            steps,
            d.guidance_i2d if guidance is None else guidance,
            None,
            False,
            edge_radius=edge_radius,
        )
        if blend not in BLENDS:
            raise UserError(f"blend is {blend!r}; right is {' or '.join(BLENDS)}")
        pictures = listed("image", images, 3)
        maps = listed("depth map", depths, 2)
        if len(maps) != len(pictures):
            raise UserError(f"{len(maps)} depth maps for {len(pictures)} images; give one for each")
        checked = []
        for number, (picture, values) in enumerate(zip(pictures, maps, strict=True)):
            check_image(picture)
            checked.append(check_depth(values, None, self.config.depth.sky)[0])
            check_same_size(f"depth map {number}", values, picture)
        prompts, seeds = pair_up(prompt, seed, len(pictures))
        cameras = [
            resolve_camera(p.shape[1], p.shape[0], fov_x=fov_x, fov_y=fov_y, intrinsics=intrinsics)
            for p in pictures
        ]
        area = area_of(size or (d.width, d.height))
        scenes = [
            _scene(picture, given, image_item(self, picture, area, text, item_seed))
            for picture, given, text, item_seed in zip(pictures, checked, prompts, seeds, strict=True)
        ]

        flow = self.config.flow
        schedule = image_to_depth_schedule(settings.steps, flow)
        items = [scene.item for scene in scenes]
        found = self.engine.run(items, schedule, settings.pull, on_step, batch_size)
        grip = sparse.GRIP if blend == "exact" else sparse.SOFT_GRIP
        again = []
        for scene, x in zip(scenes, found, strict=True):
            relative = grid_depth(self, x.depth, scene.item.frame, scene.image, settings.edge_radius)
            _adjust(scene, relative, drop_outliers, grip)
            again.append(_second(scene, self._cell, self.device))
        tail = image_to_depth_schedule(settings.steps, flow, start=RESTART)
        found = self.engine.run(again, tail, settings.pull, on_step, batch_size)

        results = []
        for scene, camera, x in zip(scenes, cameras, found, strict=True):
            first = scene.residual
            frame, radius = scene.item.frame, settings.edge_radius
            _adjust(scene, grid_depth(self, x.depth, frame, scene.image, radius), False, grip)
            depth, mask = _outer(scene), self._decode_depth(x.depth, frame, scene.image, radius)[1]
            finite = np.isfinite(scene.given)
            honoured = finite & ~_outside(scene.dropped, scene.item.frame, scene.given)
            if blend == "exact":
                depth[honoured] = scene.given[honoured]
            mask = (mask | honoured) & ~np.isposinf(scene.given)
            note = {
                "points": int(finite.sum()),
                "points_on_grid": int(scene.use.sum() + scene.dropped.sum()),
                "dropped_on_grid": int(scene.dropped.sum()),
                "scale": scene.fitted.scale,
                "shift": scene.fitted.shift,
                "residual_first_pass": first,
                "residual": scene.residual,
                "restart": RESTART,
                "blend": blend,
                "drop_outliers": drop_outliers,
            }
            record = {**self._provenance(settings, scene.item), "completion": note}
            results.append(RGBD(scene.image, depth, mask, camera, depth_unit, record))
        return results


def _scene(image: np.ndarray, given: np.ndarray, item: Item) -> _Scene:
    frame = item.frame
    shape = (frame.grid_height, frame.grid_width)
    pixels = np.moveaxis(image, -1, 0)[None].astype(np.float32)
    grid = frame.scale_image(torch.from_numpy(pixels))[0]
    points = sparse.thinned(given, (frame.scaled_height, frame.scaled_width), shape)
    return _Scene(
        image, given, item, grid.permute(1, 2, 0).numpy(),
        points=np.where(np.isfinite(points), points, 0.0), sky=np.isposinf(points),
        use=sparse.measured(points), dropped=np.zeros(shape, bool),
    )  # fmt: skip


def _adjust(scene: _Scene, relative: np.ndarray, drop: bool, grip: float) -> None:
    """Fit a relative map to the points and correct it. It replaces an earlier one if it fits better."""
    fitted = sparse.fit(relative, scene.points, scene.use)
    if drop:
        scene.dropped = sparse.outliers(fitted.apply(relative), scene.points, scene.use)
        scene.use = scene.use & ~scene.dropped
        fitted = sparse.fit(relative, scene.points, scene.use)
    dense, use = fitted.apply(relative), scene.use
    errors = np.zeros(dense.shape)
    errors[use] = np.log(scene.points[use].astype(np.float64) / dense[use])
    residual = float(np.abs(np.expm1(-errors[use])).mean())
    if residual >= scene.residual:
        return
    scene.fitted, scene.residual = fitted, residual
    scene.unit = align_scale(relative, scene.points, use).scale
    scene.dense = dense * np.exp(sparse.spread(errors, use, dense, scene.grid_image, grip))


def _second(scene: _Scene, cell: int, device: torch.device) -> Item:
    """The second pass: the dense map noised to ``RESTART``, the points held.

    The mean of the dense truth, which the codec divides by, is unknown. The unit is what makes the first
    pass's own numbers meet the points.
    """
    assert scene.dense is not None
    noise, rgb = scene.item.start.depth, scene.item.start.rgb
    clean = depth_tokens(scene.dense / scene.unit, cell, device)
    known = np.where(scene.sky, np.inf, np.where(scene.use, scene.points, 0.0) / scene.unit)
    held = Held(depth_tokens(known, cell, device), mask_tokens(known > 0, cell, device), noise)
    start = interpolate(clean, noise, torch.full((1,), RESTART, device=device))
    return replace(
        scene.item,
        start=PerModality(rgb=rgb, depth=start),
        held=PerModality(rgb=Held.nothing(rgb), depth=held),
    )


def _outer(scene: _Scene) -> np.ndarray:
    """The corrected map, float32 of the picture's size; scaling happens on contracted values."""
    assert scene.dense is not None
    z = contract(torch.from_numpy((scene.dense / scene.unit).astype(np.float32)))
    return expand(scene.item.frame.restore(z[None, None])[0, 0]).numpy() * np.float32(scene.unit)


def _outside(grid: np.ndarray, frame: Frame, like: np.ndarray) -> np.ndarray:
    """bool of the grid -> bool (H, W) of the picture, by nearest pixel."""
    maps = torch.from_numpy(grid.astype(np.float32))[None, None]
    return frame.restore(maps, "nearest")[0, 0].numpy().reshape(like.shape) > 0.5
