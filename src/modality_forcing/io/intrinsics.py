"""Reading camera intrinsics: numbers on the command line, or a small file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.io.checks import existing_file
from modality_forcing.types import Camera

_MAX_BYTES = 1_000_000
_RIGHT = "right is fx,fy,cx,cy or a .json or .txt file with a 3x3 matrix"


def read_intrinsics(text: str | Path) -> Camera | np.ndarray:
    """Parse what the user gave for ``--intrinsics``; feed the result to ``geometry.camera.resolve_camera``.

    Args:
        text: ``"fx,fy,cx,cy"`` in pixels, or the path of a file: ``.json`` with a 3x3 list or an object
            holding it under ``camera``, ``K``, ``intrinsics`` or ``camera_matrix``, or fx, fy, cx, cy (with
            width and height: then the camera follows a resize; our ``metadata.json`` is such a file);
            any other ending: numbers as text, 3x3 or four.

    Returns:
        A Camera where the file tells the image size, else float64 (3, 3) or (4,).

    Raises:
        UserError: unreadable, or not in one of these forms.
    """
    numbers = _numbers(str(text))
    if numbers is not None:
        if len(numbers) != 4:
            raise UserError(f"intrinsics '{text}' has {len(numbers)} numbers; {_RIGHT}")
        return numbers
    path = existing_file(text, "intrinsics file")
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"intrinsics file {path} is larger than a megabyte; {_RIGHT}")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"intrinsics file {path} is not text; {_RIGHT}") from None
    if path.suffix.lower() == ".json":
        try:
            found = _from_json(json.loads(content))
        except (json.JSONDecodeError, RecursionError):
            raise UserError(f"intrinsics file {path} is not valid JSON; {_RIGHT}") from None
        except (TypeError, ValueError, KeyError):
            found = None
    else:
        found = _numbers(content)
        if found is not None and len(found) == 9:
            found = found.reshape(3, 3)
    if found is None or (isinstance(found, np.ndarray) and found.shape not in ((4,), (3, 3))):
        raise UserError(f"intrinsics file {path} holds no camera; {_RIGHT}")
    return found


def _numbers(text: str) -> np.ndarray | None:
    for mark in ",;[]()":
        text = text.replace(mark, " ")
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        return None
    return np.array(values) if values else None


def _from_json(value: Any) -> Camera | np.ndarray | None:
    if isinstance(value, list):
        return np.array(value, dtype=np.float64)
    if not isinstance(value, dict):
        return None
    if {"fx", "fy", "cx", "cy"} <= value.keys():
        four = [float(value[name]) for name in ("fx", "fy", "cx", "cy")]
        if "width" in value and "height" in value:
            width, height = int(value["width"]), int(value["height"])
            return (
                Camera(four[0], four[1], four[2], four[3], width, height) if min(width, height) > 0 else None
            )
        return np.array(four)
    for key in ("camera", "K", "intrinsics", "camera_matrix"):
        if key in value:
            return _from_json(value[key])
    return None
