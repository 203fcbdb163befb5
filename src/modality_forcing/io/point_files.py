"""Known distances as a table of x, y, z: what a total station, a tracker or structure from motion exports."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.io.checks import existing_file

MAX_BYTES = 500_000_000
_RIGHT = "right is x,y,z in each line: pixels from the left and the top, and z-depth"


def read_points(path: str | Path, shape: tuple[int, int]) -> np.ndarray:
    """Read a table of points as a sparse depth map.

    One point per line, three numbers parted by commas, semicolons, tabs or blanks: x, y in pixels of the
    image (the top-left pixel spans 0..1 and has its centre at 0.5) and z, the depth along the optical axis.
    A first line without numbers is a header; empty lines and lines that begin with # are skipped. Of several
    points in one pixel the nearest stays: it hides the others.

    Args:
        path: .csv or .txt.
        shape: (H, W) of the image.

    Returns:
        float32 (H, W), 0 where there is no point.

    Raises:
        UserError: unreadable, a line that is no three finite numbers, a point outside the image, a depth that
            is not positive, or no point at all.
    """
    path = existing_file(path, "points file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"points file {path} is larger than {MAX_BYTES // 10**6} MB; {_RIGHT}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"points file {path} is not text; {_RIGHT}") from None
    found: list[tuple[float, float, float]] = []
    first = True
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        cells = _cells(line)
        try:
            x, y, z = (float(cell) for cell in cells)
        except ValueError:
            if first and not any(_is_number(cell) for cell in cells):
                first = False
                continue
            raise UserError(f"points file {path}, line {number} is {line[:40]!r}; {_RIGHT}") from None
        first = False
        if not (0 <= x <= shape[1] and 0 <= y <= shape[0]):
            raise UserError(
                f"points file {path}, line {number}: ({x:g}, {y:g}) lies outside the "
                f"{shape[1]}x{shape[0]} image"
            )
        if not (np.isfinite(z) and z > 0):
            raise UserError(f"points file {path}, line {number}: depth {z:g}; right is a positive number")
        found.append((x, y, z))
    if not found:
        raise UserError(f"points file {path} holds no point; {_RIGHT}")
    points = np.array(found)
    cols = np.minimum(points[:, 0].astype(np.int64), shape[1] - 1)
    rows = np.minimum(points[:, 1].astype(np.int64), shape[0] - 1)
    depth = np.full(shape, np.inf, np.float64)
    np.minimum.at(depth, (rows, cols), points[:, 2])
    return np.where(np.isfinite(depth), depth, 0.0).astype(np.float32)


def _cells(line: str) -> list[str]:
    for mark in (";", "\t", ","):
        if mark in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]
    return line.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
