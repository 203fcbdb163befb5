"""Surface patterns, sky and tone curve on tensors (all colours linear RGB unless said otherwise).

Only operations with one right answer in IEEE arithmetic are used (sums, products, quotients, roots, floors,
tables): no exp, no sin, no matrix product. So a colour does not depend on the device, on the number of
threads or on how many scenes are rendered at once.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.scene import PATTERNS

Vec = tuple[Tensor, Tensor, Tensor]
"""Points, directions or colours: one tensor per coordinate, which is several times faster than (N, 3)."""

FINEST = {
    "planks": 0.06, "bricks": 0.07, "tiles": 0.07, "facade": 0.06, "checker": 1.0, "stripes": 0.5,
    "books": 1.0,
}  # fmt: skip
"""Patterns with hard edges, and the width of their narrowest line in pattern coordinates."""
_STEPS = 4095


def to_linear(colour: np.ndarray) -> np.ndarray:
    """sRGB 0..1 to linear (the common 2.2 power)."""
    return np.asarray(colour, np.float32) ** 2.2


@cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """256 x 256 random numbers in a row, and the tone curve."""
    noise = np.random.default_rng(7).random((256, 256)).astype(np.float32)
    curve = np.linspace(0.0, 4.0, _STEPS + 1)
    # Narkowicz's filmic fit, then the display's gamma.
    curve = curve * (2.51 * curve + 0.03) / (curve * (2.43 * curve + 0.59) + 0.14)
    curve = (255.0 * np.clip(curve, 0.0, 1.0) ** (1 / 2.2)).astype(np.float32)
    return torch.from_numpy(noise.ravel()).to(device), torch.from_numpy(curve).to(device)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` for an int32 or int64 index; much faster than indexing on CPU."""
    return torch.index_select(table, 0, index)


def pick3(table: Tensor, index: Tensor) -> Vec:
    """Columns of ``table`` (3, M) at ``index``."""
    return pick(table[0], index), pick(table[1], index), pick(table[2], index)


