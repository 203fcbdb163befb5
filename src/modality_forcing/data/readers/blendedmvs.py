"""Format "blendedmvs": BlendedMVS and BlendedMVG (Yao et al. 2020).

Layout: https://github.com/YoYo000/BlendedMVS; the camera file is that of https://github.com/YoYo000/MVSNet:
"extrinsic" and a 4x4 matrix, "intrinsic" and a 3x3 matrix, then the range of depth. Depth is PFM, 0 where the
mesh has a hole. Every scene has its own scale, so the unit is "relative".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.data.readers.base import (
    Found,
    Item,
    Loaded,
    Options,
    by_stem,
    clean_depth,
    find_camera,
    folders_named,
    read_pfm,
    read_picture,
    relative_name,
)
from modality_forcing.errors import UserError

OPTIONS = ("fov_x",)
LAYOUT = "PID/blended_images/00000000.jpg + rendered_depth_maps/00000000.pfm + cams/00000000_cam.txt"
_DEEP = 3


def find(source: Path, options: Options) -> Found:
    """Pair pictures (without their masked copies), depth and cameras of all scenes."""
    found = Found()
    for depth_folder in folders_named(source, "rendered_depth_maps", _DEEP):
        scene = depth_folder.parent
        depths, cameras = by_stem(depth_folder, (".pfm",)), by_stem(scene / "cams", (".txt",))
        for stem, path in by_stem(scene / "blended_images", (".jpg", ".png")).items():
            if stem.endswith("_masked"):
                continue
            paths = {"image": path, "depth": depths.pop(stem, None), "camera": cameras.get(f"{stem}_cam")}
            if paths["depth"] is None:
                found.problems.append((relative_name(path, source), "no depth of the same name"))
            else:
                files = {name: file for name, file in paths.items() if file is not None}
                found.items.append(Item(relative_name(path, source), files))
        found.problems += [
            (relative_name(path, source), "no image of the same name") for path in depths.values()
        ]
    found.items.sort(key=lambda item: item.name)
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one view."""
    rgb, jpeg = read_picture(item.paths["image"])
    depth = clean_depth(read_pfm(item.paths["depth"]))
    matrix = read_matrix(item.paths["camera"]) if "camera" in item.paths else None
    camera, known = find_camera(rgb.shape[1], rgb.shape[0], matrix, options)
    return Loaded(rgb, depth, camera, known, "relative", jpeg)


def read_matrix(path: Path) -> np.ndarray:
    """float64 (3, 3): the intrinsic matrix of a camera file.

    Raises:
        UserError: it has none.
    """
    try:
        words = path.read_text(encoding="ascii").split()
        first = words.index("intrinsic") + 1
        return np.array([float(word) for word in words[first : first + 9]]).reshape(3, 3)
    except (ValueError, OSError):
        raise UserError(f"{path.name} holds no intrinsic matrix") from None
