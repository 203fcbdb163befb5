"""Depth in 16 bits with the same relative precision near and far: codes that are even in log depth.

Code 0 is unknown, 65535 infinity (sky); v in 1..65534 is near^(1 - q) * far^q with q = (v - 1) / 65533.
The relative error is at most ln(far / near) / 131066, plus float32 rounding: below 1e-4 as long as
far / near < 4.9e5. (A linear 16-bit scale that reaches 65 m is off by 5e-4 at 1 m.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from modality_forcing.io.png import png_bytes

UNKNOWN, INFINITY, STEPS = 0, 65535, 65533
TEXT_KIND, TEXT_NEAR, TEXT_FAR, TEXT_UNIT = "depth_kind", "depth_near", "depth_far", "depth_unit"
LOG_KIND = "log_depth"  # value of the text chunk TEXT_KIND


def log_codes(depth: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Codes of a depth map, and the nearest and farthest depth, which span them.

    Args:
        depth: float (H, W); +inf is sky; 0, negative and NaN are unknown.

    Returns:
        uint16 (H, W), near, far (both 1 when no depth is known).
    """
    codes = np.zeros(depth.shape, np.uint16)
    known = np.isfinite(depth) & (depth > 0)
    codes[np.isposinf(depth)] = INFINITY
    if not known.any():
        return codes, 1.0, 1.0
    values = depth[known].astype(np.float64)
    near, far = float(values.min()), float(values.max())
    span = math.log(far / near)
    fraction = np.log(values / near) / span if span > 0 else np.zeros_like(values)
    codes[known] = np.rint(1 + STEPS * np.clip(fraction, 0, 1)).astype(np.uint16)
    return codes, near, far


def depth_of_log_codes(codes: np.ndarray, near: float, far: float) -> np.ndarray:
    """float32 (H, W): the depth of codes; 0 where nothing is known, +inf for sky.

    Raises:
        ValueError: not 0 < near <= far < infinity.
    """
    if not 0 < near <= far < math.inf:
        raise ValueError(f"near and far are {near} and {far}; right is 0 < near <= far")
    fraction = (codes.astype(np.float64) - 1.0) / STEPS
    depth = (near * np.exp(fraction * math.log(far / near))).astype(np.float32)
    depth[codes == UNKNOWN] = 0.0
    depth[codes == INFINITY] = np.inf
    return depth


def log_depth_png(depth: np.ndarray, unit: str) -> tuple[bytes, float, float]:
    """A 16-bit PNG of the codes that explains itself in its text chunks; near and far beside it.

    Args:
        depth: as of :func:`log_codes`, in ``unit``.
        unit: "m" or "relative".
    """
    codes, near, far = log_codes(depth)
    text = {TEXT_KIND: LOG_KIND, TEXT_NEAR: repr(near), TEXT_FAR: repr(far), TEXT_UNIT: unit}
    return png_bytes(codes, text), near, far


def depth_of_log_png(codes: np.ndarray, text: Mapping[str, str]) -> np.ndarray:
    """The depth of a PNG's pixels and text chunks, as of :func:`depth_of_log_codes`.

    Raises:
        ValueError: the pixels are not 16-bit gray, or near and far are missing or wrong.
    """
    if codes.ndim != 2 or codes.dtype != np.uint16:
        raise ValueError("log depth needs 16-bit gray pixels")
    try:
        near, far = float(text[TEXT_NEAR]), float(text[TEXT_FAR])
    except KeyError as error:
        raise ValueError(f"its PNG text has no {error}") from None
    return depth_of_log_codes(codes, near, far)
