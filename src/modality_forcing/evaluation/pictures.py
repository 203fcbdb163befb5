"""One picture's result at a glance: image, reference, prediction and error side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.io.atomic import atomic_file
from modality_forcing.viz import COLOR_MAPS, INVALID_GRAY, colorize

HEIGHT = 192  # pixels: height of a strip
WORST = 0.5  # relative error shown as the brightest colour
QUALITY = 88


def save_strip(
    path: Path, rgb: np.ndarray, target: np.ndarray, valid: np.ndarray, aligned: np.ndarray
) -> None:
    """Write image | reference | aligned prediction | relative error as a JPEG.

    Reference and prediction share their colours, which span the 2 to 98 % quantiles of the reference's
    disparity.
    """
    known = target[valid].astype(np.float64)
    near, far = (float(v) for v in np.quantile(known, (0.02, 0.98)))
    limits = (near, far) if far > near * (1 + 1e-6) else (near * 0.9, near * 1.1)
    panels = [
        rgb,
        colorize(target, valid, limits=limits),
        colorize(aligned, np.isfinite(aligned) & (aligned > 0), limits=limits),
        error_map(target, valid, aligned),
    ]
    width = max(1, round(rgb.shape[1] * HEIGHT / rgb.shape[0]))
    resized = [
        np.asarray(Image.fromarray(panel).resize((width, HEIGHT), Image.Resampling.BILINEAR))
        for panel in panels
    ]
    with atomic_file(path) as aside:
        Image.fromarray(np.concatenate(resized, axis=1)).save(aside, format="JPEG", quality=QUALITY)


def error_map(target: np.ndarray, valid: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): |p - g| / g, black for 0, brightest from ``WORST`` on; gray where nothing is known."""
    picture = np.empty((*target.shape, 3), dtype=np.uint8)
    picture[:] = INVALID_GRAY
    relative = np.abs(aligned[valid] - target[valid]) / target[valid]
    picture[valid] = COLOR_MAPS["magma"][np.rint(np.clip(relative / WORST, 0, 1) * 255).astype(np.uint8)]
    return picture