def dot(a: Vec, b: Vec) -> Tensor:
    """Scalar product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def unit(a: Vec) -> Vec:
    """Vectors of length 1."""
    scale = 1.0 / dot(a, a).sqrt()
    return a[0] * scale, a[1] * scale, a[2] * scale


def power(x: Tensor, exponent: int) -> Tensor:
    """A whole power by repeated squaring."""
    out: Tensor | None = None
    while exponent:
        if exponent & 1:
            out = x if out is None else out * x
        x, exponent = x * x, exponent >> 1
    assert out is not None
    return out


def decay(x: Tensor) -> Tensor:
    """exp(-x) for x >= 0, within 1 % up to x = 2."""
    return 1.0 / power(1.0 + x * (1 / 256), 256)


def tone(linear: Tensor, exposure: Tensor) -> Tensor:
    """Filmic curve and sRGB gamma, float32 0..255."""
    index = (linear * (exposure * (_STEPS / 4.0))).clamp(0, _STEPS).int()
    return pick(_tables(linear.device)[1], index)


def noise2(x: Tensor, y: Tensor) -> Tensor:
    """Smooth value noise 0..1 with one cell per unit."""
    table = _tables(x.device)[0]
    fx, fy = x.floor(), y.floor()
    i, j = fx.int(), fy.int()
    u, v = x - fx, y - fy
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i0, i1, j0, j1 = (i & 255) << 8, ((i + 1) & 255) << 8, j & 255, (j + 1) & 255
    a, b, c, d = pick(table, i0 | j0), pick(table, i1 | j0), pick(table, i0 | j1), pick(table, i1 | j1)
    low = a + (b - a) * u
    return low + ((c + (d - c) * u) - low) * v


def cell(x: Tensor, y: Tensor) -> Tensor:
    """A fixed random number 0..1 for each integer cell."""
    return pick(_tables(x.device)[0], ((x.floor().int() & 255) << 8) | (y.floor().int() & 255))


def pattern_mix(
    name: str, a: Tensor, b: Tensor, vertical: Tensor, height: Tensor, lit: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Share of the second colour, brightness factor and emission for pattern coordinates (a, b).

    ``vertical`` (bool) marks upright faces, ``height`` is 0..1 within the primitive, ``lit`` (bool) marks
    scenes whose windows glow. None stands for a factor of 1 and for no emission.
    """
    if name == "wood":
        return noise2(a * 1.3 + 11, b * 14.0) * 0.6 + noise2(a * 3.0, b * 40.0) * 0.4, None, None
    if name == "planks":
        shift = a + 7.3 * cell(b, torch.zeros_like(b))
        tint = 0.8 + 0.35 * cell((shift * 0.25).floor() + 17, b)
        seam = (b - b.floor()) < 0.06
        return noise2(shift * 0.8, b * 9.0) * 0.6, tint * (1.0 - 0.4 * seam.float()), None
    if name == "checker":
        return ((a.floor() + b.floor()) % 2), None, None
    if name == "bricks":
        row = (b * 2).floor()
        s = a + 0.5 * (row % 2)
        seam = ((s - s.floor()) < 0.08) | ((b * 2 - row) < 0.14)
        return seam.float(), 0.82 + 0.36 * cell(s, row), None
    if name == "noise":
        n = 0.6 * noise2(a, b) + 0.4 * noise2(a * 3.1 + 5, b * 3.1)
        return n, 0.9 + 0.2 * noise2(a * 8, b * 8), None
    if name == "leaves":
        return noise2(a, b), 0.8 + 0.4 * noise2(a * 2.7 + 9, b * 2.7), None
    if name == "facade":
        across, along = (a - a.floor() - 0.5).abs(), (b - b.floor() - 0.54).abs()
        wall = vertical & (b > 0.15)
        pane = (across < 0.2) & (along < 0.24) & wall
        frame = (across < 0.26) & (along < 0.3) & wall & ~pane
        glow = (cell(a + 31, b + 3) > 0.55) & pane & lit
        return pane.float(), 1.0 + 0.35 * frame.float(), glow.float()
    if name == "snow":
        edge = height - 0.5 + 0.35 * (noise2(a * 2.0, b * 2.0) - 0.5)
        return (edge * 9.0).clamp(0, 1), 0.85 + 0.3 * noise2(a * 3, b * 3), None
    if name == "books":
        zero = torch.zeros_like(b)
        return cell(a, zero), 0.6 + 0.8 * cell(a + 77, zero), None
    if name == "tiles":  # the second colour is the grout
        grout = ((a - a.floor()) < 0.07) | ((b - b.floor()) < 0.07)
        return grout.float(), 0.93 + 0.14 * cell(a + 5, b + 51), None
    if name == "stripes":  # one pair per unit, upright on upright faces
        return ((a - a.floor()) < 0.5).float(), None, None
    if name == "marble":  # thin veins of the second colour where a warped slope crosses whole numbers
        warp = a + 0.6 * b + 2.4 * noise2(a * 0.9 + 3, b * 0.9) + 0.8 * noise2(a * 2.7, b * 2.7 + 8)
        vein = 2.0 * (warp - warp.floor() - 0.5).abs()
        cloud = 0.3 * noise2(a * 1.7 + 60, b * 1.7)
        return (power(vein, 8) + cloud).clamp(0, 1), 0.94 + 0.12 * noise2(a * 5, b * 5 + 40), None
    raise KeyError(f"{name}: the patterns are {', '.join(PATTERNS)}")


