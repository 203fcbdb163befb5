"""Spinning lidar: rows of constant elevation, steps of azimuth, returns that get lost."""

from __future__ import annotations

import math

import numpy as np

from modality_forcing.data.sensors.common import View, thin

REACH = 120.0
"""Metres: what spinning scanners for cars state."""
NOISE_METRES = 0.02
# Range at which white, seen frontally, comes back with probability 0.49.
HALF_RETURN = 200.0
BEST_RETURN = 0.98
# Water mirrors the beam away: what is level, bluish and smooth keeps this share of its reflectance.
WATER = 0.03


def _angles(view: View, pitch: float, roll: float) -> tuple[np.ndarray, np.ndarray]:
    """Azimuth (H, W + 1) at the left and right borders of the pixels and elevation (H + 1, W) at their upper
    and lower borders, radians, for a scanner turned by pitch and roll against the camera."""
    camera = view.camera
    h, w = view.depth.shape
    x0 = ((np.arange(w + 1, dtype=np.float32) - camera.cx) / camera.fx)[None].astype(np.float32)
    y0 = ((np.arange(h + 1, dtype=np.float32) - camera.cy) / camera.fy)[:, None].astype(np.float32)
    x = x0 * math.cos(roll) - y0 * math.sin(roll)
    y1 = x0 * math.sin(roll) + y0 * math.cos(roll)
    y = y1 * math.cos(pitch) - math.sin(pitch)
    z = y1 * math.sin(pitch) + math.cos(pitch)
    azimuth = np.arctan2(x, z)
    elevation = np.arctan2(-y, np.hypot(x, z))
    return 0.5 * (azimuth[1:] + azimuth[:-1]), 0.5 * (elevation[:, 1:] + elevation[:, :-1])


def _crossed(angle: np.ndarray, step: float, phase: float, axis: int) -> np.ndarray:
    """bool: a multiple of the step lies between the two borders of a pixel."""
    return np.diff(np.floor(angle / step + phase), axis=axis) != 0


def return_chance(view: View) -> np.ndarray:
    """float32 (H, W): how likely a pulse comes back, 0.98 s / (s + 1) with s = albedo cos(angle) (200 m /
    range)^2.

    The falling with range, albedo and angle is the lidar equation for surfaces larger than the beam (Wagner
    2010, "Radiometric calibration of small-footprint full-waveform airborne laser scanner measurements");
    the constants and the soft threshold are ours.
    """
    distance = view.z * view.rays[2]
    rgb = view.rgb
    water = (view.normals[..., 1] < -0.93) & (rgb[..., 2] > rgb[..., 0] + (rgb[..., 0] >> 3) + 8)
    albedo = np.where(water, WATER * view.reflectance, view.reflectance)
    signal = albedo * view.cosine * (HALF_RETURN / distance) ** 2
    return BEST_RETURN * signal / (signal + 1.0)


def lidar(view: View, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels that a beam passes through and that return it.

    Rows are curves of constant elevation as this camera sees them; the rows' distance is 2 to 12 times the
    step of azimuth (at the finest one step per pixel). Above 3 to 25 degrees there are none. The scanner is
    turned by a few degrees of pitch and roll against the camera and shares its centre.
    """
    pitch, roll = np.clip(rng.standard_normal(2) * math.radians(1.5), -0.1, 0.1)
    top = math.radians(rng.uniform(3.0, 25.0))
    ratio = math.exp(rng.uniform(math.log(2.0), math.log(12.0)))
    phase_row, phase_step = rng.random(2)
    azimuth, elevation = _angles(view, pitch, roll)
    possible = view.finite & (view.z <= (reach or REACH)) & (elevation[1:] < top)
    possible &= rng.random(possible.shape, dtype=np.float32) < return_chance(view)
    available = int(possible.sum())
    if available <= count:
        return possible
    share = 1.15 * count / available
    for _ in range(4):
        step = max(1.0, math.sqrt(1.0 / (min(share, 1.0) * ratio)))
        row = max(1.0, 1.0 / (min(share, 1.0) * step))
        if step * row <= 1.0:
            break
        found = possible & _crossed(elevation, row / view.camera.fy, phase_row, 0)
        found &= _crossed(azimuth, step / view.camera.fx, phase_step, 1)
        got = int(found.sum())
        if got >= count:
            return thin(found, count, rng)
        share *= 1.2 * count / max(got, 1)
    return thin(possible, count, rng)


def lidar_noise(view: View, at: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Range error of strength x 2 cm at any distance, along the ray (spinning scanners for cars state 2
    cm)."""
    z = view.z[at]
    n = rng.standard_normal(z.size, dtype=np.float32)
    return z + strength * NOISE_METRES * n / view.rays[2][at]
