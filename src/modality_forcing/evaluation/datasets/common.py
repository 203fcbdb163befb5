"""What every reader gives, and the bytes behind it: a folder or an uncompressed tar of one."""

from __future__ import annotations

import io
import tarfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS
from modality_forcing.types import Camera


@dataclass
class EvalItem:
    """One image with its reference.

    Attributes:
        name: unique in its set.
        rgb: uint8 (H, W, 3).
        depth: float32 (H, W) z-depth, in metres unless the set says otherwise; +inf is sky, 0 unknown.
        caption: a description, "" when there is none.
        camera: intrinsics for this H x W where they are known.
        facts: more about it, such as the place of a procedural scene.
    """

    name: str
    rgb: np.ndarray
    depth: np.ndarray
    caption: str = ""
    camera: Camera | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class EvalSet(Protocol):
    """Images with reference depth, read one by one.

    Attributes:
        kind: "nyuv2", "kitti", "eth3d", "scannet", "diode", "lowpoly" or "folder": which rules of a protocol
            hold.
        source: what the user named.
        layout: which reader it is, for the report.
        names: of all items, in order.
    """

    kind: str
    source: str
    layout: str
    names: list[str]

    def read(self, index: int) -> EvalItem:
        """One item.

        Raises:
            UserError: it cannot be read; the message names it.
        """
        ...


class Files:
    """The files below a folder, or in an uncompressed tar, by their paths with "/"."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._places: dict[str, tuple[int, int]] | None = None
        if root.is_dir():
            return
        if not root.is_file():
            raise UserError(f"data {root} does not exist")
        try:
            with tarfile.open(root, "r:") as archive:
                self._places = {
                    member.name.removeprefix("./"): (member.offset_data, member.size)
                    for member in archive
                    if member.isfile()
                }
        except (tarfile.TarError, OSError) as error:
            raise UserError(
                f"data {root} is no folder and no uncompressed tar: {' '.join(str(error).split())[:120]}"
            ) from None

    def names(self) -> list[str]:
        """All files, sorted."""
        if self._places is not None:
            return sorted(self._places)
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def __contains__(self, name: str) -> bool:
        return name in self._places if self._places is not None else (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        """The content of one file; safe from several threads.

        Raises:
            UserError: it is missing, empty or cannot be read.
        """
        try:
            if self._places is None:
                content = (self.root / name).read_bytes()
            else:
                offset, size = self._places[name]
                with self.root.open("rb") as stream:
                    stream.seek(offset)
                    content = stream.read(size)
        except KeyError:
            raise UserError(f"{name} is not in {self.root}") from None
        except OSError as error:
            raise UserError(f"{name} in {self.root} cannot be read: {error.strerror or error}") from None
        if not content:
            raise UserError(f"{name} in {self.root} is empty")
        return content


def decode_picture(content: bytes, name: str) -> Image.Image:
    """A decoded picture of any mode.

    Raises:
        UserError: no picture, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit is here
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{name} is {image.width}x{image.height} pixels, above the limit")
            image.load()
            return image
    except UserError:
        raise
    except Exception as error:  # format plugins raise nearly anything on damaged bytes
        raise UserError(f"{name} is no whole picture: {' '.join(str(error).split())[:120]}") from None


def decode_rgb(content: bytes, name: str) -> np.ndarray:
    """uint8 (H, W, 3) of a picture file; errors as of :func:`decode_picture`."""
    return np.array(decode_picture(content, name).convert("RGB"))


def decode_integers(content: bytes, name: str) -> np.ndarray:
    """uint16 (H, W) of a one-channel PNG; errors as of :func:`decode_picture`."""
    values = np.asarray(decode_picture(content, name))
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name} is {values.dtype} {values.shape}; right is a 16-bit gray PNG")
    return values.astype(np.uint16)


def same_size(item: EvalItem) -> EvalItem:
    """``item`` itself.

    Raises:
        UserError: its picture and its depth differ in size.
    """
    if item.rgb.shape[:2] != item.depth.shape:
        height, width = item.depth.shape
        raise UserError(
            f"{item.name}: the picture is {item.rgb.shape[1]}x{item.rgb.shape[0]}, its depth {width}x{height}"
        )
    return item
