"""Scenes to pictures with exact geometry: Embree answers the rays, NumPy shades all of them at once.

Depth, normals and object ids come from one ray through each pixel centre and the plane of the triangle
it hits, computed in float64; colour averages ``supersample ** 2`` rays per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.data.lowpoly.meshes import triangles
from modality_forcing.data.lowpoly.scene import PATTERNS, Scene
from modality_forcing.data.lowpoly.shading import noise2, pattern_mix, sky, to_linear, tone
from modality_forcing.types import Camera


@dataclass
class Picture:
    """What one render gives; see ``types.Sample`` for units."""

    rgb: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    object_ids: np.ndarray
    camera: Camera


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Row-wise dot product; einsum is several times faster than a sum over an axis of three."""
    return np.einsum("...i,...i->...", a, b)


def _unit(a: np.ndarray) -> np.ndarray:
    return a / np.sqrt(_dot(a, a))[..., None]


class _Geometry:
    """The committed ray scene with per-triangle and per-primitive tables."""

    def __init__(self, scene: Scene) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        soup, self.owner = triangles(scene.primitives)
        soup = soup.astype(np.float32).astype(np.float64)  # the corners Embree sees
        self.embree = EmbreeScene()
        self.mesh = TriangleMesh(self.embree, soup.astype(np.float32))
        normal = np.cross(soup[:, 1] - soup[:, 0], soup[:, 2] - soup[:, 0])
        self.normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
        self.offset = np.einsum("ij,ij->i", self.normal, soup[:, 0])
        parts = scene.primitives
        self.colour = to_linear(np.array([p.material.colour for p in parts]))
        self.second = to_linear(np.array([p.material.second for p in parts]))
        self.pattern = np.array([PATTERNS.index(p.material.pattern) for p in parts])
        self.scale = np.array([p.material.scale for p in parts], np.float32)
        self.emission = np.array([p.material.emission for p in parts], np.float32)
        self.shine = np.array([p.material.shininess for p in parts], np.float32)
        self.turn = np.array([(np.cos(p.yaw), np.sin(p.yaw)) for p in parts], np.float32)
        self.position = np.array([p.position for p in parts], np.float32)
        self.height = np.array([p.size[2] for p in parts], np.float32)
        self.object_id = np.array([p.object_id for p in parts], np.int32)

    def hit(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Index of the triangle each ray meets first, -1 for none."""
        return np.asarray(self.embree.run(origins, directions))

    def free(
        self, origins: np.ndarray, directions: np.ndarray, reach: np.ndarray | None = None
    ) -> np.ndarray:
        """True where nothing stands in the way."""
        if len(origins) == 0:
            return np.zeros(0, bool)
        o, d = np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(directions, np.float32)
        if reach is None:
            return np.asarray(self.embree.run(o, d, query="OCCLUDED")) < 0
        return np.asarray(self.embree.run(o, d, query="OCCLUDED", dists=reach.astype(np.float32))) < 0


def _rays(camera: Camera, axes: np.ndarray, sub: int) -> np.ndarray:
    """World ray directions with z-depth 1, (H, W, sub * sub, 3): the sub-cell centres of each pixel."""
    offset = (np.arange(sub) + 0.5) / sub
    u = (np.arange(camera.width)[:, None] + offset[None]).ravel()
    v = (np.arange(camera.height)[:, None] + offset[None]).ravel()
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    d = x[None, :, None] * axes[0] + y[:, None, None] * axes[1] + axes[2]
    d = d.reshape(camera.height, sub, camera.width, sub, 3)
    return d.transpose(0, 2, 1, 3, 4).reshape(camera.height, camera.width, sub * sub, 3)


def _hemisphere(count: int) -> np.ndarray:
    i = np.arange(count) + 0.5
    r, a = np.sqrt(i / count), i * 2.399963
    return np.stack([r * np.cos(a), r * np.sin(a), np.sqrt(1 - i / count)], 1)


_FAN = _hemisphere(32)[np.random.default_rng(3).permutation(32)].reshape(16, 2, 3)


def _occlusion(
    geometry: _Geometry,
    point: np.ndarray,
    normal: np.ndarray,
    depth: np.ndarray,
    solid: np.ndarray,
    radius: float,
) -> np.ndarray:
    """Openness 0..1 (H, W): two of 32 hemisphere rays per pixel, gathered over 4x4 along surfaces."""
    h, w = depth.shape
    which = (np.arange(h)[:, None] % 4) * 4 + np.arange(w)[None] % 4
    n = normal[solid]
    helper = np.where(np.abs(n[:, 2:]) < 0.9, [[0.0, 0.0, 1.0]], [[1.0, 0.0, 0.0]])
    t = np.cross(helper, n)
    t = _unit(t)
    b = np.cross(n, t)
    start = point[solid] + n * 2e-3
    fan = _FAN[which[solid]]
    openness = np.ones((h, w))
    total = np.zeros(len(n))
    for k in range(2):
        d = t * fan[:, k, :1] + b * fan[:, k, 1:2] + n * fan[:, k, 2:]
        total += geometry.free(start, d, np.full(len(n), radius))
    openness[solid] = total / 2
    value = np.where(solid, openness, 0.0)
    pad = 2
    big = [np.pad(a, pad, mode="edge") for a in (value, depth, solid)]
    flat = np.pad(normal, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    out, weight = np.zeros((h, w)), np.zeros((h, w))
    for dy in range(4):
        for dx in range(4):
            v, z, s = (a[dy : dy + h, dx : dx + w] for a in big)
            m = flat[dy : dy + h, dx : dx + w]
            same = s & (np.abs(z - depth) < 0.06 * depth) & (_dot(m, normal) > 0.85)
            out += v * same
            weight += same
    return np.where(weight > 0, out / np.maximum(weight, 1), openness)


def _albedo(
    geometry: _Geometry, part: np.ndarray, point: np.ndarray, normal: np.ndarray, lit: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Base colour (N, 3) and emission (N,) at hits."""
    colour, emission = geometry.colour[part], geometry.emission[part].copy()
    kinds = geometry.pattern[part]
    for kind in np.unique(kinds):
        name = PATTERNS[kind]
        if name in ("plain", "water"):
            continue
        index = np.nonzero(kinds == kind)[0]
        q, n, p = part[index], normal[index], point[index]
        c, s = geometry.turn[q, 0], geometry.turn[q, 1]
        rel = p - geometry.position[q]
        x, y, z = c * rel[:, 0] + s * rel[:, 1], c * rel[:, 1] - s * rel[:, 0], rel[:, 2]
        nx, ny = np.abs(c * n[:, 0] + s * n[:, 1]), np.abs(c * n[:, 1] - s * n[:, 0])
        flat = np.abs(n[:, 2]) > 0.707
        a = np.where(flat, x, np.where(nx > ny, y, x)) / geometry.scale[q]
        b = np.where(flat, y, z) / geometry.scale[q]
        if name == "wood":
            a, b = np.where(flat, a, b), np.where(flat, b, a)  # upright grain on upright faces
        share, bright, glow = pattern_mix(kind, a, b, ~flat, z / geometry.height[q], lit)
        base = geometry.colour[q]
        mixed = base + (geometry.second[q] - base) * share[:, None]
        colour[index] = mixed * bright[:, None]
        if lit and name == "facade":
            on = glow > 0
            colour[index[on]] = (1.0, 0.62, 0.22)
            emission[index] = glow * 0.75
    return colour, emission


def _shade(
    scene: Scene, geometry: _Geometry, eye: np.ndarray, directions: np.ndarray, openness: np.ndarray
) -> np.ndarray:
    """Linear colour (N, 3) along unit rays."""
    light = scene.light
    tri = geometry.hit(np.broadcast_to(eye, directions.shape).astype(np.float32).copy(), directions)
    out = np.empty((len(directions), 3), np.float32)
    away = tri < 0
    if away.any():
        out[away] = sky(directions[away], light)
    index = np.nonzero(~away)[0]
    if not len(index):
        return out
    tri, d = tri[index], directions[index]
    part = geometry.owner[tri]
    n = geometry.normal.astype(np.float32)[tri]
    facing = _dot(n, d)
    plane = (geometry.offset - geometry.normal @ eye).astype(np.float32)
    reach = plane[tri] / np.where(facing == 0, np.float32(1e-9), facing)
    n = n * -np.sign(facing)[:, None]
    point = eye.astype(np.float32) + d * reach[:, None]
    start = point + n * (1e-3 + 1e-4 * reach)[:, None]
    colour, emission = _albedo(geometry, part, point, n, bool(light.lamps) or light.stars)
    ao = openness[index]
    up = (0.5 + 0.5 * n[:, 2])[:, None]
    low, high = np.array(light.ambient_down, np.float32), np.array(light.ambient_up, np.float32)
    glow = (low + (high - low) * up) * (0.15 + 0.85 * ao)[:, None]
    shine = geometry.shine[part]
    gloss = np.zeros_like(glow)
    sun, power = np.array(light.sun_direction, np.float32), np.array(light.sun, np.float32)
    if power.max() > 0.01:
        cosine = n @ sun
        lit = np.nonzero(cosine > 0)[0]
        lit = lit[geometry.free(start[lit], np.broadcast_to(sun, (len(lit), 3)))]
        glow[lit] += cosine[lit, None] * power
        lit = lit[shine[lit] > 0.05]
        half = _unit(sun - d[lit])
        gloss[lit] += (_dot(n[lit], half).clip(0) ** 40 * shine[lit])[:, None] * power
    for lamp in light.lamps:
        to = np.array(lamp.position, np.float32) - point
        far = np.sqrt(_dot(to, to))
        to /= np.maximum(far, 1e-6)[:, None]
        strength = np.clip(_dot(n, to), 0, None) / (1.0 + (far / lamp.reach) ** 2)
        strength = 0.85 * strength + 0.15 * ao / (1.0 + (far / lamp.reach) ** 2)
        if lamp.shadow:
            some = np.nonzero(strength > 0.02)[0]
            blocked = ~geometry.free(start[some], to[some], np.maximum(far[some] - 0.25, 0.01))
            strength[some[blocked]] *= 0.25
        glow += strength[:, None] * np.array(lamp.colour, np.float32)
    shaded = colour * glow + gloss + colour * emission[:, None]
    water = np.nonzero(geometry.pattern[part] == PATTERNS.index("water"))[0]
    mirror = np.nonzero((shine > 0.4) & (geometry.pattern[part] != PATTERNS.index("water")))[0]
    if len(water):
        p = point[water] / geometry.scale[part[water], None]
        calm = 1.0 / (1.0 + 0.04 * reach[water])
        wave = np.stack([noise2(p[:, 0], p[:, 1] * 1.6), noise2(p[:, 0] + 30, p[:, 1] * 1.6 + 9)], 1) - 0.5
        m = n[water].copy()
        m[:, :2] += 0.22 * wave * calm[:, None]
        m = _unit(m)
        cosine = -_dot(m, d[water])
        r = d[water] + 2 * cosine[:, None] * m
        r[:, 2] = np.abs(r[:, 2])
        free = geometry.free(start[water], r)
        seen = sky(r, light)
        seen[~free] *= np.array((0.22, 0.28, 0.24), np.float32)
        fresnel = (0.06 + 0.94 * (1 - np.clip(cosine, 0, 1)) ** 4)[:, None]
        shaded[water] += (seen - shaded[water]) * fresnel
    if len(mirror):
        cosine = -_dot(n[mirror], d[mirror])
        fresnel = (0.05 + 0.6 * (1 - np.clip(cosine, 0, 1)) ** 4)[:, None]
        shaded[mirror] += fresnel * high * 0.9
    if light.fog > 0:
        veil = (1.0 - np.exp(-reach * light.fog))[:, None]
        flat = d.copy()
        flat[:, 2] = np.maximum(flat[:, 2] * 0.3, 0.02)
        flat = _unit(flat)
        horizon = np.array(light.horizon, np.float32)
        toward = np.clip(flat @ sun, 0, 1)[:, None] ** 8
        shaded += (horizon + 0.1 * toward * power - shaded) * veil
    out[index] = shaded
    return out


def render(scene: Scene, width: int, height: int, *, supersample: int = 2) -> Picture:
    """Render ``scene``; the camera has square pixels and its principal point in the middle."""
    camera = Camera.from_fov(width, height, fov_x=scene.view.fov_x)
    axes, eye = scene.view.axes(), np.array(scene.view.position, np.float32).astype(np.float64)
    geometry = _Geometry(scene)

    centre = _rays(camera, axes, 1).reshape(-1, 3)
    origins = np.broadcast_to(eye, centre.shape).astype(np.float32)
    tri = geometry.hit(origins, centre.astype(np.float32))
    hit = tri >= 0
    safe = np.where(hit, tri, 0)
    n = geometry.normal[safe]
    slope = _dot(n, centre)
    z = (geometry.offset[safe] - n @ eye) / np.where(slope == 0, 1e-12, slope)
    hit &= np.isfinite(z) & (z > 0)
    n = n * -np.sign(slope)[:, None]
    point = eye + centre * np.where(hit, z, 0.0)[:, None]
    shape = (height, width)
    solid = hit.reshape(shape)
    depth = np.where(hit, z, 1e6).reshape(shape)
    openness = _occlusion(
        geometry, point.reshape(*shape, 3), n.reshape(*shape, 3), depth, solid, scene.light.occlusion_radius
    )

    rays = _rays(camera, axes, supersample).reshape(-1, 3)
    rays = _unit(rays).astype(np.float32)
    spread = np.repeat(openness.astype(np.float32).ravel(), supersample**2)
    colour = tone(_shade(scene, geometry, eye, rays, spread), scene.light.exposure)
    cells = colour.reshape(height, width, supersample**2, 3)
    rgb = sum(cells[:, :, i] for i in range(supersample**2)) / supersample**2
    return Picture(
        rgb=np.clip(rgb + 0.5, 0, 255).astype(np.uint8),
        depth=np.where(solid, depth, np.inf).astype(np.float32),
        normals=np.where(hit[:, None], n @ axes.T, 0.0).reshape(*shape, 3).astype(np.float32),
        object_ids=np.where(hit, geometry.object_id[geometry.owner[safe]], 0).reshape(shape).astype(np.int32),
        camera=camera,
    )
