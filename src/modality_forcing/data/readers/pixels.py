"""Pixels of data sets as they are stored: integers and four-channel pictures, nothing converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.io.checks import MAX_PIXELS


def read_integers(path: Path) -> np.ndarray:
    """uint8 or uint16 (H, W) of a gray PNG.

    Raises:
        UserError: missing, damaged, too large, or in colour.
    """
    values = _read(path, ("L", "I;16", "I"))
    return values.astype(np.uint16) if values.dtype == np.int32 else values


def read_rgba(path: Path) -> np.ndarray:
    """uint8 (H, W, 4) of a PNG with four channels.

    Raises:
        UserError: missing, damaged, too large, or of another kind.
    """
    return _read(path, ("RGBA",))


def _read(path: Path, modes: tuple[str, ...]) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in modes:
                raise UserError(f"{path.name} has the mode {image.mode}; right is {modes[0]} or its like")
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{path.name} is too large: {image.width}x{image.height}")
            return np.array(image)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path.name} does not exist") from None
    except Exception as error:  # format plugins raise nearly anything on damaged bytes
        raise UserError(f"{path.name} is no valid PNG: {' '.join(str(error).split())[:120]}") from None
