"""Making a picture, its depth and its camera the same size, without inventing depth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from modality_forcing.data.readers.base import Loaded
from modality_forcing.errors import UserError
from modality_forcing.io.checks import check_size


def shrink_depth(depth: np.ndarray, width: int, height: int) -> np.ndarray:
    """A smaller depth map whose every value was measured: no mean of a near and a far thing.

    Each new pixel takes the value at its centre; where nothing is known there, the known value nearest to
    its centre among those inside it. So sparse points survive.

    Args:
        depth: float32 (H, W), 0 unknown, +inf sky.
        width, height: not larger than W and H.

    Returns:
        float32 (height, width).
    """
    rows, columns = depth.shape
    if (rows, columns) == (height, width):
        return depth
    y = ((np.arange(height) + 0.5) * (rows / height)).astype(np.int64)
    x = ((np.arange(width) + 0.5) * (columns / width)).astype(np.int64)
    small = depth[y[:, None], x[None, :]]
    empty = small == 0
    if empty.any():
        y, x = np.nonzero(depth > 0)
        v, u = (y + 0.5) * (height / rows), (x + 0.5) * (width / columns)
        r, c = v.astype(np.int64), u.astype(np.int64)
        wanted = empty[r, c]
        y, x, v, u, r, c = (part[wanted] for part in (y, x, v, u, r, c))
        distance = (v - r - 0.5) ** 2 + (u - c - 0.5) ** 2
        order = np.argsort(-distance, kind="stable")  # of several values for a pixel numpy keeps the last
        small[r[order], c[order]] = depth[y[order], x[order]]
    return small


def fit(loaded: Loaded, max_side: int | None) -> Loaded:
    """The sample with picture and depth of one size: the smaller of both, at most ``max_side`` pixels long.

    Nothing is ever enlarged. The picture is reduced with Lanczos, the depth by :func:`shrink_depth`.

    Raises:
        UserError: picture and depth have different shapes, or a side would be too short.
    """
    height, width = loaded.rgb.shape[:2]
    rows, columns = loaded.depth.shape
    # One pixel of rounding is what a resize to whole pixels leaves.
    if abs(columns * height - rows * width) > max(width, height, rows, columns):
        raise UserError(f"its image is {width}x{height} pixels, its depth {columns}x{rows}: another shape")
    new_width, new_height = min(width, columns), min(height, rows)
    if max_side is not None and max(new_width, new_height) > max_side:
        factor = max_side / max(new_width, new_height)
        new_width, new_height = max(1, round(new_width * factor)), max(1, round(new_height * factor))
    check_size(new_width, new_height, "the sample")
    depth = shrink_depth(loaded.depth, new_width, new_height)
    if (new_width, new_height) == (width, height):
        return replace(loaded, depth=depth)
    picture = Image.fromarray(loaded.rgb).resize((new_width, new_height), Image.Resampling.LANCZOS)
    return replace(
        loaded, rgb=np.array(picture), depth=depth, jpeg=None,
        camera=loaded.camera.resized(new_width, new_height),
    )  # fmt: skip


def see_depth_with(
    depth: np.ndarray, matrix: np.ndarray, other: np.ndarray, width: int, height: int
) -> np.ndarray:
    """Depth of one camera for another one that stands at the same place and looks the same way.

    Args:
        depth: float32 (H, W), 0 unknown.
        matrix: 3x3 intrinsics of ``depth``; other: those of the wanted (height, width) map. Both in pixels
            with centres at .5.

    Returns:
        float32 (height, width): the value of the pixel each ray falls into, 0 outside.
    """
    rows, columns = depth.shape
    u = ((np.arange(width) + 0.5 - other[0, 2]) / other[0, 0]) * matrix[0, 0] + matrix[0, 2]
    v = ((np.arange(height) + 0.5 - other[1, 2]) / other[1, 1]) * matrix[1, 1] + matrix[1, 2]
    c, r = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    inside = ((r >= 0) & (r < rows))[:, None] & ((c >= 0) & (c < columns))[None, :]
    seen = depth[np.clip(r, 0, rows - 1)[:, None], np.clip(c, 0, columns - 1)[None, :]]
    return np.where(inside, seen, np.float32(0))