def sky(d: Vec, lights: Lights, scene: Tensor | None) -> Vec:
    """Sky radiance for unit directions; ``scene`` names the scene of each (None: there is only one)."""
    up = d[2].clamp(0.0, 1.0)
    t = 1.0 - decay(4.0 * up)
    horizon, zenith = lights.get3("horizon", scene), lights.get3("zenith", scene)
    near = dot(d, lights.get3("sun_direction", scene)).clamp(0.0, 1.0)
    eighth = power(near, 8)
    glow = 0.10 * eighth + 0.25 * power(near, 60) + 3.0 * (near > 0.9985).float()
    warm = lights.get3("sun", scene)
    out = [h + (z - h) * t + w * glow for h, z, w in zip(horizon, zenith, warm, strict=True)]
    if lights.any("clouds"):
        s = 1.0 / (up + 0.12)
        x, y = d[0] * s + 40, d[1] * s + 90
        n = 0.6 * noise2(x * 0.9, y * 1.3) + 0.28 * noise2(x * 2.3, y * 3.1) + 0.12 * noise2(x * 6, y * 7)
        clouds = lights.get("clouds", scene)
        cover = ((n - (0.72 - 0.35 * clouds)) * 5.0).clamp(0, 1) * (up * 9.0).clamp(0, 1)
        cover = 0.85 * cover * (clouds > 0).float()
        out = [
            o + (0.45 * h + 0.22 * w + 0.12 - o) * cover for o, h, w in zip(out, horizon, warm, strict=True)
        ]
    if lights.any("stars"):
        # A number that runs once around with the compass angle.
        turn = 1.0 - d[0] / (d[0].abs() + d[1].abs() + 1e-9)
        turn = torch.where(d[1] < 0, 4.0 - turn, turn)
        star = (cell(turn * 86.4, d[2] * 70) > 0.985).float() * 0.7 * (up * 4).clamp(0, 1)
        star = star * lights.get("stars", scene)
        out = [o + star for o in out]
    return out[0], out[1], out[2]


class Lights:
    """The lights of a batch of scenes as tables, (B,) or (3, B) float32 each."""

    def __init__(self, lights: list, device: torch.device) -> None:
        self._values: dict[str, Tensor] = {}
        self._present: dict[str, bool] = {}
        for name in ("clouds", "stars", "fog", "exposure"):
            self._put(name, np.array([float(getattr(light, name)) for light in lights]), device)
        for name in ("sun_direction", "sun", "ambient_up", "ambient_down", "zenith", "horizon"):
            self._put(name, np.array([getattr(light, name) for light in lights]).T, device)
        sunny = [max(light.sun) > 0.01 for light in lights]
        self._put("sunny", np.array(sunny, np.float32), device)
        self._put("lit", np.array([bool(light.lamps) or light.stars for light in lights], np.float32), device)
        self._put("count", np.array([len(light.lamps) for light in lights], np.float32), device)
        self.lamps = max(len(light.lamps) for light in lights)
        for number in range(self.lamps):
            row = [light.lamps[number] if number < len(light.lamps) else None for light in lights]
            self._put(f"position{number}", np.array([r.position if r else (0, 0, 0) for r in row]).T, device)
            self._put(f"colour{number}", np.array([r.colour if r else (0, 0, 0) for r in row]).T, device)
            self._put(f"reach{number}", np.array([r.reach if r else 1.0 for r in row]), device)
            self._put(f"shadow{number}", np.array([float(r is not None and r.shadow) for r in row]), device)

    def _put(self, name: str, value: np.ndarray, device: torch.device) -> None:
        self._present[name] = bool(np.any(value > 0))
        self._values[name] = torch.from_numpy(np.ascontiguousarray(value, np.float32)).to(device)

    def any(self, name: str) -> bool:
        """Whether any scene has more than nothing of it."""
        return self._present[name]

    def get(self, name: str, scene: Tensor | None) -> Tensor:
        """The value of each ray's scene; (1,) where there is only one scene."""
        table = self._values[name]
        return table if scene is None else pick(table, scene)

    def get3(self, name: str, scene: Tensor | None) -> Vec:
        """Like :meth:`get` for three coordinates."""
        table = self._values[name]
        if scene is None:
            return table[0], table[1], table[2]
        return pick3(table, scene)
