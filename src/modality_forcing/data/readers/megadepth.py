"""Format "megadepth": MegaDepth (Li and Snavely 2018).

Layout as published: phoenix/S6/zl548/MegaDepth_v1/SCENE/denseN with imgs and depths
(https://github.com/zhengqili/MegaDepth). Depth is the array "depth" of an HDF5 file, 0 unknown, with one
scale per reconstruction: "relative". Some files hold marks of nearer and farther instead; they are left out.

Cameras are looked for in the undistorted models that D2-Net's scripts write
(https://github.com/mihaidusmanu/d2-net: Undistorted_SfM/SCENE/sparse-txt) and else in the published
MegaDepth_v1_SfM/SCENE/sparse/manhattan/N, whose distortion is left out: the pictures are undistorted already.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.data.readers.base import (
    IMAGE_ENDINGS,
    Found,
    Item,
    Loaded,
    Options,
    by_stem,
    clean_depth,
    find_camera,
    folders_named,
    read_picture,
    relative_name,
)
from modality_forcing.data.readers.colmap import read_cameras
from modality_forcing.data.readers.hdf5 import read_hdf5
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ("fov_x",)
LAYOUT = "[phoenix/S6/zl548/MegaDepth_v1/]SCENE/dense0/ with imgs/NAME.jpg + depths/NAME.h5"
ARRAY = "depth"
FEW_VALUES = 8  # different values in a file of marks; a depth map has thousands
_DEEP = 7  # phoenix/S6/zl548/MegaDepth_v1/SCENE/dense0/depths


def find(source: Path, options: Options) -> Found:
    """Pair pictures and depth of all reconstructions, and look for their cameras.

    Raises:
        UserError: a model that is damaged.
    """
    found = Found()
    for folder in folders_named(source, "depths", _DEEP):
        depths = by_stem(folder, (".h5",))
        cameras = _cameras(source, folder.parent)
        for stem, path in by_stem(folder.parent / "imgs", IMAGE_ENDINGS).items():
            depth = depths.pop(stem, None)
            if depth is None:
                found.problems.append((relative_name(path, source), "no depth of the same name"))
                continue
            facts = {"camera": cameras.get(stem)}
            found.items.append(Item(relative_name(path, source), {"image": path, "depth": depth}, facts))
        found.problems += [
            (relative_name(path, source), "no image of the same name") for path in depths.values()
        ]
    found.items.sort(key=lambda item: item.name)
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one photograph."""
    rgb, jpeg = read_picture(item.paths["image"])
    values = read_hdf5(item.paths["depth"], ARRAY)
    if values.ndim != 2:
        raise UserError(f"its depth has shape {values.shape}")
    known = values[values != 0]
    if (known < 0).any() or len(np.unique(known)) < FEW_VALUES:
        raise UserError("its file holds marks of nearer and farther, not depth")
    camera, how = find_camera(rgb.shape[1], rgb.shape[0], item.facts["camera"], options)
    return Loaded(rgb, clean_depth(values), camera, how, "relative", jpeg)


def _cameras(source: Path, dense: Path) -> dict[str, Camera]:
    """Cameras by the stem of the image, of the scene and the reconstruction that ``dense`` is."""
    scene, number = dense.parent.name, dense.name.removeprefix("dense")
    for root in (source, *source.parents[:5], dense.parent):
        for model in (
            root / "Undistorted_SfM" / scene / "sparse-txt",
            root / "MegaDepth_v1_SfM" / scene / "sparse" / "manhattan" / number,
        ):
            if (model / "cameras.txt").is_file() or (model / "cameras.bin").is_file():
                return {Path(name).stem: camera for name, camera in read_cameras(model).items()}
    return {}
