"""A quick coarse look at a scene: which object each of some hundred rays meets first.

It decides, from the seed alone and without a renderer, whether a camera is worth keeping. Round shapes are
ellipsoids or many-sided prisms here, so shares are good to about a tenth, not exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.data.lowpoly.meshes import placements
from modality_forcing.data.lowpoly.scene import Scene

SIDE = 24
"""Rays per side of the square look."""


@dataclass
class Glance:
    """First hits of SIDE x SIDE rays: primitive index (-1 is sky), object id (0 none), z-depth (inf)."""

    part: np.ndarray
    ids: np.ndarray
    depth: np.ndarray

    def share(self, mask: np.ndarray) -> float:
        """Share of the picture where ``mask`` holds."""
        return float(mask.mean())


def _ring(sides: int, low: float, high: float) -> list[tuple[float, float, float, float]]:
    """Side planes of a frustum with radius ``low`` at z = 0 and ``high`` at z = 1."""
    fit = np.cos(np.pi / sides) ** 0.5  # between the inscribed and the outer polygon
    angles = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    return [(np.cos(a), np.sin(a), (low - high) * fit, low * fit) for a in angles]


def _square(low: float, high: float) -> list[tuple[float, float, float, float]]:
    return [(np.cos(a), np.sin(a), low - high, low) for a in np.arange(4) * np.pi / 2]


_CAPS = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.0, -1.0, 0.0)]
# Half spaces n . p <= c of the unit shapes, rows (nx, ny, nz, c).
_PLANES = {
    "plane": [*_square(0.5, 0.5), (0, 0, 1, 0), (0, 0, -1, 1e-3)],
    "hull": [*_square(0.45, 0.45), *_CAPS], "taper": [*_square(0.5, 0.3), *_CAPS],
    "pyramid": [*_square(0.5, 0.0), *_CAPS],
    "wedge": [(1, 0, 0, 0.5), (-1, 0, 0, 0.5), (0, 1, 0.5, 0.5), (0, -1, 0.5, 0.5), *_CAPS],
    "cylinder": [*_ring(8, 0.5, 0.5), *_CAPS], "cone": [*_ring(8, 0.5, 0.0), *_CAPS],
    "shade": [*_ring(8, 0.5, 0.3), *_CAPS], "vase": [*_ring(8, 0.42, 0.36), *_CAPS],
    "bowl": [*_ring(8, 0.3, 0.5), *_CAPS], "peak": [*_ring(8, 0.47, 0.0), *_CAPS],
    "terrain": [*_ring(8, 0.5, 0.12), *_CAPS], "capsule": [*_ring(8, 0.48, 0.48), *_CAPS],
    "torus": [*_ring(8, 0.5, 0.5), *_CAPS],
}  # fmt: skip
_ROUND = ("sphere", "blob", "rock", "leaf")


def _family(kind: str) -> str:
    return kind.rstrip("0123456789")


def _in_view(
    linear: np.ndarray, move: np.ndarray, eye: np.ndarray, forward: np.ndarray, half: float, side: int
) -> np.ndarray:
    """Indices of primitives whose bounding ball meets the cone of view and is larger than a ray's cell."""
    middle = move + 0.5 * linear[:, :, 2] - eye
    radius = 0.5 * np.sqrt((linear**2).sum((1, 2)))
    far = np.sqrt((middle**2).sum(1))
    angle = np.arccos(np.clip(middle @ forward / np.maximum(far, 1e-9), -1, 1))
    spread = np.arcsin(np.clip(radius / np.maximum(far, 1e-9), 0, 1))
    inside = far <= radius
    large = radius > 0.45 * far * half / side
    return np.nonzero(inside | ((angle - spread < np.arctan(half * 2**0.5)) & large))[0]


def _hits(kind: str, o: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Ray parameters (P, R) at which rays from (P, 3) along (P, 3, R) enter unit shapes; inf: missed."""
    if kind in _ROUND:
        o = o - np.array([0.0, 0.0, 0.5])
        a = (local * local).sum(1)
        h = (o[:, :, None] * local).sum(1)
        c = ((o * o).sum(1) - 0.25)[:, None]
        root = h * h - a * c
        t = np.where(root > 0, (-h - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        return np.where((t > 0) | ~(root > 0), t, np.where(c < 0, 1e-3, np.inf))
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "box":  # three slabs
            low, high = -np.array([0.5, 0.5, 0.0]) - o, np.array([0.5, 0.5, 1.0]) - o
            one, two = low[:, :, None] / local, high[:, :, None] / local
            enter, leave = np.minimum(one, two).max(1), np.maximum(one, two).min(1)
        else:
            planes = np.array(_PLANES[kind], float)
            gap = planes[:, 3] - o @ planes[:, :3].T  # positive inside
            slope = planes[:, :3] @ local
            cross = gap[:, :, None] / slope
            enter = np.where(slope < 0, cross, -np.inf).max(1)
            leave = np.where(slope > 0, cross, np.inf).min(1)
        return np.where((enter <= leave) & (leave > 0), np.maximum(enter, 1e-3), np.inf)


def glance(scene: Scene, side: int = SIDE) -> Glance:
    """Look at ``scene`` through its camera with ``side`` x ``side`` rays."""
    half = np.tan(np.radians(scene.view.fov_x) / 2)
    u = ((np.arange(side) + 0.5) / side * 2 - 1) * half
    axes, eye = scene.view.axes(), np.array(scene.view.position)
    d = (u[None, :, None] * axes[0] + u[:, None, None] * axes[1] + axes[2]).reshape(-1, 3)
    linear, move = placements(scene.primitives)
    inverse = np.linalg.inv(linear)
    start = (inverse @ (eye - move)[:, :, None])[:, :, 0]
    kinds: dict[str, list[int]] = {}
    for i in _in_view(linear, move, eye, axes[2], half, side):
        kinds.setdefault(_family(scene.primitives[i].kind), []).append(int(i))
    depth, part = np.full(len(d), np.inf), np.full(len(d), -1)
    rays = np.ascontiguousarray(d.T)
    every = np.arange(len(d))
    for kind, members in kinds.items():
        if kind == "ring":  # too thin to count
            continue
        index = np.array(members)
        t = _hits(kind, start[index], inverse[index] @ rays)
        best = t.argmin(0)
        near = t[best, every]
        closer = near < depth
        depth[closer], part[closer] = near[closer], index[best[closer]]
    ids = np.array([p.object_id for p in scene.primitives])
    shape = (side, side)
    return Glance(part.reshape(shape), np.where(part >= 0, ids[part], 0).reshape(shape), depth.reshape(shape))
