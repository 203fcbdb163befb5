"""The process that decodes uploads: nothing else ever looks into bytes of strangers.

It holds no model and no secrets, has a bound on its memory, and is ended when it takes too long. Which reader
is used follows from the first bytes of a file, never from a name, and only formats that are data are known.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.io.depth_files import read_depth, write_npy
from modality_forcing.io.images import exif_fov, read_image, read_mask
from modality_forcing.server.child import messages, own_output

MEMORY = 4 * 2**30  # bytes of address space besides what the process has when it starts
LARGEST_FILE = 2**30  # bytes: what a decoded upload may take on disk
PICTURES = ("PNG", "JPEG", "MPO", "WEBP", "TIFF")  # MPO: a JPEG with a preview behind it
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"\x93NUMPY", ".npy"),
    (b"PK\x03\x04", ".npz"),
    (b"\x76\x2f\x31\x01", ".exr"),
)
_ENDINGS = {
    "image": (".png", ".jpg", ".webp", ".tif"),
    "mask": (".png", ".jpg", ".webp", ".tif"),
    "depth": (".png", ".tif", ".npy", ".npz", ".exr"),
}
_RIGHT = {
    "image": "a PNG, JPEG, WebP or TIFF picture",
    "mask": "a black and white PNG, JPEG, WebP or TIFF picture",
    "depth": "a .npy, .npz, PNG, TIFF or EXR depth map",
}


def kind_of(data: bytes) -> str | None:
    """The ending that fits a file's first bytes, None for all that is not let in."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((ending for start, ending in _STARTS if data.startswith(start)), None)


def decode(request: dict[str, Any]) -> dict[str, Any]:
    """Decode one upload to an ``.npy`` file.

    Args:
        request: ``kind`` ("image", "depth", "mask"), ``folder`` and the names ``file`` and ``out`` in it,
            ``max_pixels``; for depth ``depth_kind`` and ``depth_scale``; for a mask the ``shape`` (H, W)
            it must have.

    Returns:
        ``shape`` [H, W], ``notices``, ``unit`` of a depth map, ``fov_x`` of a photograph that knows it.

    Raises:
        UserError: not such a file, damaged, or too large.
    """
    os.chdir(request["folder"])  # so no message of any reader can say where that is
    path, kind = Path(request["file"]), request["kind"]
    with path.open("rb") as stream:
        ending = kind_of(stream.read(16))
    if ending not in _ENDINGS[kind]:
        raise UserError(f"{kind} {path} is no file that is read here; right is {_RIGHT[kind]}")
    path = path.rename(path.with_suffix(ending))
    found: dict[str, Any] = {"notices": [], "unit": "relative", "fov_x": None}
    _check_area(path, ending, kind, request["max_pixels"])
    if kind == "image":
        picture = read_image(path, max_pixels=request["max_pixels"])
        found |= {"notices": picture.notices, "fov_x": exif_fov(path)}
        values = picture.pixels
    elif kind == "mask":
        values = read_mask(path, tuple(request["shape"]))
    else:
        depth = read_depth(path, kind=request.get("depth_kind"), scale=request.get("depth_scale"))
        if depth.depth.size > request["max_pixels"]:  # what no header told
            raise UserError(_too_many(kind, path, depth.depth.shape, request["max_pixels"]))
        found |= {"notices": depth.notices, "unit": depth.unit}
        values = depth.with_sky()
    write_npy(request["out"], values)
    return found | {"shape": list(values.shape[:2])}


def _check_area(path: Path, ending: str, kind: str, limit: int) -> None:
    """Refuse by the header alone what would decode to more than ``limit`` pixels (depth: values)."""
    try:
        shape = _declared_shape(path, ending)
    except Exception:  # a damaged header: the reader says so in better words
        return
    # Channels are let through up to four: the readers have better words about colours.
    if math.prod(shape) > (limit if len(shape) == 2 else 4 * limit):
        raise UserError(_too_many(kind, path, shape, limit))


def _too_many(kind: str, path: Path, shape: tuple[int, ...], limit: int) -> str:
    size = "x".join(str(number) for number in shape)
    return f"{kind} {path} has {size} values; the limit is {limit / 1e6:.3g} million pixels, make it smaller"


def _declared_shape(path: Path, ending: str) -> tuple[int, ...]:
    if ending == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False).shape
    if ending == ".npz":
        import zipfile

        with zipfile.ZipFile(path) as archive:
            return (max(info.file_size for info in archive.infolist()) // 8,)
    if ending == ".exr":
        import OpenEXR

        with OpenEXR.File(str(path), header_only=True) as file:
            low, high = file.header()["dataWindow"]
            return tuple(int(high[i]) - int(low[i]) + 1 for i in (1, 0))
    if ending == ".tif":
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            return tuple(tiff.pages.first.shape)
    with Image.open(path, formats=PICTURES) as image:
        return image.height, image.width


def restrict() -> None:
    """Bound this process and take every other format from the picture library."""
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in PICTURES]
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        for which, limit in ((resource.RLIMIT_AS, used + MEMORY), (resource.RLIMIT_FSIZE, LARGEST_FILE)):
            resource.setrlimit(which, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer each request with ``{"ok": ...}`` or ``{"error": text, "status": 413 or 422}``."""
    output = own_output()
    restrict()
    print(json.dumps({"ready": True}), file=output, flush=True)
    for request in messages():
        answer: dict[str, Any]
        try:
            answer = {"ok": decode(request)}
        except UserError as error:
            answer = {"error": str(error), "status": 422}
        except MemoryError:
            answer = {"error": f"{request['kind']} needs too much memory; make it smaller", "status": 413}
        except Exception as error:  # a reader's own fault: the upload is refused, the reason goes to the log
            import traceback

            traceback.print_exc()
            answer = {"error": f"{request['kind']} cannot be read ({type(error).__name__})", "status": 422}
        print(json.dumps(answer), file=output, flush=True)


if __name__ == "__main__":
    main()
