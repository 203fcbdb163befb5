"""What every reader of training data shares: the list of what a source holds, and one sample of it.

A reader is two functions. ``find(source, options)`` looks at names and small side files only and gives a
:class:`Found`. ``load(item, options)`` reads one :class:`Item`; whatever it raises is written into the report
as the reason why this item was left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.geometry.camera import resolve_camera
from modality_forcing.io.depth_files import INFINITE, TEXT_KIND, DepthKind, read_depth
from modality_forcing.io.images import exif_fov, read_image, read_mask
from modality_forcing.types import Camera

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
DEPTH_ENDINGS = (".npy", ".npz", ".png", ".tif", ".tiff", ".exr", ".pfm")
MILLIMETRES = 0.001
CameraFrom = Literal["given", "exif", "assumed"]
READ_AS_MILLIMETRES = "16-bit PNG that names no unit: read as millimetres"
READ_AS_METRES = "depth that names no unit: read as metres"


@dataclass(frozen=True)
class Options:
    """What the user may say about a source. Every format takes some of them (``formats.Format.options``).

    Attributes:
        depth_scale: value * depth_scale is metres; None: what the files or the format say.
        depth_kind: "depth" or "disparity" (1 / depth).
        unit: "m" or "relative"; None: what the files or the format say.
        fov_x: horizontal field of view in degrees of images whose camera is not known.
        sky_beyond: depth in metres from which a pixel is sky.
        rgb_only: also take images without depth; their depth is unknown everywhere.
    """

    depth_scale: float | None = None
    depth_kind: DepthKind = "depth"
    unit: str | None = None
    fov_x: float | None = None
    sky_beyond: float | None = None
    rgb_only: bool = False


@dataclass(frozen=True)
class Item:
    """One sample that a source holds. It can be sent to another process.

    Attributes:
        name: unique in the source, as a path with "/".
        paths: files by what they hold ("image", "depth", ...).
        facts: what ``find`` already knows: numbers, texts and small arrays.
    """

    name: str
    paths: Mapping[str, Path]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    """What a source holds.

    Attributes:
        items: in the order of their names.
        problems: (file or folder, what is wrong), for the report.
    """

    items: list[Item] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Loaded:
    """One sample as its files say.

    Attributes:
        rgb: uint8 (H, W, 3).
        depth: float32 (h, w) z-depth in ``unit``, +inf is sky, 0 unknown. Its size may differ from H x W, its
            shape not.
        camera: for H x W.
        camera_from: "given", "exif" (the focal length of the photograph) or "assumed".
        unit: "m" or "relative".
        jpeg: the file that ``rgb`` is, when it can be stored as it is.
        captions: from short to long.
        notes: what was assumed, one line each.
        meta: further facts for the sample's JSON.
    """

    rgb: np.ndarray
    depth: np.ndarray
    camera: Camera
    camera_from: CameraFrom = "given"
    unit: str = "m"
    jpeg: Path | None = None
    captions: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in the order of their names; hidden ones left out.

    Raises:
        UserError: the folder cannot be read.
    """
    for entry in _entries(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path))
        elif entry.is_file():
            yield Path(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without hidden things. It says what is a folder at no cost."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None


def folders_named(source: Path, name: str, depth: int) -> list[Path]:
    """Folders called ``name`` at most ``depth`` levels below ``source``, itself included, in order.

    A pattern as of :mod:`fnmatch` is allowed. What lies inside such a folder is not looked at.

    Raises:
        UserError: a folder cannot be read.
    """
    if source.match(name):
        return [source]
    if depth <= 0 or not source.is_dir():
        return []
    inside = (Path(entry.path) for entry in _entries(source) if entry.is_dir())
    return [found for folder in inside for found in folders_named(folder, name, depth - 1)]


def by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """The files of one folder by name without ending; of two with the same stem the first."""
    found: dict[str, Path] = {}
    if folder.is_dir():
        for entry in _entries(folder):
            path = Path(entry.path)
            if path.suffix.lower() in endings and entry.is_file():
                found.setdefault(path.stem, path)
    return found


def relative_name(path: Path, source: Path) -> str:
    """Name of a file below the source without its ending, with "/"."""
    return path.relative_to(source).with_suffix("").as_posix()


def read_picture(path: Path) -> tuple[np.ndarray, Path | None]:
    """uint8 (H, W, 3) and, for a JPEG that needed no change, its path.

    Raises:
        UserError: as of :func:`modality_forcing.io.images.read_image`.
    """
    loaded = read_image(path)
    return loaded.pixels, None if loaded.notices else _as_it_is(path)


def _as_it_is(path: Path) -> Path | None:
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    with Image.open(path) as image:
        return path if image.format == "JPEG" and image.mode in ("RGB", "L") else None


def clean_depth(values: np.ndarray, *, sky_beyond: float | None = None) -> np.ndarray:
    """float32 of the same shape: NaN, infinite, negative and absurd (1e9) values become 0, unknown.

    Args:
        values: any numbers.
        sky_beyond: values from here on, infinity included, become +inf instead.
    """
    values = np.asarray(values, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        depth = np.where(np.isfinite(values) & (values > 0) & (values < INFINITE), values, np.float32(0))
        if sky_beyond is not None:
            depth[values >= sky_beyond] = np.inf
    return depth


def read_depth_file(
    path: Path, options: Options, *, scale: float | None = None, mask: Path | None = None
) -> tuple[np.ndarray, str, list[str]]:
    """Depth of the user's own file, its unit, and what was assumed.

    What the file says counts (PNGs written here name their scale). Else a 16-bit PNG is in millimetres, the
    common convention, and floating point is in metres.

    Args:
        path: any format of :func:`modality_forcing.io.depth_files.read_depth`, or PFM.
        options: ``depth_scale``, ``depth_kind``, ``unit`` and ``sky_beyond`` are used.
        scale: of this file, before ``options.depth_scale``.
        mask: a picture, white where the depth counts.

    Returns:
        float32 (H, W) with 0 unknown and +inf sky, "m" or "relative", notes.

    Raises:
        UserError: the file or the mask cannot be used.
    """
    notes: list[str] = []
    scale = scale if scale is not None else options.depth_scale
    if path.suffix.lower() == ".pfm":
        values = read_pfm(path).astype(np.float64) * (1.0 if scale is None else scale)
        depth = clean_depth(1.0 / np.where(values > 0, values, np.nan) if options.depth_kind == "disparity"
                            else values, sky_beyond=INFINITE)  # fmt: skip
        unit = "m" if scale is not None else "relative"
        silent = scale is None
    else:
        is_png16, names_its_scale = _png_facts(path)
        silent = scale is None and not names_its_scale
        if silent and options.unit != "relative" and options.depth_kind == "depth" and is_png16:
            scale = MILLIMETRES
            notes.append(READ_AS_MILLIMETRES)
        found = read_depth(path, kind=options.depth_kind, scale=scale)
        depth = found.depth.copy()
        depth[found.infinite] = np.inf
        unit = found.unit
    floating = path.suffix.lower() != ".png" and options.depth_kind == "depth"
    if silent and floating and options.unit is None:
        unit = "m"
        notes.append(READ_AS_METRES)
    unit = options.unit or unit
    if mask is not None:
        depth[~read_mask(mask, cast("tuple[int, int]", depth.shape))] = 0
    if options.sky_beyond is not None:
        depth[depth >= options.sky_beyond] = np.inf
    return depth, unit, notes


def _png_facts(path: Path) -> tuple[bool, bool]:
    """Of a depth file: whether it is a 16-bit PNG, and whether its text says what its numbers mean."""
    if path.suffix.lower() != ".png":
        return False, False
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.mode.startswith("I"), TEXT_KIND in image.info
    except (
        Exception
    ):  # Pillow raises whatever the damaged bytes lead to; reading the depth says what is wrong
        return False, False


def read_pfm(path: Path) -> np.ndarray:
    """float32 (H, W) of a one-channel PFM file, top row first (Pillow turns the file's rows round).

    Raises:
        UserError: no such file, damaged, or in colour.
    """
    try:
        with Image.open(path, formats=["PPM"]) as image:
            if image.mode != "F":
                raise UserError(f"{path.name} is no PFM file with one channel")
            return np.array(image, dtype=np.float32)
    except UserError:
        raise
    except Exception as error:  # format plugins raise nearly anything on damaged bytes
        raise UserError(f"{path.name} is no valid PFM file: {' '.join(str(error).split())[:120]}") from None


def find_camera(
    width: int, height: int, given: Any, options: Options, photograph: Path | None = None
) -> tuple[Camera, CameraFrom]:
    """The camera of a picture: what the source says, the user, the photograph's EXIF data, or the usual one.

    Args:
        width, height: of the picture.
        given: a Camera (of any size), 3x3 matrix or (fx, fy, cx, cy); None when the source does not know.
        options: ``fov_x`` is used.
        photograph: where to look for EXIF data.

    Raises:
        UserError: the given camera cannot be one of this picture.
    """
    if given is not None:
        return resolve_camera(width, height, intrinsics=given), "given"
    if options.fov_x is not None:
        return resolve_camera(width, height, fov_x=options.fov_x), "given"
    fov = None if photograph is None else exif_fov(photograph)
    if fov is not None:
        return resolve_camera(width, height, fov_x=fov), "exif"
    return resolve_camera(width, height), "assumed"


def quaternion_matrix(w: float, x: float, y: float, z: float) -> np.ndarray:
    """float64 (3, 3): the rotation of a quaternion of any length, real part first.

    Raises:
        UserError: all four are 0 or not finite.
    """
    q = np.array([w, x, y, z], dtype=np.float64)
    length = float(np.linalg.norm(q))
    if not (np.isfinite(length) and length > 0):
        raise UserError("a rotation is given by a quaternion of zeros")
    w, x, y, z = (float(value) for value in q / length)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def scatter_depth(uv: np.ndarray, z: np.ndarray, width: int, height: int) -> np.ndarray:
    """Points as a depth map: of several in one pixel the nearest.

    Args:
        uv: (N, 2) positions in pixels (the top-left pixel's centre is 0.5, 0.5).
        z: (N,) depths; points at or behind the camera and outside the picture are left out.

    Returns:
        float32 (height, width), 0 where there is no point.
    """
    depth = np.zeros((height, width), np.float32)
    with np.errstate(invalid="ignore"):
        inside = (z > 0) & np.isfinite(z) & (uv >= 0).all(-1) & (uv[:, 0] < width) & (uv[:, 1] < height)
    column, row = uv[inside].astype(np.int64).T
    near_last = np.argsort(-z[inside], kind="stable")  # of several values for a pixel numpy keeps the last
    depth[row[near_last], column[near_last]] = z[inside][near_last]
    return depth
