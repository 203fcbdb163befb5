"""What a surface looks like where a ray meets it: patterns, sun, sky, lamps, water, mirrors and fog."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from modality_forcing.data.lowpoly.geometry import Geometry
from modality_forcing.data.lowpoly.raycast import RayCaster
from modality_forcing.data.lowpoly.scene import PATTERNS
from modality_forcing.data.lowpoly.shading import (
    Lights,
    Vec,
    decay,
    dot,
    noise2,
    pattern_mix,
    pick,
    pick3,
    power,
    sky,
    tone,
    unit,
)


def rows_of(mask: Tensor) -> Tensor:
    """Indices of the true entries, int64."""
    if mask.device.type == "cpu":  # shares memory, and is ten times as fast there
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]


def _at(vector: Vec, index: Tensor) -> Vec:
    """Entries of a vector; coordinates common to all rays stay as they are."""
    x, y, z = (v if len(v) == 1 else pick(v, index) for v in vector)
    return x, y, z


class Surfaces:
    """Colours of the surfaces and skies of a batch of scenes.

    Rays are rows of float32 tensors; ``scene`` (N,) int32 is the scene of each, None where there is only one.
    """

    def __init__(self, geometry: Geometry, lights: Lights, caster: RayCaster) -> None:
        self.geometry, self.lights, self.caster = geometry, lights, caster
        self.device = geometry.device
        self._eye = torch.from_numpy(geometry.eyes.T.astype(np.float32)).to(self.device)

    def eye(self, scene: Tensor | None) -> Vec:
        """Camera position of each ray; (1,) where there is only one scene."""
        return (self._eye[0], self._eye[1], self._eye[2]) if scene is None else pick3(self._eye, scene)

    def colour(self, triangle: Tensor, d: Vec, openness: Tensor, scene: Tensor | None) -> Vec:
        """Display colours 0..255 along unit rays that meet ``triangle`` (-1: sky)."""
        out = [torch.zeros(len(triangle), device=self.device) for _ in range(3)]
        away, index = rows_of(triangle < 0), rows_of(triangle >= 0)
        for some, shade in ((away, self.far), (index, self.shade)):
            if len(some):
                part = None if scene is None else pick(scene, some)
                seen = shade(pick(triangle, some), _at(d, some), pick(openness, some), part)
                exposure = self.lights.get("exposure", part)
                for o, s in zip(out, seen, strict=True):
                    o.scatter_(0, some, tone(s, exposure))
        return out[0], out[1], out[2]

    def far(self, triangle: Tensor, d: Vec, openness: Tensor, scene: Tensor | None) -> Vec:
        """The sky, with the arguments of :meth:`shade`."""
        return sky(d, self.lights, scene)

    def albedo(self, part: Tensor, point: Vec, n: Vec, scene: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Base colours and emission of primitives ``part`` at points."""
        g = self.geometry
        colour, emission = list(pick3(g.colour, part)), pick(g.emission, part)
        kinds = pick(g.pattern, part)
        for name in g.patterns:
            if name in ("plain", "water"):
                continue
            index = rows_of(kinds == PATTERNS.index(name))
            if not len(index):
                continue
            q, m, p = pick(part, index), _at(n, index), _at(point, index)
            c, s = pick(g.cosine, q), pick(g.sine, q)
            corner = pick3(g.position, q)
            rx, ry, z = p[0] - corner[0], p[1] - corner[1], p[2] - corner[2]
            x, y = c * rx + s * ry, c * ry - s * rx
            level = m[2].abs() > 0.707
            along = (c * m[0] + s * m[1]).abs() > (c * m[1] - s * m[0]).abs()
            scale = 1.0 / pick(g.scale, q)
            a = torch.where(level, x, torch.where(along, y, x)) * scale
            b = torch.where(level, y, z) * scale
            if name == "wood":  # upright grain on upright faces
                a, b = torch.where(level, a, b), torch.where(level, b, a)
            lit = self.lights.get("lit", None if scene is None else pick(scene, index)) > 0
            share, bright, glow = pattern_mix(name, a, b, ~level, z / pick(g.height, q), lit)
            base, second = pick3(g.colour, q), pick3(g.second, q)
            for k in range(3):
                mixed = base[k] + (second[k] - base[k]) * share
                if bright is not None:
                    mixed = mixed * bright
                if glow is not None:
                    mixed = torch.where(glow > 0, (1.0, 0.62, 0.22)[k], mixed)
                colour[k].scatter_(0, index, mixed)
            if glow is not None:
                own = pick(emission, index)
                emission.scatter_(0, index, torch.where(lit, glow * 0.75, own))
        return colour, emission

    def shade(self, triangle: Tensor, d: Vec, openness: Tensor, scene: Tensor | None) -> Vec:
        """Linear colours along unit rays that meet ``triangle``."""
        g, lights = self.geometry, self.lights
        n = pick3(g.normal32, triangle)
        part = pick(g.owner, triangle)
        facing = dot(n, d)
        reach = pick(g.plane32, triangle) / torch.where(facing == 0, 1e-9, facing)
        sign = -torch.sign(facing)
        n = (n[0] * sign, n[1] * sign, n[2] * sign)
        point = tuple(e + x * reach for e, x in zip(self.eye(scene), d, strict=True))
        room = 1e-3 + 1e-4 * reach
        start = tuple(p + x * room for p, x in zip(point, n, strict=True))
        colour, emission = self.albedo(part, point, n, scene)
        up, hidden = 0.5 + 0.5 * n[2], 0.15 + 0.85 * openness
        high = lights.get3("ambient_up", scene)
        glow = [(a + (b - a) * up) * hidden
                for a, b in zip(lights.get3("ambient_down", scene), high, strict=True)]  # fmt: skip
        shine = pick(g.shine, part) if g.shiny else None
        gloss: list[Tensor] | None = None
        sun, strength = lights.get3("sun_direction", scene), lights.get3("sun", scene)
        if lights.any("sunny"):
            cosine = dot(n, sun)
            facing_sun = cosine > 0
            if scene is not None:
                facing_sun &= lights.get("sunny", scene) > 0
            index = rows_of(facing_sun)
            some = None if scene is None else pick(scene, index)
            to_sun = lights.get3("sun_direction", some)
            free = self.caster.free(_at(start, index), to_sun, None, some)
            lit = torch.zeros_like(cosine).scatter_(0, index, free.float())
            amount = cosine * lit
            glow = [a + amount * s for a, s in zip(glow, strength, strict=True)]
            if shine is not None:
                half = unit(tuple(s - x for s, x in zip(sun, d, strict=True)))
                spot = power(dot(n, half).clamp(min=0), 40) * shine * lit * (shine > 0.05)
                gloss = [spot * s for s in strength]
        for number in range(lights.lamps):
            self.lamp(number, glow, point, start, n, openness, scene)
        shaded = [c * (a + emission) for c, a in zip(colour, glow, strict=True)]
        if gloss is not None:
            shaded = [a + b for a, b in zip(shaded, gloss, strict=True)]
        water = pick(g.pattern, part) == PATTERNS.index("water") if "water" in g.patterns else None
        if water is not None:
            index = rows_of(water)
            if len(index):
                self.water(shaded, index, part, point, start, n, d, reach, scene)
        if shine is not None:
            mirror = shine > 0.4
            if water is not None:
                mirror &= ~water
            fresnel = 0.05 + 0.6 * power(1 + dot(n, d).clamp(-1, 0), 4)
            fresnel = fresnel * 0.9 * mirror
            shaded = [a + fresnel * h for a, h in zip(shaded, high, strict=True)]
        if lights.any("fog"):
            veil = 1.0 - decay(reach * lights.get("fog", scene))
            flat = unit((d[0], d[1], (d[2] * 0.3).clamp(min=0.02)))
            toward = 0.1 * power(dot(flat, sun).clamp(0, 1), 8)
            horizon = lights.get3("horizon", scene)
            shaded = [a + (h + toward * s - a) * veil
                      for a, h, s in zip(shaded, horizon, strength, strict=True)]  # fmt: skip
        return shaded[0], shaded[1], shaded[2]

    def lamp(
        self, number: int, glow: list[Tensor], point: Vec, start: Vec, n: Vec, openness: Tensor,
        scene: Tensor | None,
    ) -> None:  # fmt: skip
        """Add the light of one lamp of every scene to ``glow``."""
        lights = self.lights
        spot = lights.get3(f"position{number}", scene)
        to = tuple(s - p for s, p in zip(spot, point, strict=True))
        far = dot(to, to).sqrt()
        inverse = 1.0 / far.clamp(min=1e-6)
        to = tuple(x * inverse for x in to)
        relative = far / lights.get(f"reach{number}", scene)
        fall = 1.0 / (1.0 + relative * relative)
        strength = (0.85 * dot(n, to).clamp(min=0) + 0.15 * openness) * fall
        if lights.any(f"shadow{number}"):
            throws = strength > 0.02
            if scene is not None:
                throws &= lights.get(f"shadow{number}", scene) > 0
            index = rows_of(throws)
            some = None if scene is None else pick(scene, index)
            limit = (pick(far, index) - 0.25).clamp(min=0.01)
            free = self.caster.free(_at(start, index), _at(to, index), limit, some)
            strength.scatter_(0, index, pick(strength, index) * (0.25 + 0.75 * free.float()))
        for k, c in enumerate(lights.get3(f"colour{number}", scene)):
            glow[k] = glow[k] + strength * c

    def water(
        self, shaded: list[Tensor], index: Tensor, part: Tensor, point: Vec, start: Vec, n: Vec, d: Vec,
        reach: Tensor, scene: Tensor | None,
    ) -> None:  # fmt: skip
        """Mix the mirrored sky into the colours of water."""
        some = None if scene is None else pick(scene, index)
        scale = 1.0 / pick(self.geometry.scale, pick(part, index))
        px, py = pick(point[0], index) * scale, pick(point[1], index) * scale * 1.6
        calm = 0.22 / (1.0 + 0.04 * pick(reach, index))
        m, ray = _at(n, index), _at(d, index)
        m = unit((m[0] + (noise2(px, py) - 0.5) * calm, m[1] + (noise2(px + 30, py + 9) - 0.5) * calm, m[2]))
        cosine = -dot(m, ray)
        r = [x + 2 * cosine * y for x, y in zip(ray, m, strict=True)]
        bounce = (r[0], r[1], r[2].abs())
        free = self.caster.free(_at(start, index), bounce, None, some)
        fresnel = 0.06 + 0.94 * power(1 - cosine.clamp(0, 1), 4)
        for k, (seen, dark) in enumerate(
            zip(sky(bounce, self.lights, some), (0.22, 0.28, 0.24), strict=True)
        ):
            own = pick(shaded[k], index)
            seen = torch.where(free, seen, seen * dark)
            shaded[k] = shaded[k].scatter(0, index, own + (seen - own) * fresnel)
