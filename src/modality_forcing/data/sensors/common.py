"""What every sensor looks at: one view of a scene, and the ways to thin a set of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from modality_forcing.types import Camera

# Baselines and disparities are stated for a picture of this width, as the sources give them.
REFERENCE_WIDTH = 640.0

# sRGB byte -> linear light in 0..1 (IEC 61966-2-1).
_BYTES = np.arange(256) / 255.0
LINEAR = np.where(_BYTES <= 0.04045, _BYTES / 12.92, ((_BYTES + 0.055) / 1.055) ** 2.4).astype(np.float32)


@dataclass(frozen=True)
class View:
    """A scene as a sensor meets it; what is derived is computed once, when it is asked for.

    Attributes:
        depth: float32 (H, W) z-depth in metres, +inf is sky, 0 is unknown.
        rgb: uint8 (H, W, 3).
        camera: intrinsics for this H x W.
        given_normals: float32 (H, W, 3) in the camera frame, or None: taken from the depth.
    """

    depth: np.ndarray
    rgb: np.ndarray
    camera: Camera
    given_normals: np.ndarray | None = None

    @cached_property
    def finite(self) -> np.ndarray:
        """bool (H, W): something solid is known to be there."""
        return np.isfinite(self.depth) & (self.depth > 0)

    @cached_property
    def z(self) -> np.ndarray:
        """float32 (H, W): metres; 1e6 where nothing solid is known."""
        return np.where(self.finite, self.depth, np.float32(1e6))

    @cached_property
    def inverse(self) -> np.ndarray:
        """float32 (H, W): 1 / z; 0 where nothing solid is known."""
        return np.where(self.finite, 1.0 / self.z, np.float32(0.0))

    @cached_property
    def rays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x (1, W) and y (H, 1) of the ray through each pixel centre at z = 1, and its length (H, W)."""
        h, w = self.depth.shape
        x = ((np.arange(w, dtype=np.float32) + 0.5 - self.camera.cx) / self.camera.fx)[None]
        y = ((np.arange(h, dtype=np.float32) + 0.5 - self.camera.cy) / self.camera.fy)[:, None]
        x, y = x.astype(np.float32), y.astype(np.float32)
        return x, y, np.sqrt(1.0 + x * x + y * y)

    @cached_property
    def reflectance(self) -> np.ndarray:
        """float32 (H, W) in 0..1: linear luminance of the picture, our stand-in for albedo in the
        infrared."""
        linear = LINEAR[self.rgb]
        return 0.2126 * linear[..., 0] + 0.7152 * linear[..., 1] + 0.0722 * linear[..., 2]

    @cached_property
    def normals(self) -> np.ndarray:
        """float32 (H, W, 3): unit, towards the camera.

        On a plane 1/z is affine in the ray's (x, y), so its slope there is the normal up to length. Of the
        differences to both neighbours the smaller is taken: the other one may cross an edge. Beside nothing
        solid on both sides the slope is taken as 0.
        """
        if self.given_normals is not None:
            return self.given_normals
        x, y, _ = self.rays
        inverse = self.inverse
        slope_x = _slope(inverse, self.finite, 1) * self.camera.fx
        slope_y = _slope(inverse, self.finite, 0) * self.camera.fy
        normal = np.stack([-slope_x, -slope_y, -(inverse - slope_x * x - slope_y * y)], axis=-1)
        return normal / np.maximum(np.sqrt((normal * normal).sum(-1, keepdims=True)), 1e-12)

    @cached_property
    def cosine(self) -> np.ndarray:
        """float32 (H, W) in 0..1: of the angle between the normal and the line of sight."""
        x, y, length = self.rays
        n = self.normals
        return np.clip(-(n[..., 0] * x + n[..., 1] * y + n[..., 2]) / length, 0.0, 1.0)

    @cached_property
    def edges(self) -> np.ndarray:
        """bool (H, W): both sides of each jump of depth. A step of 1/z is a jump when it is above 4 % of the
        nearer side and 2.5 times the step before or after it (a slanted plane has equal steps). The border
        of the unknown is none."""
        out = np.zeros(self.depth.shape, bool)
        for axis in (0, 1):
            inverse = np.moveaxis(self.inverse, axis, 1)
            mark = np.moveaxis(out, axis, 1)
            if inverse.shape[1] < 2:
                continue
            known = np.moveaxis(self.depth > 0, axis, 1)
            known = known[:, 1:] & known[:, :-1]
            step = np.where(known, np.abs(np.diff(inverse, axis=1)), np.float32(np.inf))
            around = np.pad(step, ((0, 0), (1, 1)), constant_values=np.inf)
            calm = np.minimum(around[:, :-2], around[:, 2:])
            jump = (step > 0.04 * np.maximum(inverse[:, 1:], inverse[:, :-1])) & (step > 2.5 * calm) & known
            mark[:, 1:] |= jump
            mark[:, :-1] |= jump
        return out

    @cached_property
    def focal_reference(self) -> float:
        """Focal length in pixels of the same camera with a picture of the reference width."""
        return self.camera.fx * REFERENCE_WIDTH / self.camera.width

    def texture(self, side: int) -> np.ndarray:
        """float32 (H, W): mean horizontal change of grey per pixel (0..255) in a window of ``side``
        pixels."""
        grey = self.rgb.mean(-1, dtype=np.float32)
        change = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
        return ndimage.uniform_filter(change, side, mode="nearest")

    def hidden(self, baseline: float) -> np.ndarray:
        """bool (H, W): not seen (or not lit) from a point ``baseline`` metres to the right (negative: left).

        Every pixel is carried to the other view, u' = u - fx baseline / z; where several land on one place
        the nearest stays. What leaves the other view, which is taken as wide as this one, is hidden too.
        """
        h, w = self.depth.shape
        flip = baseline < 0
        inverse = self.inverse[:, ::-1] if flip else self.inverse
        shift = (self.camera.fx * abs(baseline)) * inverse
        at = np.arange(w, dtype=np.float32)[None] - shift
        # A margin on the left keeps what leaves the view; it is cut where it cannot matter.
        inside = at > -0.5
        left = np.clip(np.floor(at), -1, w - 1).astype(np.int32) + 1
        right = np.minimum(left + 1, w)
        rows = np.arange(h, dtype=np.int32)[:, None] * (w + 1)
        # Written from far to near, so that the last value of a place is the nearest.
        order = np.argsort((np.minimum(shift, 8000.0) * 8.0).astype(np.uint16).ravel(), kind="stable")
        nearest = np.zeros(h * (w + 1), np.float32)
        values = shift.ravel()[order]
        # Both neighbours of a place between two pixels are covered, which closes gaps on slanted surfaces.
        places = np.stack([(rows + left).ravel()[order], (rows + right).ravel()[order]], axis=1)
        nearest[places.ravel()] = np.repeat(values, 2)
        out = (nearest[(rows + np.clip(np.rint(at), -1, w - 1).astype(np.int32) + 1)] > shift + 1.0) | ~inside
        return out[:, ::-1] if flip else out


