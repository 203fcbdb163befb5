"""Vectorised surface patterns, sky and tone curve (all colours linear RGB unless said otherwise)."""

from __future__ import annotations

import numpy as np

from modality_forcing.data.lowpoly.scene import PATTERNS, Light

_TABLE = np.random.default_rng(7).random((256, 256)).astype(np.float32)


def to_linear(colour: np.ndarray) -> np.ndarray:
    """sRGB 0..1 to linear (the common 2.2 power)."""
    return np.asarray(colour, np.float32) ** 2.2


_STEPS = 4095
_curve = np.linspace(0.0, 4.0, _STEPS + 1)
_curve = _curve * (2.51 * _curve + 0.03) / (_curve * (2.43 * _curve + 0.59) + 0.14)  # Narkowicz's filmic fit
_TONE = (255.0 * np.clip(_curve, 0.0, 1.0) ** (1 / 2.2)).astype(np.float32)


def tone(linear: np.ndarray, exposure: float) -> np.ndarray:
    """Filmic curve and sRGB gamma, float32 0..255."""
    index = np.clip(linear * (exposure * _STEPS / 4.0), 0, _STEPS).astype(np.int32)
    return _TONE[index]


def noise2(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth value noise 0..1 with one cell per unit."""
    fx, fy = np.floor(x), np.floor(y)
    i, j = fx.astype(np.int64), fy.astype(np.int64)
    u, v = (x - fx).astype(np.float32), (y - fy).astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i0, i1, j0, j1 = i & 255, (i + 1) & 255, j & 255, (j + 1) & 255
    a, b, c, d = _TABLE[i0, j0], _TABLE[i1, j0], _TABLE[i0, j1], _TABLE[i1, j1]
    return (a + (b - a) * u) + ((c + (d - c) * u) - (a + (b - a) * u)) * v


def cell(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A fixed random number 0..1 for each integer cell."""
    return _TABLE[np.floor(x).astype(np.int64) & 255, np.floor(y).astype(np.int64) & 255]


def pattern_mix(
    kind: int, a: np.ndarray, b: np.ndarray, vertical: np.ndarray, height: np.ndarray, lit: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the second colour, brightness factor and emission for pattern coordinates (a, b)."""
    name = PATTERNS[kind]
    zero, one = np.zeros_like(a), np.ones_like(a)
    if name == "wood":
        grain = noise2(a * 1.3 + 11, b * 14.0) * 0.6 + noise2(a * 3.0, b * 40.0) * 0.4
        return grain, one, zero
    if name == "planks":
        shift = a + 7.3 * cell(b, zero)
        tint = 0.8 + 0.35 * cell(np.floor(shift * 0.25) + 17, b)
        seam = (b - np.floor(b)) < 0.06
        return noise2(shift * 0.8, b * 9.0) * 0.6, tint * np.where(seam, 0.6, 1.0), zero
    if name == "checker":
        return ((np.floor(a) + np.floor(b)) % 2).astype(np.float32), one, zero
    if name == "bricks":
        row = np.floor(b * 2)
        s = a + 0.5 * (row % 2)
        seam = ((s - np.floor(s)) < 0.08) | ((b * 2 - row) < 0.14)
        return seam.astype(np.float32), 0.82 + 0.36 * cell(s, row), zero
    if name == "noise":
        n = 0.6 * noise2(a, b) + 0.4 * noise2(a * 3.1 + 5, b * 3.1)
        return n, 0.9 + 0.2 * noise2(a * 8, b * 8), zero
    if name == "leaves":
        n = noise2(a, b)
        return n, 0.8 + 0.4 * noise2(a * 2.7 + 9, b * 2.7), zero
    if name == "facade":
        fa, fb = a - np.floor(a), b - np.floor(b)
        pane = (np.abs(fa - 0.5) < 0.2) & (np.abs(fb - 0.54) < 0.24) & (vertical > 0) & (b > 0.15)
        frame = (np.abs(fa - 0.5) < 0.26) & (np.abs(fb - 0.54) < 0.3) & (vertical > 0) & ~pane & (b > 0.15)
        glow = (cell(a + 31, b + 3) > 0.55) & pane if lit else np.zeros_like(pane)
        return pane.astype(np.float32), np.where(frame, 1.35, 1.0), glow.astype(np.float32)
    if name == "snow":
        edge = height - 0.5 + 0.35 * (noise2(a * 2.0, b * 2.0) - 0.5)
        return np.clip(edge * 9.0, 0, 1), 0.85 + 0.3 * noise2(a * 3, b * 3), zero
    if name == "books":
        c = cell(a, b * 0.0)
        return c, 0.6 + 0.8 * cell(a + 77, b * 0.0), zero
    return zero, one, zero


def sky(direction: np.ndarray, light: Light) -> np.ndarray:
    """Sky radiance (N, 3) for unit directions (N, 3)."""
    z = direction[:, 2]
    up = np.clip(z, 0.0, 1.0)
    t = (1.0 - np.exp(-4.0 * up))[:, None]
    zenith, horizon = np.array(light.zenith, np.float32), np.array(light.horizon, np.float32)
    out = horizon + (zenith - horizon) * t
    sun = np.array(light.sun_direction, np.float32)
    near = np.clip(direction @ sun, 0.0, 1.0)
    warm = np.array(light.sun, np.float32)
    out = out + warm * (0.10 * near**8 + 0.25 * near**60 + 3.0 * (near > 0.9985))[:, None]
    if light.clouds > 0:
        s = 1.0 / (up + 0.12)
        x, y = direction[:, 0] * s + 40, direction[:, 1] * s + 90
        n = 0.6 * noise2(x * 0.9, y * 1.3) + 0.28 * noise2(x * 2.3, y * 3.1) + 0.12 * noise2(x * 6, y * 7)
        cover = np.clip((n - (0.72 - 0.35 * light.clouds)) * 5.0, 0, 1) * np.clip(up * 9.0, 0, 1)
        white = 0.45 * horizon + 0.22 * warm + 0.12
        out = out + (white - out) * (0.85 * cover)[:, None]
    if light.stars:
        x, y = np.arctan2(direction[:, 0], direction[:, 1]) * 55, z * 70
        out = out + ((cell(x, y) > 0.985) * 0.7 * np.clip(up * 4, 0, 1))[:, None]
    return out.astype(np.float32)
