"""The values that pass between rooms: shapes, units and ranges stand here once.

Conventions of the whole project
--------------------------------
* Images: ``uint8`` (H, W, 3), sRGB, 0..255. Model space is float in [-1, 1].
* Depth: ``float32`` (H, W), **z-depth** along the optical axis (not ray length), > 0. Where nothing was
  measured or nothing is there, the mask is False; the value there is never read.
* Camera frame: OpenCV. x right, y down, z forward; the camera stands at the origin.
* Pixels: column u grows right, row v grows down; the centre of the top-left pixel is (0.5, 0.5), so the
  whole image spans [0, W] x [0, H] and intrinsics scale with the image without an offset.
* Modalities are named ("rgb", "depth"), never numbered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from modality_forcing.geometry.cloud import PointCloud

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class PerModality(Generic[T]):
    """One value for each modality, by name."""

    rgb: T
    depth: T

    def map(self, function: Callable[[T], U]) -> PerModality[U]:
        """Apply ``function`` to both values."""
        return PerModality(rgb=function(self.rgb), depth=function(self.depth))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: focal lengths and principal point in pixels of a (height, width) image.

    Pixel (row v, column u) has its centre at (u + 0.5, v + 0.5); OpenCV axes (see the module text).
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def from_fov(
        cls, width: int, height: int, *, fov_x: float | None = None, fov_y: float | None = None
    ) -> Camera:
        """Square pixels, centred principal point, from one field of view (or both) in degrees.

        Raises:
            ValueError: no field of view given, or one outside (0, 180).
        """
        for name, value in (("fov_x", fov_x), ("fov_y", fov_y)):
            if value is not None and not 0.0 < value < 180.0:
                raise ValueError(f"{name} is {value}; a field of view lies between 0 and 180 degrees")
        fx = None if fov_x is None else width / (2.0 * math.tan(math.radians(fov_x) / 2.0))
        fy = None if fov_y is None else height / (2.0 * math.tan(math.radians(fov_y) / 2.0))
        if fx is None and fy is None:
            raise ValueError("a camera needs fov_x, fov_y or both")
        fx, fy = (fx if fx is not None else fy), (fy if fy is not None else fx)
        assert fx is not None
        assert fy is not None
        return cls(fx, fy, width / 2.0, height / 2.0, width, height)

    @property
    def fov_x(self) -> float:
        """Horizontal field of view in degrees."""
        return math.degrees(2.0 * math.atan(self.width / (2.0 * self.fx)))

    @property
    def fov_y(self) -> float:
        """Vertical field of view in degrees."""
        return math.degrees(2.0 * math.atan(self.height / (2.0 * self.fy)))

    def resized(self, width: int, height: int) -> Camera:
        """The same camera after the whole image was resized to (height, width)."""
        sx, sy = width / self.width, height / self.height
        return Camera(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def matrix(self) -> np.ndarray:
        """The 3x3 intrinsic matrix K, float64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for ``metadata.json``."""
        return {
            "fx": self.fx, "fy": self.fy, "cx": self.cx, "cy": self.cy,
            "width": self.width, "height": self.height, "fov_x": self.fov_x, "fov_y": self.fov_y,
        }  # fmt: skip


@dataclass
class RGBD:
    """One result: an image with its depth.

    Attributes:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W), positive and finite where ``mask`` is True, in ``depth_unit``.
        mask: bool (H, W), True where depth is meaningful.
        camera: intrinsics for this H x W.
        depth_unit: "relative" (known up to one factor) or "m".
        provenance: everything needed to repeat the run (prompt, seed, steps, ..., weight hash).
        extras: further named maps of the same H x W (for example ``depth_std`` of an ensemble).
    """

    rgb: np.ndarray
    depth: np.ndarray
    mask: np.ndarray
    camera: Camera
    depth_unit: str = "relative"
    provenance: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, np.ndarray] = field(default_factory=dict)

    def point_cloud(self, **options: Any) -> PointCloud:
        """Coloured points in the camera frame; options as of :func:`geometry.cloud.point_cloud`."""
        from modality_forcing.geometry.cloud import point_cloud

        return point_cloud(self, **options)

    def save(self, folder: str | Path, **cloud_options: Any) -> Path:
        """Write a run folder (see ``io.run_folder.save_run``); returns the folder that was made."""
        from modality_forcing.io.run_folder import save_run

        return save_run(self, folder, **cloud_options)


@dataclass
class Sample:
    """One training or evaluation sample.

    Attributes:
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W) z-depth in metres; +inf is sky, 0 where nothing is known, NaN never.
        camera: intrinsics for this H x W.
        captions: texts from short to long; empty when there is none.
        seed: the seed that made it, -1 when it is not procedural.
        normals: float32 (H, W, 3), unit, camera frame, pointing at the camera; zeros on sky.
        object_ids: int32 (H, W); 0 is background (sky, ground, walls), objects count from 1.
        meta: place, objects, light and other facts by name.
    """

    rgb: np.ndarray
    depth: np.ndarray
    camera: Camera
    captions: tuple[str, ...] = ()
    seed: int = -1
    normals: np.ndarray | None = None
    object_ids: np.ndarray | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def valid(self) -> np.ndarray:
        """bool (H, W): depth is finite and positive."""
        return np.isfinite(self.depth) & (self.depth > 0)