def _slope(values: np.ndarray, known: np.ndarray, axis: int) -> np.ndarray:
    """Of the differences to the previous and the next known value the one nearer to zero; 0 without any."""
    if values.shape[axis] < 2:
        return np.zeros_like(values)
    step = np.diff(values, axis=axis)
    both = known[1:] & known[:-1] if axis == 0 else known[:, 1:] & known[:, :-1]
    step = np.where(both, step, np.float32(np.inf))
    first, last = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
    first[axis], last[axis] = (1, 0), (0, 1)
    before = np.pad(step, first, constant_values=np.inf)
    after = np.pad(step, last, constant_values=np.inf)
    out = np.where(np.abs(before) < np.abs(after), before, after)
    return np.where(np.isfinite(out), out, np.float32(0.0))


def thin(possible: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool of the same shape: ``count`` pixels of ``possible``, each as likely as any; all if there are
    fewer."""
    found = np.flatnonzero(possible)
    if found.size <= count:
        return possible.copy()
    out = np.zeros(possible.size, bool)
    out[rng.choice(found, count, replace=False, shuffle=False)] = True
    return out.reshape(possible.shape)


def most_likely(weight: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """bool of the same shape: ``count`` pixels drawn without replacement in proportion to a weight; pixels of
    weight 0 are never drawn, and there may be fewer.

    Of exponential clocks with these rates the first to ring are such a draw (Efraimidis and Spirakis 2006).
    """
    found = np.flatnonzero(weight > 0)
    rate = weight.ravel()[found]
    if found.size > count:
        clock = rng.standard_exponential(found.size, dtype=np.float32) / rate
        found = found[np.argpartition(clock, count - 1)[:count]]
    out = np.zeros(weight.size, bool)
    out[found] = True
    return out.reshape(weight.shape)
