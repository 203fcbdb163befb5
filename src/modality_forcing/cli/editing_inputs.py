"""What ``mf complete`` and ``mf inpaint`` read besides the inputs of the other verbs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing.cli.inputs import DEPTH_ENDINGS
from modality_forcing.errors import UserError

if TYPE_CHECKING:
    import numpy as np

POINT_ENDINGS = (".csv", ".txt")
SPARSE_ENDINGS = (*DEPTH_ENDINGS, *POINT_ENDINGS)
FLOAT_ENDINGS = (".npy", ".npz", ".exr")


def read_sparse(path: Path, shape: tuple[int, int], scale: float | None) -> tuple[np.ndarray, str, list[str]]:
    """Sparse depth for an image of ``shape`` (H, W): float32 (H, W), NaN unknown, +inf sky; unit; notices.

    A table of points, an EXR and an array are taken as metres unless the file says otherwise, with a notice;
    whole numbers that do not say their scale stay "relative".
    """
    import numpy as np

    from modality_forcing.io.depth_files import read_depth
    from modality_forcing.io.point_files import read_points

    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise UserError(f"--depth-scale is {scale:g}; right is a positive number, 0.001 for millimetres")
    if path.suffix.lower() in POINT_ENDINGS:
        points = read_points(path, shape) * np.float32(1.0 if scale is None else scale)
        note = [] if scale is not None else [f"{path.name}: its depth is taken as metres"]
        return np.where(points > 0, points, np.nan).astype(np.float32), "m", note
    found = read_depth(path, kind="depth", scale=scale)
    same_size(f"depth map {path}", found.depth.shape, shape)
    unit, said = found.unit, list(found.notices)
    if unit != "m" and path.suffix.lower() in FLOAT_ENDINGS:
        unit = "m"
        said = [text for text in said if "does not say whether" not in text]
        said.append(f"{path.name} does not say its unit; taken as metres")
    return found.with_sky(), unit, said


def read_masks(given: Sequence[str], sizes: Sequence[tuple[int, int]], option: str) -> list[np.ndarray]:
    """One mask for all images, or one for each: bool (H, W), True where the picture is bright."""
    from modality_forcing.io.images import read_mask

    if len(given) not in (1, len(sizes)):
        raise UserError(
            f"{len(given)} files after {option} for {len(sizes)} images; give one, or one for each"
        )
    return [read_mask(given[i % len(given)], size) for i, size in enumerate(sizes)]


def same_size(name: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    """Refuse a map that is not of its image's size; both are (H, W)."""
    if tuple(found) != tuple(wanted):
        raise UserError(
            f"{name} is {found[1]}x{found[0]} pixels, its image {wanted[1]}x{wanted[0]}; sizes must agree"
        )
