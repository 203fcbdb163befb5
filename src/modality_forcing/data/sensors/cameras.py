"""Depth cameras: structured light, passive stereo, time of flight. Dense, with holes of their own."""

from __future__ import annotations

import math

import numpy as np

from modality_forcing.data.sensors.common import View, most_likely, thin

STRUCTURED_NEAR, STRUCTURED_REACH = 0.4, 8.0
STRUCTURED_BASELINE = 0.075
# Step of 1/z between two disparities of the first Kinect, per metre (Khoshelham and Elberink 2012, table of
# their section 4: 2.85e-5 z^2 with z in centimetres).
STRUCTURED_STEP = 0.00285

STEREO_BASELINES = (0.06, 0.5)
STEREO_WIDEST = 0.1
STEREO_DISPARITIES = (1.0, 192.0)
STEREO_SIGMA = 0.3
STEREO_STEP = 1.0 / 8.0

TOF_NEAR, TOF_REACH = 0.25, 6.0
TOF_SIGMA = 0.002
TOF_FLYING = 0.5


def _lit(view: View, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """bool (H, W): enough of the sensor's own light comes back: albedo cos(angle) / z^2 above a threshold
    that is drawn log-uniformly from [low, high], and the surface is neither grazed nor dazzling."""
    threshold = math.exp(rng.uniform(math.log(low), math.log(high)))
    light = view.reflectance * view.cosine * view.inverse**2
    return (light > threshold) & (view.cosine > 0.15) & (view.reflectance < 0.92)


def structured_light(view: View, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """A camera beside a projector: holes at edges of depth, in the projector's shadow on one side of what
    stands in front, on dark, dazzling and grazed surfaces, nearer than 0.4 m and beyond 8 m. Baseline 7.5
    cm."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    possible = view.finite & (view.z >= STRUCTURED_NEAR) & (view.z <= (reach or STRUCTURED_REACH))
    possible &= _lit(view, 0.0005, 0.003, rng) & ~view.edges
    if possible.any():
        possible &= ~view.hidden(side * STRUCTURED_BASELINE)
    return thin(possible, count, rng)


def structured_light_noise(
    view: View, at: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """z + strength n (0.0012 + 0.0019 (z - 0.4)^2) metres (Nguyen, Izadi and Lovell 2012), then 1/z rounded
    to multiples of strength x 0.00285 per metre (Khoshelham and Elberink 2012)."""
    z = view.z[at]
    sigma = 0.0012 + 0.0019 * (z - 0.4) ** 2
    z = np.maximum(z + strength * sigma * rng.standard_normal(z.size, dtype=np.float32), 0.1 * z)
    step = strength * STRUCTURED_STEP
    return 1.0 / (np.maximum(np.rint(1.0 / (z * step)), 1.0) * step)


def stereo(view: View, count: int, reach: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Two cameras side by side and a matcher; also returns the baseline in metres.

    The left camera is ours. Missing is what the right one does not see (a band left of what stands in
    front, and the left border of the picture), what has no texture in a window of 5 pixels, and disparities
    outside 1..192 pixels of a picture 640 wide. Thinned in proportion to the texture. The baseline is drawn
    log-uniformly from 6 cm to 50 cm, but to a tenth of the median depth where that is less.
    """
    low, high = STEREO_BASELINES
    if view.finite.any():
        high = min(max(STEREO_WIDEST * float(np.median(view.depth[view.finite])), low), high)
    baseline = math.exp(rng.uniform(math.log(low), math.log(high)))
    weak = rng.uniform(0.2, 1.0)
    disparity = view.focal_reference * baseline * view.inverse
    possible = view.finite & (disparity >= STEREO_DISPARITIES[0]) & (disparity <= STEREO_DISPARITIES[1])
    if reach:
        possible &= view.z <= reach
    texture = view.texture(5)
    possible &= texture > weak
    if possible.any():
        possible &= ~view.hidden(baseline)
    return most_likely(np.where(possible, texture, 0.0), count, rng), baseline


def stereo_noise(
    view: View, at: np.ndarray, strength: float, rng: np.random.Generator, baseline: float
) -> np.ndarray:
    """Disparity d = f b / z in pixels of a picture 640 wide: d + strength 0.3 n, rounded to strength / 8
    pixels. The error of depth grows as z^2 / (f b), as for any triangulation; 0.3 and 1/8 pixels are ours,
    of the size that semi-global matchers reach."""
    z = view.z[at]
    scale = view.focal_reference * baseline
    d = scale / z + strength * STEREO_SIGMA * rng.standard_normal(z.size, dtype=np.float32)
    step = strength * STEREO_STEP
    # Beyond twice the depth the match would have fallen below the smallest disparity.
    return scale / np.maximum(np.rint(d / step) * step, 0.5 * scale / z)


def time_of_flight(view: View, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """A flash and a clock per pixel: no shadow, holes on dark, dazzling and grazed surfaces, nearer than
    0.25 m and beyond 6 m."""
    possible = view.finite & (view.z >= TOF_NEAR) & (view.z <= (reach or TOF_REACH))
    return thin(possible & _lit(view, 0.0002, 0.001, rng), count, rng)


def time_of_flight_noise(view: View, at: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """z + strength n 0.002 z / sqrt(albedo cos(angle)) metres: shot noise, which falls with the root of the
    light that returns (Lange 2000; 2 mm at one metre on white is ours). At edges of depth a share of
    strength / 2 (at most all) are flying pixels: anywhere between this depth and the one across the edge."""
    z = view.z[at]
    light = np.maximum(view.reflectance[at] * view.cosine[at], 0.01)
    out = z + strength * TOF_SIGMA * z / np.sqrt(light) * rng.standard_normal(z.size, dtype=np.float32)
    across = _across(view)[at]
    mixed = (rng.random(z.size, dtype=np.float32) < min(TOF_FLYING * strength, 1.0)) & (across > 0)
    return np.where(mixed, out + rng.random(z.size, dtype=np.float32) * (across - z), out)


def _across(view: View) -> np.ndarray:
    """float32 (H, W): at an edge, the depth of the neighbour that differs most; 0 elsewhere or if it is
    sky."""
    z = np.pad(view.z, 1, mode="edge")
    here = view.z
    out = np.zeros_like(here)
    most = np.zeros_like(here)
    for other in (z[:-2, 1:-1], z[2:, 1:-1], z[1:-1, :-2], z[1:-1, 2:]):
        gap = np.where(other < 1e6, np.abs(other - here), 0.0)
        out = np.where(gap > most, other, out)
        most = np.maximum(most, gap)
    return np.where(view.edges, out, np.float32(0.0))
