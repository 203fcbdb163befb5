"""Format "colmap": the sparse model of a reconstruction; depth is known where a picture's points were seen.

Layouts of cameras, images and points3D as text and binary: https://colmap.github.io/format.html. COLMAP puts
the centre of the first pixel at (0.5, 0.5), as this project does. Its files for rigs and frames (since 3.12)
are not read: images keeps the pose of every picture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from modality_forcing.data.readers.base import (
    Found,
    Item,
    Loaded,
    Options,
    find_camera,
    quaternion_matrix,
    read_picture,
    scatter_depth,
)
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ("depth_scale",)
LAYOUT = (
    "a folder with images/ and sparse/ or sparse/0/, which holds cameras, images and points3D as .bin or .txt"
)
# A point seen twice, or badly, is as often a wrong match as a place in the world (our limits).
MIN_TRACK, MAX_ERROR = 3, 2.0  # images; pixels of mean reprojection error
MIN_POINTS = 10
# Number of a model in the binary file: name, parameters; the first are f or fx, fy, then cx, cy.
MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5), 4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8), 6: ("FULL_OPENCV", 12), 7: ("FOV", 5), 8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12), 11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
}  # fmt: skip
_ONE_FOCAL = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
_TWO_FOCALS = ("PINHOLE", "OPENCV", "FULL_OPENCV")
_SEEN = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])  # -1, all bits set: no point


@dataclass(frozen=True)
class ModelCamera:
    """One line of ``cameras``; ``params`` in the order of its model."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    def pinhole(self) -> Camera | None:
        """The camera without its distortion; None for models that no pinhole comes near."""
        if self.model in _ONE_FOCAL:
            f, cx, cy = self.params[:3]
            return Camera(f, f, cx, cy, self.width, self.height)
        if self.model in _TWO_FOCALS:
            fx, fy, cx, cy = self.params[:4]
            return Camera(fx, fy, cx, cy, self.width, self.height)
        return None

    def distorted(self) -> bool:
        """Whether straight lines are bent in the picture."""
        return any(self.params[3 if self.model in _ONE_FOCAL else 4 :])


@dataclass(frozen=True)
class ModelImage:
    """One image: world to camera rotation and translation, and what was seen where."""

    name: str
    camera: int
    rotation: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    seen: np.ndarray


@dataclass(frozen=True)
class Points:
    """Points in the order of ``ids``: float64 (N, 3) places, images that saw each, error in pixels."""

    ids: np.ndarray
    xyz: np.ndarray
    track: np.ndarray
    error: np.ndarray


def find(source: Path, options: Options) -> Found:
    """Read the model; every registered image whose file exists and that saw enough good points is an item.

    Raises:
        UserError: no model, or a damaged one.
    """
    folder = _model_folder(source)
    cameras, images, points = read_model(folder)
    pictures = source / "images" if (source / "images").is_dir() else source
    good = (points.track >= MIN_TRACK) & (points.error <= MAX_ERROR)
    found = Found()
    for image in sorted(images, key=lambda one: one.name):
        model = cameras.get(image.camera)
        camera = None if model is None else model.pinhole()
        path = pictures / image.name
        if model is None or camera is None:
            what = "unknown" if model is None else model.model
            found.problems.append((image.name, f"its camera is {what}; undistort with image_undistorter"))
        elif not path.is_file():
            found.problems.append((image.name, f"the model's image is not in {pictures.name}/"))
        else:
            uv, z = depths_of(image, points, good)
            if len(z) < MIN_POINTS:
                found.problems.append((image.name, f"only {len(z)} good points in front of the camera"))
                continue
            facts = {"camera": camera, "uv": uv, "z": z, "distorted": model.distorted()}
            found.items.append(Item(Path(image.name).with_suffix("").as_posix(), {"image": path}, facts))
    return found


