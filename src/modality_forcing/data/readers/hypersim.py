"""Format "hypersim": Hypersim (Roberts et al. 2021).

Layout and units: https://github.com/apple/ml-hypersim (README). ``depth_meters`` is the distance along the
ray to the optical centre, not z-depth, and is turned into z-depth here. ``color`` is linear light without
limits; it is tone mapped as that project's scene_generate_images_tonemap.py does: scaled so that the 90th
percentile of brightness over pixels that show a surface becomes 0.8 after the exponent 1 / 2.2. Without
``color`` the published ``tonemap.jpg`` is taken.

Cameras: 60 degrees wide, square pixels, unless ``metadata_camera_parameters.csv`` (contrib/mikeroberts3000 of
the same project) lies in the source or above it: its M_cam_from_uv leads from u, v in [-1, 1] (v up) to a ray
in axes x right, y up, z backward. Scenes whose lens is tilted have no pinhole camera and are left out.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.readers.base import (
    Found,
    Item,
    Loaded,
    Options,
    clean_depth,
    folders_named,
    read_picture,
)
from modality_forcing.data.readers.hdf5 import read_hdf5
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ()
LAYOUT = (
    "ai_001_001/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5 (or scene_cam_00_final_preview/"
    "frame.0000.tonemap.jpg) + scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
)
ARRAY = "dataset"
FOV_X = 60.0
CAMERAS = "metadata_camera_parameters.csv"
BRIGHT_PERCENTILE, BRIGHT, GAMMA, DARKEST = 90.0, 0.8, 1.0 / 2.2, 1e-4
_DEEP = 6
_SCENE = re.compile(r"ai_\d{3}_\d{3}")


def find(source: Path, options: Options) -> Found:
    """Pair every depth map with its colour, of all scenes and cameras.

    Raises:
        UserError: a camera table that cannot be read.
    """
    found = Found()
    matrices = read_matrices(source)
    for geometry in folders_named(source, "scene_cam_*_geometry_hdf5", _DEEP):
        images = geometry.parent
        final = images / geometry.name.replace("_geometry_hdf5", "_final_hdf5")
        preview = images / geometry.name.replace("_geometry_hdf5", "_final_preview")
        scene = next((part for part in reversed(geometry.parts) if _SCENE.fullmatch(part)), "")
        for path in sorted(geometry.glob("frame.*.depth_meters.hdf5")):
            frame = path.name.removesuffix(".depth_meters.hdf5")
            name = (geometry.relative_to(source) / frame).as_posix()
            color, mapped = final / f"{frame}.color.hdf5", preview / f"{frame}.tonemap.jpg"
            paths = {"depth": path}
            if color.is_file():
                paths["color"] = color
                ids = geometry / f"{frame}.render_entity_id.hdf5"
                if ids.is_file():
                    paths["ids"] = ids
            elif mapped.is_file():
                paths["image"] = mapped
            else:
                found.problems.append((name, "no color.hdf5 and no tonemap.jpg"))
                continue
            found.items.append(Item(name, paths, {"matrix": matrices.get(scene)}))
    found.items.sort(key=lambda item: item.name)
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one frame. Windows and holes have no depth; nothing marks them as sky, so they are unknown."""
    distance = read_hdf5(item.paths["depth"], ARRAY)
    if distance.ndim != 2:
        raise UserError(f"its depth has shape {distance.shape}")
    height, width = distance.shape
    camera = camera_of(item.facts["matrix"], width, height)
    depth = clean_depth(z_of_distance(distance, camera))
    if "image" in item.paths:
        rgb, jpeg = read_picture(item.paths["image"])
        return Loaded(rgb, depth, camera.resized(rgb.shape[1], rgb.shape[0]), jpeg=jpeg)
    color = read_hdf5(item.paths["color"], ARRAY)
    if color.shape != (height, width, 3):
        raise UserError(f"its colour has shape {color.shape}, its depth {distance.shape}")
    surface = read_hdf5(item.paths["ids"], ARRAY) != -1 if "ids" in item.paths else np.isfinite(distance)
    return Loaded(tone_map(color, surface), depth, camera)


def z_of_distance(distance: np.ndarray, camera: Camera) -> np.ndarray:
    """float32 (H, W) z-depth: the distance to the optical centre over |(x, y, 1)| of each pixel's ray."""
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    return (distance / np.sqrt(1.0 + x[None, :] ** 2 + y[:, None] ** 2)).astype(np.float32)


def tone_map(color: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) of linear light; see the module's text.

    Args:
        color: float (H, W, 3), linear.
        surface: bool (H, W), pixels whose brightness counts.
    """
    color = np.nan_to_num(color.astype(np.float64), nan=0.0, posinf=1e6, neginf=0.0)
    scale = 1.0
    if surface.any():
        bright = np.percentile(color[surface] @ np.array([0.3, 0.59, 0.11]), BRIGHT_PERCENTILE)
        scale = 0.0 if bright < DARKEST else BRIGHT ** (1.0 / GAMMA) / float(bright)
    mapped = np.maximum(color * scale, 0.0) ** GAMMA
    return np.rint(np.clip(mapped, 0.0, 1.0) * 255.0).astype(np.uint8)


def camera_of(matrix: np.ndarray | None, width: int, height: int) -> Camera:
    """The pinhole camera of a scene's M_cam_from_uv; None: the usual 60 degrees.

    Raises:
        UserError: the lens is tilted.
    """
    if matrix is None:
        return Camera.from_fov(width, height, fov_x=FOV_X)
    m = np.asarray(matrix, dtype=np.float64)
    # Column u + 0.5 has u = 2 column / width - 1, row v + 0.5 has v = 1 - 2 row / height; our y points down.
    straight = np.abs([m[0, 1], m[1, 0], m[2, 0], m[2, 1]]).max() < 1e-6 * abs(m[2, 2])
    if not (straight and m[2, 2] < 0 < min(m[0, 0], m[1, 1])):
        raise UserError("its scene was seen through a tilted lens, which is no pinhole camera")
    m = m / -m[2, 2]
    fx, fy = width / (2 * m[0, 0]), height / (2 * m[1, 1])
    return Camera(fx, fy, width / 2 - fx * m[0, 2], height / 2 + fy * m[1, 2], width, height)


def read_matrices(source: Path) -> dict[str, np.ndarray]:
    """M_cam_from_uv by scene; empty when the table is not there.

    Raises:
        UserError: a table without these columns.
    """
    for folder in (source, source.parent, source.parent.parent):
        path = folder / CAMERAS
        if path.is_file():
            with path.open(encoding="utf-8-sig", newline="") as stream:
                rows: list[dict[str, Any]] = list(csv.DictReader(stream))
            try:
                names = [[f"M_cam_from_uv_{i}{j}" for j in range(3)] for i in range(3)]
                found = {
                    row["scene_name"]: np.array([[float(row[name]) for name in line] for line in names])
                    for row in rows
                }
            except (KeyError, ValueError, TypeError):
                raise UserError(f"{path} has no columns scene_name and M_cam_from_uv_00 to _22") from None
            return {name: matrix for name, matrix in found.items() if math.isfinite(matrix.sum())}
    return {}
