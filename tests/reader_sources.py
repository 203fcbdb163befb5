"""Small data sets in the layouts of the published ones, and the depth each must give."""

from __future__ import annotations

import csv
import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 32, 24


def picture(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3) of smooth noise, so that JPEG keeps it roughly."""
    noise = np.random.default_rng(seed).integers(30, 220, (3, 4, 3)).astype(np.uint8)
    return np.array(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def save_picture(path: Path, seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Write :func:`picture` in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, width, height)).save(path)


def save_png16(path: Path, values: np.ndarray) -> None:
    """A 16-bit gray PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


def ramp(near: float = 1.0, far: float = 4.0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """float32 (height, width): far at the top, near at the bottom, and unknown in the first column."""
    depth = np.repeat(np.linspace(far, near, height, dtype=np.float32)[:, None], width, axis=1)
    depth[:, 0] = 0
    return depth


def write_text(path: Path, text: str) -> None:
    """A text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_folder(root: Path) -> None:
    """Three images with depth as PNG, NPY and EXR."""
    from modality_forcing.io.depth_files import write_depth_exr

    for number in range(3):
        save_picture(root / "images" / f"view {number}.jpg", number)
    save_png16(root / "depth" / "view 0.png", np.rint(1000 * ramp()))
    np.save(root / "depth" / "view 1.npy", ramp())
    write_depth_exr(root / "depth" / "view 2.exr", ramp(), ramp() > 0)


def make_csv(root: Path) -> None:
    """``table.csv`` with two rows."""
    for number in range(2):
        save_picture(root / f"{number}.png", number)
        save_png16(root / f"d{number}.png", np.rint(5000 * ramp()))
    write_text(
        root / "table.csv",
        "image,depth,caption,fx,fy,cx,cy,depth_scale\n"
        '0.png,d0.png,"a hall, seen low",30,31,15,12,0.0002\n1.png,d1.png,,,,,,0.0002\n',
    )


def make_index(root: Path) -> None:
    """``index.json`` as of the project's real photographs."""
    save_picture(root / "a.jpg", 0)
    save_png16(root / "a.depth.png", np.rint(10000 * ramp()))
    entry = {
        "name": "a", "rgb": "a.jpg", "depth": "a.depth.png", "depth_scale": 10000,
        "K": [[30.0, 0.0, 15.0], [0.0, 31.0, 12.0], [0.0, 0.0, 1.0]], "source": "a sensor",
    }  # fmt: skip
    write_text(root / "index.json", json.dumps([entry]))


# -- COLMAP: identity rotation, one unit back, so z is Z + 1. Point 3 was seen twice, point 4 badly.
COLMAP_POINTS = {
    number: ((number % 5 - 2) * 0.2, (number % 3 - 1) * 0.3, 1.0 + 0.5 * number, 2 if number == 3 else 4,
             5.0 if number == 4 else 0.5)
    for number in range(1, 16)
}  # fmt: skip
COLMAP_F = 20.0


def colmap_seen(number: int) -> tuple[float, float]:
    """Where the camera of :func:`make_colmap` sees a point."""
    x, y, z, *_ = COLMAP_POINTS[number]
    return COLMAP_F * x / (z + 1) + 16.0, COLMAP_F * y / (z + 1) + 12.0


def make_colmap(root: Path, *, binary: bool = False, model: str = "SIMPLE_PINHOLE") -> None:
    """A model of one image whose camera stands at (0, 0, -1)."""
    save_picture(root / "images" / "one.jpg")
    folder = root / "sparse" / "0"
    folder.mkdir(parents=True)
    seen = [(*colmap_seen(number), number) for number in COLMAP_POINTS] + [(3.0, 4.0, -1)]
    params = [COLMAP_F, 16.0, 12.0] + ([0.1] if model == "SIMPLE_RADIAL" else [])
    if not binary:
        words = " ".join(map(str, params))
        write_text(folder / "cameras.txt", f"# Camera list\n7 {model} {WIDTH} {HEIGHT} {words}\n")
        points2d = " ".join(f"{x!r} {y!r} {point}" for x, y, point in seen)
        write_text(folder / "images.txt", f"# two lines each\n1 1 0 0 0 0 0 1 7 one.jpg\n{points2d}\n"
                   "2 1 0 0 0 0 0 1 7 lost.jpg\n\n")  # fmt: skip
        lines = [
            f"{number} {x!r} {y!r} {z!r} 1 2 3 {error} " + " ".join(["1 0"] * track)
            for number, (x, y, z, track, error) in COLMAP_POINTS.items()
        ]
        write_text(folder / "points3D.txt", "# points\n" + "\n".join(lines) + "\n")
        return
    number = {"SIMPLE_PINHOLE": 0, "SIMPLE_RADIAL": 2}[model]
    head = struct.pack("<QiiQQ", 1, 7, number, WIDTH, HEIGHT)
    (folder / "cameras.bin").write_bytes(head + struct.pack(f"<{len(params)}d", *params))
    image = struct.pack("<QI7dI", 1, 1, 1, 0, 0, 0, 0, 0, 1, 7) + b"one.jpg\0" + struct.pack("<Q", len(seen))
    image += b"".join(struct.pack("<ddQ", x, y, point % 2**64) for x, y, point in seen)
    (folder / "images.bin").write_bytes(image)
    points = struct.pack("<Q", len(COLMAP_POINTS))
    for name, (x, y, z, track, error) in COLMAP_POINTS.items():
        points += struct.pack("<Q3d3BdQ", name, x, y, z, 1, 2, 3, error, track) + b"\0" * 8 * track
    (folder / "points3D.bin").write_bytes(points)


def make_arkitscenes(root: Path, *, sky: str = "Up") -> None:
    """One video of raw/: high resolution pictures with the laser's depth, and one of LiDAR depth only."""
    video = root / "raw" / "Training" / "41069021"
    for time in ("305.244", "307.343"):
        save_picture(video / "wide" / f"41069021_{time}.png")
        save_png16(video / "highres_depth" / f"41069021_{time}.png", np.rint(1000 * ramp()))
    write_text(video / "wide_intrinsics" / "41069021_305.245.pincam", "32 24 30 31 15 11\n")
    save_picture(video / "lowres_wide" / "41069021_305.244.png")
    save_png16(video / "lowres_depth" / "41069021_305.244.png", np.full((HEIGHT, WIDTH), 9000))
    other = root / "raw" / "Validation" / "47333462"
    save_picture(other / "lowres_wide" / "47333462_1.000.png")
    save_png16(other / "lowres_depth" / "47333462_1.000.png", np.full((HEIGHT, WIDTH), 2500))
    confidence = np.full((HEIGHT, WIDTH), 2, np.uint8)
    confidence[:, :5] = 0
    (other / "confidence").mkdir()
    Image.fromarray(confidence).save(other / "confidence" / "47333462_1.000.png")
    write_text(root / "raw" / "metadata.csv",
               f"video_id,visit_id,fold,sky_direction\n41069021,1,Training,{sky}\n")  # fmt: skip


def make_hypersim(root: Path, *, matrix: dict[str, Any] | None = None) -> None:
    """One scene: everything two metres from the camera, a hole, and light of 3 with a brighter pixel."""
    import h5py

    images = root / "ai_001_001" / "images"
    distance = np.full((HEIGHT, WIDTH), 2.0, np.float16)
    distance[5, 6] = np.nan
    color = np.full((HEIGHT, WIDTH, 3), 3.0, np.float16)
    color[0, 0] = 6.0
    arrays = {
        "scene_cam_00_final_hdf5/frame.0000.color.hdf5": color,
        "scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5": distance,
        "scene_cam_00_geometry_hdf5/frame.0000.render_entity_id.hdf5": np.ones((HEIGHT, WIDTH), np.int32),
        "scene_cam_00_geometry_hdf5/frame.0001.depth_meters.hdf5": distance,
    }
    for name, values in arrays.items():
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(images / name, "w") as file:
            file["dataset"] = values
    save_picture(images / "scene_cam_00_final_preview" / "frame.0001.tonemap.jpg")
    if matrix is not None:
        row = {f"M_cam_from_uv_{i}{j}": 0.0 for i in range(3) for j in range(3)} | {
            "scene_name": "ai_001_001"
        }
        with (root / "metadata_camera_parameters.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*row])
            writer.writeheader()
            writer.writerow(row | matrix)


def make_tartanair(root: Path) -> None:
    """A frame of V1 and one of V2, both with 2.5 m everywhere and sky in the first row."""
    old = root / "hospital" / "Easy" / "P001"
    save_picture(old / "image_left" / "000000_left.png")
    depth = np.full((HEIGHT, WIDTH), 2.5, np.float32)
    depth[0] = 10000.0
    (old / "depth_left").mkdir()
    np.save(old / "depth_left" / "000000_left_depth.npy", depth)
    new = root / "House" / "Data_easy" / "P000"
    save_picture(new / "image_lcam_front" / "000000_lcam_front.png", width=32, height=32)
    # 2.5 is 0x40200000: bytes 00 00 20 40, lowest first, in the channels blue, green, red, alpha.
    channels = np.empty((32, 32, 4), np.uint8)
    channels[:] = (0x20, 0x00, 0x00, 0x40)  # as red, green, blue, alpha
    channels[0] = (0x1C, 0x40, 0x00, 0x46)  # 10000 is 0x461c4000
    (new / "depth_lcam_front").mkdir()
    Image.fromarray(channels).save(new / "depth_lcam_front" / "000000_lcam_front_depth.png")
    save_picture(new / "image_lcam_fish" / "000000_lcam_fish.png")


def make_megadepth(root: Path) -> None:
    """One reconstruction with a depth map and a map of marks, and its undistorted model."""
    import h5py

    dense = root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / "0008" / "dense0"
    marks = np.zeros((HEIGHT, WIDTH), np.float32)
    marks[:5], marks[10:] = 1.0, -1.0
    for name, values in {"a_o": ramp(3.0, 9.0), "b_o": marks}.items():
        save_picture(dense / "imgs" / f"{name}.jpg")
        (dense / "depths").mkdir(exist_ok=True)
        with h5py.File(dense / "depths" / f"{name}.h5", "w") as file:
            file["depth"] = values
    model = root / "Undistorted_SfM" / "0008" / "sparse-txt"
    write_text(model / "cameras.txt", "# c\n3 PINHOLE 64 48 60 62 30 24\n")
    write_text(model / "images.txt", "# i\n1 1 0 0 0 0 0 1 3 a_o.jpg\n\n")


def make_blendedmvs(root: Path) -> None:
    """One scene with one view; the PFM file begins with its lowest row."""
    scene = root / "5a3ca9cb270f0e3f14d0eddb"
    save_picture(scene / "blended_images" / "00000000.jpg")
    save_picture(scene / "blended_images" / "00000000_masked.jpg")
    (scene / "rendered_depth_maps").mkdir()
    content = f"Pf\n{WIDTH} {HEIGHT}\n-1.0\n".encode() + ramp(5.0, 7.0)[::-1].astype("<f4").tobytes()
    (scene / "rendered_depth_maps" / "00000000.pfm").write_bytes(content)
    pose = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
    text = f"extrinsic\n{pose}\nintrinsic\n30 0 15\n0 31 12\n0 0 1\n\n0.5 0.01 128 2.0\n"
    write_text(scene / "cams" / "00000000_cam.txt", text)


SCANNET_COLOR = np.array([[50, 0, 31.5, 0], [0, 50, 23.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
SCANNET_DEPTH = np.array([[25, 0, 15.5, 0], [0, 25, 11.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)


def make_scannet(root: Path) -> None:
    """One scene as exported frames, another one as a stream; colour is twice as large as depth."""
    scene = root / "scene0000_00"
    save_picture(scene / "color" / "0.jpg", width=64, height=48)
    save_png16(scene / "depth" / "0.png", np.rint(1000 * ramp()))
    for name, matrix in (("color", SCANNET_COLOR), ("depth", SCANNET_DEPTH)):
        text = "\n".join(" ".join(f"{value:f}" for value in row) for row in matrix)
        write_text(scene / "intrinsic" / f"intrinsic_{name}.txt", text)
    jpeg = io.BytesIO()
    Image.fromarray(picture(0, 64, 48)).save(jpeg, "JPEG")
    depth = zlib.compress(np.rint(1000 * ramp()).astype("<u2").tobytes())
    head = struct.pack("<IQ", 4, 5) + b"Phone"
    for matrix in (SCANNET_COLOR, np.eye(4), SCANNET_DEPTH, np.eye(4)):
        head += struct.pack("<16f", *matrix.ravel())
    head += struct.pack("<iiIIIIfQ", 2, 1, 64, 48, WIDTH, HEIGHT, 1000.0, 2)
    frame = struct.pack("<16fQQQQ", *np.eye(4).ravel(), 1, 2, len(jpeg.getvalue()), len(depth))
    frame += jpeg.getvalue() + depth
    (root / "scene0001_00").mkdir()
    (root / "scene0001_00" / "scene0001_00.sens").write_bytes(head + frame + frame)


AV2_LOG = "00a6ffc1-6ce9-3bc3-a060-6006e9893a1a"
AV2_SWEEP, AV2_PICTURE = 315_966_070_559_696_000, 315_966_070_563_927_216


def make_argoverse2(root: Path) -> None:
    """One sweep and one picture; between them the car, which heads along the city's y, moves one metre."""
    import pyarrow as pa
    from pyarrow import feather

    log = root / "train" / AV2_LOG
    save_picture(log / "sensors" / "cameras" / "ring_front_center" / f"{AV2_PICTURE}.jpg", 0, 128, 96)
    # In the car's frame at the sweep (x ahead, y left, z up). The camera looks ahead from (1, 0, 1).
    points = [
        (12.0, 0.0, 1.0),  # 10 m ahead of the moved camera
        (12.0, -2.0, 1.0),  # as far, two metres to the right
        (42.0, 0.1, 1.2),  # behind the first one
        (-5.0, 0.0, 1.0),  # behind the car
        (12.0, 0.0, 40.0),  # above the picture
    ]
    tables = {
        "sensors/lidar/" + str(AV2_SWEEP): {
            **{name: np.array(points, np.float16)[:, i] for i, name in enumerate("xyz")},
            "intensity": np.zeros(len(points), np.uint8),
        },
        "calibration/intrinsics": {
            "sensor_name": ["ring_front_center"], "fx_px": [100.0], "fy_px": [100.0], "cx_px": [64.0],
            "cy_px": [48.0], "k1": [-0.2], "k2": [0.1], "k3": [0.0], "height_px": [96], "width_px": [128],
        },
        "calibration/egovehicle_SE3_sensor": {
            "sensor_name": ["ring_front_center"], "qw": [0.5], "qx": [-0.5], "qy": [0.5], "qz": [-0.5],
            "tx_m": [1.0], "ty_m": [0.0], "tz_m": [1.0],
        },
        "city_SE3_egovehicle": {
            "timestamp_ns": [AV2_SWEEP, AV2_PICTURE], "qw": [math.sqrt(0.5)] * 2, "qx": [0.0] * 2,
            "qy": [0.0] * 2, "qz": [math.sqrt(0.5)] * 2, "tx_m": [100.0] * 2, "ty_m": [50.0, 51.0],
            "tz_m": [0.0] * 2,
        },
    }  # fmt: skip
    for name, columns in tables.items():
        path = log / f"{name}.feather"
        path.parent.mkdir(parents=True, exist_ok=True)
        feather.write_feather(pa.table(columns), path, compression="uncompressed")


MAKERS: dict[str, Callable[[Path], None]] = {
    "folder": make_folder, "csv": make_csv, "index": make_index, "colmap": make_colmap,
    "arkitscenes": make_arkitscenes, "argoverse2": make_argoverse2, "blendedmvs": make_blendedmvs,
    "hypersim": make_hypersim, "megadepth": make_megadepth, "scannet": make_scannet,
    "tartanair": make_tartanair,
}  # fmt: skip
NEEDS = {"hypersim": "h5py", "megadepth": "h5py", "argoverse2": "pyarrow"}
