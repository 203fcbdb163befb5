"""Pixels to points and back, and which camera an image gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.types import Camera

DEFAULT_FOV_X = 65.0  # degrees, horizontal: the field of view the released demo assumes


def unproject(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Points seen by each pixel.

    Args:
        depth: (H, W) z-depth, any unit; invalid values give meaningless points, mask them yourself.
        camera: intrinsics of exactly this H x W.

    Returns:
        float32 (H, W, 3), OpenCV axes, the unit of ``depth``: z * ((u - cx) / fx, (v - cy) / fy, 1)
        with u, v the pixel centre (column + 0.5, row + 0.5).

    Raises:
        UserError: the camera belongs to another image size.
    """
    height, width = depth.shape
    if (camera.width, camera.height) != (width, height):
        raise UserError(
            f"the camera is for a {camera.width}x{camera.height} image but the depth is {width}x{height};"
            " use camera.resized(width, height)"
        )
    x = ((np.arange(width) + 0.5 - camera.cx) / camera.fx).astype(np.float32)
    y = ((np.arange(height) + 0.5 - camera.cy) / camera.fy).astype(np.float32)
    z = np.asarray(depth, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # 0 * inf at an invalid pixel
        return np.stack([x[None, :] * z, y[:, None] * z, z], axis=-1)


def project(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Image positions of points; the inverse of :func:`unproject`.

    Args:
        points: (..., 3), OpenCV camera frame.
        camera: where they are seen from.

    Returns:
        float64 (..., 2): u, v in pixels (the top-left pixel's centre is 0.5, 0.5). NaN for points at or
        behind the camera (z <= 0).
    """
    xyz = np.asarray(points, dtype=np.float64)
    z = np.where(xyz[..., 2] > 0, xyz[..., 2], np.nan)
    u = camera.fx * xyz[..., 0] / z + camera.cx
    v = camera.fy * xyz[..., 1] / z + camera.cy
    return np.stack([u, v], axis=-1)


def resolve_camera(
    width: int,
    height: int,
    *,
    fov_x: float | None = None,
    fov_y: float | None = None,
    intrinsics: Camera | np.ndarray | Sequence[float] | None = None,
) -> Camera:
    """The camera of a (height, width) image from whatever the user gave.

    In this order: ``intrinsics``; else one or both fields of view (square pixels when only one is given,
    centred principal point); else :data:`DEFAULT_FOV_X`.

    Args:
        width, height: image size in pixels.
        fov_x, fov_y: horizontal and vertical field of view in degrees.
        intrinsics: a :class:`Camera` (scaled to this size), a 3x3 matrix, or (fx, fy, cx, cy) in pixels of
            this image. Pixel centres lie at +0.5: add 0.5 to cx and cy of a calibration that puts the
            centre of the first pixel at 0 (OpenCV).

    Raises:
        UserError: both kinds given, a field of view outside (0, 180), a focal length that is not positive,
            skew, values that look normalised, or a camera of another aspect ratio.
    """
    if intrinsics is not None:
        if fov_x is not None or fov_y is not None:
            raise UserError("give either a field of view or intrinsics, not both")
        return _from_intrinsics(width, height, intrinsics)
    if fov_x is None and fov_y is None:
        fov_x = DEFAULT_FOV_X
    try:
        return Camera.from_fov(width, height, fov_x=fov_x, fov_y=fov_y)
    except ValueError as error:
        raise UserError(str(error)) from None


def _from_intrinsics(width: int, height: int, intrinsics: Camera | np.ndarray | Sequence[float]) -> Camera:
    if isinstance(intrinsics, Camera):
        # One pixel of rounding is what a resize to whole pixels leaves.
        if abs(intrinsics.width * height - intrinsics.height * width) > max(width, height):
            raise UserError(
                f"the camera is for a {intrinsics.width}x{intrinsics.height} image, another shape than"
                f" {width}x{height}; give the intrinsics of this image"
            )
        camera = intrinsics.resized(width, height)
    else:
        try:
            values = np.asarray(intrinsics, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError("intrinsics must be numbers: fx,fy,cx,cy or a 3x3 matrix") from None
        if values.shape == (3, 3):
            k = values / values[2, 2] if values[2, 2] else values
            if not np.allclose([k[0, 1], k[1, 0], k[2, 0], k[2, 1]], 0.0, atol=1e-6) or k[2, 2] != 1.0:
                raise UserError(
                    "the intrinsic matrix has skew or a last row that is not 0 0 1;"
                    " right is [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
                )
            values = np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]])
        if values.shape != (4,):
            raise UserError(
                f"intrinsics have shape {values.shape}; right is four numbers fx,fy,cx,cy or a 3x3 matrix"
            )
        fx, fy, cx, cy = (float(value) for value in values)
        camera = Camera(fx, fy, cx, cy, width, height)
    for name in ("fx", "fy", "cx", "cy"):
        value = getattr(camera, name)
        if not math.isfinite(value) or (name[0] == "f" and value <= 0):
            wanted = "a positive number" if name[0] == "f" else "a finite number"
            raise UserError(f"intrinsics: {name} is {value}; it must be {wanted} of pixels")
    if max(camera.fx, camera.fy, camera.cx, camera.cy) < 4.0 <= min(width, height) / 2:
        raise UserError(
            f"intrinsics: fx is {camera.fx:g} pixels for a {width}x{height} image, which looks normalised;"
            " multiply fx, cx by the width and fy, cy by the height"
        )
    return camera
