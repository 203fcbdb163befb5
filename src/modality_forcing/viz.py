"""Looking at results: depth in colour, pictures side by side, a cloud from a moved viewpoint."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modality_forcing.errors import UserError
from modality_forcing.geometry.camera import unproject
from modality_forcing.geometry.cloud import default_edge_rtol, edge_mask
from modality_forcing.types import RGBD

INVALID_GRAY = (128, 128, 128)
BACKGROUND = (32, 32, 36)
# Every 15th colour of matplotlib's magma (CC0), hex; linear in between, at most 3 of 255 from the original.
_MAGMA = (
    "0000040907201a10423111654a1079621980792282912b81aa337d"
    "c23b75d9466bec5860f7725cfc8e64feaa74fec68afde2a3fcfdbf"
)


def _table(knots: str) -> np.ndarray:
    colors = np.frombuffer(bytes.fromhex(knots), dtype=np.uint8).reshape(-1, 3)
    where = np.linspace(0.0, 255.0, len(colors))
    return np.stack([np.rint(np.interp(np.arange(256), where, c)) for c in colors.T], -1).astype(np.uint8)


COLOR_MAPS = {"magma": _table(_MAGMA), "gray": _table("000000ffffff")}  # each uint8 (256, 3), far to near


def colorize(
    depth: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    cmap: str = "magma",
    percentiles: tuple[float, float] = (2.0, 98.0),
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """Depth as colours: disparity (1 / depth), near = bright, invalid = neutral gray.

    Args:
        depth: (H, W), any unit: the picture does not change with scale.
        mask: bool (H, W); None: all finite and positive pixels.
        cmap: a name in ``COLOR_MAPS``.
        percentiles: of the disparity of valid pixels, shown as darkest and brightest; robust to outliers.
        limits: (near, far) depths to show instead, to compare several maps.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: an unknown colour map, or limits that are not 0 < near < far.
    """
    if cmap not in COLOR_MAPS:
        raise UserError(f"colour map {cmap!r} is unknown; right is one of {', '.join(COLOR_MAPS)}")
    if limits is not None and not 0 < limits[0] < limits[1]:
        raise UserError(f"limits are {limits}; right is 0 < near < far")
    valid = np.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid &= mask
    image = np.empty((*depth.shape, 3), dtype=np.uint8)
    image[:] = INVALID_GRAY
    if not valid.any():
        return image
    disparity = 1.0 / depth[valid].astype(np.float64)
    if limits is None:
        low, high = (float(v) for v in np.percentile(disparity, percentiles))
    else:
        low, high = 1.0 / limits[1], 1.0 / limits[0]
    if high - low > 1e-6 * high:
        level = np.clip((disparity - low) / (high - low), 0.0, 1.0)
    else:  # a flat wall has no near and far
        level = np.full_like(disparity, 0.5)
    image[valid] = COLOR_MAPS[cmap][np.rint(level * 255).astype(np.uint8)]
    return image


def render_cloud(
    rgbd: RGBD,
    *,
    yaw: float = 15.0,
    pitch: float = 8.0,
    size: tuple[int, int] | None = None,
    edge_rtol: float | None = None,
) -> np.ndarray:
    """The points seen from a camera that moved on a circle around the scene's middle: parallax shows depth.

    Args:
        rgbd: the result; its camera is used for both views.
        yaw: degrees the camera moves to the right (looking left, back at the middle).
        pitch: degrees it moves up.
        size: (height, width) of the picture, of the same shape as the image or not; None: as the image.
        edge_rtol: pixels on depth edges are left out, those beside holes not; 0 keeps all.

    Returns:
        uint8 (height, width, 3); dark where no point is seen.
    """
    height, width = rgbd.depth.shape if size is None else size
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    edge_rtol = default_edge_rtol(rgbd.depth.shape) if edge_rtol is None else edge_rtol
    keep = rgbd.mask & np.isfinite(rgbd.depth) & (rgbd.depth > 0)
    if keep.any() and edge_rtol > 0:
        keep &= ~edge_mask(rgbd.depth, edge_rtol, valid=keep)
    if not keep.any():
        return image
    points = unproject(rgbd.depth, rgbd.camera)[keep].astype(np.float64)
    colors = rgbd.rgb[keep]
    # The pivot lies at the harmonic mean depth: near things, which move most, count most.
    pivot = np.array([0.0, 0.0, 1.0 / np.mean(1.0 / points[:, 2])])
    points = (points - pivot) @ _turn(yaw, pitch).T + pivot

    zoom = min(width / rgbd.camera.width, height / rgbd.camera.height)
    front = points[:, 2] > 1e-3 * pivot[2]
    points, colors = points[front], colors[front]
    z = points[:, 2]
    u = zoom * (rgbd.camera.fx * points[:, 0] / z + rgbd.camera.cx - rgbd.camera.width / 2) + width / 2
    v = zoom * (rgbd.camera.fy * points[:, 1] / z + rgbd.camera.cy - rgbd.camera.height / 2) + height / 2
    # Far points first: of several values for one pixel, numpy keeps the last, which is the nearest.
    order = np.argsort(-z)
    u, v, z, colors = u[order], v[order], z[order], colors[order]
    side = math.ceil(1.5 * zoom)  # a splat covers the gap to its neighbour
    rows, columns = np.floor(v - (side - 1) / 2).astype(int), np.floor(u - (side - 1) / 2).astype(int)
    shifts = np.arange(side)
    rows = rows[:, None, None] + shifts[None, :, None] + 0 * shifts[None, None, :]
    columns = columns[:, None, None] + shifts[None, None, :] + 0 * shifts[None, :, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    image[rows[inside], columns[inside]] = np.broadcast_to(colors[:, None, None], (*rows.shape, 3))[inside]
    return image


def _turn(yaw: float, pitch: float) -> np.ndarray:
    """Rotation of the points (OpenCV axes) that shows them from ``yaw`` degrees right, ``pitch`` up."""
    a, b = math.radians(yaw), math.radians(pitch)
    about_y = np.array([[math.cos(a), 0, math.sin(a)], [0, 1, 0], [-math.sin(a), 0, math.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(b), -math.sin(b)], [0, math.sin(b), math.cos(b)]])
    return about_x @ about_y


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    tile: int = 256,
    gap: int = 6,
) -> np.ndarray:
    """Pictures in rows with a line of text under each, for docs and for looking.

    Args:
        rows: uint8 (H, W, 3) pictures, any sizes; each is scaled to ``tile`` pixels height.
        captions: as ``rows``, one text per picture ("" for none); a text too long for its picture is cut.
        tile: height of a picture in pixels.
        gap: space around pictures in pixels.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: no picture, or captions that do not match.
    """
    if not any(len(row) for row in rows):
        raise UserError("a contact sheet needs at least one picture")
    if captions is not None and [len(row) for row in captions] != [len(row) for row in rows]:
        raise UserError("captions do not match the pictures: give one text per picture")
    font_size = max(10, tile // 18)
    font = ImageFont.load_default(size=font_size)
    line = font_size + 6 if captions is not None else 0
    scaled = [
        [
            Image.fromarray(picture).resize(
                (max(1, round(picture.shape[1] * tile / picture.shape[0])), tile),
                Image.Resampling.LANCZOS,
            )
            for picture in row
        ]
        for row in rows
    ]
    width = max(gap + sum(picture.width + gap for picture in row) for row in scaled)
    sheet = Image.new("RGB", (width, gap + len(scaled) * (tile + line + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(scaled):
        x, y = gap, gap + i * (tile + line + gap)
        for j, picture in enumerate(row):
            sheet.paste(picture, (x, y))
            if captions is not None:
                text = captions[i][j]
                while text and draw.textlength(text, font=font) > picture.width:
                    text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
                draw.text((x, y + tile + 2), text, fill="black", font=font)
            x += picture.width + gap
    return np.array(sheet)


def normals_picture(normals: np.ndarray) -> np.ndarray:
    """Normals as the usual colours: red grows to the right, green upwards, blue towards the camera.

    Args:
        normals: float (H, W, 3), unit, OpenCV axes; zeros where there is no surface, shown in neutral gray.

    Returns:
        uint8 (H, W, 3).
    """
    upright = np.clip(normals, -1.0, 1.0) * np.array([1.0, -1.0, -1.0])
    return np.rint((upright + 1.0) * 127.5).astype(np.uint8)


def text_picture(text: str, *, width: int, height: int) -> np.ndarray:
    """A text on white, wrapped to lines; what does not fit is cut with an ellipsis.

    Returns:
        uint8 (height, width, 3).
    """
    size = max(10, height // 12)
    font = ImageFont.load_default(size=size)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    letters = max(4, int((width - 8) / max(1.0, draw.textlength("abcdefghij klmnop", font=font) / 17)))
    lines = textwrap.wrap(text, letters, max_lines=max(1, (height - 4) // (size + 3)), placeholder=" …")
    for number, line in enumerate(lines):
        draw.text((4, 2 + number * (size + 3)), line, fill="black", font=font)
    return np.array(picture)
