"""Format "arkitscenes": ARKitScenes (Baruch et al. 2021) as its download script lays it out.

Layout: https://github.com/apple/ARKitScenes, DATA.md and the READMEs of raw, depth_upsampling and threedod.
Depth is 16-bit PNG in millimetres. A ``.pincam`` file holds width, height, fx, fy, cx, cy. The phone's LiDAR
comes with a confidence from 0 to 2. Pictures lie as the sensor lay; ``metadata.csv`` says where the sky is.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.readers.base import (
    IMAGE_ENDINGS,
    MILLIMETRES,
    Found,
    Item,
    Loaded,
    Options,
    by_stem,
    clean_depth,
    find_camera,
    read_picture,
    relative_name,
)
from modality_forcing.data.readers.pixels import read_integers
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ("fov_x",)
LAYOUT = (
    "VIDEO_ID/ with wide/ (or color/) + highres_depth/, lowres_wide/ + lowres_depth/ [+ confidence/], or"
    " VIDEO_ID_frames/ with wide/ + depth_densified/; cameras in wide_intrinsics/, lowres_wide_intrinsics/,"
    " color_intrinsics/; metadata.csv beside"
)
# Best first: the laser scanner's depth, then what ARKit makes of the phone's LiDAR. (depth, image, cameras)
_SETS = (
    ("highres_depth", ("wide", "color"), ("wide_intrinsics", "color_intrinsics")),
    ("depth_densified", ("wide",), ("color_intrinsics", "wide_intrinsics")),
    ("lowres_depth", ("lowres_wide",), ("lowres_wide_intrinsics",)),
)
_NEAREST = 0.01  # seconds: names round their times differently
_DEEP = 4  # folders between the source and a video's
# Quarter turns against the clock that bring the sky up.
_TURNS = {"up": 0, "right": 1, "down": 2, "left": 3}


def find(source: Path, options: Options) -> Found:
    """Pair pictures with the best depth their video has; cameras are matched by the time in their names."""
    found = Found()
    turns = _read_turns(source)
    for video in _videos(source, _DEEP):
        depth_folder, images, cameras = next(one for one in _SETS if (video / one[0]).is_dir())
        image_folder = next((video / name for name in images if (video / name).is_dir()), video / images[0])
        depths = by_stem(video / depth_folder, (".png",))
        pictures = by_stem(image_folder, IMAGE_ENDINGS)
        confidences = by_stem(video / "confidence", (".png",)) if depth_folder == "lowres_depth" else {}
        times = _pincams(video, cameras)
        number = video.name.removesuffix("_frames")
        for stem in sorted(pictures.keys() | depths.keys()):
            if stem not in pictures or stem not in depths:
                path = pictures.get(stem) or depths[stem]
                lacks = "depth" if stem in pictures else "image"
                found.problems.append((relative_name(path, source), f"no {lacks} of the same name"))
                continue
            paths = {"image": pictures[stem], "depth": depths[stem]}
            if stem in confidences:
                paths["confidence"] = confidences[stem]
            camera = _nearest(times, _time(stem))
            if camera is not None:
                paths["camera"] = camera
            name = relative_name(pictures[stem], source)
            found.items.append(Item(name, paths, {"turns": turns.get(number, 0)}))
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one frame and turn it upright. Pixels of the lowest confidence are unknown."""
    rgb, jpeg = read_picture(item.paths["image"])
    depth = clean_depth(read_integers(item.paths["depth"]) * MILLIMETRES)
    if "confidence" in item.paths:
        confidence = read_integers(item.paths["confidence"])
        if confidence.shape != depth.shape:
            raise UserError("its confidence has another size than its depth")
        depth[confidence == 0] = 0
    given = read_pincam(item.paths["camera"]) if "camera" in item.paths else None
    camera, known = find_camera(rgb.shape[1], rgb.shape[0], given, options)
    turns = item.facts["turns"]
    if turns:
        rgb, depth, jpeg = np.rot90(rgb, turns).copy(), np.rot90(depth, turns).copy(), None
        camera = turned(camera, turns)
    return Loaded(rgb, depth, camera, known, "m", jpeg)


def turned(camera: Camera, turns: int) -> Camera:
    """The camera of a picture after quarter turns against the clock, as of ``numpy.rot90``."""
    for _ in range(turns % 4):
        # One turn: the right edge becomes the top, (u, v) -> (v, width - u).
        camera = Camera(
            camera.fy, camera.fx, camera.cy, camera.width - camera.cx, camera.height, camera.width
        )
    return camera


def read_pincam(path: Path) -> Camera:
    """The camera of a ``.pincam`` file.

    Raises:
        UserError: it does not hold six numbers.
    """
    try:
        width, height, fx, fy, cx, cy = (float(word) for word in path.read_text(encoding="ascii").split())
    except (ValueError, OSError):
        raise UserError(f"{path.name} does not hold width, height, fx, fy, cx, cy") from None
    return Camera(fx, fy, cx, cy, int(width), int(height))


def _videos(folder: Path, depth: int) -> list[Path]:
    """Folders that hold one of the depth folders."""
    if any((folder / name).is_dir() for name, _, _ in _SETS):
        return [folder]
    if depth == 0 or not folder.is_dir():
        return []
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] != "."]
    return [video for child in children for video in _videos(child, depth - 1)]


def _time(stem: str) -> float | None:
    """Seconds in a name: 41069021_305.244 and 6845.80601079."""
    try:
        return float(stem.rpartition("_")[2])
    except ValueError:
        return None


def _pincams(video: Path, folders: tuple[str, ...]) -> list[tuple[float, Path]]:
    for name in folders:
        files = by_stem(video / name, (".pincam",))
        if files:
            timed = ((_time(stem), path) for stem, path in files.items())
            return sorted((time, path) for time, path in timed if time is not None)
    return []


def _nearest(times: list[tuple[float, Path]], time: float | None) -> Path | None:
    if time is None or not times:
        return None
    at = int(np.searchsorted([one for one, _ in times], time))
    near = min(times[max(0, at - 1) : at + 1], key=lambda one: abs(one[0] - time))
    return near[1] if abs(near[0] - time) <= _NEAREST else None


def _read_turns(source: Path) -> dict[str, int]:
    """Quarter turns by video, from the metadata.csv in or just above the source."""
    for folder in (source, source / "raw", source.parent, source.parent.parent):
        path = folder / "metadata.csv"
        if path.is_file():
            with path.open(encoding="utf-8-sig", newline="") as stream:
                rows: list[dict[str, Any]] = list(csv.DictReader(stream))
            if rows and {"video_id", "sky_direction"} <= rows[0].keys():
                return {
                    str(row["video_id"]).split(".")[0]: _TURNS.get(
                        str(row["sky_direction"]).strip().lower(), 0
                    )
                    for row in rows
                }
    return {}
