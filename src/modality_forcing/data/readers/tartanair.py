"""Format "tartanair": TartanAir (Wang et al. 2020) and TartanAir V2.

Layouts: https://github.com/castacks/tartanair_tools (data_type.md) and https://tartanair.org/modalities.html.
All pinhole cameras see 90 degrees: the focal length is half the width. Depth is z-depth in metres; V1 stores
``.npy``, V2 the four bytes of a float32 as the channels of a PNG, in the order blue, green, red, alpha (as
OpenCV reads them). The sky stands at a very large depth.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from modality_forcing.data.readers.base import (
    Found,
    Item,
    Loaded,
    Options,
    by_stem,
    clean_depth,
    folders_named,
    read_picture,
    relative_name,
)
from modality_forcing.data.readers.pixels import read_rgba
from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS
from modality_forcing.types import Camera

OPTIONS = ("sky_beyond",)
LAYOUT = (
    "ENV/Easy/P000/image_left/000000_left.png + depth_left/000000_left_depth.npy (V1), or"
    " ENV/Data_easy/P000/image_lcam_front/000000_lcam_front.png + depth_lcam_front/..._depth.png (V2)"
)
# The documents name 10000 for the sky sphere; it differs between environments (our limit).
SKY = 1000.0
_PINHOLE = re.compile(r"image_(left|right|[lr]cam_(front|back|left|right|top|bottom))")
_DEEP = 5


def find(source: Path, options: Options) -> Found:
    """Pair the pictures of all pinhole cameras with their depth; fisheye and panorama are left out."""
    found = Found()
    for folder in folders_named(source, "image_*", _DEEP):
        if not _PINHOLE.fullmatch(folder.name):
            found.problems.append((folder.relative_to(source).as_posix(), "no pinhole camera"))
            continue
        depths = by_stem(folder.with_name(folder.name.replace("image_", "depth_", 1)), (".npy", ".png"))
        for stem, path in by_stem(folder, (".png",)).items():
            depth = depths.pop(f"{stem}_depth", None)
            if depth is None:
                found.problems.append((relative_name(path, source), "no depth of the same name"))
            else:
                found.items.append(Item(relative_name(path, source), {"image": path, "depth": depth}))
        found.problems += [
            (relative_name(path, source), "no image of the same name") for path in depths.values()
        ]
    found.items.sort(key=lambda item: item.name)
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one frame; ``options.sky_beyond`` or ``SKY`` metres and more is sky."""
    rgb, jpeg = read_picture(item.paths["image"])
    height, width = rgb.shape[:2]
    depth = clean_depth(read_depth(item.paths["depth"]), sky_beyond=options.sky_beyond or SKY)
    camera = Camera(width / 2, width / 2, width / 2, height / 2, width, height)
    return Loaded(rgb, depth, camera, jpeg=jpeg)


def read_depth(path: Path) -> np.ndarray:
    """float32 (H, W), metres, of a depth file of either version.

    Raises:
        UserError: damaged, or no depth.
    """
    if path.suffix == ".png":
        # Blue, green, red, alpha are the bytes of a little-endian float, lowest first.
        bgra = np.ascontiguousarray(read_rgba(path)[..., [2, 1, 0, 3]])
        return bgra.view("<f4")[..., 0]
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.ndim != 2 or mapped.dtype.kind != "f" or mapped.size > MAX_PIXELS:
            raise ValueError(f"it holds {mapped.dtype} {mapped.shape}")
        return np.array(mapped, dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path.name} is no valid depth file: {str(error)[:120]}") from None
