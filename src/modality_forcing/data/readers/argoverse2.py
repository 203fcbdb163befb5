"""Format "argoverse2": the sensor data of Argoverse 2 (Wilson et al. 2021): LiDAR seen by the ring cameras.

Layout and frames: https://github.com/argoverse/av2-api (datasets/sensor/README.md). LiDAR points stand in
the vehicle's frame at the time of the sweep; they go through the city's frame to the vehicle at the time of
the picture, then into the camera (x right, y down, z forward). Pictures are undistorted (issue 226 there), so
only fx, fy, cx, cy count. The package pyarrow, which reads Feather files, is in the extra "data".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from modality_forcing.data.readers.base import (
    Found,
    Item,
    Loaded,
    Options,
    by_stem,
    find_camera,
    folders_named,
    quaternion_matrix,
    read_picture,
    relative_name,
    scatter_depth,
)
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ()
LAYOUT = (
    "LOG/ with calibration/intrinsics.feather and egovehicle_SE3_sensor.feather, city_SE3_egovehicle.feather,"
    " sensors/cameras/ring_*/TIME.jpg, sensors/lidar/TIME.feather"
)
NEAREST = 50_000_000  # nanoseconds between a picture and its sweep; cameras take 20, the LiDAR 10 a second
# The LiDAR stands above the cameras and sees behind things. A point is hidden if another one in its cell of
# so many pixels, or a neighbour, is nearer by this factor; the road at a flat angle stays below it (ours).
CELL, HIDDEN = 8, 1.5
_DEEP = 4


def find(source: Path, options: Options) -> Found:
    """For each sweep and each ring camera the picture nearest in time.

    Raises:
        UserError: the folder cannot be read.
    """
    found = Found()
    for calibration in folders_named(source, "calibration", _DEEP):
        log = calibration.parent
        try:
            _find_in_log(found, log, source)
        except UserError as error:
            found.problems.append((log.name, str(error)))
    found.items.sort(key=lambda item: item.name)
    return found


def _find_in_log(found: Found, log: Path, source: Path) -> None:
    intrinsics = _rows(log / "calibration" / "intrinsics.feather", "sensor_name")
    mounts = _rows(log / "calibration" / "egovehicle_SE3_sensor.feather", "sensor_name")
    poses = read_feather(log / "city_SE3_egovehicle.feather", ("timestamp_ns", *_POSE))
    at = {int(time): number for number, time in enumerate(poses["timestamp_ns"])}
    sweeps = {int(stem): path for stem, path in by_stem(log / "sensors" / "lidar", (".feather",)).items()
              if stem.isdigit()}  # fmt: skip
    for folder in sorted((log / "sensors" / "cameras").glob("ring_*")):
        pictures = {
            int(stem): path for stem, path in by_stem(folder, (".jpg", ".png")).items() if stem.isdigit()
        }
        if not pictures:
            continue
        if folder.name not in intrinsics or folder.name not in mounts:
            found.problems.append(
                (relative_name(folder, source), "the calibration does not know this camera")
            )
            continue
        row, times = intrinsics[folder.name], np.array(sorted(pictures))
        numbers = [float(row[name]) for name in ("fx_px", "fy_px", "cx_px", "cy_px")]
        camera = Camera(
            numbers[0], numbers[1], numbers[2], numbers[3], int(row["width_px"]), int(row["height_px"])
        )
        mount = np.linalg.inv(pose_matrix(mounts[folder.name]))
        for time, sweep in sorted(sweeps.items()):
            near = int(times[np.abs(times - time).argmin()])
            name = relative_name(pictures[near], source)
            if abs(near - time) > NEAREST:
                found.problems.append(
                    (relative_name(sweep, source), f"no picture of {folder.name} near in time")
                )
            elif time not in at or near not in at:
                found.problems.append((name, "the vehicle's pose is not known at its time"))
            else:
                begin, end = (
                    pose_matrix({key: poses[key][at[one]] for key in _POSE}) for one in (time, near)
                )
                facts = {"camera": camera, "camera_from_lidar": mount @ np.linalg.inv(end) @ begin}
                found.items.append(Item(name, {"image": pictures[near], "lidar": sweep}, facts))


def load(item: Item, options: Options) -> Loaded:
    """Project one sweep into one picture; points that the camera cannot see are left out."""
    rgb, jpeg = read_picture(item.paths["image"])
    height, width = rgb.shape[:2]
    camera, known = find_camera(width, height, item.facts["camera"], options)
    table = read_feather(item.paths["lidar"], ("x", "y", "z"))
    points = np.stack([table[name] for name in ("x", "y", "z")], -1).astype(np.float64)
    move = item.facts["camera_from_lidar"]
    x, y, z = (points @ move[:3, :3].T + move[:3, 3]).T
    front = z > 0
    x, y, z = x[front], y[front], z[front]
    uv = np.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], -1)
    depth = drop_hidden(scatter_depth(uv, z, width, height))
    if not depth.any():
        raise UserError("no point of its sweep lies in the picture")
    return Loaded(rgb, depth, camera, known, "m", jpeg, meta={"sparse": True})


def drop_hidden(depth: np.ndarray) -> np.ndarray:
    """Sparse depth without points that lie behind a nearer one; see ``CELL`` and ``HIDDEN``.

    Args:
        depth: float32 (H, W), 0 unknown.
    """
    height, width = depth.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    padded = np.full((rows * CELL, columns * CELL), np.inf, np.float32)
    padded[:height, :width] = np.where(depth > 0, depth, np.inf)
    nearest = padded.reshape(rows, CELL, columns, CELL).min((1, 3))
    nearest = ndimage.minimum_filter(nearest, 3, mode="nearest")
    limit = HIDDEN * nearest.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]
    return np.where(depth <= limit, depth, np.float32(0))


_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")


def pose_matrix(row: dict[str, Any]) -> np.ndarray:
    """float64 (4, 4) of a quaternion and a translation in metres."""
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_matrix(*(float(row[name]) for name in _POSE[:4]))
    matrix[:3, 3] = [float(row[name]) for name in _POSE[4:]]
    return matrix


def read_feather(path: Path, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Columns of a Feather file.

    Raises:
        UserError: no such file, damaged, or without one of them.
    """
    import pyarrow
    from pyarrow import feather

    try:
        table = feather.read_table(path, columns=list(columns), memory_map=False, use_threads=False)
        return {name: table[name].to_numpy() for name in columns}
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}") from None


def _rows(path: Path, key: str) -> dict[str, dict[str, Any]]:
    """A whole small Feather table, one row for each value of ``key``."""
    import pyarrow
    from pyarrow import feather

    try:
        rows = feather.read_table(path, memory_map=False, use_threads=False).to_pylist()
        return {row[key]: row for row in rows}
    except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path.name} cannot be read: {' '.join(str(error).split())[:120]}") from None
