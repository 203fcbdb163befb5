"""Pictures as bytes, for files that hold many of them: exact PNGs in, checked arrays out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import numpy as np
from PIL import Image, PngImagePlugin

# Measured on 128x128 renders (docs/data.md): smaller steps save little time, larger ones little space.
PNG_LEVEL = 4
_MODES = {"RGB": np.uint8, "L": np.uint8, "I;16": np.uint16}


def png_bytes(pixels: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file of uint8 (H, W, 3), uint8 (H, W) or uint16 (H, W).

    The same pixels and text give the same bytes with the same version of Pillow: nothing else enters.

    Args:
        pixels: the values, stored as they are.
        text: Latin-1 text chunks, in their order.

    Raises:
        ValueError: another shape or type.
    """
    kind = (pixels.dtype, pixels.ndim, pixels.shape[-1] if pixels.ndim == 3 else 1)
    if kind not in ((np.uint8, 3, 3), (np.uint8, 2, 1), (np.uint16, 2, 1)):
        raise ValueError(f"a PNG of {pixels.dtype} {pixels.shape}; right is uint8 RGB, uint8 or uint16 gray")
    info = PngImagePlugin.PngInfo()
    for name, value in (text or {}).items():
        info.add_text(name, value)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        stream, format="PNG", compress_level=PNG_LEVEL, pnginfo=info
    )
    return stream.getvalue()


def picture_from_bytes(content: bytes, kind: str, mode: str, size: tuple[int, int]) -> np.ndarray:
    """Decode a picture whose form is known beforehand.

    Args:
        content: the file.
        kind: "PNG" or "JPEG".
        mode: "RGB" (uint8 (H, W, 3); a gray JPEG too), "L" (uint8 (H, W)) or "I;16" (uint16 (H, W)).
        size: (width, height) it must have; checked before a pixel is decoded.

    Raises:
        ValueError: damaged, cut short, another format, mode or size. One short line.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the size is checked here
            with Image.open(io.BytesIO(content), formats=[kind]) as opened:
                image: Image.Image = opened
                if image.size != size:
                    raise ValueError(
                        f"it is {image.width}x{image.height} pixels instead of {size[0]}x{size[1]}"
                    )
                if kind == "JPEG" and mode == "RGB" and image.mode == "L":
                    image = image.convert("RGB")
                if image.mode != mode:
                    raise ValueError(f"its mode is {image.mode} instead of {mode}")
                return np.array(image, dtype=_MODES[mode])
    except ValueError:
        raise
    except Exception as error:  # format plugins raise nearly anything on damaged bytes
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"it is no whole {kind}: {reason}") from None
