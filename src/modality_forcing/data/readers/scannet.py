"""Format "scannet": ScanNet (Dai et al. 2017), as ``.sens`` streams or as the frames exported from them.

Layouts: https://github.com/ScanNet/ScanNet, SensReader (SensorData.py and the exporter): color/0.jpg,
depth/0.png (millimetres), intrinsic/intrinsic_color.txt and intrinsic_depth.txt (4x4). Colour and depth are
registered to one viewpoint but have different sizes and intrinsics. Here depth is looked up for each pixel of
the colour picture, reduced to the width of the depth map. Calibration puts the centre of the first pixel at 0
(OpenCV); half a pixel is added to follow this project.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from modality_forcing.data.readers.base import (
    IMAGE_ENDINGS,
    MILLIMETRES,
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
from modality_forcing.data.readers.pixels import read_integers
from modality_forcing.data.readers.resample import see_depth_with
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

OPTIONS = ()
LAYOUT = (
    "scene0000_00/scene0000_00.sens, or scene0000_00/ with color/0.jpg, depth/0.png and intrinsic/"
    "intrinsic_color.txt, intrinsic_depth.txt"
)
SENS_VERSION = 4
JPEG, ZLIB_USHORT = 2, 1  # numbers of the compression of colour and depth; the others were never published
_DEEP = 3
_MAX_FRAME = 100_000_000  # bytes
_FRAME = struct.Struct("<16fQQQQ")  # pose, two times, bytes of colour and of depth


def find(source: Path, options: Options) -> Found:
    """All exported frames, and all frames of ``.sens`` files whose scene was not exported.

    Raises:
        UserError: the folder cannot be read.
    """
    found = Found()
    exported = set()
    for folder in folders_named(source, "intrinsic", _DEEP):
        scene = folder.parent
        exported.add(scene)
        cameras = {name: folder / f"intrinsic_{name}.txt" for name in ("color", "depth")}
        try:
            matrices = {name: read_matrix(path) for name, path in cameras.items()}
        except UserError as error:
            found.problems.append((relative_name(scene, source), str(error)))
            continue
        depths = by_stem(scene / "depth", (".png",))
        for stem, path in by_stem(scene / "color", IMAGE_ENDINGS).items():
            if stem in depths:
                paths = {"image": path, "depth": depths.pop(stem)}
                found.items.append(Item(relative_name(path, source), paths, matrices))
            else:
                found.problems.append((relative_name(path, source), "no depth of the same name"))
        found.problems += [
            (relative_name(path, source), "no image of the same name") for path in depths.values()
        ]
    streams = [source] if source.suffix == ".sens" else _streams(source, _DEEP)
    for path in streams:
        if path.parent not in exported:
            _find_in_stream(found, path, source)
    found.items.sort(key=lambda item: (item.name.rpartition("/")[0], len(item.name), item.name))
    return found


def load(item: Item, options: Options) -> Loaded:
    """Read one frame, exported or from a stream."""
    facts = item.facts
    if "stream" in item.paths:
        with item.paths["stream"].open("rb") as stream:
            stream.seek(facts["at"])
            content = stream.read(facts["color_bytes"] + facts["depth_bytes"])
        if len(content) != facts["color_bytes"] + facts["depth_bytes"]:
            raise UserError("the stream ends inside it")
        rgb = _jpeg(content[: facts["color_bytes"]])
        depth = _depth(content[facts["color_bytes"] :], facts["depth_size"]) * np.float32(facts["metres"])
    else:
        rgb = read_picture(item.paths["image"])[0]
        depth = read_integers(item.paths["depth"]) * np.float32(MILLIMETRES)
    height, width = rgb.shape[:2]
    color = facts["color"]
    camera = Camera(
        float(color[0, 0]), float(color[1, 1]), float(color[0, 2]), float(color[1, 2]), width, height
    )
    # The picture shrinks to the depth map's width: a larger one would repeat what was measured once.
    new_width = min(width, depth.shape[1])
    camera = camera.resized(new_width, round(height * new_width / width))
    if camera.width != width:
        picture = Image.fromarray(rgb).resize((camera.width, camera.height), Image.Resampling.LANCZOS)
        rgb = np.array(picture)
    seen = see_depth_with(clean_depth(depth), facts["depth"], camera.matrix(), camera.width, camera.height)
    return Loaded(rgb, seen, camera)


def read_matrix(path: Path) -> np.ndarray:
    """float64 (3, 3) of a 4x4 matrix in text, moved to pixel centres at .5.

    Raises:
        UserError: no such file, or no matrix.
    """
    try:
        matrix = np.array(path.read_text(encoding="ascii").split(), dtype=np.float64).reshape(4, 4)
    except (OSError, ValueError):
        raise UserError(f"{path.name} is missing or holds no 4x4 matrix") from None
    return _centred(matrix)


def _centred(matrix: np.ndarray) -> np.ndarray:
    matrix = np.array(matrix[:3, :3], dtype=np.float64)
    matrix[:2, 2] += 0.5
    if not (np.isfinite(matrix).all() and min(matrix[0, 0], matrix[1, 1]) > 0):
        raise UserError("its intrinsic matrix has no focal length")
    return matrix


def _streams(folder: Path, depth: int) -> list[Path]:
    if not folder.is_dir():
        return []
    found = sorted(folder.glob("*.sens"))
    if depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir():
                found += _streams(child, depth - 1)
    return found


def _find_in_stream(found: Found, path: Path, source: Path) -> None:
    base = path.stem if path == source else relative_name(path, source)
    try:
        with path.open("rb") as stream:
            facts, frames = _head(stream)
            size = path.stat().st_size
            for number in range(frames):
                head = stream.read(_FRAME.size)
                if len(head) < _FRAME.size:
                    raise UserError(f"it ends after {number} of {frames} frames")
                *_, color, depth = _FRAME.unpack(head)
                at = stream.tell()
                if max(color, depth) > _MAX_FRAME or at + color + depth > size:
                    raise UserError(f"it ends after {number} of {frames} frames")
                own = {"at": at, "color_bytes": color, "depth_bytes": depth}
                found.items.append(Item(f"{base}/{number}", {"stream": path}, facts | own))
                stream.seek(color + depth, 1)
    except (UserError, OSError, struct.error) as error:
        found.problems.append((path.name, str(error)))


def _head(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """What holds for all frames of a stream, and their number."""

    def take(form: str) -> tuple:
        return struct.unpack(form, stream.read(struct.calcsize(form)))

    version, length = take("<IQ")
    if version != SENS_VERSION or length > 1000:
        raise UserError(f"it is no .sens file of version {SENS_VERSION}")
    stream.read(length)
    matrices = [np.array(take("<16f")).reshape(4, 4) for _ in range(4)]  # colour, its pose, depth, its pose
    color, depth, _width, _height, width, height, shift, frames = take("<iiIIIIfQ")
    if (color, depth) != (JPEG, ZLIB_USHORT) or not shift > 0 or not 0 < width * height < 10**8:
        raise UserError("its frames are not JPEG and zlib")
    facts = {"color": _centred(matrices[0]), "depth": _centred(matrices[2]), "metres": 1.0 / shift,
             "depth_size": (height, width)}  # fmt: skip
    return facts, frames


def _jpeg(content: bytes) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return np.array(image.convert("RGB"))
    except Exception as error:  # format plugins raise nearly anything on damaged bytes
        raise UserError(f"its colour is no valid JPEG: {' '.join(str(error).split())[:100]}") from None


def _depth(content: bytes, size: tuple[int, int]) -> np.ndarray:
    expected = 2 * size[0] * size[1]
    try:
        plain = zlib.decompressobj().decompress(content, expected + 1)
    except zlib.error as error:
        raise UserError(f"its depth is damaged: {error}") from None
    if len(plain) != expected:
        raise UserError(f"its depth has {len(plain)} bytes instead of {expected}")
    return np.frombuffer(plain, "<u2").reshape(size)
