"""Any data set in the layout of MoGe's evaluation archives (spec section 11).

``.index.txt`` names one folder per line; each holds ``image.jpg``, ``depth.png`` (16 bit, even in log depth,
near and far in the PNG's text) and ``meta.json`` (intrinsics in shares of width and height).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.evaluation.datasets.common import EvalItem, Files, decode_picture, decode_rgb, same_size
from modality_forcing.io.log_depth import depth_of_log_codes
from modality_forcing.types import Camera

INDEX = ".index.txt"


class MogeSet:
    """One archive, unpacked or as a tar.

    Args:
        kind: which rules of a protocol hold; "folder" for sets the protocols do not know.
        root: folder or uncompressed tar with ``.index.txt``.
        split: another index file.

    Raises:
        UserError: no index, or an empty one.
    """

    layout = "moge"

    def __init__(self, kind: str, root: Path, split: Path | None = None) -> None:
        self.kind, self.source = kind, str(root)
        self.files = Files(root)
        try:
            text = split.read_text(encoding="utf-8") if split else self.files.read(INDEX).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the index of {root} cannot be read: {error}") from None
        self.names = [line.strip().strip("/") for line in text.splitlines() if line.strip()]
        if not self.names:
            raise UserError(f"the index of {root} names no sample")

    def read(self, index: int) -> EvalItem:
        """One sample; see ``EvalSet``."""
        name = self.names[index]
        rgb = decode_rgb(self.files.read(f"{name}/image.jpg"), f"{name}/image.jpg")
        where = f"{name}/depth.png"
        picture = decode_picture(self.files.read(where), where)
        codes = np.asarray(picture)
        if codes.ndim != 2:
            raise UserError(f"{where} has colours; right is 16-bit gray")
        text = getattr(picture, "text", {})
        try:
            near, far = float(text["near"]), float(text["far"])
            depth = depth_of_log_codes(codes.astype(np.uint16), near, far)
        except KeyError as error:
            raise UserError(f"the PNG text of {where} has no {error}") from None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        camera = self._camera(name, rgb.shape[1], rgb.shape[0])
        return same_size(EvalItem(name, rgb, depth, camera=camera))

    def _camera(self, name: str, width: int, height: int) -> Camera | None:
        where = f"{name}/meta.json"
        if where not in self.files:
            return None
        try:
            k = np.array(json.loads(self.files.read(where))["intrinsics"], dtype=np.float64)
            if k.shape != (3, 3) or not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
                raise ValueError("its intrinsics are no 3x3 camera matrix")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where} cannot be used: {error}") from None
        return Camera(k[0, 0] * width, k[1, 1] * height, k[0, 2] * width, k[1, 2] * height, width, height)