def depths_of(image: ModelImage, points: Points, good: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where an image saw good points (float32 (N, 2), its own pixels) and their z-depth (float32 (N,)).

    The place is where the point was seen, not where the model's camera puts it: that holds for a bent
    picture too.
    """
    seen = image.seen[image.seen["point"] >= 0]
    at = np.searchsorted(points.ids, seen["point"])
    at[at == len(points.ids)] = 0
    known = (points.ids[at] == seen["point"]) & good[at] if len(points.ids) else np.zeros(len(seen), bool)
    seen, at = seen[known], at[known]
    z = points.xyz[at] @ quaternion_matrix(*image.rotation)[2] + image.translation[2]
    front = z > 0
    uv = np.stack([seen["x"], seen["y"]], -1)[front]
    return uv.astype(np.float32), z[front].astype(np.float32)


def load(item: Item, options: Options) -> Loaded:
    """Draw the points of one image into a depth map: "relative" unless ``depth_scale`` is given."""
    rgb, jpeg = read_picture(item.paths["image"])
    height, width = rgb.shape[:2]
    model: Camera = item.facts["camera"]
    camera, known = find_camera(width, height, model, options)
    uv = item.facts["uv"] * np.array([width / model.width, height / model.height])
    z = item.facts["z"] * (options.depth_scale or 1.0)
    notes = ["lens distortion is left out of the camera"] if item.facts["distorted"] else []
    unit = "relative" if options.depth_scale is None else "m"
    return Loaded(
        rgb, scatter_depth(uv, z, width, height), camera, known, unit, jpeg, notes=notes,
        meta={"sparse": True},
    )  # fmt: skip


def read_model(
    folder: Path, *, points: bool = True
) -> tuple[dict[int, ModelCamera], list[ModelImage], Points]:
    """Cameras by id, images and points of a model folder; binary where there are both.

    Args:
        folder: of cameras, images and points3D.
        points: False leaves the points out, and their file unread.

    Raises:
        UserError: a missing or damaged file.
    """
    ending = ".bin" if (folder / "images.bin").is_file() else ".txt"
    names = ("cameras", "images", "points3D") if points else ("cameras", "images")
    paths = {name: folder / f"{name}{ending}" for name in names}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"the model lacks {path}; right is {LAYOUT}")
    try:
        if ending == ".bin":
            with paths["cameras"].open("rb") as stream:
                cameras = dict(_cameras_bin(stream))
            with paths["images"].open("rb") as stream:
                images = list(_images_bin(stream))
            if not points:
                return cameras, images, _points([])
            with paths["points3D"].open("rb") as stream:
                return cameras, images, _points_bin(stream)
        texts = {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
        cameras, images = dict(_cameras_txt(texts["cameras"])), list(_images_txt(texts["images"]))
        return cameras, images, _points_txt(texts["points3D"]) if points else _points([])
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise UserError(f"the model in {folder} is damaged or cut short: {str(error)[:120]}") from None


def read_cameras(folder: Path) -> dict[str, Camera]:
    """Pinhole cameras of a model's images by the name of the image, without distortion.

    Raises:
        UserError: a missing or damaged file.
    """
    cameras, images, _ = read_model(folder, points=False)
    pinholes = {image.name: cameras[image.camera].pinhole() for image in images if image.camera in cameras}
    return {name: camera for name, camera in pinholes.items() if camera is not None}


def _model_folder(source: Path) -> Path:
    inner = sorted((source / "sparse").glob("*/")) if (source / "sparse").is_dir() else []
    for folder in (source / "sparse", *inner, source):
        if (folder / "images.bin").is_file() or (folder / "images.txt").is_file():
            return folder
    raise UserError(f"{source} holds no COLMAP model; right is {LAYOUT}")


def _unpack(stream: BinaryIO, form: str) -> tuple:
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _cameras_bin(stream: BinaryIO) -> Iterator[tuple[int, ModelCamera]]:
    (count,) = _unpack(stream, "<Q")
    for _ in range(count):
        number, model, width, height = _unpack(stream, "<iiQQ")
        name, parameters = MODELS[model]
        yield number, ModelCamera(name, width, height, _unpack(stream, f"<{parameters}d"))


def _images_bin(stream: BinaryIO) -> Iterator[ModelImage]:
    (count,) = _unpack(stream, "<Q")
    for _ in range(count):
        _, *pose, camera = _unpack(stream, "<I7dI")
        name = bytearray()
        while (letter := stream.read(1)) != b"\0":
            if not letter:
                raise ValueError("a name without end")
            name += letter
        (seen,) = _unpack(stream, "<Q")
        content = stream.read(seen * _SEEN.itemsize)
        if len(content) != seen * _SEEN.itemsize:
            raise ValueError("images.bin ends early")
        yield ModelImage(
            name.decode("utf-8"), camera, tuple(pose[:4]), tuple(pose[4:]), np.frombuffer(content, _SEEN)
        )


def _points_bin(stream: BinaryIO) -> Points:
    (count,) = _unpack(stream, "<Q")
    rows = []
    for _ in range(count):
        number, x, y, z, _r, _g, _b, error, track = _unpack(stream, "<Q3d3BdQ")
        stream.seek(8 * track, 1)  # (image, number of the point in it), 4 bytes each
        rows.append((number, x, y, z, track, error))
    return _points(rows)


def _points(rows: list[tuple]) -> Points:
    rows.sort()
    table = np.array([row[1:] for row in rows], np.float64).reshape(-1, 5)
    ids = np.array([row[0] for row in rows], np.int64)
    return Points(ids, table[:, :3], table[:, 3], table[:, 4])


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            yield line


def _cameras_txt(text: str) -> Iterator[tuple[int, ModelCamera]]:
    for line in _lines(text):
        if words := line.split():
            params = tuple(float(word) for word in words[4:])
            yield int(words[0]), ModelCamera(words[1], int(words[2]), int(words[3]), params)


def _images_txt(text: str) -> Iterator[ModelImage]:
    lines = _lines(text)
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)  # a name may hold spaces
        pose = [float(word) for word in words[1:8]]
        values = next(lines, "").split()  # an empty line: nothing was seen
        seen = np.zeros(len(values) // 3, _SEEN)
        seen["x"], seen["y"] = values[0::3], values[1::3]
        seen["point"] = values[2::3]
        yield ModelImage(
            words[9].strip(),
            int(words[8]),
            (pose[0], pose[1], pose[2], pose[3]),
            (pose[4], pose[5], pose[6]),
            seen,
        )


def _points_txt(text: str) -> Points:
    rows = []
    for line in _lines(text):
        if words := line.split():
            x, y, z = (float(word) for word in words[1:4])
            rows.append((int(words[0]), x, y, z, (len(words) - 8) // 2, float(words[7])))
    return _points(rows)
