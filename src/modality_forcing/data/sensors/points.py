"""Sensors of points: any pixels, everything, and the keypoints of structure from motion."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from modality_forcing.data.sensors.common import View, most_likely, thin

POINT_NOISE = 0.01
KEYPOINT_PIXELS = 0.5
KEYPOINT_BASELINE = 0.1
KEYPOINT_OUTLIERS = 0.05


def random_points(view: View, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels of equal chance among all that show something solid ("random" and "dense")."""
    return thin(view.finite & (view.z <= (reach or np.inf)), count, rng)


def random_noise(view: View, at: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """z (1 + strength 0.01 n), n normal: 1 % of the depth (ours)."""
    z = view.z[at]
    return z * (1.0 + strength * POINT_NOISE * rng.standard_normal(z.size, dtype=np.float32))


def keypoints(view: View, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Corners of the picture, the strongest most often: pixels drawn without replacement in proportion to the
    smaller eigenvalue of the structure tensor (Shi and Tomasi 1994), local maxima a hundred times as
    often."""
    grey = view.rgb.mean(-1, dtype=np.float32)
    if min(grey.shape) < 2:
        return np.zeros(grey.shape, bool)
    gy, gx = np.gradient(grey)
    xx, yy, xy = (ndimage.uniform_filter(product, 3) for product in (gx * gx, gy * gy, gx * gy))
    corner = 0.5 * (xx + yy) - np.sqrt(0.25 * (xx - yy) ** 2 + xy * xy)
    # The difference of equal sums leaves rounding in flat places, which are no corners.
    corner = np.where(corner > 1e-3 * (xx + yy) + 0.05, corner, 0.0)
    corner = np.where(view.finite & (view.z <= (reach or np.inf)), corner, 0.0)
    peak = corner >= ndimage.maximum_filter(corner, 3)
    return most_likely(np.where(peak, corner, 0.01 * corner), count, rng)


def keypoint_noise(view: View, at: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Triangulation between two views: z + strength n z^2 p / (f b) with p = 0.5 pixels, f in pixels of a
    picture 640 wide and b a tenth of the median depth (Hartley and Zisserman 2004, section 12.6; constants
    ours). A share of 5 % x strength (at most half) are wrong matches: z exp(0.5 n)."""
    z = view.z[at]
    baseline = KEYPOINT_BASELINE * float(np.median(z)) if z.size else 1.0
    sigma = z * z * (KEYPOINT_PIXELS / (view.focal_reference * baseline))
    wrong = rng.random(z.size, dtype=np.float32) < min(KEYPOINT_OUTLIERS * strength, 0.5)
    n = rng.standard_normal(z.size, dtype=np.float32)
    return np.where(wrong, z * np.exp(0.5 * n), z + strength * sigma * n)
