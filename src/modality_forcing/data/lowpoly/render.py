"""Scenes to pictures with exact geometry: a ray caster answers the rays, tensors shade all of them at once.

Depth, normals and object ids come from one ray through each pixel centre and the plane of the triangle
it hits, computed in float64. Colour is that of the same ray; where it changes between neighbours, or a
pattern is finer than a pixel, the pixel gets the mean of ``supersample ** 2`` rays of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from modality_forcing.data.lowpoly.geometry import Geometry
from modality_forcing.data.lowpoly.raycast import EmbreeCaster, RayCaster, choose
from modality_forcing.data.lowpoly.raycast_torch import TorchCaster
from modality_forcing.data.lowpoly.scene import Scene
from modality_forcing.data.lowpoly.shading import Lights, Vec, dot, pick, pick3, unit
from modality_forcing.data.lowpoly.surfaces import Surfaces, rows_of
from modality_forcing.errors import UserError
from modality_forcing.types import Camera

TILE = 8
"""Pixels are worked on in squares of this side: neighbours in the row of rays are close in space."""
TOGETHER = {"cpu": 1 << 15, "cuda": 1 << 22}
"""How many pixels the torch backend renders at once."""
EDGE = 6.0
"""A pixel gets more rays where colours of its 3 x 3 neighbourhood differ by more than this, of 255."""


@dataclass
class Picture:
    """What one render gives; see ``types.Sample`` for units."""

    rgb: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    object_ids: np.ndarray
    camera: Camera


def render(
    scene: Scene,
    width: int,
    height: int,
    *,
    supersample: int = 2,
    backend: str = "auto",
    device: str | torch.device | None = None,
) -> Picture:
    """One picture; see :func:`render_batch` for arguments and errors."""
    return render_batch([scene], width, height, supersample=supersample, backend=backend, device=device)[0]


def render_batch(
    scenes: list[Scene],
    width: int,
    height: int,
    *,
    supersample: int = 2,
    backend: str = "auto",
    device: str | torch.device | None = None,
) -> list[Picture]:
    """Render scenes; cameras have square pixels and their principal point in the middle.

    ``backend`` is "embree" (CPU), "torch" (CPU and CUDA, many scenes at once) or "auto": Embree on the CPU
    where it is installed, else torch. ``device`` None is the CPU. ``supersample`` 1 leaves edges as they are.
    A scene's picture does not depend on the others of the list.

    Raises:
        UserError: a size below 1, or a backend or device that is not here.
    """
    for name, value in (("width", width), ("height", height), ("supersample", supersample)):
        if value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")
    backend, place = choose(backend, device)
    # Embree holds one scene. A CPU works fastest on what fits its cache, an accelerator when it is full.
    pixels = TOGETHER["cpu" if place.type == "cpu" else "cuda"]
    together = 1 if backend == "embree" else max(1, pixels // (width * height))
    pictures: list[Picture] = []
    with torch.inference_mode():
        for start in range(0, len(scenes), together):
            some = scenes[start : start + together]
            pictures += _Renderer(some, width, height, backend, place).pictures(supersample)
    return pictures


def _hemisphere(count: int) -> np.ndarray:
    i = np.arange(count) + 0.5
    r, a = np.sqrt(i / count), i * 2.399963
    return np.stack([r * np.cos(a), r * np.sin(a), np.sqrt(1 - i / count)], 1)


# For each pixel of a 4 x 4 square two of 32 directions; as (2, 3, 16).
_FAN = _hemisphere(32)[np.random.default_rng(3).permutation(32)].reshape(16, 2, 3).transpose(1, 2, 0)


@cache
def _tile_order(width: int, height: int, tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel number of each place in tile order, and the place of each pixel; int64 (H * W,)."""
    rows, cols = np.divmod(np.arange(width * height), width)
    order = np.lexsort((cols % tile, rows % tile, cols // tile, rows // tile))
    return torch.from_numpy(order).to(device), torch.from_numpy(np.argsort(order)).to(device)


class _Renderer:
    """A batch of B scenes in pictures of one size; arrays of pixels have B * H * W entries in tile order."""

    def __init__(
        self, scenes: list[Scene], width: int, height: int, backend: str, device: torch.device
    ) -> None:
        self.batch, self.width, self.height, self.device = len(scenes), width, height, device
        self.geometry = Geometry(scenes, device)
        self.caster: RayCaster
        self.caster = EmbreeCaster(self.geometry) if backend == "embree" else TorchCaster(self.geometry)
        lights = Lights([scene.light for scene in scenes], device)
        self.surfaces = Surfaces(self.geometry, lights, self.caster)
        self.cameras = [Camera.from_fov(width, height, fov_x=scene.view.fov_x) for scene in scenes]
        # Embree does not care about the order of rays, and rows need no sorting.
        self.order, self.back = _tile_order(width, height, 1 if backend == "embree" else TILE, device)
        self.row, self.col = self.order // width, self.order % width
        self.in_rows = backend == "embree"
        self.radius = torch.tensor([s.light.occlusion_radius for s in scenes], device=device).float()
        self.eye64 = torch.from_numpy(self.geometry.eyes).to(device).T.contiguous()
        # (axis, coordinate, scene): right, down, forward.
        self.axes = torch.from_numpy(self.geometry.axes).to(device).permute(1, 2, 0).contiguous()

    def scene_of(self, pixel: Tensor) -> Tensor | None:
        """Scene of each pixel number; None for a single scene."""
        return None if self.batch == 1 else (pixel // (self.width * self.height)).int()

    def image(self, x: Tensor) -> Tensor:
        """Tile order (B * H * W,) to (B, H, W)."""
        x = x.reshape(self.batch, -1)
        x = x if self.in_rows else torch.index_select(x, 1, self.back)
        return x.reshape(self.batch, self.height, self.width)

    def tiles(self, x: Tensor) -> Tensor:
        """The way back of :meth:`image`."""
        x = x.reshape(self.batch, -1)
        return (x if self.in_rows else torch.index_select(x, 1, self.order)).reshape(-1)

    def rays(self, pixel: Tensor | None, du: Tensor, dv: Tensor) -> Vec:
        """World directions with z-depth 1, float64, through places (du, dv) of pixels (None: of all).

        Places are float64 (S,) shares of a pixel; the rays of a pixel stand in a row.
        """
        k = np.array([(c.cx, c.cy, 1 / c.fx, 1 / c.fy) for c in self.cameras]).T.copy()
        camera = torch.from_numpy(k).to(self.device)
        if pixel is None:
            col, row = self.col.repeat(self.batch), self.row.repeat(self.batch)
            scene = self.scene_of(torch.arange(len(col), device=self.device))
        else:
            inside, scene = pixel % len(self.col), self.scene_of(pixel)
            col, row = pick(self.col, inside), pick(self.row, inside)
        u, v = (col[:, None] + du).reshape(-1), (row[:, None] + dv).reshape(-1)
        if scene is not None:
            scene = scene.repeat_interleave(len(du))
            camera = torch.index_select(camera, 1, scene)
        x, y = (u - camera[0]) * camera[2], (v - camera[1]) * camera[3]
        r, d, f = (a if scene is None else pick3(a, scene) for a in self.axes)
        return r[0] * x + d[0] * y + f[0], r[1] * x + d[1] * y + f[1], r[2] * x + d[2] * y + f[2]

    def focal(self, scene: Tensor | None) -> Tensor:
        """Focal length of each pixel's camera in pixels."""
        focal = torch.tensor([c.fx for c in self.cameras], dtype=torch.float64, device=self.device)
        return focal if scene is None else pick(focal, scene)

    def pictures(self, supersample: int) -> list[Picture]:
        """All pictures of the batch."""
        g = self.geometry
        scene = self.scene_of(torch.arange(self.batch * self.width * self.height, device=self.device))
        middle = torch.tensor([0.5], dtype=torch.float64, device=self.device)
        centre = self.rays(None, middle, middle)
        direction = (centre[0].float(), centre[1].float(), centre[2].float())
        triangle = self.caster.closest(self.surfaces.eye(scene), direction, scene)
        safe = triangle.clamp(min=0)
        n = pick3(g.normal, safe)
        slope = dot(n, centre)
        z = pick(g.plane, safe) / torch.where(slope == 0, 1e-12, slope)
        solid = (triangle >= 0) & torch.isfinite(z) & (z > 0)
        triangle = torch.where(solid, triangle, -1)
        sign = -torch.sign(slope) * solid
        n = (n[0] * sign, n[1] * sign, n[2] * sign)
        depth = torch.where(solid, z, torch.inf)
        openness = self.openness(centre, n, depth, solid, scene)

        colour = self.surfaces.colour(triangle, unit(direction), openness, scene)
        image = torch.stack([self.image(c) for c in colour], 1)
        if supersample > 1:
            low, high = _extremes(image)
            edge = self.tiles(((high - low) > EDGE).any(1))
            # Lines narrower than a pixel may lie between the centres, where no neighbour sees them.
            narrow = pick(g.line, pick(g.owner, safe)) * slope.abs() * self.focal(scene) < depth
            pixel = rows_of(edge | (narrow & solid))
            if len(pixel):
                self.refine(colour, pixel, openness, supersample)
                image = torch.stack([self.image(c) for c in colour], 1)
        rows = [a if scene is None else pick3(a, scene) for a in self.axes]
        normals = torch.stack([self.image(dot(n, r)) for r in rows], -1).float().cpu().numpy()
        rgb = (image + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        part = pick(g.object_id, pick(g.owner, safe)) * solid
        ids, metres = self.image(part).cpu().numpy(), self.image(depth).float().cpu().numpy()
        return [
            Picture(rgb[b], metres[b], normals[b], ids[b].astype(np.int32), self.cameras[b])
            for b in range(self.batch)
        ]

    def refine(self, colour: Vec, pixel: Tensor, openness: Tensor, supersample: int) -> None:
        """Replace the colours of some pixels by the mean over the centres of their sub-cells."""
        count = supersample**2
        cell = torch.arange(count, device=self.device).double()
        # Products, because a quotient by a plain number is rounded differently on CUDA.
        side = 1.0 / supersample
        u, v = (cell % supersample + 0.5) * side, ((cell // supersample) + 0.5) * side
        d = self.rays(pixel, u, v)
        ray = unit((d[0].float(), d[1].float(), d[2].float()))
        every = pixel.repeat_interleave(count)
        scene = self.scene_of(every)
        triangle = self.caster.closest(self.surfaces.eye(scene), ray, scene)
        seen = self.surfaces.colour(triangle, ray, pick(openness, every), scene)
        for c, t in zip(colour, seen, strict=True):
            cells = t.reshape(-1, count)
            total = cells[:, 0]
            for k in range(1, count):  # a sum whose order does not depend on the device
                total = total + cells[:, k]
            c.scatter_(0, pixel, total * (1.0 / count))

    def openness(self, ray: Vec, n64: Vec, depth: Tensor, solid: Tensor, scene: Tensor | None) -> Tensor:
        """Openness 0..1 of pixels: two of 32 hemisphere rays each, gathered over 4 x 4 along surfaces."""
        index = rows_of(solid)
        n = tuple(pick(x, index).float() for x in n64)
        some = None if scene is None else pick(scene, index)
        # A frame around the normal.
        flat = (n[2].abs() < 0.9).float()
        hx, hz = 1.0 - flat, flat
        t = unit((-hz * n[1], hz * n[0] - hx * n[2], hx * n[1]))
        b = (n[1] * t[2] - n[2] * t[1], n[2] * t[0] - n[0] * t[2], n[0] * t[1] - n[1] * t[0])
        z = pick(depth, index)
        eye = tuple(self.eye64) if some is None else pick3(self.eye64, some)
        start = [(e + pick(r, index) * z + pick(m, index) * 2e-3).float()
                 for e, r, m in zip(eye, ray, n64, strict=True)]  # fmt: skip
        place = pick((self.row % 4) * 4 + self.col % 4, index % len(self.row))
        fans = torch.from_numpy(_FAN.astype(np.float32)).to(self.device)
        radius = self.radius.expand(len(index)) if some is None else pick(self.radius, some)
        radius = radius.contiguous()
        total = torch.zeros(len(index), device=self.device)
        for fan in fans:
            f = pick3(fan, place)
            d = [t[k] * f[0] + b[k] * f[1] + n[k] * f[2] for k in range(3)]
            total += self.caster.free((start[0], start[1], start[2]), (d[0], d[1], d[2]), radius, some)
        own = torch.ones(len(depth), device=self.device).scatter_(0, index, total / 2)
        inside = self.image(solid.float())
        value, metres = self.image(own) * inside, self.image(torch.where(solid, depth, 1e6)).float()
        normal = [self.image(x.float()) for x in n64]
        h, w = self.height, self.width
        around = (value, metres, inside, *normal)
        big = [pad(x[:, None], (2, 1, 2, 1), mode="replicate")[:, 0] for x in around]
        near = 0.06 * metres
        out, weight = torch.zeros_like(value), torch.zeros_like(value)
        for dy in range(4):
            for dx in range(4):
                v, m, s, x, y, q = (a[:, dy : dy + h, dx : dx + w] for a in big)
                same = ((m - metres).abs() < near) & (x * normal[0] + y * normal[1] + q * normal[2] > 0.85)
                share = same * s
                out += v * share
                weight += share
        gathered = torch.where(weight > 0, out / weight.clamp(min=1), self.image(own))
        return self.tiles(gathered)


def _extremes(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each 3 x 3 neighbourhood of (B, C, H, W)."""
    big = pad(image, (1, 1, 1, 1), mode="replicate")
    h, w = image.shape[-2:]
    out = []
    for f in (torch.minimum, torch.maximum):
        tall = f(f(big[..., 0:h, :], big[..., 1 : h + 1, :]), big[..., 2 : h + 2, :])
        out.append(f(f(tall[..., 0:w], tall[..., 1 : w + 1]), tall[..., 2 : w + 2]))
    return out[0], out[1]
